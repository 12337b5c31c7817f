"""Metrics of object and background: answers by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from selfexplain_jax.metrics import parts
from selfexplain_jax.models import masking
from selfexplain_jax.types import Predictor


def test_saliency_score_counts_each_class_once_and_floors_the_area():
    mask = jnp.stack([jnp.full((2, 2), 0.5), jnp.full((2, 2), 0.01)])
    probabilities = jnp.asarray([[0.5, 0.25, 0.25], [0.0, 0.0, 1.0]])
    label = jnp.asarray([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    expected = [np.log(0.5) - np.log(0.75), np.log(0.05)]
    np.testing.assert_allclose(parts.saliency_score(mask, probabilities, label), expected, rtol=1e-5)
    assert np.isfinite(parts.saliency_score(mask, jnp.zeros((2, 3)), label)).all()


def test_background_entropy():
    probabilities = jnp.asarray([[0.25, 0.25, 0.25, 0.25], [1.0, 0, 0, 0], [0.5, 0.5, 0, 0], [0.1, 0.1, 0.1, 0.1]])
    np.testing.assert_allclose(parts.background_entropy(probabilities), [1, 0, 0.5, 1], atol=1e-6)


def test_present_probability():
    probabilities, label = jnp.asarray([[0.2, 0.6, 0.9]]), jnp.asarray([[1.0, 0, 1]])
    np.testing.assert_allclose(parts.present_probability(probabilities, label), [0.55], rtol=1e-6)


def test_candidates_are_the_present_classes_and_then_the_highest_scores():
    label = jnp.asarray([[0.0, 0, 0, 1], [0, 1, 1, 0]])
    scores = jnp.asarray([[3.0, 1, 2, -5], [9, 0, 1, 2]])
    np.testing.assert_array_equal(parts.candidate_classes(label, scores, 2), [[3, 0], [2, 1]])
    np.testing.assert_array_equal(parts.candidate_classes(label, scores, 4), [[3, 0, 2, 1], [2, 1, 0, 3]])


def test_union_is_the_largest_of_the_wanted_masks():
    masks = jnp.asarray([[[[0.1, 0.9]], [[0.5, 0.2]], [[1.0, 1.0]]]])  # classes 2, 0, 1
    class_ids = jnp.asarray([[2, 0, 1]])
    np.testing.assert_allclose(parts.union_of_classes(masks, class_ids, jnp.asarray([[1.0, 0, 1]])), [[[0.5, 0.9]]])
    np.testing.assert_array_equal(parts.union_of_classes(masks, class_ids, jnp.zeros((1, 3))), [[[0, 0]]])


@pytest.mark.parametrize("infill", sorted(masking.INFILLS))
def test_seen_through_a_full_mask_an_image_is_itself_and_fillings_repeat(infill):
    images = jnp.asarray(np.random.default_rng(0).normal(size=(3, 8, 8, 3)), jnp.float32)
    whole, none = jnp.ones((3, 8, 8)), jnp.zeros((3, 8, 8))
    np.testing.assert_allclose(parts.shown(images, whole, whole, infill, 0, 1), images, rtol=1e-6)
    hidden = parts.shown(images, none, whole, infill, 0, 1)
    assert not np.allclose(hidden, images)
    np.testing.assert_array_equal(hidden, parts.shown(images, none, whole, infill, 0, 1))


def test_part_sums():
    mask, label = jnp.full((2, 2, 2), 0.5), jnp.asarray([[1.0, 0], [0, 1]])
    on_object, on_background = jnp.asarray([[1.0, 0], [0, 0.5]]), jnp.asarray([[0.5, 0.5], [1, 0]])
    sums = parts.part_sums(mask, on_object, on_background, label, jnp.ones(2))
    expected = {
        "saliency_score": (np.log(0.5) + 0) / 2,
        "background_entropy": 0.5,
        "object_probability": 0.75,
        "background_probability": 0.25,
    }
    assert sums.keys() == expected.keys()
    for name, answer in expected.items():
        np.testing.assert_allclose(sums[name][0] / sums[name][1], answer, atol=1e-6)
    assert parts.part_sums(mask, on_object, on_background, label, jnp.asarray([1.0, 0]))["object_probability"][0] == 1


def test_class_specific_table():
    # Class c's score is the sum of column c; each mask shows its own column at strength .65, so at 6 of 9 thresholds.
    predictor = Predictor(
        scores=lambda images: images[:, 0, :, 0],
        probabilities=lambda scores: scores,
        class_names=("a", "b"),
        image_size=2,
    )
    images = jnp.asarray([[[[0.9], [0.2]]], [[[0.4], [0.8]]], [[[jnp.nan], [1.0]]]]) * jnp.ones((3, 1, 2, 3))
    images = jnp.concatenate([images, images], axis=1)
    masks = jnp.zeros((3, 2, 2, 2)).at[:, 0, :, 0].set(0.65).at[:, 1, :, 1].set(0.65)
    label, valid = jnp.asarray([[1.0, 0.0], [1.0, 1.0], [1.0, 1.0]]), jnp.asarray([1.0, 1.0, 0.0])
    class_ids = jnp.asarray([[0, 1]] * 3)
    sums, counts = parts.class_specific_sums(predictor, images, class_ids, masks, label, valid, chunk_size=4)
    np.testing.assert_array_equal(counts, [[2, 2, 2], [1, 1, 1]])
    share = 6 / 9
    expected = [[(0.9 + 0.4) * share, 0, 1.3], [0, 0.8 * share, 0.8]]
    np.testing.assert_allclose(sums, expected, atol=1e-6)
    table = parts.class_specific_table(sums, counts)
    assert table["class_specific_own"] == pytest.approx((0.65 + 0.8) * share / 2, rel=1e-5)
    assert table["class_specific_other"] == 0
    assert table["class_specific_unmasked"] == pytest.approx((0.65 + 0.8) / 2, rel=1e-5)
    empty = parts.class_specific_table(np.zeros((2, 3)), np.zeros((2, 3)))
    assert empty["class_specific_own"] is None and empty["class_specific_table"] == [[None, None], [None, None]]
