"""Self-Explainer on MNIST (TFDS mnist/3.0.1): the plain digits, and digits on textured canvases.

Method:   as configs/synthetic.py.
Hardware: two CPU cores.
Command:  python -m selfexplain_jax.main --config=configs/mnist.py --workdir=runs/mnist
Data:     python -m selfexplain_jax.data.prepare --dataset=mnist --data_dir=DIR, then --config.data.data_dir=DIR.
Variants: plain (28 px, in a 32 px frame), canvas (one digit on 64 px). Measured scores and times: docs/results.md.
"""

from selfexplain_jax.config import base_config
from selfexplain_jax.types import UserError

VARIANTS = ("plain", "canvas")


def recipe(config):
    """The recipe of configs/synthetic.py."""
    start, ramp = 300, 200
    config.train.steps = 3000
    config.train.learning_rate = 4e-3
    config.model.initial_temperature = 0.6
    config.model.pooling_temperature = 0.25
    config.model.temperature_steps = 1600
    config.model.map_blur = 0.7
    config.passes.infills = ("zero", "color_noise", "blur")
    config.passes.evaluator_masks = ("swapped", "complement", "blobs")
    config.objective = {
        "ranking": {"weight": 1.0},
        "classification": {"weight": 1.0, "start": start, "ramp": ramp},
        "object": {"weight": 2.0, "start": start, "ramp": ramp},
        "background": {"weight": 1.5, "start": start, "ramp": ramp},
        "evaluator": {"weight": 2.0, "start": start, "ramp": ramp},
        "area_target": {"weight": 0.15, "start": start},
        "area_non_target": {"weight": 0.2, "start": start},
        "smoothness": {"weight": 0.03, "edge": 2.0, "start": start},
    }
    return config


def get_config(variant="plain"):
    """The experiment of that name."""
    if variant not in VARIANTS:
        raise UserError(f"configs/mnist.py has no variant {variant!r}. Choose one of {VARIANTS}.")
    config = recipe(base_config())
    config.data.name = "mnist"
    if variant == "plain":
        # The 28 px digit in a frame that the network's levels can halve.
        config.data.image_size = 32
    else:
        config.data.image_size = 64
        config.data.options = {"canvas": True}
    return config
