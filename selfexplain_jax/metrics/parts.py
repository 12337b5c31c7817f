"""What a classifier says of an image's parts: the object alone (x|m) and the background alone (x|1-m).

`x|m = m x + (1 - m) b` with an infill b; see `models/masking.py`.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from selfexplain_jax.attribution.inputs import traceable
from selfexplain_jax.metrics import faithfulness, segmentation, sum_and_count
from selfexplain_jax.models import masking
from selfexplain_jax.types import Predictor, SumCount

SMALLEST_AREA = 0.05
"""Areas below this count as this in the saliency score, as in Dabkowski & Gal."""
SMALLEST_PROBABILITY = 1e-12
"""Floor of the probability in the saliency score, so that an underflow to 0 stays a finite, very bad score."""


@functools.partial(jax.jit, static_argnames="count")
def candidate_classes(label: jax.Array, scores: jax.Array, count: int) -> jax.Array:
    """Returns the classes whose masks are looked at, int32 [B, count]: the present ones first, then by score.

    With `count` = C that is all of them. Fewer where C full-size maps would not fit: the rest have the lowest scores.

    Args:
      label: [B, C], multi-hot, with no more than `count` classes present.
      scores: [B, C], class scores.
      count: 1 ... C.
    """
    rank = jnp.argsort(jnp.argsort(scores, axis=1), axis=1)  # 0 for the lowest score, [B, C]
    present_first = rank + (label > 0) * scores.shape[1]
    return jax.lax.top_k(present_first, count)[1].astype(jnp.int32)


@jax.jit
def union_of_classes(masks: jax.Array, class_ids: jax.Array, wanted: jax.Array) -> jax.Array:
    """Returns the pixelwise maximum of the wanted classes' masks, [B, H, W]; 0 where no class is wanted.

    With the present classes this is the target mask: sigmoid(max s_c) = max sigmoid(s_c), up to the resizing.

    Args:
      masks: [B, k, H, W] in [0, 1].
      class_ids: int32 [B, k], the masks' classes.
      wanted: [B, C] of 0 and 1.
    """
    chosen = jnp.take_along_axis(wanted, class_ids, axis=1) > 0  # [B, k]
    return jnp.where(chosen[:, :, None, None], masks, 0).max(axis=1)


@functools.partial(jax.jit, static_argnames="infill")
def shown(images: jax.Array, mask: jax.Array, objects: jax.Array, infill: str, seed: int, step: int) -> jax.Array:
    """Returns images seen through masks, x|m, [B, H, W, 3].

    Args:
      images: [B, H, W, 3], normalised.
      mask: [B, H, W], 1 where the image stays.
      objects: [B, H, W], where the images' objects are; the infill "other_image" leaves them out of its backgrounds.
      infill: a name in `masking.INFILLS`.
      seed: the config's seed.
      step: number of the batch; the same seed and step give the same filling.
    """
    rng = jax.random.fold_in(jax.random.key(seed), step)
    return masking.isolate(images, mask, masking.infill(infill, images, rng, objects))


def present_probability(probabilities: jax.Array, label: jax.Array) -> jax.Array:
    """Returns the mean probability of the present classes, [B]; probabilities and label are [B, C]."""
    return (probabilities * label).sum(axis=1) / label.sum(axis=1)


def saliency_score(mask: jax.Array, probabilities: jax.Array, label: jax.Array) -> jax.Array:
    """Returns Sal = log max(mean m, .05) - log sum_{c present} p_c(x|m), [B]; lower is better.

    Dabkowski & Gal 2017, with each present class counted once (Stalder et al. 2022).

    Args:
      mask: [B, H, W].
      probabilities: [B, C] of the images seen through the mask.
      label: [B, C], multi-hot.
    """
    area = jnp.maximum(mask.mean(axis=(1, 2)), SMALLEST_AREA)
    evidence = jnp.maximum((probabilities * label).sum(axis=1), SMALLEST_PROBABILITY)
    return jnp.log(area) - jnp.log(evidence)


def background_entropy(probabilities: jax.Array) -> jax.Array:
    """Returns H(p) / log C of the background's class probabilities [B, C], in 0..1: 1 when it favours no class.

    Probabilities of a sigmoid link do not sum to one; they are divided by their sum first (no change for a softmax).
    """
    total = probabilities.sum(axis=1, keepdims=True)
    normalised = probabilities / jnp.maximum(total, SMALLEST_PROBABILITY)
    entropy = -jax.scipy.special.xlogy(normalised, normalised).sum(axis=1)
    return entropy / jnp.log(probabilities.shape[1])


@jax.jit
def part_sums(
    mask: jax.Array, on_object: jax.Array, on_background: jax.Array, label: jax.Array, valid: jax.Array
) -> dict[str, SumCount]:
    """Returns saliency score, background entropy and the present classes' probabilities on object and background.

    Args:
      mask: [B, H, W], the target mask.
      on_object: [B, C], probabilities of x|m.
      on_background: [B, C], probabilities of x|1-m.
      label: [B, C], multi-hot.
      valid: [B], 0 for padding.
    """
    values = {
        "saliency_score": saliency_score(mask, on_object, label),
        "background_entropy": background_entropy(on_background),
        "object_probability": present_probability(on_object, label),
        "background_probability": present_probability(on_background, label),
    }
    return {name: sum_and_count(value, valid > 0, valid) for name, value in values.items()}


def class_specific_sums(
    predictor: Predictor,
    images: jax.Array,
    class_ids: jax.Array,
    masks: jax.Array,
    label: jax.Array,
    valid: jax.Array,
    *,
    chunk_size: int = faithfulness.CHUNK_SIZE,
) -> SumCount:
    """Returns sums and counts of the class-specific table, float32 [C, C + 1] each.

    Row i, column j: the mean over thresholds .1 to .9 of p_i(x [S_j > threshold]) on images x that show class i, the
    rest at the mean colour; in column C, p_i(x). A mask that is specific to its class keeps p_i on the diagonal and
    loses it beside it (Stalder et al. 2022). To fill the table ask for absent classes' maps too.

    Args:
      predictor: its scores and probabilities are asked.
      images: [B, H, W, 3], normalised.
      class_ids: int32 [B, k].
      masks: [B, k, H, W] in [0, 1].
      label: [B, C], multi-hot.
      valid: [B], 0 for padding.
      chunk_size: images shown at once.
    """
    arrays = (jnp.asarray(array) for array in (images, class_ids, masks, label, valid))
    return _class_specific_sums(
        traceable(predictor.scores), traceable(predictor.probabilities), *arrays, chunk_size=chunk_size
    )


def class_specific_table(sums: np.ndarray, counts: np.ndarray) -> dict[str, object]:
    """Returns the class-specific numbers from sums over the data set; None where no image gives one.

    "class_specific_own" (mean of the diagonal; high is good), "class_specific_other" (mean beside it; low is good),
    "class_specific_unmasked" (what the probabilities are on the images), each a mean over table cells, as published;
    and "class_specific_table" [C][C], rows by the images' class, columns by the mask's, None where nothing was counted.

    Args:
      sums: [C, C + 1] from `class_specific_sums`.
      counts: [C, C + 1].
    """
    sums, counts = np.asarray(sums, np.float64), np.asarray(counts, np.float64)
    means = np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
    table, unmasked = means[:, :-1], means[:, -1]
    own = np.eye(len(table), dtype=bool)

    def mean(values):
        values = values[~np.isnan(values)]
        return float(values.mean()) if values.size else None

    return {
        "class_specific_own": mean(table[own]),
        "class_specific_other": mean(table[~own]),
        "class_specific_unmasked": mean(unmasked),
        "class_specific_table": [[None if np.isnan(cell) else float(cell) for cell in row] for row in table],
    }


@functools.partial(jax.jit, static_argnames="chunk_size")
def _class_specific_sums(scores, probabilities, images, class_ids, masks, label, valid, *, chunk_size):
    batch, classes, height, width = masks.shape
    num_classes = label.shape[1]
    flat = masks.reshape(-1, height, width)  # [B * k, H, W]
    thresholds = jnp.asarray(segmentation.CURVE_THRESHOLDS, jnp.float32)

    def through_mask(pair, step):
        seen = (flat[pair] > thresholds[step][:, None, None])[..., None]
        return probabilities(scores(jnp.where(seen, images[pair // classes], 0)))

    masked = faithfulness.for_maps_and_steps(through_mask, batch * classes, len(thresholds), chunk_size).mean(axis=1)
    whole = faithfulness.for_maps_and_steps(
        lambda row, _: probabilities(scores(images[row])), batch, 1, chunk_size
    )  # [B, 1, C]
    found = jnp.concatenate([masked.reshape(batch, classes, num_classes), whole], axis=1)  # [B, k + 1, C]
    columns = jax.nn.one_hot(class_ids, num_classes + 1)  # [B, k, C + 1]
    last = jnp.broadcast_to(jax.nn.one_hot(num_classes, num_classes + 1), (batch, 1, num_classes + 1))
    columns = jnp.concatenate([columns, last], axis=1)
    shown = label * valid[:, None]
    # Padding may hold anything, and 0 times NaN is NaN.
    found = jnp.where(shown[:, None, :] > 0, found, 0)
    sums = jnp.einsum("bmi,bmj->ij", found, columns, precision="highest")
    return sums, jnp.einsum("bi,bmj->ij", shown, columns)
