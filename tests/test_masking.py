"""Masks of tiny maps worked out by hand, and what every infill promises."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selfexplain_jax.models import masking
from selfexplain_jax.models.masking import INFILLS
from selfexplain_jax.types import UserError


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


@pytest.fixture
def images():
    return jax.random.normal(jax.random.key(1), (3, 8, 8, 3))


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
    np.testing.assert_allclose(masking.resize_maps(jnp.full((1, 2, 2, 3), 0.3), 7), np.full((1, 7, 7, 3), 0.3), rtol=1e-5)
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
    masks = jnp.zeros((3, 8, 8)).at[:, 2:5, 2:5].set(1.0)
    for given in (None, masks):
        filling = masking.infill(name, images, jax.random.key(3), given)
        assert filling.shape == images.shape and filling.dtype == images.dtype
        assert jnp.all(jnp.isfinite(filling))
        np.testing.assert_array_equal(filling, masking.infill(name, images, jax.random.key(3), given))


@pytest.mark.parametrize("name", INFILLS)
def test_infills_pass_no_gradient(name, images):
    masks = jnp.full((3, 8, 8), 0.5)
    fill = lambda images, masks: jnp.square(masking.infill(name, images, jax.random.key(0), masks)).sum()
    for gradient in jax.grad(fill, argnums=(0, 1))(images, masks):
        np.testing.assert_array_equal(gradient, np.zeros(gradient.shape))


def test_zero_infill_is_zero(images):
    np.testing.assert_array_equal(masking.infill("zero", images, jax.random.key(0)), np.zeros(images.shape))


def test_color_noise_is_a_color_for_each_image_and_knows_nothing_of_it():
    images = jnp.zeros((64, 8, 8, 3))
    filling = masking.infill("color_noise", images, jax.random.key(0))
    colors, strengths = filling.mean(axis=(1, 2)), filling.std(axis=(1, 2))
    assert jnp.abs(colors).max() < 1.8 + 0.3 and jnp.abs(colors).max() > 1.2
    assert strengths.max() < 0.75 and strengths.min() < 0.1 and strengths.max() > 0.3
    assert jnp.unique(colors.round(3), axis=0).shape[0] == 64
    np.testing.assert_array_equal(filling, masking.infill("color_noise", images + 1.0, jax.random.key(0)))
    assert not jnp.array_equal(filling, masking.infill("color_noise", images, jax.random.key(1)))


def test_blur_keeps_a_constant_and_removes_texture(images):
    constant = jnp.full((2, 8, 8, 3), 1.7)
    np.testing.assert_allclose(masking.infill("blur", constant, jax.random.key(0)), constant, rtol=1e-5)
    checker = jnp.where((jnp.arange(8)[:, None] + jnp.arange(8)[None, :]) % 2 > 0, 1.0, -1.0)
    checker = jnp.broadcast_to(checker[None, :, :, None], (1, 8, 8, 3))
    # Away from the borders; the stated deviation of one pixel leaves exp(-pi^2) of the finest frequency, per axis.
    assert jnp.abs(masking.infill("blur", checker, jax.random.key(0))[:, 2:6, 2:6]).max() < 0.01


def test_blur_spreads_a_point_over_a_gaussian():
    matrix = masking.gaussian_matrix(9, 1.5)
    assert matrix.shape == (9, 9) and matrix.dtype == np.float32
    np.testing.assert_allclose(matrix.sum(axis=1), np.ones(9), rtol=1e-6)
    assert matrix[4, 4] / matrix[4, 7] == pytest.approx(math.exp(0.5 * (3 / 1.5) ** 2), rel=1e-4)
    point = jnp.zeros((1, 9, 5, 1)).at[0, 4, 2, 0].set(1.0)
    expected = np.outer(masking.gaussian_matrix(9, 1.5)[:, 4], masking.gaussian_matrix(5, 1.5)[:, 2])
    np.testing.assert_allclose(masking.blur(point, 1.5)[0, :, :, 0], expected, rtol=1e-4)


@pytest.mark.parametrize("seed", range(4))
def test_other_image_is_never_the_image_itself(seed):
    images = jnp.broadcast_to(jnp.arange(4.0).reshape(4, 1, 1, 1), (4, 8, 8, 3))
    filling = masking.infill("other_image", images, jax.random.key(seed))
    assert jnp.all(filling == filling[:, :1, :1, :1])  # Each is one whole image,
    assert jnp.all(filling != images)  # another one,
    assert sorted(filling[:, 0, 0, 0].tolist()) == [0, 1, 2, 3]  # and each is used once.


def test_other_image_has_lost_its_object():
    masks = jnp.zeros((2, 8, 8)).at[0, 1:4, 1:4].set(1.0).at[1, 4:7, 3:8].set(1.0)
    background = jnp.asarray([1.0, -1.0]).reshape(2, 1, 1, 1)
    images = jnp.where(masks[..., None] > 0, 9.0, background) * jnp.ones((1, 1, 1, 3))
    filling = masking.infill("other_image", images, jax.random.key(0), masks)
    # The object's place has the colour of the background around it, up to the constant that guards the division.
    np.testing.assert_allclose(filling, jnp.roll(background, 1, axis=0) * np.ones(images.shape), atol=0.03)


def test_random_infill_draws_a_kind_for_each_image():
    images = jnp.broadcast_to(jnp.arange(1.0, 33.0).reshape(32, 1, 1, 1), (32, 8, 8, 3))
    names = ("zero", "blur")
    filling = masking.random_infill(names, images, jax.random.key(0))
    is_zero = jnp.all(filling == 0, axis=(1, 2, 3))
    is_blur = jnp.all(jnp.abs(filling - images) < 1e-3, axis=(1, 2, 3))  # The blur of a constant image is the image.
    assert jnp.all(is_zero ^ is_blur) and 4 < is_zero.sum() < 28
    np.testing.assert_array_equal(filling, masking.random_infill(names, images, jax.random.key(0)))
    np.testing.assert_array_equal(masking.random_infill(("zero",), images, jax.random.key(0)), np.zeros(images.shape))


@pytest.mark.parametrize("names", [(), ("zero", "mirror")], ids=str)
def test_unknown_or_no_infill_is_refused(names):
    with pytest.raises(UserError, match="config.passes.infills = .*choose one or more of .*blur.*zero"):
        masking.check_infills(names, "config.passes.infills")
    masking.check_infills(tuple(INFILLS), "config.passes.infills")


def test_infill_refuses_an_unknown_name(images):
    with pytest.raises(UserError, match="'mirror'.*color_noise"):
        masking.infill("mirror", images, jax.random.key(0))


# ---- Blobs -----------------------------------------------------------------------------------------------------------


def test_blobs_are_binary_smooth_and_of_all_areas():
    masks = masking.blob_masks(jax.random.key(0), 64, 16)
    assert masks.shape == (64, 16, 16) and masks.dtype == jnp.float32
    assert set(np.unique(masks)) == {0.0, 1.0}
    area = masks.mean(axis=(1, 2))
    # One cell of tolerance: an area is a whole number of them.
    assert area.min() >= 0.08 - 1 / 256 and area.max() <= 0.92 + 1 / 256
    assert area.min() < 0.2 and area.max() > 0.8 and 0.4 < area.mean() < 0.6
    # Blobs, not noise: four of five neighbours agree, even in the half full ones.
    assert (masks[:, 1:] == masks[:, :-1]).mean() > 0.8
    np.testing.assert_array_equal(masks, masking.blob_masks(jax.random.key(0), 64, 16))
    assert not jnp.array_equal(masks, masking.blob_masks(jax.random.key(1), 64, 16))


def test_area_of_blobs_can_be_asked_for():
    masks = masking.blob_masks(jax.random.key(0), 4, 16, low=0.25, high=0.25)
    np.testing.assert_allclose(masks.mean(axis=(1, 2)), 0.25, atol=1 / 256)
