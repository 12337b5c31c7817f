"""VGG-16 (Simonyan & Zisserman 2015, configuration D, in torchvision's form)."""

from __future__ import annotations

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
"""Channels of the 3x3 convolutions between two poolings."""

POOLED_SIZE = 7
"""Cells per side of the features that the fully connected head takes."""


def averaging_matrix(size: int, cells: int) -> np.ndarray:
    """A [cells, size]: row i is the mean over floor(i size / cells) .. ceil((i + 1) size / cells).

    That is the window of PyTorch's adaptive average pooling.
    """
    matrix = np.zeros((cells, size), np.float32)
    for i in range(cells):
        start, end = i * size // cells, -(-(i + 1) * size // cells)
        matrix[i, start:end] = 1.0 / (end - start)
    return matrix


class VGG(nn.Module):
    """The classifier, and in its endpoints the last features at every stride. There is no normalisation to freeze.

    Attributes:
      num_classes: C.
      stages: table of the convolutions.
      hidden: widths of the head's hidden layers on 7x7 cells; () for a head on the mean over space.
      dtype: see precision.py.
    """

    num_classes: int
    stages: tuple[tuple[int, ...], ...] = STAGES
    hidden: tuple[int, ...] = (4096, 4096)
    dtype: jnp.dtype = jnp.float32

    spatial_features = True

    @property
    def strides(self) -> tuple[int, ...]:
        return tuple(2**level for level in range(len(self.stages) + 1))

    def setup(self):
        # Named by their place in PyTorch's sequence of convolutions, activations and poolings.
        place, names = 0, []
        for stage in self.stages:
            for channels in stage:
                setattr(self, f"conv{place}", nn.Conv(channels, (3, 3), dtype=self.dtype))
                names.append(f"conv{place}")
                place += 2
            names.append("pool")
            place += 1
        self.layers = tuple(names)
        if self.hidden:
            self.hidden0 = nn.DenseGeneral(self.hidden[0], axis=(-3, -2, -1), dtype=self.dtype)
            self.hidden1 = nn.Dense(self.hidden[1], dtype=self.dtype)
        self.classifier = nn.Dense(self.num_classes, dtype=self.dtype)

    def encode(
        self, images: jax.Array, train: bool = False, given: Mapping[str, jax.Array] | None = None
    ) -> dict[str, jax.Array]:
        """Images [B, H, W, 3] to {"stride1": [B, H, W, 64], ..., "stride32": [B, H / 32, W / 32, 512]}.

        Features in `given`, by these names, stand in for those computed.
        """
        del train
        x, stride, endpoints, given = images, 1, {}, given or {}
        for layer, following in zip(self.layers, (*self.layers[1:], "pool"), strict=True):
            if layer == "pool":
                x, stride = nn.max_pool(x, (2, 2), (2, 2)), 2 * stride
            else:
                x = nn.relu(getattr(self, layer)(x))
            if following == "pool":  # the last of this stride
                x = given.get(f"stride{stride}", x)
                endpoints[f"stride{stride}"] = x
        return endpoints

    def features(self, images: jax.Array, train: bool = False) -> jax.Array:
        """Images to the features [B, H / 32, W / 32, 512] that the head reads: those of the last pooling."""
        return self.last(self.encode(images, train))

    def last(self, endpoints: Mapping[str, jax.Array], train: bool = False) -> jax.Array:
        """What `encode` gives to the features that the head reads."""
        del train
        return endpoints[f"stride{self.strides[-1]}"]

    def head(self, features: jax.Array) -> jax.Array:
        """Features to scores [B, C]; without the dropout that the original trains with."""
        if self.hidden:
            rows, columns = (averaging_matrix(size, POOLED_SIZE).astype(features.dtype) for size in features.shape[1:3])
            x = jnp.einsum("yh,bhwc,xw->byxc", rows, features, columns)  # [B, 7, 7, K]
            x = nn.relu(self.hidden1(nn.relu(self.hidden0(x))))
        else:
            x = features.mean(axis=(1, 2))
        return self.classifier(x).astype(jnp.float32)

    def __call__(self, images: jax.Array, train: bool = False, given: Mapping[str, jax.Array] | None = None):
        """Images, normalised by ImageNet's mean and standard deviation, to `(scores [B, C], endpoints)`."""
        endpoints = self.encode(images, train, given)
        features = endpoints[f"stride{self.strides[-1]}"]
        return self.head(features), endpoints | {"features": features}
