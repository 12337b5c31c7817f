"""Self-Explainer on CUB-200-2011: 224 px, 200 species of birds, image labels.

Method:   decoder on a pretrained EfficientNet-Lite0.
Hardware: one GPU, an hour or two.
Command:  python -m selfexplain_jax.main --config=configs/cub200.py --workdir=runs/cub200
Data:     python -m selfexplain_jax.data.prepare --dataset=cub200 --data_dir=DIR, then --config.data.data_dir=DIR.
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
    config.data.name = "cub200"
    # The classes are those of what was prepared, all of them.
    config.data.options = {"classes": ()}
    config.train.steps = 6000
    config.train.checkpoint_every = 500
    config.evaluation.batch_size = 50
    if variant == "classifier":
        classifier_recipe(config)
    return config
