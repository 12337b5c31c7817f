"""Results of the published implementations on the same weights and images, by tests/parity/generate_perturbation.py."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parity import small_network

from selfexplain_jax import attribution
from selfexplain_jax.attribution.cam import resize_to_image, weighted_sum
from selfexplain_jax.attribution.extremal_perturbation import VARIANTS, extremal_masks
from selfexplain_jax.attribution.score_cam import masked_scores, score_cam
from selfexplain_jax.types import Predictor

GOLDEN = np.load(pathlib.Path(__file__).parent / "parity" / "perturbation.npz")
WEIGHTS = {name: jnp.asarray(array) for name, array in small_network.weights().items()}
IMAGES = small_network.images()


def convolve(x, name):
    dimensions = ("NHWC", "HWIO", "NHWC")
    y = jax.lax.conv_general_dilated(x, WEIGHTS[name], (2, 2), ((1, 1), (1, 1)), dimension_numbers=dimensions)
    return jax.nn.relu(y + WEIGHTS[f"{name}_bias"].reshape(1, 1, 1, -1))


def features(images):
    return convolve(convolve(images, "first"), "second")


def head(features):
    return features.mean(axis=(1, 2)) @ WEIGHTS["linear"] + WEIGHTS["linear_bias"].reshape(1, -1)


# TorchRay's RISE takes the sigmoid of the scores.
PREDICTOR = Predictor(
    scores=lambda images: head(features(images)),
    probabilities=jax.nn.sigmoid,
    class_names=tuple("abc"),
    image_size=small_network.SIZE,
    features=features,
    head=head,
)


def relative(ours, theirs):
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def test_scores_are_the_same():
    assert relative(PREDICTOR.scores(jnp.asarray(IMAGES)), GOLDEN["scores"]) < 1e-5


def test_rise_with_shared_masks():
    ours = attribution.rise_from_masks(PREDICTOR, IMAGES, np.array([[0, 1]] * 2), small_network.masks(), chunk_size=16)
    # TorchRay leaves out the division by E[M].
    difference = relative(0.5 * ours, GOLDEN["rise"])
    print(f"relative difference {difference:.1e}")
    assert difference < 1e-5


def test_score_cam_before_relu_and_resize():
    class_ids = np.array([[0, 1, 2]] * 2)
    activations = features(jnp.asarray(IMAGES))
    maps = activations.transpose(0, 3, 1, 2)
    answers = masked_scores(PREDICTOR.scores, jnp.asarray(IMAGES), maps, jnp.asarray(class_ids), 5)
    ours = weighted_sum(activations, jax.nn.softmax(answers, axis=1).transpose(0, 2, 1))
    difference = relative(ours, GOLDEN["score_cam"])
    print(f"relative difference {difference:.1e}")
    assert difference < 1e-4
    whole = score_cam(PREDICTOR, IMAGES, class_ids)
    expected = resize_to_image(jnp.maximum(GOLDEN["score_cam"], 0.0), small_network.SIZE)
    assert relative(whole, expected) < 1e-4


@pytest.mark.parametrize("variant", VARIANTS)
def test_extremal_masks(variant):
    ours = extremal_masks(
        PREDICTOR,
        IMAGES,
        np.array([[1], [1]]),
        areas=(0.05,),
        variant=variant,
        steps=40,
        levels=5,
        grid_step=3,
        sigma=6.0,
    )[:, 0]
    theirs = GOLDEN[f"extremal_{variant}"].astype(np.float32)
    overlap = np.minimum(ours, theirs).sum(axis=(2, 3)) / np.maximum(ours, theirs).sum(axis=(2, 3))
    print(f"IoU {overlap.round(4).tolist()}, largest difference {np.abs(ours - theirs).max():.4f}")
    assert overlap.min() > 0.99
