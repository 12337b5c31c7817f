"""Masks refined by the image itself, measured apart from the masks that a network draws."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from selfexplain_jax.metrics import mask_sums, parts, segmentation
from selfexplain_jax.metrics.view import View, draw_masks
from selfexplain_jax.models import edges
from selfexplain_jax.types import Batch, DatasetInfo, Predictor, SumCount

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
    logits = jax.image.resize(_logits(masks.transpose(0, 2, 3, 1)), (batch, *small, classes), "linear")
    shown = jax.image.resize(images, (batch, *small, images.shape[-1]), "linear")
    distances = tuple(distance for distance in DISTANCES if distance <= max(2, min(small) // 4))
    filters = edges.edge_filters(shown, distances, SCALE)
    logits = jax.lax.fori_loop(0, rounds, lambda _, maps: edges.filter_maps(maps, filters, distances), logits)
    refined = jax.nn.sigmoid(jax.image.resize(logits, (batch, height, width, classes), "linear"))
    return refined.transpose(0, 3, 1, 2)


def mirrored(predictor: Predictor, batch: Batch, class_ids: np.ndarray, masks: np.ndarray) -> jax.Array:
    """The masks of an image and of its mirror image, turned back, as one: the sigmoid of their logits' mean.

    Args:
      predictor: draws the mirror image's masks.
      batch, class_ids, masks: the images, int32 [B, k], and the predictor's masks of them [B, k, H, W].

    Raises:
      UserError: bad masks of the mirror image, see `view.draw_masks`.
    """
    turned = draw_masks(predictor, batch | {"image": batch["image"][:, :, ::-1]}, class_ids)[..., ::-1]
    return jax.nn.sigmoid((_logits(masks) + _logits(turned)) / 2)


def refined_sums(
    predictor: Predictor, seen: View, info: DatasetInfo, settings: ml_collections.ConfigDict
) -> dict[str, SumCount]:
    """`iou`, `continuous_iou` and the pixels' confusion of refined masks, by names that end in "_refined".

    The class map knows the classes alone that the network names in the image, so that nothing is taken from the label.
    "pixel_confusion_named", of the masks as they are under the same rule, tells its share from the filter's.

    Args:
      predictor: with masks; asked again where `refine_mirrored`.
      seen: of it, on data with masks.
      info: the dataset's.
      settings: `config.evaluation`; its `refine_rounds`, `refine_mirrored` and `refine_threshold` (of the class map).
    """
    masks = seen.masks
    if settings.refine_mirrored:
        masks = mirrored(predictor, seen.batch, seen.class_ids, masks)
    masks = np.asarray(refine(masks, seen.batch["image"], settings.refine_rounds))
    target = parts.union_of_classes(masks, seen.class_ids, seen.batch["label"])
    of_target = mask_sums(target, seen.truth, seen.weight, seen.batch["valid"])
    sums = {f"{name}_refined": of_target[name] for name in ("iou", "continuous_iou")}
    named = np.take_along_axis(seen.predictions["image"].decided, seen.class_ids, axis=1)  # [B, k]
    for suffix, shown, threshold in (("named", seen.masks, 0.5), ("refined", masks, settings.refine_threshold)):
        classes = segmentation.class_map(shown * named[:, :, None, None], seen.class_ids, threshold)
        confusion = segmentation.pixel_confusion(classes, seen.batch["mask"], seen.batch["valid"], info.num_classes)
        sums[f"pixel_confusion_{suffix}"] = (confusion, 0)
    return sums


def _logits(masks: jax.Array) -> jax.Array:
    return jax.scipy.special.logit(jnp.clip(masks, CLIP, 1.0 - CLIP))
