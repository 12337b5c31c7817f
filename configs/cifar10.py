"""Self-Explainer on CIFAR-10 (TFDS cifar10/3.0.2): 32 px, ten classes, from the start without other weights.

Method:   as configs/synthetic.py, on a U-Net of three levels that sees colours.
Hardware: two CPU cores, or one GPU.
Command:  python -m selfexplain_jax.main --config=configs/cifar10.py --workdir=runs/cifar10
Data:     python -m selfexplain_jax.data.prepare --dataset=cifar10 --data_dir=DIR, then --config.data.data_dir=DIR.
Variants: self_explainer, classifier (the same network on its scores alone).
Score:    not trained here, so none is promised.
"""

from selfexplain_jax.config import base_config, check_variant
from selfexplain_jax.recipes import self_explainer_recipe

VARIANTS = ("self_explainer", "classifier")


def get_config(variant="self_explainer"):
    """The experiment of that name."""
    check_variant(__file__, variant, VARIANTS)
    config = self_explainer_recipe(base_config())
    config.data.name = "cifar10"
    config.data.image_size = 32
    config.data.crop_area = (0.5, 1.0)
    config.data.flip = True
    config.model.widths = (64, 96, 128)
    config.model.stem_stride = 2
    # Colours tell these classes apart, unlike those of the synthetic set.
    config.model.local_contrast = False
    config.train.batch_size = 64
    config.train.steps = 6000
    if variant == "classifier":
        config.method = "classifier"
        config.objective = {name: config.objective[name] for name in ("ranking", "classification")}
    return config
