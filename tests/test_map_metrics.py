"""Every metric of saliency maps in the registry keeps the contract; bad input gets one clear message."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selfexplain_jax.metrics import add
from selfexplain_jax.metrics.explained import (
    SAYING,
    Explained,
    counted_with_truth,
    explained,
    extremes,
    min_max,
    pad_boxes,
)
from selfexplain_jax.metrics.map_metrics import MAP_METRICS, finish, measure
from selfexplain_jax.types import Predictor, UserError

SIZE, CLASSES = 12, 3
random = np.random.default_rng(0)
WEIGHTS = jnp.asarray(random.normal(size=(SIZE, SIZE, 3, CLASSES)) / SIZE, jnp.float32)
PREDICTOR = Predictor(
    scores=functools.partial(jnp.einsum, "hwcn,bhwc->bn", WEIGHTS),
    probabilities=jax.nn.softmax,
    class_names=("cat", "dog", "cow"),
    image_size=SIZE,
)
# The third image is padding. Class 0 is in images 0 and 1, class 2 in image 1; image 0's second map is of class 1.
LABEL = np.array([[1, 0, 0], [1, 0, 1], [1, 0, 0]], np.float32)
CLASS_IDS = np.array([[0, 1], [0, 2], [0, 1]])
MASK = np.zeros((3, SIZE, SIZE), np.uint8)
MASK[:2, 2:6, 3:8] = 1
MASK[1, 7:11, 1:5] = 3
MASK[0, 0] = 255
BATCH = {
    "image": random.normal(size=(3, SIZE, SIZE, 3)).astype(np.float32),
    "label": LABEL,
    "mask": MASK,
    "valid": np.array([1, 1, 0], np.float32),
    "index": np.array([17, 18, -1]),
}
SALIENCY = random.normal(size=(3, 2, SIZE, SIZE)).astype(np.float32)
CORNERS = np.array([[3, 2, 8, 6], [1, 7, 5, 11], [0, 0, 2, 2]], np.float32)
BOXES = pad_boxes(
    [
        (CORNERS[[0, 2]], np.array([0, 0]), np.array([False, True])),
        (CORNERS[:2], np.array([0, 2]), np.array([False, False])),
        (CORNERS[:0], np.zeros(0, int), np.zeros(0, bool)),
    ]
)

# Metrics that compare the images of a batch, and the numbers that have no meaning in this one: all that the first image
# shows is in the second.
AMONG_IMAGES = {"swap": ("swap_pixel_rate", "swap_pixel_rate_ground_truth")}
PHOTO_SIZES = np.array([[24, 36], [12, 12], [1, 1]])


def seen(saliency=SALIENCY, **options) -> Explained:
    options = {"scaling": "min_max", "boxes": BOXES, "photo_sizes": PHOTO_SIZES} | options
    return explained(PREDICTOR, BATCH, CLASS_IDS, saliency, **options)


def row_alone(row: int) -> Explained:
    """One row of the batch, the others padding that holds something else; of the same shape, so quick to run."""
    alone, rows = (np.arange(3) == row), np.where(np.arange(3) == row, row, 2)
    saliency = np.where(alone[:, None, None, None], SALIENCY, np.nan)
    batch = {name: array[rows] for name, array in BATCH.items()}
    boxes = type(BOXES)(*(array[rows] for array in BOXES))
    return explained(
        PREDICTOR, batch, CLASS_IDS[rows], saliency, scaling="min_max", boxes=boxes, photo_sizes=PHOTO_SIZES[rows]
    )


@pytest.mark.parametrize("name", MAP_METRICS)
def test_metric_keeps_the_contract(name):
    rng = jax.random.key(0)
    whole = measure(name, PREDICTOR, seen(), rng=rng)
    assert all(np.isfinite(np.asarray(pair[0])).all() for pair in whole.values())
    # Whatever stands in padding changes nothing, and the same key gives the same sums.
    padded = SALIENCY.copy()
    padded[2] = np.nan
    again = measure(name, PREDICTOR, seen(padded), rng=rng)
    singles = add({}, measure(name, PREDICTOR, row_alone(0), rng=rng))
    singles = add(singles, measure(name, PREDICTOR, row_alone(1), rng=rng))
    for number, pair in whole.items():
        for place in range(2):
            np.testing.assert_allclose(again[number][place], pair[place], rtol=1e-5, atol=1e-6, err_msg=number)
            if name not in AMONG_IMAGES:
                np.testing.assert_allclose(singles[number][place], pair[place], rtol=1e-4, atol=1e-5, err_msg=number)
    numbers = finish(name, add({}, whole))
    assert {number for number, value in numbers.items() if value is None} == set(AMONG_IMAGES.get(name, ()))
    nothing = dataclasses.replace(
        seen(), counted=np.zeros((3, 2), bool), valid=np.zeros(3, np.float32), label=np.zeros_like(LABEL)
    )
    numbers = finish(name, add({}, measure(name, PREDICTOR, nothing, rng=rng)))
    numbers.pop("class_specific_table", None)
    assert all(value is None for value in numbers.values()), numbers


@pytest.mark.parametrize("name", [name for name, metric in MAP_METRICS.items() if metric.needs != ("model",)])
def test_ground_truth_as_a_map_is_perfect(name):
    perfect = (MASK[:, None] == CLASS_IDS[:, :, None, None] + 1).astype(np.float32)
    numbers = finish(name, add({}, measure(name, PREDICTOR, seen(perfect, scaling="as_is"))))
    zero = {"mean_absolute_error", "background_coverage"}
    for number, value in numbers.items():
        if number not in ("mask_area", "object_area"):
            np.testing.assert_allclose(value, float(number not in zero), rtol=1e-5, err_msg=number)


def test_swapped_masks_by_hand():
    """Class 0 is brightness in the upper half, class 1 in the lower: a mask of one half decides which is named."""
    size = 4
    halves = np.zeros((2, size, size), np.float32)
    halves[0, :2] = halves[1, 2:] = 1
    weights = np.repeat(halves[..., None], 3, axis=-1)  # [2, H, W, 3]
    predictor = Predictor(
        lambda images: jnp.einsum("chwk,bhwk->bc", weights, images), jax.nn.softmax, ("upper", "lower"), size
    )
    label = np.eye(2, dtype=np.float32)
    batch = {"image": np.ones((2, size, size, 3), np.float32), "label": label, "valid": np.ones(2, np.float32)}
    batch |= {"index": np.arange(2), "mask": np.ones((2, size, size), np.uint8) * np.array([[[1]], [[2]]], np.uint8)}
    found = explained(predictor, batch, np.array([[0], [1]]), halves[:, None], scaling="as_is")
    numbers = finish("swap", add({}, measure("swap", predictor, found)))
    # Every mask makes the other image its own class; the annotated masks cover all, so ties name the first class.
    assert (numbers["swap_owner_rate"], numbers["swap_pixel_rate"]) == (1.0, 0.0)
    assert numbers["swap_owner_rate_ground_truth"] == 0.5 and numbers["swap_owner_gap"] == 0.5
    # Of the first image's two classes one has a map: the other is not asked about, and only who lacks the first suits.
    several = batch | {"label": np.array([[1, 1], [0, 1]], np.float32)}
    alone = explained(predictor, several, np.array([[0], [1]]), halves[:, None], scaling="as_is", multilabel=True)
    rate, count = measure("swap", predictor, alone)["swap_owner_rate"]
    assert count == 1 and rate in (0, 1) and alone.multilabel and not found.multilabel
    without = dataclasses.replace(found, mask=None)
    assert set(finish("swap", add({}, measure("swap", predictor, without)))) == {"swap_owner_rate", "swap_pixel_rate"}


def test_unknown_scale_of_images_is_asked_for():
    photos = BATCH | {"image": np.full((3, SIZE, SIZE, 3), 200, np.uint8)}
    with pytest.raises(UserError, match="The images are uint8, and a predictor takes them normalised"):
        explained(PREDICTOR, photos, CLASS_IDS, SALIENCY, scaling="min_max")
    takes_photos = dataclasses.replace(PREDICTOR, image_range=(0, 255))
    assert explained(takes_photos, photos, CLASS_IDS, SALIENCY, scaling="min_max").images.dtype == np.float32


def test_pointing_in_photos_aims_at_the_photos_own_masks():
    maps = np.zeros((3, 2, SIZE, SIZE), np.float32)
    maps[..., 3, 4] = 1
    photo_masks = [np.zeros((24, 36), np.uint8), MASK[1], np.zeros((1, 1), np.uint8)]
    # The maximum lies near row 7, column 13: 15 px and more from the cat of the photo's mask, and on the square's cat.
    photo_masks[0][22:, 15:] = 1
    for masks, hits in ((None, 2), (photo_masks, 1)):
        sums = measure("pointing_game_photo", PREDICTOR, seen(maps, photo_masks=masks), regions="mask")
        assert sums["pointing_game_photo"][0][0] == hits and sums["pointing_game_photo"][1][0] == 2
    with pytest.raises(UserError, match="one mask for each of photo_sizes"):
        seen(maps, photo_masks=photo_masks[::-1])


def test_an_object_that_the_square_has_lost_still_counts_in_its_photo():
    """Nearest resizing drops objects of a pixel or two; the photo's own mask has them."""
    maps = np.zeros((3, 2, SIZE, SIZE), np.float32)
    maps[0, 0, 0, 0] = 1
    lost = MASK.copy()
    lost[0][lost[0] == 1] = 0
    small = [np.zeros((24, 36), np.uint8), MASK[1], np.zeros((1, 1), np.uint8)]
    small[0][0, 0] = 1
    batch = BATCH | {"mask": lost}
    options = {"scaling": "min_max", "photo_sizes": PHOTO_SIZES, "photo_masks": small}
    whole = explained(PREDICTOR, batch, CLASS_IDS, maps, **options)
    assert not counted_with_truth(whole, "mask")[0, 0] and counted_with_truth(whole, "photo")[0, 0]
    sums = measure("pointing_game_photo", PREDICTOR, whole, regions="mask")
    assert sums["pointing_game_photo"][1][0] == 2 and sums["pointing_game_photo"][0][0] >= 1
    absent = dataclasses.replace(whole, photo_masks=(np.zeros((24, 36), np.uint8), *small[1:]))
    with pytest.raises(UserError, match=r"no pixel of the class of 1 counted maps, first \(image, class\) \[\(17, 0"):
        measure("pointing_game_photo", PREDICTOR, absent, regions="mask")


def test_the_model_is_asked_about_maps_that_count_and_no_others():
    asked = []

    def scores(images):
        jax.debug.callback(lambda images: asked.append(len(images)), images)
        return PREDICTOR.scores(images)

    one = np.array([[True, False], [False, False], [False, False]])
    few, many = (
        measure("average_drop", dataclasses.replace(PREDICTOR, scores=scores), seen(**counted), rng=None)
        for counted in ({"counted": one}, {"counted": np.array([[True, True], [True, True], [False, False]])})
    )
    jax.effects_barrier()
    assert few["average_drop"][1] == 1 and many["average_drop"][1] == 4
    # Three maps go through at once: one call of them for one map, two for four.
    first, rest = asked[: len(asked) // 3], asked[len(asked) // 3 :]
    assert sum(rest) == 2 * sum(first) > 0


def test_pointing_is_averaged_over_classes_and_counts_present_ones():
    maps = np.zeros((3, 2, SIZE, SIZE), np.float32)
    maps[0, 0, 3, 4] = maps[1, 0, 11, 11] = maps[1, 1, 8, 2] = 1
    sums = measure("pointing_game", PREDICTOR, seen(maps))
    np.testing.assert_array_equal(sums["pointing_game_strict"][0], [1, 0, 1])
    np.testing.assert_array_equal(sums["pointing_game_strict"][1], [2, 0, 1])
    # Image 0 shows one class, so its map is not difficult.
    np.testing.assert_array_equal(sums["pointing_game_difficult"][1], [1, 0, 1])
    assert finish("pointing_game", sums)["pointing_game_strict"] == 0.75


def test_a_class_whose_boxes_are_all_difficult_is_not_counted():
    ignored = BOXES._replace(ignored=BOXES.ignored | (BOXES.class_ids == 2))
    sums = measure("pointing_game_boxes", PREDICTOR, seen(boxes=ignored))
    np.testing.assert_array_equal(sums["pointing_game_boxes"][1], [2, 0, 0])
    assert measure("box_accuracy", PREDICTOR, seen(boxes=ignored))["max_box_accuracy"][1] == 2
    # The region is that of all boxes, the difficult one too.
    maps = np.zeros((3, 2, SIZE, SIZE), np.float32)
    maps[:, :, 0, 0] = 1
    hits = measure("pointing_game_boxes", PREDICTOR, seen(maps))["pointing_game_strict_boxes"][0]
    np.testing.assert_array_equal(hits, [1, 0, 0])


@pytest.mark.parametrize("regions", ["boxes", "mask"])
def test_pointing_in_photos_looks_at_their_own_pixels(regions):
    # Image 0 is a photo of 24 x 36, its object rows 4 to 11 and columns 9 to 23; image 1's photo has its own size.
    maps = np.zeros((3, 2, SIZE, SIZE), np.float32)
    maps[0, 0, 11, 0] = maps[1, 0, 3, 4] = maps[1, 1, 0, 11] = 1
    sums = measure("pointing_game_photo", PREDICTOR, seen(maps, boxes=clear_boxes()), regions=regions)
    # From row 22 or 23 and column 0 to 2 it is more than 15 pixels to the object; all else is near.
    np.testing.assert_array_equal(sums["pointing_game_photo"], [[1, 0, 1], [2, 0, 1]])
    np.testing.assert_array_equal(sums["pointing_game_photo_difficult"], [[1, 0, 1], [1, 0, 1]])
    with pytest.raises(UserError, match="needs photo_sizes"):
        measure("pointing_game_photo", PREDICTOR, seen(photo_sizes=None))
    with pytest.raises(UserError, match="photo_sizes has shape"):
        seen(photo_sizes=np.ones(3))


def clear_boxes():
    """Those of the objects, without the one that is marked as difficult."""
    return BOXES._replace(class_ids=np.where(BOXES.ignored, -1, BOXES.class_ids))


def test_counted_maps_can_be_chosen():
    counted = np.array([[True, True], [False, False], [True, True]])
    sums = measure("average_drop", PREDICTOR, seen(counted=counted))
    assert sums["average_drop"][1] == 2  # padding never counts


def test_options_are_handed_on_and_unknown_ones_refused():
    curve = measure("deletion_insertion", PREDICTOR, seen(), step_pixels=72)["deletion_curve"][0]
    assert curve.shape == (3,)
    with pytest.raises(UserError, match="'road' has no option 'percents'; it has: percentages, chunk_size"):
        measure("road", PREDICTOR, seen(), percents=(10,))
    for name, option, message in (
        ("deletion_insertion", {"step_pixels": 0}, "step_pixels = 0 of a metric must be at least 1"),
        ("average_drop", {"chunk_size": 0}, "chunk_size = 0 of a metric"),
        ("road", {"percentages": (10, 100)}, r"less than 100 percent of the pixels; got \(10, 100\)"),
    ):
        with pytest.raises(UserError, match=message):
            measure(name, PREDICTOR, seen(), rng=jax.random.key(0), **option)
    with pytest.raises(UserError, match="Unknown metric of saliency maps 'rod'; there are segmentation"):
        measure("rod", PREDICTOR, seen())
    with pytest.raises(UserError, match="Unknown metric"):
        finish("rod", {})


def test_scaling():
    maps = jnp.asarray([[[1.0, 3.0], [2.0, 1.0]], [[5.0, 5.0], [5.0, 5.0]]])
    np.testing.assert_allclose(min_max(maps), [[[0, 1], [0.5, 0]], [[0, 0], [0, 0]]])
    # Division alone can leave the largest value at 1 - 6e-8.
    noise = np.random.default_rng(0).normal(size=(200, 5, 5)).astype(np.float32)
    assert (np.asarray(min_max(noise)).max(axis=(1, 2)) == 1).all()
    assert np.isnan(min_max(maps.at[0, 0, 0].set(jnp.nan))[0]).any()
    unit = seen(np.clip(SALIENCY, 0, 1), scaling="as_is")
    np.testing.assert_array_equal(unit.masks[:2], np.clip(SALIENCY, 0, 1)[:2])


def test_bad_input_is_named():
    bad = SALIENCY.copy()
    bad[1, 1, 3, 3] = np.nan
    with pytest.raises(UserError, match=r"1 images, \[18\] of the split, hold NaN or infinity.*'cow'"):
        seen(bad)
    with pytest.raises(UserError, match=r"leave \[0, 1\].*min_max"):
        seen(scaling="as_is")
    with pytest.raises(UserError, match="Unknown scaling 'max' of saliency maps; there are as_is, min_max"):
        seen(scaling="max")
    with pytest.raises(UserError, match="shape .* expected .*resize them"):
        seen(SALIENCY[..., :6])
    with pytest.raises(UserError, match=r"0\.\.2; image 18 of the split asks for 3"):
        explained(PREDICTOR, BATCH, np.array([[0, 1], [0, 3], [0, 1]]), SALIENCY)
    with pytest.raises(UserError, match="integer class ids"):
        explained(PREDICTOR, BATCH, CLASS_IDS.astype(float), SALIENCY)
    with pytest.raises(UserError, match="one per class of the predictor|one column per class"):
        explained(PREDICTOR, BATCH | {"label": LABEL[:, :2]}, CLASS_IDS, SALIENCY)
    with pytest.raises(UserError, match="the predictor's size"):
        explained(PREDICTOR, BATCH | {"image": BATCH["image"][:, :6]}, CLASS_IDS, SALIENCY)
    with pytest.raises(UserError, match="counted has shape"):
        seen(counted=np.ones(3))
    with pytest.raises(UserError, match="boxes of 2 images"):
        seen(boxes=pad_boxes([(CORNERS[:0], np.zeros(0), np.zeros(0))] * 2))


def test_missing_ground_truth_is_named_and_can_be_left_out():
    with pytest.raises(UserError, match="'box_accuracy' needs boxes, which this data set does not have"):
        measure("box_accuracy", PREDICTOR, seen(boxes=None))
    with pytest.raises(UserError, match="'segmentation' needs masks"):
        measure("segmentation", PREDICTOR, seen(has_masks=False))
    counted = np.ones((3, 2), bool)
    for name, what in (("pointing_game", "no pixel"), ("box_accuracy", "no box")):
        with pytest.raises(
            UserError, match=rf"{what} of the class of 1 counted maps, first \(image, class\) \[\(17, 1"
        ):
            measure(name, PREDICTOR, seen(counted=counted))
    whole = seen(counted=counted)
    np.testing.assert_array_equal(counted_with_truth(whole, "mask"), [[1, 0], [1, 1], [0, 0]])
    np.testing.assert_array_equal(counted_with_truth(whole, "boxes"), [[1, 0], [1, 1], [0, 0]])


def test_full_and_empty_maps_are_answers():
    for value in (0.0, 1.0):
        flat = seen(np.full_like(SALIENCY, value), scaling="as_is")
        for name in MAP_METRICS:
            sums = measure(name, PREDICTOR, flat, rng=jax.random.key(0))
            assert all(np.isfinite(np.asarray(pair[0])).all() for pair in sums.values()), name


NEEDS_MASKS = [name for name, metric in MAP_METRICS.items() if "mask" in metric.needs]


def test_ground_truth_that_is_all_of_an_image_is_said_once_for_all_metrics(caplog):
    mask = np.where(np.arange(3)[:, None, None] == 0, 1, MASK).astype(np.uint8)
    mask[0, 0] = 255
    mask[1] = np.where(MASK[1] == 0, 255, MASK[1])  # Two objects that leave nothing but void.
    with caplog.at_level("WARNING", logger="absl"):
        full = explained(PREDICTOR, BATCH | {"mask": mask}, CLASS_IDS, SALIENCY, scaling="min_max")
        sums = {name: measure(name, PREDICTOR, full) for name in NEEDS_MASKS}
    (said,) = caplog.messages
    assert said == (
        "3 maps, first (image, class) [(17, 0), (18, 0), (18, 2)] of the split, are of images whose objects leave no "
        "background pixel: nothing can lie beside them, and background_coverage and pixel_auc leave these images out."
    )
    assert sums["segmentation"]["pixel_auc"][1] == 0 and sums["segmentation"]["iou"][1] == 2
    assert sums["pointing_game"]["pointing_game_strict"][1].sum() == 3


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_empty_and_full_maps_are_said_where_they_count(caplog, value):
    saliency = np.full_like(SALIENCY, value)
    saliency[1, 0, 0, 0] = 0.25
    with caplog.at_level("WARNING", logger="absl"):
        found = seen(saliency, scaling="as_is")
        seen(saliency, scaling="as_is", warn=False)
    # Padding and the map of an absent class count nowhere.
    assert caplog.messages == [
        "2 maps, first (image, class) [(17, 0), (18, 2)] of the split, are of one value alone: they order no pixels, "
        "and count like any other."
    ]
    assert extremes(found)["flat"] == [(17, 0), (18, 2)]


def test_extremes_by_hand(caplog):
    with caplog.at_level("WARNING", logger="absl"):
        assert extremes(seen()) == dict.fromkeys(SAYING, []) == extremes(seen(boxes=None, has_masks=False))
    assert not caplog.messages
    corners = np.array([[0, 0, SIZE, SIZE / 2], [0, SIZE / 2 - 1, SIZE, SIZE], [3, 3, 4, 4]], np.float32)
    nothing = (CORNERS[:0], np.zeros(0, int), np.zeros(0, bool))
    # Two boxes of class 0 that cover image 17 together, and image 18 without a box of class 2.
    boxes = pad_boxes(
        [(corners[:2], np.zeros(2, int), np.zeros(2, bool)), (corners[2:], *np.zeros((2, 1), int)), nothing]
    )
    found = extremes(seen(boxes=boxes, counted=np.ones((3, 2), bool)))
    assert found == {
        "no_pixel": [(17, 1)],
        "no_box": [(17, 1), (18, 2)],
        "full_mask": [],
        "full_box": [(17, 0)],
        "flat": [],
    }


def test_a_box_without_area_is_refused():
    corners = np.array([[3, 2, 3, 6], [1, 7, 5, 11]], np.float32)
    nothing = (CORNERS[:0], np.zeros(0, int), np.zeros(0, bool))
    boxes = pad_boxes([nothing, (corners, np.array([0, 2]), np.zeros(2, bool)), nothing])
    with pytest.raises(UserError, match=r"1 boxes have no area; the first, of image 18 .* \[3.0, 2.0, 3.0, 6.0\]"):
        seen(boxes=boxes)
