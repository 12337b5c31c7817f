"""ResNet-18 and ResNet-50 (He et al. 2016, in torchvision's form), with dilation in place of the last strides."""

from __future__ import annotations

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp

EPSILON, MOMENTUM = 1e-5, 0.9
"""Of every batch normalisation; PyTorch's momentum of 0.1 is 0.9 here."""

STAGE_STRIDES = (1, 2, 2, 2)


def convolution(
    channels: int, size: int, stride: int = 1, dilation: int = 1, name: str | None = None, dtype=jnp.float32
) -> nn.Conv:
    """Convolution without bias, padded alike on both sides as PyTorch does ("SAME" would not, at stride 2)."""
    reach = dilation * (size - 1) // 2
    padding = ((reach, reach), (reach, reach))
    return nn.Conv(
        channels,
        (size, size),
        (stride, stride),
        padding,
        kernel_dilation=(dilation, dilation),
        use_bias=False,
        dtype=dtype,
        name=name,
    )


class ResidualBlock(nn.Module):
    """relu(shortcut(x) + convolutions(x)): two 3x3, or with `bottleneck` 1x1, 3x3 and 1x1 to four times the channels.

    Attributes:
      channels: of the 3x3 convolution.
      stride, dilation: of the (first) 3x3 convolution. second_dilation: of the other one.
      dtype: see precision.py.
    """

    channels: int
    bottleneck: bool
    stride: int
    dilation: int
    second_dilation: int
    frozen_norm: bool
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[B, H, W, K] to [B, H / stride, W / stride, channels or 4 channels]."""

        def norm(name):
            averages = not train or self.frozen_norm
            return nn.BatchNorm(averages, momentum=MOMENTUM, epsilon=EPSILON, dtype=self.dtype, name=name)

        def conv(name, *options):
            return convolution(*options, name=name, dtype=self.dtype)

        channels = self.channels
        if self.bottleneck:
            h = nn.relu(norm("bn1")(conv("conv1", channels, 1)(x)))
            h = nn.relu(norm("bn2")(conv("conv2", channels, 3, self.stride, self.dilation)(h)))
            h = norm("bn3")(conv("conv3", 4 * channels, 1)(h))
        else:
            h = nn.relu(norm("bn1")(conv("conv1", channels, 3, self.stride, self.dilation)(x)))
            h = norm("bn2")(conv("conv2", channels, 3, 1, self.second_dilation)(h))
        if h.shape != x.shape:
            x = norm("downsample_norm")(conv("downsample_conv", h.shape[-1], 1, self.stride)(x))
        return nn.relu(x + h)


class ResNet(nn.Module):
    """The classifier, and in its endpoints the last features at every stride.

    Attributes:
      num_classes: C.
      depths: blocks per stage.
      bottleneck: kind of the blocks.
      frozen_norm: batch normalisation keeps its running statistics in training too.
      output_stride: 32, or 16 or 8: later stages are dilated where they would go beyond it (torchvision's
        replace_stride_with_dilation; Chen et al. 2017, section 3.1).
      channels: of the 3x3 convolutions, per stage.
      dtype: see precision.py.
    """

    num_classes: int
    depths: tuple[int, ...]
    bottleneck: bool
    frozen_norm: bool = False
    output_stride: int = 32
    channels: tuple[int, ...] = (64, 128, 256, 512)
    dtype: jnp.dtype = jnp.float32

    spatial_features = True

    @property
    def strides(self) -> tuple[int, ...]:
        return tuple(stride for stride in (2, 4, 8, 16, 32) if stride <= self.output_stride)

    def setup(self):
        self.conv1 = convolution(self.channels[0], 7, 2, dtype=self.dtype)
        self.bn1 = nn.BatchNorm(momentum=MOMENTUM, epsilon=EPSILON, dtype=self.dtype)
        total, dilation = 4, 1
        for stage, (depth, channels, stride) in enumerate(zip(self.depths, self.channels, STAGE_STRIDES, strict=True)):
            # The first block of a dilated stage still has the dilation of the stage before.
            first = dilation
            if total * stride > self.output_stride:
                stride, dilation = 1, dilation * stride
            total *= stride
            blocks = [
                ResidualBlock(
                    channels,
                    self.bottleneck,
                    stride if i == 0 else 1,
                    first if i == 0 else dilation,
                    dilation,
                    self.frozen_norm,
                    self.dtype,
                )
                for i in range(depth)
            ]
            setattr(self, f"layer{stage + 1}", blocks)
        self.classifier = nn.Dense(self.num_classes, dtype=self.dtype)

    def encode(
        self, images: jax.Array, train: bool = False, given: Mapping[str, jax.Array] | None = None
    ) -> dict[str, jax.Array]:
        """Images [B, H, W, 3] to {"stride2": [B, H / 2, W / 2, 64], ...}; the last stride holds the last stage.

        Features in `given`, by these names, stand in for those computed.
        """
        averages, given = not train or self.frozen_norm, given or {}
        x = nn.relu(self.bn1(self.conv1(images), use_running_average=averages))
        x = given.get("stride2", x)
        endpoints, stride = {"stride2": x}, 4
        x = nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
        stages = [getattr(self, f"layer{stage + 1}") for stage in range(len(self.depths))]
        for blocks, following in zip(stages, [*stages[1:], None], strict=True):
            for block in blocks:
                x = block(x, train)
                stride *= block.stride
            # A dilated stage has the stride of the one before, whose features it replaces.
            if following is None or following[0].stride > 1:
                x = given.get(f"stride{stride}", x)
                endpoints[f"stride{stride}"] = x
        return endpoints

    def features(self, images: jax.Array, train: bool = False) -> jax.Array:
        """Images to the features [B, h, w, K] that the head reads: those of the last stage."""
        return self.last(self.encode(images, train))

    def last(self, endpoints: Mapping[str, jax.Array], train: bool = False) -> jax.Array:
        """What `encode` gives to the features that the head reads."""
        del train
        return endpoints[f"stride{self.output_stride}"]

    def head(self, features: jax.Array) -> jax.Array:
        """Features to scores [B, C]: their mean over space, and a linear layer."""
        return self.classifier(features.mean(axis=(1, 2))).astype(jnp.float32)

    def __call__(self, images: jax.Array, train: bool = False, given: Mapping[str, jax.Array] | None = None):
        """Images, normalised by ImageNet's mean and standard deviation, to `(scores [B, C], endpoints)`."""
        endpoints = self.encode(images, train, given)
        features = self.last(endpoints)
        return self.head(features), endpoints | {"features": features}
