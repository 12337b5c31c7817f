"""Metrics of where a map points: the pointing game and its energy form.

Conventions as in `segmentation.py`: maps, truth and weight are [B, H, W] and a metric returns `(value, defined)`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def pointing_tolerance(image_size: int) -> int:
    """Returns the tolerance of the pointing game in pixels: 15 px at 224 px images, the same share of other sizes."""
    return round(15 * image_size / 224)


def most_salient_pixel(maps: jax.Array) -> jax.Array:
    """Returns row and column of each map's maximum, int32 [B, 2]; the first in reading order among equal ones."""
    batch, _, width = maps.shape
    position = maps.reshape(batch, -1).argmax(axis=1)  # [B]
    return jnp.stack([position // width, position % width], axis=1)


def hits_object(pixel: jax.Array, truth: jax.Array, weight: jax.Array, tolerance: int) -> tuple[jax.Array, jax.Array]:
    """Returns (1 where an object pixel lies within `tolerance` px (Euclidean) of `pixel` int32 [B, 2], defined)."""
    _, height, width = truth.shape
    rows, columns = jnp.arange(height)[None, :, None], jnp.arange(width)[None, None, :]
    distance = (rows - pixel[:, 0, None, None]) ** 2 + (columns - pixel[:, 1, None, None]) ** 2  # squared, [B, H, W]
    objects = (truth * weight) > 0
    hit = (objects & (distance <= tolerance**2)).any(axis=(1, 2))
    return hit.astype(jnp.float32), objects.any(axis=(1, 2))


def pointing_game(
    maps: jax.Array, truth: jax.Array, weight: jax.Array, tolerance: int | None = None
) -> tuple[jax.Array, jax.Array]:
    """Pointing game: 1 where the most salient pixel lies within `tolerance` px of an object pixel.

    Void pixels are neither: the most salient pixel is looked for among the annotated ones.
    Zhang et al., Top-down neural attention by excitation backprop, ECCV 2016, with TorchRay's tolerance of 15 px at
    224 px (`pointing_tolerance`, the default); averaged per class first, then over classes, by the caller.
    """
    if tolerance is None:
        tolerance = pointing_tolerance(maps.shape[1])
    return hits_object(most_salient_pixel(jnp.where(weight > 0, maps, -jnp.inf)), truth, weight, tolerance)


def pointing_game_strict(maps: jax.Array, truth: jax.Array, weight: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Pointing game without tolerance: 1 where the most salient pixel is an object pixel."""
    return pointing_game(maps, truth, weight, tolerance=0)


def energy_pointing_game(maps: jax.Array, truth: jax.Array, weight: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Share of the map's sum that lies on the object (Wang et al., Score-CAM, 2020); 0 for a map that is 0."""
    total = (maps * weight).sum(axis=(1, 2))
    inside = (maps * truth * weight).sum(axis=(1, 2))
    share = jnp.where(total == 0, 0, inside / jnp.where(total == 0, 1, total))
    return share, (truth * weight).sum(axis=(1, 2)) > 0
