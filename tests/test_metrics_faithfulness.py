"""Deletion, insertion, drop, increase, gain and ROAD: answers by hand, the exact solve, chunks and batches."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage, sparse
from scipy.sparse import linalg

from selfexplain_jax.metrics import faithfulness, imputation
from selfexplain_jax.types import Predictor, UserError

SIZE = 12


def linear_predictor(size=SIZE, classes=3, seed=0):
    """Scores that are linear in the image; probabilities are a softmax."""
    weights = np.random.default_rng(seed).normal(size=(size, size, 3, classes)).astype(np.float32) / size
    return Predictor(
        scores=functools.partial(jnp.einsum, "hwcn,bhwc->bn", jnp.asarray(weights)),
        probabilities=jax.nn.softmax,
        class_names=tuple("abc"[:classes]),
        image_size=size,
    )


PREDICTOR = linear_predictor()
# The score is the sum of the red channel and the probability the score itself: areas can be worked out.
RED_SUM = Predictor(
    scores=lambda images: images[..., 0].sum(axis=(1, 2))[:, None],
    probabilities=lambda scores: scores,
    class_names=("red",),
    image_size=4,
)
random = np.random.default_rng(1)
IMAGES = random.normal(size=(2, SIZE, SIZE, 3)).astype(np.float32)
CLASS_IDS = np.array([[0, 2], [1, 1]])
SALIENCY = random.normal(size=(2, 2, SIZE, SIZE)).astype(np.float32)
IMPUTED = random.normal(size=(4, 20, 20, 3)).astype(np.float32)  # one shape for all tests of it, compiled once


def test_ranks_fall_with_saliency_and_ties_stand_in_reading_order():
    ranks = faithfulness.pixel_ranks(jnp.asarray([[[0.0, 5.0, -0.0], [1.0, 5.0, -2.0]]]))
    np.testing.assert_array_equal(ranks, [[[3, 0, 4], [2, 1, 5]]])


def test_blur_is_the_published_kernel():
    point = np.zeros((11, 11))
    point[5, 5] = 1
    kernel = ndimage.gaussian_filter(point, 5)
    images = np.random.default_rng(0).normal(size=(1, 14, 17, 3)).astype(np.float32)
    expected = [ndimage.convolve(images[0, :, :, c], kernel, mode="constant") for c in range(3)]
    np.testing.assert_allclose(faithfulness.deletion_blur(images)[0], np.stack(expected, -1), atol=1e-6)


def test_deletion_and_insertion_of_a_sum():
    image = np.zeros((1, 4, 4, 3), np.float32)
    image[0, :, :, 0] = np.arange(16).reshape(4, 4) / 120  # sums to 1
    saliency = image[:, None, :, :, 0]
    deletion, insertion = faithfulness.deletion_insertion(RED_SUM, image, np.array([[0]]), saliency)
    # Steps of four pixels, the largest first: rows 3, 2, 1, 0.
    rows = image[0, :, :, 0].sum(axis=1)
    expected = 1 - np.concatenate([[0], np.cumsum(rows[::-1])])
    np.testing.assert_allclose(deletion[0, 0], expected, atol=1e-6)
    blurred = np.asarray(faithfulness.deletion_blur(image))[0, :, :, 0].sum(axis=1)
    expected = [rows[4 - step :].sum() + blurred[: 4 - step].sum() for step in range(5)]
    np.testing.assert_allclose(insertion[0, 0], expected, atol=1e-6)
    area = float(faithfulness.curve_area(deletion)[0, 0])
    assert area == pytest.approx(np.trapezoid(np.asarray(deletion)[0, 0], np.linspace(0, 1, 5)), abs=1e-6)


def test_steps_need_not_divide_the_pixels():
    curves = faithfulness.deletion_insertion(PREDICTOR, IMAGES, CLASS_IDS, SALIENCY, step_pixels=100)
    assert curves[0].shape == (2, 2, 3)
    whole = jax.nn.softmax(PREDICTOR.scores(IMAGES))
    np.testing.assert_allclose(curves[0][:, :, 0], np.take_along_axis(np.asarray(whole), CLASS_IDS, 1), rtol=1e-5)
    # The last deletion step shows nothing, the last insertion step everything.
    np.testing.assert_allclose(curves[0][:, :, -1], 1 / 3, rtol=1e-5)
    np.testing.assert_allclose(curves[1][:, :, -1], curves[0][:, :, 0], rtol=1e-5)


MEASURES = {
    "deletion_insertion": faithfulness.deletion_insertion,
    "masked": lambda predictor, images, ids, maps, **options: faithfulness.masked_probabilities(
        predictor, images, ids, jax.nn.sigmoid(maps), **options
    ),
    "road": functools.partial(faithfulness.road, rng=jax.random.key(0)),
}


@pytest.mark.parametrize("name", MEASURES)
def test_chunks_change_nothing_and_a_batch_equals_its_images(name):
    whole = MEASURES[name](PREDICTOR, IMAGES, CLASS_IDS, SALIENCY)
    single = MEASURES[name](PREDICTOR, IMAGES[1:], CLASS_IDS[1:], SALIENCY[1:], chunk_size=5)
    for place in range(2):
        np.testing.assert_allclose(whole[place][1:], single[place], rtol=1e-4, atol=1e-6)


def test_nothing_is_compiled_again_from_call_to_call():
    for _ in range(2):
        faithfulness.masked_probabilities(PREDICTOR, IMAGES, CLASS_IDS, jax.nn.sigmoid(SALIENCY))
        compiled = faithfulness._masked_probabilities._cache_size()
    faithfulness.masked_probabilities(PREDICTOR, 2 * IMAGES, CLASS_IDS[::-1], jax.nn.sigmoid(-SALIENCY))
    assert faithfulness._masked_probabilities._cache_size() == compiled


def test_drop_increase_and_gain():
    whole, masked = jnp.asarray([0.8, 0.5, 0.4, 1.0]), jnp.asarray([0.2, 0.5, 0.7, 1.0])
    np.testing.assert_allclose(faithfulness.average_drop(whole, masked), [0.75, 0, 0, 0], atol=1e-6)
    np.testing.assert_array_equal(faithfulness.increase(whole, masked), [0, 0, 1, 0])
    np.testing.assert_allclose(faithfulness.average_gain(whole, masked), [0, 0, 0.5, 0], atol=1e-6)


def exact_imputation(image, removed):
    """The linear system of one image [H, W, 3], solved by a sparse factorisation in float64."""
    places = np.argwhere(removed)
    number = np.full(removed.shape, -1)
    number[removed] = np.arange(len(places))
    system, right = sparse.lil_matrix((len(places), len(places))), np.zeros((len(places), 3))
    neighbours = [(i, j, 1 / 6 if 0 in (i, j) else 1 / 12) for i in (-1, 0, 1) for j in (-1, 0, 1) if i or j]
    for row, (y, x) in enumerate(places):
        for i, j, weight in neighbours:
            if not (0 <= y + i < removed.shape[0] and 0 <= x + j < removed.shape[1]):
                continue
            system[row, row] += weight
            if removed[y + i, x + j]:
                system[row, number[y + i, x + j]] -= weight
            else:
                right[row] += weight * image[y + i, x + j]
    result = image.astype(np.float64)
    result[removed] = linalg.spsolve(system.tocsc(), right)
    return result


def test_imputation_is_the_exact_solution():
    random, size = np.random.default_rng(0), IMPUTED.shape[1]
    images = IMPUTED
    rows, columns = np.mgrid[:size, :size]
    middle = np.hypot(rows - size / 2, columns - size / 3)
    smooth = ndimage.gaussian_filter(random.normal(size=(size, size)), 3)
    maps = [random.random((size, size)), middle, -middle, smooth]
    removed = np.stack([values > np.quantile(values, 0.2) for values in maps])
    found = imputation.linear_imputation(images, removed)
    expected = [exact_imputation(image, gone) for image, gone in zip(images, removed, strict=True)]
    np.testing.assert_allclose(found, expected, atol=2e-5)
    np.testing.assert_allclose(np.asarray(found)[~removed], images[~removed])


def test_imputation_of_a_flat_or_a_gone_image():
    flat = np.full_like(IMPUTED, 0.7)
    removed = np.random.default_rng(0).random(flat.shape[:3]) > 0.3
    np.testing.assert_allclose(imputation.linear_imputation(flat, removed), flat, rtol=1e-5)
    gone = imputation.linear_imputation(IMPUTED, np.ones_like(removed))
    mean = IMPUTED.mean(axis=(1, 2), keepdims=True)
    np.testing.assert_allclose(gone, np.broadcast_to(mean, IMPUTED.shape), atol=1e-6)
    np.testing.assert_allclose(imputation.linear_imputation(IMPUTED, np.zeros_like(removed)), IMPUTED)


def test_noise_is_on_imputed_pixels_alone():
    images, removed = np.zeros_like(IMPUTED), np.zeros(IMPUTED.shape[:3], bool)
    removed[0, 2, 3] = True
    found = np.asarray(imputation.noisy_linear_imputation(images, removed, np.ones_like(images)))
    np.testing.assert_allclose(found[0, 2, 3], imputation.NOISE, rtol=1e-5)
    assert np.count_nonzero(found) == 3


def test_road_tells_the_pixels_that_matter_from_those_that_do_not():
    # Class 0 lives on a bright square; the map that names the square loses it, the opposite one keeps it.
    weights = np.zeros((8, 8, 3, 2), np.float32)
    weights[2:4, 2:4, :, 0] = 1
    predictor = Predictor(
        scores=functools.partial(jnp.einsum, "hwcn,bhwc->bn", jnp.asarray(weights)),
        probabilities=jax.nn.softmax,
        class_names=("a", "b"),
        image_size=8,
    )
    image = np.zeros((1, 8, 8, 3), np.float32)
    image[0, 2:4, 2:4] = 1
    saliency = weights[None, None, :, :, 0, 0] * np.array([1.0, -1.0])[None, :, None, None]
    most, least = faithfulness.road(predictor, image, np.array([[0, 0]]), saliency, rng=None)
    whole = float(jax.nn.softmax(predictor.scores(image))[0, 0])
    # 12 of 64 pixels and more: the square is gone, and its surroundings are 0.
    np.testing.assert_allclose(most[0, 0], 0.5, atol=1e-5)
    np.testing.assert_allclose(least[0, 0], whole, atol=1e-5)
    assert np.asarray(least - most)[0, 1, 0] < 0


def test_road_draws_the_same_noise_for_the_same_key():
    results = [
        faithfulness.road(PREDICTOR, IMAGES, CLASS_IDS, SALIENCY, rng=jax.random.key(key))[0] for key in (0, 0, 1)
    ]
    np.testing.assert_array_equal(results[0], results[1])
    assert (np.asarray(results[0]) != np.asarray(results[2])).any()


@pytest.mark.parametrize("name", ["deletion_insertion", "masked_probabilities", "road"])
def test_bad_maps_and_class_ids_are_refused(name):
    options = {"rng": None} if name == "road" else {}
    metric = functools.partial(getattr(faithfulness, name), PREDICTOR, **options)
    broken = np.array(SALIENCY)
    broken[1, 0, 0, 0] = np.nan
    with pytest.raises(UserError, match=r"\[\[1, 0\]\] hold NaN"):
        metric(IMAGES, CLASS_IDS, broken)
    with pytest.raises(UserError, match="maps have shape"):
        metric(IMAGES, CLASS_IDS, SALIENCY[:, :, 1:])
    with pytest.raises(UserError, match="Class ids must lie in"):
        metric(IMAGES, CLASS_IDS + 7, SALIENCY)


def scores_of_weights(weights, images):
    return jnp.einsum("hwcn,bhwc->bn", weights, images)


def test_another_predictor_of_the_same_functions_compiles_nothing():
    def predictor(seed):
        weights = np.random.default_rng(seed).normal(size=(SIZE, SIZE, 3, 3)).astype(np.float32)
        scores = jax.tree_util.Partial(scores_of_weights, jnp.asarray(weights))
        return Predictor(scores, jax.nn.softmax, ("a", "b", "c"), SIZE)

    ids, masks = np.zeros((2, 1), np.int32), np.full((2, 1, SIZE, SIZE), 0.5, np.float32)
    first = faithfulness.masked_probabilities(predictor(0), IMAGES, ids, masks)
    compiled = faithfulness._masked_probabilities._cache_size()
    second = faithfulness.masked_probabilities(predictor(1), IMAGES, ids, masks)
    assert faithfulness._masked_probabilities._cache_size() == compiled
    assert not np.allclose(first[0], second[0])
