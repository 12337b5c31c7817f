"""The masks that a network that explains itself gives: no search, no gradient, one forward pass."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from selfexplain_jax.attribution.inputs import check_inputs, traceable
from selfexplain_jax.types import Predictor, UserError


def learned(
    predictor: Predictor, images: jax.Array, class_ids: jax.Array, *, rng: jax.Array | None = None
) -> jax.Array:
    """Returns the predictor's own masks of the classes asked for, float32 [B, k, H, W] in 0..1.

    Args:
      predictor: one with `masks`.
      images: [B, H, W, 3], normalised.
      class_ids: int32 [B, k].
      rng: not used.

    Raises:
      UserError: bad images or class ids, or the predictor has no masks of its own.
    """
    del rng
    images, class_ids = check_inputs(predictor, images, class_ids)
    if predictor.masks is None:
        raise UserError("Method 'learned' needs a model that explains itself; this predictor has no masks.")
    return _learned(traceable(predictor.masks), images, class_ids)


@jax.jit
def _learned(masks: Callable, images: jax.Array, class_ids: jax.Array) -> jax.Array:
    return jnp.asarray(masks(images, class_ids), jnp.float32)
