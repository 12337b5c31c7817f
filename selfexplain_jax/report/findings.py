"""What numbers say, in sentences: the encoding audit, and where predictions and masks fail."""

from __future__ import annotations

import collections
import math
from collections.abc import Mapping
from typing import Any

from selfexplain_jax.examples import Examples, lowest_iou, wrong_predictions

SURE = 2.0
"""Standard errors of a difference of two rates, beyond which it is called one."""
MOST_CONFUSIONS = 8
IOU_BINS = 10


def audit_findings(metrics: Mapping[str, Any], counts: Mapping[str, int]) -> list[dict[str, str]]:
    """Returns {"title", "text", "verdict"} of each part of the encoding audit that there are numbers of.

    The verdict is "speaks against encoding", "speaks for encoding", "no difference that can be told" or "" where there
    is nothing to hold the number against. Differences are called one beyond SURE standard errors.
    """
    found = []
    if "swap_owner_rate" in metrics:
        found.append(_swap(metrics, counts))
    if "mask_only_accuracy" in metrics:
        found.append(_mask_only(metrics, counts))
    if "evaluator_accuracy" in metrics:
        found.append(_evaluator(metrics))
    return found


def confusion_rows(found: Mapping[str, Any]) -> tuple[list[str], list[list]]:
    """Returns (header, rows) of the most frequent mistakes of `failure_findings`; no rows where there are none."""
    return ["label", "predicted", "times"], [list(row) for row in found["confusions"]]


def _swap(metrics, counts) -> dict[str, str]:
    rate, truth = metrics["swap_owner_rate"], metrics.get("swap_owner_rate_ground_truth")
    text = (
        "Laid over an image of another class, a mask makes the network name the mask's own class in "
        f"{rate:.1%} of the cases"
    )
    if truth is not None:
        text += f"; a true outline does so in {truth:.1%}, which is the shape's own share"
    if "swap_pixel_rate" in metrics:
        text += f". In {metrics['swap_pixel_rate']:.1%} the prediction follows the pixels, as it should"
    return {
        "title": "Swapped masks",
        "text": text + ".",
        "verdict": _verdict(rate, truth, counts.get("swap_owner_rate")),
    }


def _mask_only(metrics, counts) -> dict[str, str]:
    rate, truth = metrics["mask_only_accuracy"], metrics.get("mask_only_accuracy_ground_truth")
    text = f"A small classifier that sees nothing but masks names the class in {rate:.1%} of the images"
    if truth is not None:
        text += f"; one that sees true outlines does in {truth:.1%}, a difference of {100 * (rate - truth):+.1f} points"
    return {
        "title": "Masks alone",
        "text": text + ".",
        "verdict": _verdict(rate, truth, counts.get("mask_only_accuracy")),
    }


def _evaluator(metrics) -> dict[str, str]:
    text = (
        "A separate classifier that was trained under random masks, and so cannot know this network's, recognises "
        f"{metrics['evaluator_accuracy']:.1%} of the masked objects"
    )
    beside = []
    if "evaluator_accuracy_full_image" in metrics:
        beside.append(f"{metrics['evaluator_accuracy_full_image']:.1%} of the whole images")
    if "evaluator_accuracy_ground_truth" in metrics:
        beside.append(f"{metrics['evaluator_accuracy_ground_truth']:.1%} of the true objects")
    text += f", against {' and '.join(beside)}" if beside else ""
    if "object_accuracy" in metrics:
        text += f"; the network itself recognises {metrics['object_accuracy']:.1%} of its masked objects"
    return {"title": "A second opinion", "text": text + ".", "verdict": ""}


def _verdict(rate: float, truth: float | None, count: int | None) -> str:
    if truth is None or not count:
        return ""
    error = math.sqrt((rate * (1 - rate) + truth * (1 - truth)) / count)
    if abs(rate - truth) <= SURE * error:
        return "no difference that can be told"
    return "speaks for encoding" if rate > truth else "speaks against encoding"


def failure_findings(kept: Examples) -> dict[str, Any]:
    """Returns how often and where predictions and masks fail, over all images of the split.

    Returns:
      {"images", "wrong": how many, "confusions": [(label, named, times)] the most frequent first, "histogram": images
      by IoU in IOU_BINS equal steps of 0..1 (empty without annotation), "below_half": images with an IoU below .5,
      "measured": images with an IoU}.
    """
    names, pairs = kept.class_names, collections.Counter()
    wrong = wrong_predictions(kept.rows)
    for position in wrong:
        row = kept.rows[position]
        for told in row["predictions"].values():
            missed, named = set(row["labels"]) - set(told["classes"]), set(told["classes"]) - set(row["labels"])
            pairs.update((label, other) for label in missed or {None} for other in named or {None})
    pairs.pop((None, None), None)  # Another model had this image right.

    def name(class_id, without):
        return without if class_id is None else names[class_id]

    confusions = [
        (name(label, "nothing missed"), name(other, "no class"), times)
        for (label, other), times in pairs.most_common(MOST_CONFUSIONS)
    ]
    measured = [kept.rows[position]["iou"][kept.ranked_by] for position in lowest_iou(kept.rows, kept.ranked_by)]
    histogram = collections.Counter(min(int(value * IOU_BINS), IOU_BINS - 1) for value in measured)
    return {
        "images": len(kept.rows),
        "wrong": len(wrong),
        "confusions": confusions,
        "histogram": [histogram[place] for place in range(IOU_BINS)] if measured else [],
        "below_half": sum(value < 0.5 for value in measured),
        "measured": len(measured),
    }
