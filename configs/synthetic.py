"""Self-Explainer on the synthetic set: 64 px, eight classes, trained from image labels alone.

Method:   U-Net whose masks classify; object, background and evaluator passes (docs/theory.md has the reasons).
Hardware: two CPU cores.
Command:  python -m selfexplain_jax.main --config=configs/synthetic.py --workdir=runs/synthetic
Variants: configs/synthetic.py:NAME with NAME one of VARIANTS. Measured scores and times: docs/results.md.
"""

from selfexplain_jax.config import base_config
from selfexplain_jax.types import UserError

VARIANTS = ("object", "texture", "shape", "multi", "confounded", "confounded_classifier")


def recipe(config):
    """The recipe that every variant shares."""
    # Classification alone until this step; then all passes, their weights growing over `ramp` steps.
    start, ramp = 300, 200
    config.train.steps = 3000
    config.train.batch_size = 32
    config.train.learning_rate = 4e-3
    # From a pool that finds the class fast to one near the mean (0), where a few strong cells cannot carry it.
    config.model.initial_temperature = 0.6
    config.model.pooling_temperature = 0.25
    config.model.temperature_steps = 1600
    # Neighbouring cells share evidence: without it the maps show the grid of the last layer.
    config.model.map_blur = 0.7
    config.passes.infills = ("zero", "color_noise", "blur")
    config.passes.evaluator_masks = ("swapped", "complement", "blobs")
    config.objective = {
        # Tells classes apart from the first step on; BCE alone would sit on a plateau for a thousand steps.
        "ranking": {"weight": 1.0},
        # Ties a logit of 0, a mask of one half, to "present".
        "classification": {"weight": 1.0, "start": start, "ramp": ramp},
        "object": {"weight": 2.0, "start": start, "ramp": ramp},
        "background": {"weight": 1.5, "start": start, "ramp": ramp},
        "evaluator": {"weight": 2.0, "start": start, "ramp": ramp},
        "area_target": {"weight": 0.15, "start": start},
        "area_non_target": {"weight": 0.2, "start": start},
        "smoothness": {"weight": 0.03, "edge": 2.0, "start": start},
    }
    return config


def get_config(variant="object"):
    """The experiment of that name."""
    if variant not in VARIANTS:
        raise UserError(f"configs/synthetic.py has no variant {variant!r}. Choose one of {VARIANTS}.")
    config = recipe(base_config())
    config.data.name = "synthetic"
    if variant == "texture":
        # Any patch of the object names it; shapes say nothing.
        config.data.options = {"label": "texture"}
    if variant == "shape":
        # The outline alone names it; textures say nothing.
        config.data.options = {"label": "shape"}
    if variant == "multi":
        config.data.options = {"min_objects": 1, "max_objects": 3}
        # One present class at a time in the object pass, so that each class has a mask of its own.
        config.passes.classes_per_image = 1
    if variant.startswith("confounded"):
        # In nine of ten training images the background is that of the label; in the test images never.
        config.data.options = {"confounding": 0.9}
    if variant == "confounded_classifier":
        # The same network without any explanation: what a plain classifier makes of confounded data.
        config.objective = {name: config.objective[name] for name in ("ranking", "classification")}
    return config
