"""Small worlds that can be summed exactly, for the tests of docs/theory.md.

A world is a list of (probability, y, x): a label and a tuple of pixels. A selection is the set of pixels that is shown;
a reader is shown the selection and its pixels. Information is in nats.
"""

import functools
import itertools
import math

import jax
import numpy as np

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
