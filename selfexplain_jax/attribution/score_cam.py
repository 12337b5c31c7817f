"""Score-CAM (Wang et al. 2020, arXiv 1910.01279): channels weighted by the score of the image seen through each."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from selfexplain_jax.attribution.cam import activations_of, layer_of, resize_to_image, weighted_sum
from selfexplain_jax.attribution.chunks import in_chunks
from selfexplain_jax.attribution.inputs import check_inputs, traceable
from selfexplain_jax.types import Predictor, UserError

KMEANS_STEPS = 10
"""Of Lloyd's algorithm; the assignment hardly changes after them."""


def score_cam(
    predictor: Predictor,
    images: jax.Array,
    class_ids: jax.Array,
    *,
    rng: jax.Array | None = None,
    layer: str = "",
    clusters: int = 0,
    chunk_size: int = 32,
) -> jax.Array:
    """Returns relu(sum_k w_k^c A_k), w^c the softmax over the channels of their scores, float32 [B, k, H, W].

    The score of a channel is the increase of the class score (logit) over the baseline, z_c(x H_k) - z_c(0), through
    the mask H_k = A_k at image size, scaled to 0..1 by its minimum and maximum (algorithm 1 of the paper). The baseline
    is the same for all channels, and the softmax forgets it, so it is not computed. A channel without any contrast has
    the mask 0. Raw values; the ReLU comes before the bilinear resize to image size, in which cells are areas. The
    package `grad-cam` agrees but for the corners of its masks, which it aligns, and its maps, which it scales to 0..1;
    the authors' first code takes probabilities as they are for weights.

    Args:
      predictor: its scores are used, and a layer of it.
      images: [B, H, W, 3], normalised.
      class_ids: int32 [B, k].
      rng: not used.
      layer: see `cam.layer_of`.
      clusters: passes of the network per image: the channels of an image are put into so many groups of alike maps, and
        all of a group get the score of their mean. 0: every channel has a pass of its own, as published.
      chunk_size: masked images at a time. It costs memory, and changes the map by rounding alone.

    Raises:
      UserError: bad images, class ids or layer, or a negative number of clusters, or a chunk_size below 1.
    """
    del rng
    images, class_ids = check_inputs(predictor, images, class_ids)
    features, _ = layer_of(predictor, layer, "score_cam")
    if clusters < 0 or chunk_size < 1:
        raise UserError(
            f"Method 'score_cam' needs clusters of at least 0 and chunk_size of at least 1; got {clusters} and"
            f" {chunk_size}."
        )
    scores = traceable(predictor.scores)
    return _map(features, scores, images, class_ids, clusters=clusters, chunk_size=chunk_size)


def scaled(maps: jax.Array) -> jax.Array:
    """Maps [..., H, W] scaled to 0..1 by their own minimum and maximum (equation 5); 0 where they are flat."""
    low, high = maps.min(axis=(-2, -1), keepdims=True), maps.max(axis=(-2, -1), keepdims=True)
    # Not `high > low`, which a NaN is not: it would become 0.
    return jnp.where(high <= low, 0.0, (maps - low) / jnp.where(high <= low, 1.0, high - low))


def group_alike(points: jax.Array, clusters: int) -> jax.Array:
    """k-means: points [K, D] to the number of each point's group, int32 [K] in 0..clusters - 1.

    Lloyd's algorithm from centres that are each the point farthest from those before it, so nothing is drawn. A centre
    that has lost its points stays where it is.
    """

    def distances(centres):
        products = points @ centres.T  # [K, clusters]
        return jnp.square(centres).sum(axis=1)[None, :] - 2.0 * products  # without |p|^2, the same for all centres

    def choose(number, carry):
        centres, nearest = carry
        centre = points[jnp.argmax(nearest)]
        nearest = jnp.minimum(nearest, jnp.square(points - centre[None, :]).sum(axis=1))
        return centres.at[number].set(centre), nearest

    def move(_, centres):
        member = jax.nn.one_hot(distances(centres).argmin(axis=1), clusters, dtype=points.dtype)  # [K, clusters]
        count = member.sum(axis=0)[:, None]
        return jnp.where(count > 0, member.T @ points / jnp.maximum(count, 1.0), centres)

    # The first is the point farthest from the mean.
    start = jnp.square(points - points.mean(axis=0, keepdims=True)).sum(axis=1)
    first = points[jnp.argmax(start)]
    centres = jnp.zeros((clusters, points.shape[1]), points.dtype).at[0].set(first)
    nearest = jnp.square(points - first[None, :]).sum(axis=1)
    centres, _ = jax.lax.fori_loop(1, clusters, choose, (centres, nearest))
    return distances(jax.lax.fori_loop(0, KMEANS_STEPS, move, centres)).argmin(axis=1).astype(jnp.int32)


def masked_scores(scores, images: jax.Array, maps: jax.Array, class_ids: jax.Array, chunk_size: int) -> jax.Array:
    """Scores of the classes asked for, seen through each map: [B, M, k] of images [B, H, W, 3] and maps [B, M, h, w].

    (image, map) after (image, map) in chunks, so that no mask at image size outlives its chunk.
    """
    count = maps.shape[0] * maps.shape[1]
    flat = maps.reshape(count, *maps.shape[2:])  # [B M, h, w]

    def of_chunk(place):
        image = place // maps.shape[1]
        masks = scaled(resize_to_image(flat[place][:, None], images.shape[1]))[:, 0]  # [n, H, W]
        return jnp.take_along_axis(scores(images[image] * masks[..., None]), class_ids[image], axis=1)  # [n, k]

    return in_chunks(of_chunk, count, chunk_size).reshape(*maps.shape[:2], -1)  # [B, M, k]


@functools.partial(jax.jit, static_argnames=("clusters", "chunk_size"))
def _map(features, scores, images, class_ids, *, clusters, chunk_size):
    activations = activations_of(features, images)  # [B, h, w, K]
    maps = activations.transpose(0, 3, 1, 2)  # [B, K, h, w]
    if 0 < clusters < maps.shape[1]:
        alike = scaled(maps).reshape(*maps.shape[:2], -1)  # [B, K, h w]
        group = jax.vmap(group_alike, (0, None))(alike, clusters)  # [B, K]
        member = jax.nn.one_hot(group, clusters, dtype=maps.dtype)  # [B, K, clusters]
        # A sum serves as a mean, since the mask is scaled.
        centres = jnp.einsum("bkm,bkd->bmd", member, alike).reshape(len(maps), clusters, *maps.shape[2:])
        answers = masked_scores(scores, images, centres, class_ids, chunk_size)
        answers = jnp.take_along_axis(answers, group[:, :, None], axis=1)  # [B, K, k]
    else:
        answers = masked_scores(scores, images, maps, class_ids, chunk_size)  # [B, K, k]
    weights = jax.nn.softmax(answers, axis=1).transpose(0, 2, 1)  # [B, k, K]
    return resize_to_image(jnp.maximum(weighted_sum(activations, weights), 0.0), images.shape[1])
