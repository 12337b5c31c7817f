"""Masks refined by the image itself, measured apart from the masks that a network draws."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from selfexplain_jax.metrics import mask_sums, parts, segmentation
from selfexplain_jax.metrics.view import View
from selfexplain_jax.models import edges
from selfexplain_jax.types import DatasetInfo, SumCount

DISTANCES = (16, 8, 4, 2, 1)
"""Of the filter at half the image's size, in its cells; of 1 and 2 where an image has no room for more."""
SCALE = 0.2
"""Difference of normalised colours at which two cells are no longer alike; that of the networks' own filter."""
STRIDE = 2
"""Pixels of the image per cell of the filter."""
CLIP = 1e-4
"""Masks are held this far from 0 and 1, so that their logits are finite."""


@functools.partial(jax.jit, static_argnames="rounds")
def refine(masks: jax.Array, images: jax.Array, rounds: int) -> jax.Array:
    """The masks' logits, smoothed within the image's edges: `edges.smooth_within_edges`, `rounds` times.

    At half the image's size, where the networks' maps have a quarter: outlines come from the image and not from the
    grid. The place of pixel-adaptive refinement in one-stage segmentation (PAMR; Araslanov & Roth, CVPR 2020).

    Args:
      masks: [B, k, H, W] in 0..1.
      images: [B, H, W, 3], normalised.
      rounds: static; how often. 0 leaves the masks as they are, but for the way there and back.

    Returns:
      [B, k, H, W] in 0..1.
    """
    batch, classes, height, width = masks.shape
    small = (-(-height // STRIDE), -(-width // STRIDE))
    clipped = jnp.clip(masks.transpose(0, 2, 3, 1), CLIP, 1.0 - CLIP)  # [B, H, W, k]
    logits = jax.image.resize(jnp.log(clipped) - jnp.log1p(-clipped), (batch, *small, classes), "linear")
    shown = jax.image.resize(images, (batch, *small, images.shape[-1]), "linear")
    distances = tuple(distance for distance in DISTANCES if distance <= max(2, min(small) // 4))
    filters = edges.edge_filters(shown, distances, SCALE)
    logits = jax.lax.fori_loop(0, rounds, lambda _, maps: edges.filter_maps(maps, filters, distances), logits)
    refined = jax.nn.sigmoid(jax.image.resize(logits, (batch, height, width, classes), "linear"))
    return refined.transpose(0, 3, 1, 2)


def refined_sums(seen: View, info: DatasetInfo, rounds: int) -> dict[str, SumCount]:
    """`iou`, `continuous_iou` and the pixels' confusion of refined masks, by names that end in "_refined".

    The class map knows the classes alone that the network names in the image, so that nothing is taken from the label.
    "pixel_confusion_named", of the masks as they are under the same rule, tells its share from the filter's.

    Args:
      seen: of a model with masks, on data with masks.
      info: the dataset's.
      rounds: of `refine`, 1 or more.
    """
    masks = np.asarray(refine(seen.masks, seen.batch["image"], rounds))
    target = parts.union_of_classes(masks, seen.class_ids, seen.batch["label"])
    of_target = mask_sums(target, seen.truth, seen.weight, seen.batch["valid"])
    named = np.take_along_axis(seen.predictions["image"].decided, seen.class_ids, axis=1)  # [B, k]
    sums = {f"{name}_refined": of_target[name] for name in ("iou", "continuous_iou")}
    for suffix, shown in {"named": seen.masks, "refined": masks}.items():
        classes = segmentation.class_map(shown * named[:, :, None, None], seen.class_ids)
        confusion = segmentation.pixel_confusion(classes, seen.batch["mask"], seen.batch["valid"], info.num_classes)
        sums[f"pixel_confusion_{suffix}"] = (confusion, 0)
    return sums
