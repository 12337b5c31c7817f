"""Masks refined by the image: worked out on images of two colours, and what an evaluation makes of them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_evaluate as squares

from selfexplain_jax import evaluate
from selfexplain_jax.metrics import refinement
from selfexplain_jax.metrics.refinement import refine
from selfexplain_jax.types import UserError

LOGIT = np.log(9.0)  # of .9; -LOGIT is that of .1


def two_colours(size=32):
    image = np.zeros((1, size, size, 3), np.float32)
    image[:, :, size // 2 :] = 2.0
    return jnp.asarray(image)


def test_cells_of_one_colour_come_to_their_mean_and_hardly_anything_crosses_the_edge():
    masks = np.full((1, 1, 32, 32), 0.1, np.float32)
    masks[:, :, :24, :16] = 0.9  # three quarters of the left half
    refined = np.asarray(refine(jnp.asarray(masks), two_colours(), 60))[0, 0]
    # The mean logit of the left half is (3/4 - 1/4) log 9, a mask of .75; a symmetric filter, not a doubly stochastic
    # one, weights cells by how many neighbours they have.
    np.testing.assert_allclose(refined[:, :13], 1 / (1 + np.exp(-LOGIT / 2)), atol=0.03)
    np.testing.assert_allclose(refined[:, 19:], 0.1, atol=0.01)


def test_a_hole_of_the_objects_colour_is_filled_and_a_leak_is_taken_back():
    masks = np.full((1, 2, 32, 32), 0.02, np.float32)
    masks[:, 0, :, :16] = 0.98
    masks[:, 0, 14:18, 6:10] = 0.1
    masks[:, 0, 10:14, 16:18] = 0.9
    before, after = masks[0, 0], np.asarray(refine(jnp.asarray(masks), two_colours(), 4))[0, 0]
    assert before[15, 8] < 0.5 < after[15, 8] and after[12, 17] < 0.5 < before[12, 17]
    assert (after[:, :15] > 0.5).all() and (after[:, 18:] < 0.5).all()


@pytest.mark.parametrize("size", [(12, 20), (13, 7), (1, 2)])
def test_a_mask_of_one_value_stays(size):
    images = jnp.asarray(np.random.default_rng(0).normal(size=(2, *size, 3)).astype(np.float32))
    masks = jnp.broadcast_to(jnp.asarray([0.2, 0.7]).reshape(1, 2, 1, 1), (2, 2, *size))
    np.testing.assert_allclose(refine(masks, images, 3), masks, atol=1e-5)


def test_without_rounds_a_smooth_mask_stays():
    images = jnp.asarray(np.random.default_rng(0).normal(size=(1, 32, 32, 3)).astype(np.float32))
    ramp = jax.nn.sigmoid(jnp.linspace(-2.0, 2.0, 32))
    masks = jnp.broadcast_to(ramp.reshape(1, 1, 1, 32), (1, 1, 32, 32))
    np.testing.assert_allclose(refine(masks, images, 0)[..., 2:-2], masks[..., 2:-2], atol=5e-3)


def test_zeros_and_ones_stay_finite():
    masks = jnp.asarray(np.random.default_rng(0).integers(0, 2, (1, 3, 16, 16)).astype(np.float32))
    refined = np.asarray(refine(masks, two_colours(16), 2))
    assert np.isfinite(refined).all() and refined.min() >= 0 and refined.max() <= 1


def test_masks_of_the_mirror_image_are_turned_back_and_averaged_in_logits():
    image = np.zeros((1, 2, 3, 3), np.float32)
    image[0, :, 0] = 1.0  # the left column; in the mirror image the right one

    def masks_of(images, class_ids):
        """.9 where it is bright; .1 elsewhere, but in the leftmost column .5."""
        bright = images[..., 0] > 0
        masks = jnp.where(bright, 0.9, jnp.where(jnp.arange(3) == 0, 0.5, 0.1))
        return jnp.repeat(masks[:, None], class_ids.shape[1], axis=1)

    class_ids = np.zeros((1, 2), np.int32)
    predictor = dataclasses.replace(squares.make_predictor(), masks=masks_of)
    batch = {"image": image, "valid": np.ones(1), "index": np.zeros(1, np.int32)}
    both = refinement.mirrored(predictor, batch, class_ids, masks_of(image, class_ids))
    # As drawn: .9 .1 .1; of the mirror image, turned back: .9 .1 .5; logits of .1 and .5 have the mean of .25.
    np.testing.assert_allclose(both, np.broadcast_to([0.9, 0.1, 0.25], (1, 2, 2, 3)), rtol=1e-5)


def test_bad_masks_of_the_mirror_image_are_told():
    def masks_of(images, class_ids):
        broken = np.where(np.asarray(images)[:, 0, 0, 0] > 0, 0.5, np.nan)
        return np.broadcast_to(broken[:, None, None, None], (*class_ids.shape, *images.shape[1:3]))

    image = np.zeros((1, 2, 3, 3), np.float32)
    image[0, :, 0] = 1.0
    batch, class_ids = {"image": image, "valid": np.ones(1), "index": np.arange(1)}, np.zeros((1, 2), np.int32)
    predictor = dataclasses.replace(squares.make_predictor(), masks=masks_of)
    with pytest.raises(UserError, match="masks hold NaN"):
        refinement.mirrored(predictor, batch, class_ids, masks_of(image, class_ids))


def test_threshold_and_mirror_image_are_those_of_the_config():
    asked = []

    def half_sure(images, class_ids):
        asked.append(np.asarray(images))
        return 0.1 + 0.3 * squares.exact_masks(images, class_ids)

    predictor = squares.make_predictor(masks=half_sure)
    metrics = evaluate.evaluate(predictor, squares.make_dataset(), squares.make_config(refine_rounds=1))
    count = len(asked)
    assert metrics["miou_named"] == metrics["miou_refined"] < 0.25
    settings = {"refine_rounds": 1, "refine_threshold": 0.2, "refine_mirrored": True}
    metrics = evaluate.evaluate(predictor, squares.make_dataset(), squares.make_config(**settings))
    assert metrics["miou_named"] < 0.25 and metrics["miou_refined"] > 0.6
    assert len(asked) == 2 * count + 2, "once more for each of two batches"
    np.testing.assert_array_equal(asked[-1], asked[-2][:, :, ::-1])


def test_evaluation_asks_for_as_many_rounds_as_configured_and_measures_what_comes_back(monkeypatch):
    asked = []

    def nothing(masks, images, rounds):
        asked.append((images.shape, rounds))
        return jnp.zeros_like(masks)

    monkeypatch.setattr(refinement, "refine", nothing)
    metrics = evaluate.evaluate(squares.make_predictor(), squares.make_dataset(), squares.make_config(refine_rounds=3))
    assert asked == [((5, squares.SIZE, squares.SIZE, 3), 3)] * 2
    assert metrics["iou"] == metrics["miou"] == metrics["miou_named"] == 1
    assert metrics["iou_refined"] == metrics["continuous_iou_refined"] == 0
    assert metrics["miou_refined"] < 0.25  # of the background alone, among four


def test_evaluation_measures_refined_masks_beside_the_others_and_leaves_out_what_is_not_named():
    def masks_of_absent_classes_everywhere(images, class_ids):
        exact = squares.exact_masks(images, class_ids)
        present = jnp.take_along_axis(squares.pixel_scores(images) > 0, class_ids, axis=1)
        return jnp.where(present[:, :, None, None], exact, 0.9)

    predictor = squares.make_predictor(masks=masks_of_absent_classes_everywhere)
    dataset = squares.make_dataset()
    plain = evaluate.evaluate(predictor, dataset, squares.make_config())
    assert not [name for name in plain if name.endswith(("_refined", "_named"))]
    both = evaluate.evaluate(predictor, dataset, squares.make_config(refine_rounds=2))
    assert {name: both[name] for name in plain if name != "counts"} == {n: v for n, v in plain.items() if n != "counts"}
    assert both["counts"]["iou_refined"] == both["counts"]["continuous_iou_refined"] == 7
    # Background is called an absent class everywhere; refined, those are left out, and squares of one colour stay.
    assert plain["miou"] < 0.4 and both["miou_named"] == 1 and both["miou_refined"] > 0.6
    assert both["iou_refined"] > 0.6
