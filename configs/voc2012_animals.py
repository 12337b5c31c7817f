"""Self-Explainer, classifier and Explainer on six animals of PASCAL VOC 2012: cat, dog, horse, cow, sheep, person.

Method:   decoder on a pretrained EfficientNet-Lite0, several classes a photo, image labels alone.
Hardware: two CPU cores in 36 minutes.
Command:  python -m selfexplain_jax.main --config=configs/voc2012_animals.py --workdir=runs/voc2012_animals
Data:     python -m selfexplain_jax.data.prepare --dataset=voc2012 --data_dir=DIR, then --config.data.data_dir=DIR.
Variants: self_explainer, classifier (EfficientNet-Lite0 itself), explainer (Stalder et al. 2022, on that classifier,
          which must be in runs/voc2012_animals_classifier: the command with :classifier behind the config's name).
Score:    mean IoU .527 (.565 refined), continuous IoU .541, mAP .922 (three seeds, 345 images; docs/results.md).
"""

from selfexplain_jax.config import base_config, check_variant
from selfexplain_jax.recipes import (
    classifier_recipe,
    explainer_recipe,
    frozen_encoder_recipe,
    photo_recipe,
    self_explainer_recipe,
    trained_encoder,
)

VARIANTS = ("self_explainer", "classifier", "explainer")


def get_config(variant="self_explainer"):
    """The experiment of that name."""
    check_variant(__file__, variant, VARIANTS)
    config = frozen_encoder_recipe(photo_recipe(self_explainer_recipe(base_config())))
    config.data.name = "voc2012"
    config.data.options = {"classes": ("cat", "dog", "horse", "cow", "sheep", "person"), "empty": "drop"}
    config.data.train_split, config.data.eval_split = "train_aug", "val"
    if variant == "classifier":
        trained_encoder(config)
        config.model.output_stride = 32
        classifier_recipe(config)
    if variant == "explainer":
        trained_encoder(config)
        config.explainer.classifier = "runs/voc2012_animals_classifier"
        config.explainer.classifier_config = "configs/voc2012_animals.py:classifier"
        config.passes.classes_per_image = 0
        explainer_recipe(config, entropy=3.0, variation=1.0, bounds=0.8, target_area=0.01, non_target_area=0.3)
        # Ten times the paper's in the decoder, which is new; the paper's in the encoder.
        config.train.learning_rate = 1e-3
    return config
