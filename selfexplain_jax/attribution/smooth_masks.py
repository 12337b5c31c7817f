"""Masks that cannot be jagged: a coarse grid of parameters, enlarged by a smooth maximum over discs.

The max-convolution of Extremal Perturbations (Fong, Patrick & Vedaldi, ICCV 2019, arXiv 1910.08485), in the geometry
of the authors' implementation, TorchRay: the mask has a margin around the image, whose pixels count for its area.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

COLDNESS = 20.0
"""Of the smooth maximum; infinity would be the maximum itself."""


class MaskShape(NamedTuple):
    """Where the parameters of a mask lie, in pixels. All of it is static.

    size: side of the image. step: from one parameter to the next. sigma: radius of a parameter's disc.
    """

    size: int
    step: int
    sigma: float

    @property
    def grid(self) -> int:
        """Parameters per side."""
        return -(-self.size // self.step)

    @property
    def radius(self) -> int:
        """Parameters that count for a pixel: those up to this many away, per axis."""
        return 1 + math.ceil(self.sigma / self.step)

    @property
    def padding(self) -> int:
        """Parameters of value 0 around the grid, for a margin of sigma pixels around the image."""
        return 1 + math.ceil(2 * self.sigma / self.step)

    @property
    def blocks(self) -> int:
        """Blocks of step x step pixels per side of the mask with its margin, each with one set of parameters."""
        return self.grid + 2 * self.padding - 2 * self.radius

    @property
    def outer(self) -> int:
        """Pixels per side of the mask with its margin; of the last block only the first pixel belongs to it."""
        return self.step * (self.blocks - 1) + 1


def disc_weights(shape: MaskShape) -> np.ndarray:
    """k(d / sigma) of each parameter around a pixel, for each place of the pixel in its block: [(2 r + 1)^2, step^2].

    k(z) = exp(-2 max(z - 1/2, 0)^2), d the distance from the pixel to the parameter.
    """
    offsets = np.arange(2 * shape.radius + 1) - shape.padding
    distance = np.arange(shape.step)[None, :] - shape.sigma - shape.step * offsets[:, None]  # [2 r + 1, step]
    squared = distance[:, None, :, None] ** 2 + distance[None, :, None, :] ** 2  # [2 r + 1, 2 r + 1, step, step]
    weights = np.exp(-2 * np.maximum(np.sqrt(squared) / shape.sigma - 0.5, 0) ** 2)
    return weights.reshape(len(offsets) ** 2, shape.step**2).astype(np.float32)


def generate_masks(parameters: jax.Array, shape: MaskShape) -> jax.Array:
    """Masks with their margin, [n, outer, outer] in 0..1, of parameters [n, grid, grid] in 0..1.

    m(u) = smax_i k(|u - u_i| / sigma) p_i with smax v = sum v exp(20 v) / sum exp(20 v) over the parameters around u.
    """
    padded = jnp.pad(parameters, ((0, 0), *[(shape.padding, shape.padding)] * 2))
    mask = smooth_maximum(padded, jnp.asarray(disc_weights(shape)), shape.blocks)  # [n, step^2, blocks^2]
    mask = mask.reshape(-1, shape.step, shape.step, shape.blocks, shape.blocks)
    mask = mask.transpose(0, 3, 1, 4, 2).reshape(-1, *[shape.step * shape.blocks] * 2)  # [n, step blocks, step blocks]
    return mask[:, : shape.outer, : shape.outer]


def inner(masks: jax.Array, shape: MaskShape) -> jax.Array:
    """Masks [n, H, W] of the image alone, out of masks with their margin."""
    start = round(shape.sigma)
    return masks[:, start : start + shape.size, start : start + shape.size]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def smooth_maximum(padded: jax.Array, weights: jax.Array, blocks: int) -> jax.Array:
    """smax of weighted parameters: padded [n, g, g] and weights [w^2, step^2] to [n, step^2, blocks^2], w = g-blocks+1.

    One offset after another into two sums: no array has all of the w^2 terms of a pixel, in the gradient neither.
    Values lie in 0..1, where exp(20 v) needs no shift. Only the parameters receive a gradient.
    """
    return _sums(padded, weights, blocks)[0]


def _window(padded, offset, blocks):
    """The parameter at that offset from each block, [n, 1, blocks^2]."""
    width = padded.shape[1] - blocks + 1
    start = (0, offset // width, offset % width)
    return jax.lax.dynamic_slice(padded, start, (len(padded), blocks, blocks)).reshape(len(padded), 1, -1)


def _sums(padded, weights, blocks):
    def add_offset(offset, sums):
        value = weights[offset][None, :, None] * _window(padded, offset, blocks)  # [n, step^2, blocks^2]
        exponential = jnp.exp(COLDNESS * value)
        return sums[0] + value * exponential, sums[1] + exponential

    zero = jnp.zeros((len(padded), weights.shape[1], blocks * blocks), padded.dtype)
    weighted, total = jax.lax.fori_loop(0, len(weights), add_offset, (zero, zero))
    return weighted / total, total


def _smooth_maximum_forward(padded, weights, blocks):
    mask, total = _sums(padded, weights, blocks)
    return mask, (padded, weights, mask, total)


def _smooth_maximum_backward(blocks, saved, gradient):
    """dm / dv_i = exp(20 v_i) (1 + 20 (v_i - m)) / sum exp(20 v)."""
    padded, weights, mask, total = saved
    width = padded.shape[1] - blocks + 1
    scaled = gradient / total

    def add_offset(offset, result):
        weight = weights[offset][None, :, None]
        value = weight * _window(padded, offset, blocks)
        slope = scaled * weight * jnp.exp(COLDNESS * value) * (1.0 + COLDNESS * (value - mask))
        slope = slope.sum(axis=1).reshape(-1, blocks, blocks)  # [n, blocks, blocks]
        start = (0, offset // width, offset % width)
        seen = jax.lax.dynamic_slice(result, start, slope.shape)
        return jax.lax.dynamic_update_slice(result, seen + slope, start)

    result = jax.lax.fori_loop(0, len(weights), add_offset, jnp.zeros_like(padded))
    return result, jnp.zeros_like(weights)


smooth_maximum.defvjp(_smooth_maximum_forward, _smooth_maximum_backward)
