"""The last layer of a network that draws maps: from features to logit maps and, by these alone, to class scores.

Logit maps of a thousand classes are the largest arrays of a step, and a pass that is asked for scores needs them no
longer than its pool does. Beyond MOST_CLASSES a chunk of classes is drawn and pooled at a time, and drawn again in the
gradient.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from selfexplain_jax.models import edges, masking, pooling

MOST_CLASSES = 256
"""Classes whose maps are drawn at once."""

ALL_CLASSES = ("ngwp",)
"""Pools in which a class's score depends on the maps of the others."""


def depth_to_space(x: jax.Array, factor: int) -> jax.Array:
    """[B, h, w, K factor^2] to [B, h factor, w factor, K]: the inverse of `unet.space_to_depth`."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height, width, factor, factor, channels // factor**2)
    x = x.transpose(0, 1, 3, 2, 4, 5)  # [B, h, f, w, f, K]
    return x.reshape(batch, height * factor, width * factor, channels // factor**2)  # [B, h f, w f, K]


def shrink(images: jax.Array, factor: int) -> jax.Array:
    """Means of blocks of factor x factor pixels: [B, H, W, K] to [B, H / factor, W / factor, K]."""
    batch, height, width, channels = images.shape
    blocks = images.reshape(batch, height // factor, factor, width // factor, factor, channels)
    return blocks.mean(axis=(2, 4))  # [B, H / f, W / f, K]


class MapHead(nn.Module):
    """A linear layer on each cell, the filters that finish its maps, and the pool.

    Attributes:
      num_classes: C.
      factor: the layer's output leaves by depth-to-space: so many cells per cell of the features and axis.
      mask_stride: pixels per cell of the maps, to which they are resized where the features are coarser.
      map_blur, edge_distances, edge_scale, pooling, bias, dtype: as in `unet.UNet`.
    """

    num_classes: int
    factor: int = 1
    mask_stride: int = 2
    map_blur: float = 0.0
    edge_distances: tuple[int, ...] = ()
    edge_scale: float = 0.2
    pooling: str = "softmax"
    bias: float = -2.0
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, images: jax.Array, temperature: float | jax.Array) -> tuple[jax.Array, jax.Array]:
        """Features [B, h, w, K] of images [B, H, W, 3] to scores [B, C] and logit maps [B, H / s, W / s, C].

        Both are float32; s is the mask stride. Where nobody uses the maps, the compiler leaves them out.
        """
        cells = self.factor**2
        shape = (x.shape[-1], cells * self.num_classes)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        bias = self.param("bias", nn.initializers.constant(self.bias), shape[1:])
        size = images.shape[1] // self.mask_stride
        filters = []
        if self.edge_distances:
            filters = edges.edge_filters(shrink(images, self.mask_stride), self.edge_distances, self.edge_scale)

        def draw(x, kernel, bias):
            maps = jax.lax.dot_general(
                x.astype(self.dtype),
                kernel.astype(self.dtype),
                (((x.ndim - 1,), (0,)), ((), ())),
                preferred_element_type=jnp.float32,
            )
            maps = depth_to_space(maps + bias.reshape(1, 1, 1, -1), self.factor)  # [B, f h, f w, c]
            if maps.shape[1] != size:
                maps = jax.image.resize(maps, (maps.shape[0], size, size, maps.shape[3]), "bilinear")
            if self.map_blur > 0:
                maps = masking.blur(maps, self.map_blur)
            return edges.filter_maps(maps, filters, self.edge_distances)  # [B, H / s, W / s, c]

        def score(x, kernel, bias):
            return pooling.pool(draw(x, kernel, bias), self.pooling, temperature)

        maps = draw(x, kernel, bias)
        if self.num_classes <= MOST_CLASSES:
            return pooling.pool(maps, self.pooling, temperature), maps
        if self.pooling in ALL_CLASSES:
            return jax.checkpoint(score)(x, kernel, bias), maps
        chunks = -(-self.num_classes // MOST_CLASSES)
        each = -(-self.num_classes // chunks)

        def cut(parameter):
            """[..., cells C] to [chunks, ..., cells each], with classes of zeros at the end."""
            parameter = parameter.reshape(*parameter.shape[:-1], cells, self.num_classes)
            missing = chunks * each - self.num_classes
            parameter = jnp.pad(parameter, [(0, 0)] * (parameter.ndim - 1) + [(0, missing)])
            parameter = jnp.moveaxis(parameter.reshape(*parameter.shape[:-1], chunks, each), -2, 0)
            return parameter.reshape(chunks, *parameter.shape[1:-2], cells * each)

        parts = (cut(kernel), cut(bias))
        scores = jax.lax.map(jax.checkpoint(lambda part: score(x, *part)), parts)  # [chunks, B, each]
        return jnp.moveaxis(scores, 0, 1).reshape(x.shape[0], -1)[:, : self.num_classes], maps
