"""RISE (Petsiuk et al., BMVC 2018, arXiv 1806.07421): the mean of random masks, weighted by what the classifier says.

One bank of masks serves all images and classes of a call. A mask is a pure function of the random key and its number,
made where it is used and thrown away, so memory does not grow with the number of masks.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from selfexplain_jax.attribution.inputs import check_inputs, traceable
from selfexplain_jax.types import Predictor, UserError


def rise(
    predictor: Predictor,
    images: jax.Array,
    class_ids: jax.Array,
    *,
    rng: jax.Array | None = None,
    num_masks: int = 8000,
    cells: int = 7,
    probability: float = 0.5,
    sampling: str = "independent",
    chunk_size: int = 32,
) -> jax.Array:
    """Returns S_c(u) = 1 / (N E[M]) sum_i p_c(x M_i) M_i(u), float32 [B, k, H, W] (equation 6).

    p_c is `predictor.probabilities` of the scores. The image is normalised, so what a mask hides becomes the mean
    colour, as in the paper. The map is raw: its values are near p_c, and what speaks are the differences.

    Args:
      predictor: its scores and probabilities are used.
      images: [B, H, W, 3], normalised.
      class_ids: int32 [B, k].
      rng: random key; the masks depend on it and on nothing else.
      num_masks: N, passes of the network per image.
      cells: of the coarse grid, per side.
      probability: that a cell is seen, in 0..1, E[M].
      sampling: a name in SAMPLINGS: "independent" masks as published, "antithetic" pairs, or "stratified" blocks, which
        give nearly the same map for fewer masks.
      chunk_size: masks at a time. A pass of the network holds this many copies of every image: it costs memory, and
        changes the map by rounding alone.

    Raises:
      UserError: bad images or class ids, no random key, or an option that makes no sense.
    """
    images, class_ids = check_inputs(predictor, images, class_ids)
    _check(rng, num_masks, cells, probability, sampling, chunk_size)
    return _map_of_drawn_masks(
        traceable(predictor.scores),
        traceable(predictor.probabilities),
        images,
        class_ids,
        rng,
        num_masks=num_masks,
        cells=cells,
        probability=probability,
        sampling=sampling,
        chunk_size=min(chunk_size, num_masks),
    )


def rise_from_masks(
    predictor: Predictor,
    images: jax.Array,
    class_ids: jax.Array,
    masks: jax.Array,
    *,
    probability: float = 0.5,
    chunk_size: int = 32,
) -> jax.Array:
    """Returns the map of `rise` from masks that the caller brings, float32 [B, k, H, W].

    Args:
      predictor: as in `rise`.
      images: [B, H, W, 3], normalised.
      class_ids: int32 [B, k].
      masks: [N, H, W] in 0..1, the same for all images.
      probability: E[M], by which the map is divided.
      chunk_size: as in `rise`.

    Raises:
      UserError: bad images, class ids or masks, or an option that makes no sense.
    """
    images, class_ids = check_inputs(predictor, images, class_ids)
    if masks.ndim != 3 or masks.shape[1:] != images.shape[1:3] or not len(masks):
        raise UserError(
            f"RISE needs masks [N, H, W] of the images' {images.shape[1]} x {images.shape[2]} px;"
            f" got shape {tuple(masks.shape)}."
        )
    _check_numbers(len(masks), probability, chunk_size)
    scores, probabilities = traceable(predictor.scores), traceable(predictor.probabilities)
    masks = jnp.asarray(masks, jnp.float32)
    chunk_size = min(chunk_size, len(masks))
    return _map_of_given_masks(scores, probabilities, images, class_ids, masks, probability, chunk_size=chunk_size)


def agreement(maps: jax.Array, reference: jax.Array) -> jax.Array:
    """The correlation of each map with its reference over the pixels, -1..1: both [B, k, H, W], result [B, k]."""
    maps, reference = (x - x.mean(axis=(2, 3), keepdims=True) for x in (jnp.asarray(maps), jnp.asarray(reference)))
    spread = jnp.sqrt(jnp.square(maps).sum(axis=(2, 3)) * jnp.square(reference).sum(axis=(2, 3)))
    return (maps * reference).sum(axis=(2, 3)) / spread


def agreement_curve(
    predictor: Predictor,
    images: jax.Array,
    class_ids: jax.Array,
    reference: jax.Array,
    *,
    rng: jax.Array,
    counts: Sequence[int],
    repetitions: int = 1,
    **options,
) -> dict[int, float]:
    """Returns {masks: mean agreement of `rise` with the reference}: how many masks a sampling needs.

    Args:
      predictor: as in `rise`.
      images: [B, H, W, 3], normalised.
      class_ids: int32 [B, k].
      reference: [B, k, H, W], the map of many independent masks, drawn with another key.
      rng: random key.
      counts: numbers of masks.
      repetitions: banks of masks per number, over which, as over images and classes, the mean is taken.
      **options: of `rise`.

    Raises:
      UserError: see `rise`.
    """
    curve = {}
    for count in counts:
        keys = jax.random.split(jax.random.fold_in(rng, count), repetitions)
        maps = [rise(predictor, images, class_ids, rng=key, num_masks=count, **options) for key in keys]
        curve[count] = float(jnp.stack([agreement(each, reference) for each in maps]).mean())
    return curve


def draw_masks(
    rng: jax.Array, index: jax.Array, size: int, cells: int = 7, probability: float = 0.5, sampling: str = "independent"
) -> jax.Array:
    """Returns the masks of these numbers, float32 [n, size, size] in 0..1.

    The grid of cells is enlarged bilinearly, beyond the image by one cell of C = ceil(size / cells) pixels, to
    (cells + 1) C pixels a side; the mask is a window of it at a random place (section 3.2 of the paper).

    Args:
      rng: random key.
      index: int32 [n], the masks' numbers. The same number gives the same mask, whatever is drawn beside it.
      size: pixels per side.
      cells: of the grid, per side.
      probability: that a cell is 1.
      sampling: a name in SAMPLINGS.
    """
    cell = -(-size // cells)
    enlarge = jax.image.resize(jnp.eye(cells), ((cells + 1) * cell, cells), "bilinear")  # [(cells + 1) C, cells]

    def one(number):
        grid, place = SAMPLINGS[sampling](rng, number, cells, probability)
        down, right = jnp.minimum((place * cell).astype(jnp.int32), cell - 1)
        rows, columns = (jax.lax.dynamic_slice(enlarge, (start, 0), (size, cells)) for start in (down, right))
        return rows @ grid @ columns.T

    return jax.vmap(one)(index)


def independent(rng: jax.Array, number: jax.Array, cells: int, probability: float) -> tuple[jax.Array, jax.Array]:
    """A grid of 0 and 1 [cells, cells] and a place [2] in [0, 1), all independent: the masks as published."""
    grid_key, place_key = jax.random.split(jax.random.fold_in(rng, number))
    grid = jax.random.uniform(grid_key, (cells, cells)) < probability
    return grid.astype(jnp.float32), jax.random.uniform(place_key, (2,))


def antithetic(rng: jax.Array, number: jax.Array, cells: int, probability: float) -> tuple[jax.Array, jax.Array]:
    """Pairs: each mask of an even number is followed by its complement at the same place, seen with 1 - probability.

    With f = even + odd about the grey mask, f(M) M + f(1 - M) (1 - M) = even + 2 odd (M - 1/2): whatever the classifier
    says of both alike is the same at every pixel, and adds no noise to the map.
    """
    grid, place = independent(rng, number // 2, cells, probability)
    return jnp.where(number % 2 == 1, 1.0 - grid, grid), place


def block_order(cells: int) -> int:
    """The rows of a block of stratified masks without their complements: the power of 2 above the number of cells."""
    return 2 ** int(np.floor(np.log2(cells * cells)) + 1)


def stratified(rng: jax.Array, number: jax.Array, cells: int, probability: float) -> tuple[jax.Array, jax.Array]:
    """Blocks of masks in which every two cells show all four combinations equally often, and their complements.

    The grids are rows of a Hadamard matrix (Sylvester's, entry (-1)^(bits of row AND column)), its columns dealt to the
    cells and their signs drawn anew for each block, so that each mask by itself is one of `independent`. What one cell
    does to the score is then not taken for an effect of another: in a block the sum over masks of M(a) M(b) is that of
    its expectation. Masks of a block lie at one place; the places of the blocks fill the cell evenly (a Kronecker
    sequence of the plastic number).
    """
    del probability
    order = block_order(cells)
    block, row = number // (2 * order), number % (2 * order)
    columns_key, signs_key = jax.random.split(jax.random.fold_in(rng, block))
    columns = jax.random.permutation(columns_key, order - 1)[: cells * cells] + 1
    parity = jax.lax.population_count(columns & (row // 2)) + jax.random.bernoulli(signs_key, shape=columns.shape) + row
    start = jax.random.uniform(jax.random.fold_in(rng, 2**31 - 1), (2,))
    plastic = 1.32471795724474602596
    place = (start + block * jnp.array([1 / plastic, 1 / plastic**2])) % 1.0
    return (parity % 2).reshape(cells, cells).astype(jnp.float32), place


SAMPLINGS: dict[str, Callable[..., tuple[jax.Array, jax.Array]]] = {
    "independent": independent,
    "antithetic": antithetic,
    "stratified": stratified,
}
"""(random key, mask's number, cells, probability) -> (grid [cells, cells] of 0 and 1, place [2] in [0, 1))."""


def masked_sum(scores, probabilities, images, class_ids, masks, weights) -> jax.Array:
    """sum_i w_i p_c(x M_i) M_i: [B, k, H, W] of images [B, H, W, 3], masks [n, H, W] and weights [n].

    All classes of all images come from one matrix product, [B k, n] by [n, H W].
    """
    masked = images[:, None] * masks[None, ..., None]  # [B, n, H, W, 3]
    answers = probabilities(scores(masked.reshape(-1, *images.shape[1:])))  # [B n, C]
    answers = answers.reshape(len(images), len(masks), -1).astype(jnp.float32)  # [B, n, C]
    asked = jnp.take_along_axis(answers, class_ids[:, None, :], axis=2) * weights[None, :, None]  # [B, n, k]
    # A mask without weight is padding: what a network says of it must not even be multiplied, it may be NaN.
    asked = jnp.where(weights[None, :, None] > 0, asked, 0.0)
    return jnp.einsum("bnk,nhw->bkhw", asked, masks)


@functools.partial(jax.jit, static_argnames=("num_masks", "cells", "probability", "sampling", "chunk_size"))
def _map_of_drawn_masks(
    scores, probabilities, images, class_ids, rng, *, num_masks, cells, probability, sampling, chunk_size
):
    def add_chunk(total, first):
        index = first + jnp.arange(chunk_size)
        masks = draw_masks(rng, index, images.shape[1], cells, probability, sampling)
        seen = jnp.full(chunk_size, probability)
        if sampling == "antithetic":
            seen = jnp.where(index % 2 == 1, 1.0 - probability, probability)
        weights = jnp.where(index < num_masks, 1.0 / (num_masks * seen), 0.0)
        return total + masked_sum(scores, probabilities, images, class_ids, masks, weights), None

    zero = jnp.zeros((*class_ids.shape, *images.shape[1:3]), jnp.float32)
    return jax.lax.scan(add_chunk, zero, jnp.arange(0, num_masks, chunk_size))[0]


@functools.partial(jax.jit, static_argnames="chunk_size")
def _map_of_given_masks(scores, probabilities, images, class_ids, masks, probability, *, chunk_size):
    count = len(masks)
    padding = -count % chunk_size
    chunks = jnp.pad(masks, ((0, padding), (0, 0), (0, 0))).reshape(-1, chunk_size, *masks.shape[1:])
    weights = jnp.where(jnp.arange(count + padding) < count, 1.0 / (count * probability), 0.0)

    def add_chunk(total, chunk):
        return total + masked_sum(scores, probabilities, images, class_ids, *chunk), None

    zero = jnp.zeros((*class_ids.shape, *images.shape[1:3]), jnp.float32)
    return jax.lax.scan(add_chunk, zero, (chunks, weights.reshape(-1, chunk_size)))[0]


def _check(rng, num_masks, cells, probability, sampling, chunk_size) -> None:
    if rng is None:
        raise UserError("Method 'rise' draws its masks: give rng=jax.random.key(0), or another random key.")
    if sampling not in SAMPLINGS:
        raise UserError(f"Method 'rise' knows the samplings {', '.join(SAMPLINGS)}; got {sampling!r}.")
    if cells < 2:
        raise UserError(f"Method 'rise' needs at least 2 cells per side; got {cells}.")
    if sampling == "stratified" and probability != 0.5:
        raise UserError(f"Stratified masks see a cell with probability 0.5; got {probability}: use 'independent'.")
    _check_numbers(num_masks, probability, chunk_size)


def _check_numbers(num_masks, probability, chunk_size) -> None:
    if num_masks < 1 or chunk_size < 1 or not 0 < probability < 1:
        raise UserError(
            "RISE needs at least one mask, chunk_size of at least 1 and a probability between 0 and 1; got"
            f" {num_masks}, {chunk_size} and {probability}."
        )
