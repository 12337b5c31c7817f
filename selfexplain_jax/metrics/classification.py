"""Metrics of the predicted classes: accuracy, and for multi-label data exact match, F1 and mean average precision."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from sklearn import metrics as sklearn_metrics

from selfexplain_jax.metrics import sum_and_count
from selfexplain_jax.types import SumCount, UserError


def decisions(scores: jax.Array, probabilities: jax.Array, multilabel: bool) -> jax.Array:
    """Returns the classes a prediction names, float32 [B, C] of 0 and 1.

    Single-label: the class of the highest score (probabilities may be saturated to ties). Multi-label: every class with
    a probability above one half.

    Args:
      scores: [B, C].
      probabilities: [B, C].
      multilabel: whether several classes can be present.
    """
    if multilabel:
        return (probabilities > 0.5).astype(jnp.float32)
    return jax.nn.one_hot(scores.argmax(axis=-1), scores.shape[-1])


def correct(decided: jax.Array, label: jax.Array) -> jax.Array:
    """Returns 1 where the decided classes are exactly the present ones, else 0, float32 [B].

    This is the accuracy of single-label data and the exact match of multi-label data.

    Args:
      decided: [B, C] of 0 and 1, from `decisions`.
      label: [B, C], multi-hot.
    """
    return ((decided > 0.5) == (label > 0.5)).all(axis=-1).astype(jnp.float32)


@jax.jit
def label_confusion(decided: jax.Array, label: jax.Array, valid: jax.Array) -> jax.Array:
    """Returns true positives, false positives and false negatives per class over valid examples, float32 [3, C]."""
    decided, label = decided * valid[:, None], label * valid[:, None]
    hits = (decided * label).sum(axis=0)
    return jnp.stack([hits, decided.sum(axis=0) - hits, label.sum(axis=0) - hits])


def label_f1(confusion: np.ndarray) -> tuple[float, float]:
    """Returns (macro, micro) F1 of the decided classes; a class neither present nor ever decided scores 0.

    Args:
      confusion: [3, C] from `label_confusion`, summed over the data set.
    """
    hits, false_positives, false_negatives = np.asarray(confusion, np.float64)
    per_class = 2 * hits / np.maximum(2 * hits + false_positives + false_negatives, 1)
    micro = 2 * hits.sum() / max(2 * hits.sum() + false_positives.sum() + false_negatives.sum(), 1)
    return float(per_class.mean()), float(micro)


@jax.jit
def accuracy_sums(decided: jax.Array, label: jax.Array, valid: jax.Array) -> SumCount:
    """Returns (sum, count) of `correct`: accuracy, or exact match for multi-label data."""
    return sum_and_count(correct(decided, label), valid > 0, valid)


def mean_average_precision(probabilities: np.ndarray, label: np.ndarray) -> float:
    """Returns the average precision per class (step-wise, not interpolated), averaged over classes that are present.

    Args:
      probabilities: [N, C] over the data set.
      label: [N, C], multi-hot.

    Raises:
      UserError: no example has any class.
    """
    present = np.asarray(label).sum(axis=0) > 0
    if not present.any():
        raise UserError("Mean average precision needs at least one example with a class; every label is empty.")
    return float(
        np.mean(
            [
                sklearn_metrics.average_precision_score(label[:, index] > 0.5, probabilities[:, index])
                for index in np.flatnonzero(present)
            ]
        )
    )
