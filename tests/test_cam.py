"""Class activation maps with answers worked out by hand, layers, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selfexplain_jax import attribution
from selfexplain_jax.attribution.cam import positive_gradients, resize_to_image
from selfexplain_jax.types import UserError

SIZE = 4
# Two channels of 2x2 cells; the image's blocks of 2x2 pixels give them, so that the features are the numbers below.
CELLS = np.array([[[[1.0, 0.0], [2.0, 0.0]], [[0.0, 4.0], [1.0, 0.0]]]], np.float32)  # [1, 2, 2, 2]
IMAGES = np.zeros((1, SIZE, SIZE, 3), np.float32)
IMAGES[..., :2] = CELLS.repeat(2, axis=1).repeat(2, axis=2)
WEIGHTS = np.array([[1.0, -1.0], [-2.0, 0.5]], np.float32)  # [K, C]
BOTH = np.array([[0, 1]])


def features(images):
    return images[:, ::2, ::2, :2]


def linear_head(features):
    return features.mean(axis=(1, 2)) @ WEIGHTS


def curved_head(features):
    """z_0 = sum of A_0^2, z_1 = 0."""
    first = jnp.square(features[..., 0]).sum(axis=(1, 2))
    return jnp.stack([first, jnp.zeros_like(first)], axis=-1)


def predictor_of(head, **options):
    return attribution.build_predictor(features=features, head=head, class_names=2, image_size=SIZE, **options)


def cells_of(maps):
    """[B, k, 2, 2] from maps at image size: the outer corners of a bilinear resize by 2 are the cells' own values."""
    return np.asarray(maps)[:, :, :: SIZE - 1, :: SIZE - 1]


def test_cam_is_the_channels_under_the_classifiers_weights():
    maps = attribution.METHODS["cam"](predictor_of(linear_head), IMAGES, BOTH)
    # 1 A_0 - 2 A_1 and -1 A_0 + .5 A_1.
    np.testing.assert_allclose(cells_of(maps)[0], [[[1, 2], [-8, 1]], [[-1, -2], [2, -1]]], rtol=1e-5)
    # Their mean is the score (there is no bias).
    np.testing.assert_allclose(cells_of(maps).mean(axis=(2, 3)), linear_head(CELLS), rtol=1e-5)


def test_grad_cam_of_a_linear_head_is_cam_over_the_number_of_cells():
    predictor = predictor_of(linear_head)
    maps = attribution.METHODS["grad_cam"](predictor, IMAGES, BOTH, relu=False)
    np.testing.assert_allclose(4 * maps, attribution.METHODS["cam"](predictor, IMAGES, BOTH), rtol=1e-5)
    positive = attribution.METHODS["grad_cam"](predictor, IMAGES, BOTH)
    # The ReLU comes before the resize: between 2 and -8 / 4 lies no negative cell.
    np.testing.assert_allclose(cells_of(positive)[0], [[[0.25, 0.5], [0, 0.25]], [[0, 0], [0.5, 0]]], rtol=1e-5)
    assert positive.min() == 0


def test_grad_cam_plus_plus_by_hand():
    maps = attribution.METHODS["grad_cam_plus_plus"](predictor_of(curved_head), IMAGES, np.array([[0]]))
    # Channel 0: g = 2 A = (2, 4, 0, 2), S = 4, so alpha g = g / (2 + 4 g) = 2/10, 4/18, 0, 2/10; w = .6222. Channel 1
    # has no gradient.
    weight = 0.2 + 4 / 18 + 0.2
    np.testing.assert_allclose(cells_of(maps)[0, 0], weight * CELLS[0, :, :, 0], rtol=1e-5)
    # Equation 19 as it stands in the paper, where the gradient is not 0.
    g = np.array([2.0, 4.0, 2.0])
    assert weight == pytest.approx((g**2 / (2 * g**2 + 4 * g**3) * g).sum())


def test_positive_gradients_are_finite_without_gradient_and_with_tiny_ones():
    activations = np.ones((1, 2, 2, 1), np.float32)
    for size in (0.0, 1e-30, -1.0):
        weights = positive_gradients(activations, np.full((1, 1, 2, 2, 1), size, np.float32))
        np.testing.assert_allclose(weights, [[[4 * max(size, 0) / 2]]], rtol=1e-5)


def test_resize_takes_cells_for_areas():
    maps = resize_to_image(jnp.array([[[[0.0, 4.0]]]]).repeat(2, axis=2), 4)
    np.testing.assert_allclose(maps[0, 0, 0], [0, 1, 3, 4], atol=1e-6)


def test_cam_refuses_another_head():
    with pytest.raises(UserError, match="linear layer on the mean over space.*use 'grad_cam'"):
        attribution.METHODS["cam"](predictor_of(curved_head), IMAGES, BOTH)


def test_layers_are_chosen_by_name():
    doubled = (lambda images: 2 * features(images), lambda cells, images: linear_head(cells / 2))
    predictor = predictor_of(linear_head, layers={"doubled": doubled})
    maps = attribution.METHODS["grad_cam"](predictor, IMAGES, BOTH, layer="doubled")
    # Twice the activations have half the gradient.
    np.testing.assert_allclose(maps, attribution.METHODS["grad_cam"](predictor, IMAGES, BOTH), rtol=1e-5)
    with pytest.raises(UserError, match="no layer 'tripled'; this predictor has doubled"):
        attribution.METHODS["grad_cam"](predictor, IMAGES, BOTH, layer="tripled")
    alone = attribution.build_predictor(predictor.scores, class_names=2, image_size=SIZE, layers={"doubled": doubled})
    first = attribution.METHODS["grad_cam"](alone, IMAGES, BOTH)
    np.testing.assert_allclose(first, maps, rtol=1e-5, err_msg="without features the first layer is taken")


def test_no_layer_is_said():
    alone = attribution.build_predictor(lambda x: linear_head(features(x)), class_names=2, image_size=SIZE)
    with pytest.raises(UserError, match="'grad_cam' needs a layer"):
        attribution.METHODS["grad_cam"](alone, IMAGES, BOTH)
    with pytest.raises(UserError, match="no layer 'conv'; this predictor names no layers"):
        attribution.METHODS["grad_cam"](alone, IMAGES, BOTH, layer="conv")


def test_weights_are_arguments_and_not_constants_of_the_program():
    """Another network of the same form, as in a sanity check, compiles nothing anew."""
    traced = []

    def scaled(scale, images):
        traced.append(scale)
        return scale * features(images)

    maps = []
    for scale in (1.0, 3.0):
        function = jax.tree_util.Partial(scaled, jnp.float32(scale))
        predictor = attribution.build_predictor(features=function, head=linear_head, class_names=2, image_size=SIZE)
        traced.clear()
        maps.append(attribution.METHODS["grad_cam"](predictor, IMAGES, BOTH))
    assert not traced, "the second predictor was traced again"
    np.testing.assert_allclose(maps[1], 3 * maps[0], rtol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "needs scores, or both features and head"),
        ({"features": features}, "needs scores, or both features and head"),
        ({"scores": lambda x: x.mean(axis=(1, 2))[:, :2], "head": linear_head}, "go together"),
        ({"scores": lambda x: x.mean(axis=(1, 2))}, r"scores\(images\) must be floats \[2, 2\].*float32 \[2, 3\]"),
        ({"scores": lambda x: np.asarray(x).mean(axis=(1, 2))}, "must be pure JAX; scores fails on float32"),
        ({"scores": lambda x: {}["key"]}, r"scores fails on float32 \[2, 4, 4, 3\]: KeyError"),
        ({"features": lambda x: x.mean(axis=1), "head": lambda f: f}, r"features of 2 images must be \[2, h, w, K\]"),
        ({"features": features, "head": lambda f: f}, r"head\(features\(images\)\) must be floats \[2, 2\]"),
        ({"features": features, "head": linear_head, "link": "probit"}, "link = 'probit' is unknown"),
        (
            {"features": features, "head": linear_head, "layers": {"a": (features, linear_head)}},
            "the head of layer 'a' fails",
        ),
        ({"scores": jax.tree_util.Partial(lambda w, x: x.sum() * w, 1.0)}, r"must be floats \[2, 2\]"),
    ],
)
def test_what_is_no_predictor_is_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        attribution.build_predictor(**arguments, class_names=2, image_size=SIZE)


def test_a_function_without_a_hash_is_refused():
    class Model:
        __hash__ = None

        def __call__(self, images):
            return images.mean(axis=(1, 2))

    with pytest.raises(UserError, match="must be hashable, and Model is not.*Partial"):
        attribution.build_predictor(Model(), class_names=3, image_size=SIZE)
