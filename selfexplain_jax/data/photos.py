"""Reads photos of any size and mode as the square RGB images that a network takes."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageOps

from selfexplain_jax.types import UserError

PICTURE_SIDE = 512
"""Longest side, in pixels, of the copies that are drawn on."""


@dataclasses.dataclass(frozen=True)
class Photo:
    """One photo that was read.

    file: where it came from. name: unique among the photos of a call, fit for a file name.
    size: (height, width) in pixels, after the rotation that its EXIF data asks for.
    network_image: uint8 [S, S, 3], the whole photo resized to the network's square, nothing cropped.
    picture: uint8 [h, w, 3], the photo in its own proportions, at most PICTURE_SIDE a side.
    """

    file: pathlib.Path
    name: str
    size: tuple[int, int]
    network_image: np.ndarray
    picture: np.ndarray


def find_photos(
    images: str | os.PathLike | Sequence, *, leave_out: str | os.PathLike | None = None
) -> list[pathlib.Path]:
    """Returns the files to read: the file given, or all files below the folder given, in order of their names.

    Files and folders whose name starts with a dot are left out; every other file counts, whatever its ending, so that
    one that is no image is reported by whoever reads it.

    Args:
      images: a file, a folder, or several of them.
      leave_out: a folder whose files do not count: where an earlier call wrote its pictures.

    Raises:
      UserError: a path does not exist, or there is no file at all.
    """
    paths = [images] if isinstance(images, (str, os.PathLike)) else list(images)
    files: list[pathlib.Path] = []
    for path in map(pathlib.Path, paths):
        if path.is_dir():
            inside = sorted(file for file in path.rglob("*") if file.is_file())
            files += [file for file in inside if not any(part.startswith(".") for part in file.relative_to(path).parts)]
        elif path.exists():
            files.append(path)
        else:
            raise UserError(f"Cannot explain {str(path)!r}: no such file or folder.")
    if leave_out is not None:
        written = pathlib.Path(leave_out).resolve()
        files = [file for file in files if written not in file.resolve().parents]
    if not files:
        raise UserError(f"There is no file to explain in {', '.join(repr(str(path)) for path in paths) or 'nothing'}.")
    return list(dict.fromkeys(files))


def unique_names(files: Sequence[pathlib.Path]) -> list[str]:
    """Returns a name per file, its stem where that is unique, else stem_suffix, else with a number; never two alike.

    Names that differ in case only count as alike, because some file systems hold them for one.
    """
    stems = [file.stem.casefold() for file in files]
    taken: set[str] = set()
    names = []
    for file, stem in zip(files, stems, strict=True):
        name = file.stem if stems.count(stem) == 1 else f"{file.stem}_{file.suffix[1:]}"
        candidate, number = name, 2
        while candidate.casefold() in taken:
            candidate, number = f"{name}_{number}", number + 1
        taken.add(candidate.casefold())
        names.append(candidate)
    return names


def to_rgb(image: Image.Image, background: Sequence[float] = (127.5, 127.5, 127.5)) -> Image.Image:
    """Returns the image in mode RGB, 8 bits a channel.

    Transparent pixels show `background`, the colour that means "nothing" to the network. Grey images of 16 bits are
    divided by 257; floating-point ones must lie in 0..1 or 0..255.

    Raises:
      UserError: a floating-point image outside of 0..255.
      ValueError: Pillow cannot convert the mode.
    """
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        pixels = np.asarray(image, np.float64)
        if not np.isfinite(pixels).all() or pixels.min() < 0 or pixels.max() > (255 if image.mode == "F" else 65535):
            raise UserError(f"pixels of mode {image.mode} outside the range of an image")
        if image.mode == "F":
            pixels = pixels * 255 if pixels.max() <= 1 else pixels
        elif image.mode != "I" or pixels.max() > 255:
            pixels = pixels / 257
        return Image.fromarray(np.round(pixels).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        color = tuple(round(float(value)) for value in background)
        return Image.alpha_composite(Image.new("RGBA", image.size, (*color, 255)), image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


def read_photo(
    file: pathlib.Path, name: str, image_size: int, background: Sequence[float] = (127.5, 127.5, 127.5)
) -> Photo:
    """Reads one photo, turned as its EXIF data says, its first frame if there are several.

    The whole photo is resized to the square that the network takes (bilinear, antialiased), not cropped, so that its
    mask covers all of it; a long photo is therefore seen squeezed.

    Args:
      file: any format that Pillow reads.
      name: see `Photo`.
      image_size: side S of the network's square.
      background: colour on the scale 0..255 behind transparent pixels.

    Raises:
      OSError, ValueError, SyntaxError, ...: what Pillow raises on a file that is no image or is broken.
    """
    with Image.open(file) as opened:
        # The rotation first: converting the mode may drop the EXIF data. Loading happens here, so that a file that
        # stops short fails here.
        image = to_rgb(ImageOps.exif_transpose(opened), background)
    picture = image.copy()
    picture.thumbnail((PICTURE_SIDE, PICTURE_SIDE))
    square = image.resize((image_size, image_size), Image.Resampling.BILINEAR)
    return Photo(file, name, (image.height, image.width), np.asarray(square), np.asarray(picture))


def read_photos(
    files: Sequence[pathlib.Path], names: Sequence[str], image_size: int, background: Sequence[float]
) -> tuple[list[Photo], list[dict[str, str]]]:
    """Reads what can be read; returns the photos and, for each other file, {"file", "reason"}."""
    photos, failed = [], []
    for file, name in zip(files, names, strict=True):
        try:
            photos.append(read_photo(file, name, image_size, background))
        except Exception as error:  # Pillow's decoders raise nearly anything on broken files; all is reported.
            reason = "the file is empty" if file.stat().st_size == 0 else str(error) or type(error).__name__
            failed.append({"file": str(file), "reason": reason})
    return photos, failed


def resize_mask(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resizes a mask [S, S] in 0..1 to `size` = (height, width), bilinear; float32, still in 0..1."""
    height, width = size
    resized = Image.fromarray(np.asarray(mask, np.float32)).resize((width, height), Image.Resampling.BILINEAR)
    return np.clip(np.asarray(resized), 0, 1)
