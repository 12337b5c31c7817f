"""What each ingredient of the recipe is worth: configs/synthetic.py with one of them left out or exchanged.

Method:   as configs/synthetic.py, shortened, so that all 17 rows together take an hour and a half and not a day.
Hardware: two CPU cores; 3.3 to 11.6 minutes a row, 89 minutes of training for all, measured (docs/results.json).
Command:  python -m selfexplain_jax.main --config=configs/synthetic_ablation.py:no_evaluator --workdir=runs/no_evaluator
Variants: configs/synthetic_ablation.py:NAME with NAME one of VARIANTS; `full` leaves nothing out. Measured scores:
          docs/results.md, from the validation split.
"""

from selfexplain_jax.config import base_config, check_variant
from selfexplain_jax.recipes import self_explainer_recipe


def _without(*terms):
    def change(config):
        config.objective = {name: dict(config.objective[name]) for name in config.objective if name not in terms}

    return change


def _with(**fields):
    """fields: model__map_blur=0.0 sets config.model.map_blur."""

    def change(config):
        for path, value in fields.items():
            group, name = path.split("__")
            config[group][name] = value

    return change


def _without_ranking(config):
    """Nothing else trains before the other terms' start, so that classification has to take the place from step 0."""
    _without("ranking")(config)
    config.objective.classification.start = 0


CHANGES = {
    "full": lambda config: None,
    "no_ranking": _without_ranking,
    "no_object": _without("object"),
    "no_background": _without("background"),
    "no_evaluator": _without("evaluator"),
    "no_area": _without("area_target", "area_non_target"),
    "no_smoothness": _without("smoothness"),
    "no_affinity": _without("affinity"),
    "no_edges": _with(model__edge_distances=()),
    "no_blur": _with(model__map_blur=0.0),
    # The pool is near the mean from the first step on.
    "no_annealing": _with(model__temperature_steps=0),
    "no_local_contrast": _with(model__local_contrast=False),
    "zero_infill": _with(passes__infills=("zero",)),
    "blobs_alone": _with(passes__evaluator_masks=("blobs",)),
    "live_weights": _with(passes__weights="live"),
    "ema_weights": _with(passes__weights="ema"),
    "hard_masks": _with(passes__hard_masks=True),
}
VARIANTS = tuple(CHANGES)


def get_config(variant="full"):
    """The recipe with that change."""
    check_variant(__file__, variant, VARIANTS)
    config = self_explainer_recipe(base_config())
    config.data.name = "synthetic"
    config.train.steps = 900
    # The recipe's own dates count steps of a longer run. Classification alone, which is fast, gets to one half right.
    start, ramp = 400, 100
    for name in set(config.objective) - {"ranking", "affinity"}:
        config.objective[name].start = start
        if "ramp" in config.objective[name]:
            config.objective[name].ramp = ramp
    config.objective.affinity.start, config.objective.affinity.ramp = start + ramp, 150
    config.model.temperature_steps = 650
    # Choices are made on images that the table of results does not use.
    config.data.eval_split = "validation"
    # The swap rates need no classifier of their own; training those would take as long as the run.
    config.evaluation.audit = False
    config.evaluation.max_examples = 1000
    CHANGES[variant](config)
    return config
