"""The swap test: does a mask, laid over another image, make that image the mask's class?

The first part of the encoding audit (`audit.py` has the others), and a metric of the maps of any method.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from selfexplain_jax.attribution.inputs import traceable
from selfexplain_jax.metrics import classification, mean, parts, segmentation, sum_and_count
from selfexplain_jax.metrics.explained import Explained, counted_classes
from selfexplain_jax.types import Predictor, SumCount


@jax.jit
def swap_partners(label: jax.Array, valid: jax.Array, other: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
    """Returns for each mask owner i the image j that gets its mask, (int32 [B], bool [B]: there is one).

    j is the next valid example of the batch, cyclically, that lacks at least one of i's classes (single-label: one of
    another class). Padding at the batch's end changes nothing.

    Args:
      label: [B, C], multi-hot; of the owners, the classes that their masks are of.
      valid: [B], 0 for padding.
      other: [B, C], all that the images show, where that is more than `label`.
    """
    batch = label.shape[0]
    only_owner = jnp.einsum("ic,jc->ij", label, 1 - (label if other is None else other)) > 0
    suits = only_owner & (valid[:, None] > 0) & (valid[None, :] > 0)
    places_on = (jnp.arange(batch)[None, :] - jnp.arange(batch)[:, None]) % batch
    distance = jnp.where(suits, places_on, batch)
    return distance.argmin(axis=1).astype(jnp.int32), suits.any(axis=1)


def followed(decided: jax.Array, leader: jax.Array, other: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns how far a prediction follows `leader` and not `other`: (rate [B], bool [B]: the question has a meaning).

    The rate is the share, among the classes that the leader has and the other lacks, of those the prediction names;
    single-label: 1 where the prediction is the leader's class.

    Args:
      decided: [B, C] of 0 and 1, from `classification.decisions`.
      leader: [B, C], multi-hot.
      other: [B, C], multi-hot.
    """
    only_leader = leader * (1 - other)
    count = only_leader.sum(axis=1)
    return (decided * only_leader).sum(axis=1) / jnp.maximum(count, 1), count > 0


@functools.partial(jax.jit, static_argnames="suffix")
def swap_sums(
    decided: jax.Array,
    label: jax.Array,
    partner: jax.Array,
    exists: jax.Array,
    valid: jax.Array,
    suffix: str = "",
    other: jax.Array | None = None,
) -> dict[str, SumCount]:
    """Returns "swap_owner_rate" and "swap_pixel_rate": how far predictions follow the mask's owner, and the pixels.

    Args:
      decided: [B, C] of 0 and 1, the classes named for image partner[i] seen through mask i.
      label: [B, C], multi-hot, of the masks' owners.
      partner: int32 [B], from `swap_partners`.
      exists: bool [B], from `swap_partners`; owners without a partner are not counted.
      valid: [B], 0 for padding.
      suffix: added to the names.
      other: [B, C], all that the images show, where that is more than `label`.
    """
    shown = label if other is None else other
    owner_rate, owner_defined = followed(decided, label, shown[partner])
    pixel_rate, pixel_defined = followed(decided, shown[partner], shown)
    return {
        f"swap_owner_rate{suffix}": sum_and_count(owner_rate, owner_defined & exists, valid),
        f"swap_pixel_rate{suffix}": sum_and_count(pixel_rate, pixel_defined & exists, valid),
    }


# ---- As a metric of maps ---------------------------------------------------------------------------------------------


def map_swap_sums(predictor: Predictor, seen: Explained, *, rng: jax.Array | None = None) -> dict[str, SumCount]:
    """Returns "swap_owner_rate" and "swap_pixel_rate", see `swap_sums`, and with annotated masks those of them.

    Image j = partner(i) is shown as m_i x_j, where m_i is the largest of image i's counted masks. Partners are found in
    the batch (`swap_partners`): they lack one of the classes whose masks are counted.

    Args:
      predictor: its scores and probabilities are asked.
      seen: a batch.
      rng: not used.
    """
    del rng
    wanted, rows = counted_classes(seen)
    valid = rows.astype(np.float32)
    partner, exists = swap_partners(wanted, valid, seen.label)
    masks = {"": parts.union_of_classes(seen.masks, seen.class_ids, wanted)}
    if seen.mask is not None:
        masks["_ground_truth"] = segmentation.target_truth(seen.mask, wanted)
    functions = traceable(predictor.scores), traceable(predictor.probabilities)
    sums: dict[str, SumCount] = {}
    for suffix, mask in masks.items():
        scores, probabilities = _on_partners(*functions, seen.images, partner, mask)
        decided = classification.decisions(scores, probabilities, seen.multilabel)
        sums |= swap_sums(decided, wanted, partner, exists, valid, suffix, other=seen.label)
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
