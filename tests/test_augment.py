"""Crops, fits, colours and mixtures with answers worked out by hand; image and mask move alike."""

import numpy as np
import pytest

from selfexplain_jax.config import base_config
from selfexplain_jax.data import augment, balance
from selfexplain_jax.data.pipeline import evaluation_batches, train_iterator
from selfexplain_jax.types import VOID, Boxes, DatasetInfo, UserError

SIZE = 16


def config_of(**fields):
    config = base_config()
    config.data.update({"image_size": SIZE, "mean": (0.0,) * 3, "std": (1.0,) * 3, **fields})
    return config


def info(own_sizes=True):
    return DatasetInfo("photos", 2, ("a", "b"), True, SIZE, True, own_sizes)


def blocks(height, width):
    """A photo whose red says what its mask is: 40 per class number, in large blocks."""
    mask = (np.arange(height)[:, None] * 3 // height + np.arange(width)[None] * 3 // width).astype(np.uint8) % 3
    return {"image": np.stack([mask * 40] * 3, axis=-1), "mask": mask, "label": np.ones(2, np.float32), "id": "x"}


class Photos:
    """Six photos of different sizes, the last of another class."""

    info = info()

    def source(self, split):
        return self

    def __len__(self):
        return 6

    def __getitem__(self, index):
        return {**blocks(30 + index, 50 - 3 * index), "label": np.float32([index < 5, index == 5]), "id": str(index)}


# ---- Photo -> square -------------------------------------------------------------------------------------------------


def test_windows_by_hand():
    assert augment.fit_window(100, 200, "squeeze", 0.5) == (0, 0, 200, 100)
    assert augment.fit_window(100, 200, "center", 1.0) == (50, 0, 150, 100)
    assert augment.fit_window(100, 200, "center", 0.5) == (75, 25, 125, 75)


@pytest.mark.parametrize("fit", ["squeeze", "center"])
@pytest.mark.parametrize("shape", [(60, 90), (90, 60), (5, 9), (16, 16)])
def test_fitted_image_and_mask_agree(fit, shape):
    fitted = augment.fitting(config_of(fit=fit, center_fraction=0.5))(blocks(*shape))
    assert fitted["image"].shape == (SIZE, SIZE, 3) and fitted["mask"].shape == (SIZE, SIZE)
    error = np.abs(fitted["image"][..., 0].astype(int) - 40 * fitted["mask"])
    # Off at the borders of blocks only.
    assert error.mean() < 12 and (min(shape) <= 2 * SIZE or np.median(error) == 0)


def test_squeeze_of_the_right_size_is_the_photo_itself():
    example = blocks(SIZE, SIZE)
    assert augment.fitting(config_of())(example) is example


def test_center_takes_the_middle():
    mask = np.zeros((20, 40), np.uint8)
    mask[5:15, 15:25] = 1
    example = {"image": np.stack([mask * 200] * 3, axis=-1), "mask": mask}
    fitted = augment.fitting(config_of(fit="center", center_fraction=0.5))(example)
    np.testing.assert_array_equal(fitted["mask"], 1)
    assert (fitted["image"][1:-1, 1:-1] > 195).all()


def test_boxes_follow_the_fit():
    boxes = Boxes(
        np.float32([[0, 0, 1, 1], [0.5, 0.5, 0.75, 1]]), np.array([0, 1]), np.array([False, False]), (100, 200)
    )
    np.testing.assert_allclose(augment.fit_boxes(boxes, config_of()), [[0, 0, 16, 16], [8, 8, 12, 16]])
    # Window (75, 25) to (125, 75): the second box, (100, 50) to (150, 100), keeps its upper left quarter.
    centered = augment.fit_boxes(boxes, config_of(fit="center", center_fraction=0.5))
    np.testing.assert_allclose(centered, [[0, 0, 16, 16], [8, 8, 16, 16]])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"fit": "crop"}, "fit='crop'"),
        ({"center_fraction": 0.0}, "center_fraction=0.0"),
        ({"crop_area": (0.5, 0.2)}, "crop_area"),
        ({"crop_area": (0.5, 1.5)}, "crop_area"),
        ({"crop_area": (0.5,)}, "crop_area"),
        ({"crop_area": (0.5, 1.0), "crop_aspect": (0.0, 1.0)}, "crop_aspect"),
        ({"color_jitter": (0.1, 0.1, 0.1, 0.6)}, "color_jitter"),
        ({"color_jitter": (-0.1, 0.1, 0.1, 0.1)}, "color_jitter"),
        ({"mixup": -1.0}, "mixup=-1.0"),
        ({"balance": 2.0}, "balance=2.0"),
    ],
)
def test_options_out_of_range(fields, message):
    with pytest.raises(UserError, match=message):
        train_iterator(Photos(), config_of(**fields))


# ---- Random crop -----------------------------------------------------------------------------------------------------


def test_random_windows_have_the_areas_and_shapes_asked_for():
    crop = augment.RandomCrop(SIZE, (0.25, 0.5), (0.5, 2.0))
    windows = np.array([crop.window(300, 400, np.random.default_rng(seed)) for seed in range(400)])
    widths, heights = windows[:, 2] - windows[:, 0], windows[:, 3] - windows[:, 1]
    areas = widths * heights / (300 * 400)
    assert 0.245 < areas.min() < 0.27 and 0.45 < areas.max() < 0.505
    aspects = widths / heights
    assert 0.49 < aspects.min() < 0.6 and 1.7 < aspects.max() < 2.02
    assert abs(np.log(aspects).mean()) < 0.1
    assert windows[:, :2].min() == 0 and (windows[:, 2] <= 400).all() and (windows[:, 3] <= 300).all()
    assert windows[:, 2].max() > 395 and windows[:, 3].max() > 295


def test_photo_that_no_window_fits_gives_its_middle():
    crop = augment.RandomCrop(SIZE, (1.0, 1.0), (0.75, 1.3333))
    left, top, right, bottom = crop.window(10, 100, np.random.default_rng(0))
    assert (top, bottom) == (0, 10) and right - left == 13 and left == (100 - 13) // 2
    assert crop.window(1, 1, np.random.default_rng(0)) == (0, 0, 1, 1)


@pytest.mark.parametrize("shape", [(60, 90), (8, 9), (1, 1)])
def test_cropped_image_and_mask_agree(shape):
    crop = augment.RandomCrop(SIZE, (0.3, 1.0), (0.75, 1.3333))
    for seed in range(20):
        cropped = crop(blocks(*shape), np.random.default_rng(seed))
        assert cropped["image"].shape == (SIZE, SIZE, 3) and cropped["mask"].shape == (SIZE, SIZE)
        error = np.abs(cropped["image"][..., 0].astype(int) - 40 * cropped["mask"])
        assert error.mean() < 12 and (min(shape) < SIZE or np.median(error) == 0)


# ---- Colour ----------------------------------------------------------------------------------------------------------


class Fixed:
    """Instead of a random generator: these draws."""

    def __init__(self, *draws):
        self.draws = draws

    def random(self, count):
        assert count == len(self.draws)
        return np.array(self.draws)


def changed(color, jitter, *draws, mean_luma=100.0):
    return jitter.matrix(mean_luma, Fixed(*draws)) @ np.array([*color, 1.0])


def test_each_colour_change_by_hand():
    jitter = augment.ColorJitter(0.5, 0.5, 1.0, 0.5)
    color, middle = (200.0, 100.0, 50.0), 0.5
    luma = 0.299 * 200 + 0.587 * 100 + 0.114 * 50
    np.testing.assert_allclose(changed(color, jitter, *[middle] * 4), color)
    np.testing.assert_allclose(changed(color, jitter, 0.0, middle, middle, middle), (100, 50, 25))
    # Contrast 1.5 about a mean luma of 100; saturation 0 leaves the luma.
    np.testing.assert_allclose(changed(color, jitter, middle, 1.0, middle, middle), (250, 100, 25))
    np.testing.assert_allclose(changed(color, jitter, middle, middle, 0.0, middle), [luma] * 3)
    # Half a turn of the hue mirrors the colour differences and keeps the luma; grey has no hue.
    turned = changed(color, jitter, middle, middle, middle, 1.0)
    assert turned @ (0.299, 0.587, 0.114) == pytest.approx(luma, abs=0.5) and turned[0] < turned[2]
    np.testing.assert_allclose(changed((80, 80, 80), jitter, middle, middle, 0.9, 0.9), (80, 80, 80), atol=0.2)
    # Brightness first: contrast is about the mean of the brighter image.
    np.testing.assert_allclose(changed((100, 100, 100), jitter, 1.0, 1.0, middle, middle), [150] * 3)


def test_colour_jitter_leaves_mask_and_original_alone():
    example = blocks(8, 8)
    before = example["image"].copy()
    result = augment.ColorJitter(0.4, 0.4, 0.4, 0.1)(
        {**example, "image": example["image"][:, ::-1]}, np.random.default_rng(0)
    )
    assert result["mask"] is example["mask"] and result["image"].dtype == np.uint8
    assert (result["image"] != before[:, ::-1]).any()
    np.testing.assert_array_equal(example["image"], before)


# ---- MixUp -----------------------------------------------------------------------------------------------------------


def test_mixup_mixes_image_and_label_by_one_share_and_voids_what_differs():
    def example(value, mask, label):
        return {"image": np.full((2, 2, 3), value, np.uint8), "mask": np.uint8(mask), "label": np.float32(label)}

    first, second = example(100, [[1, 1], [0, 0]], [1, 0]), example(200, [[1, 0], [2, 0]], [0, 1])
    mix = augment.MixUp([second], lambda other, rng: other, 0.4)
    mixed = mix(first, np.random.default_rng(3))
    share = mixed["label"][0]
    assert 0 < share < 1 and mixed["label"].sum() == pytest.approx(1)
    np.testing.assert_allclose(mixed["image"], 100 * share + 200 * (1 - share), atol=0.51)
    np.testing.assert_array_equal(mixed["mask"], [[1, VOID], [VOID, 0]])


def test_mixup_in_the_pipeline_repeats_itself_and_makes_soft_labels():
    config = config_of(mixup=0.5, crop_area=(0.3, 1.0))
    config.train.batch_size = 6
    batches = [next(train_iterator(Photos(), config)) for _ in range(2)]
    np.testing.assert_array_equal(batches[0]["image"], batches[1]["image"])
    np.testing.assert_allclose(batches[0]["label"].sum(axis=1), 1, atol=1e-6)
    iterator = train_iterator(Photos(), config)
    labels = np.concatenate([next(iterator)["label"] for _ in range(5)])
    assert ((labels > 0) & (labels < 1)).any()
    assert np.array_equal(
        next(iter(evaluation_batches(Photos(), "test", config, batch_size=6)))["label"].max(1), [1] * 6
    )


# ---- Rare classes ----------------------------------------------------------------------------------------------------


def test_sampling_weights_by_hand():
    one_each = np.eye(2)[[0, 0, 0, 1]]
    np.testing.assert_allclose(balance.sampling_weights(one_each, 1.0), [1 / 6, 1 / 6, 1 / 6, 1 / 2])
    np.testing.assert_allclose(balance.sampling_weights(one_each, 0.0), [1 / 4] * 4)
    # n = 2, 1 and one example of nothing: weights (1/2, (1/2 + 1)/2, 1) / 2.25.
    several = np.array([[1, 0], [1, 1], [0, 0]])
    np.testing.assert_allclose(balance.sampling_weights(several, 1.0), np.array([0.5, 0.75, 1]) / 2.25)


def test_positive_weights_by_hand():
    labels = np.array([[1, 0, 1, 0]] * 1 + [[0, 0, 1, 1]] * 99)
    np.testing.assert_allclose(balance.positive_weights(labels), [20, 1, 0.05, 0.05], rtol=1e-6)
    np.testing.assert_allclose(balance.positive_weights(labels, 1000.0), [99, 1, 0.001, 1 / 99], rtol=1e-6)
    with pytest.raises(UserError, match="one example or more"):
        balance.positive_weights(np.zeros((0, 3)))
    with pytest.raises(UserError, match="largest=0.5"):
        balance.positive_weights(labels, 0.5)


def test_balanced_stream_shows_the_rare_class_as_often_and_resumes():
    config = config_of(balance=1.0)
    config.train.batch_size = 50
    iterator = train_iterator(Photos(), config)
    labels = np.concatenate([next(iterator)["label"] for _ in range(8)])
    assert 0.4 < labels[:, 1].mean() < 0.6  # One of the six photos; 4 standard deviations.
    state = iterator.get_state()
    expected = next(iterator)
    again = train_iterator(Photos(), config)
    again.set_state(state)
    np.testing.assert_array_equal(next(again)["index"], expected["index"])
    shares = [train_iterator(Photos(), config, host=host, hosts=2) for host in (0, 1)]
    first = next(train_iterator(Photos(), config))["index"]
    np.testing.assert_array_equal(np.concatenate([next(share)["index"] for share in shares]), first)
