"""Logit maps that end where the image has an edge: a filter without parameters, the last layer of the U-Net.

Object and background pass hardly feel an outline that is a few cells off, and a network that works at a quarter of the
resolution draws a soft one. The image itself knows where the object ends.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

DIRECTIONS = tuple((i, j) for i in (-1, 0, 1) for j in (-1, 0, 1) if i or j)
"""From a cell to its eight neighbours; the opposite of the k-th is the (7 - k)-th."""


def neighbours(x: jax.Array, distance: int) -> list[jax.Array]:
    """The neighbours of each cell at that distance, 0 outside, one array [B, h, w, K] for each of DIRECTIONS."""
    _, height, width, _ = x.shape
    d = distance
    padded = jnp.pad(x, ((0, 0), (d, d), (d, d), (0, 0)))
    return [padded[:, d + d * i : d + d * i + height, d + d * j : d + d * j + width] for i, j in DIRECTIONS]


def likeness(images: jax.Array, distance: int, scale: float) -> list[jax.Array]:
    """a(u, v) = exp(-|x_u - x_v|^2 / (2 scale^2)) for the eight neighbours v of each cell u, each [B, h, w, 1].

    0 where the neighbour lies outside of the image. a(u, v) = a(v, u): four directions are computed, and their
    opposites are the same numbers, seen from the other cell.
    """
    _, height, width, channels = images.shape
    d = distance
    # Plane by plane, since XLA's loops over an innermost axis of 3 are several times slower on CPU.
    planes = [images[..., channel] for channel in range(channels)]  # [B, h, w] each
    # So far from every colour that its likeness is 0.
    padded = [jnp.pad(plane, ((0, 0), (d, d), (d, d)), constant_values=1e6) for plane in planes]

    def difference(i, j):
        window = np.s_[:, d + d * i : d + d * i + height, d + d * j : d + d * j + width]
        return sum(jnp.square(around[window] - plane) for plane, around in zip(planes, padded, strict=True))

    ahead = DIRECTIONS[4:]
    alike = [jnp.exp(-difference(i, j) / (2.0 * scale**2)) for i, j in ahead]
    # Without the barrier XLA would rather compute an exponential again at each of its dozen uses than store it.
    alike = jax.lax.optimization_barrier(alike)
    padded = [jnp.pad(a, ((0, 0), (d, d), (d, d))) for a in alike]
    behind = [
        a[:, d - d * i : d - d * i + height, d - d * j : d - d * j + width]
        for a, (i, j) in zip(padded, ahead, strict=True)
    ]
    return [a[..., None] for a in [*reversed(behind), *alike]]  # in the order of DIRECTIONS, each [B, h, w, 1]


def add_alike(maps: jax.Array, alike: list[jax.Array], distance: int) -> jax.Array:
    """s_u + sum_v a(u, v) s_v; maps [B, h, w, C]. A symmetric operator, since a(u, v) = a(v, u)."""
    return maps + sum(a * other for a, other in zip(alike, neighbours(maps, distance), strict=True))


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def average_alike(maps: jax.Array, alike: list[jax.Array], total: jax.Array, distance: int) -> jax.Array:
    """add_alike(s) / total, total [B, h, w, 1]. Linear in the maps, and only they receive a gradient.

    That gradient is add_alike(g / total), written down because the derivative of eight slices is eight paddings, which
    take ten times as long on CPU.
    """
    return add_alike(maps, alike, distance) / total


def _average_forward(maps, alike, total, distance):
    return average_alike(maps, alike, total, distance), (alike, total)


def _average_backward(distance, saved, gradient):
    alike, total = saved
    return add_alike(gradient / total, alike, distance), jax.tree.map(jnp.zeros_like, alike), jnp.zeros_like(total)


average_alike.defvjp(_average_forward, _average_backward)


def edge_filters(images: jax.Array, distances: tuple[int, ...], scale: float) -> list[tuple]:
    """What `filter_maps` needs of images: for each distance the likeness a(u, v) and 1 + sum_v a(u, v).

    Arguments are those of `smooth_within_edges`. A distance that comes again has the filter of the first time.
    """
    images = jax.lax.stop_gradient(images)
    filters = {}
    for distance in dict.fromkeys(distances):
        alike = likeness(images, distance, scale)
        filters[distance] = (alike, jax.lax.optimization_barrier(1.0 + sum(alike)))
    return [filters[distance] for distance in distances]


def filter_maps(maps: jax.Array, filters: list[tuple], distances: tuple[int, ...]) -> jax.Array:
    """`smooth_within_edges` of [B, h, w, C] with the filters that `edge_filters` made of the images."""
    for (alike, total), distance in zip(filters, distances, strict=True):
        maps = average_alike(maps, alike, total, distance)
    return maps


def smooth_within_edges(maps: jax.Array, images: jax.Array, distances: tuple[int, ...], scale: float) -> jax.Array:
    """For each distance d in turn: s_u <- (s_u + sum_v a(u, v) s_v) / (1 + sum_v a(u, v)), v at distance d from u.

    Cells of one colour come to one logit, and an edge of the image becomes an edge of the maps. The smooth part of
    an edge-avoiding wavelet (Dammertz et al. 2010, section 3); cf. the refinement of pseudo-labels by PAMR (Araslanov &
    Roth 2020, eq. 5).

    Args:
      maps: [B, h, w, C] logits.
      images: [B, h, w, 3], normalised, at the maps' resolution; no gradient reaches them.
      distances: in cells; falling ones reach far at the price of few neighbours, and may come again for more of it.
      scale: difference of normalised colours at which two cells are no longer alike.
    """
    return filter_maps(maps, edge_filters(images, distances, scale), distances)
