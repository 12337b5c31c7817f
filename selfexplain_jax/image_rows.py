"""What an evaluation shows and keeps of single images: rows of its pictures, and those of `examples.py`."""

from __future__ import annotations

import pathlib
from typing import Any

import ml_collections
import numpy as np

from selfexplain_jax import examples
from selfexplain_jax.metrics import METRICS, view
from selfexplain_jax.pictures import overlay, save_grid
from selfexplain_jax.training.steps import denormalise
from selfexplain_jax.types import DatasetInfo

PICTURE_CLASSES = 3
"""Present classes of a multi-label image that get a picture of their own mask, at most."""
CLASS_COLUMNS = 10
"""With more classes than this there is no picture of all classes' masks side by side."""
TARGET_MASK = "mask"
"""What examples.json calls the masks that are evaluated."""


def collect(
    collector: examples.Collector,
    seen: view.View,
    real: np.ndarray,
    config: ml_collections.ConfigDict,
    info: DatasetInfo,
) -> None:
    """Hands the batch's rows `real` to the collector."""
    batch, image, iou = seen.batch, seen.predictions["image"], [None] * len(seen.truth)
    if seen.target is not None and info.has_masks:
        iou = iou_or_none(seen.target, seen.truth, seen.weight)
    place_of = {int(batch["index"][row]): row for row in real}
    parts_seen = {part: seen.predictions[part] for part in ("object", "background") if part in seen.predictions}
    rows = {
        position: examples.row_of(
            batch["label"][row],
            {config.method: (image.probabilities[row], image.decided[row])},
            {} if seen.target is None else {TARGET_MASK: iou[row]},
            {part: prediction.probabilities[row] for part, prediction in parts_seen.items()},
        )
        for position, row in place_of.items()
    }

    def draw(position: int) -> examples.Kept:
        row = place_of[position]
        pixels = visible(batch["image"][row], config)
        if seen.target is None:
            return examples.keep(pixels, batch["mask"][row], np.full(1, -1), np.zeros((0, 1, *pixels.shape[:2])))
        class_ids = seen.class_ids[row, : examples.CLASSES_PER_IMAGE]
        named = (batch["label"][row, class_ids] > 0) | (image.decided[row, class_ids] > 0)
        maps = seen.masks[row, : len(class_ids)][None]  # [1, k, H, W]
        return examples.keep(pixels, batch["mask"][row], np.where(named, class_ids, -1), maps)

    collector.add(rows, draw)


def visible(image: np.ndarray, config: ml_collections.ConfigDict) -> np.ndarray:
    """Returns a normalised image [H, W, 3] as it is shown, in 0..1."""
    return np.asarray(denormalise(image[None], config))[0]


def iou_or_none(masks: np.ndarray, truth: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Returns the IoU at .5 of masks [B, H, W], object [B]: numbers, and None where it is not defined."""
    value, defined = (np.asarray(array) for array in METRICS["iou"](masks, truth, weight))
    return np.where(defined, value, None)


def picture_row(seen: view.View, row: int, config: ml_collections.ConfigDict, info: DatasetInfo) -> dict[str, Any]:
    """Returns {"title": true classes, "pictures": {column: array or None}, "titles": {column: text}} of an example."""

    def text(prediction):
        best = np.flatnonzero(prediction.decided[row])[:PICTURE_CLASSES]
        return "\n".join(f"{info.class_names[c]} {prediction.probabilities[row, c]:.2f}" for c in best) or "none"

    batch, predictions = seen.batch, seen.predictions
    pictures, titles = _image_and_truth(seen, row, config, info), {"image": text(predictions["image"])}
    image = pictures["image"]
    if seen.target is not None:
        pictures |= {"target mask": seen.target[row], "overlay": overlay(image, seen.target[row])}
        for part in ("object", "background"):
            pictures[part], titles[part] = visible(seen.shown[part][row], config), text(predictions[part])
        for place in range(min(PICTURE_CLASSES, seen.class_ids.shape[1]) if info.multilabel else 0):
            class_id, column = seen.class_ids[row, place], f"class {place + 1}"
            present = batch["label"][row, class_id] > 0
            pictures[column] = seen.masks[row, place] if present else None
            titles[column] = info.class_names[class_id] if present else ""
    return {"title": _present_classes(seen, row, info), "pictures": pictures, "titles": titles}


def _image_and_truth(seen: view.View, row: int, config: ml_collections.ConfigDict, info: DatasetInfo) -> dict[str, Any]:
    """The first columns of a row: the image, and for data with masks the annotated object, void in grey."""
    pictures = {"image": visible(seen.batch["image"][row], config)}
    if info.has_masks:
        pictures["ground truth"] = np.where(seen.weight[row] > 0, seen.truth[row], 0.5)
    return pictures


def _present_classes(seen: view.View, row: int, info: DatasetInfo) -> str:
    present = np.flatnonzero(seen.batch["label"][row])[:PICTURE_CLASSES]
    return "\n".join(info.class_names[class_id] for class_id in present)


def class_mask_row(
    seen: view.View, row: int, config: ml_collections.ConfigDict, info: DatasetInfo
) -> dict[str, Any] | None:
    """Returns, in the form of `picture_row`, the masks of all classes over an example, in the order of the classes.

    Above each stand the class's probability and whether it is present. None where there is no mask of every class, or
    more classes than CLASS_COLUMNS.
    """
    if seen.masks is None or info.num_classes > CLASS_COLUMNS or seen.class_ids.shape[1] < info.num_classes:
        return None
    pictures, titles = _image_and_truth(seen, row, config, info), {}
    image = pictures["image"]
    for class_id, name in enumerate(info.class_names):
        # A class may be called like a column that is there.
        column = f"{name} (class)" if name in pictures else name
        place = int(np.flatnonzero(seen.class_ids[row] == class_id)[0])
        pictures[column] = overlay(image, seen.masks[row, place])
        probability = seen.predictions["image"].probabilities[row, class_id]
        titles[column] = f"{probability:.2f}" + (", present" if seen.batch["label"][row, class_id] > 0 else "")
    return {"title": _present_classes(seen, row, info), "pictures": pictures, "titles": titles}


def draw_rows(path: pathlib.Path, rows: list[dict[str, Any]]) -> None:
    """Writes rows from `picture_row` or `class_mask_row` as one picture, and as a PDF beside it."""
    columns = {column: [row["pictures"][column] for row in rows] for column in rows[0]["pictures"]}
    titles = {column: [row["titles"][column] for row in rows] for column in rows[0]["titles"]}
    save_grid(path, columns, [row["title"] for row in rows], titles, also=(".pdf",))
