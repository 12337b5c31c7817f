"""Explaining images and folders of photos: known answers, every kind of file, and what is said of bad ones."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from selfexplain_jax import explain as explaining
from selfexplain_jax.config import base_config
from selfexplain_jax.data import photos
from selfexplain_jax.data.pipeline import normalise
from selfexplain_jax.types import Predictor, UserError

SIZE = 16
NAMES = ("red", "green", "blue")


@jax.jit
def fake_maps(images):
    """Logit maps [B, H, W, C]: a channel of a normalised image, positive where it is brighter than the mean."""
    return 4.0 * images


@jax.jit
def fake_masks(images, class_ids):
    maps = jnp.take_along_axis(fake_maps(images), class_ids[:, None, None, :], axis=-1)  # [B, H, W, k]
    return jax.nn.sigmoid(maps).transpose(0, 3, 1, 2)


PREDICTOR = Predictor(
    scores=lambda images: fake_maps(jnp.asarray(images)).mean(axis=(1, 2)),
    probabilities=jax.nn.sigmoid,
    class_names=NAMES,
    image_size=SIZE,
    masks=fake_masks,
)
CONFIG = base_config()


def half_red(height=40, width=60):
    """Red on the left half, black on the right."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:, : width // 2, 0] = 255
    return Image.fromarray(pixels)


def images_of(*pictures):
    pixels = np.stack([np.asarray(picture.resize((SIZE, SIZE))) for picture in pictures])
    return normalise(pixels, CONFIG.data.mean, CONFIG.data.std)


def arrays_of(path):
    with np.load(path) as arrays:
        return dict(arrays)


def size_of(path):
    with Image.open(path) as image:
        return image.size


def read_index(folder):
    return json.loads((folder / "index.json").read_text())


# --- explain ------------------------------------------------------------------------------------------------------


def test_explain_orders_the_classes_by_score_and_gives_their_masks():
    red, blue = Image.new("RGB", (SIZE, SIZE), (255, 130, 0)), Image.new("RGB", (SIZE, SIZE), (0, 130, 255))
    explanation = explaining.explain(PREDICTOR, images_of(red, blue), top=2)
    np.testing.assert_array_equal(explanation.class_ids, [[0, 1], [2, 1]])
    assert explanation.masks.shape == (2, 2, SIZE, SIZE)
    # Red: 4 * (255 - 127.5) / 64.
    np.testing.assert_allclose(explanation.scores[0, 0], 7.96875)
    np.testing.assert_allclose(explanation.probabilities, 1 / (1 + np.exp(-explanation.scores)), rtol=1e-5)
    np.testing.assert_allclose(explanation.masks[0, 0], 1 / (1 + np.exp(-7.96875)), rtol=1e-5)
    for field in (explanation.scores, explanation.probabilities, explanation.masks):
        assert type(field) is np.ndarray and field.dtype == np.float32


def test_explain_gives_the_classes_asked_for_and_no_more_than_there_are():
    images = images_of(half_red())
    np.testing.assert_array_equal(explaining.explain(PREDICTOR, images, np.array([[2, 0]])).class_ids, [[2, 0]])
    assert explaining.explain(PREDICTOR, images, top=9).class_ids.shape == (1, 3)


def test_explain_refuses_bad_input():
    images = images_of(half_red())
    with pytest.raises(UserError, match=r"image\[None\]"):
        explaining.explain(PREDICTOR, images[0])
    with pytest.raises(UserError, match="16 x 16 px, not 8 x 16"):
        explaining.explain(PREDICTOR, images[:, :8])
    with pytest.raises(UserError, match=r"0\.\.2; got 3"):
        explaining.explain(PREDICTOR, images, np.array([[3]]))
    with pytest.raises(UserError, match="top >= 1"):
        explaining.explain(PREDICTOR, images, top=0)
    with pytest.raises(UserError, match="not finite"):
        explaining.explain(PREDICTOR, np.full_like(images, np.nan))
    with pytest.raises(UserError, match="does not explain itself"):
        explaining.explain(Predictor(PREDICTOR.scores, PREDICTOR.probabilities, NAMES, SIZE), images)


# --- classes ------------------------------------------------------------------------------------------------------


def test_classes_are_found_by_name_and_number():
    assert explaining.class_ids_of(PREDICTOR, "Green, 0,red") == [1, 0]
    assert explaining.class_ids_of(PREDICTOR, [2, "blue", 1]) == [2, 1]
    digits = Predictor(PREDICTOR.scores, PREDICTOR.probabilities, ("1", "2", "3"), SIZE)
    assert explaining.class_ids_of(digits, "1") == [0], "a name wins over a number"
    assert explaining.class_ids_of(digits, [1]) == [1], "an int is a number"


@pytest.mark.parametrize("asked", ["purple", "3", "-1", "red,1.5"])
def test_unknown_class_lists_the_classes(asked):
    with pytest.raises(UserError, match="There is no class .*: 0 red, 1 green, 2 blue"):
        explaining.class_ids_of(PREDICTOR, asked)


def test_unknown_class_of_very_many_names_the_nearest():
    names = tuple(f"thing {i}" for i in range(300)) + ("Tabby cat",)
    many = Predictor(PREDICTOR.scores, PREDICTOR.probabilities, names, SIZE)
    with pytest.raises(UserError, match=r"0 \.\.\. 300; the nearest names: 300 Tabby cat, ") as error:
        explaining.class_ids_of(many, "taby cat")
    assert len(str(error.value)) < 300


def test_predicted_classes():
    assert explaining.predicted_classes(np.array([0.6, 0.2, 0.9]), "sigmoid") == [2, 0]
    assert explaining.predicted_classes(np.array([0.1, 0.4, 0.3]), "sigmoid") == [1]
    assert explaining.predicted_classes(np.array([0.1, 0.7, 0.2]), "softmax") == [1]


# --- folders ------------------------------------------------------------------------------------------------------


def test_folder_is_explained(tmp_path):
    inside, out = tmp_path / "photos", tmp_path / "out"
    (inside / "more").mkdir(parents=True)
    half_red().save(inside / "left.png")
    Image.new("RGB", (20, 30), (255, 0, 255)).save(inside / "more" / "purple.png")
    index = explaining.explain_folder(PREDICTOR, CONFIG, images=inside, output_dir=out)
    assert index == read_index(out)
    assert index["failed"] == [] and index["classes"] == list(NAMES)
    left, purple = index["photos"]
    # Half of the left photo is 255 and half 0: a mean of zero, so no class is above .5 and the likeliest is shown.
    assert [entry["class"] for entry in left["explained"]] == ["red"]
    assert (left["height"], left["width"]) == (40, 60)
    assert left["explained"][0]["probability"] == pytest.approx(0.5, abs=0.05)
    assert left["explained"][0]["area"] == pytest.approx(0.5, abs=0.05)
    assert [entry["class"] for entry in purple["explained"]] == ["red", "blue"]

    arrays = arrays_of(out / left["arrays"])
    assert arrays["masks"].shape == (1, 40, 60), "the photo's own size"
    masks = arrays["masks"].astype(np.float32)
    assert masks[0, :, :25].min() > 0.99 and masks[0, :, 35:].max() < 0.01
    np.testing.assert_array_equal(arrays["class_ids"], [0])
    assert arrays["scores"].shape == arrays["probabilities"].shape == (3,)
    assert size_of(out / purple["picture"])[0] > size_of(out / left["picture"])[0], "one more column"


def test_classes_asked_for_are_shown_in_that_order(tmp_path):
    half_red().save(tmp_path / "a.png")
    index = explaining.explain_folder(
        PREDICTOR, CONFIG, images=str(tmp_path / "a.png"), output_dir=tmp_path / "out", classes="blue,0,green"
    )
    assert [entry["class_id"] for entry in index["photos"][0]["explained"]] == [2, 0, 1]
    assert arrays_of(tmp_path / "out" / "a.npz")["masks"].shape == (3, 40, 60)


def test_many_photos_in_small_batches_are_the_same_as_one_by_one(tmp_path):
    inside = tmp_path / "photos"
    inside.mkdir()
    for i in range(5):
        Image.new("RGB", (10 + i, 12), (50 * i, 255 - 50 * i, 128)).save(inside / f"{i}.png")
    together = explaining.explain_folder(PREDICTOR, CONFIG, images=inside, output_dir=tmp_path / "a", batch_size=2)
    for i, entry in enumerate(together["photos"]):
        alone = explaining.explain_folder(PREDICTOR, CONFIG, images=inside / f"{i}.png", output_dir=tmp_path / "b")
        for one, other in zip(alone["photos"][0]["explained"], entry["explained"], strict=True):
            assert one.pop("class") == other.pop("class")
            assert one == pytest.approx(other), f"photo {i}"


def test_files_that_are_no_images_are_named_and_the_rest_goes_on(tmp_path, capsys):
    inside, out = tmp_path / "photos", tmp_path / "out"
    inside.mkdir()
    half_red().save(inside / "good.png")
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    Image.fromarray(noise).save(inside / "whole.jpg")
    (inside / "cut.jpg").write_bytes((inside / "whole.jpg").read_bytes()[:2000])
    (inside / "cut.png").write_bytes((inside / "good.png").read_bytes()[:60])
    (inside / "empty.jpg").touch()
    (inside / "notes.txt").write_text("no image")
    (inside / ".hidden").write_text("no image, and nobody asked")
    index = explaining.explain_folder(PREDICTOR, CONFIG, images=inside, output_dir=out)
    assert [entry["name"] for entry in index["photos"]] == ["good", "whole"]
    failed = {entry["file"].rsplit("/", 1)[-1]: entry["reason"] for entry in read_index(out)["failed"]}
    assert sorted(failed) == ["cut.jpg", "cut.png", "empty.jpg", "notes.txt"]
    assert "truncated" in failed["cut.jpg"] and "empty" in failed["empty.jpg"]
    assert "cannot identify" in failed["notes.txt"]
    told = capsys.readouterr().err
    assert all(name in told for name in failed) and "good.png" not in told


def test_no_readable_file_is_an_error_after_the_index_is_written(tmp_path):
    (tmp_path / "a.jpg").write_text("no image")
    with pytest.raises(UserError, match=r"None of the 1 files .*a\.jpg"):
        explaining.explain_folder(PREDICTOR, CONFIG, images=tmp_path / "a.jpg", output_dir=tmp_path / "out")
    assert len(read_index(tmp_path / "out")["failed"]) == 1


def test_nothing_to_read_is_an_error(tmp_path):
    with pytest.raises(UserError, match="no file to explain"):
        explaining.explain_folder(PREDICTOR, CONFIG, images=tmp_path, output_dir=tmp_path / "out")
    with pytest.raises(UserError, match="no such file or folder"):
        explaining.explain_folder(PREDICTOR, CONFIG, images=tmp_path / "nowhere", output_dir=tmp_path / "out")


def test_own_pictures_are_not_read_again(tmp_path):
    half_red().save(tmp_path / "a.png")
    for _ in range(2):
        index = explaining.explain_folder(PREDICTOR, CONFIG, images=tmp_path, output_dir=tmp_path / "explained")
        assert len(index["photos"]) == 1 and not index["failed"]


def test_files_of_one_stem_do_not_overwrite_each_other(tmp_path):
    inside = tmp_path / "photos"
    (inside / "more").mkdir(parents=True)
    names = ("a.png", "A.jpg", "b.png", "more/a.png", "a_png.png")
    for name in names:
        half_red().save(inside / name)
    index = explaining.explain_folder(PREDICTOR, CONFIG, images=inside, output_dir=tmp_path / "out")
    pictures = [entry["picture"] for entry in index["photos"]]
    assert len({picture.casefold() for picture in pictures}) == len(names)
    assert "b.png" in pictures
    assert all((tmp_path / "out" / picture).is_file() for picture in pictures)


# --- reading ------------------------------------------------------------------------------------------------------

RED = (200, 40, 20)


def saved(tmp_path, image, name, **options):
    image.save(tmp_path / name, **options)
    return photos.read_photo(tmp_path / name, "x", 8)


@pytest.mark.parametrize(
    ("mode", "name", "expected"),
    [
        ("RGB", "x.png", RED),
        ("RGB", "x.webp", RED),
        ("CMYK", "x.jpg", RED),
        ("CMYK", "x.tif", RED),
        ("P", "x.gif", RED),
        ("P", "x.png", RED),
        ("YCbCr", "x.tif", RED),
        ("RGBA", "x.png", RED),
        # .299 R + .587 G + .114 B = 85.56
        ("L", "x.png", (86, 86, 86)),
        ("LA", "x.png", (86, 86, 86)),
        ("F", "x.tif", (86, 86, 86)),
        ("I", "x.tif", (86, 86, 86)),
    ],
)
def test_every_mode_is_read(tmp_path, mode, name, expected):
    photo = saved(tmp_path, Image.new("RGB", (31, 17), RED).convert(mode), name)
    assert photo.size == (17, 31)
    assert photo.network_image.shape == (8, 8, 3) and photo.network_image.dtype == np.uint8
    assert photo.picture.shape == (17, 31, 3)
    np.testing.assert_allclose(photo.network_image, np.broadcast_to(expected, (8, 8, 3)), atol=6)


def test_one_bit_and_sixteen_bit_images(tmp_path):
    assert (saved(tmp_path, Image.new("1", (9, 9), 1), "one.png").network_image == 255).all()
    deep = Image.fromarray(np.full((9, 9), 32896, np.uint16))
    for name in ("deep.png", "deep.tif"):
        assert (saved(tmp_path, deep, name).network_image == 128).all(), "32896 / 257 = 128"


def test_transparent_pixels_show_the_mean_colour(tmp_path):
    pixels = np.zeros((8, 8, 4), np.uint8)
    pixels[:, :4] = (255, 0, 0, 255)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    photo = photos.read_photo(tmp_path / "x.png", "x", 8, background=(100.2, 110, 120))
    np.testing.assert_array_equal(photo.network_image[0, 0], (255, 0, 0))
    np.testing.assert_array_equal(photo.network_image[0, 7], (100, 110, 120))
    palette = Image.fromarray(np.zeros((8, 8), np.uint8), mode=None).convert("P")
    palette.save(tmp_path / "y.png", transparency=0)
    photo = photos.read_photo(tmp_path / "y.png", "y", 8, background=(100, 110, 120))
    np.testing.assert_array_equal(photo.network_image[0, 0], (100, 110, 120))


def test_rotation_of_the_camera_is_undone(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: turn by 90 degrees clockwise to view
    photo = saved(tmp_path, half_red(40, 60), "x.jpg", exif=exif, quality=95)
    assert photo.size == (60, 40)
    np.testing.assert_allclose(photo.network_image[0, 4], (255, 0, 0), atol=12, err_msg="left has become top")
    np.testing.assert_allclose(photo.network_image[7, 4], (0, 0, 0), atol=12)


def test_extreme_sizes_are_read(tmp_path):
    assert saved(tmp_path, Image.new("RGB", (1, 1), RED), "dot.png").network_image.shape == (8, 8, 3)
    long = saved(tmp_path, Image.new("RGB", (3000, 2), RED), "long.png")
    assert long.size == (2, 3000) and long.picture.shape[1] == photos.PICTURE_SIDE and long.picture.shape[0] >= 1


def test_mask_is_resized_back_with_height_and_width_in_order():
    mask = np.zeros((8, 8), np.float32)
    mask[:4] = 1
    resized = photos.resize_mask(mask, (20, 40))
    assert resized.shape == (20, 40) and resized.min() == 0 and resized.max() == 1
    np.testing.assert_array_equal(resized[:8], 1)
    np.testing.assert_array_equal(resized[12:], 0)


def test_real_photos_are_explained(tmp_path, shared_data):
    files = sorted((shared_data / "photos").glob("*.jpg"))[::6]
    if not files:
        pytest.skip(f"no photos in {shared_data / 'photos'}")
    index = explaining.explain_folder(PREDICTOR, CONFIG, images=files, output_dir=tmp_path, batch_size=4)
    assert not index["failed"] and len(index["photos"]) == len(files)
    for file, entry in zip(files, index["photos"], strict=True):
        width, height = size_of(file)
        masks = arrays_of(tmp_path / entry["arrays"])["masks"]
        assert masks.shape == (len(entry["explained"]), height, width)
        assert masks.min() >= 0 and masks.max() <= 1
