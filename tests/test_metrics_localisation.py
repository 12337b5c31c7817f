"""Pointing games: answers worked out by hand."""

import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from selfexplain_jax.metrics import localisation
from selfexplain_jax.types import UserError


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


def test_difficult_maps_are_small_and_not_alone():
    regions = np.zeros((2, 2, 4, 4), np.float32)
    regions[:, 0, 0, :3], regions[:, 1, :2, :2] = 1, 1  # 3 and 4 of 16 pixels
    label = np.asarray([[1, 1], [1, 0]], np.float32)
    np.testing.assert_array_equal(localisation.difficult_maps(regions, label), [[True, False], [False, False]])


def test_a_photo_is_hit_nearer_than_the_tolerance():
    saliency = np.zeros((8, 8), np.float32)
    saliency[4, 4] = 1
    region = np.zeros((80, 160), bool)
    row, column = localisation.point_in_photo(saliency, region.shape)
    # Pixel (4, 4) of 8 x 8 covers rows 40 to 49 and columns 80 to 99 of the photo.
    assert 40 <= row < 50 and 80 <= column < 100
    region[row, column + 15] = True
    assert not localisation.photo_hit(saliency, region)
    region[row, column + 14] = True
    assert localisation.photo_hit(saliency, region)
    with pytest.raises(UserError, match="at least one pixel"):
        localisation.photo_hit(saliency, np.zeros((80, 160), bool))
    with pytest.raises(UserError, match="NaN or infinity"):
        localisation.photo_hit(np.full((8, 8), np.nan), region)


def test_score_bins_begin_at_multiples_of_a_thousandth():
    # np.histogram with float64 edges is the published way; float32 maps that hit an edge must fall as there.
    edges = np.append(np.arange(0, 1, 0.001), [1.0, 2.0])
    scores = np.arange(0, 1, 0.001).astype(np.float32)
    scores = np.concatenate([scores, np.nextafter(scores, np.float32(2)), [1.0]]).astype(np.float32)
    maps = np.concatenate([scores, np.zeros(23 * 87 + 87 - len(scores), np.float32)]).reshape(1, 24, 87)
    weight = (np.arange(maps.size) < len(scores)).astype(np.float32).reshape(maps.shape)
    counts = localisation.score_histograms(maps, np.ones_like(maps), weight, np.array([True]))
    np.testing.assert_array_equal(counts[1], np.histogram(scores, edges)[0])
    assert not counts[0].any()
    assert not localisation.score_histograms(maps, np.ones_like(maps), weight, np.array([False])).any()


def test_pixel_average_precision_is_scikit_learns_on_binned_scores():
    random = np.random.default_rng(0)
    maps = (random.integers(0, 1001, (3, 6, 6)) / 1000).astype(np.float32)
    truth = random.integers(0, 2, (3, 6, 6)).astype(np.float32)
    weight, counted = np.ones_like(truth), np.array([True, True, True])
    batches = [localisation.score_histograms(maps[i], truth[i], weight[i], counted[i]) for i in ([0], [1, 2])]
    expected = sklearn_metrics.average_precision_score(truth.ravel(), maps.ravel())
    assert localisation.pixel_average_precision(sum(map(np.asarray, batches))) == pytest.approx(expected, rel=1e-9)
    assert localisation.pixel_average_precision(np.zeros((2, 1001))) is None
