"""The propositions of docs/theory.md, P1 to P26, in numbers: exact on small finite worlds, or on the code's own terms.

A world is a list of (probability, y, x): a label and a tuple of pixels. A selection is the set of pixels that is shown;
a reader is shown the selection and its pixels. Information is in nats.
"""

import functools
import itertools
import math
import pathlib
import re

import jax
import numpy as np
import pytest

from selfexplain_jax.models import masking, pooling
from selfexplain_jax.objectives import TERMS

LN2 = math.log(2)


def term(name, outputs, label=None, link="sigmoid", **options):
    """The code's own term [B], as one compiled program."""
    outputs = {key: np.asarray(value, np.float32) for key, value in outputs.items()}
    return np.asarray(jax.jit(functools.partial(TERMS[name], link=link, **options))(outputs, label))


def seen_through(selection, x):
    """What a reader is given: which pixels are shown, and their values."""
    return tuple(sorted(selection)), tuple(x[u] for u in sorted(selection))


def posterior(world, shown):
    """P(y | shown) as {shown: {y: probability}}, where `shown(y, x)` is anything that can be a key."""
    table = {}
    for p, y, x in world:
        row = table.setdefault(shown(y, x), {})
        row[y] = row.get(y, 0.0) + p
    return {key: {y: p / sum(row.values()) for y, p in row.items()} for key, row in table.items()}


def cross_entropy(world, shown, reader):
    """E[-log reader(shown)[y]]."""
    return sum(-p * math.log(reader(shown(y, x))[y]) for p, y, x in world if p > 0)


def entropy_given(world, shown):
    """H(Y | shown)."""
    return cross_entropy(world, shown, posterior(world, shown).__getitem__)


def information(world, shown):
    """I(Y; shown)."""
    return entropy_given(world, lambda y, x: ()) - entropy_given(world, shown)


def fixed(selection):
    return lambda y, x: seen_through(selection, x)


def chosen(rule):
    """What is shown where the selection is a function of label and image, `rule(y, x)`."""
    return lambda y, x: seen_through(rule(y, x), x)


def honest_reader(world, pixels):
    """P(y | X_v = a) for every fixed selection v, as a function of what is seen."""
    tables = {v: posterior(world, fixed(v)) for v in selections(pixels)}
    return lambda seen: tables[seen[0]][seen]


def selections(pixels):
    return [v for size in range(pixels + 1) for v in itertools.combinations(range(pixels), size)]


def random_world(seed, pixels=3, classes=3):
    """Every label and every image of bits with a random probability."""
    atoms = list(itertools.product(range(classes), itertools.product((0, 1), repeat=pixels)))
    probabilities = np.random.default_rng(seed).dirichlet(np.full(len(atoms), 0.5))
    return [(p, y, x) for p, (y, x) in zip(probabilities, atoms, strict=True)]


def uniform_world(images, label):
    """Every image equally probable, with the label that `label(x)` gives it."""
    images = list(images)
    return [(1 / len(images), label(x), x) for x in images]


# ---- The object pass -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1])
def test_p1_cross_entropy_bounds_the_information_and_the_gap_is_a_divergence(seed):
    world = random_world(seed)
    shown = chosen(lambda y, x: (0, 1) if x[0] == y % 2 else (2,))  # The selection may know the label.
    truth = posterior(world, shown)
    random = np.random.default_rng(seed)
    answers = {key: dict(enumerate(random.dirichlet(np.ones(3)))) for key in truth}

    entropy = entropy_given(world, lambda y, x: ())
    bound = entropy - cross_entropy(world, shown, answers.__getitem__)
    divergence = cross_entropy(world, shown, answers.__getitem__) - cross_entropy(world, shown, truth.__getitem__)
    assert bound < information(world, shown)
    assert information(world, shown) - bound == pytest.approx(divergence)
    assert divergence == pytest.approx(
        sum(
            sum(p for p, y, x in world if shown(y, x) == key)
            * sum(q * math.log(q / answers[key][y]) for y, q in row.items() if q > 0)
            for key, row in truth.items()
        )
    )


def test_p2_relative_form_has_the_gradient_of_the_divergence():
    scores, masked = np.float32([[1.0, -0.5, 0.2]]), np.float32([[[0.3, 0.1, -2.0]]])
    label = np.float32([[1.0, 0.0, 0.0]])

    @jax.jit
    @jax.grad
    def gradient(object_scores):
        outputs = {"scores": scores, "object_scores": object_scores}
        outputs |= {"object_label": label[:, None], "object_valid": np.ones((1, 1), np.float32)}
        return TERMS["object"](outputs, label, link="softmax", target="relative")[0]

    def softmax(z):
        return np.exp(z) / np.exp(z).sum()

    np.testing.assert_allclose(gradient(masked)[0, 0], softmax(masked[0, 0]) - softmax(scores[0]), atol=1e-6)
    np.testing.assert_allclose(gradient(scores[:, None]), 0.0, atol=1e-6)


def test_p2_holds_class_by_class_under_the_sigmoid_link():
    scores, masked = np.float32([[1.0, -0.5, 0.2]]), np.float32([[[0.3, 0.1, -2.0]]])
    # Two classes are present, and both are shown: the union's pass.
    label = np.float32([[1.0, 1.0, 0.0]])

    @jax.jit
    @jax.grad
    def gradient(object_scores):
        outputs = {"scores": scores, "object_scores": object_scores}
        outputs |= {"object_label": label[:, None], "object_valid": np.ones((1, 1), np.float32)}
        return TERMS["object"](outputs, label, link="sigmoid", target="relative")[0]

    def sigmoid(z):
        return 1 / (1 + np.exp(-z))

    np.testing.assert_allclose(gradient(masked)[0, 0], (sigmoid(masked[0, 0]) - sigmoid(scores[0])) / 3, atol=1e-6)
    np.testing.assert_allclose(gradient(scores[:, None]), 0.0, atol=1e-6)


@pytest.mark.parametrize("seed", [0, 1])
def test_p3_class_by_class_answers_miss_what_classes_tell_of_each_other(seed):
    world = random_world(seed, classes=4)  # y = 0 ... 3 stands for two binary labels.
    shown = fixed((0, 2))
    bits = [[(p, (y >> c) & 1, x) for p, y, x in world] for c in range(2)]
    separate = sum(entropy_given(bit, shown) for bit in bits)  # The least sum of binary cross-entropies.
    assert separate >= entropy_given(world, shown) - 1e-12
    # Two labels that are always equal: the least sum is 2 log 2, though their entropy is log 2.
    twins = [(0.5, 0, ()), (0.5, 3, ())]
    separate = sum(entropy_given([(p, (y >> c) & 1, x) for p, y, x in twins], fixed(())) for c in range(2))
    assert separate - entropy_given(twins, fixed(())) == pytest.approx(LN2)


def test_p4_a_larger_fixed_selection_never_tells_less():
    world = random_world(2)
    for small, large in itertools.product(selections(3), repeat=2):
        if set(small) <= set(large):
            assert entropy_given(world, fixed(large)) <= entropy_given(world, fixed(small)) + 1e-12


# ---- The background pass ---------------------------------------------------------------------------------------------


def background_value(world, selection, form, link):
    """The expected background term where a reader answers the posterior, by the code's own term."""
    table = posterior(world, fixed(selection))
    rows, weights = [], []
    for seen, row in table.items():
        p = np.asarray([row[y] for y in sorted(row)])
        rows.append(np.log(p) if link == "softmax" else np.log(p) - np.log1p(-p))
        weights.append(sum(q for q, y, x in world if seen_through(selection, x) == seen))
    rows += [rows[0]] * (4 - len(rows))  # One shape for all selections, and so one program.
    weights += [0.0] * (4 - len(weights))
    return float(np.asarray(weights) @ term("background", {"background_scores": rows}, link=link, form=form))


@pytest.mark.parametrize(("form", "link"), [("entropy", "softmax"), ("uniform", "softmax"), ("absent", "sigmoid")])
def test_p5_background_forms_are_least_where_nothing_is_told(form, link):
    # Pixel 0 speaks of the label, pixel 1 does not.
    rare = {0: 0.5, 1: 0.3, 2: 0.2}
    world = [
        (rare[y] * (0.8 if x[0] == (y > 0) else 0.2) / 2, y, x)
        for y in rare
        for x in itertools.product((0, 1), repeat=2)
    ]
    values = {v: background_value(world, v, form, link) for v in selections(2)}
    pi = np.asarray(list(rare.values()))
    least = {
        "entropy": math.log(3) + (pi * np.log(pi)).sum(),
        "uniform": -math.log(3) - np.log(pi).mean(),
        "absent": -np.log1p(-pi).sum(),
    }[form]
    assert values[()] == pytest.approx(least, abs=1e-6)
    assert values[(1,)] == pytest.approx(least, abs=1e-6)
    assert values[(0,)] > least + 0.01 and values[(0, 1)] > least + 0.01
    if form == "entropy":
        assert values[(0,)] - least == pytest.approx(information(world, fixed((0,))), abs=1e-6)


def test_p6_a_blind_reader_passes_and_uniform_answers_need_not_mean_nothing():
    world = uniform_world([(0,), (1,)], lambda x: x[0])
    assert term("background", {"background_scores": [[0.0, 0.0]]}, link="softmax")[0] == pytest.approx(0.0, abs=1e-6)
    assert information(world, fixed((0,))) == pytest.approx(LN2)  # And yet the background says everything.
    # "Every class is here" is as uniform as "no class is here"; the binary form tells them apart.
    everything = {"background_scores": [[9.0, 9.0, 9.0]]}
    for form in ("uniform", "entropy", "mean_entropy"):
        assert term("background", everything, form=form)[0] < 1e-5
    assert term("background", everything)[0] > 27.0


# ---- The evaluator pass and codes ------------------------------------------------------------------------------------


def test_p7_masks_that_know_nothing_train_an_honest_reader():
    world = random_world(3)
    random = np.random.default_rng(0)
    weights = dict(zip(selections(3), random.dirichlet(np.ones(8)), strict=True))
    drawn = [(p * weights[v], y, (x, v)) for p, y, x in world for v in weights]  # The mask is independent of both.
    learnt = posterior(drawn, lambda y, pair: seen_through(pair[1], pair[0]))
    honest = honest_reader(world, 3)
    for seen, row in learnt.items():
        assert row == pytest.approx(honest(seen))
    # Where the mask is the label's, what is learnt is another thing.
    rule = chosen(lambda y, x: (y,))
    assert any(row != pytest.approx(honest(seen)) for seen, row in posterior(world, rule).items())


RULES = {
    "tells the label": lambda y, x: (y,),
    "tells a pixel that it hides": lambda y, x: (1,) if x[0] else (2,),
    "always the same": lambda y, x: (0, 2),
    "depends on what it shows": lambda y, x: (0, 1) if x[0] else (0,),
}


@pytest.mark.parametrize("name", RULES)
def test_p8_honest_reading_charges_for_the_code(name):
    world, shown = random_world(4), chosen(RULES[name])
    honest = honest_reader(world, 3)
    truth = posterior(world, shown)
    code = sum(p * (math.log(truth[shown(y, x)][y]) - math.log(honest(shown(y, x))[y])) for p, y, x in world if p > 0)
    total = cross_entropy(world, shown, honest)
    assert total == pytest.approx(entropy_given(world, shown) + code)
    if name in ("always the same", "depends on what it shows"):
        assert code == pytest.approx(0.0, abs=1e-12)
    else:
        assert code > 0.01


@pytest.mark.parametrize("rule", [lambda y, x: (1 + y,), lambda y, x: (1,) if x[0] else (2,)])
def test_p9_a_mask_can_tell_what_its_pixels_do_not(rule):
    world = uniform_world(itertools.product((0, 1), repeat=3), lambda x: x[0])  # Pixels 1 and 2 are noise.
    shown = chosen(rule)
    assert information(world, shown) == pytest.approx(LN2)
    assert cross_entropy(world, shown, honest_reader(world, 3)) == pytest.approx(LN2)  # At chance.


def test_p10_a_mask_without_the_label_cannot_beat_the_image_read_honestly():
    world = random_world(5)
    honest, whole = honest_reader(world, 3), entropy_given(world, fixed((0, 1, 2)))
    random = np.random.default_rng(0)
    for _ in range(50):
        rule = {x: selections(3)[i] for (_, _, x), i in zip(world, random.integers(0, 8, len(world)), strict=True)}
        value = cross_entropy(world, chosen(lambda y, x, rule=rule: rule[x]), honest)
        assert value >= whole - 1e-12


def test_p10_a_mask_that_costs_no_more_than_the_image_is_no_code():
    # The label is pixel 0; pixels 1 and 2 are noise. A mask may follow what it shows, or noise, and still show pixel 0.
    world = uniform_world(itertools.product((0, 1), repeat=3), lambda x: x[0])
    honest, whole = honest_reader(world, 3), entropy_given(world, fixed((0, 1, 2)))
    rules = itertools.product(selections(3), repeat=2)
    equal = 0
    for low, high in rules:
        shown = chosen(lambda y, x, low=low, high=high: high if x[1] else low)
        excess = cross_entropy(world, shown, honest) - whole
        code = cross_entropy(world, shown, honest) - entropy_given(world, shown)
        equal += excess < 1e-12
        assert excess > 0.1 or code == pytest.approx(0.0, abs=1e-12)
    assert equal == 16  # Both selections hold pixel 0: four of eight each.


def noisy_copies(agree=0.75):
    """Two pixels, each the fair label with probability `agree`, independently."""
    return [
        (0.5 * math.prod(agree if pixel == y else 1 - agree for pixel in x), y, x)
        for y in (0, 1)
        for x in itertools.product((0, 1), repeat=2)
    ]


def agreeing(y, x):
    return tuple(u for u in range(2) if x[u] == y)


def test_p11_a_mask_that_sees_the_label_hides_what_speaks_against_it():
    world = noisy_copies()
    honest = honest_reader(world, 2)
    absolute = cross_entropy(world, chosen(agreeing), honest)
    expected = -9 / 16 * math.log(0.9) - 6 / 16 * math.log(0.75) + 1 / 16 * LN2
    assert absolute == pytest.approx(expected)
    assert absolute < entropy_given(world, fixed((0, 1))) - 0.2
    # Whatever is shown is the label, so all but the empty mask leave nothing open: the rest is code.
    assert entropy_given(world, chosen(agreeing)) == pytest.approx(LN2 / 16)

    def relative(rule):
        """E KL(P(. | x) || honest(. | x_M))."""
        return sum(
            p * sum(q * math.log(q / honest(seen_through(rule(y, x), x))[c]) for c, q in honest(((0, 1), x)).items())
            for p, y, x in world
        )

    assert relative(lambda y, x: (0, 1)) == pytest.approx(0.0)
    assert relative(agreeing) > 0.05


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


# ---- Where the object is the optimum ---------------------------------------------------------------------------------


def objective(world, pixels, selection, beta, price):
    """H(Y | X_v) + beta I(Y; X_rest) + price |v| / N."""
    rest = tuple(sorted(set(range(pixels)) - set(selection)))
    told = beta * information(world, fixed(rest)) if beta else 0.0
    return entropy_given(world, fixed(selection)) + told + price * len(selection) / pixels


def best_selections(world, pixels, beta, price):
    values = {v: objective(world, pixels, v, beta, price) for v in selections(pixels)}
    least = min(values.values())
    return {v for v, value in values.items() if value < least + 1e-9}


BITS3, BITS4 = list(itertools.product((0, 1), repeat=3)), list(itertools.product((0, 1), repeat=4))
# Pixels 0, 1, 2 are the object, 3 is background that knows nothing.
COPIES = uniform_world([(b, b, b, n) for b in (0, 1) for n in (0, 1)], lambda x: x[0])
TOGETHER = uniform_world(BITS4, lambda x: x[0] ^ x[1] ^ x[2])
RIM = uniform_world(BITS4, lambda x: x[0] ^ x[1])  # The object's inside, pixel 2, says nothing.


def test_p22_the_object_is_what_remains_where_every_part_of_it_speaks():
    assert best_selections(COPIES, 4, beta=1, price=0.01) == {(0, 1, 2)}
    assert best_selections(TOGETHER, 4, beta=1, price=0.01) == {(0, 1, 2)}
    # The object pass alone keeps one of several copies; the background pass is what asks for all.
    assert best_selections(COPIES, 4, beta=0, price=0.01) == {(0,), (1,), (2,)}
    # Pixels that tell only together are held by the object pass alone.
    assert best_selections(TOGETHER, 4, beta=0, price=0.01) == {(0, 1, 2)}
    assert best_selections(RIM, 4, beta=1, price=0.01) == {(0, 1)}


@pytest.mark.parametrize("seed", range(6))
def test_p22_the_condition_is_exact(seed):
    random = np.random.default_rng(seed)
    # A random label of two bits of the object's three pixels, so that the inside may be redundant or not.
    names = dict(zip(BITS3, random.integers(0, 3, 8), strict=True))
    if seed % 2:
        names = {x: names[(x[0], x[1], 0)] for x in BITS3}
    world = [
        (p / 2, names[x], (*x, n)) for x, p in zip(BITS3, random.dirichlet(np.ones(8)), strict=True) for n in (0, 1)
    ]
    for v in selections(4):
        kept = tuple(u for u in v if u != 3)
        assert objective(world, 4, v, 1.0, 0.1) >= objective(world, 4, kept, 1.0, 0.1) - 1e-12
    slack = min(
        entropy_given(world, fixed(tuple(set(range(3)) - set(w)))) + information(world, fixed(w))
        for w in selections(3)
        if w
    )
    unique = best_selections(world, 4, beta=1.0, price=1e-6) == {(0, 1, 2)}
    assert unique == (slack > 1e-9)


@pytest.mark.parametrize(("label", "told"), [("texture", 0.0), ("outline", LN2)])
def test_p23_the_hole_tells_what_the_outline_tells(label, told):
    # Three pixels; the object is the first or the first two of them, its texture a bit, the background noise.
    world, regions = [], {0: (0,), 1: (0, 1)}
    for region, texture, noise in itertools.product((0, 1), (0, 1), itertools.product((0, 1), repeat=3)):
        image = tuple(texture if u in regions[region] else noise[u] for u in range(3))
        world.append((1 / 32, texture if label == "texture" else region, (*image, region)))

    def beside(y, x):
        return tuple(set(range(3)) - set(regions[x[3]]))

    assert entropy_given(world, chosen(lambda y, x: regions[x[3]])) == pytest.approx(0.0, abs=1e-12)
    assert information(world, chosen(beside)) == pytest.approx(told, abs=1e-12)


@pytest.mark.parametrize("agree", [0.9, 1.0])
def test_p24_context_that_goes_with_the_label_belongs_to_the_optimum(agree):
    world = [(0.5 * (agree if x1 == y else 1 - agree), y, (y, x1)) for y, x1 in itertools.product((0, 1), repeat=2)]
    world = [atom for atom in world if atom[0] > 0]
    assert best_selections(world, 2, beta=1, price=0.01) == {(0, 1)}
    if agree == 1:  # Nothing tells the object from its background.
        assert objective(world, 2, (0,), 1, 0.1) == pytest.approx(objective(world, 2, (1,), 1, 0.1))


# ---- Several classes -------------------------------------------------------------------------------------------------


def test_p25_the_union_of_masks_does_not_say_whose_is_which():
    maps = np.random.default_rng(8).normal(size=(1, 3, 3, 3)).astype(np.float32)
    label = np.float32([[1.0, 1.0, 0.0]])
    present, absent = maps[..., :2], maps[..., 2:]
    taken = np.concatenate([present.max(-1, keepdims=True), present.min(-1, keepdims=True), absent], -1)

    @jax.jit
    def masks(maps):
        union = masking.target_logits(maps, label), masking.non_target_logits(maps, label)
        return union, masking.class_masks(maps, np.array([[0]]), 3)

    union, first = masks(maps)
    for other in (maps[..., [1, 0, 2]], taken):
        other_union, other_first = masks(other)
        np.testing.assert_allclose(other_union, union)
        assert not np.allclose(other_first, first)


def test_p26_one_class_at_a_time_must_hide_the_others():
    flip = 0.01  # Pixel c shows class c, up to a rare error that keeps the loss finite.
    world = [
        (0.25 * math.prod(1 - flip if x[c] == y[c] else flip for c in range(2)), y, x)
        for y in itertools.product((0, 1), repeat=2)
        for x in itertools.product((0, 1), repeat=2)
    ]

    def loss(selection):
        """Mean over images with both classes of BCE against "class 0 alone", read honestly."""
        table = posterior(world, fixed(selection))
        total = weight = 0.0
        for p, y, x in world:
            row = table[seen_through(selection, x)]
            first, second = (sum(q for labels, q in row.items() if labels[c]) for c in range(2))
            total += (y == (1, 1)) * p * -(math.log(first) + math.log(1 - second))
            weight += (y == (1, 1)) * p
        return total / weight

    assert loss((0,)) == pytest.approx(LN2, abs=0.1)  # What is hidden is as likely as before.
    assert loss((0, 1)) > 4
    assert loss((0,)) < min(loss(v) for v in [(), (1,), (0, 1)])


@pytest.mark.parametrize("extra", [(), (3,)])
def test_p26_what_is_hidden_costs_its_own_rarity(extra):
    rates = (0.5, 0.25, 0.1)
    # Pixels 0 to 2 are the classes, pixel 3 is background; class 0 is shown, with or without background.
    world = [
        (0.5 * math.prod(r if y else 1 - r for r, y in zip(rates, present, strict=True)), present, (*present, noise))
        for present in itertools.product((0, 1), repeat=3)
        for noise in (0, 1)
    ]
    shown = fixed((0, *extra))
    table = posterior(world, shown)
    alone, expected = (1, 0, 0), -math.log(1 - rates[1]) - math.log(1 - rates[2])
    for p, y, x in world:
        if y[0] and p:
            row = table[shown(y, x)]
            answers = [sum(q for labels, q in row.items() if labels[c]) for c in range(3)]
            cost = -sum(math.log(a if target else 1 - a) for a, target in zip(answers, alone, strict=True))
            assert cost == pytest.approx(expected)


# ---- The document ----------------------------------------------------------------------------------------------------


def test_every_proposition_names_its_test():
    here = pathlib.Path(__file__)
    text = (here.parents[1] / "docs" / "theory.md").read_text()
    stated = set(re.findall(r"\*\*P(\d+)\b", text))
    tested = set(re.findall(r"^def test_p(\d+)_", here.read_text(), re.MULTILINE))
    assert stated == tested == {str(number) for number in range(1, 27)}
    for name in re.findall(r"`(test_\w+)`", text):
        files = list(here.parent.glob("test_*.py"))
        assert any(f"def {name}(" in file.read_text() for file in files), name
