"""Attribution by the attention of a vision transformer: what of the patches reaches the class token, block by block."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from selfexplain_jax.attribution.cam import resize_to_image
from selfexplain_jax.attribution.inputs import check_inputs, nan_where_scores_are, traceable
from selfexplain_jax.types import Predictor, UserError


def attention_rollout(
    predictor: Predictor, images: jax.Array, class_ids: jax.Array, *, rng: jax.Array | None = None
) -> jax.Array:
    """Attention rollout (Abnar & Zuidema 2020, equation 1): the attention of all blocks, multiplied.

    R = A'_L ... A'_1 with A'_l = (mean of A_l over the heads + I) / 2, where I stands for the path around the block;
    the map is the class token's row of R over the patches. It asks for no class: every class gets the same map.

    Args:
      predictor: one with attention.
      images: [B, H, W, 3], normalised.
      class_ids: int32 [B, k].
      rng: not used.

    Returns:
      float32 [B, k, H, W] in 0..1, resized bilinearly from one value per patch; with the class token's own share the
      values of all patches sum to 1.

    Raises:
      UserError: bad images or class ids, or a predictor without attention.
    """
    del rng
    images, class_ids = check_inputs(predictor, images, class_ids)
    attention = _attention_of(predictor, "attention_rollout")
    return _rollout(attention, images, class_ids, size=predictor.image_size)


def attention_relevance(
    predictor: Predictor, images: jax.Array, class_ids: jax.Array, *, rng: jax.Array | None = None
) -> jax.Array:
    """Gradient-weighted attention relevance (Chefer et al., ICCV 2021, arXiv 2103.15679, equations 5 and 6).

    R starts as I and grows from the first block to the last by R <- R + A' R, where A' = mean over the heads of
    relu(dz_c/dA * A); the map is the class token's row of R over the patches. One forward pass serves all classes.

    Args:
      predictor: one with attention.
      images: [B, H, W, 3], normalised.
      class_ids: int32 [B, k].
      rng: not used.

    Returns:
      float32 [B, k, H, W], 0 and more, resized bilinearly from one value per patch; not normalised.

    Raises:
      UserError: bad images or class ids, or a predictor without attention.
    """
    del rng
    images, class_ids = check_inputs(predictor, images, class_ids)
    attention = _attention_of(predictor, "attention_relevance")
    return _relevance(attention, images, class_ids, size=predictor.image_size)


def class_token_row(matrices: jax.Array) -> jax.Array:
    """The first row of M_L ... M_1, [..., N], of matrices [L, ..., N, N].

    From the last block to the first, so that it takes a product of a row and a matrix per block and no matrix more.
    """
    row = jnp.zeros((*matrices.shape[1:-2], matrices.shape[-1]), matrices.dtype).at[..., 0].set(1.0)

    def step(row, matrix):
        return jnp.einsum("...n,...nm->...m", row, matrix), None

    return jax.lax.scan(step, row, matrices, reverse=True)[0]


def patches_to_map(row: jax.Array, size: int) -> jax.Array:
    """The class token's row [B, k, 1 + patches] to a map [B, k, size, size].

    Raises:
      UserError: the patches are no square.
    """
    batch, classes, tokens = row.shape
    side = math.isqrt(tokens - 1)
    if side * side != tokens - 1 or side == 0:
        raise UserError(
            f"The attention is over {tokens} tokens: a class token and {tokens - 1} patches, which is no square number."
        )
    return resize_to_image(row[..., 1:].reshape(batch, classes, side, side), size)  # [B, k, size, size]


def _attention_of(predictor: Predictor, method: str) -> jax.tree_util.Partial:
    if predictor.attention is None:
        raise UserError(f"Method {method!r} needs a transformer; this predictor has no attention.")
    return traceable(predictor.attention)


def _check_attention(attention: jax.Array, images: jax.Array) -> None:
    shape = tuple(attention.shape)
    if len(shape) != 5 or shape[1] != images.shape[0] or shape[3] != shape[4]:
        raise UserError(f"A predictor's attention must be [L, B, heads, N, N]; for {len(images)} images it is {shape}.")


@functools.partial(jax.jit, static_argnames="size")
def _rollout(function: Callable, images, class_ids, *, size):
    scores, attention = function(images, None)
    _check_attention(attention, images)
    mixed = (attention.astype(jnp.float32).mean(axis=2) + jnp.eye(attention.shape[-1])[None, None]) / 2  # [L, B, N, N]
    maps = patches_to_map(class_token_row(mixed)[:, None], size)  # [B, 1, H, W]
    return nan_where_scores_are(jnp.broadcast_to(maps, (*class_ids.shape, size, size)), scores, class_ids)


@functools.partial(jax.jit, static_argnames="size")
def _relevance(function: Callable, images, class_ids, *, size):
    shape = jax.eval_shape(function, images, None)[1]
    _check_attention(shape, images)
    offsets = jnp.zeros(shape.shape, shape.dtype)
    scores, pull_back, attention = jax.vjp(lambda offsets: function(images, offsets), offsets, has_aux=True)
    one_hot = jax.nn.one_hot(class_ids.T, scores.shape[-1], dtype=scores.dtype)  # [k, B, C]

    def of_class(one_hot):
        (gradients,) = pull_back(one_hot)  # [L, B, heads, N, N]
        steps = jnp.maximum(gradients * attention, 0.0).astype(jnp.float32).mean(axis=2)  # [L, B, N, N]
        return class_token_row(steps + jnp.eye(steps.shape[-1])[None, None])  # [B, N]

    maps = patches_to_map(jnp.moveaxis(jax.vmap(of_class)(one_hot), 0, 1), size)
    return nan_where_scores_are(maps, scores, class_ids)
