"""Metrics of a mask against ground truth.

Conventions: `mask` is in [0, 1], `truth` is 0 or 1 and `weight` is 1, or 0 on void pixels, all [B, H, W]; void pixels
enter no sum. Each metric returns `(value, defined)`, float32 [B] and bool [B]: where the ground truth leaves it without
a meaning (no object pixel, or no background pixel) `defined` is False, the value is 0 and must not be counted.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from selfexplain_jax.types import VOID

CURVE_THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""Thresholds of the curves of IoU and F1."""

Measured = tuple[jax.Array, jax.Array]


def pixel_weights(mask: jax.Array) -> jax.Array:
    """Returns 1 on annotated pixels and 0 on void, float32 [B, H, W], from a data set's uint8 mask [B, H, W]."""
    return (mask != VOID).astype(jnp.float32)


@jax.jit
def target_truth(mask: jax.Array, label: jax.Array) -> jax.Array:
    """Returns the ground truth of the target mask: the union of the objects of present classes, float32 [B, H, W].

    Args:
      mask: uint8 [B, H, W], class index + 1, 0 background, 255 void (void gives 0: pair it with `pixel_weights`).
      label: [B, C], multi-hot.
    """
    batch, height, width = mask.shape
    class_ids = jnp.clip(mask.astype(jnp.int32) - 1, 0, label.shape[1] - 1).reshape(batch, -1)  # [B, H * W]
    present = jnp.take_along_axis(label, class_ids, axis=1).reshape(batch, height, width) > 0
    return (present & (mask > 0) & (mask != VOID)).astype(jnp.float32)


def class_truth(mask: jax.Array, class_ids: jax.Array) -> jax.Array:
    """Returns the ground truth of single classes, float32 [B, k, H, W], for class ids int32 [B, k]."""
    return (mask.astype(jnp.int32)[:, None] == class_ids[:, :, None, None] + 1).astype(jnp.float32)


def continuous_iou(mask: jax.Array, truth: jax.Array, weight: jax.Array) -> Measured:
    """Sum of the pixelwise minimum over sum of the pixelwise maximum.

    Examples:
      >>> mask, truth, weight = jnp.asarray([[[[0.8, 0.4]]], [[[1.0, 0.0]]], [[[1.0, 1.0]]]])
      >>> value, defined = continuous_iou(mask, truth, weight)  # (.8 + 0) / (1 + .4)
      >>> round(float(value[0]), 3), bool(defined[0])
      (0.571, True)
    """
    union = _pixel_sum(jnp.maximum(mask, truth) * weight)
    return _ratio(_pixel_sum(jnp.minimum(mask, truth) * weight), union), _has_object(truth, weight)


def iou(mask: jax.Array, truth: jax.Array, weight: jax.Array, threshold: float = 0.5) -> Measured:
    """Intersection over union of the pixels above the threshold (strictly: a mask of .5 is empty at .5)."""
    return continuous_iou((mask > threshold).astype(jnp.float32), truth, weight)


def f1(mask: jax.Array, truth: jax.Array, weight: jax.Array, threshold: float = 0.5) -> Measured:
    """F1 of the foreground pixels above the threshold (strictly); the background's F1 is not averaged in."""
    return soft_f1((mask > threshold).astype(jnp.float32), truth, weight)


def threshold_curves(mask: jax.Array, truth: jax.Array, weight: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns IoU and F1 at each of `CURVE_THRESHOLDS`, both [B, T]; defined where the truth has an object."""

    def at_threshold(threshold):
        return iou(mask, truth, weight, threshold)[0], f1(mask, truth, weight, threshold)[0]

    # A sequential map, so that no [B, T, H, W] array ever exists.
    ious, f1s = jax.lax.map(at_threshold, jnp.asarray(CURVE_THRESHOLDS, jnp.float32))  # [T, B] each
    return ious.T, f1s.T


def soft_precision(mask: jax.Array, truth: jax.Array, weight: jax.Array) -> Measured:
    """Sum m g / sum m; 0 for an empty mask."""
    return _ratio(_pixel_sum(mask * truth * weight), _pixel_sum(mask * weight)), _has_object(truth, weight)


def soft_recall(mask: jax.Array, truth: jax.Array, weight: jax.Array) -> Measured:
    """Sum m g / sum g."""
    return _ratio(_pixel_sum(mask * truth * weight), _pixel_sum(truth * weight)), _has_object(truth, weight)


def soft_f1(mask: jax.Array, truth: jax.Array, weight: jax.Array) -> Measured:
    """2 sum m g / (sum m + sum g)."""
    total = _pixel_sum(mask * weight) + _pixel_sum(truth * weight)
    return _ratio(2 * _pixel_sum(mask * truth * weight), total), _has_object(truth, weight)


def soft_accuracy(mask: jax.Array, truth: jax.Array, weight: jax.Array) -> Measured:
    """Mean of m g + (1 - m)(1 - g)."""
    agreement = mask * truth + (1 - mask) * (1 - truth)
    return _ratio(_pixel_sum(agreement * weight), _pixel_sum(weight)), _has_object(truth, weight)


def mean_absolute_error(mask: jax.Array, truth: jax.Array, weight: jax.Array) -> Measured:
    """Mean of |m - g|."""
    return _ratio(_pixel_sum(jnp.abs(mask - truth) * weight), _pixel_sum(weight)), _has_object(truth, weight)


def object_coverage(mask: jax.Array, truth: jax.Array, weight: jax.Array) -> Measured:
    """1 - mean relu(g - m) / mean g: the share of the object that the mask covers."""
    missed = _ratio(_pixel_sum(jax.nn.relu(truth - mask) * weight), _pixel_sum(truth * weight))
    defined = _has_object(truth, weight)
    return jnp.where(defined, 1 - missed, 0), defined


def background_coverage(mask: jax.Array, truth: jax.Array, weight: jax.Array) -> Measured:
    """Mean relu(m - g) / (1 - mean g): the share of the background that the mask covers."""
    spilled = _pixel_sum(jax.nn.relu(mask - truth) * weight)
    return _ratio(spilled, _pixel_sum((1 - truth) * weight)), _has_background(truth, weight)


def mask_area(mask: jax.Array, truth: jax.Array, weight: jax.Array) -> Measured:
    """Mean of m."""
    return _ratio(_pixel_sum(mask * weight), _pixel_sum(weight)), _has_object(truth, weight)


def object_area(mask: jax.Array, truth: jax.Array, weight: jax.Array) -> Measured:
    """Mean of g: what `mask_area` should be."""
    del mask
    return _ratio(_pixel_sum(truth * weight), _pixel_sum(weight)), _has_object(truth, weight)


def pixel_auc(mask: jax.Array, truth: jax.Array, weight: jax.Array) -> Measured:
    """Area under the ROC curve of the pixels: P(m of an object pixel > m of a background pixel), ties count half."""
    batch = mask.shape[0]
    values = mask.reshape(batch, -1)  # [B, N]
    positive, negative = (truth * weight).reshape(batch, -1), ((1 - truth) * weight).reshape(batch, -1)
    values, positive, negative = jax.lax.sort((values, positive, negative), dimension=1, num_keys=1)
    # Pixels of equal value form a run; below a run lie the negatives counted before it, inside it those up to its end.
    change = values[:, 1:] != values[:, :-1]
    edge = jnp.ones((batch, 1), bool)
    starts, ends = jnp.concatenate([edge, change], axis=1), jnp.concatenate([change, edge], axis=1)
    counted = jnp.cumsum(negative, axis=1)
    below = jax.lax.cummax(jnp.where(starts, counted - negative, 0), axis=1)
    up_to = jax.lax.cummin(jnp.where(ends, counted, jnp.inf), axis=1, reverse=True)
    share_below = _ratio(0.5 * (below + up_to), counted[:, -1:])  # divided before the sum: no large float32 products
    defined = _has_object(truth, weight) & _has_background(truth, weight)
    return _ratio((positive * share_below).sum(axis=1), positive.sum(axis=1)), defined


@jax.jit
def class_map(masks: jax.Array, class_ids: jax.Array, threshold: float = 0.5) -> jax.Array:
    """Returns the class of each pixel, int32 [B, H, W]: index + 1 of the largest mask above the threshold, else 0.

    Args:
      masks: [B, k, H, W] in [0, 1].
      class_ids: int32 [B, k], the masks' classes.
      threshold: where no mask is above it, there is background, 0.
    """
    batch, _, height, width = masks.shape
    winner = masks.argmax(axis=1).reshape(batch, -1)  # [B, H * W]
    winner_class = jnp.take_along_axis(class_ids, winner, axis=1).reshape(batch, height, width)
    return jnp.where(masks.max(axis=1) > threshold, winner_class + 1, 0)


@functools.partial(jax.jit, static_argnames="num_classes")
def pixel_confusion(predicted: jax.Array, mask: jax.Array, valid: jax.Array, num_classes: int) -> jax.Array:
    """Returns pixel counts, int32 [C + 1, C + 1]: rows are the true class (0 background), columns the predicted one.

    Args:
      predicted: int32 [B, H, W], 0 background, class index + 1.
      mask: uint8 [B, H, W], the same with 255 void; void pixels are not counted.
      valid: [B], 0 for padding.
      num_classes: C.
    """
    size = num_classes + 1
    counted = (mask != VOID) & (valid[:, None, None] > 0)
    # Whole numbers, since float32 stops at 2**24. What does not count has a cell of its own, behind the rest.
    cells = jnp.where(counted, mask.astype(jnp.int32) * size + predicted, size * size)
    return jnp.bincount(cells.ravel(), length=size * size + 1)[:-1].reshape(size, size)


def mean_iou(confusion: np.ndarray) -> float:
    """Returns the mean over classes of the data set's IoU, background included, of classes that occur at all.

    Args:
      confusion: [C + 1, C + 1] from `pixel_confusion`, summed over the data set.
    """
    confusion = np.asarray(confusion, np.float64)
    hits = np.diagonal(confusion)
    union = confusion.sum(axis=0) + confusion.sum(axis=1) - hits
    return float(np.mean(hits[union > 0] / union[union > 0]))


@jax.jit
def control_maps(truth: jax.Array) -> dict[str, jax.Array]:
    """Returns the maps that every table must show beside a method's, each like `truth`, [..., H, W] in [0, 1].

    "all_zero", "all_half", "all_one", "center_box" (half the image's side; its middle pixel stands 1e-6 above the rest,
    so that the pointing game asks about the middle and not about the box's corner) and "ground_truth".
    """
    height, width = truth.shape[-2:]
    box = np.zeros((height, width), np.float32)
    box[height // 4 : height - height // 4, width // 4 : width - width // 4] = 1 - 1e-6
    box[height // 2, width // 2] = 1
    return {
        "all_zero": jnp.zeros_like(truth),
        "all_half": jnp.full_like(truth, 0.5),
        "all_one": jnp.ones_like(truth),
        "center_box": jnp.broadcast_to(box, truth.shape),
        "ground_truth": truth,
    }


def _pixel_sum(values: jax.Array) -> jax.Array:
    return values.sum(axis=(1, 2))


def _has_object(truth: jax.Array, weight: jax.Array) -> jax.Array:
    return _pixel_sum(truth * weight) > 0


def _has_background(truth: jax.Array, weight: jax.Array) -> jax.Array:
    return _pixel_sum((1 - truth) * weight) > 0


def _ratio(numerator: jax.Array, denominator: jax.Array) -> jax.Array:
    """Returns the quotient, 0 where the denominator is 0; a NaN in either stays a NaN."""
    return jnp.where(denominator == 0, 0, numerator / jnp.where(denominator == 0, 1, denominator))
