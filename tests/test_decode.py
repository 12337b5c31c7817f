"""Bytes -> pixels: every mode that photos come in, and every way in which a file may be broken."""

import io

import numpy as np
import pytest
from PIL import Image

from selfexplain_jax.data import decode
from selfexplain_jax.data.fakes import draw_photo
from selfexplain_jax.types import UserError

PHOTO = draw_photo(0)[0]


def stored(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def smooth(height, width):
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows * 250 / height, columns * 250 / width, rows * 0 + 80.0], axis=-1).astype(np.uint8)


@pytest.mark.parametrize(("mode", "tolerance"), [("RGB", 0), ("L", 0), ("P", 60), ("RGBA", 0), ("I;16", 1), ("1", 0)])
def test_modes_of_png(mode, tolerance):
    image = Image.fromarray(PHOTO)
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
        expected = np.asarray(Image.fromarray(PHOTO).convert("L").convert("RGB"))
    else:
        image = image.convert(mode)
        expected = np.asarray(image.convert("RGB"))
    pixels, size = decode.decode_photo(stored(image))
    assert pixels.dtype == np.uint8 and pixels.shape == PHOTO.shape and size == PHOTO.shape[:2]
    assert np.abs(pixels.astype(int) - expected).max() <= tolerance


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_modes_of_jpeg(mode):
    image = Image.fromarray(smooth(40, 60)).convert(mode)
    pixels, size = decode.decode_photo(stored(image, "JPEG", quality=95))
    assert pixels.shape == (40, 60, 3) and size == (40, 60)
    assert np.abs(pixels.astype(int) - np.asarray(image.convert("RGB"))).mean() < 3


def test_transparent_pixels_show_grey_not_what_is_hidden_below():
    image = Image.fromarray(PHOTO).convert("RGBA")
    image.putalpha(0)
    np.testing.assert_array_equal(decode.decode_photo(stored(image))[0], 128)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied_or_not(orientation):
    image = Image.fromarray(smooth(40, 60))
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = stored(image, "JPEG", quality=95, exif=exif)
    turned, size = decode.decode_photo(data)
    kept, kept_size = decode.decode_photo(data, turn=False)
    assert kept.shape[:2] == kept_size == (40, 60)
    assert turned.shape[:2] == size == ((60, 40) if orientation > 4 else (40, 60))
    np.testing.assert_array_equal(turned, np.asarray(decode.check_photo(data)))
    np.testing.assert_array_equal(kept, np.asarray(decode.check_photo(data, turn=False)))


def test_reduction_keeps_three_times_the_size_that_is_needed():
    assert [decode.reduction(side, 6000, 224) for side in (671, 1343, 1344, 2687, 2688, 5376)] == [1, 1, 2, 2, 4, 8]
    assert decode.reduction(5000, 5000, 0) == 1 and decode.reduction(6000, 1343, 224) == 1


@pytest.mark.parametrize("orientation", [1, 6])
def test_large_jpeg_is_decoded_smaller_and_looks_alike(orientation):
    image = Image.fromarray(smooth(512, 700))
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = stored(image, "JPEG", quality=95, exif=exif)
    full, _ = decode.decode_photo(data)
    small, size = decode.decode_photo(data, 40)
    assert size == full.shape[:2] and small.shape[:2] == tuple(side // 4 for side in size)
    expected = np.asarray(Image.fromarray(full).resize(small.shape[1::-1], Image.Resampling.BOX))
    assert np.abs(small.astype(int) - expected).mean() < 1


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("part", [0.1, 0.5, 0.95])
def test_truncated_photo_is_refused(kind, part):
    rng = np.random.default_rng(0)
    data = stored(Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)), kind)
    cut = data[: int(part * len(data))]
    for read in (decode.decode_photo, decode.check_photo):
        with pytest.raises(UserError):
            read(cut)


def test_empty_file_and_text_are_named_so():
    with pytest.raises(UserError, match="the file is empty"):
        decode.decode_photo(b"")
    with pytest.raises(UserError, match="no image that can be read"):
        decode.decode_photo(b"this is no image")


@pytest.mark.parametrize("mode", ["L", "P", "1", "I;16", "I"])
def test_masks_are_read_as_numbers(mode):
    numbers = np.uint8([[0, 1, 20], [0, 1, 1]])
    if mode == "1":
        numbers = np.minimum(numbers, 1)
        image = Image.fromarray(numbers.astype(bool))
    elif mode in ("I", "I;16"):
        image = Image.fromarray(numbers.astype(np.int32 if mode == "I" else np.uint16))
    else:
        image = Image.fromarray(numbers)
    if mode == "P":
        image.putpalette([(91 * value) % 256 for value in range(768)])
    mask = decode.decode_mask(stored(image, "TIFF" if mode == "I" else "PNG"))
    assert mask.dtype == np.uint8
    np.testing.assert_array_equal(mask, numbers)


def test_masks_that_hold_no_class_numbers_are_refused():
    with pytest.raises(UserError, match="mode RGB; a mask holds one class number per pixel"):
        decode.decode_mask(stored(Image.fromarray(PHOTO)))
    with pytest.raises(UserError, match="holds the number 300"):
        decode.decode_mask(stored(Image.fromarray(np.full((2, 2), 300, np.uint16))))
    with pytest.raises(UserError, match="empty"):
        decode.decode_mask(b"")
    with pytest.raises(UserError):
        decode.decode_mask(stored(Image.fromarray(np.arange(4096, dtype=np.uint8).reshape(64, 64)))[:60])


def test_encoded_mask_comes_back():
    mask = np.random.default_rng(0).integers(0, 256, (13, 7), dtype=np.uint8)
    np.testing.assert_array_equal(decode.decode_mask(decode.encode_mask(mask)), mask)


def test_only_what_is_not_rgb_is_stored_anew():
    rgb = stored(Image.fromarray(PHOTO), "JPEG")
    assert decode.as_rgb_file(rgb, decode.check_photo(rgb)) is rgb
    for mode in ("L", "CMYK"):
        data = stored(Image.fromarray(PHOTO).convert(mode), "JPEG", quality=95)
        again = decode.as_rgb_file(data, decode.check_photo(data))
        assert Image.open(io.BytesIO(again)).mode == "RGB"
        pixels = decode.decode_photo(again)[0].astype(int)
        assert np.abs(pixels - np.asarray(decode.check_photo(data))).mean() < 2
