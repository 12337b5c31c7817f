"""What docs/theory.md says of the passes and of codes, P1 to P11, exact on small finite worlds."""

import itertools
import math

import jax
import numpy as np
import pytest
from small_worlds import (
    LN2,
    chosen,
    cross_entropy,
    entropy_given,
    fixed,
    honest_reader,
    information,
    posterior,
    random_world,
    seen_through,
    selections,
    term,
    uniform_world,
)

from selfexplain_jax.objectives import TERMS

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
