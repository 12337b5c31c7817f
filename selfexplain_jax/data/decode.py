"""Bytes of an image file -> pixels, fast where that is safe and strict everywhere: a broken file never passes as whole.

OpenCV decodes the usual files (grey and RGB, JPEG and PNG); all others, and whatever OpenCV gives up on, go through
Pillow, which also says what is wrong with a file.
"""

from __future__ import annotations

import io

import cv2
import numpy as np
from PIL import Image, ImageOps

from selfexplain_jax.data.photos import to_rgb
from selfexplain_jax.types import UserError

_REDUCED = {2: cv2.IMREAD_REDUCED_COLOR_2, 4: cv2.IMREAD_REDUCED_COLOR_4, 8: cv2.IMREAD_REDUCED_COLOR_8}
_PNG, _GREY_8_BITS = b"\x89PNG\r\n\x1a\n", b"\x08\x00"
"""First bytes of a PNG; its depth and colour type, bytes 24 and 25. Of fewer bits, OpenCV would change the values."""
_ORIENTATION = 0x0112
"""Tag of the EXIF data; values above 4 swap width and height."""


def reduction(height: int, width: int, image_size: int) -> int:
    """Returns by which factor (1, 2, 4 or 8) a photo may be shrunk while it is decoded.

    Its short side stays at least three times `image_size`, so that a random crop of a ninth of the photo's area still
    has all the pixels that it needs. image_size = 0: never.
    """
    if image_size <= 0:
        return 1
    return max((factor for factor in _REDUCED if min(height, width) // factor >= 3 * image_size), default=1)


def decode_photo(data: bytes, image_size: int = 0, *, turn: bool = True) -> tuple[np.ndarray, tuple[int, int]]:
    """Decodes a photo of any format and mode that Pillow reads.

    Args:
      data: content of the file.
      image_size: side of the square that it will become; a far larger JPEG is decoded smaller, see `reduction`.
      turn: turn it as its EXIF data says. False where masks or boxes were drawn on the pixels as stored.

    Returns:
      (pixels uint8 [h, w, 3]; (height, width) of the photo in full, which a mask of it must have).

    Raises:
      UserError: the file is empty, no image, cut off or otherwise broken. The message names no file: the caller knows.
    """
    opened = _open(data)
    width, height = opened.size
    if turn and _orientation(opened) > 4:
        width, height = height, width
    # An EXIF rotation of a PNG is rare, and OpenCV may not know of it.
    usual = opened.format == "JPEG" or (opened.format == "PNG" and "exif" not in opened.info)
    if usual and opened.mode in ("RGB", "L") and "transparency" not in opened.info:
        factor = reduction(height, width, image_size) if opened.format == "JPEG" else 1
        flags = _REDUCED.get(factor, cv2.IMREAD_COLOR_RGB) | (0 if turn else cv2.IMREAD_IGNORE_ORIENTATION)
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
        if pixels is not None:
            return pixels if factor == 1 else cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB), (height, width)
    return np.asarray(_load(opened, turn)), (height, width)


def photo_size(data: bytes, *, turn: bool = False) -> tuple[int, int]:
    """Returns (height, width) of a photo from its header alone: as stored, or (`turn`) as its EXIF data turns it.

    Raises:
      UserError: the header is broken.
    """
    opened = _open(data)
    width, height = opened.size
    return (width, height) if turn and _orientation(opened) > 4 else (height, width)


def decode_mask(data: bytes) -> np.ndarray:
    """Decodes a mask: a palette or grey image whose pixel values are class numbers. Returns uint8 [h, w].

    Raises:
      UserError: the file is broken, has colours in place of numbers, or a number above 255.
    """
    if data[:8] == _PNG and data[24:26] == _GREY_8_BITS:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE)
        if pixels is not None:
            return pixels
    opened = _open(data)
    if opened.mode not in ("P", "L", "1", "I") and not opened.mode.startswith("I;16"):
        raise UserError(
            f"it is an image of mode {opened.mode}; a mask holds one class number per pixel (mode P or L of Pillow)"
        )
    try:
        pixels = np.asarray(opened)
    except Exception as error:  # Pillow's decoders raise nearly anything on broken files.
        raise UserError(_reason(error)) from error
    if pixels.max(initial=0) > 255 or pixels.min(initial=0) < 0:
        raise UserError(f"it holds the number {int(pixels.max())}; a mask holds 0 to 255")
    return pixels.astype(np.uint8)


def decode_grey(data: bytes) -> np.ndarray:
    """Decodes an image of any mode to its grey levels, uint8 [h, w]. Raises UserError where the file is broken."""
    opened = _open(data)
    try:
        return np.asarray(opened.convert("L"))
    except Exception as error:
        raise UserError(_reason(error)) from error


def check_photo(data: bytes, *, turn: bool = True) -> Image.Image:
    """Decodes every byte with Pillow, which is strict, and returns the photo in RGB. Raises as `decode_photo`."""
    return _load(_open(data), turn)


def as_rgb_file(data: bytes, photo: Image.Image) -> bytes:
    """Returns `data` if it is an RGB JPEG or PNG file, else its pixels `photo` as one (JPEG of quality 95)."""
    opened = _open(data)
    if opened.mode == "RGB" and opened.format in ("JPEG", "PNG") and not opened.has_transparency_data:
        return data
    stored = io.BytesIO()
    photo.save(stored, "JPEG", quality=95, subsampling=0)
    return stored.getvalue()


def encode_mask(mask: np.ndarray) -> bytes:
    """Returns a mask uint8 [h, w] as a grey PNG."""
    # Written once and read in every epoch: what is packed best is also read fastest.
    return cv2.imencode(".png", mask, [cv2.IMWRITE_PNG_COMPRESSION, 9])[1].tobytes()


def _open(data: bytes) -> Image.Image:
    if not data:
        raise UserError("the file is empty")
    try:
        return Image.open(io.BytesIO(data))
    except Exception as error:
        raise UserError(_reason(error)) from error


def _orientation(opened: Image.Image) -> int:
    if opened.format == "PNG" and "exif" not in opened.info:
        return 1  # Looking for it would decode all of the file.
    try:
        return opened.getexif().get(_ORIENTATION, 1)
    except Exception as error:  # Damaged EXIF data.
        raise UserError(_reason(error)) from error


def _load(opened: Image.Image, turn: bool) -> Image.Image:
    try:
        return to_rgb(ImageOps.exif_transpose(opened) if turn else opened)
    except Exception as error:
        raise UserError(_reason(error)) from error


def _reason(error: Exception) -> str:
    text = str(error) or type(error).__name__
    return "it is no image that can be read" if "cannot identify image file" in text else text
