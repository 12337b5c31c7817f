"""Attribution by the gradient of a class score with respect to the image: plain, smoothed, and along a path.

Each method gives a number per pixel and colour; the option `channels` says how the colours of a pixel become one
number. Everything is raw: not normalised, no ReLU.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from selfexplain_jax.attribution.inputs import check_inputs, traceable
from selfexplain_jax.types import Predictor, UserError

CHANNELS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "sum": lambda values: values.sum(axis=-1),
    "abs_sum": lambda values: jnp.abs(values).sum(axis=-1),
    "abs_max": lambda values: jnp.abs(values).max(axis=-1),
}
"""[..., 3] to [...]: the sum keeps signs and totals; the largest size is Simonyan et al.'s."""

QUADRATURES = ("gauss_legendre", "right", "middle", "trapezoid")


def class_gradients(function: Callable, inputs: jax.Array, class_ids: jax.Array) -> jax.Array:
    """d function(inputs)_c / d inputs of every class asked for, with one forward pass for all of them.

    Args:
      function: inputs [B, ...] to scores [B, C], each row from its own input alone.
      inputs: [B, ...].
      class_ids: int32 [B, k].

    Returns:
      [B, k, ...]; NaN where the score is NaN.
    """
    scores, pull_back = jax.vjp(function, inputs)
    one_hot = jax.nn.one_hot(class_ids.T, scores.shape[-1], dtype=scores.dtype)  # [k, B, C]
    (gradients,) = jax.vmap(pull_back)(one_hot)  # [k, B, ...]
    gradients = jnp.moveaxis(gradients, 0, 1)
    # A ReLU's gradient at NaN is 0, and would hide it.
    broken = jnp.isnan(jnp.take_along_axis(scores, class_ids, axis=1))  # [B, k]
    return jnp.where(broken.reshape(*class_ids.shape, *(1,) * (inputs.ndim - 1)), jnp.nan, gradients)


def reduce_channels(values: jax.Array, channels: str) -> jax.Array:
    """[B, k, H, W, 3] to [B, k, H, W] by the reduction of that name in CHANNELS.

    Raises:
      UserError: there is no such reduction.
    """
    if channels not in CHANNELS:
        raise UserError(f"Option channels = {channels!r} is unknown. Choose one of {', '.join(CHANNELS)}.")
    return CHANNELS[channels](values.astype(jnp.float32))


def summed_in_chunks(function: Callable, weights: jax.Array, chunk_size: int) -> jax.Array:
    """sum_i weights_i function(i) over i = 0..n-1, with at most `chunk_size` terms in memory at once.

    Args:
      function: int32 [c] to [c, ...], each row from its own number alone.
      weights: float32 [n].
      chunk_size: c, at most; the chunks are as even as they can be, and what is missing to the last has weight 0.

    Returns:
      [...]; the chunk size changes its rounding and nothing else.
    """
    count = weights.shape[0]
    chunks = -(-count // chunk_size)
    size = -(-count // chunks)
    padded = jnp.pad(weights, (0, chunks * size - count)).reshape(chunks, size)
    numbers = (jnp.arange(chunks * size) % count).reshape(chunks, size)

    def add(total, chunk):
        numbers, weights = chunk
        return total + jnp.tensordot(weights, function(numbers), axes=1), None

    shape = jax.eval_shape(function, numbers[0])
    return jax.lax.scan(add, jnp.zeros(shape.shape[1:], shape.dtype), (numbers, padded))[0]


def gradient(
    predictor: Predictor,
    images: jax.Array,
    class_ids: jax.Array,
    *,
    rng: jax.Array | None = None,
    channels: str = "abs_max",
) -> jax.Array:
    """The gradient of the class score with respect to the image (Simonyan et al. 2014, section 3).

    Args:
      predictor: its scores are differentiated.
      images: [B, H, W, 3], normalised.
      class_ids: int32 [B, k].
      rng: not used.
      channels: one of CHANNELS; the default, max over the colours of |dz_c/dx|, is the paper's section 3.1.

    Returns:
      float32 [B, k, H, W], in units of the score per unit of the normalised image.

    Raises:
      UserError: bad images, class ids or option.
    """
    del rng
    images, class_ids = check_inputs(predictor, images, class_ids)
    return _gradient(traceable(predictor.scores), images, class_ids, channels=channels, times_input=False)


def gradient_x_input(
    predictor: Predictor,
    images: jax.Array,
    class_ids: jax.Array,
    *,
    rng: jax.Array | None = None,
    channels: str = "sum",
) -> jax.Array:
    """The gradient times the normalised image, in which 0 is the mean colour (Shrikumar et al. 2016, arXiv 1605.01713).

    Args:
      predictor: its scores are differentiated.
      images: [B, H, W, 3], normalised.
      class_ids: int32 [B, k].
      rng: not used.
      channels: one of CHANNELS; the sum is the first-order share of the pixel in the score.

    Returns:
      float32 [B, k, H, W], in units of the score.

    Raises:
      UserError: bad images, class ids or option.
    """
    del rng
    images, class_ids = check_inputs(predictor, images, class_ids)
    return _gradient(traceable(predictor.scores), images, class_ids, channels=channels, times_input=True)


def smooth_grad(
    predictor: Predictor,
    images: jax.Array,
    class_ids: jax.Array,
    *,
    rng: jax.Array | None = None,
    samples: int = 50,
    sigma: float = 0.15,
    channels: str = "abs_sum",
    chunk_size: int = 8,
    noise: jax.Array | None = None,
) -> jax.Array:
    """SmoothGrad: the mean gradient at noisy copies of the image (Smilkov et al. 2017, section 3).

    mean_i dz_c/dx at x + sigma (max x - min x) e_i, e_i standard normal; then the colours are reduced. All images of a
    call get the same e_i, so that an image's map does not depend on its neighbours.

    Args:
      predictor: its scores are differentiated.
      images: [B, H, W, 3], normalised.
      class_ids: int32 [B, k].
      rng: draws the noise; needed unless `noise` is given.
      samples: noisy copies.
      sigma: standard deviation of the noise as a share of each image's range; the paper recommends .1 to .2.
      channels: one of CHANNELS; the default is that of the authors' code.
      chunk_size: copies of each image in memory at once.
      noise: e, [samples, H, W, 3], to be used in the place of drawn numbers.

    Returns:
      float32 [B, k, H, W], in units of the score per unit of the normalised image.

    Raises:
      UserError: bad images, class ids or options, or neither rng nor noise.
    """
    images, class_ids = check_inputs(predictor, images, class_ids)
    if rng is None and noise is None:
        raise UserError("Method 'smooth_grad' draws noise: give rng=jax.random.key(0), or the noise itself.")
    if noise is not None:
        noise = jnp.asarray(noise, jnp.float32)
        if noise.shape != (samples, *images.shape[1:]):
            raise UserError(
                f"Method 'smooth_grad' needs noise of shape {(samples, *images.shape[1:])}, as samples = {samples} and"
                f" the images say; got {noise.shape}."
            )
    if samples < 1 or chunk_size < 1 or sigma < 0:
        raise UserError(
            f"Method 'smooth_grad' needs samples and chunk_size of 1 or more, and sigma of 0 or more; got samples ="
            f" {samples}, chunk_size = {chunk_size}, sigma = {sigma}."
        )
    static = {"samples": samples, "channels": channels, "chunk_size": chunk_size}
    return _smooth_grad(traceable(predictor.scores), images, class_ids, rng, noise, sigma, **static)


def integrated_gradients(
    predictor: Predictor,
    images: jax.Array,
    class_ids: jax.Array,
    *,
    rng: jax.Array | None = None,
    baseline: float | jax.Array = 0.0,
    steps: int = 50,
    quadrature: str = "gauss_legendre",
    channels: str = "sum",
    chunk_size: int = 8,
) -> jax.Array:
    """Integrated Gradients (Sundararajan et al. 2017, equation 1): the gradient along the way from a baseline.

    (x - b) integral_0^1 dz_c/dx at b + a (x - b) da. With channels = "sum" the map's sum is z_c(x) - z_c(b), the
    paper's axiom of completeness, up to the error of the quadrature.

    Args:
      predictor: its scores are differentiated.
      images: [B, H, W, 3], normalised.
      class_ids: int32 [B, k].
      rng: not used.
      baseline: b: a number, or [3], [H, W, 3] or [B, H, W, 3], normalised; 0 is the mean colour.
      steps: points of the quadrature, 2 or more for the trapezoid.
      quadrature: "gauss_legendre" (Gauss-Legendre nodes on 0..1), "right" (a = i / steps, i from 1: the paper's
        equation 3), "middle" (a = (i + .5) / steps, i from 0) or "trapezoid" (both ends, half weight there;
        unlike captum's, whose total is (steps - 1) / steps of it, complete).
      channels: one of CHANNELS.
      chunk_size: points of each image in memory at once.

    Returns:
      float32 [B, k, H, W], in units of the score.

    Raises:
      UserError: bad images, class ids, baseline or options.
    """
    del rng
    images, class_ids = check_inputs(predictor, images, class_ids)
    baseline = jnp.asarray(baseline, jnp.float32)
    if baseline.ndim and baseline.shape not in (images.shape[-1:], images.shape[1:], images.shape):
        raise UserError(
            f"Method 'integrated_gradients' needs a baseline that is a number or has the shape {images.shape[-1:]},"
            f" {images.shape[1:]} or {images.shape}; got {baseline.shape}."
        )
    if quadrature not in QUADRATURES:
        raise UserError(f"Option quadrature = {quadrature!r} is unknown. Choose one of {', '.join(QUADRATURES)}.")
    if steps < 1 + (quadrature == "trapezoid") or chunk_size < 1:
        raise UserError(
            f"Method 'integrated_gradients' needs steps and chunk_size of 1 or more, and 2 steps for the trapezoid; got"
            f" steps = {steps}, chunk_size = {chunk_size}."
        )
    static = {"steps": steps, "quadrature": quadrature, "channels": channels, "chunk_size": chunk_size}
    return _integrated_gradients(traceable(predictor.scores), images, class_ids, baseline, **static)


def quadrature_points(quadrature: str, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Places a_i in 0..1 and weights that sum to 1, float32 [steps] each, of one of QUADRATURES."""
    weights = np.full(steps, 1.0 / steps)
    if quadrature == "right":
        places = np.arange(1, steps + 1) / steps
    elif quadrature == "middle":
        places = (np.arange(steps) + 0.5) / steps
    elif quadrature == "trapezoid":
        places = np.linspace(0.0, 1.0, steps)
        weights = np.full(steps, 1.0 / (steps - 1))
        weights[[0, -1]] /= 2
    else:
        nodes, weights = np.polynomial.legendre.leggauss(steps)
        places, weights = (nodes + 1) / 2, weights / 2
    return places.astype(np.float32), weights.astype(np.float32)


def _gradients_at(scores, copies, class_ids):
    """Class gradients at several copies of each image: [c, B, H, W, 3] and ids [B, k] to [c, B, k, H, W, 3]."""
    count, batch = copies.shape[:2]
    flat = copies.reshape(count * batch, *copies.shape[2:])  # [c B, H, W, 3]
    gradients = class_gradients(scores, flat, jnp.tile(class_ids, (count, 1)))  # [c B, k, H, W, 3]
    return gradients.reshape(count, batch, *gradients.shape[1:])  # [c, B, k, H, W, 3]


@functools.partial(jax.jit, static_argnames=("channels", "times_input"))
def _gradient(scores, images, class_ids, *, channels, times_input):
    gradients = class_gradients(scores, images, class_ids)  # [B, k, H, W, 3]
    return reduce_channels(gradients * images[:, None] if times_input else gradients, channels)


@functools.partial(jax.jit, static_argnames=("samples", "channels", "chunk_size"))
def _smooth_grad(scores, images, class_ids, rng, noise, sigma, *, samples, channels, chunk_size):
    low, high = (extreme(images, axis=(1, 2, 3), keepdims=True) for extreme in (jnp.min, jnp.max))  # [B, 1, 1, 1]

    def draw(number):
        # A key per sample, so that the numbers do not depend on the chunks.
        return jax.random.normal(jax.random.fold_in(rng, number), images.shape[1:])

    def gradients(numbers):
        drawn = jax.vmap(draw)(numbers) if noise is None else noise[numbers]  # [c, H, W, 3]
        return _gradients_at(scores, images[None] + sigma * (high - low)[None] * drawn[:, None], class_ids)

    return reduce_channels(summed_in_chunks(gradients, jnp.full(samples, 1.0 / samples), chunk_size), channels)


@functools.partial(jax.jit, static_argnames=("steps", "quadrature", "channels", "chunk_size"))
def _integrated_gradients(scores, images, class_ids, baseline, *, steps, quadrature, channels, chunk_size):
    places, weights = (jnp.asarray(values) for values in quadrature_points(quadrature, steps))
    baseline = jnp.broadcast_to(baseline, images.shape)
    way = images - baseline

    def gradients(numbers):
        along = places[numbers][:, None, None, None, None]  # [c, 1, 1, 1, 1]
        return _gradients_at(scores, baseline[None] + along * way[None], class_ids)

    total = summed_in_chunks(gradients, weights, chunk_size)  # [B, k, H, W, 3]
    return reduce_channels(total * way[:, None], channels)
