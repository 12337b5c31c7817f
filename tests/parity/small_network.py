"""A small classifier and images as numpy arrays, the same for every package: both sides of a comparison start there.

Two 3x3 convolutions of stride 2, each behind a padding of one pixel and before a ReLU, the mean over space, and a
linear layer. The legacy generator of numpy is used because its numbers never change.
"""

import numpy as np

SIZE, CLASSES = 24, 3


def weights() -> dict[str, np.ndarray]:
    """Kernels [k, k, in, out], biases, and the linear layer [in, classes]."""
    random = np.random.RandomState(0)
    sizes = {"first": (3, 3, 3, 8), "second": (3, 3, 8, 12), "linear": (12, CLASSES)}
    arrays = {}
    for name, shape in sizes.items():
        scale = (2.0 if len(shape) > 2 else 6.0) / np.sqrt(np.prod(shape[:-1]))
        arrays[name] = (scale * random.normal(size=shape)).astype(np.float32)
        arrays[f"{name}_bias"] = (0.1 * random.normal(size=shape[-1])).astype(np.float32)
    return arrays


def images(count: int = 2) -> np.ndarray:
    """Smooth noise with a bright blob in each, float32 [count, SIZE, SIZE, 3], normalised."""
    random = np.random.RandomState(1)
    noise = random.normal(size=(count, SIZE // 4, SIZE // 4, 3)).repeat(4, axis=1).repeat(4, axis=2)
    place = np.arange(SIZE)
    centres = random.uniform(6, SIZE - 6, size=(count, 2))
    rows, columns = (np.exp(-(((place[None] - centres[:, axis : axis + 1]) / 3) ** 2)) for axis in (0, 1))
    blob = rows[:, :, None, None] * columns[:, None, :, None] * random.normal(size=(count, 1, 1, 3))
    return (0.5 * noise + 3 * blob).astype(np.float32)


def masks(count: int = 40) -> np.ndarray:
    """Shared masks of RISE, float32 [count, SIZE, SIZE] in 0..1."""
    coarse = (np.random.RandomState(2).uniform(size=(count, 5, 5)) < 0.5).astype(np.float32)
    return np.kron(coarse, np.ones((1, 5, 5), np.float32))[:, :SIZE, :SIZE]
