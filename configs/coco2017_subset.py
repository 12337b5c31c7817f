"""Self-Explainer and classifier on three classes of COCO 2017: people, tables and bowls, in few photographs.

Method:   decoder on a pretrained EfficientNet-Lite0, several classes a photo, image labels alone.
Hardware: two CPU cores in 34 minutes, with a compilation and tests beside.
Command:  python -m selfexplain_jax.main --config=configs/coco2017_subset.py --workdir=runs/coco2017_subset
Data:     python -m selfexplain_jax.data.prepare --dataset=coco2017 --data_dir=DIR, then --config.data.data_dir=DIR.
Variants: self_explainer, classifier (EfficientNet-Lite0 itself).
Score:    mAP .810, mean IoU .309 (seed 0, 260 training photos; docs/results.md says what is weak).
"""

from selfexplain_jax.config import base_config, check_variant
from selfexplain_jax.recipes import (
    classifier_recipe,
    frozen_encoder_recipe,
    photo_recipe,
    self_explainer_recipe,
    trained_encoder,
)

VARIANTS = ("self_explainer", "classifier")
# Those in 25 of the subset's 260 training photos at least that cover a tenth of these on average.
CLASSES = ("person", "dining table", "bowl")


def get_config(variant="self_explainer"):
    """The experiment of that name."""
    check_variant(__file__, variant, VARIANTS)
    config = frozen_encoder_recipe(photo_recipe(self_explainer_recipe(base_config())))
    config.data.name = "coco2017"
    # Streets and rooms without people are what tells people from streets and rooms.
    config.data.options = {"classes": CLASSES, "empty": "keep"}
    config.data.train_split, config.data.eval_split = "train", "val"
    if variant == "classifier":
        trained_encoder(config)
        config.model.output_stride = 32
        classifier_recipe(config)
    return config
