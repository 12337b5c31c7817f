"""What the readers of original layouts (voc.py, coco.py, cub.py) hand to the builder that prepares them."""

from __future__ import annotations

import collections
import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from selfexplain_jax.data import decode
from selfexplain_jax.types import UserError


@dataclasses.dataclass(frozen=True)
class RawPhoto:
    """One photo with all that is known of it.

    photo:         the file's bytes.
    mask:          uint8 [h, w], class id + 1, 0 background, 255 void; None where there is none.
    class_ids:     what the label names, sorted, each once; empty where nothing is shown.
    corners:       float32 [n, 4], boxes as in `types.Boxes`.
    box_class_ids: int64 [n].
    box_ignored:   bool [n].
    """

    photo: bytes
    mask: np.ndarray | None
    class_ids: Sequence[int]
    corners: np.ndarray
    box_class_ids: np.ndarray
    box_ignored: np.ndarray


@dataclasses.dataclass(frozen=True)
class RawSet:
    """A dataset in its original layout.

    class_names: in the order of the class ids.
    splits:      ids of each split; splits may share photos, which are stored once.
    read:        id -> RawPhoto. Raises UserError, which names the file, where something is wrong with it.
    has_masks:   whether there are masks at all.
    notes:       what was seen on the way and is worth knowing, counted; it fills while photos are read.
    """

    class_names: Sequence[str]
    splits: Mapping[str, Sequence[str]]
    read: Callable[[str], RawPhoto]
    has_masks: bool
    notes: collections.Counter = dataclasses.field(default_factory=collections.Counter)


def read_bytes(file: pathlib.Path) -> bytes:
    """Returns a file's content. Raises UserError where it cannot be read."""
    try:
        return file.read_bytes()
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror or error}).") from error


def read_photo(file: pathlib.Path) -> tuple[bytes, int, int]:
    """Reads a photo and decodes it once, to be sure that it is whole.

    Photos that are not RGB (grey, CMYK) are stored as RGB, so that any reader gets along with them. The rotation in the
    EXIF data is not applied: boxes and masks were drawn on the pixels as stored.

    Returns:
      (bytes of the file, or of the RGB copy; height; width).

    Raises:
      UserError: the file is missing, empty, cut off or no image.
    """
    data = read_bytes(file)
    try:
        pixels = decode.check_photo(data, turn=False)
        return decode.as_rgb_file(data, pixels), pixels.height, pixels.width
    except UserError as error:
        raise UserError(f"{file}: {error}.") from error


def read_mask(
    file: pathlib.Path,
    height: int,
    width: int,
    decoder: Callable[[bytes], np.ndarray] = decode.decode_mask,
) -> np.ndarray:
    """Reads a mask, uint8 [height, width]: its class numbers, or its grey levels with `decode.decode_grey`.

    Raises:
      UserError: the file is missing, broken or of another size than its photo.
    """
    try:
        mask = decoder(read_bytes(file))
    except UserError as error:
        raise UserError(f"{file}: {error}.") from error
    if mask.shape != (height, width):
        raise UserError(f"{file}: the mask is {mask.shape[1]} x {mask.shape[0]} px, its photo {width} x {height}.")
    return mask


def read_lines(file: pathlib.Path) -> list[str]:
    """Returns the lines of a text file that are not empty. Raises UserError where it cannot be read."""
    try:
        return [line.strip() for line in read_bytes(file).decode("utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: is no text file ({error}).") from error


def unique(ids: Sequence[str], file: pathlib.Path) -> list[str]:
    """Returns the ids as a list. Raises UserError where one is there twice, naming it and the file."""
    double = sorted(name for name, count in collections.Counter(ids).items() if count > 1)
    if double:
        raise UserError(f"{file}: {len(double)} ids are there more than once: {', '.join(double[:5])}.")
    return list(ids)


def no_boxes() -> dict[str, np.ndarray]:
    """Returns the box fields of a `RawPhoto` that has none."""
    return boxes([], [], [])


def boxes(corners: Sequence[Sequence[float]], class_ids: Sequence[int], ignored: Sequence[bool]) -> dict:
    """Returns the box fields of a `RawPhoto`; corners are cut at the photo's borders, 0 and 1."""
    return {
        "corners": np.clip(np.array(corners, np.float32).reshape(-1, 4), 0, 1),
        "box_class_ids": np.array(class_ids, np.int64),
        "box_ignored": np.array(ignored, bool),
    }
