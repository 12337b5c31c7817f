"""The objective: which terms are on, from which step, how strongly; and that the config asks for nothing unknown."""

from __future__ import annotations

import inspect

import jax
import jax.numpy as jnp

from selfexplain_jax.objectives import terms
from selfexplain_jax.types import UserError

TERMS = {
    "classification": terms.classification,
    "ranking": terms.ranking,
    "object": terms.object,
    "background": terms.background,
    "evaluator": terms.evaluator,
    "area_target": terms.area_target,
    "area_non_target": terms.area_non_target,
    "area_bounds": terms.area_bounds,
    "smoothness": terms.smoothness,
    "squared_smoothness": terms.squared_smoothness,
    "self_training": terms.self_training,
    "binarisation": terms.binarisation,
    "affinity": terms.affinity,
    "border": terms.border,
}

SCHEDULE = {"weight": 1.0, "start": 0, "ramp": 0, "gate_steepness": 0.0, "gate_offset": 0.0}
"""What every term takes beside its own options: weight, first step, length of the ramp, the predecessors' gate."""

LINKS = ("softmax", "sigmoid")


def own_options(name: str) -> set[str]:
    """Names of the options that the term itself takes."""
    parameters = inspect.signature(TERMS[name]).parameters.values()
    return {p.name for p in parameters if p.kind is p.KEYWORD_ONLY} - {"link"}


CHOICES = {
    ("object", "target"): ("absolute", "relative", "present"),
    ("background", "form"): ("auto", "absent", "uniform", "entropy", "mean_entropy", "probability"),
}


def validate_objective(config) -> None:
    """Checks `config.objective` and `config.model.link` before anything compiles.

    Raises:
      UserError: an unknown term, option or choice; a weight that is no number; no term at all; bounds out of order.
    """
    if config.model.link not in LINKS:
        raise UserError(f"config.model.link = {config.model.link!r} is unknown. Choose one of {LINKS}.")
    if config.data.positive_weights and config.model.link != "sigmoid":
        raise UserError("config.data.positive_weights is for config.model.link = 'sigmoid'; set it to False.")
    if not len(config.objective):
        raise UserError("config.objective is empty: at least {'classification': {'weight': 1.0}} is needed.")
    for name, options in config.objective.items():
        if name not in TERMS:
            raise UserError(f"config.objective.{name} is no known term. Choose from {sorted(TERMS)}.")
        if not hasattr(options, "items"):
            raise UserError(f'config.objective.{name} = {options!r} must be {{"weight": number, ...}}.')
        known = own_options(name) | set(SCHEDULE)
        for option, value in options.items():
            where = f"config.objective.{name}.{option}"
            if option not in known:
                raise UserError(f"{where} is no option of that term. It takes {sorted(known)}.")
            choices = CHOICES.get((name, option))
            if choices and value not in choices:
                raise UserError(f"{where} = {value!r} is unknown. Choose one of {choices}.")
            if not choices and (isinstance(value, bool) or not isinstance(value, int | float)):
                raise UserError(f"{where} = {value!r} must be a number.")
        if options.get("gate_steepness") and "classification" not in config.objective:
            raise UserError(
                f"config.objective.{name}.gate_steepness waits for the loss of 'classification', which the objective "
                "does not have."
            )
    bounds = config.objective.get("area_bounds")
    if bounds is not None and not 0 <= bounds.get("lower", 0.05) < bounds.get("upper", 0.3) <= 1:
        raise UserError("config.objective.area_bounds needs 0 <= lower < upper <= 1.")
    power = config.objective.get("background", {}).get("power", 0.3)
    if power <= 0:
        raise UserError(f"config.objective.background.power = {power} must be above 0.")
    affinity = config.objective.get("affinity", {})
    reach, scale = affinity.get("reach", 1), affinity.get("scale", 1.0)
    if reach < 1 or reach != int(reach) or scale <= 0:
        raise UserError(
            f"config.objective.affinity needs a whole number of cells as reach, 1 or more, and a scale above 0; "
            f"reach = {reach}, scale = {scale}."
        )
    most = 1 if bounds is None else bounds.get("max_classes", 1)
    if most < 1 or most != int(most):
        raise UserError(f"config.objective.area_bounds.max_classes = {most} must be a whole number, 1 or more.")


def ramp(step: jax.Array, start: int, steps: int) -> jax.Array:
    """0 before `start`, then linear to 1 over `steps` steps.

    Examples:
      >>> [float(ramp(step, start=100, steps=4)) for step in (99, 100, 101, 103, 500)]
      [0.0, 0.25, 0.5, 1.0, 1.0]
    """
    if start == 0 and steps == 0:
        return jnp.float32(1.0)
    return jnp.clip((step - start + 1) / max(steps, 1), 0.0, 1.0).astype(jnp.float32)


def gate(loss: jax.Array, steepness: float, offset: float) -> jax.Array:
    """min(1, exp(-steepness (L - offset))) on the detached classification loss L: closed until L nears the offset."""
    return jnp.minimum(1.0, jnp.exp(-steepness * (jax.lax.stop_gradient(loss) - offset)))


def first_step(objective, names: tuple[str, ...]) -> int | None:
    """The first step at which one of these terms counts; None if none is ever on."""
    options = [SCHEDULE | dict(objective[name]) for name in names if name in objective]
    return min((o["start"] for o in options if o["weight"] != 0), default=None)


def total_objective(
    outputs: dict, label: jax.Array, valid: jax.Array, step: jax.Array, objective, link: str
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """sum over terms of weight x ramp(step) x gate x mean over valid examples.

    Returns:
      The scalar objective, and every term's unweighted mean, by name.
    """
    count = jnp.maximum(valid.sum(), 1.0)
    means, total = {}, jnp.float32(0.0)
    for name, options in objective.items():
        own = {key: value for key, value in options.items() if key not in SCHEDULE}
        means[name] = (valid * TERMS[name](outputs, label, link=link, **own)).sum() / count
    for name, options in objective.items():
        schedule = SCHEDULE | {key: value for key, value in options.items() if key in SCHEDULE}
        strength = schedule["weight"] * ramp(step, schedule["start"], schedule["ramp"])
        if schedule["gate_steepness"] and name != "classification" and "classification" in means:
            strength = strength * gate(means["classification"], schedule["gate_steepness"], schedule["gate_offset"])
        total = total + strength * means[name]
    return total, means
