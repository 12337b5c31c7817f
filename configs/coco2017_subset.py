"""Self-Explainer and classifier on seven classes of COCO 2017: people and what is around them, few photographs.

Method:   decoder on a pretrained EfficientNet-Lite0, several classes a photo, image labels alone.
Hardware: two CPU cores in 49 minutes, with evaluations and tests beside.
Command:  python -m selfexplain_jax.main --config=configs/coco2017_subset.py --workdir=runs/coco2017_subset
Data:     python -m selfexplain_jax.data.prepare --dataset=coco2017 --data_dir=DIR, then --config.data.data_dir=DIR.
Variants: self_explainer, classifier (EfficientNet-Lite0 itself).
Score:    it fails: mAP .649, mean IoU .138 (seed 0, 185 training images of 260; docs/results.md says why).
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
CLASSES = ("person", "car", "bottle", "cup", "bowl", "chair", "dining table")


def get_config(variant="self_explainer"):
    """The experiment of that name."""
    check_variant(__file__, variant, VARIANTS)
    config = frozen_encoder_recipe(photo_recipe(self_explainer_recipe(base_config())))
    config.data.name = "coco2017"
    config.data.options = {"classes": CLASSES, "empty": "drop"}
    config.data.train_split, config.data.eval_split = "train", "val"
    if variant == "classifier":
        trained_encoder(config)
        config.model.output_stride = 32
        classifier_recipe(config)
    return config
