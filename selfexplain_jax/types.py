"""The contracts between the rooms of the house: what a dataset, a batch, a model and a method hand to each other."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypedDict

import numpy as np

if TYPE_CHECKING:  # Configs come through here, and must be readable before jax starts.
    import jax

VOID = 255
"""Mask value of pixels that no loss and no metric may count."""


class UserError(ValueError):
    """Bad input of any kind. The message says what is wrong, where, and what to do; main prints it and nothing else."""


class Example(TypedDict, total=False):
    """One item of a dataset's source, as numpy arrays.

    image: uint8 [H, W, 3]; H = W = `DatasetInfo.image_size`, unless the dataset hands out photos at their own sizes
      (`DatasetInfo.own_sizes`), which the pipeline then crops or resizes.
    label: float32 [C], multi-hot (one-hot when the dataset is single-label).
    mask:  uint8 [H, W], class index + 1 per pixel, 0 background, 255 void; absent where the dataset has no masks.
    id:    str, unique within the split.
    """

    image: np.ndarray
    label: np.ndarray
    mask: np.ndarray
    id: str


class Batch(TypedDict, total=False):
    """What the pipeline yields and the step takes.

    image: float32 [B, H, W, 3], normalised (pixel - mean) / std, so that 0 is the mean colour.
    label: float32 [B, C], multi-hot.
    mask:  uint8 [B, H, W], as in `Example`; all 255 (void) where the dataset has no masks.
    valid: float32 [B], 1 for a real example, 0 for the padding of the last batch.
    index: int32 [B], position of the example in its split; -1 for padding.
    """

    image: jax.Array
    label: jax.Array
    mask: jax.Array
    valid: jax.Array
    index: jax.Array


@dataclasses.dataclass(frozen=True)
class DatasetInfo:
    """What the rest of the house may know of a dataset; nobody ever asks for its name to decide anything.

    own_sizes: the source hands out photos (and masks) at sizes of their own; `image_size` is what the pipeline makes of
      them. A random crop can so choose from the whole photo.
    has_boxes: the source offers `boxes`, see `Source`.
    """

    name: str
    num_classes: int
    class_names: tuple[str, ...]
    multilabel: bool
    image_size: int
    has_masks: bool
    own_sizes: bool = False
    has_boxes: bool = False

    def __post_init__(self):
        if len(self.class_names) != self.num_classes:
            raise UserError(
                f"Dataset {self.name!r} names {len(self.class_names)} classes but says num_classes={self.num_classes}."
            )


def is_whole_number(value: Any) -> bool:
    """Whether it is an integer, Python's or numpy's, and no truth value."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


@dataclasses.dataclass(frozen=True)
class Boxes:
    """The boxes of one example. They are no part of a batch, whose shapes are static: see `Source`.

    corners:   float32 [n, 4]: left, top, right, bottom, as fractions of the photo's width and height, 0 to 1.
    class_ids: int64 [n].
    ignored:   bool [n]: marked as difficult (VOC) or as a crowd (COCO).
    photo_size: (height, width) of the photo in pixels; `data.augment.fit_boxes` needs it.
    """

    corners: np.ndarray
    class_ids: np.ndarray
    ignored: np.ndarray
    photo_size: tuple[int, int]


class Source(Protocol):
    """Random access: the same index gives the same item, always, from any thread.

    A source may offer more, and who wants it asks with `hasattr`:
      labels() -> float32 [N, C]: every example's label without reading the photos; see `data/balance.py`.
      boxes(index) -> Boxes: where the dataset has boxes (`DatasetInfo.has_boxes`). `Batch.index` is the index.
      photo_mask(index) -> uint8 [h, w]: the mask at the photo's own size, also where the photo is decoded smaller;
        where the dataset has masks, and photos at sizes of their own.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...


class Dataset(Protocol):
    """What a file in `data/` offers."""

    info: DatasetInfo

    def source(self, split: str) -> Source: ...


@dataclasses.dataclass(frozen=True)
class Predictor:
    """A classifier as pure functions: all that attribution, metrics and explaining may see of a model.

    A function that carries arrays is best a `jax.tree_util.Partial(function, arrays)`: compiled methods then take the
    arrays as arguments, where of any other function they become constants of the program. `attribution.build_predictor`
    makes a predictor of anybody's functions and checks them. In five lines, of weights of any origin and no Flax:

        weights = jax.random.normal(jax.random.key(1), (64 * 64 * 3, 2))  # of any origin
        def scores(images):  # your network, here one layer: [B, 64, 64, 3] -> [B, 2]
            return images.reshape(len(images), -1) @ weights
        predictor = attribution.build_predictor(scores, class_names=["cat", "dog"], image_size=64)
        maps = attribution.METHODS["integrated_gradients"](predictor, images, class_ids)  # [B, k, 64, 64]

    scores:   images [B, H, W, 3] -> class scores (logits) [B, C].
    probabilities: class scores [B, C] -> probabilities [B, C]: softmax, or sigmoid for multi-label.
    features: images -> features [B, h, w, K], with head(features(x)) == scores(x). Optional.
    head:     features [B, h, w, K] -> class scores [B, C]. Optional.
    masks:    (images, class_ids int32 [B, k]) -> masks in [0, 1], float32 [B, k, H, W], where the model explains
              itself. Optional.
    layers:   name -> (features, head) of further layers, the deepest first: features(images) as above, and
              head(features, images) == scores(images), whose images serve paths around the layer. Optional.
    attention: (images, offsets [L, B, heads, N, N] or None) -> (scores [B, C], attention [L, B, heads, N, N]) of a
              transformer with L blocks and N tokens, the class token first and then the patches row by row. The
              offsets are added to the attention (after its softmax), so that the gradient with respect to them at 0 is
              that with respect to the attention. Optional.
    image_range: lowest and highest value of an image as the model takes it, which others are refused by. Optional.
    """

    scores: Callable[[jax.Array], jax.Array]
    probabilities: Callable[[jax.Array], jax.Array]
    class_names: Sequence[str]
    image_size: int
    features: Callable[[jax.Array], jax.Array] | None = None
    head: Callable[[jax.Array], jax.Array] | None = None
    masks: Callable[[jax.Array, jax.Array], jax.Array] | None = None
    # A mapping has no hash; predictors that differ in it alone are still told apart by ==.
    layers: Mapping[str, tuple[Callable, Callable]] = dataclasses.field(default_factory=dict, hash=False)
    attention: Callable[..., tuple[jax.Array, jax.Array]] | None = None
    image_range: tuple[float, float] | None = None

    @property
    def num_classes(self) -> int:
        return len(self.class_names)


SumCount = tuple[Any, Any]
"""A metric's result: (sum over valid examples, their count); add pairs over batches and hosts, divide once."""
