"""A small convolutional network and what is asked of it, as numpy arrays that both sides of the comparison draw alike.

images -> conv0 3x3 -> relu -> conv1 3x3, stride 2 -> relu (the layer of the maps) -> hidden -> relu -> classifier. All
convolutions are padded by one pixel. The classifier's weights are large, so that no gradient is as small as the 1e-6
that the published Grad-CAM++ adds to a denominator.
"""

from __future__ import annotations

import numpy as np

SIZE, CLASSES, CELLS = 12, 3, 6
CLASS_IDS = np.array([[0, 2], [1, 2]])
SAMPLES, SIGMA, STEPS, BASELINE = 6, 0.15, 8, 0.25
SHAPES = {
    "conv0": (3, 3, 3, 6),
    "conv1": (3, 3, 6, 8),
    "hidden": (CELLS * CELLS * 8, 10),
    "classifier": (10, CLASSES),
}
"""Kernels (height, width, in, out) and matrices (in, out); the features are flattened row by row, channels last."""


def draw(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    """Standard normal numbers, float32; the legacy generator's stream is frozen."""
    return np.random.RandomState(seed).standard_normal(shape).astype(np.float32)


def weights() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Name -> (kernel, bias)."""
    scale = {"classifier": 100.0}
    return {
        name: (
            draw(seed, shape) * np.float32(scale.get(name, 1.4) / np.sqrt(np.prod(shape[:-1]))),
            0.1 * draw(100 + seed, shape[-1:]),
        )
        for seed, (name, shape) in enumerate(SHAPES.items())
    }


def images() -> np.ndarray:
    """Normalised images [2, SIZE, SIZE, 3]."""
    return draw(7, (2, SIZE, SIZE, 3))


def noise() -> np.ndarray:
    """SmoothGrad's standard normal numbers [SAMPLES, SIZE, SIZE, 3]."""
    return draw(8, (SAMPLES, SIZE, SIZE, 3))
