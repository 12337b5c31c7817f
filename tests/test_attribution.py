"""Every method of the registry keeps the contract; the controls give known answers; bad input is refused."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selfexplain_jax import attribution
from selfexplain_jax.types import Predictor, UserError

SIZE = 8
CLASSES = 3


@jax.jit
def fake_maps(images):
    """Logit maps [B, H, W, C] that depend on the image and differ by class."""
    return images * jnp.array([1.0, -2.0, 3.0]).reshape(1, 1, 1, 3)


def fake_masks(images, class_ids):
    maps = jnp.take_along_axis(fake_maps(images), class_ids[:, None, None, :], axis=-1)  # [B, H, W, k]
    return jax.nn.sigmoid(maps).transpose(0, 3, 1, 2)


def fake_features(images):
    return jax.nn.relu(fake_maps(images))


def fake_head(features):
    return features.mean(axis=(1, 2))


def fake_attention(images, offsets=None):
    """Two blocks with two heads over a class token and four patches, each of one quarter of the image."""
    batch = images.shape[0]
    patches = images.reshape(batch, 2, SIZE // 2, 2, SIZE // 2, 3).mean(axis=(2, 4)).reshape(batch, 4, 3)
    tokens, seen = jnp.concatenate([patches.mean(axis=1, keepdims=True), patches], axis=1), []  # [B, 5, 3]
    for block in range(2):
        logits = jnp.einsum("bqc,bkc,ch->bhqk", tokens, tokens, jnp.array([[3.0, 1.0], [-2.0, 5.0], [1.0, 2.0]]))
        attention = jax.nn.softmax(logits, axis=-1) + (0.0 if offsets is None else offsets[block])
        tokens = tokens + jnp.einsum("bhqk,bkc->bqc", attention, tokens)
        seen.append(attention)
    return tokens[:, 0], jnp.stack(seen)


PREDICTOR = Predictor(
    scores=lambda images: fake_head(fake_features(images)),
    probabilities=jax.nn.sigmoid,
    class_names=("circle", "square", "star"),
    image_size=SIZE,
    features=fake_features,
    head=fake_head,
    masks=fake_masks,
    layers={"middle": (fake_features, lambda features, images: fake_head(features))},
    attention=fake_attention,
    image_range=(-9, 9),
)
IMAGES = np.random.default_rng(0).normal(size=(2, SIZE, SIZE, 3)).astype(np.float32)
CLASS_IDS = np.array([[0, 2], [1, 1]])
# What makes a search of minutes one of milliseconds, where the tests run over the registry.
SMALL = {
    "rise": {"num_masks": 12, "cells": 3, "chunk_size": 5},
    "score_cam": {"chunk_size": 4},
    "extremal_perturbation": {"steps": 3, "grid_step": 2, "sigma": 3.0, "max_blur": 2.0, "levels": 3},
}


@pytest.mark.parametrize("name", attribution.METHODS)
def test_method_keeps_the_contract(name):
    method = attribution.build_method(name, **SMALL.get(name, {}))
    rng = jax.random.key(0)
    saliency = method(PREDICTOR, IMAGES, CLASS_IDS, rng=rng)
    assert saliency.shape == (2, 2, SIZE, SIZE)
    assert saliency.dtype == jnp.float32
    assert bool(jnp.isfinite(saliency).all())
    np.testing.assert_array_equal(saliency, method(PREDICTOR, IMAGES, CLASS_IDS, rng=rng), err_msg="same rng, same map")
    # The same class asked for twice has the same map twice.
    np.testing.assert_allclose(saliency[1, 0], saliency[1, 1], atol=1e-6)


@pytest.mark.parametrize("name", attribution.METHODS)
def test_method_works_under_jit(name):
    method = attribution.build_method(name, **SMALL.get(name, {}))
    rng = jax.random.key(0)
    jitted = jax.jit(lambda images, class_ids: method(PREDICTOR, images, class_ids, rng=rng))
    np.testing.assert_allclose(
        jitted(IMAGES, CLASS_IDS), method(PREDICTOR, IMAGES, CLASS_IDS, rng=rng), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("name", attribution.METHODS)
def test_batch_equals_singles(name):
    method = attribution.build_method(name, **SMALL.get(name, {}))
    rng = jax.random.key(0)
    together = method(PREDICTOR, IMAGES, CLASS_IDS, rng=rng)
    singles = [method(PREDICTOR, IMAGES[i : i + 1], CLASS_IDS[i : i + 1], rng=rng) for i in range(2)]
    np.testing.assert_allclose(together, np.concatenate(singles), atol=1e-6)


@pytest.mark.parametrize("name", attribution.METHODS)
def test_second_call_compiles_nothing(name):
    method, compiled = attribution.build_method(name, **SMALL.get(name, {})), []

    def listen(event, duration, **_):
        if "compile" in event:
            compiled.append(event)

    ids = [jnp.asarray(CLASS_IDS), jnp.asarray(CLASS_IDS[::-1].copy())]
    rngs = [jax.random.key(0), jax.random.key(1)]
    images = [jnp.asarray(IMAGES), jnp.asarray(-IMAGES)]
    jax.block_until_ready(method(PREDICTOR, images[0], ids[0], rng=rngs[0]))
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        jax.block_until_ready(method(PREDICTOR, images[1], ids[1], rng=rngs[1]))
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert not compiled


@pytest.mark.parametrize("name", attribution.METHODS)
def test_no_method_hides_a_nan(name):
    broken = IMAGES.copy()
    broken[0, 2, 3] = np.nan
    method = attribution.build_method(name, **SMALL.get(name, {}))
    maps = np.asarray(method(PREDICTOR, broken, CLASS_IDS, rng=jax.random.key(0)))
    blind = name in ("constant", "centre")  # They look at no image.
    assert np.isnan(maps[0]).any() != blind
    assert np.isfinite(maps[1]).all(), "the other image is none the worse"


@pytest.mark.parametrize("name", attribution.METHODS)
def test_no_method_hides_a_score_that_is_nan(name):
    """As of a network whose last bias is NaN: its gradients, attention and features are all finite."""
    unknown = jnp.array([[0.0, 0.0, jnp.nan]])

    def head(features):
        return fake_head(features) + unknown

    def attention(images, offsets=None):
        scores, seen = fake_attention(images, offsets)
        return scores + unknown, seen

    predictor = dataclasses.replace(
        PREDICTOR,
        scores=lambda images: head(fake_features(images)),
        head=head,
        layers={"middle": (fake_features, lambda features, images: head(features))},
        attention=attention,
    )
    method = attribution.build_method(name, **SMALL.get(name, {}))
    maps = np.asarray(method(predictor, IMAGES, CLASS_IDS, rng=jax.random.key(0)))
    # These ask no score; a mask is what its network says, and that is told when it is evaluated.
    blind = name in ("constant", "centre", "edges", "learned")
    assert np.isnan(maps[0, 1]).any() != blind, "the class whose score it is"


def test_learned_gives_the_mask_of_the_class_asked_for():
    masks = attribution.learned(PREDICTOR, IMAGES, CLASS_IDS)
    np.testing.assert_allclose(masks[0, 1], jax.nn.sigmoid(3 * IMAGES[0, :, :, 2]), rtol=1e-5)


def test_learned_traces_a_networks_masks_once_and_takes_its_weights_as_arguments():
    traced = []

    def masks(scale, images, class_ids):
        traced.append(scale)
        return scale * fake_masks(images, class_ids)

    def learned(scale, images, class_ids):
        predictor = dataclasses.replace(PREDICTOR, masks=jax.tree_util.Partial(masks, jnp.float32(scale)))
        return attribution.learned(predictor, images, class_ids)

    first = learned(0.5, IMAGES, CLASS_IDS)
    assert len(traced) == 1 and isinstance(traced[0], jax.core.Tracer)
    # Other images, classes and weights of the same shape: the program is there.
    second = learned(0.25, -IMAGES, CLASS_IDS[::-1].copy())
    assert len(traced) == 1
    np.testing.assert_allclose(first, 0.5 * fake_masks(IMAGES, CLASS_IDS), rtol=1e-5)
    np.testing.assert_allclose(second, 0.25 * fake_masks(-IMAGES, CLASS_IDS[::-1]), rtol=1e-5)


def test_constant_is_the_value():
    assert bool((attribution.constant(PREDICTOR, IMAGES, CLASS_IDS, value=0.25) == 0.25).all())


@pytest.mark.parametrize(("area", "side"), [(1.0, 8), (0.25, 4), (1 / 16, 2)])
def test_centre_box_covers_the_share_asked_for(area, side):
    box = attribution.centre(PREDICTOR, IMAGES, CLASS_IDS, area=area)
    expected = np.zeros((SIZE, SIZE), np.float32)
    margin = (SIZE - side) // 2
    expected[margin : SIZE - margin, margin : SIZE - margin] = 1
    np.testing.assert_allclose(box[1, 1], expected, atol=2e-6)
    # The first largest pixel, which the pointing game asks about, is the middle.
    assert np.unravel_index(np.argmax(box[1, 1]), (SIZE, SIZE)) == (SIZE // 2, SIZE // 2)


def test_centre_gaussian_falls_from_the_middle_and_is_symmetric():
    gaussian = np.asarray(attribution.centre(PREDICTOR, IMAGES, CLASS_IDS, shape="gaussian", sigma=0.25)[0, 0])
    np.testing.assert_allclose(gaussian, gaussian[::-1, ::-1], rtol=1e-5)
    np.testing.assert_allclose(gaussian, gaussian.T, rtol=1e-5)
    # Rows 4 and 6: their centres are 1/16 and 5/16 of the side from the middle, so .25 and 1.25 standard deviations.
    np.testing.assert_allclose(gaussian[6, 4] / gaussian[4, 4], np.exp(-(1.25**2 - 0.25**2) / 2), rtol=1e-5)


def test_edges_of_a_step_lie_beside_it():
    images = np.zeros((1, SIZE, SIZE, 3), np.float32)
    images[:, :, 4:] = 1.0
    edges = attribution.edges(PREDICTOR, images, np.array([[0]]))[0, 0]
    expected = np.zeros((SIZE, SIZE))
    expected[:, 3:5] = 1  # Sobel looks one pixel to each side
    np.testing.assert_allclose(edges, expected, atol=1e-6)


def test_edges_of_a_corner_are_worked_out_by_hand():
    images = np.zeros((1, SIZE, SIZE, 3), np.float32)
    images[:, 4:, 4:] = 1.0
    edges = np.asarray(attribution.edges(PREDICTOR, images, np.array([[0]]))[0, 0])
    # Along the side |(4, 0)| = 4 is the largest; at the outer corner pixel (3, 3) both gradients are 1; at the inner
    # one (4, 4) both are 3, whose length sqrt(18) is larger than 4.
    assert edges[3, 3] / edges[4, 4] == pytest.approx(1 / 3)
    assert edges[6, 4] / edges[4, 4] == pytest.approx(4 / 18**0.5)
    assert edges.max() == pytest.approx(edges[4, 4])


def test_edges_of_a_flat_image_are_zero_and_not_rounding_noise():
    images = np.full((1, SIZE, SIZE, 3), 0.1, np.float32)
    assert not attribution.edges(PREDICTOR, images, np.array([[0]])).any()


def test_ground_truth_is_the_class_and_void_is_left_out():
    mask = np.array([[[0, 1, 2], [255, 3, 3], [0, 0, 255]]], np.uint8)
    expected = np.array([[[[0, 0, 0], [0, 1, 1], [0, 0, 0]], [[0, 1, 0], [0, 0, 0], [0, 0, 0]]]], np.float32)
    np.testing.assert_array_equal(attribution.ground_truth(mask, np.array([[2, 0]])), expected)


def test_ground_truth_of_a_class_that_is_not_shown_is_empty():
    mask = np.full((1, 2, 2), 3, np.uint8)
    assert not attribution.ground_truth(mask, np.array([[0, 1]]), num_classes=3).any()
    assert attribution.ground_truth(mask, np.array([[2]]), num_classes=3).all()


@pytest.mark.parametrize(
    ("mask", "class_ids", "message"),
    [
        ((1, 2, 2), [[-1]], r"0\.\.2; got -1"),  # It would be the background.
        ((1, 2, 2), [[0, 3]], r"0\.\.2; got 3"),
        ((1, 2, 2), [[0.0]], "must be integers; got float64"),
        ((1, 2, 2), [0], r"mask \[B, H, W\] and class ids \[B, k\]; got shapes \(1, 2, 2\) and \(1,\)"),
        ((2, 2), [[0], [0]], r"got shapes \(2, 2\) and \(2, 1\)"),
        ((2, 2, 2), [[0]], r"got shapes \(2, 2, 2\) and \(1, 1\)"),
    ],
)
def test_ground_truth_of_what_does_not_exist_is_refused(mask, class_ids, message):
    with pytest.raises(UserError, match=message):
        attribution.ground_truth(np.zeros(mask, np.uint8), np.asarray(class_ids), num_classes=3)
    # Without the number of classes, void is the first that is none.
    with pytest.raises(UserError, match=r"0\.\.253; got 254"):
        attribution.ground_truth(np.full((1, 2, 2), 255, np.uint8), np.array([[254]]))


@pytest.mark.parametrize("name", attribution.METHODS)
@pytest.mark.parametrize(
    ("images", "class_ids", "message"),
    [
        (IMAGES, np.array([[0], [3]]), r"0\.\.2; got 3.*circle, square, star"),
        (IMAGES, np.array([[-1], [0]]), r"0\.\.2; got -1"),
        (IMAGES, np.array([0, 1]), r"class ids \[B, k\]"),
        (IMAGES, np.array([[0]]), r"each of the 2 images"),
        (IMAGES, np.array([[0.0], [1.0]]), r"must be integers; got float64"),
        (IMAGES[:, :4], CLASS_IDS, r"8 x 8 px, not 4 x 8"),
        (IMAGES[0], CLASS_IDS, r"images \[B, H, W, 3\]"),
        (IMAGES[..., :1], CLASS_IDS, r"images \[B, H, W, 3\]"),
        (IMAGES * 0 + np.float32(255), CLASS_IDS, r"takes images in -9\.\.9, and these have 255\.\.255"),
        (np.full(IMAGES.shape, 10, np.uint8), CLASS_IDS, r"takes images in -9\.\.9, and these have 10\.\.10"),
    ],
)
def test_bad_input_is_refused(name, images, class_ids, message):
    with pytest.raises(UserError, match=message):
        attribution.METHODS[name](PREDICTOR, images, class_ids)


def test_bad_options_are_refused():
    with pytest.raises(UserError, match="Unknown attribution method 'centr'; there are learned, constant"):
        attribution.build_method("centr")
    with pytest.raises(UserError, match="no option 'size'; it has: shape, area, sigma"):
        attribution.build_method("centre", size=1)
    with pytest.raises(UserError, match="box and gaussian"):
        attribution.centre(PREDICTOR, IMAGES, CLASS_IDS, shape="circle")
    with pytest.raises(UserError, match="0 < area"):
        attribution.centre(PREDICTOR, IMAGES, CLASS_IDS, area=0)
    with pytest.raises(UserError, match=r"0\.\.1; got 2"):
        attribution.constant(PREDICTOR, IMAGES, CLASS_IDS, value=2)


def test_learned_needs_masks():
    silent = Predictor(PREDICTOR.scores, PREDICTOR.probabilities, PREDICTOR.class_names, SIZE)
    with pytest.raises(UserError, match="explains itself"):
        attribution.learned(silent, IMAGES, CLASS_IDS)
