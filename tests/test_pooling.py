"""Pools of two or three cells whose scores can be worked out by hand, their limits and their gradients."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selfexplain_jax.models import pooling
from selfexplain_jax.models.pooling import POOLS
from selfexplain_jax.types import UserError

LN3 = math.log(3)


def pool(logit_maps, name, temperature):
    """`pooling.pool` as one compiled program, its result in NumPy."""
    return np.asarray(jax.jit(pooling.pool, static_argnums=(1, 2))(logit_maps, name, temperature))


def score_and_gradient(logit_maps, name, temperature):
    score = jax.jit(jax.value_and_grad(lambda maps: pooling.pool(maps, name, temperature).sum()))
    return [np.asarray(result) for result in score(logit_maps)]


# Score of one class whose two cells have the logits 0 and log 3, by pool and temperature.
BY_HAND = {
    ("mean", 1.0): LN3 / 2,
    ("max", 1.0): LN3,
    # Weights (1, 3) / 4.
    ("softmax", 1.0): 0.75 * LN3,
    # Weights (1, 9) / 10.
    ("softmax", 2.0): 0.9 * LN3,
    ("softmax", 0.0): LN3 / 2,
    # log((1 + 3) / 2) and log((1 + 9) / 2) / 2.
    ("logsumexp", 1.0): math.log(2),
    ("logsumexp", 2.0): math.log(5) / 2,
    # m = (1/2, 3/4) beside a background of logit 0, so sum m = 5/4 and the area is 5/8.
    ("ngwp", 1.0): (0.75 * LN3) / (1 + 1.25) + (3 / 8) ** 3 * math.log(0.01 + 5 / 8),
}


def maps(*rows):
    """One image, one class, the cells in the given rows: [1, h, w, 1]."""
    return np.asarray(rows, np.float32)[None, :, :, None]


@pytest.fixture
def random_maps():
    return np.random.default_rng(0).normal(0.0, 2.0, (2, 3, 4, 5)).astype(np.float32)


@pytest.mark.parametrize("name, temperature", BY_HAND, ids=str)
def test_scores_by_hand(name, temperature):
    expected = BY_HAND[name, temperature]
    np.testing.assert_allclose(pool(maps([0.0, LN3]), name, temperature), [[expected]], rtol=1e-5)
    # Where a cell lies does not matter.
    np.testing.assert_allclose(pool(maps([LN3], [0.0]), name, temperature), [[expected]], rtol=1e-5)


def test_every_pool_has_a_score_by_hand():
    assert {name for name, _ in BY_HAND} == set(POOLS)


def test_ngwp_classes_compete_for_a_cell():
    # Two classes and the background share each of two cells equally: m = 1/3, sum m = 2/3, and the logits are 0.
    score = (2 / 3) ** 3 * math.log(0.01 + 1 / 3)
    np.testing.assert_allclose(pool(np.zeros((1, 1, 2, 2)), "ngwp", 1.0), [[score, score]], rtol=1e-5)


@pytest.mark.parametrize("name", POOLS)
def test_classes_and_images_keep_their_places(name, random_maps):
    scores = pool(random_maps, name, 1.5)
    assert scores.shape == (2, 5) and scores.dtype == np.float32
    np.testing.assert_allclose(pool(random_maps[::-1], name, 1.5), scores[::-1], rtol=1e-5)
    np.testing.assert_allclose(pool(random_maps[..., ::-1], name, 1.5), scores[:, ::-1], rtol=1e-5, atol=1e-6)
    if name != "ngwp":
        # Other classes do not matter.
        alone = np.where(np.arange(5) == 2, random_maps, 7.0)
        np.testing.assert_allclose(pool(alone, name, 1.5)[:, 2], scores[:, 2], rtol=1e-5, atol=1e-6)
        # A constant added to a map is added to its score.
        np.testing.assert_allclose(pool(random_maps + 3.0, name, 1.5), scores + 3.0, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", POOLS)
def test_half_precision_maps_are_pooled_in_float32(name, random_maps):
    scores = pool(random_maps.astype(jnp.bfloat16), name, 1.0)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, pool(random_maps, name, 1.0), atol=0.1)


@pytest.mark.parametrize("name", ["softmax", "logsumexp"])
def test_limits_are_the_mean_and_the_maximum(name, random_maps):
    mean, top = random_maps.mean(axis=(1, 2)), random_maps.max(axis=(1, 2))
    np.testing.assert_allclose(pool(random_maps, name, 1e-3), mean, atol=0.01)
    np.testing.assert_allclose(pool(random_maps, name, 1e4), top, atol=1e-3)
    between = pool(random_maps, name, 1.0)
    assert np.all(between >= mean) and np.all(between <= top)
    # The hotter, the nearer to the maximum.
    assert np.all(pool(random_maps, name, 2.0) >= between)


@pytest.mark.parametrize("temperature", [0.0, 0.25, 1.0, 3.0])
def test_gradient_of_the_softmax_pool(temperature):
    cells = np.asarray([0.5, -3.0, 2.0, 0.0])
    weights = np.exp(temperature * cells) / np.exp(temperature * cells).sum()
    score = (weights * cells).sum()
    expected = weights * (1 + temperature * (cells - score))
    _, gradient = score_and_gradient(maps(cells[:2], cells[2:]), "softmax", temperature)
    np.testing.assert_allclose(gradient.ravel(), expected, rtol=1e-4, atol=1e-6)
    # As for any pool that follows a constant, it sums to one; cells below z - 1/k have the other sign.
    assert gradient.sum() == pytest.approx(1.0, abs=1e-5)
    if temperature:
        np.testing.assert_array_equal(gradient.ravel() < 0, cells < score - 1 / temperature)


def test_gradient_of_the_logsumexp_pool_is_its_softmax():
    _, gradient = score_and_gradient(maps([0.0, LN3]), "logsumexp", 2.0)
    np.testing.assert_allclose(gradient.ravel(), [0.1, 0.9], rtol=1e-5)


def test_annealing_is_geometric_and_then_constant():
    temperatures = [float(pooling.annealed(np.int32(step), 2.0, 0.5, 4)) for step in (0, 1, 2, 4, 9)]
    assert temperatures == pytest.approx([2.0, math.sqrt(2), 1.0, 0.5, 0.5], rel=1e-5)


def test_temperature_may_be_an_array(random_maps):
    traced = jax.jit(lambda maps, temperature: pooling.pool(maps, "softmax", temperature))
    for temperature in (0.5, 3.0):
        np.testing.assert_allclose(
            traced(random_maps, jnp.float32(temperature)), pool(random_maps, "softmax", temperature), rtol=1e-5
        )


@pytest.mark.parametrize("name", POOLS)
def test_gradients_stay_finite_on_extreme_maps(name):
    extreme = maps([-1e4, 0.0], [1e4, 1e4])
    score, gradient = score_and_gradient(extreme, name, 10.0)
    assert np.isfinite(score) and np.all(np.isfinite(gradient))


@pytest.mark.parametrize("name, temperature", [("softmax", -0.5), ("logsumexp", 0.0), ("logsumexp", -1.0)])
def test_temperature_must_be_positive(name, temperature, random_maps):
    with pytest.raises(UserError, match=f"pooling_temperature = {temperature} is not possible for '{name}'"):
        pool(random_maps, name, temperature)


def test_unknown_pool_is_refused_with_the_known_ones(random_maps):
    with pytest.raises(UserError, match="config.model.pooling = 'median' is unknown.*logsumexp.*softmax"):
        pool(random_maps, "median", 1.0)
