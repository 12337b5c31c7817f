"""Does the classifier react to the pixels that a map calls important? Deletion, insertion, drop, increase, gain, ROAD.

Every metric asks for probabilities of changed images, many for each map. The changed images are made on the device
where they are shown, `chunk_size` at a time over all (image, class, step) at once, so that the chunk alone decides the
memory and nothing but the memory. Maps are [B, k, H, W]; P = B * k.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from selfexplain_jax.attribution.chunks import in_chunks
from selfexplain_jax.attribution.inputs import check_inputs, traceable
from selfexplain_jax.metrics import imputation
from selfexplain_jax.types import Predictor, UserError

CHUNK_SIZE = 32
"""Images that are made and shown to the classifier at once."""
BLUR_SIZE, BLUR_SIGMA = 11, 5.0
"""Of the blurred image that insertion starts from, in pixels (RISE)."""
ROAD_PERCENTAGES = (20, 40, 60, 80)
"""Shares of pixels that ROAD removes."""
SMALLEST_PROBABILITY = 1e-12
"""Floor of the divisor in average drop and average gain."""


def check_maps(predictor: Predictor, images: jax.Array, class_ids: jax.Array, maps: jax.Array) -> tuple:
    """Returns images, class ids and maps as arrays of the device, or says what is wrong with them.

    Raises:
      UserError: images or class ids that `attribution.inputs.check_inputs` refuses, maps of another shape, NaN or
        infinity.
    """
    images, class_ids = check_inputs(predictor, jnp.asarray(images), class_ids)
    maps, expected = jnp.asarray(maps), (*class_ids.shape, *images.shape[1:3])
    if maps.shape != expected:
        raise UserError(f"The maps have shape {maps.shape}, expected {expected} (images, classes, height, width).")
    if not isinstance(maps, jax.core.Tracer):
        # Where the maps are: one answer a map leaves the device.
        bad = np.argwhere(~np.asarray(jnp.isfinite(maps).all(axis=(2, 3))))
        if bad.size:
            raise UserError(f"Maps (image, class place) {bad[:5].tolist()} hold NaN or infinity.")
    return images, class_ids, maps


def pixel_ranks(saliency: jax.Array) -> jax.Array:
    """Returns each pixel's place in the order of falling saliency, int32 [P, H, W]: 0 for the most salient one.

    Equal pixels stand in reading order. (Published code leaves ties to the sorting algorithm, so that its numbers on
    maps with flat regions depend on it.)

    Args:
      saliency: [P, H, W].
    """
    maps, height, width = saliency.shape
    order = jnp.argsort(saliency.reshape(maps, -1), axis=1, stable=True, descending=True)  # [P, H * W]
    return jnp.argsort(order, axis=1).astype(jnp.int32).reshape(maps, height, width)


def deletion_blur(images: jax.Array) -> jax.Array:
    """Returns the blurred images [B, H, W, 3] that insertion starts from, as in RISE's published code.

    The kernel is a point in an 11 x 11 square that a Gaussian of sigma 5 has blurred with reflection at the square's
    borders, so it is flatter than a Gaussian; beyond the image's borders there are zeros (the mean colour).
    """
    rows, columns = (jnp.asarray(_blur_matrix(size)) for size in images.shape[1:3])
    return jnp.einsum("hi,bijc,wj->bhwc", rows, images, columns, precision="highest")


def deletion_insertion(
    predictor: Predictor,
    images: jax.Array,
    class_ids: jax.Array,
    saliency: jax.Array,
    *,
    step_pixels: int | None = None,
    chunk_size: int = CHUNK_SIZE,
) -> tuple[jax.Array, jax.Array]:
    """Returns the curves of deletion and insertion, float32 [B, k, T + 1] each; their area is `curve_area`.

    The class's probability while the most salient pixels are set to 0 in the normalised image (deletion), or appear on
    the blurred image (insertion). Petsiuk, Das & Saenko, "RISE", BMVC 2018 (causal metrics).

    Args:
      predictor: its scores and probabilities are asked.
      images: [B, H, W, 3], normalised.
      class_ids: int32 [B, k].
      saliency: [B, k, H, W].
      step_pixels: pixels per step; None: the image's width, so that T is its height, as published at 224 px.
      chunk_size: images shown at once.

    Raises:
      UserError: see `check_maps`, or options out of range.
    """
    _check_numbers(chunk_size, step_pixels=1 if step_pixels is None else step_pixels)
    curves = _deletion_insertion(
        traceable(predictor.scores),
        traceable(predictor.probabilities),
        *check_maps(predictor, images, class_ids, saliency),
        step_pixels=step_pixels or images.shape[2],
        chunk_size=chunk_size,
    )
    return curves[..., 0, :], curves[..., 1, :]


def curve_area(curves: jax.Array) -> jax.Array:
    """Returns the area under curves [..., T + 1] over 0..1 by trapezoids of equal width, [...].

    Examples:
      >>> float(curve_area(jnp.asarray([1.0, 0.5, 0.0])))
      0.5
    """
    return (curves.sum(axis=-1) - (curves[..., 0] + curves[..., -1]) / 2) / (curves.shape[-1] - 1)


def masked_probabilities(
    predictor: Predictor,
    images: jax.Array,
    class_ids: jax.Array,
    masks: jax.Array,
    *,
    chunk_size: int = CHUNK_SIZE,
) -> tuple[jax.Array, jax.Array]:
    """Returns the class's probability on the image (Y) and on mask times image (O), float32 [B, k] each.

    Args:
      predictor: its scores and probabilities are asked.
      images: [B, H, W, 3], normalised, so that a mask of 0 leaves the mean colour.
      class_ids: int32 [B, k].
      masks: [B, k, H, W] in [0, 1].
      chunk_size: images shown at once.

    Raises:
      UserError: see `check_maps`, or options out of range.
    """
    _check_numbers(chunk_size)
    pairs = _masked_probabilities(
        traceable(predictor.scores),
        traceable(predictor.probabilities),
        *check_maps(predictor, images, class_ids, masks),
        chunk_size=chunk_size,
    )
    return pairs[..., 0], pairs[..., 1]


def average_drop(whole: jax.Array, masked: jax.Array) -> jax.Array:
    """Returns relu(Y - O) / Y; low is good. Chattopadhay et al., "Grad-CAM++", WACV 2018, section 4.1."""
    return jax.nn.relu(whole - masked) / jnp.maximum(whole, SMALLEST_PROBABILITY)


def increase(whole: jax.Array, masked: jax.Array) -> jax.Array:
    """Returns 1 where O > Y ("increase in confidence", the same section), else 0; high is good."""
    return (masked > whole).astype(jnp.float32)


def average_gain(whole: jax.Array, masked: jax.Array) -> jax.Array:
    """Returns relu(O - Y) / (1 - Y); high is good. Zhang et al., "Opti-CAM" (arXiv 2301.07002)."""
    return jax.nn.relu(masked - whole) / jnp.maximum(1 - whole, SMALLEST_PROBABILITY)


def road(
    predictor: Predictor,
    images: jax.Array,
    class_ids: jax.Array,
    saliency: jax.Array,
    *,
    rng: jax.Array | None,
    percentages: tuple[int, ...] = ROAD_PERCENTAGES,
    solver_steps: int = imputation.SOLVER_STEPS,
    chunk_size: int = CHUNK_SIZE,
) -> tuple[jax.Array, jax.Array]:
    """Returns the class's probability with the most (MoRF) and least (LeRF) relevant pixels imputed, [B, k, T] each.

    Of n pixels floor(n * percentage / 100) are removed and replaced by noisy linear imputation (`imputation.py`); those
    that LeRF removes are the last ones of the same order. (LeRF - MoRF) / 2, averaged over the percentages, is ROAD in
    one number. The noise of a percentage and an order is the same for all images, so that a batch equals its single
    images. Rong et al., ICML 2022, report the accuracy where this takes the class's probability, which is finer and
    does not depend on which other classes there are.

    Args:
      predictor: its scores and probabilities are asked.
      images: [B, H, W, 3], normalised.
      class_ids: int32 [B, k].
      saliency: [B, k, H, W].
      rng: of the noise; None: no noise.
      percentages: T shares of pixels to remove.
      solver_steps: of the imputation's solver.
      chunk_size: images imputed and shown at once.

    Raises:
      UserError: see `check_maps`, or options out of range.
    """
    _check_numbers(chunk_size, solver_steps=solver_steps, percentages=tuple(percentages))
    curves = _road(
        traceable(predictor.scores),
        traceable(predictor.probabilities),
        *check_maps(predictor, images, class_ids, saliency),
        rng,
        percentages=tuple(percentages),
        solver_steps=solver_steps,
        chunk_size=chunk_size,
    )
    return curves[..., 0, :], curves[..., 1, :]


def _check_numbers(chunk_size: int, percentages: tuple = (50,), **counts: int) -> None:
    """Refuses options of which nothing can be computed."""
    for name, count in {"chunk_size": chunk_size, **counts}.items():
        if count < 1:
            raise UserError(f"{name} = {count} of a metric must be at least 1.")
    if not percentages or not all(0 < share < 100 for share in percentages):
        raise UserError(f"ROAD removes more than 0 and less than 100 percent of the pixels; got {percentages}.")


def class_probabilities(
    scores: Callable,
    probabilities: Callable,
    make: Callable[[jax.Array, jax.Array], jax.Array],
    class_ids: jax.Array,
    steps: int,
    chunk_size: int,
) -> jax.Array:
    """Returns the probability of each map's class on each of its changed images, float32 [P, steps].

    Args:
      scores: images [N, H, W, 3] -> [N, C].
      probabilities: [N, C] -> [N, C].
      make: (place of the map int32 [N], step int32 [N]) -> changed images [N, H, W, 3].
      class_ids: int32 [P].
      steps: changed images per map.
      chunk_size: N.
    """

    def answer(pair, step):
        found = probabilities(scores(make(pair, step)))  # [N, C]
        return jnp.take_along_axis(found, class_ids[pair][:, None], axis=1)[:, 0]

    return for_maps_and_steps(answer, class_ids.shape[0], steps, chunk_size)


def for_maps_and_steps(answer: Callable, maps: int, steps: int, chunk_size: int) -> jax.Array:
    """Returns the answers for every map and step, float32 [maps, steps, ...], computed N = `chunk_size` at a time.

    Args:
      answer: (place of the map int32 [N], step int32 [N]) -> [N, ...].
      maps: how many there are.
      steps: answers per map.
      chunk_size: N.
    """
    found = in_chunks(lambda place: answer(place // steps, place % steps), maps * steps, chunk_size)
    return found.reshape(maps, steps, *found.shape[1:]).astype(jnp.float32)


@functools.partial(jax.jit, static_argnames=("step_pixels", "chunk_size"))
def _deletion_insertion(scores, probabilities, images, class_ids, saliency, *, step_pixels, chunk_size):
    """[B, k, 2, T + 1]: deletion and insertion."""
    _, classes, height, width = saliency.shape
    steps = -(-height * width // step_pixels) + 1
    ranks = pixel_ranks(saliency.reshape(-1, height, width))  # [P, H, W]
    blurred = deletion_blur(images)

    def make(pair, step):
        inserting, step = step >= steps, step % steps
        image, blur = images[pair // classes], blurred[pair // classes]  # [N, H, W, 3]
        reached = (ranks[pair] < (step * step_pixels)[:, None, None])[..., None]
        inserting = inserting[:, None, None, None]
        return jnp.where(reached == inserting, image, jnp.where(inserting, blur, 0))

    found = class_probabilities(scores, probabilities, make, class_ids.ravel(), 2 * steps, chunk_size)
    return found.reshape(*class_ids.shape, 2, steps)


@functools.partial(jax.jit, static_argnames="chunk_size")
def _masked_probabilities(scores, probabilities, images, class_ids, masks, *, chunk_size):
    """[B, k, 2]: on the whole and on the masked image."""
    classes, (height, width) = masks.shape[1], masks.shape[2:]
    flat = masks.reshape(-1, height, width)  # [P, H, W]

    def make(pair, step):
        mask = jnp.where((step == 0)[:, None, None], 1.0, flat[pair])
        return mask[..., None] * images[pair // classes]

    found = class_probabilities(scores, probabilities, make, class_ids.ravel(), 2, chunk_size)
    return found.reshape(*class_ids.shape, 2)


@functools.partial(jax.jit, static_argnames=("percentages", "solver_steps", "chunk_size"))
def _road(scores, probabilities, images, class_ids, saliency, rng, *, percentages, solver_steps, chunk_size):
    """[B, k, 2, T]: the most and the least relevant pixels removed."""
    _, classes, height, width = saliency.shape
    ranks = pixel_ranks(saliency.reshape(-1, height, width))  # [P, H, W]
    pixels, count = height * width, len(percentages)
    removals = jnp.asarray([pixels * percentage // 100 for percentage in percentages], jnp.int32)
    shape = (2 * count, *images.shape[1:])
    noise = jnp.zeros(shape, images.dtype) if rng is None else jax.random.normal(rng, shape, images.dtype)

    def make(pair, step):
        rank, number = ranks[pair], removals[step % count][:, None, None]
        least = (step >= count)[:, None, None]
        removed = jnp.where(least, rank >= pixels - number, rank < number)
        return imputation.noisy_linear_imputation(images[pair // classes], removed, noise[step], solver_steps)

    found = class_probabilities(scores, probabilities, make, class_ids.ravel(), 2 * count, chunk_size)
    return found.reshape(*class_ids.shape, 2, count)


@functools.lru_cache
def _blur_matrix(size: int) -> np.ndarray:
    """K [size, size]: K x blurs a signal by the kernel of `deletion_blur`, with zeros beyond its ends."""
    half, reach = BLUR_SIZE // 2, int(4 * BLUR_SIGMA + 0.5)
    gaussian = np.exp(-0.5 * (np.arange(-reach, reach + 1) / BLUR_SIGMA) ** 2)
    point = np.zeros(BLUR_SIZE)
    point[half] = 1
    kernel = np.convolve(np.pad(point, reach, mode="symmetric"), gaussian / gaussian.sum(), mode="valid")
    distance = np.arange(size)[:, None] - np.arange(size)[None, :] + half
    inside = (distance >= 0) & (distance < BLUR_SIZE)
    return np.where(inside, kernel[np.clip(distance, 0, BLUR_SIZE - 1)], 0).astype(np.float32)
