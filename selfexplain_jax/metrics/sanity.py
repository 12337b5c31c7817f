"""Sanity checks: does a map change when what the model has learnt is taken away?

Adebayo et al., "Sanity Checks for Saliency Maps", NeurIPS 2018. Layers are redrawn from the initialiser, from the top
down one after another (cascading) or one at a time (independent), or the model is one trained on random labels. The
maps before and after are compared by the paper's three similarities and by a fourth, the rank correlation of absolute
values; maps that stay the same do not explain the model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from selfexplain_jax.metrics import sum_and_count
from selfexplain_jax.metrics.explained import min_max
from selfexplain_jax.types import Predictor, SumCount, UserError

SSIM_WINDOW, SSIM_SIGMA = 11, 1.5
"""Of the Gaussian window of the structural similarity, in pixels (Wang et al. 2004)."""
SSIM_CONSTANTS = (0.01**2, 0.03**2)
"""Its two constants for values in [0, 1]."""

HOG_BINS, HOG_BLOCK, HOG_LIMIT = 9, 3, 0.2
"""Of the histograms of oriented gradients: orientations, cells per side of a block, and what a block's entries are cut
to."""

Similarity = Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]


def structural_similarity(first: jax.Array, second: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the mean SSIM of two maps, each min-max scaled to [0, 1]: (value [P], defined [P]); 1 for equal maps.

    Wang, Bovik, Sheikh & Simoncelli, "Image quality assessment", IEEE TIP 2004, equation 13, with the window of 11
    pixels and sigma 1.5, over the places where the window lies inside the map.

    Args:
      first: [P, H, W] with H, W of at least 11.
      second: [P, H, W].

    Raises:
      UserError: maps smaller than the window.
    """
    if min(first.shape[1:]) < SSIM_WINDOW:
        raise UserError(f"Structural similarity needs maps of at least {SSIM_WINDOW} pixels a side; got {first.shape}.")
    first, second = min_max(first), min_max(second)
    rows, columns = (_window_matrix(size) for size in first.shape[1:])

    def local(values):
        return jnp.einsum("hi,pij,wj->phw", rows, values, columns, precision="highest")

    mean_1, mean_2 = local(first), local(second)
    variance_1, variance_2 = local(first**2) - mean_1**2, local(second**2) - mean_2**2
    covariance = local(first * second) - mean_1 * mean_2
    low, high = SSIM_CONSTANTS
    luminance = (2 * mean_1 * mean_2 + low) / (mean_1**2 + mean_2**2 + low)
    structure = (2 * covariance + high) / (variance_1 + variance_2 + high)
    value = (luminance * structure).mean(axis=(1, 2))
    return value, jnp.ones(value.shape, bool)


def rank_correlation(first: jax.Array, second: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns Spearman's rank correlation of two maps' pixels, (value [P], defined [P]); undefined for a flat map.

    Equal pixels share the mean of their ranks.

    Args:
      first: [P, H, W].
      second: [P, H, W].
    """
    return _correlation(*(_mean_ranks(maps.reshape(maps.shape[0], -1)) for maps in (first, second)))


def absolute_rank_correlation(first: jax.Array, second: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the rank correlation of the maps' absolute values; see `rank_correlation`."""
    return rank_correlation(jnp.abs(first), jnp.abs(second))


def hog_correlation(first: jax.Array, second: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns Pearson's correlation of two maps' histograms of oriented gradients, (value [P], defined [P]).

    Each map is min-max scaled to [0, 1] before; a flat map has no correlation. See `oriented_gradients`.

    Args:
      first: [P, H, W] with H, W of at least 12.
      second: [P, H, W].

    Raises:
      UserError: smaller maps.
    """
    return _correlation(*(oriented_gradients(min_max(maps)) for maps in (first, second)))


def oriented_gradients(maps: jax.Array) -> jax.Array:
    """Returns the histograms of oriented gradients of maps, float32 [P, F].

    Dalal & Triggs, "Histograms of oriented gradients for human detection", CVPR 2005, with scikit-image's choices:
    differences of the two neighbours, 0 at the border; the gradient's length votes for one of 9 directions without
    sign; blocks of 3 x 3 cells at every cell are divided by their norm, cut at .2 and divided again. Cells have 16
    pixels a side at 224 px (the paper's at its images), the same share of other sizes, at least 4 and an even number;
    what is left over at the lower and right border is not looked at.

    Args:
      maps: [P, H, W] with H, W of at least 12.

    Raises:
      UserError: smaller maps, which hold no block.
    """
    count, *sides = maps.shape
    cell = max(2 * round(8 * min(sides) / 224), 4)
    rows, columns = (side // cell for side in sides)
    if min(rows, columns) < HOG_BLOCK:
        raise UserError(f"Oriented gradients need maps of at least {HOG_BLOCK * cell} pixels a side; got {maps.shape}.")
    down = jnp.pad(maps[:, 2:] - maps[:, :-2], ((0, 0), (1, 1), (0, 0)))
    across = jnp.pad(maps[:, :, 2:] - maps[:, :, :-2], ((0, 0), (0, 0), (1, 1)))
    turn = jnp.mod(jnp.arctan2(down, across), jnp.pi) / jnp.pi  # a direction and its opposite are one
    bins = jnp.minimum((turn * HOG_BINS).astype(jnp.int32), HOG_BINS - 1)
    votes = jnp.hypot(down, across)[..., None] * jax.nn.one_hot(bins, HOG_BINS)
    votes = votes[:, : rows * cell, : columns * cell].reshape(count, rows, cell, columns, cell, HOG_BINS)
    cells = votes.mean(axis=(2, 4))  # [P, rows, columns, 9]
    tall, wide = rows - HOG_BLOCK + 1, columns - HOG_BLOCK + 1
    shifted = [cells[:, y : y + tall, x : x + wide] for y in range(HOG_BLOCK) for x in range(HOG_BLOCK)]
    blocks = jnp.concatenate(shifted, axis=-1)  # [P, rows - 2, columns - 2, 81]
    blocks = _unit_length(jnp.minimum(_unit_length(blocks), HOG_LIMIT))
    return blocks.reshape(count, -1)


SIMILARITIES: dict[str, Similarity] = {
    "ssim": structural_similarity,
    "hog_correlation": hog_correlation,
    "rank_correlation": rank_correlation,
    "absolute_rank_correlation": absolute_rank_correlation,
}


@jax.jit
def similarity_sums(first: jax.Array, second: jax.Array, counted: jax.Array) -> dict[str, SumCount]:
    """Returns every similarity of `SIMILARITIES` as (sum, count) over counted maps for which it is defined.

    Args:
      first: [B, k, H, W].
      second: [B, k, H, W].
      counted: bool [B, k].
    """
    one, two = (maps.reshape(-1, *maps.shape[2:]) for maps in (first, second))  # [B * k, H, W]
    flat = counted.ravel()
    return {name: sum_and_count(*similarity(one, two), flat) for name, similarity in SIMILARITIES.items()}


def randomisation_sums(
    build: Callable[[Any], Predictor],
    variables: Mapping[str, Any],
    redrawn: Mapping[str, Any],
    layers: Sequence[str],
    method: Callable[..., jax.Array],
    images: jax.Array,
    class_ids: jax.Array,
    *,
    counted: np.ndarray | None = None,
    rng: jax.Array | None = None,
    independent: bool = False,
) -> dict[str, SumCount]:
    """Returns the similarity of maps before and after each redrawing: {"SIMILARITY/LAYER": (sum, count)}.

    Args:
      build: variables -> Predictor. Where its functions are `jax.tree_util.Partial(function, variables)`, as those of
        `training.state.bind` are, nothing compiles anew from one redrawing to the next.
      variables: the model's, a nested dict of arrays.
      redrawn: the same nested dict, freshly initialised (with another key than the model was).
      layers: paths from the root, "params/head/kernel" or "params/head" for all below it, from the top of the network
        down; `layer_paths` lists them. A layer with parameters and statistics has two paths: "params/norm,
        batch_stats/norm" names both.
      method: an attribution method, called as method(predictor, images, class_ids, rng=rng).
      images: [B, H, W, 3], normalised.
      class_ids: int32 [B, k].
      counted: bool [B, k]; None: all.
      rng: given to the method, the same for all models.
      independent: redraw each layer alone; else all layers from the first one down to it.

    Raises:
      UserError: a layer that does not exist (those that do are named), a redrawn layer of another shape, or maps that
        are not finite.
    """
    counted = jnp.ones(np.shape(class_ids), bool) if counted is None else jnp.asarray(counted)

    def explain(variables):
        return method(build(variables), images, class_ids, rng=rng)

    before = _finite(explain(variables), "the model as it is")
    sums, current = {}, variables
    for layer in layers:
        current = redraw(variables if independent else current, redrawn, layer)
        after = _finite(explain(current), f"the model with {layer!r} redrawn")
        for name, pair in similarity_sums(before, after, counted).items():
            sums[f"{name}/{layer}"] = pair
    return sums


def random_label_sums(
    predictor: Predictor,
    random_predictor: Predictor,
    method: Callable[..., jax.Array],
    images: jax.Array,
    class_ids: jax.Array,
    *,
    counted: np.ndarray | None = None,
    rng: jax.Array | None = None,
) -> dict[str, SumCount]:
    """Returns the similarity of a model's maps to those of the same network trained on random labels.

    Args:
      predictor: trained on the true labels.
      random_predictor: trained on labels that were shuffled among the training images.
      method: an attribution method, called as method(predictor, images, class_ids, rng=rng).
      images: [B, H, W, 3], normalised.
      class_ids: int32 [B, k].
      counted: bool [B, k]; None: all.
      rng: given to the method, the same for both models.

    Raises:
      UserError: maps that are not finite.
    """
    counted = jnp.ones(np.shape(class_ids), bool) if counted is None else jnp.asarray(counted)
    first = _finite(method(predictor, images, class_ids, rng=rng), "the model")
    second = _finite(method(random_predictor, images, class_ids, rng=rng), "the model of random labels")
    return similarity_sums(first, second, counted)


def layer_paths(variables: Mapping[str, Any]) -> list[str]:
    """Returns the paths of all arrays of a nested dict, "params/head/kernel" and so on."""
    paths = jax.tree_util.tree_flatten_with_path(variables)[0]
    return ["/".join(str(key.key) for key in path) for path, _ in paths]


def redraw(variables: Mapping[str, Any], redrawn: Mapping[str, Any], layer: str) -> dict[str, Any]:
    """Returns the variables with one layer taken from `redrawn`; see `randomisation_sums`.

    Raises:
      UserError: the layer does not exist in both, or differs in shape.
    """
    result = variables
    for path in layer.split(","):
        keys = path.strip().split("/")
        try:
            result = _replaced(result, redrawn, keys)
        except KeyError as error:
            raise UserError(
                f"The model has no layer {path.strip()!r}; its arrays are {', '.join(layer_paths(variables)[:40])}."
            ) from error
    shapes = [jax.tree.map(jnp.shape, tree) for tree in (variables, result)]
    if shapes[0] != shapes[1]:
        raise UserError(f"The redrawn layer {layer!r} has other shapes than the model's: redraw from the same network.")
    return result


def _replaced(variables: Mapping[str, Any], redrawn: Mapping[str, Any], keys: list[str]) -> dict[str, Any]:
    first, *rest = keys
    if not all(isinstance(tree, Mapping) and first in tree for tree in (variables, redrawn)):
        raise KeyError(first)
    return {**variables, first: _replaced(variables[first], redrawn[first], rest) if rest else redrawn[first]}


def _finite(maps: jax.Array, whose: str) -> jax.Array:
    bad = np.flatnonzero(~np.isfinite(np.asarray(maps)).all(axis=(1, 2, 3)))
    if bad.size:
        raise UserError(f"The maps of {whose} hold NaN or infinity for images {bad[:5].tolist()} of the batch.")
    return maps


def _window_matrix(size: int) -> np.ndarray:
    """K [size - 10, size]: K x is the mean of x under a Gaussian window, at each place where it lies inside."""
    weights = np.exp(-0.5 * ((np.arange(SSIM_WINDOW) - SSIM_WINDOW // 2) / SSIM_SIGMA) ** 2)
    places = np.arange(size)[None, :] - np.arange(size - SSIM_WINDOW + 1)[:, None]
    inside = (places >= 0) & (places < SSIM_WINDOW)
    return np.where(inside, (weights / weights.sum())[np.clip(places, 0, SSIM_WINDOW - 1)], 0).astype(np.float32)


def _correlation(first: jax.Array, second: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Pearson's correlation of the rows of two arrays [P, N]: (value [P], defined [P])."""
    one, two = (values - values.mean(axis=1, keepdims=True) for values in (first, second))
    spread = jnp.sqrt((one**2).sum(axis=1)) * jnp.sqrt((two**2).sum(axis=1))
    defined = spread > 0
    return jnp.where(defined, (one * two).sum(axis=1) / jnp.where(defined, spread, 1), 0), defined


def _unit_length(blocks: jax.Array) -> jax.Array:
    """Vectors [..., N] divided by their length; the small constant is scikit-image's."""
    return blocks / jnp.sqrt((blocks**2).sum(axis=-1, keepdims=True) + 1e-5**2)


def _mean_ranks(values: jax.Array) -> jax.Array:
    """Ranks 0 to N - 1 of [P, N] as shares of N; equal values share the mean of theirs."""
    ordered = jnp.sort(values, axis=1)
    below = jax.vmap(lambda row, order: jnp.searchsorted(order, row, side="left"))(values, ordered)
    up_to = jax.vmap(lambda row, order: jnp.searchsorted(order, row, side="right"))(values, ordered)
    return (below + up_to - 1) / (2 * values.shape[1])
