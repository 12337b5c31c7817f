"""Self-Explainer and classifier on COCO 2017: 224 px, 80 classes, image labels.

Method:   decoder on a pretrained EfficientNet-Lite0, several classes a photo.
Hardware: one GPU, a day.
Command:  python -m selfexplain_jax.main --config=configs/coco2017.py --workdir=runs/coco2017
Data:     python -m selfexplain_jax.data.prepare --dataset=coco2017 --data_dir=DIR, then --config.data.data_dir=DIR.
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
    config.data.name = "coco2017"
    config.data.train_split = "train"
    config.data.eval_split = "val"
    # Photos that show none of the classes have nothing to be masked, and the evaluation refuses them.
    config.data.options = {"classes": (), "empty": "drop"}
    # One present class at a time in the object pass, so that each class has a mask of its own.
    config.passes.classes_per_image = 1
    config.train.steps = 50_000
    config.train.checkpoint_every = 500
    config.evaluation.batch_size = 50
    if variant == "classifier":
        classifier_recipe(config)
    return config
