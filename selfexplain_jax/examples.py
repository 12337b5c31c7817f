"""What an evaluation keeps of single images, for the report: a row of numbers of each, pictures of some.

WORKDIR/examples.json holds the rows, WORKDIR/examples.npz the pictures; nothing in them is pickled.
"""

from __future__ import annotations

import dataclasses
import io
import json
import pathlib
import zipfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import cv2
import numpy as np

from selfexplain_jax.folders import write_whole
from selfexplain_jax.pictures import reduced
from selfexplain_jax.types import VOID, Source, UserError

IMAGE_SIDE, MAP_SIDE = 256, 128
"""Longest side at which images, and maps and masks, are kept; what is larger is reduced."""
CLASSES_PER_IMAGE = 3
"""Classes of an image whose maps are kept, at most."""


@dataclasses.dataclass(frozen=True)
class Kept:
    """The pictures of one image.

    image: uint8 [H, W, 3].
    mask: uint8 [h, w] as in `types.Example`; all void where nothing is annotated.
    class_ids: int [k], the classes of the maps; -1 for none.
    maps: uint8 [M, k, h, w] of M methods; 255 is 1.
    drawn: bool [M, k], whether there is such a map: a method may have failed.
    identifier: the image's name in its data set.
    """

    image: np.ndarray
    mask: np.ndarray
    class_ids: np.ndarray
    maps: np.ndarray
    drawn: np.ndarray
    identifier: str = ""


@dataclasses.dataclass(frozen=True)
class Examples:
    """Rows of all images of a split, by position, and pictures of some.

    class_names: of the data set.
    methods: what the maps are from; `ranked_by` is the one whose IoU says which images are the worst.
    rows: {position: row} with a row as from `row_of`.
    kept: {position: pictures}.
    """

    class_names: Sequence[str]
    methods: Sequence[str]
    ranked_by: str | None
    rows: dict[int, dict[str, Any]]
    kept: dict[int, Kept]


def row_of(
    label: np.ndarray,
    predictions: Mapping[str, tuple[np.ndarray, np.ndarray]],
    iou: Mapping[str, float | None],
    parts: Mapping[str, np.ndarray] | None = None,
) -> dict[str, Any]:
    """Returns what is written of one image, as JSON.

    Args:
      label: [C], multi-hot.
      predictions: {model: (probabilities [C], decided [C] of 0 and 1)}.
      iou: {method: IoU of its mask above .5}, None where it is not defined.
      parts: {part of the image, "object" or "background": probabilities [C] where it alone is shown}.

    Returns:
      {"labels": class ids, "iou": {method: number or None}, "predictions": {model: {"classes": the decided ones, the
      most probable first, "probabilities": theirs, "label_probability": mean over the label's classes, "correct": the
      decided are exactly the label's}}, "parts": {part: "label_probability" there}}.
    """
    labels = np.flatnonzero(label)
    told = {}
    for model, (probabilities, decided) in predictions.items():
        classes = np.flatnonzero(decided)
        classes = classes[np.argsort(-probabilities[classes], kind="stable")]
        told[model] = {
            "classes": classes.tolist(),
            "probabilities": [round(float(p), 4) for p in probabilities[classes]],
            "label_probability": round(float(probabilities[labels].mean()), 4),
            "correct": set(classes.tolist()) == set(labels.tolist()),
        }
    rounded = {method: None if value is None else round(float(value), 4) for method, value in iou.items()}
    seen = {part: round(float(probabilities[labels].mean()), 4) for part, probabilities in (parts or {}).items()}
    return {"labels": labels.tolist(), "iou": rounded, "predictions": told, "parts": seen}


def lowest_iou(rows: Mapping[int, dict], method: str | None) -> list[int]:
    """Returns the positions of the images with a defined IoU of that method, the lowest first."""
    values = {position: row["iou"].get(method) for position, row in rows.items()}
    return sorted((p for p, value in values.items() if value is not None), key=lambda p: (values[p], p))


def wrong_predictions(rows: Mapping[int, dict]) -> list[int]:
    """Returns the positions of the images that some model got wrong, the least probable label first."""

    def doubt(position):
        return min(told["label_probability"] for told in rows[position]["predictions"].values())

    def wrong(row):
        return any(not told["correct"] for told in row["predictions"].values())

    return sorted((p for p, row in rows.items() if wrong(row)), key=lambda p: (doubt(p), p))


def evenly_spaced(count: int, wanted: int) -> np.ndarray:
    """Returns `wanted` places out of 0 ... count - 1, int [wanted], the first and the last among them.

    What stands for a split is chosen so, because many splits are sorted by class.
    """
    return np.linspace(0, count - 1, wanted).round().astype(int)


class Collector:
    """Gathers the rows of all images and the pictures of some, and holds no more pictures than it will give.

    A quarter of them are the worst by IoU, a quarter are wrong predictions, the rest are evenly spaced over the split.

    Args:
      class_names, methods, ranked_by: as in `Examples`.
      count: images whose pictures are kept, at most.
      positions: of all images that will come.
    """

    def __init__(
        self,
        class_names: Sequence[str],
        methods: Sequence[str],
        ranked_by: str | None,
        count: int,
        positions: np.ndarray,
    ):
        self._found = Examples(class_names, methods, ranked_by, {}, {})
        self._quarter = count // 4
        places = evenly_spaced(len(positions), min(count - 2 * self._quarter, len(positions)))
        self._even = set(positions[places].tolist()) if count else set()

    def add(self, rows: Mapping[int, dict], draw: Callable[[int], Kept]) -> None:
        """Takes a batch's rows by position; `draw` makes the pictures of one of its images where they are kept."""
        found = self._found
        found.rows.update(rows)
        worst = lowest_iou(found.rows, found.ranked_by)[: self._quarter]
        wanted = {*self._even, *worst, *wrong_predictions(found.rows)[: self._quarter]}
        for position in set(found.kept) - wanted:
            del found.kept[position]
        found.kept.update({position: draw(position) for position in wanted & set(rows)})

    def merge(self, other: Collector) -> None:
        """Takes what another collector of the same arguments has gathered of other images."""
        self.add(other._found.rows, other._found.kept.__getitem__)

    def examples(self, identify: Callable[[int], str]) -> Examples:
        """Returns what was gathered; `identify` gives the name of the image at a position."""
        named = {p: dataclasses.replace(k, identifier=identify(p)) for p, k in sorted(self._found.kept.items())}
        return dataclasses.replace(self._found, rows=dict(sorted(self._found.rows.items())), kept=named)


def keep(
    image: np.ndarray, mask: np.ndarray, class_ids: np.ndarray, maps: np.ndarray, drawn: np.ndarray | None = None
) -> Kept:
    """Returns the pictures of one image, reduced and as uint8.

    Args:
      image: [H, W, 3] in 0..1.
      mask: uint8 [H, W], the data set's.
      class_ids: int [k]; -1 for a class that is not shown.
      maps: [M, k, H, W] in 0..1.
      drawn: bool [M, k], as in `Kept`; default: where there is a class.
    """
    shown = np.broadcast_to(class_ids >= 0, maps.shape[:2])
    drawn = shown if drawn is None else shown & drawn
    quantised = np.round(255 * np.clip(np.where(drawn[..., None, None], maps, 0), 0, 1)).astype(np.uint8)
    # [M, k, h, w]; without a method, [0, k, 1, 1].
    small = [[reduced(picture, MAP_SIDE) for picture in of_method] for of_method in quantised]
    pictures = np.asarray(small, np.uint8) if small else np.zeros((0, len(class_ids), 1, 1), np.uint8)
    image = reduced(np.round(255 * np.clip(image, 0, 1)).astype(np.uint8), IMAGE_SIDE)
    mask = reduced(np.asarray(mask, np.uint8), MAP_SIDE, cv2.INTER_NEAREST)
    return Kept(image, mask, np.asarray(class_ids), pictures, drawn)


def write_collected(folder: pathlib.Path, collector: Collector, source: Source) -> None:
    """Writes what was gathered, each image by its name in the source."""
    write(folder, collector.examples(lambda position: str(source[position]["id"])))


def write(folder: pathlib.Path, examples: Examples) -> None:
    """Writes FOLDER/examples.json and examples.npz."""
    kept = list(examples.kept.values())
    arrays = {"position": np.asarray(list(examples.kept), np.int64)}
    for name in ("image", "mask", "class_ids", "maps", "drawn") if kept else ():
        arrays[name] = np.stack([getattr(pictures, name) for pictures in kept])
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)
    write_whole(folder / "examples.npz", content.getvalue())
    told = {
        "class_names": list(examples.class_names),
        "methods": list(examples.methods),
        "ranked_by": examples.ranked_by,
        "kept": {position: pictures.identifier for position, pictures in examples.kept.items()},
        "rows": examples.rows,
    }
    write_whole(folder / "examples.json", json.dumps(told, allow_nan=False).encode())


def read(folder: pathlib.Path) -> Examples | None:
    """Returns what `write` wrote to a folder; None where there is nothing.

    Raises:
      UserError: a file of the two is missing or damaged, or they are not from one evaluation.
    """
    table, pictures = folder / "examples.json", folder / "examples.npz"
    if not table.is_file() and not pictures.is_file():
        return None
    try:
        told = json.loads(table.read_text())
        kept = {int(position): identifier for position, identifier in told["kept"].items()}
        # Read first: NumPy leaves a damaged file open.
        with np.load(io.BytesIO(pictures.read_bytes()), allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        if arrays.pop("position").tolist() != list(kept):
            raise ValueError("they are from two evaluations")
        rows = {int(position): row for position, row in told["rows"].items()}
        each = {
            position: Kept(**{name: array[place] for name, array in arrays.items()}, identifier=identifier)
            for place, (position, identifier) in enumerate(kept.items())
        }
        return Examples(told["class_names"], told["methods"], told["ranked_by"], rows, each)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, zipfile.BadZipFile) as error:
        raise UserError(
            f"Cannot read {table} and {pictures.name} ({error}). Evaluate again, or delete both."
        ) from error


def unannotated(mask: np.ndarray) -> bool:
    """Whether a data set's mask says nothing at all."""
    return bool((mask == VOID).all())
