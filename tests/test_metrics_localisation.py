"""Pointing games: answers worked out by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from selfexplain_jax.metrics import localisation


def one_hot_map(row, column, size=9):
    return jnp.zeros((1, size, size)).at[0, row, column].set(1.0)


def test_tolerance_is_fifteen_pixels_at_224():
    assert [localisation.pointing_tolerance(size) for size in (224, 448, 64, 28)] == [15, 30, 4, 2]


@pytest.mark.parametrize(
    ("point", "tolerance", "hit"), [((0, 3), 3, 1), ((0, 4), 3, 0), ((2, 2), 2, 0), ((2, 2), 3, 1)]
)
def test_a_hit_lies_within_a_euclidean_distance(point, tolerance, hit):
    truth = one_hot_map(0, 0)
    value, defined = localisation.pointing_game(one_hot_map(*point), truth, jnp.ones((1, 9, 9)), tolerance)
    assert value[0] == hit and defined[0]


def test_strict_and_default_tolerance_differ():
    size = 30  # two pixels
    maps, truth, weight = one_hot_map(5, 5, size), one_hot_map(5, 7, size), jnp.ones((1, size, size))
    assert localisation.pointing_game(maps, truth, weight)[0] == 1
    assert localisation.pointing_game_strict(maps, truth, weight)[0] == 0
    assert localisation.pointing_game_strict(truth, truth, weight)[0] == 1


def test_void_is_no_object_and_no_object_is_not_counted():
    truth = one_hot_map(0, 0)
    value, defined = localisation.pointing_game(truth, truth, 1 - truth)
    assert value[0] == 0 and not defined[0]


def test_first_of_equal_pixels_is_taken():
    maps = jnp.stack([jnp.ones((4, 5)), jnp.zeros((4, 5)).at[2, 3].set(1).at[3, 0].set(1)])
    np.testing.assert_array_equal(localisation.most_salient_pixel(maps), [[0, 0], [2, 3]])


def test_energy_is_the_share_inside():
    maps = jnp.asarray([[[0.6, 0.2], [0.1, 0.3]], [[0.0, 0.0], [0.0, 0.0]]])
    truth = jnp.asarray([[[1.0, 0.0], [0.0, 1.0]]] * 2)
    value, defined = localisation.energy_pointing_game(maps, truth, jnp.ones((2, 2, 2)))
    np.testing.assert_allclose(value, [0.9 / 1.2, 0], rtol=1e-6)
    assert defined.all()
    weight = jnp.ones((2, 2, 2)).at[:, 1, 1].set(0)
    np.testing.assert_allclose(localisation.energy_pointing_game(maps, truth, weight)[0][0], 0.6 / 0.9, rtol=1e-6)
