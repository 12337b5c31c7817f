"""Where the object is the optimum, and several classes: P22 to P26 of docs/theory.md, exact on small finite worlds."""

import itertools
import math

import jax
import numpy as np
import pytest
from small_worlds import (
    LN2,
    chosen,
    entropy_given,
    fixed,
    information,
    posterior,
    seen_through,
    selections,
    uniform_world,
)

from selfexplain_jax.models import masking

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
