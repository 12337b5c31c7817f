"""CUB-200-2011 (birds): one class per photo, boxes, and masks where the segmentations archive was there."""

from __future__ import annotations

import functools
import pathlib

import numpy as np

from selfexplain_jax.data import decode, raw
from selfexplain_jax.data.photo_set import PhotoSet, prepared_metadata
from selfexplain_jax.types import UserError

SPLITS = {"train": "1", "test": "0"}
"""Split -> its mark in train_test_split.txt."""
BIRD = 128
"""Grey level (of 255) from which a pixel of a segmentation counts as bird: half of the annotators say so."""


class CUB(PhotoSet):
    """CUB-200-2011; satisfies `types.Dataset`. Splits: train, test. Prepare it first: `data/prepare.py`.

    The classes and whether there are masks are those of what was prepared; before that, 200 numbered classes.

    Args: see `PhotoSet`; photos of other classes than `classes` are left out, as each photo has one class.
    """

    def __init__(self, image_size: int = 224, seed: int = 0, data_dir: str = "", *, classes=()):
        known = prepared_metadata("cub200", data_dir)
        super().__init__(
            "cub200",
            known.get("class_names", [f"{number:03d}" for number in range(1, 201)]),
            image_size,
            data_dir,
            multilabel=False,
            has_masks=known.get("has_masks", False),
            classes=classes,
            empty="drop",
        )


def read_cub(folder: pathlib.Path) -> raw.RawSet:
    """Opens the official layout: `folder`/CUB_200_2011, and segmentations/ in it or beside it.

    Raises:
      UserError: the layout is not there, or a list is damaged; on reading a photo: what is wrong with which file.
    """
    root = folder / "CUB_200_2011" if (folder / "CUB_200_2011").is_dir() else folder
    if not (root / "images.txt").is_file():
        raise UserError(f"There is no CUB_200_2011/images.txt in {str(folder)!r}. Name the folder that holds it.")
    paths = _table(root / "images.txt", 1)
    labels = _table(root / "image_class_labels.txt", 1)
    marks = _table(root / "train_test_split.txt", 1)
    corners = _table(root / "bounding_boxes.txt", 4)
    names = {int(number): name for number, (name,) in _table(root / "classes.txt", 1).items()}
    if sorted(names) != list(range(1, len(names) + 1)):
        raise UserError(f"{root / 'classes.txt'}: the classes are not numbered 1 to {len(names)}.")
    for file, table in (("image_class_labels", labels), ("train_test_split", marks), ("bounding_boxes", corners)):
        missing = sorted(set(paths) - set(table))
        if missing:
            raise UserError(f"{root / file}.txt: {len(missing)} photos are missing, the first is {missing[0]!r}.")
    splits = {split: [name for name in paths if marks[name] == [mark]] for split, mark in SPLITS.items()}
    masks = next((place for place in (root / "segmentations", folder / "segmentations") if place.is_dir()), None)
    read = functools.partial(_read, root, masks, paths, labels, corners, len(names))
    # "001.Black_footed_Albatross" -> "Black footed Albatross"
    class_names = [names[number].partition(".")[2].replace("_", " ") or names[number] for number in sorted(names)]
    return raw.RawSet(class_names, splits, read, has_masks=masks is not None)


def _read(root, masks, paths, labels, corners, num_classes: int, name: str) -> raw.RawPhoto:
    path = paths[name][0]
    if ".." in pathlib.PurePosixPath(path).parts or path.startswith("/"):
        raise UserError(f"{root / 'images.txt'}: {path!r} leads out of the folder.")
    photo, height, width = raw.read_photo(root / "images" / path)
    try:
        class_id = int(labels[name][0]) - 1
        left, top, box_width, box_height = map(float, corners[name])
    except ValueError as error:
        raise UserError(f"{root}: label or box of photo {name!r} ({path}) is no number ({error}).") from error
    if not 0 <= class_id < num_classes:
        raise UserError(f"{root / 'image_class_labels.txt'}: photo {name!r} has class {class_id + 1} of {num_classes}.")
    box = (left / width, top / height, (left + box_width) / width, (top + box_height) / height)
    mask = None
    if masks is not None:
        grey = raw.read_mask((masks / path).with_suffix(".png"), height, width, decode.decode_grey)
        mask = np.where(grey >= BIRD, np.uint8(class_id + 1), np.uint8(0))
    return raw.RawPhoto(photo, mask, [class_id], **raw.boxes([box], [class_id], [False]))


def _table(file: pathlib.Path, columns: int) -> dict[str, list[str]]:
    """Lines "id value ..." -> {id: values}."""
    rows = [line.split() for line in raw.read_lines(file)]
    for number, row in enumerate(rows, 1):
        if len(row) != 1 + columns:
            raise UserError(f"{file}, line {number}: expected an id and {columns} values, found {' '.join(row)!r}.")
    raw.unique([row[0] for row in rows], file)
    return {row[0]: row[1:] for row in rows}
