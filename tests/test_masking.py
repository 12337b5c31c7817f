"""Masks of tiny maps worked out by hand, and what every infill promises."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selfexplain_jax.models import masking
from selfexplain_jax.models.masking import INFILLS
from selfexplain_jax.types import UserError

# The area of a blob is measured on a sample of the pixels.
AREA_TOLERANCE = 0.05


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


@pytest.fixture
def images():
    return np.random.default_rng(1).normal(size=(3, 8, 8, 3)).astype(np.float32)


def infill(name, images, seed=0, masks=None):
    """`masking.infill` as one compiled program, its result in NumPy."""
    return np.asarray(jax.jit(masking.infill, static_argnums=0)(name, images, jax.random.key(seed), masks))


# ---- Selecting -------------------------------------------------------------------------------------------------------

# One image, a row of two cells, three classes.
MAPS = jnp.asarray([[[[1.0, -2.0, 3.0], [0.0, 4.0, -1.0]]]])


@pytest.mark.parametrize(
    "label, target, non_target",
    [
        ([1, 0, 0], [1, 0], [3, 4]),
        ([0, 1, 1], [3, 4], [1, 0]),
        ([1, 1, 1], [3, 4], None),
        ([0, 0, 0], None, [3, 4]),
    ],
    ids=["one", "two", "all", "none"],
)
def test_target_and_non_target_take_the_largest_logit(label, target, non_target):
    label = jnp.asarray([label], jnp.float32)
    for selected, logits, mask in (
        (target, masking.target_logits, masking.target_mask),
        (non_target, masking.non_target_logits, masking.non_target_mask),
    ):
        if selected is None:  # No class to take: the mask is exactly empty, and no gradient flows.
            np.testing.assert_array_equal(logits(MAPS, label), np.full((1, 1, 2), masking.ABSENT))
            gradient = jax.grad(lambda maps: jax.nn.sigmoid(logits(maps, label)).sum())(MAPS)  # noqa: B023
            np.testing.assert_array_equal(gradient, np.zeros(MAPS.shape))
            np.testing.assert_array_equal(mask(MAPS, label, 2), np.zeros((1, 2, 2)))
        else:
            np.testing.assert_array_equal(logits(MAPS, label), [[selected]])
            # To a 2 x 2 image: the row is repeated, the columns are the two cells.
            row = [sigmoid(s) for s in selected]
            np.testing.assert_allclose(mask(MAPS, label, 2), [[row, row]], rtol=1e-5)


def test_gradient_of_the_target_mask_reaches_the_winning_class_alone():
    label = jnp.asarray([[1.0, 1.0, 0.0]])
    gradient = jax.grad(lambda maps: masking.target_logits(maps, label).sum())(MAPS)
    np.testing.assert_array_equal(gradient, [[[[1, 0, 0], [0, 1, 0]]]])


def test_class_masks_of_the_classes_asked_for(images):
    maps = images[:, :4, :4]
    ids = jnp.asarray([[2, 0], [1, 1], [0, 2]])
    masks = masking.class_masks(maps, ids, 8)
    assert masks.shape == (3, 2, 8, 8)
    for image in range(3):
        for place in range(2):
            # Alone in the label, a class's mask is the target mask.
            label = jax.nn.one_hot(ids[image, place], 3)[None]
            expected = masking.target_mask(maps[image : image + 1], label, 8)[0]
            np.testing.assert_allclose(masks[image, place], expected, rtol=1e-5)


# ---- Resizing --------------------------------------------------------------------------------------------------------


def test_resize_is_bilinear_between_cell_centres():
    row = jnp.asarray([0.0, 1.0])
    ramp = masking.resize_mask(jnp.stack([row, row])[None], 4)
    np.testing.assert_allclose(ramp[0], [[0, 0.25, 0.75, 1]] * 4, atol=1e-6)


def test_resize_keeps_constants_range_and_classes(images):
    constant = masking.resize_maps(jnp.full((1, 2, 2, 3), 0.3), 7)
    np.testing.assert_allclose(constant, np.full((1, 7, 7, 3), 0.3), rtol=1e-5)
    masks = jax.nn.sigmoid(images)
    resized = masking.resize_maps(masks, 16)
    assert resized.shape == (3, 16, 16, 3) and resized.min() >= masks.min() and resized.max() <= masks.max()
    np.testing.assert_allclose(resized[..., 1], masking.resize_mask(masks[..., 1], 16), atol=1e-6)
    assert masking.resize_maps(masks, 8) is masks


# ---- Hardening and isolating -----------------------------------------------------------------------------------------


def test_hard_masks_are_binary_and_let_the_gradient_through():
    mask = jnp.asarray([[[0.0, 0.2, 0.5], [0.51, 0.9, 1.0]]])
    np.testing.assert_allclose(masking.harden(mask), [[[0, 0, 0], [1, 1, 1]]], atol=1e-7)
    weights = jnp.arange(6.0).reshape(1, 2, 3)
    gradient = jax.grad(lambda mask: (weights * masking.harden(mask)).sum())(mask)
    np.testing.assert_array_equal(gradient, weights)


def test_isolate_blends_image_and_filling():
    images, filling = jnp.full((1, 1, 3, 3), 4.0), jnp.full((1, 1, 3, 3), -2.0)
    isolated = masking.isolate(images, jnp.asarray([[[0.0, 0.5, 1.0]]]), filling)
    np.testing.assert_array_equal(isolated[0, 0, :, 0], [-2, 1, 4])
    # Object and background together hold each pixel once.
    mask = jnp.asarray([[[0.1, 0.6, 0.9]]])
    both = masking.isolate(images, mask, filling) + masking.isolate(images, 1 - mask, filling)
    np.testing.assert_allclose(both, images + filling, rtol=1e-6)


# ---- Infills ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", INFILLS)
def test_every_infill_has_the_images_shape_and_follows_its_key(name, images):
    masks = np.zeros((3, 8, 8), np.float32)
    masks[:, 2:5, 2:5] = 1.0
    for given in (None, masks):
        filling = infill(name, images, 3, given)
        assert filling.shape == images.shape and filling.dtype == images.dtype
        assert np.all(np.isfinite(filling))
        np.testing.assert_array_equal(filling, infill(name, images, 3, given))


@pytest.mark.parametrize("name", INFILLS)
def test_infills_pass_no_gradient(name, images):
    masks = np.full((3, 8, 8), 0.5)

    def fill(images, masks):
        return jnp.square(masking.infill(name, images, jax.random.key(0), masks)).sum()

    for gradient in jax.jit(jax.grad(fill, argnums=(0, 1)))(images, masks):
        np.testing.assert_array_equal(gradient, np.zeros(gradient.shape))


def test_zero_infill_is_zero(images):
    np.testing.assert_array_equal(infill("zero", images), np.zeros(images.shape))


def test_color_noise_is_a_color_for_each_image_and_knows_nothing_of_it():
    images = np.zeros((64, 8, 8, 3))
    filling = infill("color_noise", images)
    colors, strengths = filling.mean(axis=(1, 2)), filling.std(axis=(1, 2))
    assert np.abs(colors).max() < 1.8 + 0.3 and np.abs(colors).max() > 1.2
    assert strengths.max() < 0.75 and strengths.min() < 0.1 and strengths.max() > 0.3
    assert np.unique(colors.round(3), axis=0).shape[0] == 64
    np.testing.assert_array_equal(filling, infill("color_noise", images + 1.0))
    assert not np.array_equal(filling, infill("color_noise", images, 1))


def test_blur_keeps_a_constant_and_removes_texture(images):
    constant = np.full((2, 8, 8, 3), 1.7)
    np.testing.assert_allclose(infill("blur", constant), constant, rtol=1e-5)
    checker = np.where((np.arange(8)[:, None] + np.arange(8)[None, :]) % 2 > 0, 1.0, -1.0)
    checker = np.broadcast_to(checker[None, :, :, None], (1, 8, 8, 3))
    # Away from the borders; the stated deviation of one pixel leaves exp(-pi^2) of the finest frequency, per axis.
    assert np.abs(infill("blur", checker)[:, 2:6, 2:6]).max() < 0.01


def test_blur_spreads_a_point_over_a_gaussian():
    matrix = masking.gaussian_matrix(9, 1.5)
    assert matrix.shape == (9, 9) and matrix.dtype == np.float32
    np.testing.assert_allclose(matrix.sum(axis=1), np.ones(9), rtol=1e-6)
    assert matrix[4, 4] / matrix[4, 7] == pytest.approx(math.exp(0.5 * (3 / 1.5) ** 2), rel=1e-4)
    point = np.zeros((1, 9, 5, 1), np.float32)
    point[0, 4, 2, 0] = 1.0
    expected = np.outer(masking.gaussian_matrix(9, 1.5)[:, 4], masking.gaussian_matrix(5, 1.5)[:, 2])
    np.testing.assert_allclose(masking.blur(point, 1.5)[0, :, :, 0], expected, rtol=1e-4)


@pytest.mark.parametrize("seed", range(4))
def test_other_image_is_never_the_image_itself(seed):
    images = np.broadcast_to(np.arange(4.0).reshape(4, 1, 1, 1), (4, 8, 8, 3))
    filling = infill("other_image", images, seed)
    assert np.all(filling == filling[:, :1, :1, :1])  # Each is one whole image,
    assert np.all(filling != images)  # another one,
    assert sorted(filling[:, 0, 0, 0].tolist()) == [0, 1, 2, 3]  # and each is used once.


def test_other_image_has_lost_its_object():
    masks = np.zeros((2, 8, 8), np.float32)
    masks[0, 1:4, 1:4] = masks[1, 4:7, 3:8] = 1.0
    background = np.asarray([1.0, -1.0]).reshape(2, 1, 1, 1)
    images = np.where(masks[..., None] > 0, 9.0, background) * np.ones((1, 1, 1, 3))
    filling = infill("other_image", images, 0, masks)
    # The object's place has the colour of the background around it, up to the constant that guards the division.
    np.testing.assert_allclose(filling, np.roll(background, 1, axis=0) * np.ones(images.shape), atol=0.03)


def test_random_infill_draws_a_kind_for_each_image():
    images = np.broadcast_to(np.arange(1.0, 33.0).reshape(32, 1, 1, 1), (32, 8, 8, 3))
    names = ("zero", "blur")
    filling = masking.random_infill(names, images, jax.random.key(0))
    is_zero = np.all(filling == 0, axis=(1, 2, 3))
    is_blur = np.all(np.abs(filling - images) < 1e-3, axis=(1, 2, 3))  # The blur of a constant image is the image.
    assert np.all(is_zero ^ is_blur) and 4 < is_zero.sum() < 28
    np.testing.assert_array_equal(filling, masking.random_infill(names, images, jax.random.key(0)))
    np.testing.assert_array_equal(masking.random_infill(("zero",), images, jax.random.key(0)), np.zeros(images.shape))


@pytest.mark.parametrize("names", [(), ("zero", "mirror")], ids=str)
def test_unknown_or_no_infill_is_refused(names):
    with pytest.raises(UserError, match="config.passes.infills = .*choose one or more of .*blur.*zero"):
        masking.check_infills(names, "config.passes.infills")
    masking.check_infills(tuple(INFILLS), "config.passes.infills")


def test_infill_refuses_an_unknown_name(images):
    with pytest.raises(UserError, match="'mirror'.*color_noise"):
        infill("mirror", images)


# ---- Blobs -----------------------------------------------------------------------------------------------------------


def blob_masks(seed=0, low=0.08, high=0.92):
    make = jax.jit(masking.blob_masks, static_argnums=(1, 2))
    return np.asarray(make(jax.random.key(seed), 32, 64, low, high))


def test_blobs_are_binary_smooth_and_of_all_areas():
    masks = blob_masks()
    assert masks.shape == (32, 64, 64) and masks.dtype == np.float32
    assert set(np.unique(masks)) == {0.0, 1.0}
    area = masks.mean(axis=(1, 2))
    assert area.min() >= 0.08 - AREA_TOLERANCE and area.max() <= 0.92 + AREA_TOLERANCE
    assert area.min() < 0.2 and area.max() > 0.8 and 0.35 < area.mean() < 0.65
    # Blobs, not noise, of which half the neighbours would differ.
    assert (masks[:, 1:] == masks[:, :-1]).mean() > 0.9
    np.testing.assert_array_equal(masks, blob_masks())
    assert not np.array_equal(masks, blob_masks(seed=1))


def test_area_of_blobs_can_be_asked_for():
    np.testing.assert_allclose(blob_masks(low=0.25, high=0.25).mean(axis=(1, 2)), 0.25, atol=AREA_TOLERANCE)


def test_blur_with_masks_is_that_of_the_background_alone():
    background, object_color = 0.5, 1.7
    mask = np.zeros((1, 16, 16), np.float32)
    mask[:, 4:10, 4:10] = 1.0
    images = np.where(mask[..., None] > 0, object_color, background) * np.ones((1, 1, 1, 3), np.float32)
    filling = masking.infill("blur", jnp.asarray(images, jnp.float32), jax.random.key(0), jnp.asarray(mask))
    # Nothing of the object's colour: the weighted mean of a constant is the constant, up to the guard against 0 / 0.
    np.testing.assert_allclose(filling, background, rtol=0.01)
