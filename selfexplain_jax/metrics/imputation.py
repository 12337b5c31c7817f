"""Noisy linear imputation: removed pixels become the weighted mean of their neighbours (ROAD).

Rong, Leemann, Borisov, Kasneci & Kasneci, "A Consistent and Efficient Evaluation Strategy for Attribution Methods",
ICML 2022. Each removed pixel equals the mean of its neighbours inside the image, weighted 1/6 (beside) and 1/12
(diagonal): a linear system over the removed pixels, symmetric and positive definite, since the weights are symmetric
and some pixel is known. Published code solves it by a sparse factorisation, image after image, on the host. Here
conjugate gradients solve it for all images at once on the device, in a fixed number of steps, which a sum over coarser
and coarser grids makes small (Bramble, Pasciak & Xu, Mathematics of Computation 1990).
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

NOISE = 0.01
"""Standard deviation of the noise on imputed pixels, in units of the normalised image (as published)."""
SOLVER_STEPS = 40
"""Steps of conjugate gradients: at 224 px with 80 % removed what is left is float32's rounding, 2e-4 at most."""


@functools.partial(jax.jit, static_argnames="steps")
def linear_imputation(images: jax.Array, removed: jax.Array, steps: int = SOLVER_STEPS) -> jax.Array:
    """Returns the images with removed pixels replaced by the solution of the linear system, without noise.

    Args:
      images: [N, H, W, 3].
      removed: [N, H, W], 1 where a pixel is to be replaced. An image of which all is removed has no solution, and
        becomes its mean colour.
      steps: of conjugate gradients.
    """
    removed = (removed > 0).astype(images.dtype)[..., None]  # [N, H, W, 1]
    known = 1 - removed
    inside = _neighbour_sum(jnp.ones_like(images[:1, :, :, :1]))  # [1, H, W, 1]: less than 1 at the border

    def system(values):
        return removed * (inside * values - _neighbour_sum(values))

    # Start from the mean known colour, so that what is left to solve for is small.
    count = known.sum(axis=(1, 2), keepdims=True)
    known_mean = (known * images).sum(axis=(1, 2), keepdims=True) / jnp.maximum(count, 1)  # [N, 1, 1, 3]
    mean = jnp.where(count > 0, known_mean, images.mean(axis=(1, 2), keepdims=True))
    deviations = known * (images - mean)
    grids = _interior(removed)

    def step(state, _):
        solution, residual, direction, energy = state
        image_of = system(direction)
        curvature = _dot(direction, image_of)
        length = jnp.where(curvature > 0, energy / jnp.where(curvature > 0, curvature, 1), 0)
        solution = solution + length * direction
        residual = residual - length * image_of
        preconditioned = removed * _all_grids(residual, grids)
        new_energy = _dot(residual, preconditioned)
        share = jnp.where(energy > 0, new_energy / jnp.where(energy > 0, energy, 1), 0)
        return (solution, residual, preconditioned + share * direction, new_energy), None

    residual = removed * _neighbour_sum(deviations)
    preconditioned = removed * _all_grids(residual, grids)
    start = (jnp.zeros_like(images), residual, preconditioned, _dot(residual, preconditioned))
    (solution, *_), _ = jax.lax.scan(step, start, length=steps)
    return known * images + removed * (solution + mean)


def noisy_linear_imputation(
    images: jax.Array, removed: jax.Array, noise: jax.Array, steps: int = SOLVER_STEPS
) -> jax.Array:
    """Returns the imputed images with noise on the imputed pixels, so that these cannot be told by their smoothness.

    Args:
      images: [N, H, W, 3].
      removed: [N, H, W], 1 where a pixel is to be replaced.
      noise: [N, H, W, 3], standard normal; multiplied by `NOISE`.
      steps: as in `linear_imputation`.
    """
    return linear_imputation(images, removed, steps) + NOISE * noise * (removed > 0)[..., None]


def _neighbour_sum(values: jax.Array) -> jax.Array:
    """Sum of the neighbours' values [N, H, W, K], 1/6 of those beside and 1/12 of the diagonal ones, 0 outside."""
    padded = jnp.pad(values, ((0, 0), (1, 1), (1, 1), (0, 0)))
    rows = padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]  # [N, H, W + 2, K]
    # Rows of weights 1 2 1 / 2 4 2 / 1 2 1, less the middle one's 4, over 12.
    return (rows[:, :, :-2] + 2 * rows[:, :, 1:-1] + rows[:, :, 2:] - 4 * values) / 12


def _dot(left: jax.Array, right: jax.Array) -> jax.Array:
    return (left * right).sum(axis=(1, 2), keepdims=True)  # [N, 1, 1, K]


def _finer(values: jax.Array, size: int, axis: int) -> jax.Array:
    """Twice as many values along an axis, cut to `size`: nodes keep theirs, between them stands the mean."""
    count = values.shape[axis]
    following = jnp.concatenate(
        [jax.lax.slice_in_dim(values, 1, count, axis=axis), jax.lax.slice_in_dim(values, count - 1, count, axis=axis)],
        axis=axis,
    )
    both = jnp.stack([values, (values + following) / 2], axis=axis + 1)
    shape = (*values.shape[:axis], 2 * count, *values.shape[axis + 1 :])
    return jax.lax.slice_in_dim(both.reshape(shape), 0, size, axis=axis)


def _interpolate(values: jax.Array, height: int, width: int) -> jax.Array:
    """[N, h, w, K] on a grid of every other pixel to [N, height, width, K], bilinearly."""
    return _finer(_finer(values, height, 1), width, 2)


def _coarse_size(size: int) -> int:
    return -(-size // 2)


def _gather(values: jax.Array) -> jax.Array:
    """The transpose of `_interpolate`: [N, H, W, K] to [N, h, w, K]."""
    batch, height, width, channels = values.shape
    coarse = jax.ShapeDtypeStruct((batch, _coarse_size(height), _coarse_size(width), channels), values.dtype)
    return jax.linear_transpose(lambda nodes: _interpolate(nodes, height, width), coarse)(values)[0]


def _interior(removed: jax.Array) -> list[jax.Array]:
    """For each coarser grid the nodes whose whole hat lies on removed pixels, [N, h, w, 1] of 0 and 1."""
    grids = []
    while min(removed.shape[1:3]) > 3:
        # Outside of the image there is nothing known: a hat may reach over the border.
        smallest = -jax.lax.reduce_window(
            -removed, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), ((0, 0), (1, 1), (1, 1), (0, 0))
        )
        removed = smallest[:, : _coarse_size(removed.shape[1]), : _coarse_size(removed.shape[2])]
        grids.append(removed)
    return grids


def _all_grids(residual: jax.Array, grids: list[jax.Array]) -> jax.Array:
    """Sum over all grids of the residual gathered there and interpolated back: nearly the inverse of the system."""
    if not grids:
        return residual
    inner = grids[0] * _gather(residual)
    height, width = residual.shape[1:3]
    # In the plane a hat's energy is the same on every grid but the finest, where it is that of one pixel.
    return residual + _interpolate(grids[0] * _all_grids(inner, grids[1:]), height, width)
