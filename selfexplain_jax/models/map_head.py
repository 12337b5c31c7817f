"""The last layer of a network that draws maps: from features to logit maps and, by these alone, to class scores.

Logit maps of a thousand classes are the largest arrays of a step, and a pass that is asked for scores, or for the
maxima over the present and over the absent classes, needs them no longer than it takes to pool them. Beyond
MOST_CLASSES a chunk of classes is drawn and pooled at a time, and drawn again in the gradient.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from selfexplain_jax.models import edges, masking, pooling

MOST_CLASSES = 128
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

    Coarse features, if given, add a linear layer of their own, resized to the maps: a backbone's last features tell
    classes apart linearly from the first step on, where a decoder has to learn to hand them on.

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
    def __call__(
        self,
        x: jax.Array,
        images: jax.Array,
        temperature: float | jax.Array,
        coarse: jax.Array | None = None,
        label: jax.Array | None = None,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Features [B, h, w, K] of images [B, H, W, 3] to scores [B, C] and what is drawn, by name.

        `coarse` [B, h', w', K'] are features with fewer cells, or None.

        Drawn are "logit_maps" [B, H / s, W / s, C] and, for a `label` [B, C], "target_logits" and "non_target_logits"
        [B, H / s, W / s] of `masking`. All is float32; s is the mask stride. Where nobody uses the maps themselves, the
        compiler leaves them out.
        """
        shape = (x.shape[-1], self.factor**2 * self.num_classes)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        bias = self.param("bias", nn.initializers.constant(self.bias), shape[1:])
        parameters = (kernel, bias)
        if coarse is not None:
            # From zero, so that the maps begin as the bias has them.
            parameters += (self.param("coarse_kernel", nn.initializers.zeros, (coarse.shape[-1], self.num_classes)),)
        size = images.shape[1] // self.mask_stride
        filters = []
        if self.edge_distances:
            filters = edges.edge_filters(shrink(images, self.mask_stride), self.edge_distances, self.edge_scale)

        def linear(x, kernel):
            contracted = (((x.ndim - 1,), (0,)), ((), ()))
            x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
            return jax.lax.dot_general(x, kernel, contracted, preferred_element_type=jnp.float32)

        def draw(x, coarse, kernel, bias, coarse_kernel=None):
            maps = depth_to_space(linear(x, kernel) + bias.reshape(1, 1, 1, -1), self.factor)
            maps = masking.resize_maps(maps, size)
            if coarse_kernel is not None:
                maps = maps + masking.resize_maps(linear(coarse, coarse_kernel), size)  # [B, H / s, W / s, c]
            if self.map_blur > 0:
                maps = masking.blur(maps, self.map_blur)
            return edges.filter_maps(maps, filters, self.edge_distances)  # [B, H / s, W / s, c]

        def pool(maps):
            return pooling.pool(maps, self.pooling, temperature)

        maps = draw(x, coarse, *parameters)
        drawn = {"logit_maps": maps}
        if self.num_classes <= MOST_CLASSES or self.pooling in ALL_CLASSES:
            if label is not None:
                drawn |= masking.class_maxima(maps, label)
            if self.num_classes <= MOST_CLASSES:
                return pool(maps), drawn
            return jax.checkpoint(lambda *given: pool(draw(*given)))(x, coarse, *parameters), drawn
        chunks = -(-self.num_classes // MOST_CLASSES)
        each = -(-self.num_classes // chunks)

        def cut(parameter, missing=0.0):
            """[..., cells C] to [chunks, ..., cells each], with classes of `missing` at the end."""
            cells = parameter.shape[-1] // self.num_classes
            parameter = parameter.reshape(*parameter.shape[:-1], cells, self.num_classes)
            padding = [(0, 0)] * (parameter.ndim - 1) + [(0, chunks * each - self.num_classes)]
            parameter = jnp.pad(parameter, padding, constant_values=missing)
            parameter = jnp.moveaxis(parameter.reshape(*parameter.shape[:-1], chunks, each), -2, 0)
            return parameter.reshape(chunks, *parameter.shape[1:-2], cells * each)

        # Classes that fill the last chunk are neither present nor absent.
        labels = () if label is None else (cut(label, 0), cut(label, 1))

        @jax.checkpoint
        def pool_chunk(part):
            parameters, labels = part
            maps = draw(x, coarse, *parameters)
            maxima = zip((masking.target_logits, masking.non_target_logits), labels, strict=False)
            return pool(maps), tuple(maximum(maps, label) for maximum, label in maxima)

        scores, maxima = jax.lax.map(pool_chunk, (tuple(map(cut, parameters)), labels))  # [chunks, B, each]
        drawn |= zip(("target_logits", "non_target_logits"), (parts.max(axis=0) for parts in maxima), strict=False)
        return jnp.moveaxis(scores, 0, 1).reshape(x.shape[0], -1)[:, : self.num_classes], drawn


def head_of(network: nn.Module, factor: int = 1) -> MapHead:
    """The head of a network that draws maps, by its options; call it inside of the network. `factor`: see `MapHead`."""
    return MapHead(
        num_classes=network.num_classes,
        factor=factor,
        mask_stride=network.mask_stride,
        map_blur=network.map_blur,
        edge_distances=network.edge_distances,
        edge_scale=network.edge_scale,
        pooling=network.pooling,
        bias=network.bias,
        dtype=network.dtype,
        name="head",
    )
