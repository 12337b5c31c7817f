"""Rare classes: drawing their examples more often, and weighting their positives, from a source's labels."""

from __future__ import annotations

import numpy as np

from selfexplain_jax.types import Source, UserError


def labels_of(source: Source) -> np.ndarray:
    """Returns every label of a source, float32 [N, C]; at once where it offers `labels()`, else by reading it all."""
    if callable(getattr(source, "labels", None)):
        return np.asarray(source.labels(), np.float32)
    return np.stack([source[index]["label"] for index in range(len(source))]).astype(np.float32)


def sampling_weights(labels: np.ndarray, strength: float) -> np.ndarray:
    """How often each example is to be drawn so that classes become more alike in number.

    w_i = mean over the classes c of example i of n_c ** -strength, divided by the sum over i, where n_c examples show
    class c. Examples that show no class count as a class of their own. With one class per example, strength = 1 draws
    every class equally often; with several it comes near to that.

    Args:
      labels: multi-hot [N, C].
      strength: 0 (each example equally often) to 1.

    Returns:
      float64 [N], sum 1.

    Raises:
      UserError: strength is outside 0 to 1.
    """
    if not 0 <= strength <= 1:
        raise UserError(f"config.data.balance={strength} must be from 0 (off) to 1 (every class equally often).")
    present = np.asarray(labels) > 0
    present = np.concatenate([present, ~present.any(axis=1, keepdims=True)], axis=1)  # [N, C + 1]
    per_class = np.maximum(present.sum(axis=0), 1) ** -float(strength)  # [C + 1]
    weights = (present * per_class[None]).sum(axis=1) / present.sum(axis=1)
    return weights / weights.sum()


def positive_weights(labels: np.ndarray, largest: float = 20.0) -> np.ndarray:
    """Weights of the positives of a binary cross-entropy per class that make up for how rare they are.

    w_c = (N - n_c) / n_c, limited to 1 / largest ... largest, so that positives and negatives of a class weigh alike.
    A class without any positive gets 1: there is nothing to weight.

    Args:
      labels: multi-hot [N, C].
      largest: limit, 1 or more.

    Returns:
      float32 [C].

    Raises:
      UserError: there are no labels, or `largest` is below 1.
    """
    labels = np.asarray(labels)
    if labels.ndim != 2 or not len(labels):
        raise UserError(f"Class weights need labels [N, C] of one example or more, not {labels.shape}.")
    if largest < 1:
        raise UserError(f"largest={largest} must be 1 or more.")
    positives = (labels > 0).sum(axis=0)  # [C]
    weights = np.clip((len(labels) - positives) / np.maximum(positives, 1), 1 / largest, largest)
    return np.where(positives == 0, 1.0, weights).astype(np.float32)
