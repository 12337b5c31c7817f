"""Synthetic: textured shapes on textured backgrounds, drawn on the fly, with the exact mask of every object.

A picture is fixed by (seed, split, index) alone; what is in it is in scenes.py, and how it is drawn in
scene_pixels.py.
"""

from __future__ import annotations

import dataclasses
import math
import operator

import numpy as np

from selfexplain_jax.data.scene_pixels import render
from selfexplain_jax.data.scenes import MAX_CLASSES, MAX_OBJECTS, OBJECT_TEXTURES, SHAPES, Scene, sample_scene
from selfexplain_jax.types import DatasetInfo, Example, UserError, is_whole_number

SPLITS = ("train", "validation", "test")
LABELS = ("object", "shape", "texture")
MIN_IMAGE_SIZE, MAX_IMAGE_SIZE = 32, 512


@dataclasses.dataclass(frozen=True)
class SyntheticSource:
    """Random access to one split; see `types.Source`."""

    dataset: Synthetic
    split: str
    length: int

    def __len__(self) -> int:
        """Number of examples."""
        return self.length

    def scene(self, index: int) -> Scene:
        """What is in example `index`, without drawing it. Raises IndexError outside 0 <= index < len(self)."""
        index = operator.index(index)
        if not 0 <= index < self.length:
            raise IndexError(f"Index {index} is outside the {self.split} split of {self.length} examples.")
        rng = np.random.default_rng((self.dataset.seed, SPLITS.index(self.split), index))
        options = dict(self.dataset.scene_options)
        if self.split != "train":
            options["confounding"] = 0.0
        return sample_scene(rng, **options)

    def __getitem__(self, index: int) -> Example:
        """Draws example `index`; see `types.Example`. Raises IndexError outside 0 <= index < len(self)."""
        scene = self.scene(index)
        image, mask = render(scene, self.dataset.info.image_size)
        label = np.zeros(self.dataset.info.num_classes, np.float32)
        label[[item.class_id for item in scene.objects]] = 1.0
        return {"image": image, "label": label, "mask": mask, "id": f"{self.split}_{operator.index(index):06d}"}


def _check_integer(name: str, value, low: int, high: float = math.inf) -> None:
    if not is_whole_number(value) or not low <= value <= high:
        upper = f" to {high}" if high < math.inf else " or more"
        raise UserError(f"Dataset 'synthetic': {name}={value!r} must be a whole number, {low}{upper}.")


def _check_fraction(name: str, value) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float, np.number)) or not 0 <= value <= 1:
        raise UserError(f"Dataset 'synthetic': {name}={value!r} must be a number from 0 to 1.")


class Synthetic:
    """Textured shapes on textured backgrounds; satisfies `types.Dataset`. Nothing is stored or downloaded.

    Args:
      image_size: pixels per side, 32 to 512; pictures of different sizes look alike.
      seed: another seed gives other pictures.
      data_dir: not used; here because every dataset takes it.
      label: "object": class c has its own shape and its own texture; "shape": the shape is the class and the texture
        is independent of it; "texture": the texture is the class and the shape is independent of it.
      max_objects: most objects in a picture, 1 to 8; the task is multi-label where it is above 1.
      min_objects: fewest objects in a picture, 1 to `max_objects`.
      num_classes: 2 to 8.
      difficulty: 0 (strong contrasts, no noise) to 1 (weak contrasts, strong noise).
      confounding: how often, in the train split, the first object's class chooses the background; validation and test
        are never confounded.
      train_size: examples of the train split.
      validation_size: examples of the validation split.
      test_size: examples of the test split.

    Raises:
      UserError: an option is outside its range.
    """

    def __init__(
        self,
        image_size: int = 64,
        seed: int = 0,
        data_dir: str = "",
        *,
        label: str = "object",
        max_objects: int = 1,
        min_objects: int = 1,
        num_classes: int = MAX_CLASSES,
        difficulty: float = 0.5,
        confounding: float = 0.0,
        train_size: int = 50000,
        validation_size: int = 2000,
        test_size: int = 2000,
    ):
        del data_dir
        if label not in LABELS:
            raise UserError(f"Dataset 'synthetic': label={label!r} does not exist; choose from {', '.join(LABELS)}.")
        _check_integer("image_size", image_size, MIN_IMAGE_SIZE, MAX_IMAGE_SIZE)
        _check_integer("seed", seed, 0)
        _check_integer("max_objects", max_objects, 1, MAX_OBJECTS)
        _check_integer("min_objects", min_objects, 1, max_objects)
        _check_integer("num_classes", num_classes, 2, MAX_CLASSES)
        _check_fraction("difficulty", difficulty)
        _check_fraction("confounding", confounding)
        self.sizes = dict(zip(SPLITS, (train_size, validation_size, test_size), strict=True))
        for split, size in self.sizes.items():
            _check_integer(f"{split}_size", size, 1)
        self.seed = int(seed)
        self.scene_options = {
            "label": label,
            "num_classes": int(num_classes),
            "min_objects": int(min_objects),
            "max_objects": int(max_objects),
            "difficulty": float(difficulty),
            "confounding": float(confounding),
        }
        names = OBJECT_TEXTURES if label == "texture" else SHAPES
        self.info = DatasetInfo(
            name="synthetic",
            num_classes=int(num_classes),
            class_names=names[:num_classes],
            multilabel=max_objects > 1,
            image_size=int(image_size),
            has_masks=True,
        )

    def source(self, split: str) -> SyntheticSource:
        """Random access to "train", "validation" or "test". Raises UserError for any other name."""
        if split not in self.sizes:
            raise UserError(f"Dataset 'synthetic' has no split {split!r}; it has {', '.join(SPLITS)}.")
        return SyntheticSource(self, split, int(self.sizes[split]))
