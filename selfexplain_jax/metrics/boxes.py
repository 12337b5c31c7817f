"""Maps against boxes: the boxes as regions, and the boxes that thresholded maps give (MaxBoxAccV2).

Choe et al., "Evaluating Weakly Supervised Object Localization Methods Right", CVPR 2020, with the conventions of the
authors' wsolevaluation, also where they are uneven (see `boxes_at_thresholds` and `box_iou`).
"""

from __future__ import annotations

import cv2
import jax
import jax.numpy as jnp
import numpy as np

from selfexplain_jax.types import UserError

MAP_THRESHOLDS = np.arange(0, 1, 0.001)
"""Thresholds of a map, as shares of its maximum."""
IOU_THRESHOLDS = (0.3, 0.5, 0.7)
"""A map localises its object at one of these if one of its boxes has this IoU with one of the object's."""


@jax.jit
def box_regions(corners: jax.Array, box_class_ids: jax.Array, class_ids: jax.Array, images: jax.Array) -> jax.Array:
    """Returns the pixels whose centre lies in a box of the class, float32 [B, k, H, W] of 0 and 1.

    Args:
      corners: [B, n, 4]: left, top, right, bottom in pixels; pixel i reaches from i to i + 1.
      box_class_ids: int32 [B, n]; -1 for padding.
      class_ids: int32 [B, k].
      images: [B, H, W, 3], for their size.
    """
    height, width = images.shape[1:3]
    rows, columns = (jnp.arange(size)[None, None, :] + 0.5 for size in (height, width))
    left, top, right, bottom = jnp.split(corners, 4, axis=2)  # [B, n, 1] each
    across = ((columns > left) & (columns < right)).astype(jnp.float32)  # [B, n, W]
    down = ((rows > top) & (rows < bottom)).astype(jnp.float32)  # [B, n, H]
    of_class = (class_ids[:, :, None] == box_class_ids[:, None, :]).astype(jnp.float32)  # [B, k, n]
    covered = jnp.einsum("bkn,bnh,bnw->bkhw", of_class, down, across)
    return (covered > 0).astype(jnp.float32)


def photo_region(corners: np.ndarray, image_size: tuple[int, int], photo_size: tuple[int, int]) -> np.ndarray:
    """Returns the pixels of a photo whose centre lies in one of the boxes, bool [h, w].

    Args:
      corners: [n, 4]: left, top, right, bottom in pixels of the image that the photo was squeezed to.
      image_size: (height, width) of that image.
      photo_size: (h, w).
    """
    (height, width), (image_height, image_width) = photo_size, image_size
    left, top, right, bottom = (np.asarray(corners, np.float64)[:, side, None] for side in range(4))
    rows, columns = np.arange(height) + 0.5, np.arange(width) + 0.5
    # A hundredth of a pixel: corners went to the image's pixels and back in float32.
    scale_down, scale_across = height / image_height, width / image_width
    down = (rows > top * scale_down - 0.01) & (rows < bottom * scale_down + 0.01)  # [n, h]
    across = (columns > left * scale_across - 0.01) & (columns < right * scale_across + 0.01)  # [n, w]
    return (down[:, :, None] & across[:, None, :]).any(axis=0)


def boxes_at_thresholds(unit_map: np.ndarray) -> list[np.ndarray]:
    """Returns the boxes around a map's contours at each of `MAP_THRESHOLDS`, int [m, 4] each.

    As published: the map is rounded down to 255 steps; pixels strictly above int(threshold * maximum) are in; every
    contour, inner ones too, gives a box (x, y, x + w, y + h) cut at the last pixel; no contour gives (0, 0, 0, 0).

    Args:
      unit_map: [H, W] in [0, 1].
    """
    height, width = unit_map.shape
    grey = (np.asarray(unit_map) * 255).astype(np.uint8)
    # Many thresholds are the same one of the map's 255 steps.
    levels, places = np.unique((MAP_THRESHOLDS * int(grey.max())).astype(int), return_inverse=True)
    found = []
    for level in levels:
        _, above = cv2.threshold(grey, int(level), 255, cv2.THRESH_BINARY)
        contours, _ = cv2.findContours(above, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)
        x, y, w, h = np.array([cv2.boundingRect(contour) for contour in contours] or [(0, 0, 0, 0)]).T
        found.append(np.stack([x, y, np.minimum(x + w, width - 1), np.minimum(y + h, height - 1)], axis=1))
    return [found[place] for place in places]


def box_iou(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Returns the IoU of each pair of boxes, [m, n]; as published, both ends count: a box is right - left + 1 wide.

    Args:
      boxes: [m, 4]: left, top, right, bottom.
      others: [n, 4].

    Examples:
      >>> box_iou(np.array([[0, 0, 9, 9]]), np.array([[0, 0, 9, 9], [5, 0, 14, 9]])).round(3).tolist()
      [[1.0, 0.333]]
    """
    boxes, others = boxes[:, None].astype(np.float64), others[None].astype(np.float64)
    low, high = np.maximum(boxes[..., :2], others[..., :2]), np.minimum(boxes[..., 2:], others[..., 2:])
    shared = np.maximum(high - low + 1, 0).prod(axis=2)
    areas = [(box[..., 2:] - box[..., :2] + 1).prod(axis=2) for box in (boxes, others)]
    return shared / (areas[0] + areas[1] - shared)


def localised(unit_map: np.ndarray, corners: np.ndarray) -> np.ndarray:
    """Returns whether a map's best box reaches each IoU at each threshold, bool [3, 1000].

    Args:
      unit_map: [H, W], min-max scaled to [0, 1].
      corners: [n, 4], the object's boxes in pixels; as published, they are rounded down.

    Raises:
      UserError: no box, or a box without area.
    """
    corners = np.asarray(corners)
    if corners.size == 0 or (corners[:, 2:] <= corners[:, :2]).any():
        raise UserError(f"Box accuracy needs boxes (left, top, right, bottom) with an area; got {corners.tolist()}.")
    found = boxes_at_thresholds(unit_map)
    ends = np.cumsum([len(boxes) for boxes in found])
    best_of_box = box_iou(np.concatenate(found), corners.astype(int)).max(axis=1)
    best = np.maximum.reduceat(best_of_box, np.concatenate([[0], ends[:-1]]))  # [1000]
    return best[None, :] >= np.array(IOU_THRESHOLDS)[:, None]


def max_box_accuracy(hits: np.ndarray, count: float) -> dict[str, float]:
    """Returns MaxBoxAccV2 and its three parts from sums over the data set.

    At each IoU the threshold of the map is the one that is best for the whole data set; the mean of the three is the
    number.

    Args:
      hits: [3, 1000], the sum of `localised`.
      count: number of maps.
    """
    accuracy = (np.asarray(hits, np.float64) / count).max(axis=1)
    parts = {
        f"box_accuracy_{round(100 * iou)}": float(value) for iou, value in zip(IOU_THRESHOLDS, accuracy, strict=True)
    }
    return {"max_box_accuracy": float(accuracy.mean())} | parts
