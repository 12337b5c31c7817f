"""Self-Explainer on your own photos: a folder per class, or an index file (see selfexplain_jax/data/folder.py).

Method:   as configs/synthetic.py, with a decoder on EfficientNet-Lite0 that starts from its ImageNet weights.
Hardware: one GPU; two CPU cores need patience: 4 s a full step beside another run, and minutes to compile it.
Command:  python -m selfexplain_jax.main --config=configs/folder.py --config.data.data_dir=photos --workdir=runs/photos
Variants: single (one class a photo), multi (any number, needs an index file). No score has been measured yet.
"""

from selfexplain_jax.config import base_config, self_explainer_recipe
from selfexplain_jax.types import UserError

VARIANTS = ("single", "multi")


def get_config(variant="single"):
    """The experiment of that name."""
    if variant not in VARIANTS:
        raise UserError(f"configs/folder.py has no variant {variant!r}. Choose one of {VARIANTS}.")
    config = self_explainer_recipe(base_config())
    config.data.name = "folder"
    # What may be said of the folder; the options are described in selfexplain_jax/data/folder.py.
    config.data.options = {"multilabel": variant == "multi", "classes": (), "masks": "", "mask_values": "classes"}
    config.data.options.skip_bad = False
    config.data.image_size = 128
    config.data.crop_area = (0.4, 1.0)
    config.data.flip = True
    config.data.color_jitter = (0.2, 0.2, 0.2, 0.02)
    config.data.balance = 1.0
    config.model.name = "encoder_unet"
    config.model.encoder = "efficientnet_lite0"
    config.model.pretrained = "imagenet"
    # A batch of 16 is too few for batch statistics of its own.
    config.model.frozen_norm = True
    config.model.mask_stride = 4
    config.train.backbone_rate = 0.1
    config.train.batch_size = 16
    config.train.learning_rate = 2e-3
    config.train.steps = 600
    config.train.warmup_steps = 20
    config.train.checkpoint_every = 100
    # A pretrained encoder knows the classes after a few steps: everything comes early.
    config.model.temperature_steps = 300
    for name in ("classification", "object", "background", "evaluator", "area_target", "area_non_target", "smoothness"):
        config.objective[name].start = 50
    for name in ("classification", "object", "background", "evaluator"):
        config.objective[name].ramp = 50
    config.objective.affinity.start, config.objective.affinity.ramp = 100, 100
    if variant == "multi":
        config.passes.classes_per_image = 1
    return config
