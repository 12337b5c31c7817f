"""RISE, Extremal Perturbations and Score-CAM: answers worked out by hand, chunks, memory, and what is refused."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selfexplain_jax import attribution
from selfexplain_jax.attribution.cam import resize_to_image
from selfexplain_jax.attribution.extremal_perturbation import (
    area_penalty,
    blur_matrix,
    blur_pyramid,
    extremal_masks,
    largest_pixels,
    perturb,
)
from selfexplain_jax.attribution.rise import SAMPLINGS, agreement, agreement_curve, draw_masks, rise, rise_from_masks
from selfexplain_jax.attribution.score_cam import group_alike, masked_scores, scaled, score_cam
from selfexplain_jax.attribution.smooth_masks import MaskShape, generate_masks
from selfexplain_jax.types import Predictor, UserError

SIZE = 16
RNG = jax.random.key(3)


def quadrants(images):
    """Mean of the first channel in the four quarters of the image, [B, 4]."""
    cells = images[..., 0].reshape(-1, 2, SIZE // 2, 2, SIZE // 2)  # [B, 2, H / 2, 2, W / 2]
    return cells.mean(axis=(2, 4)).reshape(-1, 4)


def features(images):
    return jnp.stack([images[..., 0], images[..., 1], images[..., 0] * 0.0 + 2.0], axis=-1)[:, ::4, ::4]


PREDICTOR = Predictor(
    scores=quadrants,
    probabilities=lambda scores: scores,
    class_names=tuple("abcd"),
    image_size=SIZE,
    features=features,
    head=lambda features: features.mean(axis=(1, 2)),
)
IMAGES = np.random.default_rng(0).normal(size=(2, SIZE, SIZE, 3)).astype(np.float32)
CLASS_IDS = np.array([[0, 3, 1], [2, 2, 0]])


# ---- RISE ------------------------------------------------------------------------------------------------------------


def test_rise_of_two_masks_by_hand():
    images = np.ones((1, SIZE, SIZE, 3), np.float32)
    left, top = np.zeros((2, SIZE, SIZE), np.float32)
    left[:, : SIZE // 2] = 1
    top[: SIZE // 2] = 1
    # Class 1 is the quarter above right: 0 through the left half, 1 through the upper one. Class 0 is 1 through both.
    maps = rise_from_masks(PREDICTOR, images, np.array([[1, 0]]), np.stack([left, top]))
    np.testing.assert_allclose(maps[0, 0], top / (2 * 0.5), atol=1e-6)
    np.testing.assert_allclose(maps[0, 1], left + top, atol=1e-6)


def test_rise_is_the_sum_over_its_masks():
    masks = draw_masks(RNG, jnp.arange(20), SIZE, cells=4)
    drawn = rise(PREDICTOR, IMAGES, CLASS_IDS, rng=RNG, num_masks=20, cells=4)
    np.testing.assert_allclose(drawn, rise_from_masks(PREDICTOR, IMAGES, CLASS_IDS, masks), atol=1e-5)
    answers = np.stack([quadrants(IMAGES * mask[None, ..., None]) for mask in np.asarray(masks)])  # [20, B, 4]
    expected = np.einsum("nb,nhw->bhw", answers[:, [0, 1], [3, 2]], masks) / (20 * 0.5)
    np.testing.assert_allclose(drawn[[0, 1], [1, 0]], expected, atol=1e-5)


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_rise_does_not_depend_on_the_chunk(sampling):
    maps = [
        rise(PREDICTOR, IMAGES, CLASS_IDS, rng=RNG, num_masks=22, cells=3, sampling=sampling, chunk_size=chunk)
        for chunk in (5, 22, 100)
    ]
    np.testing.assert_allclose(maps[1], maps[0], atol=1e-5)
    np.testing.assert_allclose(maps[2], maps[0], atol=1e-5)


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_masks_have_the_mean_and_range_asked_for(sampling):
    masks = np.asarray(draw_masks(RNG, jnp.arange(512), SIZE, cells=4, sampling=sampling))
    assert masks.shape == (512, SIZE, SIZE) and masks.min() >= 0 and masks.max() <= 1
    np.testing.assert_allclose(masks.mean(axis=0), 0.5, atol=0.09 if sampling == "independent" else 1e-5)
    np.testing.assert_array_equal(masks[7], draw_masks(RNG, jnp.array([7]), SIZE, cells=4, sampling=sampling)[0])


def test_antithetic_masks_are_complements():
    masks = np.asarray(draw_masks(RNG, jnp.arange(6), SIZE, cells=4, probability=0.3, sampling="antithetic"))
    np.testing.assert_allclose(masks[::2] + masks[1::2], 1.0, atol=1e-6)
    # Each half of a pair is divided by its own mean, so that a classifier that always says 1 has a map of about 1.
    constant = Predictor(lambda x: jnp.ones((len(x), 4)), lambda scores: scores, tuple("abcd"), SIZE)
    options = {"num_masks": 1000, "cells": 3, "probability": 0.3, "sampling": "antithetic"}
    maps = rise(constant, IMAGES, CLASS_IDS, rng=RNG, **options)
    np.testing.assert_allclose(maps, 1.0, atol=0.1)


def test_cells_of_a_stratified_block_are_balanced_in_pairs():
    grids = jax.vmap(lambda number: SAMPLINGS["stratified"](RNG, number, 3, 0.5)[0])(jnp.arange(32))  # order 16, twice
    signs = 2 * np.asarray(grids).reshape(32, 9) - 1
    np.testing.assert_array_equal(signs.T @ signs, 32 * np.eye(9))
    np.testing.assert_array_equal(signs.sum(axis=0), 0)
    np.testing.assert_array_equal(signs[1::2], -signs[::2])


def test_samplings_agree_better_for_as_many_masks():
    # A classifier that a map of cells describes: independent masks take one cell's effect for another's.
    reference = rise(PREDICTOR, IMAGES, CLASS_IDS, rng=jax.random.key(9), num_masks=1024, cells=4, chunk_size=128)
    curves = {
        sampling: agreement_curve(
            PREDICTOR,
            IMAGES,
            CLASS_IDS,
            reference,
            rng=RNG,
            counts=(64,),
            repetitions=2,
            cells=4,
            sampling=sampling,
            chunk_size=64,
        )
        for sampling in SAMPLINGS
    }
    assert curves["independent"][64] < curves["antithetic"][64] < curves["stratified"][64]


def test_agreement_is_the_correlation():
    a, b = np.random.default_rng(1).normal(size=(2, 1, 1, 4, 4)).astype(np.float32)
    np.testing.assert_allclose(agreement(a, b)[0, 0], np.corrcoef(a.ravel(), b.ravel())[0, 1], rtol=1e-5)
    np.testing.assert_allclose(agreement(a, 3 * a + 1), 1.0, rtol=1e-5)


# ---- Memory and compilation ------------------------------------------------------------------------------------------


def temporary_bytes(method, *shapes, **options):
    arrays = [jax.ShapeDtypeStruct(*shape) for shape in shapes]
    compiled = jax.jit(lambda *arrays: method(*arrays, **options)).lower(*arrays).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def test_memory_of_rise_does_not_grow_with_masks():
    def run(images, class_ids, num_masks):
        return rise(PREDICTOR, images, class_ids, rng=RNG, num_masks=num_masks, cells=4, chunk_size=8)

    shapes = ((2, SIZE, SIZE, 3), np.float32), ((2, 3), np.int32)
    few, many = (temporary_bytes(run, *shapes, num_masks=n) for n in (64, 4096))
    assert many <= 1.1 * few + 4096 * 4  # the chunks' numbers


def test_memory_of_score_cam_does_not_grow_with_channels():
    def run(images, maps, class_ids):
        return masked_scores(quadrants, images, maps, class_ids, 8)

    def used(channels):
        shapes = ((2, SIZE, SIZE, 3), np.float32), ((2, channels, 2, 2), np.float32), ((2, 3), np.int32)
        return temporary_bytes(run, *shapes)

    # Of 1,000 more channels nothing is kept but their numbers and scores, far less than their masks.
    assert used(1024) - used(32) < 0.05 * 2 * 992 * SIZE * SIZE * 4


def test_a_second_call_compiles_nothing():
    compiled = sys.modules[rise.__module__]._map_of_drawn_masks
    rise(PREDICTOR, IMAGES, CLASS_IDS, rng=RNG, num_masks=20, cells=4)
    before = compiled._cache_size()
    rise(PREDICTOR, IMAGES[::-1].copy(), CLASS_IDS[::-1].copy(), rng=jax.random.key(8), num_masks=20, cells=4)
    assert compiled._cache_size() == before


# ---- Score-CAM -------------------------------------------------------------------------------------------------------


def test_score_cam_by_hand():
    image = np.zeros((1, SIZE, SIZE, 3), np.float32)
    image[:, : SIZE // 2, : SIZE // 2, 0] = 1.0
    image[:, SIZE // 2 :, SIZE // 2 :, 1] = 1.0
    activations = features(jnp.asarray(image))
    masks = scaled(resize_to_image(activations.transpose(0, 3, 1, 2), SIZE))[0]  # the third is flat, so 0
    np.testing.assert_array_equal(masks[2], 0.0)
    scores = np.array([quadrants(image * np.asarray(mask)[None, ..., None])[0, 0] for mask in masks])
    weights = np.exp(scores) / np.exp(scores).sum()
    expected = resize_to_image(jnp.einsum("bhwc,c->bhw", activations, weights)[None], SIZE)[0, 0]
    np.testing.assert_allclose(score_cam(PREDICTOR, image, np.array([[0]]))[0, 0], expected, rtol=1e-5)


def test_score_cam_does_not_depend_on_the_chunk():
    maps = [score_cam(PREDICTOR, IMAGES, CLASS_IDS, chunk_size=chunk) for chunk in (1, 4, 6, 100)]
    for other in maps[1:]:
        np.testing.assert_allclose(other, maps[0], atol=1e-6)


def test_as_many_clusters_as_channels_are_the_published_method():
    whole = score_cam(PREDICTOR, IMAGES, CLASS_IDS)
    np.testing.assert_allclose(score_cam(PREDICTOR, IMAGES, CLASS_IDS, clusters=3), whole, atol=1e-6)
    assert score_cam(PREDICTOR, IMAGES, CLASS_IDS, clusters=2).shape == whole.shape


def test_alike_points_share_a_group():
    points = np.array([[0, 0], [10, 0], [0, 0.1], [10, 0.2], [0, 20]], np.float32)
    groups = np.asarray(group_alike(jnp.asarray(points), 3))
    assert groups[0] == groups[2] and groups[1] == groups[3] and len(set(groups.tolist())) == 3


# ---- Extremal Perturbations ------------------------------------------------------------------------------------------


def test_mask_geometry_at_224_pixels_is_the_published_one():
    shape = MaskShape(224, 7, 21)
    assert (shape.grid, shape.padding, shape.radius, shape.blocks, shape.outer) == (32, 7, 4, 38, 260)


def test_smooth_mask_is_the_smooth_maximum_of_discs():
    shape = MaskShape(8, 2, 3.0)
    parameters = np.random.default_rng(0).uniform(size=(1, shape.grid, shape.grid)).astype(np.float32)
    mask = np.asarray(generate_masks(jnp.asarray(parameters), shape))[0]
    assert mask.shape == (shape.outer, shape.outer)
    padded = np.pad(parameters[0], shape.padding)
    for row, column in ((7, 6), (0, 3)):
        values = []
        for i in range(row // 2, row // 2 + 2 * shape.radius + 1):
            for j in range(column // 2, column // 2 + 2 * shape.radius + 1):
                place = [3.0 + 2 * (n - shape.padding) for n in (i, j)]
                z = np.hypot(row - place[0], column - place[1]) / 3.0
                values.append(np.exp(-2 * max(z - 0.5, 0) ** 2) * padded[i, j])
        weights = np.exp(20 * np.array(values))
        np.testing.assert_allclose(mask[row, column], (weights * values).sum() / weights.sum(), rtol=1e-4)


def test_gradient_of_the_smooth_mask_is_that_of_differences():
    shape = MaskShape(8, 3, 3.0)
    parameters = jnp.asarray(np.random.default_rng(0).uniform(0.2, 0.8, size=(2, shape.grid, shape.grid)), jnp.float32)
    weight = jnp.asarray(np.random.default_rng(1).normal(size=(2, shape.outer, shape.outer)), jnp.float32)
    objective = jax.jit(lambda p: (generate_masks(p, shape) * weight).sum())
    gradient = np.asarray(jax.grad(objective)(parameters))
    for place in ((0, 0, 0), (1, 1, 2)):
        step = jnp.zeros_like(parameters).at[place].set(1e-2)
        difference = (objective(parameters + step) - objective(parameters - step)) / 2e-2
        np.testing.assert_allclose(gradient[place], difference, rtol=0.02, atol=5e-3)


def test_penalty_is_that_of_sorted_values():
    masks = np.random.default_rng(0).uniform(size=(2, 5, 5)).astype(np.float32)
    masks[1] = np.round(masks[1], 1)
    count = jnp.array([7, 11])
    expected = []
    for mask, ones in zip(masks, (7, 11), strict=True):
        wanted = np.r_[np.zeros(25 - ones), np.ones(ones)]
        expected.append(((np.sort(mask.ravel()) - wanted) ** 2).mean())
    np.testing.assert_allclose(area_penalty(jnp.asarray(masks), count), expected, rtol=1e-6)
    # Of equal pixels the last ones count.
    chosen = largest_pixels(jnp.full((1, 2, 3), 0.5), jnp.array([2]))
    np.testing.assert_array_equal(chosen[0], [[0, 0, 0], [0, 1, 1]])


def test_perturbed_image_lies_between_two_blurs():
    images = jnp.asarray(IMAGES)
    pyramid = blur_pyramid(images, 3, 2.0)
    np.testing.assert_allclose(pyramid[:, 2], images, atol=1e-6)
    blurred = np.einsum("hi,bijc,wj->bhwc", blur_matrix(SIZE, 1.0), images, blur_matrix(SIZE, 1.0))
    np.testing.assert_allclose(pyramid[:, 1], blurred, atol=1e-5)
    np.testing.assert_allclose(perturb(pyramid, jnp.ones((2, SIZE, SIZE))), images, atol=1e-6)
    np.testing.assert_allclose(perturb(pyramid, jnp.full((2, SIZE, SIZE), 0.75)), (images + blurred) / 2, atol=1e-5)


@pytest.mark.parametrize("variant", ["preserve", "delete", "dual"])
def test_extremal_mask_finds_the_half_that_speaks(variant):
    image = np.zeros((1, SIZE, SIZE, 3), np.float32)
    image[:, ::2, ::2, 0] = 12.0  # fine, so that a blur takes it away where it is squared
    sharp = Predictor(lambda x: quadrants(x**2), jax.nn.sigmoid, tuple("abcd"), SIZE)
    options = {"areas": (0.1,), "steps": 60, "grid_step": 4, "sigma": 4.0, "levels": 3, "max_blur": 4.0}
    mask = np.asarray(extremal_masks(sharp, image, np.array([[0, 3]]), variant=variant, **options))[0, :, 0]
    half = SIZE // 2
    # Every second step sees the mirrored image, so that a left quarter speaks as a right one does.
    assert mask[0, :half].sum() > 0.6 * mask[0].sum()
    assert mask[1, half:].sum() > 0.6 * mask[1].sum()


def test_extremal_masks_do_not_depend_on_the_chunk():
    options = {"areas": (0.1, 0.2), "steps": 4, "grid_step": 4, "sigma": 4.0, "levels": 3, "max_blur": 4.0}
    masks = [extremal_masks(PREDICTOR, IMAGES, CLASS_IDS, chunk_size=chunk, **options) for chunk in (5, 12)]
    np.testing.assert_allclose(masks[1], masks[0], atol=1e-5)


# ---- Bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("rise", {"rng": None}, r"rng=jax\.random\.key"),
        ("rise", {"num_masks": 0}, "at least one mask"),
        ("rise", {"probability": 1.0}, "probability between 0 and 1"),
        ("rise", {"cells": 1}, "at least 2 cells"),
        ("rise", {"sampling": "paired"}, "independent, antithetic, stratified; got 'paired'"),
        ("rise", {"sampling": "stratified", "probability": 0.3}, "got 0.3"),
        ("score_cam", {"clusters": -1}, "clusters of at least 0"),
        ("score_cam", {"layer": "last"}, "no layer 'last'"),
        ("extremal_perturbation", {"variant": "keep"}, "preserve, delete, dual; got 'keep'"),
        ("extremal_perturbation", {"areas": (0.1, 1.0)}, "areas between 0 and 1"),
        ("extremal_perturbation", {"steps": 0}, "steps, grid_step and chunk_size"),
        ("extremal_perturbation", {"smoothing": -1.0}, "smoothing of at least 0"),
    ],
)
def test_bad_options_are_refused(name, options, message):
    with pytest.raises(UserError, match=message):
        attribution.METHODS[name](PREDICTOR, IMAGES, CLASS_IDS, **{"rng": RNG, **options})


def test_masks_of_another_size_are_refused():
    with pytest.raises(UserError, match=r"masks \[N, H, W\] of the images' 16 x 16 px; got shape \(4, 8, 8\)"):
        rise_from_masks(PREDICTOR, IMAGES, CLASS_IDS, np.zeros((4, 8, 8), np.float32))
