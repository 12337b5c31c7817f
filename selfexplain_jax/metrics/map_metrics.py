"""Every metric of a method's saliency maps behind one signature: what a comparison of methods loops over.

`measure(name, predictor, seen, *, rng=None, **options)` returns {number: (sum, count)} for a batch (an `Explained`);
`metrics.add` adds these over batches and hosts, and `finish(name, sums)` turns the sums of a data set into numbers.
`MAP_METRICS[name].needs` says what a metric cannot do without. Add one: a function here, and a line in MAP_METRICS.

    seen = explained(predictor, batch, class_ids, method(predictor, batch["image"], class_ids), scaling="min_max")
    sums = add(sums, measure("road", predictor, seen, rng=rng))
    numbers = finish("road", sums)
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import cv2
import jax
import jax.numpy as jnp
import numpy as np

from selfexplain_jax.attribution.inputs import traceable
from selfexplain_jax.metrics import (
    boxes,
    class_sum_and_count,
    class_sums,
    faithfulness,
    localisation,
    mask_sums,
    mean,
    parts,
    segmentation,
    sum_and_count,
    swapped_masks,
)
from selfexplain_jax.metrics.explained import Explained, ask_counted, check_truth, counted_classes, min_max
from selfexplain_jax.types import Predictor, SumCount, UserError

Sums = dict[str, SumCount]


def means(sums: Mapping[str, SumCount]) -> dict[str, Any]:
    """Returns sum / count of each; for sums per class the mean over classes; None where nothing was counted."""
    return {name: mean(pair) for name, pair in sums.items()}


@dataclasses.dataclass(frozen=True)
class SaliencyMetric:
    """A metric of saliency maps.

    measure: (predictor, seen, *, rng=None, **options) -> {number: (sum, count)}.
    needs:   of "mask" (annotated pixels), "boxes", "photo_sizes" (with boxes or masks, as its options say) and "model"
      (it shows changed images to the classifier).
    finish:  {number: (sum, count)} of a data set -> {number: value, or list for a curve, or None}.
    """

    measure: Callable[..., Sums]
    needs: tuple[str, ...]
    finish: Callable[[Mapping[str, SumCount]], dict[str, Any]] = means


def measure(name: str, predictor: Predictor, seen: Explained, *, rng: jax.Array | None = None, **options: Any) -> Sums:
    """Returns the sums and counts of the metric of that name for a batch.

    Args:
      name: in `MAP_METRICS`.
      predictor: the classifier that was explained.
      seen: from `explained.explained`.
      rng: for metrics that draw noise; the same key gives the same sums.
      **options: the metric's own.

    Raises:
      UserError: an unknown name or option, or a counted map without the ground truth that the metric needs.
    """
    metric = _metric(name)
    check_options(name, options)
    for truth in ("mask", "boxes"):
        if truth in metric.needs:
            check_truth(seen, truth, name)
    return metric.measure(predictor, seen, rng=rng, **options)


def check_options(name: str, options: Mapping[str, Any]) -> None:
    """Raises a UserError where the metric of that name does not have one of the options."""
    parameters = inspect.signature(_metric(name).measure).parameters.values()
    known = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.name != "rng"]
    if unknown := sorted(set(options) - set(known)):
        raise UserError(f"Metric {name!r} has no option {unknown[0]!r}; it has: {', '.join(known) or '-'}.")


def needs_of(name: str, options: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns what the metric of that name cannot do without, with what its options add.

    Raises:
      UserError: an unknown name.
    """
    needs = _metric(name).needs
    return (*needs, options.get("regions", "boxes")) if "photo_sizes" in needs else needs


def finish(name: str, sums: Mapping[str, SumCount]) -> dict[str, Any]:
    """Returns the numbers of the metric of that name from its sums over a data set.

    Raises:
      UserError: an unknown name.
    """
    return _metric(name).finish(sums)


def _metric(name: str) -> SaliencyMetric:
    if name not in MAP_METRICS:
        raise UserError(f"Unknown metric of saliency maps {name!r}; there are {', '.join(MAP_METRICS)}.")
    return MAP_METRICS[name]


# ---- Against masks ---------------------------------------------------------------------------------------------------


def segmentation_sums(predictor: Predictor, seen: Explained, *, rng: jax.Array | None = None) -> Sums:
    """The target mask (the maximum over counted maps) against the union of their objects, and IoU per class.

    Every number of `metrics.mask_sums`, and "mean_iou_per_class". Images where the objects leave no annotated
    background are left out of "background_coverage" and "pixel_auc"; `explained` names them.
    """
    del predictor, rng
    wanted, rows = counted_classes(seen)
    target = parts.union_of_classes(seen.masks, seen.class_ids, wanted)
    truth, weight = segmentation.target_truth(seen.mask, wanted), segmentation.pixel_weights(seen.mask)
    sums = mask_sums(target, truth, weight, rows.astype(np.float32))
    per_class = class_sums(seen.masks, seen.class_ids, wanted, seen.mask, seen.valid, num_classes=seen.num_classes)
    return dict(sums) | {"mean_iou_per_class": per_class["mean_iou_per_class"]}


def class_map_sums(predictor: Predictor, seen: Explained, *, rng: jax.Array | None = None) -> Sums:
    """The class map (highest mask above .5, else background) of all maps asked for, pooled over the data set: "miou".

    Ask for present classes' maps only, and the image's labels are given away to it; ask for all classes otherwise.
    """
    del predictor, rng
    predicted = segmentation.class_map(seen.masks, seen.class_ids)
    confusion = segmentation.pixel_confusion(predicted, seen.mask, seen.valid, num_classes=seen.num_classes)
    return {"miou": (confusion, seen.valid.sum())}


def pixel_precision_sums(predictor: Predictor, seen: Explained, *, rng: jax.Array | None = None) -> Sums:
    """PxAP of min-max scaled maps against their class's pixels, pooled over the data set: "pixel_average_precision"."""
    del predictor, rng
    truth, weight, counted = _class_truth(seen)
    maps = min_max(_flat(seen.saliency))
    histograms = localisation.score_histograms(maps, truth, weight, counted)
    return {"pixel_average_precision": (histograms, seen.counted.sum())}


def pointing_sums(predictor: Predictor, seen: Explained, *, rng: jax.Array | None = None) -> Sums:
    """Pointing game against the class's pixels, per class: with tolerance, strict, difficult subset, and energy."""
    del predictor, rng
    truth, weight, counted = _class_truth(seen)
    return _pointing(seen, truth, weight, counted)


# ---- Against boxes ---------------------------------------------------------------------------------------------------


def box_pointing_sums(predictor: Predictor, seen: Explained, *, rng: jax.Array | None = None) -> Sums:
    """`pointing_sums` with the class's boxes as its region (VOC's convention): "pointing_game_boxes" and so on.

    As in TorchRay the region is that of all boxes, and a class whose boxes are all difficult is not counted.
    """
    del predictor, rng
    regions = boxes.box_regions(seen.boxes.corners, seen.boxes.class_ids, seen.class_ids, seen.images)
    counted = (seen.counted & _has_clear_box(seen)).ravel()
    sums = _pointing(seen, _flat(regions), jnp.ones_like(_flat(regions)), counted)
    return {f"{name}_boxes": pair for name, pair in sums.items()}


def photo_pointing_sums(
    predictor: Predictor, seen: Explained, *, rng: jax.Array | None = None, regions: str = "boxes"
) -> Sums:
    """TorchRay's pointing game at the photos' own sizes, see `localisation.photo_hit`, per class.

    "pointing_game_photo" and "pointing_game_photo_difficult". Regions are the class's "boxes" (VOC: as
    `box_pointing_sums` counts them) or its pixels in the "mask" (COCO): the photo's, else the square's, enlarged.
    """
    del predictor, rng
    if seen.photo_sizes is None or regions not in ("boxes", "mask"):
        raise UserError("The pointing game in photos needs photo_sizes, and regions='boxes' or 'mask'.")
    check_truth(seen, "photo" if regions == "mask" else regions, "pointing_game_photo")
    counted = seen.counted & _has_clear_box(seen) if regions == "boxes" else seen.counted
    sums = np.zeros((4, seen.num_classes))  # Hits and count of all, and of the difficult ones.
    for row, place in np.argwhere(counted):
        class_id, (height, width) = seen.class_ids[row, place], seen.photo_sizes[row]
        if regions == "boxes":
            corners = seen.boxes.corners[row][seen.boxes.class_ids[row] == class_id]
            region = boxes.photo_region(corners, seen.images.shape[1:3], (height, width))
        else:
            mask = seen.mask[row] if seen.photo_masks is None else seen.photo_masks[row]
            pixels = (mask == class_id + 1).astype(np.uint8)
            region = cv2.resize(pixels, (int(width), int(height)), interpolation=cv2.INTER_NEAREST) > 0
        hit = localisation.photo_hit(seen.saliency[row, place], region)
        difficult = region.mean() < localisation.DIFFICULT_AREA and seen.label[row].sum() > 1
        sums[:, class_id] += np.array([hit, 1, hit, 1]) * np.array([1, 1, difficult, difficult])
    return {"pointing_game_photo": (sums[0], sums[1]), "pointing_game_photo_difficult": (sums[2], sums[3])}


def box_accuracy_sums(predictor: Predictor, seen: Explained, *, rng: jax.Array | None = None) -> Sums:
    """MaxBoxAccV2 of min-max scaled maps against their class's boxes, difficult ones left out: "max_box_accuracy"."""
    del predictor, rng
    counted = seen.counted & _has_clear_box(seen)
    hits = np.zeros((len(boxes.IOU_THRESHOLDS), len(boxes.MAP_THRESHOLDS)))
    unit_maps = np.asarray(min_max(seen.saliency))
    for row, place in np.argwhere(counted):
        of_class = seen.boxes.class_ids[row] == seen.class_ids[row, place]
        corners = seen.boxes.corners[row][of_class & ~seen.boxes.ignored[row]]
        hits += boxes.localised(unit_maps[row, place], corners)
    return {"max_box_accuracy": (hits, counted.sum())}


# ---- Asking the classifier -------------------------------------------------------------------------------------------


def part_sums(predictor: Predictor, seen: Explained, *, rng: jax.Array | None = None) -> Sums:
    """Saliency score, background entropy and the probabilities of the classes on object and background; zero infill."""
    del rng
    wanted, rows = counted_classes(seen)
    target = parts.union_of_classes(seen.masks, seen.class_ids, wanted)
    answers = _on_parts(traceable(predictor.scores), traceable(predictor.probabilities), seen.images, target)
    # An image without a counted map has no class; whatever stands there is not counted.
    return dict(parts.part_sums(target, *answers, np.where(rows[:, None], wanted, 1), rows.astype(np.float32)))


def class_specific_sums(
    predictor: Predictor,
    seen: Explained,
    *,
    rng: jax.Array | None = None,
    chunk_size: int = faithfulness.CHUNK_SIZE,
) -> Sums:
    """The class-specific table, see `parts.class_specific_sums`; all maps asked for are used, counted or not."""
    del rng
    arrays = (seen.images, seen.class_ids, seen.masks, seen.label, seen.valid)
    return {"class_specific": parts.class_specific_sums(predictor, *arrays, chunk_size=chunk_size)}


def deletion_insertion_sums(
    predictor: Predictor,
    seen: Explained,
    *,
    rng: jax.Array | None = None,
    step_pixels: int | None = None,
    chunk_size: int = faithfulness.CHUNK_SIZE,
) -> Sums:
    """Area under the curves of deletion and insertion, and the curves; see `faithfulness.deletion_insertion`."""
    del rng
    options = {"step_pixels": step_pixels, "chunk_size": chunk_size}

    def ask(*maps):
        curves = faithfulness.deletion_insertion(predictor, *maps, **options)
        named = dict(zip(("deletion", "insertion"), curves, strict=True))
        areas = {name: faithfulness.curve_area(curve) for name, curve in named.items()}
        return areas | {f"{name}_curve": curve for name, curve in named.items()}

    return _over_maps(seen, ask_counted(seen, seen.saliency, ask))


def average_drop_sums(
    predictor: Predictor, seen: Explained, *, rng: jax.Array | None = None, chunk_size: int = faithfulness.CHUNK_SIZE
) -> Sums:
    """Average drop, increase and gain of the class's probability on mask times image."""
    del rng
    functions = (faithfulness.average_drop, faithfulness.increase, faithfulness.average_gain)

    def ask(*maps):
        pair = faithfulness.masked_probabilities(predictor, *maps, chunk_size=chunk_size)
        return {function.__name__: function(*pair) for function in functions}

    return _over_maps(seen, ask_counted(seen, seen.masks, ask))


def road_sums(
    predictor: Predictor,
    seen: Explained,
    *,
    rng: jax.Array | None = None,
    percentages: tuple[int, ...] = faithfulness.ROAD_PERCENTAGES,
    chunk_size: int = faithfulness.CHUNK_SIZE,
) -> Sums:
    """ROAD in one number, (LeRF - MoRF) / 2 averaged over the percentages, and its curves; see `faithfulness.road`."""
    options = {"rng": rng, "percentages": percentages, "chunk_size": chunk_size}

    def ask(*maps):
        most, least = faithfulness.road(predictor, *maps, **options)
        combined = ((least - most) / 2).mean(axis=-1)
        return {"road": combined, "road_morf_curve": most, "road_lerf_curve": least}

    return _over_maps(seen, ask_counted(seen, seen.saliency, ask))


# ---- The registry ----------------------------------------------------------------------------------------------------


def _finish_class_map(sums: Mapping[str, SumCount]) -> dict[str, Any]:
    confusion, count = sums["miou"]
    return {"miou": segmentation.mean_iou(confusion) if count > 0 else None}


def _finish_pixel_precision(sums: Mapping[str, SumCount]) -> dict[str, Any]:
    histograms, _ = sums["pixel_average_precision"]
    return {"pixel_average_precision": localisation.pixel_average_precision(histograms)}


def _finish_box_accuracy(sums: Mapping[str, SumCount]) -> dict[str, Any]:
    hits, count = sums["max_box_accuracy"]
    return boxes.max_box_accuracy(hits, count) if count > 0 else {"max_box_accuracy": None}


MAP_METRICS: dict[str, SaliencyMetric] = {
    "segmentation": SaliencyMetric(segmentation_sums, ("mask",)),
    "class_map": SaliencyMetric(class_map_sums, ("mask",), _finish_class_map),
    "pixel_precision": SaliencyMetric(pixel_precision_sums, ("mask",), _finish_pixel_precision),
    "pointing_game": SaliencyMetric(pointing_sums, ("mask",)),
    "pointing_game_boxes": SaliencyMetric(box_pointing_sums, ("boxes",)),
    "pointing_game_photo": SaliencyMetric(photo_pointing_sums, ("photo_sizes",)),
    "box_accuracy": SaliencyMetric(box_accuracy_sums, ("boxes",), _finish_box_accuracy),
    "parts": SaliencyMetric(part_sums, ("model",)),
    "swap": SaliencyMetric(swapped_masks.map_swap_sums, ("model",), swapped_masks.finish_swap),
    "class_specific": SaliencyMetric(
        class_specific_sums, ("model",), lambda sums: parts.class_specific_table(*sums["class_specific"])
    ),
    "deletion_insertion": SaliencyMetric(deletion_insertion_sums, ("model",)),
    "average_drop": SaliencyMetric(average_drop_sums, ("model",)),
    "road": SaliencyMetric(road_sums, ("model",)),
}


# ---- Parts of the above ----------------------------------------------------------------------------------------------


def _flat(maps: Any) -> Any:
    return maps.reshape(-1, *maps.shape[2:])  # [B * k, H, W]


def _class_truth(seen: Explained) -> tuple[jax.Array, jax.Array, np.ndarray]:
    """Each map's ground truth and weight, [B * k, H, W] both, and whether it counts, bool [B * k]."""
    truth = _flat(segmentation.class_truth(jnp.asarray(seen.mask), jnp.asarray(seen.class_ids)))
    weight = jnp.repeat(segmentation.pixel_weights(seen.mask), seen.class_ids.shape[1], axis=0)
    return truth, weight, seen.counted.ravel()


def _has_clear_box(seen: Explained) -> np.ndarray:
    of_class = seen.boxes.class_ids[:, None, :] == seen.class_ids[:, :, None]  # [B, k, n]
    return (of_class & ~seen.boxes.ignored[:, None, :]).any(axis=2)


def _pointing(seen: Explained, truth: jax.Array, weight: jax.Array, counted: np.ndarray) -> Sums:
    return _pointing_sums(
        _flat(seen.saliency), _flat(seen.masks), truth, weight, seen.class_ids, seen.label, counted, seen.num_classes
    )


@functools.partial(jax.jit, static_argnames="num_classes")
def _pointing_sums(saliency, masks, truth, weight, class_ids, label, counted, num_classes) -> Sums:
    regions = (truth * weight).reshape(*class_ids.shape, *truth.shape[1:])  # [B, k, H, W]
    difficult = localisation.difficult_maps(regions, label).ravel()
    hit, defined = localisation.pointing_game(saliency, truth, weight)
    values = {
        "pointing_game": (hit, defined),
        "pointing_game_difficult": (hit, defined & difficult),
        "pointing_game_strict": localisation.pointing_game_strict(saliency, truth, weight),
        "energy_pointing_game": localisation.energy_pointing_game(masks, truth, weight),
    }
    return {name: class_sum_and_count(*pair, class_ids.ravel(), counted, num_classes) for name, pair in values.items()}


@jax.jit
def _on_parts(scores, probabilities, images, mask) -> tuple[jax.Array, jax.Array]:
    """Probabilities [B, C] on x|m and on x|1-m."""
    mask = mask[..., None]
    return probabilities(scores(mask * images)), probabilities(scores((1 - mask) * images))


def _over_maps(seen: Explained, values: Mapping[str, jax.Array]) -> Sums:
    """Sums over counted maps of values [B, k] or curves [B, k, T]."""
    counted = seen.counted.ravel()
    return {
        name: sum_and_count(value.reshape(len(counted), *value.shape[2:]), counted, counted)
        for name, value in values.items()
    }
