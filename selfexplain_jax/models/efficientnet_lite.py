"""EfficientNet-Lite0 (Tan & Le 2019, without squeeze-and-excitation, with ReLU6): a small network for photographs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from selfexplain_jax.models.channels import BatchNorm, PointwiseConv, multiplied
from selfexplain_jax.models.depthwise import DepthwiseConv

EPSILON, MOMENTUM = 1e-3, 0.99
"""Of every batch normalisation."""


class Stage(NamedTuple):
    """Inverted residual blocks of one kind; the first has the stride, the others add their input to their output."""

    blocks: int
    kernel: int
    stride: int
    expansion: int
    channels: int


LITE0 = (
    Stage(blocks=1, kernel=3, stride=1, expansion=1, channels=16),
    Stage(blocks=2, kernel=3, stride=2, expansion=6, channels=24),
    Stage(blocks=2, kernel=5, stride=2, expansion=6, channels=40),
    Stage(blocks=3, kernel=3, stride=2, expansion=6, channels=80),
    Stage(blocks=3, kernel=5, stride=1, expansion=6, channels=112),
    Stage(blocks=4, kernel=5, stride=2, expansion=6, channels=192),
    Stage(blocks=1, kernel=3, stride=1, expansion=6, channels=320),
)
STEM_CHANNELS, TOP_CHANNELS = 32, 1280


def split_phases(x: jax.Array) -> jax.Array:
    """[B, h, w, K] to [4 B, h, w, K]: each image as it is, and moved by a cell left, up, and both; zeros follow."""
    height, width, channels = x.shape[1:]
    padded = jnp.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0)))
    moved = [padded[:, a : a + height, b : b + width] for a in (0, 1) for b in (0, 1)]
    return jnp.stack(moved, axis=1).reshape(-1, height, width, channels)  # [4 B, h, w, K]


def join_phases(x: jax.Array) -> jax.Array:
    """[4 B, h, w, K] to [B, 2 h, 2 w, K]: the cells of the four images of `split_phases` at their places."""
    height, width, channels = x.shape[1:]
    x = x.reshape(-1, 2, 2, height, width, channels).transpose(0, 3, 1, 4, 2, 5)  # [B, h, 2, w, 2, K]
    return x.reshape(-1, 2 * height, 2 * width, channels)  # [B, 2 h, 2 w, K]


class StemConv(nn.Module):
    """3x3 convolution of stride 2, "SAME" padding, no bias."""

    features: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, factor: jax.Array | None = None) -> jax.Array:
        """[B, H, W, K] to [B, ceil(H / 2), ceil(W / 2), features]; `factor` [features], if any, multiplies it."""
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (3, 3, x.shape[-1], self.features))
        x, kernel = x.astype(self.dtype), multiplied(kernel, factor).astype(self.dtype)
        return jax.lax.conv_general_dilated(x, kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


class InvertedResidual(nn.Module):
    """1x1 to `expansion` times the channels, depthwise k x k, 1x1 to `channels`; plus the input where shapes agree."""

    kernel: int
    stride: int
    expansion: int
    channels: int
    frozen_norm: bool
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[B, H, W, K] to [B, ceil(H / stride), ceil(W / stride), channels]."""
        averages = not train or self.frozen_norm

        def step(name, conv, channels, h):
            return BatchNorm(channels, MOMENTUM, EPSILON, name=f"{name}_norm")(conv, h, averages)

        def dense(name, channels):
            return PointwiseConv(channels, self.dtype, name=f"{name}_conv")

        h, wide = x, self.expansion * x.shape[-1]
        if self.expansion != 1:
            h = nn.relu6(step("expand", dense("expand", wide), wide, h))
        depthwise = DepthwiseConv(self.kernel, self.stride, self.dtype, name="depthwise_conv")
        h = nn.relu6(step("depthwise", depthwise, wide, h))
        h = step("project", dense("project", self.channels), self.channels, h)
        return x + h if h.shape == x.shape else h


class EfficientNetLite(nn.Module):
    """The classifier, and in its endpoints the last features at every stride.

    Attributes:
      num_classes: C.
      frozen_norm: batch normalisation keeps its running statistics in training too.
      stages: table of the blocks.
      output_stride: 32, or 16, at which the blocks behind see the four images of `split_phases`: what they would give
        to the whole at every second cell, they give for every cell ("shift and stitch", Long et al. 2015, section 3.2).
      dtype: see precision.py.
    """

    num_classes: int
    frozen_norm: bool = False
    stages: tuple[Stage, ...] = LITE0
    output_stride: int = 32
    dtype: jnp.dtype = jnp.float32

    spatial_features = True

    @property
    def strides(self) -> tuple[int, ...]:
        return tuple(stride for stride in (2, 4, 8, 16, 32) if stride <= self.output_stride)

    def setup(self):
        self.stem_conv = StemConv(STEM_CHANNELS, self.dtype)
        self.stem_norm = BatchNorm(STEM_CHANNELS, MOMENTUM, EPSILON)
        self.block = [
            InvertedResidual(
                stage.kernel,
                stage.stride if i == 0 else 1,
                stage.expansion,
                stage.channels,
                self.frozen_norm,
                self.dtype,
            )
            for stage in self.stages
            for i in range(stage.blocks)
        ]
        self.top_conv = PointwiseConv(TOP_CHANNELS, self.dtype)
        self.top_norm = BatchNorm(TOP_CHANNELS, MOMENTUM, EPSILON)
        self.classifier = nn.Dense(self.num_classes, dtype=self.dtype)

    def encode(
        self, images: jax.Array, train: bool = False, given: Mapping[str, jax.Array] | None = None
    ) -> dict[str, jax.Array]:
        """Images [B, H, W, 3] to {"stride2": [B, H / 2, W / 2, 16], ..., "stride32": [B, H / 32, W / 32, 320]}.

        The last stride, `output_stride`, holds the last block. Features in `given`, by these names, stand in for those
        computed.
        """
        averages, given = not train or self.frozen_norm, given or {}
        x = nn.relu6(self.stem_norm(self.stem_conv, images, averages))
        stride, endpoints = 2, {}
        for block, following in zip(self.block, [*self.block[1:], None], strict=True):
            stride *= block.stride
            if block.stride > 1 and stride > self.output_stride:
                height, width = x.shape[1:3]
                x = split_phases(x)
            x = block(x, train)
            if following is None and stride > self.output_stride:
                x, stride = join_phases(x)[:, :height, :width], self.output_stride
            # The last of this stride, unless the blocks behind keep it.
            if following is None or 1 < following.stride <= self.output_stride // stride:
                x = given.get(f"stride{stride}", x)
                endpoints[f"stride{stride}"] = x
        return endpoints

    def features(self, images: jax.Array, train: bool = False) -> jax.Array:
        """Images to the features [B, H / 32, W / 32, 1280] that the head reads."""
        return self.last(self.encode(images, train), train)

    def head(self, features: jax.Array) -> jax.Array:
        """Features to scores [B, C]: their mean over space, and a linear layer."""
        return self.classifier(features.mean(axis=(1, 2))).astype(jnp.float32)

    def __call__(self, images: jax.Array, train: bool = False, given: Mapping[str, jax.Array] | None = None):
        """Images, normalised as (pixel - 127) / 128, to `(scores [B, C], endpoints)`."""
        endpoints = self.encode(images, train, given)
        features = self.last(endpoints, train)
        return self.head(features), endpoints | {"features": features}

    def last(self, endpoints: Mapping[str, jax.Array], train: bool = False) -> jax.Array:
        """What `encode` gives to the features that the head reads."""
        averages = not train or self.frozen_norm
        return nn.relu6(self.top_norm(self.top_conv, endpoints[f"stride{self.output_stride}"], averages))
