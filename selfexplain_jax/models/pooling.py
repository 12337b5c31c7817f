"""From a logit map to class scores: the pools by which a map alone classifies.

Every pool takes logit maps s [B, h, w, C] and returns class scores z [B, C]; N = h w cells. The names are those of
`config.model.pooling`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from selfexplain_jax.types import UserError


def mean_pool(logit_maps: jax.Array, temperature: float = 0.0) -> jax.Array:
    """z_c = mean_u s_c(u)."""
    del temperature
    return logit_maps.mean(axis=(1, 2))


def max_pool(logit_maps: jax.Array, temperature: float = 0.0) -> jax.Array:
    """z_c = max_u s_c(u)."""
    del temperature
    return logit_maps.max(axis=(1, 2))


def softmax_pool(logit_maps: jax.Array, temperature: float) -> jax.Array:
    """z_c = sum_u softmax_u(k s_c)_u s_c(u): the mean for k -> 0, the maximum for k -> infinity.

    Its gradient is dz/ds_u = w_u (1 + k (s_u - z)) with w the softmax: cells below z - 1/k are pushed down when z goes
    up.

    Examples:
      >>> maps = jnp.asarray([0.0, 0.0, 0.0, 4.0]).reshape(1, 2, 2, 1)
      >>> [round(float(softmax_pool(maps, k)[0, 0]), 2) for k in (0.0, 1.0, 100.0)]
      [1.0, 3.79, 4.0]
    """
    weights = jax.nn.softmax(temperature * logit_maps, axis=(1, 2))
    return (weights * logit_maps).sum(axis=(1, 2))


def logsumexp_pool(logit_maps: jax.Array, temperature: float) -> jax.Array:
    """z_c = log(mean_u exp(k s_c(u))) / k: mean <= z <= max, with a gradient that is never negative."""
    cells = logit_maps.shape[1] * logit_maps.shape[2]
    return (jax.nn.logsumexp(temperature * logit_maps, axis=(1, 2)) - jnp.log(cells)) / temperature


def ngwp_pool(logit_maps: jax.Array, temperature: float = 1.0, focus: float = 3.0, floor: float = 0.01) -> jax.Array:
    """Normalised global weighted pooling with its focal size penalty (Araslanov & Roth, CVPR 2020, eq. 2 to 4).

    m = softmax over the classes and a background of logit 0, per cell; a_c = mean_u m_c(u);
    z_c = sum_u s_c m_c / (1 + sum_u m_c) + (1 - a_c)^focus log(floor + a_c).
    """
    del temperature
    background = jnp.zeros_like(logit_maps[..., :1])
    m = jax.nn.softmax(jnp.concatenate([logit_maps, background], axis=-1), axis=-1)[..., :-1]  # [B, h, w, C]
    weighted = (m * logit_maps).sum(axis=(1, 2)) / (1.0 + m.sum(axis=(1, 2)))
    area = m.mean(axis=(1, 2))
    return weighted + (1.0 - area) ** focus * jnp.log(floor + area)


POOLS: dict[str, Callable[..., jax.Array]] = {
    "mean": mean_pool,
    "max": max_pool,
    "softmax": softmax_pool,
    "logsumexp": logsumexp_pool,
    "ngwp": ngwp_pool,
}


def annealed(step: jax.Array, initial: float, final: float, steps: int) -> jax.Array:
    """Temperature at a step: geometric from `initial` at step 0 to `final` at step `steps`, then constant."""
    share = jnp.clip(step / max(steps, 1), 0.0, 1.0)
    return jnp.float32(initial) * (final / initial) ** share


def check_pool(name: str, temperature: float) -> None:
    """Checks `config.model.pooling` and its temperature.

    Raises:
      UserError: unknown name, a temperature that is no finite number, or one that is not positive where the pool
        divides by it.
    """
    if name not in POOLS:
        raise UserError(f"config.model.pooling = {name!r} is unknown. Choose one of {sorted(POOLS)}.")
    if not math.isfinite(temperature):
        raise UserError(
            f"config.model.pooling_temperature = {temperature} must be a finite number; its limit is the pool 'max'."
        )
    if temperature < 0 or (name == "logsumexp" and temperature == 0):
        raise UserError(
            f"config.model.pooling_temperature = {temperature} is not possible for {name!r}: "
            "it must be positive (0 is allowed for 'softmax', where it means the mean)."
        )


def pool(logit_maps: jax.Array, name: str, temperature: float | jax.Array) -> jax.Array:
    """Class scores [B, C] of logit maps [B, h, w, C] by the pool of that name, in float32.

    Args:
      logit_maps: [B, h, w, C].
      name: one of POOLS.
      temperature: k; a number, or a traced scalar, which stands for numbers that the caller has checked.

    Raises:
      UserError: see `check_pool`.
    """
    # A traced scalar has no value to hold against the bounds; 1 passes them all and leaves the name to be checked.
    check_pool(name, 1.0 if isinstance(temperature, jax.Array) else temperature)
    return POOLS[name](logit_maps.astype(jnp.float32), temperature)
