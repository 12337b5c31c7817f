"""Weights and images that depend on their name and shape alone, so that goldens hold results and nothing else."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence

import numpy as np

GOLDENS = "torchvision.json"
"""Written by generate.py, beside it."""


def noise(name: str, shape: Sequence[int]) -> np.ndarray:
    """Standard normal numbers, float32, whose seed is the name."""
    return np.random.default_rng(zlib.crc32(name.encode())).standard_normal(tuple(shape), np.float32)


def weight(name: str, shape: Sequence[int]) -> np.ndarray:
    """A parameter or statistic of that (PyTorch) name and layout, of a size that keeps a network's activations sane."""
    shape = tuple(shape)
    if name.endswith("running_var"):
        return 1.0 + 0.2 * np.abs(noise(name, shape))
    if len(shape) == 1:
        # A weight of one axis is the scale of a normalisation.
        return 0.1 * noise(name, shape) + (1.0 if name.endswith("weight") else 0.0)
    fan_in = math.prod(shape[1:])
    return noise(name, shape) * np.float32(math.sqrt(2.0 / fan_in))


def images(count: int, size: int) -> np.ndarray:
    """Normalised images [count, size, size, 3]."""
    return noise("images", (count, size, size, 3))
