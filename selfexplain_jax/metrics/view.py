"""What a predictor says of a batch: its masks, and its answers on the image, the object, the background."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import ml_collections
import numpy as np

from selfexplain_jax.metrics import classification, parts, segmentation
from selfexplain_jax.models import masking
from selfexplain_jax.types import Batch, DatasetInfo, Predictor, UserError

CLASS_MAP_BUDGET = 2**27
"""Values (4 bytes each) of class maps at image size that a batch may hold; classes beyond that are not looked at."""


class Prediction(NamedTuple):
    """A predictor's answer: scores, probabilities and the classes it names (0 and 1), each numpy float32 [B, C]."""

    scores: np.ndarray
    probabilities: np.ndarray
    decided: np.ndarray


@dataclasses.dataclass(frozen=True)
class View:
    """One batch with what the predictor says of it. Arrays are numpy's: the predictor may live on many hosts' devices.

    batch: the batch itself, padding filled.
    predictions: answers by what was shown: "image", and for a model with masks "object" (x|m), "object_INFILL" for each
      infill, "background" (x|1-m) and "ground_truth" (the annotated object, for data with masks).
    shown: the images behind "object", "background" and "ground_truth".
    truth, weight: [B, H, W], ground truth of the target mask, and 0 on void pixels.
    class_ids, masks, target: int32 [B, k], [B, k, H, W] and the target mask [B, H, W]; None for a model without masks.
    """

    batch: Batch
    predictions: dict[str, Prediction]
    shown: dict[str, np.ndarray]
    truth: np.ndarray
    weight: np.ndarray
    class_ids: np.ndarray | None = None
    masks: np.ndarray | None = None
    target: np.ndarray | None = None

    @property
    def annotated(self) -> np.ndarray:
        """float32 [B], 1 for real images with a pixel of their classes annotated: what true masks are asked about.

        Some data sets annotate a part of their images, and a crop can cut an object off.
        """
        return self.batch["valid"] * ((self.truth * self.weight) > 0).any(axis=(1, 2))


def fill_padding(batch: Batch) -> Batch:
    """Returns the batch as numpy arrays with padding rows replaced by repeated real ones, still marked valid = 0.

    So no number is computed from an empty label and the infill "other_image" never shows an empty image.

    Raises:
      UserError: no row is real, or a real one has no label.
    """
    batch = {name: np.asarray(array) for name, array in batch.items()}
    valid = batch["valid"] > 0
    real = np.flatnonzero(valid)
    if real.size == 0:
        raise UserError("A batch of the evaluation split holds no example: the split is empty.")
    unlabelled = batch["index"][real][batch["label"][real].sum(axis=1) == 0]
    if unlabelled.size:
        raise UserError(f"Examples {unlabelled[:5].tolist()} of the evaluation split have no label: leave them out.")
    places = np.arange(len(valid))
    rows = np.where(valid, places, real[places % real.size])
    return batch | {name: batch[name][rows] for name in ("image", "label", "mask")}


def look(predictor: Predictor, batch: Batch, config: ml_collections.ConfigDict, info: DatasetInfo, step: int) -> View:
    """Returns the batch with the predictor's masks, and its answers on the image and on its parts.

    Args:
      predictor: without `masks`, it is asked about the images alone.
      batch: from `fill_padding`.
      config: `config.evaluation.infill` is the filling of the headline numbers; `config.seed` draws it.
      info: the dataset's.
      step: number of the batch, which draws its fillings.

    Raises:
      UserError: a score or a mask that is not finite, outside [0, 1] or of another size.
    """
    images, infill = batch["image"], config.evaluation.infill
    predictions = {"image": predict(predictor, images, batch, info, "images")}
    truth = np.asarray(segmentation.target_truth(batch["mask"], batch["label"]))
    weight = np.asarray(segmentation.pixel_weights(batch["mask"]))
    if predictor.masks is None:
        return View(batch, predictions, {}, truth, weight)
    class_ids, masks = class_masks(predictor, batch, predictions["image"].scores)
    target = np.asarray(parts.union_of_classes(masks, class_ids, batch["label"]))

    def through(mask, objects, infill):
        return np.asarray(parts.shown(images, mask, objects, infill, config.seed, step))

    shown = {f"object_{name}": through(target, target, name) for name in masking.INFILLS}
    shown["background"] = through(1 - target, target, infill)
    if info.has_masks:
        shown["ground_truth"] = through(truth, truth, infill)
    predictions |= {name: predict(predictor, seen, batch, info, name) for name, seen in shown.items()}
    shown["object"], predictions["object"] = shown[f"object_{infill}"], predictions[f"object_{infill}"]
    return View(batch, predictions, shown, truth, weight, class_ids, masks, target)


def predict(predictor: Predictor, images: np.ndarray, batch: Batch, info: DatasetInfo, name: str) -> Prediction:
    """Returns the predictor's answer on images [B, H, W, 3] made from `batch`; `name` says in errors what they are.

    Raises:
      UserError: scores that are not [B, C] or not finite.
    """
    scores = np.asarray(predictor.scores(images), np.float32)
    expected = (len(images), info.num_classes)
    if scores.shape != expected:
        raise UserError(f"The predictor's scores have shape {scores.shape}, expected {expected} (examples, classes).")
    _check_finite(scores, batch, f"scores of {name}")
    probabilities = np.asarray(predictor.probabilities(scores), np.float32)
    decided = np.asarray(classification.decisions(scores, probabilities, info.multilabel))
    return Prediction(scores, probabilities, decided)


def class_masks(predictor: Predictor, batch: Batch, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns class ids int32 [B, k], present classes first and then by score, and their masks [B, k, H, W].

    Raises:
      UserError: more present classes than `CLASS_MAP_BUDGET` allows, or bad masks (shape, NaN, range).
    """
    examples, height, width, _ = batch["image"].shape
    count = int(np.clip(CLASS_MAP_BUDGET // (examples * height * width), 1, scores.shape[1]))
    most = int(batch["label"].sum(axis=1).max())
    if most > count:
        raise UserError(
            f"An image has {most} present classes but only {count} class maps of {examples} images fit: "
            "lower config.evaluation.batch_size."
        )
    class_ids = np.asarray(parts.candidate_classes(batch["label"], scores, count))
    return class_ids, draw_masks(predictor, batch, class_ids)


def draw_masks(predictor: Predictor, batch: Batch, class_ids: np.ndarray) -> np.ndarray:
    """Returns the predictor's masks [B, k, H, W] of the batch's images, for class ids int32 [B, k].

    Raises:
      UserError: bad masks (shape, NaN, range).
    """
    masks = np.asarray(predictor.masks(batch["image"], class_ids), np.float32)
    expected = (*class_ids.shape, *batch["image"].shape[1:3])
    if masks.shape != expected:
        raise UserError(
            f"The predictor's masks have shape {masks.shape}, expected {expected}: resize them to the image."
        )
    _check_finite(masks, batch, "masks")
    if masks.min() < -1e-4 or masks.max() > 1 + 1e-4:
        raise UserError(f"Masks must lie in [0, 1]; the predictor's reach from {masks.min():.4g} to {masks.max():.4g}.")
    return masks


def target_mask(predictor: Predictor, batch: Batch) -> np.ndarray:
    """Returns the masks of the true labels, [B, H, W]; errors as `class_masks`."""
    batch = {name: np.asarray(array) for name, array in batch.items()}
    # The scores order absent classes only, which do not matter here: no pass of the network for them.
    class_ids, masks = class_masks(predictor, batch, np.zeros_like(batch["label"]))
    return np.asarray(parts.union_of_classes(masks, class_ids, batch["label"]))


def _check_finite(values: np.ndarray, batch: Batch, what: str) -> None:
    finite = np.isfinite(values).reshape(len(values), -1).all(axis=1)
    bad = batch["index"][~finite & (batch["valid"] > 0)]
    if bad.size:
        raise UserError(
            f"The predictor's {what} hold NaN or infinity for {bad.size} examples, first {bad[:5].tolist()} of the "
            "split. Its parameters are probably not finite: look at the training curves, lower the learning rate."
        )
