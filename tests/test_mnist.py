import concurrent.futures
import json
import shutil
import sys
import types

import numpy as np
import pytest

from selfexplain_jax.config import base_config
from selfexplain_jax.data import build_dataset, mnist, prepare, records
from selfexplain_jax.data.mnist import INK, MNIST
from selfexplain_jax.data.pipeline import evaluation_batches
from selfexplain_jax.types import UserError

TRAIN_COUNTS = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
TEST_COUNTS = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]


@pytest.fixture(scope="module")
def tfds_dir(shared_data):
    folder = shared_data / "tfds"
    if not (folder / "mnist" / "3.0.1").is_dir():
        pytest.skip(f"no prepared MNIST in {folder}; run {records.prepare_command('mnist', str(folder))}")
    return str(folder)


@pytest.fixture
def damaged(tfds_dir, tmp_path):
    """A copy of MNIST's test split that a test may damage."""
    folder = tmp_path / "mnist" / "3.0.1"
    folder.mkdir(parents=True)
    for name in ("dataset_info.json", "features.json", "mnist-test.array_record-00000-of-00001"):
        shutil.copyfile(f"{tfds_dir}/mnist/3.0.1/{name}", folder / name)
    return folder


# ---- Real digits -----------------------------------------------------------------------------------------------------


def test_splits_and_class_counts(tfds_dir):
    labels = {split: mnist.load_digits(split, tfds_dir)[1] for split in mnist.SPLITS}
    assert {split: len(values) for split, values in labels.items()} == {
        "train": 55_000,
        "validation": 5_000,
        "test": 10_000,
    }
    everything = np.concatenate([labels["train"], labels["validation"]])
    np.testing.assert_array_equal(np.bincount(everything), TRAIN_COUNTS)
    np.testing.assert_array_equal(np.bincount(labels["test"]), TEST_COUNTS)


def test_pixels_have_the_known_mean_of_mnist(tfds_dir):
    # The usual normalisation constant of MNIST's 60,000 training images: mean 0.1307 of full intensity.
    pixels = [mnist.load_digits(split, tfds_dir)[0] for split in ("train", "validation")]
    assert sum(p.sum(dtype=np.int64) for p in pixels) / (60_000 * 784 * 255) == pytest.approx(0.1307, abs=1e-4)


def test_digits_are_the_ones_tfds_gives(tfds_dir):
    stored = records.Records("mnist", "test", tfds_dir)
    pixels, labels = mnist.load_digits("test", tfds_dir)
    for index in (0, 1234, 9999):
        np.testing.assert_array_equal(pixels[index], stored[index]["image"][:, :, 0])
        assert labels[index] == stored[index]["label"]
    # Validation is the end of MNIST's own train split.
    last = records.Records("mnist", "train", tfds_dir)[59_999]["image"][:, :, 0]
    np.testing.assert_array_equal(mnist.load_digits("validation", tfds_dir)[0][-1], last)


def test_digits_cannot_be_overwritten(tfds_dir):
    pixels, _ = mnist.load_digits("test", tfds_dir)
    with pytest.raises(ValueError, match="read-only"):
        pixels[0] = 0


# ---- Plain -----------------------------------------------------------------------------------------------------------


def test_plain_example(tfds_dir):
    source = MNIST(28, 0, tfds_dir).source("test")
    pixels, labels = mnist.load_digits("test", tfds_dir)
    example = source[5]
    assert example["image"].dtype == np.uint8 and example["image"].shape == (28, 28, 3)
    for channel in range(3):
        np.testing.assert_array_equal(example["image"][:, :, channel], pixels[5])
    np.testing.assert_array_equal(example["label"], np.eye(10, dtype=np.float32)[labels[5]])
    np.testing.assert_array_equal(example["mask"], np.where(pixels[5] >= 128, labels[5] + 1, 0))
    assert example["id"] == "test_00005"
    with pytest.raises(IndexError, match="10000"):
        source[10_000]


def test_plain_without_masks(tfds_dir):
    dataset = MNIST(28, 0, tfds_dir, ink_masks=False)
    assert not dataset.info.has_masks and "mask" not in dataset.source("test")[0]


def test_enlarge_digit_pads_and_scales_by_whole_factors():
    digit = np.full((28, 28), 200, np.uint8)
    for size, inside in ((28, 28), (33, 28), (64, 56), (84, 84)):
        enlarged = mnist.enlarge_digit(digit, size)
        assert enlarged.shape == (size, size)
        assert int((enlarged == 200).sum()) == inside**2 and int((enlarged == 0).sum()) == size**2 - inside**2
    assert mnist.enlarge_digit(digit, 33)[2, 2] == 200 and mnist.enlarge_digit(digit, 33)[1, 1] == 0


def test_plain_runs_through_the_pipeline(tfds_dir):
    config = base_config()
    config.data.update({"name": "mnist", "image_size": 32, "data_dir": tfds_dir, "std": (127.5, 127.5, 127.5)})
    batch = next(iter(evaluation_batches(build_dataset(config), "test", config, batch_size=4)))
    np.testing.assert_array_equal(batch["image"][:, 0, 0], -1)
    np.testing.assert_array_equal(batch["label"].argmax(axis=-1), mnist.load_digits("test", tfds_dir)[1][:4])


# ---- Canvas ----------------------------------------------------------------------------------------------------------


def canvas(tfds_dir, seed=0, image_size=64, **options):
    return MNIST(image_size, seed, tfds_dir, canvas=True, **options)


@pytest.mark.parametrize("options", [{}, {"max_objects": 3}, {"min_objects": 6, "max_objects": 6}])
def test_canvas_examples_hold_the_contract(tfds_dir, options):
    dataset = canvas(tfds_dir, **options)
    source = dataset.source("test")
    _, labels = mnist.load_digits("test", tfds_dir)
    for index in range(60):
        example = source[index]
        assert example["image"].shape == (64, 64, 3) and example["image"].dtype == np.uint8
        assert example["mask"].shape == (64, 64) and example["mask"].dtype == np.uint8
        assert example["label"][labels[index]] == 1, "the first digit is the real digit of this index"
        # What the label says is there is in the mask, and nothing else.
        np.testing.assert_array_equal(np.flatnonzero(example["label"]) + 1, np.unique(example["mask"])[1:])
    assert dataset.info.multilabel == ("max_objects" in options)


def test_canvas_is_fixed_by_seed_split_and_index(tfds_dir):
    source, again = (canvas(tfds_dir, max_objects=3).source("test") for _ in range(2))
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        threaded = list(pool.map(again.__getitem__, range(40)))
    for index, example in enumerate(threaded):
        for key in ("image", "label", "mask"):
            np.testing.assert_array_equal(source[index][key], example[key])
    other_seed, other_split = canvas(tfds_dir, seed=1).source("test"), canvas(tfds_dir).source("train")
    first = canvas(tfds_dir).source("test")[0]
    assert (other_seed[0]["image"] != first["image"]).any() and (other_split[0]["image"] != first["image"]).any()
    assert (source[0]["image"] != source[1]["image"]).any()


def test_canvas_mask_is_the_resized_digit_at_half_intensity(tfds_dir):
    # Without noise, the ink on the mask is at least half the digit's colour: compare the mask with the digit's crop.
    pixels, labels = mnist.load_digits("test", tfds_dir)
    source = canvas(tfds_dir, noise=0.0, digit_size=(0.5, 0.5)).source("test")
    for index in range(30):
        mask = source[index]["mask"]
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        found = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        digit = mnist.resize_longer_side(mnist.crop_to_ink(pixels[index]), 32)
        expected = np.where(digit >= INK, labels[index] + 1, 0)
        keep_rows, keep_columns = np.flatnonzero(expected.any(axis=1)), np.flatnonzero(expected.any(axis=0))
        expected = expected[keep_rows[0] : keep_rows[-1] + 1, keep_columns[0] : keep_columns[-1] + 1]
        np.testing.assert_array_equal(found, expected)


def test_canvas_pixels_off_the_digit_are_background_and_full_ink_is_one_color(tfds_dir):
    class Recolored(mnist.MNISTSource):
        """The same canvas, every real digit replaced by a solid block."""

    source = canvas(tfds_dir, noise=0.0, digit_size=(0.4, 0.4)).source("test")
    solid = np.full((10_000, 28, 28), 255, np.uint8)
    block = Recolored(source.dataset, "test", solid, source.labels)
    for index in range(20):
        example = block[index]
        inside = example["mask"] > 0
        assert int(inside.sum()) == 26 * 26  # round(0.4 * 64) = 26
        assert len(np.unique(example["image"][inside], axis=0)) == 1
        # The ink stands out against every background pixel.
        luma = example["image"] @ np.array((0.299, 0.587, 0.114)) / 255
        assert np.abs(luma[~inside][:, None] - luma[inside][:1]).min() > mnist.INK_CONTRAST - 0.03


def test_canvas_counts_and_sizes_spread_over_their_range(tfds_dir):
    source = canvas(tfds_dir, min_objects=2, max_objects=3, noise=0.0).source("test")
    present = [int(source[index]["label"].sum()) for index in range(100)]
    assert {2, 3} <= set(present) <= {1, 2, 3}  # 1: the same digit twice.
    heights = [np.ptp(np.flatnonzero(canvas_mask(tfds_dir, index).any(axis=1))) + 1 for index in range(60)]
    assert 15 <= min(heights) < 22 and 34 < max(heights) <= 39


def canvas_mask(tfds_dir, index):
    return canvas(tfds_dir).source("test")[index]["mask"]


def test_crowded_canvas_shows_every_digit_without_overlap(tfds_dir):
    # Digits as large as half the picture, six of them: only the grid can hold them.
    source = canvas(tfds_dir, 0, 32, min_objects=6, max_objects=6, digit_size=(0.33, 0.5)).source("test")
    for index in range(20):
        rng = np.random.default_rng(index)
        layout = source._layout(rng, list(range(index, index + 6)))
        covered = np.zeros((32, 32), int)
        for alpha, top, left, _ in layout:
            covered[top : top + alpha.shape[0], left : left + alpha.shape[1]] += 1
            assert top + alpha.shape[0] <= 32 and left + alpha.shape[1] <= 32
        assert len(layout) == 6 and covered.max() == 1


def test_place_boxes():
    rng = np.random.default_rng(0)
    assert mnist.place_boxes(rng, [(8, 8)], 8) == [(0, 0)]
    assert mnist.place_boxes(rng, [(8, 8), (1, 1)], 8) is None
    (top, left), (other_top, other_left) = mnist.place_boxes(rng, [(8, 4), (8, 4)], 8, tries=1000)
    assert (top, other_top) == (0, 0) and {left, other_left} == {0, 4}


def test_crop_and_resize_known_answers():
    digit = np.zeros((28, 28), np.uint8)
    digit[4:24, 10:15] = 255
    digit[2, 2] = INK - 1  # Too faint to count as ink.
    crop = mnist.crop_to_ink(digit)
    assert crop.shape == (20, 5) and crop.min() == 255
    assert mnist.resize_longer_side(crop, 40).shape == (40, 10)
    assert mnist.resize_longer_side(crop, 10).shape == (10, 2)
    assert mnist.crop_to_ink(np.full((28, 28), 9, np.uint8)).shape == (28, 28)


# ---- Bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 20}, "image_size=20 must be 28 to 512"),
        ({"image_size": 28, "canvas": True}, "image_size=28 must be 32 to 512"),
        ({"seed": -1}, "seed=-1"),
        ({"max_objects": 2}, "max_objects=2 needs canvas=True"),
        ({"canvas": True, "image_size": 64, "max_objects": 7}, "max_objects=7 must be 1 to 6"),
        ({"canvas": True, "image_size": 64, "min_objects": 2}, "min_objects=2 must be 1 to max_objects=1"),
        ({"canvas": True, "image_size": 64, "max_objects": 2, "digit_size": (0.6, 0.7)}, "smallest <= 0.50 for 2"),
        ({"digit_size": (0.5, 0.4)}, "digit_size"),
        ({"digit_size": 0.5}, "digit_size=0.5 must be two fractions"),
        ({"noise": 100}, "noise=100"),
        ({"noise": "much"}, "noise='much'"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(UserError, match=message):
        MNIST(**options)


def test_unknown_split():
    with pytest.raises(UserError, match="no split 'val'; it has train, validation, test"):
        MNIST().source("val")


def test_missing_dataset_names_folder_and_command(tmp_path, monkeypatch):
    command = f"python -m selfexplain_jax.data.prepare --dataset=mnist --data_dir={tmp_path}"
    with pytest.raises(UserError, match="not prepared") as error:
        MNIST(data_dir=str(tmp_path)).source("test")
    assert str(tmp_path / "mnist" / "3.0.1") in str(error.value) and command in str(error.value)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    with pytest.raises(UserError, match="not prepared") as error:
        MNIST().source("test")
    assert command in str(error.value)


def test_data_dir_falls_back_to_the_environment_then_home(monkeypatch, tmp_path):
    monkeypatch.setenv("TFDS_DATA_DIR", "/from/environment")
    assert records.records_folder("/given") == "/given"
    assert records.records_folder("") == "/from/environment"
    monkeypatch.delenv("TFDS_DATA_DIR")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert records.records_folder("") == str(tmp_path / "tensorflow_datasets")


def test_interrupted_preparation_is_not_read(damaged):
    (damaged / "dataset_info.json").unlink()  # Written last.
    with pytest.raises(UserError, match=r"(damaged|not prepared).*selfexplain_jax.data.prepare"):
        MNIST(data_dir=str(damaged.parents[1])).source("test")
    damaged.rename(damaged.parent / "incomplete.X1Y2Z3_3.0.1")
    with pytest.raises(UserError, match="not prepared"):
        MNIST(data_dir=str(damaged.parents[1])).source("test")


@pytest.mark.parametrize("damage", ["truncated", "overwritten", "deleted"])
def test_damaged_records_are_named(damaged, damage):
    file = damaged / "mnist-test.array_record-00000-of-00001"
    content = file.read_bytes()
    if damage == "truncated":
        file.write_bytes(content[: len(content) // 2])
    elif damage == "overwritten":
        file.write_bytes(content[:1_000_000] + b"\xa5" * 3000 + content[1_003_000:])
    else:
        file.unlink()
    with pytest.raises(UserError, match="(?s)'mnist', split 'test'.*damaged or missing.*data.prepare") as error:
        MNIST(data_dir=str(damaged.parents[1])).source("test")
    assert str(damaged) in str(error.value)


def test_damaged_description_is_named(damaged):
    (damaged / "dataset_info.json").write_text('{"name": "mnist", ')
    with pytest.raises(UserError, match="dataset_info.json"):
        MNIST(data_dir=str(damaged.parents[1])).source("test")


def test_another_file_format_is_refused(damaged):
    info = json.loads((damaged / "dataset_info.json").read_text())
    (damaged / "dataset_info.json").write_text(json.dumps({**info, "fileFormat": "tfrecord"}))
    with pytest.raises(UserError, match="(?s)not in array_record files.*data.prepare"):
        MNIST(data_dir=str(damaged.parents[1])).source("test")


# ---- Preparing -------------------------------------------------------------------------------------------------------


def test_prepare_without_tensorflow_says_what_to_install(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    assert prepare.main(["--dataset=mnist", f"--data_dir={tmp_path}"]) == 1
    message = capsys.readouterr().err
    assert "pip install tensorflow-cpu" in message and "data.prepare" in message
    assert not list(tmp_path.rglob("*.array_record*"))


def test_prepare_leaves_a_prepared_dataset_alone(tfds_dir, capsys):
    assert prepare.main(["--dataset=mnist", f"--data_dir={tfds_dir}"]) == 0
    assert "mnist is ready in" in capsys.readouterr().out


def test_prepare_refuses_unknown_names(capsys):
    assert prepare.main(["--dataset=imagenet"]) == 1
    message = capsys.readouterr().err
    assert "There are: " in message and "mnist" in message


def test_a_package_that_tfds_misses_is_not_taken_for_a_damaged_dataset(monkeypatch, tmp_path):
    # As its lazy import leaves it where something that it needs is not installed.
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", types.ModuleType("tensorflow_datasets"))
    with pytest.raises(UserError, match="cannot be imported whole .*no attribute 'builder'.*pip install") as raised:
        records.Records("mnist", "train", str(tmp_path))
    assert "Delete" not in str(raised.value)
