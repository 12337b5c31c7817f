"""Metrics of saliency maps against the published implementations' numbers (tests/parity/generate_metrics.py)."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from goldens import formula

from selfexplain_jax.metrics import boxes as localisation_boxes
from selfexplain_jax.metrics import faithfulness, imputation, localisation, sanity, segmentation
from selfexplain_jax.metrics.explained import min_max
from selfexplain_jax.types import Predictor

GOLDENS = json.loads(pathlib.Path(formula.__file__).with_name(formula.METRIC_GOLDENS).read_text())
IMAGES, CLASSES, SALIENCY, TRUTH = formula.metric_cases()
ALL = np.ones_like(TRUTH)
# Arguments of the faithfulness metrics: one map per image.
CASE = (IMAGES, CLASSES[:, None], SALIENCY[:, None])


@pytest.fixture(scope="module")
def predictor():
    weights = jnp.asarray(formula.metric_weights())

    def scores(images):
        return jnp.einsum("hwkc,bhwk->bc", weights, jnp.tanh(images), precision="highest")

    return Predictor(scores, jax.nn.softmax, ("a", "b", "c"), formula.METRIC_SIZE)


def test_pointing_game_is_torchrays():
    golden = GOLDENS["pointing"]
    cases = list(zip(*formula.pointing_cases(), strict=True))
    points = [localisation.point_in_photo(saliency, region.shape) for saliency, region in cases]
    hits = np.array([localisation.photo_hit(saliency, region) for saliency, region in cases])
    np.testing.assert_array_equal(points, golden["points"])
    np.testing.assert_array_equal(hits, golden["hits"])
    assert 0.1 < hits.mean() < 0.9
    accuracy = np.mean([hits[class_id::4].mean() for class_id in range(4)])
    assert accuracy == pytest.approx(golden["accuracy"], rel=1e-7)


def test_deletion_and_insertion_are_rises(predictor):
    golden = GOLDENS["curves"]
    curves = faithfulness.deletion_insertion(predictor, *CASE)
    for name, curve in zip(("deletion", "insertion"), curves, strict=True):
        np.testing.assert_allclose(curve[:, 0], golden[f"{name}_curve"], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(faithfulness.curve_area(curve)[:, 0], golden[name], rtol=1e-5)
    # quantus flips pixels likewise, and leaves out the step at which nothing is flipped.
    np.testing.assert_allclose(curves[0][:, 0, 1:], golden["quantus_pixel_flipping"], rtol=1e-5, atol=1e-6)


def test_imputation_is_quantuss():
    ranks = faithfulness.pixel_ranks(jnp.asarray(SALIENCY[:1]))
    removed = ranks < formula.METRIC_SIZE**2 * 80 // 100
    found = np.asarray(imputation.linear_imputation(jnp.asarray(IMAGES[:1]), removed))[0]
    golden = np.array(GOLDENS["road"]["quantus_imputation"])
    np.testing.assert_allclose(found.reshape(-1, 3).T[:, ::13], golden, atol=1e-5)


def test_road_is_grad_cams(predictor):
    most, least = faithfulness.road(predictor, *CASE, rng=None)
    np.testing.assert_allclose(most[:, 0], GOLDENS["road"]["morf"], rtol=2e-5, atol=2e-6)
    np.testing.assert_allclose(least[:, 0], GOLDENS["road"]["lerf"], rtol=2e-5, atol=2e-6)


def test_pixel_auc_and_average_precision_are_scikit_learns():
    golden = GOLDENS["masks"]
    auc, _ = jax.jit(segmentation.pixel_auc)(SALIENCY, TRUTH, ALL)
    np.testing.assert_allclose(auc, golden["pixel_auc"], rtol=1e-6)
    counts = localisation.score_histograms(min_max(SALIENCY), TRUTH, ALL, np.ones(len(TRUTH), bool))
    assert localisation.pixel_average_precision(counts) == pytest.approx(golden["pixel_average_precision"], rel=1e-7)


def test_oriented_gradients_are_scikit_images():
    value, _ = jax.jit(sanity.hog_correlation)(SALIENCY, np.roll(SALIENCY, 1, axis=0))
    np.testing.assert_allclose(value, GOLDENS["masks"]["hog"], rtol=1e-4, atol=1e-5)


def test_structural_similarity_is_scikit_images():
    value, _ = jax.jit(sanity.structural_similarity)(SALIENCY, np.roll(SALIENCY, 1, axis=0))
    np.testing.assert_allclose(value, GOLDENS["masks"]["ssim"], rtol=1e-5, atol=1e-7)


def test_drop_and_increase_are_grad_cams(predictor):
    golden = GOLDENS["confidence"]
    every = np.tile(np.arange(3, dtype=np.int32), (len(IMAGES), 1))
    masks = np.repeat(np.asarray(min_max(SALIENCY))[:, None], 3, axis=1)
    whole, masked = faithfulness.masked_probabilities(predictor, IMAGES, every, masks)
    # grad-cam does not divide the drop by the probability, the paper does.
    np.testing.assert_allclose(faithfulness.average_drop(whole, masked) * whole, golden["drop"], rtol=1e-4, atol=1e-7)
    np.testing.assert_array_equal(faithfulness.increase(whole, masked), golden["increase"])
    assert 0 < np.mean(golden["increase"]) < 1


def test_energy_pointing_game_is_quantuss_relevance_mass():
    share, defined = jax.jit(localisation.energy_pointing_game)(min_max(SALIENCY), TRUTH, ALL)
    assert defined.all()
    np.testing.assert_allclose(share, GOLDENS["energy"], rtol=1e-6)


def test_iou_of_masks_and_of_boxes_is_pycocotools():
    coco = pytest.importorskip("pycocotools.mask")
    unit = np.asarray(min_max(SALIENCY))
    pair = [np.asfortranarray(maps.astype(np.uint8).transpose(1, 2, 0)) for maps in (unit >= 0.5, TRUTH)]
    encoded = [coco.encode(maps) for maps in pair]
    expected = np.diag(coco.iou(*encoded, [0] * len(unit)))
    value, defined = jax.jit(segmentation.iou)(unit, TRUTH, ALL)
    assert defined.all() and (0 < expected).all() and (expected < 1).all()
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    corners = np.array([[0, 0, 9, 9], [3, 2, 5, 11], [7, 7, 30, 20], [20, 1, 24, 3]])
    # Theirs are left, top, width and height; both ends of ours count.
    boxes = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2] + 1], axis=1).astype(np.float64)
    theirs = coco.iou(boxes, boxes, [0] * 4)
    np.testing.assert_allclose(localisation_boxes.box_iou(corners, corners), theirs, rtol=1e-12)
