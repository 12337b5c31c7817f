"""Gradient methods: answers by hand, completeness, shared noise; guided backpropagation of every form of ReLU."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selfexplain_jax import attribution
from selfexplain_jax.attribution.gradient import QUADRATURES, class_gradients, quadrature_points, summed_in_chunks
from selfexplain_jax.attribution.guided import guided
from selfexplain_jax.types import UserError

SIZE = 4
IMAGES = np.random.default_rng(0).normal(size=(2, SIZE, SIZE, 3)).astype(np.float32)
IDS = np.array([[0, 1], [1, 0]])
KERNEL = np.random.default_rng(1).normal(size=(3, 3)).astype(np.float32)


def scores(images):
    """z_0 = sum over pixels of x_r^2 - 2 x_g + 3 x_b, z_1 = the mean's sine."""
    red, green, blue = (images[..., i] for i in range(3))
    return jnp.stack([(red**2 - 2 * green + 3 * blue).sum(axis=(1, 2)), jnp.sin(images.mean(axis=(1, 2, 3)))], axis=-1)


PREDICTOR = attribution.build_predictor(scores, class_names=2, image_size=SIZE)


def maps_of(name, **options):
    return np.asarray(attribution.build_method(name, **options)(PREDICTOR, IMAGES, IDS))


def test_gradient_by_hand():
    expected = np.stack([2 * IMAGES[0, ..., 0], np.full((4, 4), -2), np.full((4, 4), 3)], axis=-1)
    np.testing.assert_allclose(maps_of("gradient")[0, 0], np.abs(expected).max(axis=-1), rtol=1e-5)
    np.testing.assert_allclose(maps_of("gradient", channels="sum")[0, 0], expected.sum(axis=-1), rtol=1e-5)
    np.testing.assert_allclose(maps_of("gradient", channels="abs_sum")[0, 0], np.abs(expected).sum(axis=-1), rtol=1e-5)
    cosine = np.cos(IMAGES[1].mean()) / 48
    np.testing.assert_allclose(maps_of("gradient")[1, 0], np.full((4, 4), abs(cosine)), rtol=1e-5)
    by_input = maps_of("gradient_x_input")
    np.testing.assert_allclose(by_input[0, 0], (expected * IMAGES[0]).sum(axis=-1), rtol=1e-4, atol=1e-5)


def test_every_class_gets_its_own_gradient_from_one_forward_pass():
    calls = []

    def counted(images):
        calls.append(images.shape)
        return scores(images)

    gradients = class_gradients(counted, IMAGES, jnp.asarray(IDS))
    assert calls == [IMAGES.shape] and gradients.shape == (2, 2, SIZE, SIZE, 3)
    for image, number in np.ndindex(2, 2):
        alone = jax.grad(lambda x, c=IDS[image, number]: scores(x)[0, c])(IMAGES[image : image + 1])
        np.testing.assert_allclose(gradients[image, number], alone[0], rtol=1e-5)


@pytest.mark.parametrize("quadrature", QUADRATURES)
def test_quadrature_integrates_what_it_should(quadrature):
    places, weights = quadrature_points(quadrature, 5)
    assert weights.sum() == pytest.approx(1) and places.min() >= 0 and places.max() <= 1
    # The integral of a over 0..1 is 1 / 2; the right sum is too large by 1 / (2 n).
    assert (weights * places).sum() == pytest.approx(0.6 if quadrature == "right" else 0.5)
    if quadrature == "gauss_legendre":
        assert (weights * places**9).sum() == pytest.approx(0.1, rel=1e-5)


@pytest.mark.parametrize("baseline", [0.0, 0.5, np.array([1.0, 0.0, -1.0]), IMAGES[::-1]], ids=["0", "1/2", "3", "B"])
def test_integrated_gradients_are_complete(baseline):
    maps = maps_of("integrated_gradients", baseline=baseline, steps=6)
    start = np.broadcast_to(baseline, IMAGES.shape).astype(np.float32)
    difference = np.take_along_axis(np.asarray(scores(IMAGES) - scores(start)), IDS, axis=1)
    np.testing.assert_allclose(maps.sum(axis=(2, 3)), difference, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["smooth_grad", "integrated_gradients"])
def test_chunk_size_changes_memory_and_not_the_result(name):
    options = {"samples": 5} if name == "smooth_grad" else {"steps": 5}
    options |= {"rng": jax.random.key(3)}
    method = attribution.METHODS[name]
    maps = [method(PREDICTOR, IMAGES, IDS, chunk_size=size, **options) for size in (1, 3, 8)]
    np.testing.assert_allclose(maps[1], maps[0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(maps[2], maps[0], rtol=1e-4, atol=1e-5)


def test_sum_in_chunks_leaves_nothing_out_and_counts_nothing_twice():
    for size in (1, 2, 3, 7, 10):
        total = summed_in_chunks(lambda n: n[:, None].astype(jnp.float32), jnp.arange(7.0), size)
        assert total.shape == (1,) and float(total[0]) == sum(i * i for i in range(7))


def test_smooth_grad_is_the_mean_over_the_given_noise():
    noise = np.random.default_rng(2).normal(size=(3, SIZE, SIZE, 3)).astype(np.float32)
    maps = maps_of("smooth_grad", samples=3, sigma=0.5, noise=noise, channels="sum")
    spread = 0.5 * (IMAGES[0].max() - IMAGES[0].min())
    red = (IMAGES[0, ..., 0] + spread * noise[..., 0]).mean(axis=0)
    np.testing.assert_allclose(maps[0, 0], 2 * red - 2 + 3, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("gradient", {"channels": "mean"}, "channels = 'mean' is unknown.*sum, abs_sum, abs_max"),
        ("smooth_grad", {}, "draws noise: give rng"),
        ("smooth_grad", {"noise": np.zeros((2, 4, 4, 3))}, r"needs noise of shape \(50, 4, 4, 3\)"),
        ("smooth_grad", {"rng": jax.random.key(0), "samples": 0}, "samples = 0"),
        ("smooth_grad", {"rng": jax.random.key(0), "sigma": -1.0}, "sigma = -1.0"),
        ("integrated_gradients", {"baseline": np.zeros((4, 4))}, r"baseline that is a number.*got \(4, 4\)"),
        ("integrated_gradients", {"quadrature": "left"}, "quadrature = 'left' is unknown"),
        ("integrated_gradients", {"quadrature": "trapezoid", "steps": 1}, "2 steps for the trapezoid; got steps = 1"),
        ("integrated_gradients", {"chunk_size": 0}, "chunk_size = 0"),
    ],
)
def test_bad_options_are_refused(name, options, message):
    with pytest.raises(UserError, match=message):
        attribution.METHODS[name](PREDICTOR, IMAGES, IDS, **options)


# ---- Guided backpropagation ------------------------------------------------------------------------------------------

X = np.array([[1.0, -2.0, 0.5], [-1.0, 3.0, 2.0]], np.float32)

RELUS = {
    "relu": jax.nn.relu,
    "relu6": jax.nn.relu6,
    "maximum": lambda x: jnp.maximum(x, 0),
    "maximum, zero first": lambda x: jnp.maximum(0.0, x),
    "maximum with an array of zeros": lambda x: jnp.maximum(x, jnp.zeros_like(x)),
    "where": lambda x: jnp.where(x > 0, x, 0),
    "where, the other way": lambda x: jnp.where(0.0 < x, x, 0.0),
    "clip": lambda x: jnp.clip(x, 0, 6),
    "lax.max": lambda x: jax.lax.max(x, jnp.float32(0)),
    "jit": jax.jit(lambda x: jax.nn.relu(x)),
    "checkpoint": jax.checkpoint(jax.nn.relu),
    "scan": lambda x: jax.lax.scan(lambda carry, _: (jax.nn.relu(carry), None), x, length=1)[0],
    "cond": lambda x: jax.lax.cond(x.sum() < 1e9, jax.nn.relu, lambda x: x, x),
}


def test_guided_by_hand():
    # y = relu(x), z = 2 y_0 - 3 y_1 + 4 y_2: where x > 0 the positive gradients are left.
    weights = np.array([2.0, -3.0, 4.0], np.float32)
    gradient = jax.grad(guided(lambda x: (jax.nn.relu(x) * weights.reshape(1, 3)).sum()))(X)
    np.testing.assert_array_equal(gradient, [[2, 0, 4], [0, 0, 4]])


def two_layers(relu, x):
    return (relu(relu(x @ KERNEL) @ KERNEL.T - 0.3) * np.array([[1.0, -2.0, 3.0]], np.float32)).sum()


@functools.cache
def guided_by_hand():
    """Gradient of `two_layers` in numpy."""
    first = X @ KERNEL
    second = np.maximum(first, 0) @ KERNEL.T - 0.3
    gradient = np.maximum(np.array([[1.0, -2.0, 3.0]]), 0) * (second > 0)
    gradient = np.maximum(gradient @ KERNEL, 0) * (first > 0)
    plain = (np.array([[1.0, -2.0, 3.0]]) * (second > 0) @ KERNEL * (first > 0)) @ KERNEL.T
    assert not np.allclose(gradient @ KERNEL.T, plain, atol=1e-3)
    return gradient @ KERNEL.T


@pytest.mark.parametrize("form", RELUS)
def test_every_form_of_relu_is_found(form):
    gradient = jax.jit(jax.grad(guided(lambda x: two_layers(RELUS[form], x))))(X)
    np.testing.assert_allclose(gradient, guided_by_hand(), rtol=1e-4, atol=1e-5)


def variance_kept_from_below_zero(x):
    mean = x.mean(axis=-1, keepdims=True)
    variance = jnp.maximum(0.0, jnp.square(x).mean(axis=-1, keepdims=True) - jnp.square(mean))
    return ((x - mean) * jax.lax.rsqrt(variance + 1e-6) * KERNEL[:2]).sum()


@pytest.mark.parametrize(
    "function",
    [
        lambda x: jax.nn.gelu(x).sum(),
        lambda x: jax.nn.softplus(x).sum(),
        lambda x: jax.nn.logsumexp(x),
        variance_kept_from_below_zero,
    ],
    ids=["gelu", "softplus", "logsumexp", "variance"],
)
def test_what_is_no_relu_is_left_alone(function):
    with pytest.raises(UserError, match="no ReLU is found"):
        guided(function)(X)
    both = guided(lambda x: function(x) + jax.nn.relu(x[0, 1]))  # x < 0 there: the ReLU has no share in the gradient
    np.testing.assert_allclose(jax.grad(both)(X), jax.grad(function)(X), rtol=1e-5)


def test_relu_out_of_reach_is_said():
    def loop(x):
        return jax.lax.while_loop(lambda y: y.sum() > 1e9, lambda y: jax.nn.relu(y), x).sum()

    with pytest.raises(UserError, match="a loop with an open end"):
        guided(loop)(X)
