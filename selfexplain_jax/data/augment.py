"""Random changes of a training example. To add one: a function here and a line in `augmentations`.

Each is `fn(example, rng) -> example` on numpy arrays: `image` uint8 [H, W, 3] and, where there is one, `mask` uint8
[H, W], which always move together. All randomness comes from `rng`, which the pipeline seeds with the position of the
example in the training stream, so that a resumed run repeats what an uninterrupted one would have seen.
"""

from __future__ import annotations

from collections.abc import Callable

import ml_collections
import numpy as np

from selfexplain_jax.types import Example

Augmentation = Callable[[Example, np.random.Generator], Example]


def flip(example: Example, rng: np.random.Generator) -> Example:
    """Mirrors image and mask left to right with probability one half."""
    if rng.random() < 0.5:
        return example
    flipped = {key: example[key][:, ::-1] for key in ("image", "mask") if key in example}
    return {**example, **flipped}


def augmentations(config: ml_collections.ConfigDict) -> tuple[Augmentation, ...]:
    """Returns what `config.data` switches on, in the order of application; an empty tuple when nothing is."""
    steps: list[Augmentation] = []
    if config.data.flip:
        steps.append(flip)
    return tuple(steps)


def compose(steps: tuple[Augmentation, ...]) -> Augmentation:
    """Returns one augmentation that applies `steps` one after the other with the same `rng`."""

    def apply(example: Example, rng: np.random.Generator) -> Example:
        for step in steps:
            example = step(example, rng)
        return example

    return apply
