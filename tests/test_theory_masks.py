"""What docs/theory.md says of areas, smoothness, the pool and degenerate masks, P12 to P21, on the code's own terms."""

import functools
import itertools
import math

import jax
import numpy as np
import pytest
from small_worlds import entropy_given, fixed, information, random_world, selections, term

from selfexplain_jax.models import masking, pooling
from selfexplain_jax.objectives import TERMS

# ---- Area, smoothness, affinity --------------------------------------------------------------------------------------


def test_p12_a_penalised_minimiser_solves_the_constrained_problem():
    random = np.random.default_rng(0)
    for _ in range(20):
        loss, area = random.random(16), random.random(16)
        best = np.argmin(loss + 0.5 * area)
        allowed = area <= area[best]
        assert loss[best] == loss[allowed].min()


def test_p13_total_variation_is_the_mean_perimeter_of_level_sets():
    random = np.random.default_rng(1)
    mask = random.integers(0, 9, (5, 4)) / 8  # Level sets change at multiples of 1/8 alone.
    levels = np.stack([mask > (t + 0.5) / 8 for t in range(8)])
    masks = np.concatenate([mask[None], levels])
    variation = term(
        "smoothness", {"target_mask": masks, "non_target_mask": 0 * masks, "image": np.zeros((9, 5, 4, 3))}
    )
    assert variation[0] == pytest.approx(variation[1:].mean(), rel=1e-6)
    # With the area, or any other linear price, some level set is at least as good as the grey mask.
    total = variation + (masks * random.normal(size=(5, 4))).mean(axis=(1, 2))
    assert total[1:].min() <= total[0] + 1e-6
    # Squares of differences have no such property: they want ramps.
    ramps = np.array([[0.0, 0.5, 1.0], [0.0, 0.0, 1.0], [0.0, 1.0, 1.0]])
    ramp, *steps = term("squared_smoothness", {"target_mask": np.repeat(ramps[:, None], 2, axis=1)})
    assert ramp < min(steps)


def test_p14_affinity_is_the_expected_cut_of_a_random_hard_mask():
    random = np.random.default_rng(2)
    image, mask = random.normal(size=(2, 3, 3)) * 0.3, random.random((2, 3))
    hard = np.asarray(list(itertools.product((0.0, 1.0), repeat=6))).reshape(64, 2, 3)
    chance = np.prod(np.where(hard > 0, mask, 1 - mask), axis=(1, 2))
    masks = np.concatenate([mask[None], hard])
    outputs = {"image": np.broadcast_to(image, (65, 2, 3, 3)), "target_mask": masks}
    values = term("affinity", outputs, scale=0.5, reach=1)
    assert values[0] == pytest.approx(chance @ values[1:], rel=1e-4)
    assert values[1:].min() <= values[0]


SOFTMAX_POOL = jax.jit(pooling.softmax_pool)

# ---- The pool --------------------------------------------------------------------------------------------------------


def test_p15_the_pool_shares_out_one_and_grows_with_its_temperature():
    maps, k = np.random.default_rng(3).normal(size=(1, 3, 3, 1)).astype(np.float32), 0.7

    @jax.jit
    @functools.partial(jax.value_and_grad, argnums=(0, 1))
    def score(maps, k):
        return pooling.softmax_pool(maps, k)[0, 0]

    z, (by_cell, by_k) = score(maps, k)
    weights = np.exp(k * maps) / np.exp(k * maps).sum()
    assert np.sum(by_cell) == pytest.approx(1.0, abs=1e-5)
    assert float(by_k) == pytest.approx(float((weights * (maps - float(z)) ** 2).sum()), rel=1e-4)
    assert maps.mean() <= z <= maps.max()
    np.testing.assert_array_equal(np.asarray(by_cell) < 0, maps < float(z) - 1 / k)


@pytest.mark.parametrize("name", ["mean", "max", "softmax", "logsumexp"])
def test_p16_a_class_that_is_found_has_a_cell_in_its_mask(name):
    maps = np.random.default_rng(4).normal(size=(50, 3, 3, 2)).astype(np.float32)
    scores = np.asarray(jax.jit(functools.partial(pooling.pool, name=name, temperature=0.8))(maps))
    probability, masks = (1 / (1 + np.exp(-logits)) for logits in (scores, maps))
    assert (probability <= masks.max(axis=(1, 2)) + 1e-6).all()


def test_p17_softmax_leaves_all_maps_an_offset():
    maps = np.random.default_rng(5).normal(size=(1, 3, 3, 3)).astype(np.float32)
    label = np.float32([[0.0, 1.0, 0.0]])

    @jax.jit
    def losses(offset):
        outputs = {"scores": pooling.softmax_pool(maps + offset, 0.5)}
        return [TERMS["classification"](outputs, label, link=link)[0] for link in ("softmax", "sigmoid")]

    (softmax, sigmoid), (softmax_above, sigmoid_above) = losses(0.0), losses(8.0)
    assert float(softmax_above) == pytest.approx(float(softmax), abs=1e-5)
    assert sigmoid_above > sigmoid + 1
    assert (1 / (1 + np.exp(-maps - 8.0))).min() > 0.99  # All masks are full, at no price.


@pytest.mark.parametrize(
    ("cells", "strong", "high", "low"), [(256, 1, 4.0, 4.0), (1024, 1, 4.0, 4.0), (100, 9, 2.0, 5)]
)
def test_p18_above_a_temperature_a_few_cells_carry_a_class(cells, strong, high, low):
    maps = np.full((1, cells, 1, 1), -low, np.float32)
    maps[0, :strong] = high
    limit = math.log((cells - strong) * low / (strong * high)) / (high + low)

    below, at, above = (float(SOFTMAX_POOL(maps, share * limit)[0, 0]) for share in (0.95, 1.0, 1.05))
    assert at == pytest.approx(0.0, abs=1e-3)
    assert below < 0 < above


def test_p19_binary_cross_entropy_starts_with_a_weaker_word_on_which_class_it_is():
    classes, label = 8, np.eye(8, dtype=np.float32)[2:3]

    @jax.jit
    @jax.jacobian
    def gradients(scores):
        return [TERMS["classification"]({"scores": scores}, label, link=link)[0] for link in ("softmax", "sigmoid")]

    softmax, sigmoid = (float(g[0, 0] - g[0, 2]) for g in gradients(np.zeros((1, classes), np.float32)))
    assert softmax / sigmoid == pytest.approx(classes)


# ---- Degenerate masks ------------------------------------------------------------------------------------------------


def test_p20_nothing_but_the_area_speaks_against_a_full_mask():
    world = random_world(6)
    whole = (0, 1, 2)
    for v in selections(3):
        rest = tuple(set(whole) - set(v))
        assert entropy_given(world, fixed(whole)) <= entropy_given(world, fixed(v)) + 1e-12
        assert information(world, fixed(())) <= information(world, fixed(rest)) + 1e-12
    full = {"target_mask": np.ones((1, 4, 4), np.float32), "non_target_mask": np.zeros((1, 4, 4), np.float32)}
    full["image"] = np.random.default_rng(0).normal(size=(1, 4, 4, 3)).astype(np.float32)
    names = ("smoothness", "squared_smoothness", "binarisation", "affinity", "area_target")

    @jax.jit
    def values(outputs):
        return [TERMS[name](outputs, None, link="sigmoid")[0] for name in names]

    *free, area = values(full)
    np.testing.assert_allclose(free, 0.0, atol=1e-5)
    assert area == 1.0


def test_p20_border_speaks_against_a_full_mask_where_it_is_on():
    maps = np.full((1, 8, 8, 3), -4.0, np.float32)
    maps[:, 3:5, 3:5, 0] = 4.0
    full = np.full_like(maps, -4.0)
    full[..., 0] = 4.0
    # Inside of the border nothing is asked; on it the full mask pays for being a class, and for which.
    inside, everywhere = (term("border", {"logit_maps": z})[0] for z in (maps, full))
    assert inside == pytest.approx(math.log1p(math.exp(-4)), rel=1e-4)
    uniform = math.log(math.exp(4) + 2 * math.exp(-4)) - (4 - 8) / 3 - math.log(3)
    assert everywhere == pytest.approx(math.log1p(math.exp(4)) + uniform, rel=1e-4)


def test_p21_a_grey_mask_hides_nothing_unless_the_filling_is_noise():
    random = np.random.default_rng(7)
    image = random.normal(size=(1, 4, 4, 3))
    filling, mask = np.full_like(image, 0.3), np.full((1, 4, 4), 0.1)
    back = (masking.isolate(image, mask, filling) - (1 - mask[..., None]) * filling) / mask[..., None]
    np.testing.assert_allclose(back, image, atol=1e-5)
    # Gaussian pixels under Gaussian noise: half of log(1 + signal / noise) nats are left.
    pixels, noise, grey, strength = *random.normal(size=(2, 2, 200, 200, 1)), 0.4, 0.5
    shown = masking.isolate(pixels, np.full((2, 200, 200), grey), strength * noise)
    correlation = np.corrcoef(np.ravel(shown), np.ravel(pixels))[0, 1]
    expected = 0.5 * math.log(1 + (grey / ((1 - grey) * strength)) ** 2)
    assert -0.5 * math.log(1 - correlation**2) == pytest.approx(expected, rel=0.02)
