"""Maps of the published implementations (grad-cam, captum), which tests/parity/generate_cam.py wrote, are ours too.

The network is a user's own: plain functions of numpy weights, and no Flax.
"""

import pathlib

import jax
import numpy as np
import pytest
from parity import cam_network as given

from selfexplain_jax import attribution

GOLDENS = np.load(pathlib.Path(given.__file__).with_name("cam.npz"))
WEIGHTS = given.weights()


def convolve(x, name, stride):
    kernel, bias = WEIGHTS[name]
    dimensions = ("NHWC", "HWIO", "NHWC")
    y = jax.lax.conv_general_dilated(x, kernel, (stride,) * 2, ((1, 1), (1, 1)), dimension_numbers=dimensions)
    return jax.nn.relu(y + bias.reshape(1, 1, 1, -1))


def features(images):
    return convolve(convolve(images, "conv0", 1), "conv1", 2)


def head(features):
    (kernel, bias), (last, last_bias) = WEIGHTS["hidden"], WEIGHTS["classifier"]
    hidden = jax.nn.relu(features.reshape(features.shape[0], -1) @ kernel + bias.reshape(1, -1))
    return hidden @ last + last_bias.reshape(1, -1)


PREDICTOR = attribution.build_predictor(features=features, head=head, class_names=given.CLASSES, image_size=given.SIZE)
INTEGRATED = {"baseline": given.BASELINE, "steps": given.STEPS}
CASES = {
    "grad_cam": ("grad_cam", {}),
    "grad_cam_captum": ("grad_cam", {}),
    "grad_cam_plus_plus": ("grad_cam_plus_plus", {}),
    "gradient": ("gradient", {}),
    "gradient_x_input": ("gradient_x_input", {}),
    "smooth_grad": ("smooth_grad", {"samples": given.SAMPLES, "sigma": given.SIGMA, "noise": given.noise()}),
    "integrated_gradients": ("integrated_gradients", INTEGRATED),
    "integrated_gradients_right": ("integrated_gradients", INTEGRATED | {"quadrature": "right"}),
    "integrated_gradients_middle": ("integrated_gradients", INTEGRATED | {"quadrature": "middle"}),
    "integrated_gradients_trapezoid": ("integrated_gradients", INTEGRATED | {"quadrature": "trapezoid"}),
    "guided_backpropagation": ("guided_backpropagation", {}),
}


def relative_difference(ours, theirs):
    """Of each map: the norm of the difference over the norm of theirs; the largest."""
    difference = np.linalg.norm(np.asarray(ours) - theirs, axis=(2, 3)) / np.linalg.norm(theirs, axis=(2, 3))
    return difference.max()


def test_both_sides_have_the_same_network():
    np.testing.assert_allclose(PREDICTOR.scores(given.images()), GOLDENS["scores"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("case", CASES)
def test_raw_map_is_that_of_the_published_implementation(case):
    name, options = CASES[case]
    maps = attribution.build_method(name, **options)(PREDICTOR, given.images(), given.CLASS_IDS)
    if case == "integrated_gradients_trapezoid":
        # captum divides by the number of points, not of steps between them; its weights do not sum to 1.
        maps = maps * ((given.STEPS - 1) / given.STEPS)
    difference = relative_difference(maps, GOLDENS[case])
    print(f"{case}: relative difference {difference:.1e}")
    assert difference <= 1e-4
