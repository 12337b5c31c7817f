"""Extremal Perturbations (Fong, Patrick & Vedaldi, ICCV 2019, arXiv 1910.08485): the best mask of a given area.

A smooth mask (see smooth_masks.py) chooses at each pixel how far the image is blurred, and its area is held by a
penalty on its sorted values. Every (image, class, area) is a search of its own, and many are done side by side.
Constants and conventions are those of the authors' implementation, TorchRay.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

from selfexplain_jax.attribution.chunks import in_chunks
from selfexplain_jax.attribution.inputs import check_inputs, nan_where_scores_are, traceable
from selfexplain_jax.attribution.smooth_masks import MaskShape, generate_masks, inner
from selfexplain_jax.types import Predictor, UserError

AREAS = (0.025, 0.05, 0.1, 0.2)
VARIANTS = ("preserve", "delete", "dual")
LEARNING_RATE, MOMENTUM = 0.01, 0.9
AREA_WEIGHT, AREA_GROWTH = 300.0, 1.0035
"""Weight of the area's penalty at the first step, and its factor from each step to the next."""


def extremal_perturbation(
    predictor: Predictor,
    images: jax.Array,
    class_ids: jax.Array,
    *,
    rng: jax.Array | None = None,
    areas: Sequence[float] = AREAS,
    variant: str = "preserve",
    steps: int = 800,
    grid_step: int = 7,
    sigma: float = 21.0,
    levels: int = 8,
    max_blur: float = 20.0,
    smoothing: float = 0.09,
    chunk_size: int = 8,
) -> jax.Array:
    """Returns the sum of the extremal masks over the areas, smoothed, float32 [B, k, H, W] in 0..len(areas).

    Args:
      predictor: its scores are used; the reward is the score (logit) of the class itself.
      images: [B, H, W, 3], normalised.
      class_ids: int32 [B, k].
      rng: not used: every second step sees the mirrored image, and nothing is drawn.
      areas: shares of the mask's pixels, its margin included, that should be 1.
      variant: "preserve" (what is kept raises the score), "delete" (what is blurred lowers it) or "dual" (both at once,
        for twice the passes).
      steps: evaluations of the mask; the result is the mask of the last one.
      grid_step: pixels from one parameter to the next.
      sigma: radius of a parameter's disc, in pixels.
      levels: of the blur pyramid.
      max_blur: standard deviation of its strongest blur, in pixels.
      smoothing: standard deviation of the final blur of the map, as a share of its side; 0: none.
      chunk_size: masks searched at a time. It costs memory, and changes the map by rounding alone.

    Raises:
      UserError: bad images or class ids, or an option that makes no sense.
    """
    if smoothing < 0:
        raise UserError(f"Method 'extremal_perturbation' needs smoothing of at least 0; got {smoothing}.")
    masks = extremal_masks(
        predictor,
        images,
        class_ids,
        rng=rng,
        areas=areas,
        variant=variant,
        steps=steps,
        grid_step=grid_step,
        sigma=sigma,
        levels=levels,
        max_blur=max_blur,
        chunk_size=chunk_size,
    )
    smooth = blur_matrix(masks.shape[-1], smoothing * masks.shape[-1])
    return jnp.einsum("hi,bkij,wj->bkhw", smooth, masks.sum(axis=2), smooth)


def extremal_masks(
    predictor: Predictor,
    images: jax.Array,
    class_ids: jax.Array,
    *,
    rng: jax.Array | None = None,
    areas: Sequence[float] = AREAS,
    variant: str = "preserve",
    steps: int = 800,
    grid_step: int = 7,
    sigma: float = 21.0,
    levels: int = 8,
    max_blur: float = 20.0,
    chunk_size: int = 8,
) -> jax.Array:
    """Returns the extremal mask of each area, float32 [B, k, areas, H, W] in 0..1; see `extremal_perturbation`.

    Raises:
      UserError: bad images or class ids, or an option that makes no sense.
    """
    del rng
    images, class_ids = check_inputs(predictor, images, class_ids)
    areas = tuple(float(area) for area in areas)
    _check(areas, variant, steps, grid_step, sigma, levels, max_blur, chunk_size)
    return _search_all(
        traceable(predictor.scores),
        images,
        class_ids,
        areas=areas,
        variant=variant,
        steps=steps,
        shape=MaskShape(images.shape[1], grid_step, sigma),
        levels=levels,
        max_blur=max_blur,
        chunk_size=min(chunk_size, class_ids.size * len(areas)),
    )


def blur_matrix(size: int, sigma: float) -> np.ndarray:
    """K [size, size]: K x blurs a signal by a Gaussian cut off at 4 sigma, with zeros (the mean colour) around it."""
    if sigma == 0:
        return np.eye(size, dtype=np.float32)
    reach = math.ceil(4 * sigma)
    total = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2).sum()
    distance = np.arange(size)[:, None] - np.arange(size)[None, :]
    kernel = np.where(np.abs(distance) <= reach, np.exp(-0.5 * (distance / sigma) ** 2), 0.0)
    return (kernel / total).astype(np.float32)


def blur_pyramid(images: jax.Array, levels: int, max_blur: float) -> jax.Array:
    """Images [B, H, W, 3] from the strongest blur, level 0, to the image itself: [B, levels, H, W, 3].

    The standard deviation falls linearly, sigma_l = max_blur (1 - l / (levels - 1)).
    """
    sigmas = [max_blur * (1 - level / (levels - 1)) for level in range(levels)]
    rows = np.stack([blur_matrix(images.shape[1], sigma) for sigma in sigmas])  # [L, H, H]
    columns = np.stack([blur_matrix(images.shape[2], sigma) for sigma in sigmas])  # [L, W, W]
    return jnp.einsum("lhi,bijc,lwj->blhwc", rows, images, columns)


def perturb(pyramid: jax.Array, mask: jax.Array) -> jax.Array:
    """The image seen through a mask: level (L - 1) m of its pyramid, linear between two levels.

    Args:
      pyramid: [n, L, H, W, 3].
      mask: [n, H, W] in 0..1; 1 is the image itself.

    Returns:
      [n, H, W, 3].
    """
    last = pyramid.shape[1] - 1
    place = mask[..., None] * last  # [n, H, W, 1]
    level = jax.lax.stop_gradient(jnp.floor(place))
    share = place - level
    # Selected level by level: XLA's gather of single pixels takes several times as long on CPU.
    below = sum(jnp.where(level == n, pyramid[:, n], 0.0) for n in range(last + 1))
    above = sum(jnp.where(level == n, pyramid[:, n + 1], 0.0) for n in range(last))
    above = above + jnp.where(level == last, pyramid[:, last], 0.0)
    return below + share * (above - below)


def nth_largest(keys: jax.Array, n: jax.Array, bits: int) -> jax.Array:
    """The n-th largest of each row: keys int32 [P, N] in 0..2^bits - 1 and n int32 [P] to int32 [P], bit by bit.

    `bits` passes over the row, where a sort would take many more.
    """

    def try_bit(place, found):
        candidate = found | (1 << (bits - 1 - place))
        enough = (keys >= candidate[:, None]).sum(axis=1) >= n
        return jnp.where(enough, candidate, found)

    return jax.lax.fori_loop(0, bits, try_bit, jnp.zeros(len(keys), jnp.int32))


def largest_pixels(masks: jax.Array, count: jax.Array) -> jax.Array:
    """1 on the `count` largest pixels of each mask and 0 elsewhere; of equal ones the last count.

    Args:
      masks: [n, H, W] of 0 or more.
      count: int32 [n], at least 1.

    Returns:
      float32 [n, H, W].
    """
    flat = masks.reshape(len(masks), -1)
    # The bits of floats that are not negative are ordered as the floats are.
    keys = jax.lax.bitcast_convert_type(flat, jnp.int32)
    threshold = nth_largest(keys, count, 31)[:, None]
    above, equal = keys > threshold, keys == threshold
    # A fresh mask has the same value in every block: which of them count must not be left to chance.
    place = jnp.where(equal, jnp.arange(1, flat.shape[1] + 1)[None, :], 0)
    first = nth_largest(place, count - above.sum(axis=1), math.ceil(math.log2(flat.shape[1] + 2)))
    chosen = above | (equal & (place >= first[:, None]))
    return chosen.reshape(masks.shape).astype(jnp.float32)


def area_penalty(masks: jax.Array, count: jax.Array) -> jax.Array:
    """mean (sort(m) - r)^2 with r = 1 for the `count` largest pixels and 0 for the others, [n].

    The square of the vector's distance, as implemented, over the number of pixels. No sort is needed: r in the place of
    the unsorted pixels gives the same sum.
    """
    wanted = jax.lax.stop_gradient(largest_pixels(jax.lax.stop_gradient(masks), count))
    return jnp.square(masks - wanted).mean(axis=(1, 2))


def search(
    scores: Callable,
    pyramid: jax.Array,
    class_id: jax.Array,
    count: jax.Array,
    *,
    variant: str,
    steps: int,
    shape: MaskShape,
) -> jax.Array:
    """Searches n masks side by side, each on its own; returns them at image size, [n, H, W].

    Maximises score - 300 * 1.0035^t area penalty over parameters in 0..1 that start at 1, by gradient steps with
    momentum. The momentum is damped (v <- .9 v + .1 g, and v = g at the first step), as implemented.

    Args:
      scores: images -> class scores.
      pyramid: [n, L, H, W, 3].
      class_id: int32 [n].
      count: int32 [n], pixels of the mask with its margin that should be 1.
      variant: one of VARIANTS.
      steps: evaluations, at least 1; the last one's result is not used for a further step.
      shape: of the masks.
    """
    optimizer = optax.chain(optax.ema(MOMENTUM, debias=False), optax.scale_by_learning_rate(LEARNING_RATE))

    def loss(parameters, step):
        outer = generate_masks(parameters, shape)
        masks = inner(outer, shape)
        kept = [perturb(pyramid, masks)] if variant in ("preserve", "dual") else []
        removed = [perturb(pyramid, 1.0 - masks)] if variant in ("delete", "dual") else []
        seen = jnp.concatenate(kept + removed)  # [n or 2 n, H, W, 3]
        seen = jnp.where(step % 2 == 0, seen[:, :, ::-1], seen)
        signs = jnp.repeat(jnp.array([1.0] * len(kept) + [-1.0] * len(removed)), len(masks))
        asked = jnp.tile(class_id, len(kept) + len(removed))
        gain = signs * jnp.take_along_axis(scores(seen), asked[:, None], axis=1)[:, 0]
        weight = AREA_WEIGHT * AREA_GROWTH ** step.astype(jnp.float32)
        return weight * area_penalty(outer, count).sum() - gain.sum()

    def update(step, carry):
        parameters, (average, scale) = carry
        gradient = jax.grad(loss)(parameters, step)
        average = average._replace(ema=jnp.where(step == 0, gradient, average.ema))
        change, state = optimizer.update(gradient, (average, scale))
        return jnp.clip(optax.apply_updates(parameters, change), 0.0, 1.0), state

    parameters = jnp.ones((len(pyramid), shape.grid, shape.grid))
    parameters, _ = jax.lax.fori_loop(0, steps - 1, update, (parameters, optimizer.init(parameters)))
    return inner(generate_masks(parameters, shape), shape)


@functools.partial(jax.jit, static_argnames=("areas", "variant", "steps", "shape", "levels", "max_blur", "chunk_size"))
def _search_all(scores, images, class_ids, *, areas, variant, steps, shape, levels, max_blur, chunk_size):
    """All searches, `chunk_size` at a time: [B, k, areas, H, W]."""
    pyramids = blur_pyramid(images, levels, max_blur)
    counts = jnp.array([shape.outer**2 - int(shape.outer**2 * (1 - area)) for area in areas], jnp.int32)
    all_shape = (*class_ids.shape, len(areas))
    image, class_id, count = (
        jnp.broadcast_to(x, all_shape).ravel()
        for x in (jnp.arange(len(images))[:, None, None], class_ids[:, :, None], counts[None, None, :])
    )

    def of_chunk(place):
        return search(
            scores, pyramids[image[place]], class_id[place], count[place], variant=variant, steps=steps, shape=shape
        )

    masks = in_chunks(of_chunk, len(image), chunk_size)  # [B k areas, H, W]
    # The search goes by gradients, which may be finite where a score is not.
    masks = masks.reshape(*class_ids.shape, len(areas), *masks.shape[1:])  # [B, k, areas, H, W]
    return nan_where_scores_are(masks, scores(images), class_ids)


def _check(areas, variant, steps, grid_step, sigma, levels, max_blur, chunk_size) -> None:
    if variant not in VARIANTS:
        raise UserError(f"Method 'extremal_perturbation' knows the variants {', '.join(VARIANTS)}; got {variant!r}.")
    if not areas or not all(0 < area < 1 for area in areas):
        raise UserError(f"Method 'extremal_perturbation' needs areas between 0 and 1; got {areas}.")
    if min(steps, grid_step, chunk_size) < 1 or levels < 2 or sigma <= 0 or max_blur <= 0:
        raise UserError(
            "Method 'extremal_perturbation' needs steps, grid_step and chunk_size of at least 1, levels of at least 2"
            f" and positive sigma and max_blur; got {steps}, {grid_step}, {chunk_size}, {levels}, {sigma}, {max_blur}."
        )
