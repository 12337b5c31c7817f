"""The swap test of a method's maps: does a mask, laid over another image, make that image the mask's class?

The first part of the encoding audit (`audit.py`) for maps of any method, beside the annotated masks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from selfexplain_jax.attribution.inputs import traceable
from selfexplain_jax.metrics import audit, classification, mean, parts, segmentation
from selfexplain_jax.metrics.explained import Explained
from selfexplain_jax.types import Predictor, SumCount


def swap_sums(predictor: Predictor, seen: Explained, *, rng: jax.Array | None = None) -> dict[str, SumCount]:
    """Returns "swap_owner_rate" and "swap_pixel_rate", see `audit.swap_sums`, and with annotated masks those of them.

    Image j = partner(i) is shown as m_i x_j, where m_i is the largest of image i's counted masks; partners are found in
    the batch (`audit.swap_partners`).

    Args:
      predictor: its scores and probabilities are asked.
      seen: a batch.
      rng: not used.
    """
    del rng
    wanted = np.zeros_like(seen.label)
    rows, places = np.nonzero(seen.counted)
    wanted[rows, seen.class_ids[rows, places]] = 1
    valid = seen.counted.any(axis=1).astype(np.float32)
    partner, exists = audit.swap_partners(wanted, valid)
    masks = {"": parts.union_of_classes(seen.masks, seen.class_ids, wanted)}
    if seen.mask is not None:
        masks["_ground_truth"] = segmentation.target_truth(seen.mask, wanted)
    functions = traceable(predictor.scores), traceable(predictor.probabilities)
    sums: dict[str, SumCount] = {}
    for suffix, mask in masks.items():
        scores, probabilities = _on_partners(*functions, seen.images, partner, mask)
        decided = classification.decisions(scores, probabilities, seen.multilabel)
        sums |= audit.swap_sums(decided, seen.label, partner, exists, valid, suffix)
    return sums


def finish_swap(sums: Mapping[str, SumCount]) -> dict[str, Any]:
    """Returns the rates and, with annotated masks, "swap_owner_gap": how far the owner's rate exceeds theirs."""
    numbers = {name: mean(pair) for name, pair in sums.items()}
    rates = [numbers.get(name) for name in ("swap_owner_rate", "swap_owner_rate_ground_truth")]
    return numbers if None in rates else numbers | {"swap_owner_gap": rates[0] - rates[1]}


@jax.jit
def _on_partners(scores, probabilities, images, partner, mask) -> tuple[jax.Array, jax.Array]:
    """Scores and probabilities [B, C] of image partner[i] under mask i."""
    found = scores(jnp.asarray(mask)[..., None] * jnp.asarray(images)[partner])
    return found, probabilities(found)
