"""The filter that lets logit maps end at edges of the image."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selfexplain_jax.models import edges

SIZE = 9


@pytest.fixture(scope="module")
def pictures():
    rng = np.random.default_rng(0)
    return rng.normal(0, 0.3, (2, SIZE, SIZE, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def maps():
    return np.random.default_rng(1).normal(0, 3, (2, SIZE, SIZE, 4)).astype(np.float32)


def by_definition(maps, images, distances, scale):
    """Cell by cell, in float64."""
    maps, images = maps.astype(np.float64), images.astype(np.float64)
    for d in distances:
        result = np.empty_like(maps)
        for b, i, j in np.ndindex(maps.shape[:3]):
            total, weights = maps[b, i, j].copy(), 1.0
            for p, q in [(i + d * k, j + d * m) for k in (-1, 0, 1) for m in (-1, 0, 1) if k or m]:
                if 0 <= p < SIZE and 0 <= q < SIZE:
                    a = np.exp(-np.square(images[b, i, j] - images[b, p, q]).sum() / (2 * scale**2))
                    total, weights = total + a * maps[b, p, q], weights + a
            result[b, i, j] = total / weights
        maps = result
    return maps


def test_neighbours_are_the_eight_at_a_distance():
    board = jnp.arange(81.0).reshape(1, SIZE, SIZE, 1) + 1.0
    for d in (1, 2, 4):
        found = np.stack(edges.neighbours(board, d))[..., 0]  # [8, 1, 9, 9]
        # Rows are nine apart; the centre holds 41.
        np.testing.assert_array_equal(found[:, 0, 4, 4], [41 + d * (9 * i + j) for i, j in edges.DIRECTIONS])
        # The corner has three neighbours; the others are 0.
        assert (found[:, 0, 0, 0] > 0).sum() == 3


@pytest.mark.parametrize("distances", [(1,), (4, 2, 1), (8,), (20,), (2, 1, 2, 1)])
def test_equals_the_definition(distances, maps, pictures):
    found = jax.jit(lambda s, x: edges.smooth_within_edges(s, x, distances, 0.4))(maps, pictures)
    np.testing.assert_allclose(found, by_definition(maps, pictures, distances, 0.4), rtol=1e-4, atol=1e-5)


def test_written_gradient_is_the_derivative(maps, pictures):
    """The filter is linear in the maps: <F s, g> = <s, F^T g> for the F of the definition and the written F^T."""
    cotangent = np.random.default_rng(2).normal(size=maps.shape).astype(np.float32)
    _, pull = jax.vjp(lambda s: edges.smooth_within_edges(s, pictures, (4, 2, 1), 0.4), maps)
    found = np.asarray(pull(cotangent)[0], np.float64)
    for seed in range(3):
        direction = np.random.default_rng(10 + seed).normal(size=maps.shape)
        expected = (by_definition(direction, pictures, (4, 2, 1), 0.4) * cotangent).sum()
        assert (found * direction).sum() == pytest.approx(expected, rel=1e-4)


def test_no_gradient_reaches_the_image(maps, pictures):
    gradient = jax.grad(lambda x: jnp.square(edges.smooth_within_edges(maps, x, (2, 1), 0.4)).sum())(pictures)
    np.testing.assert_array_equal(gradient, np.zeros_like(pictures))


def test_evidence_stays_on_its_side_of_an_edge():
    images = np.zeros((1, SIZE, SIZE, 3), np.float32)
    images[:, :, 5:] = 4.0
    spot = np.zeros((1, SIZE, SIZE, 1), np.float32)
    spot[0, 4, 2] = 1.0
    smooth = np.asarray(edges.smooth_within_edges(spot, images, (4, 2, 1), 0.2))[0, ..., 0]
    assert (smooth[:, :5] > 0).all()
    np.testing.assert_allclose(smooth[:, 5:], 0.0, atol=1e-12)
    # A constant map stays as it is, at the borders too.
    np.testing.assert_allclose(edges.smooth_within_edges(np.ones_like(spot), images, (4, 2, 1), 0.2), 1.0, rtol=1e-6)


def test_nothing_to_do_without_distances(maps, pictures):
    assert edges.smooth_within_edges(maps, pictures, (), 0.2) is maps
