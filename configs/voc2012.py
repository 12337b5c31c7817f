"""Self-Explainer and classifier on PASCAL VOC 2012: 224 px, 20 classes, image labels.

Method:   decoder on a pretrained EfficientNet-Lite0, several classes a photo.
Hardware: one GPU, an hour or two.
Command:  python -m selfexplain_jax.main --config=configs/voc2012.py --workdir=runs/voc2012
Data:     python -m selfexplain_jax.data.prepare --dataset=voc2012 --data_dir=DIR, then --config.data.data_dir=DIR.
Variants: self_explainer, classifier (EfficientNet-Lite0 itself).
Score:    not trained here, so none is promised.
"""

from selfexplain_jax.config import base_config, check_variant
from selfexplain_jax.recipes import classifier_recipe, photo_recipe, self_explainer_recipe

VARIANTS = ("self_explainer", "classifier")


def get_config(variant="self_explainer"):
    """The experiment of that name."""
    check_variant(__file__, variant, VARIANTS)
    config = photo_recipe(self_explainer_recipe(base_config()))
    config.data.name = "voc2012"
    config.data.train_split = "train_aug"
    config.data.eval_split = "val"
    # Photos that show none of the classes, where only some are asked for, have nothing to be masked.
    config.data.options = {"classes": (), "empty": "drop"}
    # One present class at a time in the object pass, so that each class has a mask of its own.
    config.passes.classes_per_image = 1
    config.train.steps = 6000
    config.train.checkpoint_every = 500
    config.evaluation.batch_size = 50
    if variant == "classifier":
        classifier_recipe(config)
    return config
