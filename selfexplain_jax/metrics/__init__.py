"""Metrics as pure functions on batches of arrays.

`METRICS` holds those of a map against ground truth: `fn(mask, truth, weight) -> (value [B], defined [B])` on float32
[B, H, W]; adding one is one function and one line here. `sum_and_count` turns the values of a batch into a pair that
can be added over padded batches and hosts and divided once at the end. `map_metrics.MAP_METRICS` holds what a
comparison of attribution methods measures of their maps, also with the classifier's help; it builds on these.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from selfexplain_jax.metrics import localisation, segmentation
from selfexplain_jax.types import SumCount

MapMetric = Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]

METRICS: dict[str, MapMetric] = {
    "continuous_iou": segmentation.continuous_iou,
    "iou_25": functools.partial(segmentation.iou, threshold=0.25),
    "iou": segmentation.iou,
    "iou_75": functools.partial(segmentation.iou, threshold=0.75),
    "f1_25": functools.partial(segmentation.f1, threshold=0.25),
    "f1": segmentation.f1,
    "f1_75": functools.partial(segmentation.f1, threshold=0.75),
    "soft_precision": segmentation.soft_precision,
    "soft_recall": segmentation.soft_recall,
    "soft_f1": segmentation.soft_f1,
    "soft_accuracy": segmentation.soft_accuracy,
    "mean_absolute_error": segmentation.mean_absolute_error,
    "object_coverage": segmentation.object_coverage,
    "background_coverage": segmentation.background_coverage,
    "mask_area": segmentation.mask_area,
    "object_area": segmentation.object_area,
    "pixel_auc": segmentation.pixel_auc,
    "pointing_game": localisation.pointing_game,
    "pointing_game_strict": localisation.pointing_game_strict,
    "energy_pointing_game": localisation.energy_pointing_game,
}

PER_CLASS_METRICS = ("pointing_game", "pointing_game_strict", "energy_pointing_game")
"""Those of METRICS that are taken for each present class's own map and averaged per class, then over classes."""


def sum_and_count(value: jax.Array, defined: jax.Array, valid: jax.Array) -> SumCount:
    """Returns (sum, count) over the examples that are valid and defined; a NaN of such an example stays.

    Args:
      value: [B] or [B, T] (a curve).
      defined: bool [B].
      valid: [B], 0 for padding.
    """
    counted = (valid > 0) & defined
    kept = jnp.where(counted if value.ndim == 1 else counted[:, None], value, 0)
    return kept.sum(axis=0), counted.sum().astype(jnp.float32)


def class_sum_and_count(
    value: jax.Array, defined: jax.Array, class_ids: jax.Array, valid: jax.Array, num_classes: int
) -> SumCount:
    """Returns (sum [C], count [C]) of one value per class map; value, defined, class_ids and valid are [P]."""
    counted = (valid > 0) & defined
    total = jax.ops.segment_sum(jnp.where(counted, value, 0), class_ids, num_classes)
    return total, jax.ops.segment_sum(counted.astype(jnp.float32), class_ids, num_classes)


@jax.jit
def mask_sums(mask: jax.Array, truth: jax.Array, weight: jax.Array, valid: jax.Array) -> dict[str, SumCount]:
    """Returns every metric of METRICS that is taken on target masks, and the curves "iou_curve" and "f1_curve".

    Args:
      mask: [B, H, W] in [0, 1], target masks or a control.
      truth: [B, H, W] of 0 and 1, from `segmentation.target_truth`.
      weight: [B, H, W], 0 on void.
      valid: [B], 0 for padding.
    """
    names = [name for name in METRICS if name not in PER_CLASS_METRICS]
    sums = {name: sum_and_count(*METRICS[name](mask, truth, weight), valid) for name in names}
    defined = (truth * weight).sum(axis=(1, 2)) > 0
    iou_curve, f1_curve = segmentation.threshold_curves(mask, truth, weight)
    return sums | {
        "iou_curve": sum_and_count(iou_curve, defined, valid),
        "f1_curve": sum_and_count(f1_curve, defined, valid),
    }


@functools.partial(jax.jit, static_argnames="num_classes")
def class_sums(
    maps: jax.Array, class_ids: jax.Array, label: jax.Array, mask: jax.Array, valid: jax.Array, num_classes: int
) -> dict[str, SumCount]:
    """Returns the metrics of present classes' own maps, as pairs per class: PER_CLASS_METRICS, "mean_iou_per_class".

    Args:
      maps: [B, k, H, W] in [0, 1].
      class_ids: int32 [B, k], the maps' classes; a class that is not in the label is not counted.
      label: [B, C], multi-hot.
      mask: uint8 [B, H, W], the data set's.
      valid: [B], 0 for padding.
      num_classes: C.
    """
    size = maps.shape[2:]
    truth = segmentation.class_truth(mask, class_ids).reshape(-1, *size)  # [B * k, H, W]
    weight = jnp.repeat(segmentation.pixel_weights(mask), maps.shape[1], axis=0)  # [B * k, H, W]
    counted = ((jnp.take_along_axis(label, class_ids, axis=1) > 0) & (valid[:, None] > 0)).ravel()  # [B * k]
    metrics = {name: METRICS[name] for name in PER_CLASS_METRICS} | {"mean_iou_per_class": segmentation.iou}
    return {
        name: class_sum_and_count(
            *metric(maps.reshape(-1, *size), truth, weight), class_ids.ravel(), counted, num_classes
        )
        for name, metric in metrics.items()
    }


def add(total: Mapping[str, SumCount], new: Mapping[str, SumCount]) -> dict[str, SumCount]:
    """Returns the pairs of both, those of one name added, as float64 numpy arrays (float32 forgets past 2**24)."""
    result = dict(total)
    for name, (value, count) in new.items():
        value, count = np.asarray(value, np.float64), np.asarray(count, np.float64)
        old_value, old_count = result.get(name, (0.0, 0.0))
        result[name] = (old_value + value, old_count + count)
    return result


def mean(pair: SumCount) -> float | list[float] | None:
    """Returns sum / count; for pairs per class the mean over classes that were counted; None where nothing was.

    A curve (a sum with more entries than its count) gives a list.

    Examples:
      >>> mean((3.0, 4.0)), mean((np.array([2.0, 0.0]), np.array([4.0, 0.0]))), mean((0.0, 0.0))
      (0.75, 0.5, None)
    """
    value, count = np.asarray(pair[0], np.float64), np.asarray(pair[1], np.float64)
    if not (count > 0).any():
        return None
    if count.ndim:
        return float(np.mean(value[count > 0] / count[count > 0]))
    return (value / count).tolist()
