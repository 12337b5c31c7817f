"""Who passes the sanity checks on a network of a few layers: the gradient does, guided backpropagation does not."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selfexplain_jax.attribution import build_method
from selfexplain_jax.metrics import mean, sanity
from selfexplain_jax.types import Predictor

SIZE, WIDTH = 16, 32
METHODS = {name: build_method(name, channels="sum") for name in ("guided_backpropagation", "gradient")}


def patches(count, seed):
    """Images [count, 16, 16, 3], a patch of one colour on grey, and 1 where it is rather red or -1 where it is blue."""
    random = np.random.default_rng(seed)
    images = np.zeros((count, SIZE, SIZE, 3), np.float32)
    for image in images:
        top, left = random.integers(2, SIZE - 8, 2)
        image[top : top + 6, left : left + 6] = random.uniform(-2, 2, 3)
    colour = images.sum(axis=(1, 2))
    return images, np.where(colour[:, 0] > colour[:, 2], 1.0, -1.0)


def draw(seed):
    """Random weights of two convolutions of 3 x 3 and a last layer, each of variance 2 / inputs but the last."""
    random = np.random.default_rng(seed)

    def normal(*shape):
        return random.normal(size=shape) * np.sqrt(2 / np.prod(shape[:-1]))

    weights = {
        "head": random.normal(size=(WIDTH, 2)),
        "second": normal(3, 3, WIDTH, WIDTH),
        "first": normal(3, 3, 3, WIDTH),
    }
    return {"params": jax.tree.map(np.float32, weights)}


def pooled(variables, images):
    """Means of the second layer's channels, [B, WIDTH]."""
    values = images
    for layer in ("first", "second"):
        kernel = variables["params"][layer]
        dimensions = ("NHWC", "HWIO", "NHWC")
        values = jax.lax.conv_general_dilated(values, kernel, (1, 1), "SAME", dimension_numbers=dimensions)
        values = jnp.maximum(values, 0)
    return values.mean(axis=(1, 2))


def scores(variables, images):
    return pooled(variables, images) @ variables["params"]["head"]


def build(variables):
    return Predictor(jax.tree_util.Partial(scores, variables), jax.nn.softmax, ("red", "blue"), SIZE)


IMAGES, _ = patches(8, 0)
CLASS_IDS = np.zeros((8, 1), np.int32)


@functools.cache
def after_redrawing(name, independent):
    layers = ["params/head", "params/second"]
    sums = sanity.randomisation_sums(
        build, draw(0), draw(1), layers, METHODS[name], IMAGES, CLASS_IDS, independent=independent
    )
    assert {number.split("/")[0] for number in sums} == set(sanity.SIMILARITIES)
    return {number: float(mean(pair)) for number, pair in sums.items()}


@pytest.mark.parametrize("independent", [False, True])
def test_guided_backpropagation_fails_where_the_gradient_passes(independent):
    guided, plain = (after_redrawing(name, independent) for name in METHODS)
    for layer in ("params/head", "params/second"):
        assert guided[f"rank_correlation/{layer}"] > 0.5 and abs(plain[f"rank_correlation/{layer}"]) < 0.25
        for name in ("ssim", "hog_correlation"):
            assert guided[f"{name}/{layer}"] > plain[f"{name}/{layer}"] + 0.1, name


def trained(images, targets):
    """The network of seed 0 with its last layer fitted to +1 and -1 by least squares."""
    variables = draw(0)
    features = np.asarray(pooled(variables, images), np.float64)
    fitted = np.linalg.solve(features.T @ features + 1e-3 * np.eye(WIDTH), features.T @ targets)
    accuracy = ((features @ fitted > 0) == (targets > 0)).mean()
    head = np.stack([fitted, -fitted], axis=1).astype(np.float32)
    return build({"params": variables["params"] | {"head": head}}), accuracy


def test_maps_of_true_labels_against_those_of_shuffled_ones():
    images, targets = patches(64, 5)
    shuffled = targets[np.random.default_rng(3).permutation(64)]
    (true, learnt), (random, memorised) = trained(images, targets), trained(images, shuffled)
    # Chance is 1/2: what is above it in the second was learnt by heart.
    assert learnt > 0.9 and 0.7 < memorised < learnt
    similar = {}
    for name, method in METHODS.items():
        sums = sanity.random_label_sums(true, random, method, IMAGES, CLASS_IDS)
        similar[name] = float(mean(sums["rank_correlation"]))
    assert similar["guided_backpropagation"] > 0.5 and abs(similar["gradient"]) < 0.25
