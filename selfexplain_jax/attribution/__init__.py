"""Attribution methods: which pixels speak for a class. Add one: a function of the contract below and a line in METHODS.

The contract: `fn(predictor, images [B, H, W, 3], class_ids int32 [B, k], *, rng=None, **options)` returns a saliency
map float32 [B, k, H, W] at image size. Pure JAX; it sees a `Predictor` and never a model class; it chooses no class.
A NaN that a network gives stays a NaN in the map. `build_predictor` makes a predictor of anybody's functions.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable

from selfexplain_jax.attribution.attention import attention_relevance, attention_rollout
from selfexplain_jax.attribution.cam import cam, grad_cam, grad_cam_plus_plus
from selfexplain_jax.attribution.controls import centre, constant, edges, ground_truth
from selfexplain_jax.attribution.extremal_perturbation import extremal_perturbation
from selfexplain_jax.attribution.gradient import gradient, gradient_x_input, integrated_gradients, smooth_grad
from selfexplain_jax.attribution.guided import guided_backpropagation
from selfexplain_jax.attribution.inputs import check_inputs
from selfexplain_jax.attribution.learned import learned
from selfexplain_jax.attribution.predictor import build_predictor
from selfexplain_jax.attribution.rise import rise, rise_from_masks
from selfexplain_jax.attribution.score_cam import score_cam
from selfexplain_jax.types import UserError

METHODS: dict[str, Callable] = {
    "learned": learned,
    "constant": constant,
    "centre": centre,
    "edges": edges,
    "cam": cam,
    "grad_cam": grad_cam,
    "grad_cam_plus_plus": grad_cam_plus_plus,
    "gradient": gradient,
    "gradient_x_input": gradient_x_input,
    "smooth_grad": smooth_grad,
    "integrated_gradients": integrated_gradients,
    "score_cam": score_cam,
    "rise": rise,
    "extremal_perturbation": extremal_perturbation,
    "guided_backpropagation": guided_backpropagation,
    "attention_rollout": attention_rollout,
    "attention_relevance": attention_relevance,
}

__all__ = ["METHODS", "build_method", "build_predictor", "check_inputs", "ground_truth", "rise_from_masks", *METHODS]


def build_method(name: str, **options) -> Callable:
    """Returns `METHODS[name]` with its options filled in: `fn(predictor, images, class_ids, *, rng=None)`.

    Raises:
      UserError: no method has that name, or the method does not know an option.
    """
    if name not in METHODS:
        raise UserError(f"Unknown attribution method {name!r}; there are {', '.join(METHODS)}.")
    method = METHODS[name]
    parameters = inspect.signature(method).parameters.values()
    known = [p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY and p.name != "rng"]
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise UserError(f"Attribution method {name!r} has no option {unknown[0]!r}; it has: {', '.join(known) or '-'}.")
    return functools.partial(method, **options)
