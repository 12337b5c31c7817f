"""Segmentation metrics: answers worked out by hand on 2 x 2 images, properties, and parity with scikit-learn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from selfexplain_jax.metrics import METRICS, add, class_sums, mask_sums, mean, segmentation, sum_and_count

# All at once: one compilation per shape instead of one per metric and shape.
measure_all = jax.jit(lambda mask, truth, weight: {name: fn(mask, truth, weight) for name, fn in METRICS.items()})
# One image, four pixels: the object is the first row; the mask is sure of one object pixel and spills a little.
TRUTH = jnp.asarray([[[1.0, 1.0], [0.0, 0.0]]])
MASK = jnp.asarray([[[0.9, 0.4], [0.3, 0.0]]])
ALL = jnp.ones((1, 2, 2))


def random_case(batch=5, size=7, seed=0):
    """Masks with ties (one decimal), truths with both kinds of pixel, some void."""
    random = np.random.default_rng(seed)
    mask = random.integers(0, 11, (batch, size, size)).astype(np.float32) / 10
    truth = random.integers(0, 2, (batch, size, size)).astype(np.float32)
    weight = (random.random((batch, size, size)) > 0.2).astype(np.float32)
    return mask, truth, weight


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("continuous_iou", (0.9 + 0.4) / (1 + 1 + 0.3)),
        ("iou_25", 2 / 3),  # pixels .9 .4 .3 of an object of two
        ("iou", 1 / 2),
        ("iou_75", 1 / 2),
        ("f1_25", 4 / 5),
        ("f1", 2 / 3),
        ("f1_75", 2 / 3),
        ("soft_precision", 1.3 / 1.6),
        ("soft_recall", 1.3 / 2),
        ("soft_f1", 2.6 / 3.6),
        ("soft_accuracy", (0.9 + 0.4 + 0.7 + 1) / 4),
        ("mean_absolute_error", (0.1 + 0.6 + 0.3) / 4),
        ("object_coverage", 1 - (0.1 + 0.6) / 2),
        ("background_coverage", 0.3 / 2),
        ("mask_area", 1.6 / 4),
        ("object_area", 1 / 2),
        ("pixel_auc", 1.0),
    ],
)
def test_known_answers(name, expected):
    value, defined = measure_all(MASK, TRUTH, ALL)[name]
    np.testing.assert_allclose(value, [expected], rtol=1e-6)
    assert defined.all()


def test_void_pixels_enter_no_sum():
    weight = jnp.asarray([[[1.0, 0.0], [1.0, 0.0]]])  # the pixels .9 (object) and .3 (background) remain
    expected = {
        "continuous_iou": 0.9 / 1.3,
        "iou_25": 1 / 2,
        "iou": 1.0,
        "soft_precision": 0.9 / 1.2,
        "soft_recall": 0.9,
        "soft_accuracy": 0.8,
        "mean_absolute_error": 0.2,
        "background_coverage": 0.3,
        "mask_area": 0.6,
        "object_area": 0.5,
        "pixel_auc": 1.0,
    }
    results = measure_all(MASK, TRUTH, weight)
    for name, answer in expected.items():
        np.testing.assert_allclose(results[name][0], [answer], rtol=1e-6, err_msg=name)


def test_pixel_auc_counts_ties_half():
    # Object pixels .5 .2, background .5 .1: pairs won 1 + .5 (tie) + 0 + 1 of 4.
    mask = jnp.asarray([[[0.5, 0.2], [0.5, 0.1]]])
    np.testing.assert_allclose(measure_all(mask, TRUTH, ALL)["pixel_auc"][0], [2.5 / 4], rtol=1e-6)


def test_agrees_with_scikit_learn():
    mask, truth, weight = random_case()
    results = measure_all(mask, truth, weight)
    auc, ious, f1s = (results[name][0] for name in ("pixel_auc", "iou", "f1_25"))
    for row in range(len(mask)):
        kept = weight[row] > 0
        m, g = mask[row][kept], truth[row][kept]
        np.testing.assert_allclose(auc[row], sklearn_metrics.roc_auc_score(g, m), rtol=1e-5)
        np.testing.assert_allclose(ious[row], sklearn_metrics.jaccard_score(g, m > 0.5), rtol=1e-6)
        np.testing.assert_allclose(f1s[row], sklearn_metrics.f1_score(g, m > 0.25), rtol=1e-6)


def test_every_metric_is_finite_and_one_image_at_a_time_gives_the_same():
    mask, truth, weight = random_case()
    batch, single = measure_all(mask, truth, weight), measure_all(mask[2:3], truth[2:3], weight[2:3])
    for name, (value, defined) in batch.items():
        assert value.shape == defined.shape == (5,) and np.isfinite(value).all() and defined.dtype == bool, name
        np.testing.assert_allclose(value[2:3], single[name][0], rtol=1e-6, err_msg=name)


def test_perfect_masks_are_perfect():
    _, truth, weight = random_case()
    results = measure_all(truth, truth, weight)
    for name in set(METRICS) - {"mean_absolute_error", "background_coverage", "mask_area", "object_area"}:
        np.testing.assert_allclose(results[name][0], np.ones(5), rtol=1e-6, err_msg=name)
    for name in ("mean_absolute_error", "background_coverage"):
        np.testing.assert_allclose(results[name][0], np.zeros(5))


def test_images_without_object_or_background_are_not_counted():
    truth = jnp.stack([jnp.zeros((2, 2)), jnp.ones((2, 2))])
    mask = jnp.full((2, 2, 2), 0.7)
    sums = mask_sums(mask, truth, jnp.ones((2, 2, 2)), jnp.ones(2))
    assert sums["iou"][1] == 1 and sums["iou"][0] == 1
    assert sums["background_coverage"][1] == 1
    np.testing.assert_allclose(sums["background_coverage"][0], 0.7, rtol=1e-6)
    assert sums["pixel_auc"][1] == 0 and mean(sums["pixel_auc"]) is None
    assert all(np.isfinite(value).all() for value, _ in sums.values())


def test_sums_do_not_see_padding_and_add_over_batches():
    mask, truth, weight = random_case()
    whole = mask_sums(mask, truth, weight, jnp.ones(5))
    valid = np.asarray([1, 1, 1, 0, 0], np.float32)
    padded = np.copy(mask)
    padded[3:] = np.nan  # whatever stands in padding rows
    first = mask_sums(padded, truth, weight, valid)
    second_valid = np.asarray([1, 1, 0, 0, 0], np.float32)
    second = mask_sums(np.roll(mask, -3, 0), np.roll(truth, -3, 0), np.roll(weight, -3, 0), second_valid)
    total = add(add({}, first), second)
    for name in whole:
        np.testing.assert_allclose(mean(total[name]), mean(whole[name]), rtol=1e-5, err_msg=name)
        assert total[name][1] == whole[name][1]


def test_a_nan_in_a_real_example_stays_a_nan():
    mask = MASK.at[0, 1, 1].set(jnp.nan)
    results = measure_all(mask, TRUTH, ALL)
    for name in ("continuous_iou", "soft_f1", "mean_absolute_error", "mask_area"):
        assert np.isnan(sum_and_count(*results[name], jnp.ones(1))[0]), name
        assert sum_and_count(*results[name], jnp.zeros(1)) == (0, 0), name


def test_curves_contain_the_single_thresholds():
    mask, truth, weight = random_case()
    ious, f1s = segmentation.threshold_curves(mask, truth, weight)
    assert ious.shape == f1s.shape == (5, 9)
    np.testing.assert_allclose(ious[:, 4], measure_all(mask, truth, weight)["iou"][0])
    np.testing.assert_allclose(f1s[:, 8], segmentation.f1(mask, truth, weight, 0.9)[0])


def test_controls():
    truth, all_pixels = jnp.concatenate([TRUTH, TRUTH]), jnp.ones((2, 2, 2))
    controls = segmentation.control_maps(truth)
    sums = {name: mask_sums(control, truth, all_pixels, jnp.ones(2)) for name, control in controls.items()}
    assert sorted(sums) == ["all_half", "all_one", "all_zero", "center_box", "ground_truth"]
    assert mean(sums["all_zero"]["iou"]) == 0 and mean(sums["all_one"]["iou"]) == 0.5
    assert mean(sums["all_half"]["iou"]) == 0 and mean(sums["all_half"]["iou_25"]) == 0.5
    assert mean(sums["all_half"]["pixel_auc"]) == 0.5
    assert mean(sums["ground_truth"]["continuous_iou"]) == 1
    box = segmentation.control_maps(jnp.zeros((3, 8, 8)))["center_box"]
    np.testing.assert_allclose(box.sum(axis=(1, 2)), [16, 16, 16], rtol=1e-5)
    assert np.unravel_index(int(box[0].argmax()), (8, 8)) == (4, 4)


def test_target_truth_is_the_union_of_present_classes():
    mask = jnp.asarray([[[1, 2], [3, 0]], [[255, 2], [3, 0]]], jnp.uint8)
    label = jnp.asarray([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
    expected = [[[1, 0], [1, 0]], [[0, 1], [0, 0]]]
    np.testing.assert_array_equal(segmentation.target_truth(mask, label), expected)
    np.testing.assert_array_equal(segmentation.pixel_weights(mask)[1], [[0, 1], [1, 1]])
    of_classes = segmentation.class_truth(mask, jnp.asarray([[2, 0], [1, 2]]))
    np.testing.assert_array_equal(of_classes[0], [[[0, 0], [1, 0]], [[1, 0], [0, 0]]])


def test_class_map_and_mean_iou():
    masks = jnp.asarray([[[[0.9, 0.6], [0.2, 0.4]], [[0.1, 0.8], [0.7, 0.5]]]])  # classes 2 and 0
    predicted = segmentation.class_map(masks, jnp.asarray([[2, 0]]))
    np.testing.assert_array_equal(predicted, [[[3, 1], [1, 0]]])
    mask = jnp.asarray([[[3, 3], [1, 255]]], jnp.uint8)
    confusion = segmentation.pixel_confusion(predicted, mask, jnp.ones(1), num_classes=3)
    assert confusion.sum() == 3
    # Class 0: 1 of union 2, class 2: 1 of union 2; the background and class 1 occur nowhere (the void is left out).
    assert segmentation.mean_iou(confusion) == 0.5
    truth, guess = np.asarray(mask).ravel()[:3], np.asarray(predicted).ravel()[:3]
    assert segmentation.mean_iou(confusion) == sklearn_metrics.jaccard_score(truth, guess, average="macro")
    assert segmentation.pixel_confusion(predicted, mask, jnp.zeros(1), num_classes=3).sum() == 0


def test_mean_iou_per_class_averages_classes_and_not_images():
    # Class 0 twice with IoU 1, class 1 once with IoU 0: (1 + 0) / 2, where a mean over images would give 2 / 3.
    mask = jnp.asarray([[[1, 0], [0, 0]]] * 2 + [[[2, 0], [0, 0]]], jnp.uint8)
    maps = jnp.zeros((3, 1, 2, 2)).at[:2, 0, 0, 0].set(1).at[2, 0, 1, 1].set(1)
    label = jnp.asarray([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    sums = class_sums(maps, jnp.asarray([[0], [0], [1]]), label, mask, jnp.ones(3), num_classes=2)
    np.testing.assert_array_equal(sums["mean_iou_per_class"][1], [2, 1])
    assert mean(sums["mean_iou_per_class"]) == 0.5
    assert mean(sums["pointing_game_strict"]) == 0.5
    # A map of an absent class is not counted.
    sums = class_sums(maps, jnp.asarray([[0], [1], [1]]), label, mask, jnp.ones(3), num_classes=2)
    np.testing.assert_array_equal(sums["mean_iou_per_class"][1], [1, 1])
