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


# ---- For metrics of saliency maps ------------------------------------------------------------------------------------

METRIC_GOLDENS = "metrics.json"
"""Written by parity/generate_metrics.py."""
METRIC_SIZE = 30
"""Pixels a side. Of 900 pixels every published way of rounding removes the same number at 20, 40, 60 and 80 %."""


def metric_cases() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Images [4, H, W, 3], class ids [4], one saliency map each [4, H, W] without ties, and truth [4, H, W]."""
    shape = (4, METRIC_SIZE, METRIC_SIZE)
    rows, columns = np.mgrid[:METRIC_SIZE, :METRIC_SIZE].astype(np.float32)
    hill = np.exp(-((rows - 8) ** 2 + (columns - 12) ** 2) / 40)
    saliency = hill[None] * np.array([4, 2, 1, 0], np.float32)[:, None, None] + 0.3 * noise("saliency", shape)
    truth = (noise("truth", shape) + 2 * hill[None] > 1).astype(np.float32)
    return images(4, METRIC_SIZE), np.array([0, 1, 2, 1]), saliency.astype(np.float32), truth


def metric_weights() -> np.ndarray:
    """Of the classifier whose scores are linear in tanh(image), [H, W, 3, C]."""
    return noise("classifier", (METRIC_SIZE, METRIC_SIZE, 3, 3)) / np.float32(METRIC_SIZE)


def pointing_cases() -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Maps [7, 7] and regions at the sizes of photos, bool [h, w]."""
    maps, regions = [], []
    for case in range(64):
        height, width = 60 + 7 * (case % 5), 50 + 11 * (case % 7)
        draw = np.random.default_rng(case)
        region = np.zeros((height, width), bool)
        top, left = draw.integers(0, height - 8), draw.integers(0, width - 8)
        region[top : top + 8, left : left + 8] = True
        maps.append(noise(f"point {case}", (7, 7)))
        regions.append(region)
    return maps, regions
