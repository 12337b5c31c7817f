"""Ground truth that no batch can hold: boxes in pixels of the network's square, and masks at the photos' own sizes."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

import ml_collections
import numpy as np

from selfexplain_jax.data.augment import fit_boxes
from selfexplain_jax.metrics.explained import PixelBoxes, pad_boxes
from selfexplain_jax.types import DatasetInfo, Source, UserError


class PhotoTruth(NamedTuple):
    """What `explained.explained` takes of that name; None is what was not asked for."""

    boxes: PixelBoxes | None = None
    photo_sizes: np.ndarray | None = None
    photo_masks: tuple[np.ndarray, ...] | None = None


def photo_truth(
    source: Source, config: ml_collections.ConfigDict, index: np.ndarray, needs: Collection[str]
) -> PhotoTruth:
    """Reads the boxes and own-size masks of a batch's photos.

    Boxes that `config.data.fit` cuts off, so that nothing is left of them on the square, are left out.

    Args:
      source: the split that the batch is of.
      config: `config.data` says what evaluation makes of a photo.
      index: int [B], `Batch.index`; -1 for padding, which has no boxes and a photo of one pixel.
      needs: of "boxes", "photo_sizes" and "mask", as `map_metrics.needs_of` has them; own-size masks are read where
        both of the last two are among them.
    """
    sized = "photo_sizes" in needs
    boxes = [source.boxes(int(place)) if place >= 0 else None for place in index] if "boxes" in needs else None
    nothing = np.zeros((1, 1), np.uint8)
    masks = None
    if sized and "mask" in needs:
        masks = tuple(source.photo_mask(int(place)) if place >= 0 else nothing for place in index)
    sizes = None
    if sized and masks is not None:
        sizes = np.array([mask.shape for mask in masks])
    elif sized and boxes is not None:
        sizes = np.array([(1, 1) if found is None else found.photo_size for found in boxes])
    return PhotoTruth(
        None if boxes is None else pad_boxes([_on_square(found, config) for found in boxes]), sizes, masks
    )


def check_needs(name: str, needs: Collection[str], info: DatasetInfo, config: ml_collections.ConfigDict) -> None:
    """Holds what a metric needs against what the data set has.

    Raises:
      UserError: it lacks masks or boxes, or its images are no whole photos at sizes of their own.
    """
    for need, there in (("mask", info.has_masks), ("boxes", info.has_boxes)):
        if need in needs and not there:
            other = " (or take its option regions='mask')" if "photo_sizes" in needs and info.has_masks else ""
            what = {"mask": "masks", "boxes": "boxes"}[need]
            raise UserError(
                f"Metric {name!r} needs {what}, which data set {info.name!r} does not have: leave it out{other}."
            )
    if "photo_sizes" in needs and not info.own_sizes:
        raise UserError(
            f"Metric {name!r} needs photos at sizes of their own, and those of data set {info.name!r} all have one: "
            "leave it out."
        )
    if "photo_sizes" in needs and config.data.fit != "squeeze":
        raise UserError(
            f"Metric {name!r} needs maps of whole photos: set config.data.fit = 'squeeze', or leave it out. Now it is "
            f"{config.data.fit!r}, which cuts parts of them off."
        )


def _on_square(boxes, config) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    if boxes is None:
        return np.zeros((0, 4), np.float32), np.zeros(0, int), np.zeros(0, bool)
    corners = fit_boxes(boxes, config)
    left = (corners[:, 2:] > corners[:, :2]).all(axis=1)
    return corners[left], boxes.class_ids[left], boxes.ignored[left]
