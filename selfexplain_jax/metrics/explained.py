"""A batch with the saliency maps of one method and its ground truth: what every metric of saliency maps is given.

Made by `explained`, which checks everything once and says what is wrong; the metrics of `map_metrics.py` compute.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from selfexplain_jax.attribution.inputs import check_range
from selfexplain_jax.metrics import segmentation
from selfexplain_jax.metrics.boxes import box_regions
from selfexplain_jax.types import VOID, Batch, Predictor, UserError

SCALINGS = ("as_is", "min_max")
"""How a map becomes a mask in [0, 1]: it is one already; or (s - min) / (max - min) of each map, 0 for a flat one."""
BOX_ROOM = 8
"""Boxes per image are padded to a multiple of this, so that few shapes are compiled."""
Extremes = Mapping[str, Sequence[tuple[int, int]]]
"""{what is extreme, a key of SAYING: (position in the split, class id) of the maps that it concerns}."""
SAYING = {
    "no_pixel": "have no annotated pixel of their class, and are left out of the metrics that need masks",
    "no_box": "have no box of their class, and are left out of the metrics that need boxes",
    "full_mask": "are of images whose objects leave no background pixel: nothing can lie beside them, and"
    " background_coverage and pixel_auc leave these images out",
    "full_box": "are of a class whose boxes cover all of its image: nothing can lie beside them",
    "flat": "are of one value alone: they order no pixels, and count like any other",
}
"""What is said of counted maps whose ground truth, or which themselves, are empty or full."""


class PixelBoxes(NamedTuple):
    """Boxes of a batch in pixels of its images; n is the same for all, padding has class -1.

    corners:   float32 [B, n, 4]: left, top, right, bottom; pixel i reaches from i to i + 1.
    class_ids: int32 [B, n].
    ignored:   bool [B, n]: marked as difficult (VOC) or as a crowd (COCO).
    """

    corners: np.ndarray
    class_ids: np.ndarray
    ignored: np.ndarray


@dataclasses.dataclass(frozen=True)
class Explained:
    """Images with one saliency map for each class asked for. All arrays are numpy's.

    images:    float32 [B, H, W, 3], normalised.
    class_ids: int32 [B, k], the maps' classes.
    saliency:  float32 [B, k, H, W], raw.
    masks:     float32 [B, k, H, W] in [0, 1], the maps scaled as the method asks for.
    label:     float32 [B, C], multi-hot.
    valid:     float32 [B], 0 for padding.
    counted:   bool [B, k], the maps that enter the averages: of present classes in valid rows, unless told otherwise.
    index:     int [B], the images' positions in the split, for messages.
    mask:      uint8 [B, H, W], class index + 1, 0 background, 255 void; None where the data set has no masks.
    boxes:     the images' boxes; None where the data set has none.
    photo_sizes: int [B, 2], height and width of the photos that were squeezed to the images; None where not known.
    photo_masks: B arrays uint8 of those sizes, as `mask`; None where not known.
    multilabel: whether an image may show several classes, so that each is decided by itself.
    """

    images: np.ndarray
    class_ids: np.ndarray
    saliency: np.ndarray
    masks: np.ndarray
    label: np.ndarray
    valid: np.ndarray
    counted: np.ndarray
    index: np.ndarray
    mask: np.ndarray | None = None
    boxes: PixelBoxes | None = None
    photo_sizes: np.ndarray | None = None
    photo_masks: Sequence[np.ndarray] | None = None
    multilabel: bool = False

    @property
    def num_classes(self) -> int:
        return self.label.shape[1]


def explained(
    predictor: Predictor,
    batch: Batch,
    class_ids: np.ndarray,
    saliency: np.ndarray,
    *,
    scaling: str = "as_is",
    counted: np.ndarray | None = None,
    has_masks: bool = True,
    boxes: PixelBoxes | None = None,
    photo_sizes: np.ndarray | None = None,
    photo_masks: Sequence[np.ndarray] | None = None,
    multilabel: bool | None = None,
    warn: bool = True,
) -> Explained:
    """Returns the checked batch that metrics of saliency maps take.

    Counted maps that are flat (empty and full ones among them), and those whose ground truth is all of the image, are
    named in one warning of each kind, whatever the metrics that follow.

    Args:
      predictor: what was explained; gives the classes and the image size.
      batch: images, label, valid, index and, with `has_masks`, mask.
      class_ids: integers [B, k], the maps' classes.
      saliency: [B, k, H, W] at image size.
      scaling: a name in `SCALINGS`; "as_is" for maps that are masks (learned ones and controls).
      counted: bool [B, k], the maps to count; None: those of present classes. Padding never counts.
      has_masks: whether the batch's masks are ground truth.
      boxes: from `pad_boxes`, where the data set has boxes.
      photo_sizes: int [B, 2], height and width of the photos, where the images are whole photos squeezed to the square.
      photo_masks: B masks of those sizes, where they are known better than as the batch's.
      multilabel: whether an image may show several classes; None: whether one of the batch does.
      warn: False for who counts the extremes of a whole run and says them once, see `extremes`.

    Raises:
      UserError: shapes that do not fit, images or class ids out of range, a map that is not finite (named by its
        image), a map outside [0, 1] under "as_is", an unknown scaling, a box without area, or a label with other
        classes than the predictor.
    """
    images, label = np.asarray(batch["image"]), np.asarray(batch["label"], np.float32)
    class_ids, saliency = np.asarray(class_ids), np.asarray(saliency)
    valid, index = np.asarray(batch["valid"], np.float32), np.asarray(batch["index"])
    size = predictor.image_size
    if images.ndim != 4 or images.shape[1:3] != (size, size):
        raise UserError(f"The metrics need images [B, {size}, {size}, 3], the predictor's size; got {images.shape}.")
    check_range(predictor, images)
    images = images.astype(np.float32)
    if label.shape != (len(images), predictor.num_classes):
        raise UserError(
            f"The label has shape {label.shape}, expected {(len(images), predictor.num_classes)}: one row per image, "
            "one column per class of the predictor."
        )
    _check_class_ids(predictor, class_ids, index)
    if saliency.shape != (*class_ids.shape, size, size):
        raise UserError(
            f"The saliency maps have shape {saliency.shape}, expected {(*class_ids.shape, size, size)} (images, "
            "classes, height, width): resize them to the images."
        )
    saliency = saliency.astype(np.float32)
    real = valid > 0
    finite = np.isfinite(saliency).all(axis=(2, 3))
    _refuse(~finite & real[:, None], index, class_ids, predictor, "hold NaN or infinity: no number can be made of them")
    # Whatever stands in padding: it is ranked and shown like any other, and never counted.
    saliency = np.where(real[:, None, None, None], saliency, 0)
    masks = _masks(saliency, scaling, real, index, class_ids, predictor)
    if counted is None:
        counted = np.take_along_axis(label, class_ids, axis=1) > 0
    elif np.shape(counted) != class_ids.shape:
        raise UserError(f"counted has shape {np.shape(counted)}, expected {class_ids.shape}: one entry per map.")
    if boxes is not None and len(boxes.corners) != len(images):
        raise UserError(f"There are boxes of {len(boxes.corners)} images, but {len(images)} images.")
    if boxes is not None:
        _check_boxes(boxes, index)
    if photo_sizes is not None and np.shape(photo_sizes) != (len(images), 2):
        raise UserError(
            f"photo_sizes has shape {np.shape(photo_sizes)}, expected {(len(images), 2)}: height and width."
        )
    if photo_masks is not None and [list(mask.shape) for mask in photo_masks] != np.asarray(photo_sizes).tolist():
        raise UserError("photo_masks must be one mask for each of photo_sizes, of that height and width.")
    seen = Explained(
        images=images,
        class_ids=class_ids.astype(np.int32),
        saliency=saliency,
        masks=masks,
        label=label,
        valid=valid,
        counted=(np.asarray(counted) > 0) & real[:, None],
        index=index,
        mask=np.asarray(batch["mask"]) if has_masks else None,
        boxes=boxes,
        photo_sizes=None if photo_sizes is None else np.asarray(photo_sizes),
        photo_masks=photo_masks,
        multilabel=bool((label.sum(axis=1) > 1).any()) if multilabel is None else multilabel,
    )
    if warn:
        # What has no ground truth at all is refused by the metric that needs it.
        for kind in ("full_mask", "full_box", "flat"):
            if pairs := extremes(seen)[kind]:
                logging.warning("%s", say(kind, len(pairs), pairs))
    return seen


def extremes(seen: Explained) -> dict[str, list[tuple[int, int]]]:
    """Returns which counted maps are extreme, or held against an extreme ground truth; see `SAYING`.

    Every kind is there; those of masks (boxes) are empty where the batch has none.
    """
    found = {"flat": seen.counted & (np.ptp(seen.saliency, axis=(2, 3)) == 0)}
    if seen.mask is not None:
        there = counted_with_truth(seen, "mask")
        wanted, _ = counted_classes(dataclasses.replace(seen, counted=there))
        objects = np.asarray(segmentation.target_truth(seen.mask, wanted)) > 0
        full = (objects | (seen.mask == VOID)).all(axis=(1, 2))
        found |= {"no_pixel": seen.counted & ~there, "full_mask": there & full[:, None]}
    if seen.boxes is not None:
        there = counted_with_truth(seen, "boxes")
        regions = box_regions(seen.boxes.corners, seen.boxes.class_ids, seen.class_ids, seen.images)
        found |= {"no_box": seen.counted & ~there, "full_box": there & np.asarray(regions).all(axis=(2, 3))}
    nothing = np.zeros_like(seen.counted)
    return {
        kind: [(int(seen.index[row]), int(seen.class_ids[row, k])) for row, k in np.argwhere(found.get(kind, nothing))]
        for kind in SAYING
    }


def say(kind: str, count: int, first: Sequence[Sequence[int]]) -> str:
    """Returns the sentence about `count` maps of a kind of `SAYING`; `first`: some of them, (image, class)."""
    named = [tuple(pair) for pair in first[:5]]
    return f"{count} maps, first (image, class) {named} of the split, {SAYING[kind]}."


def counted_classes(seen: Explained) -> tuple[np.ndarray, np.ndarray]:
    """Returns the classes whose maps count, float32 [B, C] of 0 and 1, and bool [B]: there is one."""
    wanted = np.zeros_like(seen.label)
    rows, places = np.nonzero(seen.counted)
    wanted[rows, seen.class_ids[rows, places]] = 1
    return wanted, seen.counted.any(axis=1)


def pairs_in_batches(wanted: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields (rows, places), int [B] each, of the pairs of image and class that are `wanted`, bool [B, k]."""
    rows, places = np.nonzero(wanted)
    for start in range(0, len(rows), len(wanted)):
        # The last ones are filled up with pairs that are done.
        pairs = np.arange(start, start + len(wanted)) % len(rows)
        yield rows[pairs], places[pairs]


def ask_counted(seen: Explained, maps: np.ndarray, ask: Callable[..., dict[str, jax.Array]]) -> dict[str, np.ndarray]:
    """What `ask` says of the maps that count, B maps at a time and so in one shape; 0 of the others, [B, k, ...] each.

    Args:
      seen: a batch.
      maps: [B, k, H, W].
      ask: images [B, H, W, 3], class_ids [B, 1], maps [B, 1, H, W] -> values [B, 1, ...].
    """
    asked, found = seen.counted.copy(), {}
    asked[0, 0] |= not asked.any()  # The names and shapes are wanted all the same.
    for row, place in pairs_in_batches(asked):
        values = ask(seen.images[row], seen.class_ids[row, place][:, None], maps[row, place][:, None])
        for name, value in values.items():
            value = np.asarray(value)[:, 0]
            found.setdefault(name, np.zeros((*seen.counted.shape, *value.shape[1:]), np.float32))[row, place] = value
    return found


@jax.jit
def min_max(maps: jax.Array) -> jax.Array:
    """Returns (s - min s) / (max s - min s) of each map [..., H, W], in [0, 1]; 0 where it is flat, NaN of a NaN."""
    low, high = maps.min(axis=(-2, -1), keepdims=True), maps.max(axis=(-2, -1), keepdims=True)
    # Not `high > low`, which a NaN is not: it would become 0.
    scaled = jnp.where(high <= low, 0, (maps - low) / jnp.where(high <= low, 1, high - low))
    # XLA's division may miss 1 by a rounding, and thresholds look at the largest value.
    return jnp.where((maps == high) & (high > low), 1, scaled)


def pad_boxes(boxes: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> PixelBoxes:
    """Returns the boxes of a batch's images as arrays of one length.

    Args:
      boxes: per image (corners [n, 4] in pixels of the image as in `data.augment.fit_boxes`, class ids [n], ignored
        [n]); of padding images, empty arrays.
    """
    most = max([len(class_ids) for _, class_ids, _ in boxes] + [1])
    room = -(-most // BOX_ROOM) * BOX_ROOM
    corners = np.zeros((len(boxes), room, 4), np.float32)
    all_ids = np.full((len(boxes), room), -1, np.int32)
    all_ignored = np.zeros((len(boxes), room), bool)
    for row, (places, class_ids, ignored) in enumerate(boxes):
        corners[row, : len(places)] = places
        all_ids[row, : len(class_ids)] = class_ids
        all_ignored[row, : len(ignored)] = ignored
    return PixelBoxes(corners, all_ids, all_ignored)


def counted_with_truth(seen: Explained, truth: str) -> np.ndarray:
    """Returns which counted maps have a ground truth of their class, bool [B, k].

    A crop can cut an object off, and boxes can lack a class that the masks show: to leave such maps out knowingly, give
    this to `dataclasses.replace(seen, counted=...)` and say how many they were.

    Args:
      seen: from `explained`.
      truth: "mask", "boxes" or "photo": the masks at the photos' own sizes, where there are some, since the square's
        may lack a small object.
    """
    if truth == "boxes":
        return seen.counted & (seen.boxes.class_ids[:, None, :] == seen.class_ids[:, :, None]).any(axis=2)
    if truth == "photo" and seen.photo_masks is not None:
        there = [np.isin(ids + 1, mask) for ids, mask in zip(seen.class_ids, seen.photo_masks, strict=True)]
        return seen.counted & np.stack(there)
    return seen.counted & np.asarray(segmentation.class_truth(seen.mask, seen.class_ids)).any(axis=(2, 3))


def check_truth(seen: Explained, truth: str, metric: str) -> None:
    """Refuses maps without the ground truth that a metric needs.

    Args:
      seen: from `explained`.
      truth: as of `counted_with_truth`.
      metric: named in the message.

    Raises:
      UserError: the batch has no masks (boxes), or a counted map's class has no pixel (no box) in its image.
    """
    masks = seen.mask if truth == "mask" or seen.photo_masks is None else seen.photo_masks
    if (seen.boxes if truth == "boxes" else masks) is None:
        what = "boxes" if truth == "boxes" else "masks"
        raise UserError(f"Metric {metric!r} needs {what}, which this data set does not have: leave the metric out.")
    without = seen.counted & ~counted_with_truth(seen, truth)
    if without.any():
        what = "no box" if truth == "boxes" else "no pixel"
        pairs = [(int(seen.index[row]), int(seen.class_ids[row, place])) for row, place in np.argwhere(without)[:5]]
        raise UserError(
            f"Metric {metric!r}: the ground truth has {what} of the class of {without.sum()} counted maps, first "
            f"(image, class) {pairs} of the split. Leave them out with explained.counted_with_truth, or correct the "
            "labels."
        )


def _check_boxes(boxes: PixelBoxes, index: np.ndarray) -> None:
    empty = (boxes.class_ids >= 0) & (boxes.corners[..., 2:] <= boxes.corners[..., :2]).any(axis=2)
    if empty.any():
        row, place = np.argwhere(empty)[0]
        raise UserError(
            f"{empty.sum()} boxes have no area; the first, of image {index[row]} of the split, is (left, top, right, "
            f"bottom) {boxes.corners[row, place].tolist()}: leave such boxes out, or correct them."
        )


def _check_class_ids(predictor: Predictor, class_ids: np.ndarray, index: np.ndarray) -> None:
    if class_ids.ndim != 2 or len(class_ids) != len(index) or not np.issubdtype(class_ids.dtype, np.integer):
        raise UserError(
            f"The metrics need integer class ids [B, k] for {len(index)} images; got shape {class_ids.shape}, "
            f"{class_ids.dtype}."
        )
    bad = (class_ids < 0) | (class_ids >= predictor.num_classes)
    if bad.any():
        row, place = np.argwhere(bad)[0]
        raise UserError(
            f"Class ids must lie in 0..{predictor.num_classes - 1}; image {index[row]} of the split asks for "
            f"{class_ids[row, place]}."
        )


def _masks(saliency, scaling, real, index, class_ids, predictor) -> np.ndarray:
    if scaling not in SCALINGS:
        raise UserError(f"Unknown scaling {scaling!r} of saliency maps; there are {', '.join(SCALINGS)}.")
    if scaling == "min_max":
        return np.asarray(min_max(saliency))
    outside = (saliency.min(axis=(2, 3)) < -1e-4) | (saliency.max(axis=(2, 3)) > 1 + 1e-4)
    what = 'leave [0, 1]: take scaling="min_max" for maps that are no masks'
    _refuse(outside & real[:, None], index, class_ids, predictor, what)
    return np.clip(saliency, 0, 1)


def _refuse(bad: np.ndarray, index: np.ndarray, class_ids: np.ndarray, predictor: Predictor, what: str) -> None:
    if bad.any():
        row, place = np.argwhere(bad)[0]
        rows = np.unique(np.asarray(index)[bad.any(axis=1)])
        raise UserError(
            f"The saliency maps of {len(rows)} images, {rows[:5].tolist()} of the split, {what}. The first is of class "
            f"{predictor.class_names[class_ids[row, place]]!r}."
        )
