"""Logit maps and labels on which predecessor_losses.py and our terms are compared; NumPy alone, for both sides."""

import numpy as np

LOWER, UPPER, TEMPERATURE = 0.25, 0.5, 2.0


def by_hand() -> tuple[np.ndarray, np.ndarray]:
    """One image of 2 x 2 cells, two classes, the first present: masks of .8 .5 .2 .5 and of .5 everywhere."""
    maps = np.zeros((1, 2, 2, 2), np.float32)  # [B, h, w, C]
    maps[0, :, :, 0] = np.log([[4.0, 1.0], [0.25, 1.0]])
    return maps, np.array([[1, 0]], np.float32)


def noise() -> tuple[np.ndarray, np.ndarray]:
    """Three images with one, two and three of four classes."""
    maps = np.random.RandomState(0).normal(0, 2, size=(3, 6, 6, 4)).astype(np.float32)
    return maps, np.array([[0, 1, 0, 0], [1, 0, 0, 1], [1, 1, 1, 0]], np.float32)


CASES = {"by_hand": by_hand, "noise": noise}
