"""Evaluation of a classifier and its masks over a split: numbers with counts, controls, pictures and results.json."""

from __future__ import annotations

import functools
import json
import math
import os
from collections import ChainMap
from collections.abc import Mapping
from typing import Any

import jax
import ml_collections
import numpy as np
from absl import logging

from selfexplain_jax import examples, image_rows, progress
from selfexplain_jax.folders import open_folder, write_whole
from selfexplain_jax.metrics import (
    add,
    audit,
    class_sums,
    classification,
    mask_sums,
    mean,
    parts,
    refinement,
    segmentation,
    swapped_masks,
    view,
)
from selfexplain_jax.models import masking
from selfexplain_jax.provenance import provenance
from selfexplain_jax.training import mesh
from selfexplain_jax.types import Dataset, DatasetInfo, Predictor, SumCount, UserError


def evaluate(
    predictor: Predictor,
    dataset: Dataset,
    config: ml_collections.ConfigDict,
    *,
    pictures_dir: str | os.PathLike | None = None,
    examples_dir: str | os.PathLike | None = None,
) -> dict[str, Any]:
    """Returns the metrics of a predictor on `config.data.eval_split`.

    Without masks in the dataset, or without a predictor that explains itself, the numbers that need them are absent and
    the log says so. On many hosts each evaluates a share of the batches, all get the same result, and the first writes
    pictures and examples; all must call it. The audit's classifiers are trained by each host for itself.

    Args:
      predictor: what to evaluate.
      dataset: it and the predictor must agree on classes and image size.
      config: `config.data`, `config.evaluation` and `config.seed` are read.
      pictures_dir: folder that gets `pictures.png` and, if the model has masks and the data few classes, the masks of
        all of them side by side, `class_masks.png` (see `image_rows.class_mask_row`); None: no pictures.
      examples_dir: folder that gets `examples.json` and `examples.npz`, see `examples.py`; None: they are not kept.

    Returns:
      {name: number, or list for a curve}, and "counts" {name: examples (or pairs of example and class) behind the
      number} and, for data with masks, "controls" {control: {name: number}}.

    Raises:
      UserError: the predictor and the dataset disagree, an example has no label, or a score or a mask is not finite
        or has the wrong size.
    """
    info, settings = dataset.info, config.evaluation
    check_predictor(predictor, info)
    masking.check_infills((config.evaluation.infill,), "config.evaluation.infill")
    batches = mesh.own_batches(dataset, config)
    if predictor.masks is None:
        logging.warning("The model makes no masks: classification alone is evaluated.")
    elif not info.has_masks:
        logging.warning("Dataset %r has no masks: segmentation and localisation are left out.", info.name)
    classifiers = None
    if predictor.masks is not None and settings.audit:
        logging.info("Training the classifiers of the encoding audit, audit_steps = %d.", settings.audit_steps)
        classifiers = audit.train_audit(lambda batch: view.target_mask(predictor, batch), dataset, config)

    collector = None
    if examples_dir is not None and settings.examples:
        methods = [] if predictor.masks is None else [image_rows.TARGET_MASK]
        collector = examples.Collector(
            info.class_names, methods, image_rows.TARGET_MASK if methods else None, settings.examples, batches.positions
        )
    pairs, tables, drawn, of_classes = {}, {}, {}, {}
    shown = min(settings.pictures if pictures_dir is not None else 0, batches.num_examples)
    to_draw = set(batches.positions[examples.evenly_spaced(batches.num_examples, shown)].tolist())
    # By its number among all hosts' batches, a batch has the same random numbers wherever it is evaluated.
    for step, batch in zip(batches.numbers, progress.counted(batches, "evaluate"), strict=True):
        seen = view.look(predictor, view.fill_padding(batch), config, info, step)
        pairs = add(pairs, _classification(seen))
        if predictor.masks is not None:
            pairs = add(pairs, _parts(seen) | _swaps(predictor, seen, config, info, step))
            if info.has_masks:
                pairs = add(pairs, _localisation(seen, info) | _control_parts(predictor, seen, config, info, step))
                if settings.refine_rounds > 0:
                    pairs = add(pairs, refinement.refined_sums(predictor, seen, info, settings))
        if classifiers is not None:
            pairs = add(pairs, _audit(classifiers, seen, info))
        real = np.flatnonzero(seen.batch["valid"] > 0)
        tables[step] = seen.predictions["image"].probabilities[real], seen.batch["label"][real]
        for row, position in zip(real, seen.batch["index"][real].tolist(), strict=True):
            if position in to_draw:
                drawn[position] = image_rows.picture_row(seen, row, config, info)
                of_classes[position] = image_rows.class_mask_row(seen, row, config, info)
        if collector is not None:
            image_rows.collect(collector, seen, real, config, info)
    shares = mesh.gather((pairs, tables, drawn, of_classes, collector))
    pairs = functools.reduce(add, [share[0] for share in shares], {})
    tables, drawn, of_classes = (dict(ChainMap(*(share[place] for share in shares))) for place in (1, 2, 3))
    for host, share in enumerate(shares):
        if collector is not None and host != jax.process_index():
            collector.merge(share[4])
    if jax.process_index() == 0:
        if drawn:
            image_rows.draw_rows(open_folder(pictures_dir) / "pictures.png", in_order(drawn))
        if drawn and None not in of_classes.values():
            image_rows.draw_rows(open_folder(pictures_dir) / "class_masks.png", in_order(of_classes))
        if collector is not None:
            examples.write_collected(open_folder(examples_dir), collector, dataset.source(config.data.eval_split))
    return _finish(pairs, in_order(tables), info)


def in_order(found: Mapping[int, Any]) -> list[Any]:
    """The values of a dictionary, by number."""
    return [found[number] for number in sorted(found)]


def write_results(
    path: str | os.PathLike,
    config: ml_collections.ConfigDict,
    metrics: Mapping[str, Any],
    *,
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Writes results.json: metrics, counts, config, seed, commit, dirty, versions, and what is in `extra`.

    The file appears whole or not at all.

    Args:
      path: file to write; its folder is made.
      config: what made the numbers.
      metrics: from `evaluate`; its "counts" are moved to the top.
      extra: further top-level entries; "train_seconds" and "steps" also go to the metrics.

    Raises:
      UserError: a metric or an extra entry is NaN or infinite, or an extra entry has the name of another one.
    """
    metrics, extra = dict(metrics), dict(extra or {})
    counts = metrics.pop("counts", {})
    metrics |= {name: extra[name] for name in ("train_seconds", "steps") if name in extra}
    results = {"metrics": finite(metrics, "metrics"), "counts": finite(counts, "counts")} | provenance(config)
    clash = sorted(set(results) & set(extra))
    if clash:
        raise UserError(f"extra holds {clash}, which results.json already has: rename them.")
    results |= finite(extra, "extra")
    write_whole(open_folder(path), (json.dumps(results, indent=2, allow_nan=False) + "\n").encode())


def read_results(path: str | os.PathLike) -> dict[str, Any]:
    """Returns the content of a results.json.

    Raises:
      UserError: the file does not exist or is not the JSON of an evaluation.
    """
    path = open_folder(path)
    if not path.is_file():
        raise UserError(f"Results file {str(path)!r} does not exist. An evaluation writes it: --mode=evaluate.")
    try:
        results = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"Results file {str(path)!r} is not JSON ({error}). Evaluate again.") from error
    if not isinstance(results, dict) or "metrics" not in results:
        raise UserError(f"Results file {str(path)!r} has no entry 'metrics': it is not from an evaluation.")
    return results


def check_predictor(predictor: Predictor, info: DatasetInfo, name: str = "The predictor") -> None:
    """Holds a predictor against the data set that it is to be measured on; `name` begins the message.

    Raises:
      UserError: other classes, another order of them, or another image size.
    """
    if tuple(predictor.class_names) != tuple(info.class_names) or predictor.image_size != info.image_size:
        raise UserError(
            f"{name} knows {predictor.num_classes} classes at {predictor.image_size} px, but dataset "
            f"{info.name!r} has {info.num_classes} at {info.image_size} px, or their names differ."
        )


def _classification(seen: view.View) -> dict[str, SumCount]:
    label, valid, image = seen.batch["label"], seen.batch["valid"], seen.predictions["image"]
    return {
        "accuracy": classification.accuracy_sums(image.decided, label, valid),
        "label_confusion": (classification.label_confusion(image.decided, label, valid), 0),
    }


def _parts(seen: view.View) -> dict[str, SumCount]:
    label, valid, predictions = seen.batch["label"], seen.batch["valid"], seen.predictions
    shown = {f"object_accuracy_{infill}": f"object_{infill}" for infill in masking.INFILLS}
    if "ground_truth" in predictions:
        shown["object_accuracy_ground_truth"] = "ground_truth"
    asked = {name: seen.annotated if part == "ground_truth" else valid for name, part in shown.items()}
    sums = {
        name: classification.accuracy_sums(predictions[part].decided, label, asked[name])
        for name, part in shown.items()
    }
    return sums | _sums_of_parts(seen.target, predictions["object"], predictions["background"], label, valid)


def _sums_of_parts(
    mask: np.ndarray, on_object: view.Prediction, on_background: view.Prediction, label: np.ndarray, valid: np.ndarray
) -> dict[str, SumCount]:
    """What is counted of x|m and x|1-m, for the model's mask and for every control."""
    return {
        "object_accuracy": classification.accuracy_sums(on_object.decided, label, valid),
        "background_accuracy": classification.accuracy_sums(on_background.decided, label, valid),
    } | parts.part_sums(mask, on_object.probabilities, on_background.probabilities, label, valid)


def _swaps(
    predictor: Predictor, seen: view.View, config: ml_collections.ConfigDict, info: DatasetInfo, step: int
) -> dict[str, SumCount]:
    batch, infill = seen.batch, config.evaluation.infill
    # Masks and true masks of the same images, so that the gap is between these.
    asked = seen.annotated if info.has_masks else batch["valid"]
    partner, exists = (np.asarray(array) for array in swapped_masks.swap_partners(batch["label"], asked))
    masks = {"": seen.target} | ({"_ground_truth": seen.truth} if info.has_masks else {})
    sums = {}
    for suffix, mask in masks.items():
        pasted = parts.shown(batch["image"][partner], mask, mask[partner], infill, config.seed, step)
        prediction = view.predict(predictor, np.asarray(pasted), batch, info, f"images under swapped masks{suffix}")
        sums |= swapped_masks.swap_sums(prediction.decided, batch["label"], partner, exists, asked, suffix)
    return sums


def _localisation(seen: view.View, info: DatasetInfo) -> dict[str, SumCount]:
    label, valid, mask = (seen.batch[name] for name in ("label", "valid", "mask"))
    # Present classes come first among the candidates: one map per image will do where one class is present.
    present = seen.class_ids.shape[1] if info.multilabel else 1
    class_ids, masks = seen.class_ids[:, :present], seen.masks[:, :present]
    sums = dict(mask_sums(seen.target, seen.truth, seen.weight, valid))
    sums |= class_sums(masks, class_ids, label, mask, valid, info.num_classes)
    predicted = parts.union_of_classes(seen.masks, seen.class_ids, seen.predictions["image"].decided)
    sums["iou_predicted"] = mask_sums(predicted, seen.truth, seen.weight, valid)["iou"]
    classes = segmentation.class_map(seen.masks, seen.class_ids)
    sums["pixel_confusion"] = (segmentation.pixel_confusion(classes, mask, valid, info.num_classes), 0)

    targets = segmentation.control_maps(seen.truth)
    of_classes = segmentation.control_maps(segmentation.class_truth(mask, class_ids))
    for name in targets:
        control = dict(mask_sums(targets[name], seen.truth, seen.weight, valid))
        control |= class_sums(of_classes[name], class_ids, label, mask, valid, info.num_classes)
        sums |= {f"controls/{name}/{metric}": pair for metric, pair in control.items()}
    return sums


def _control_parts(
    predictor: Predictor, seen: view.View, config: ml_collections.ConfigDict, info: DatasetInfo, step: int
) -> dict[str, SumCount]:
    """What the predictor says of the parts that each control would leave."""

    def answer(kept, mask, name):
        through = parts.shown(seen.batch["image"], kept, mask, config.evaluation.infill, config.seed, step)
        return view.predict(predictor, np.asarray(through), seen.batch, info, name)

    sums = {}
    for name, mask in segmentation.control_maps(seen.truth).items():
        # The true objects have been asked about; and half of an image leaves the same half.
        known = seen.predictions["ground_truth"] if name == "ground_truth" else None
        on_object = known or answer(mask, mask, f"objects by {name}")
        on_background = on_object if name == "all_half" else answer(1 - mask, mask, f"backgrounds by {name}")
        asked = seen.annotated if name == "ground_truth" else seen.batch["valid"]
        control = _sums_of_parts(mask, on_object, on_background, seen.batch["label"], asked)
        sums |= {f"controls/{name}/{metric}": pair for metric, pair in control.items()}
    return sums


def _audit(classifiers: audit.AuditClassifiers, seen: view.View, info: DatasetInfo) -> dict[str, SumCount]:
    return audit.audit_sums(
        classifiers,
        seen.batch["label"],
        seen.batch["valid"],
        info.multilabel,
        annotated=seen.annotated if info.has_masks else None,
        images=seen.batch["image"],
        object_images=seen.shown["object"],
        mask=seen.target,
        truth=seen.truth if info.has_masks else None,
        truth_images=seen.shown.get("ground_truth"),
    )


def _finish(pairs: Mapping[str, SumCount], tables: list, info: DatasetInfo) -> dict[str, Any]:
    """Divides the sums, and adds what needs the whole data set at once."""
    pairs = dict(pairs)
    label_confusion = pairs.pop("label_confusion")[0]
    confusions = {
        miou: pairs.pop(name)[0]
        for miou, name in {f"miou{suffix}": f"pixel_confusion{suffix}" for suffix in ("", "_named", "_refined")}.items()
        if name in pairs
    }
    probabilities, label = (np.concatenate(arrays) for arrays in zip(*tables, strict=True))  # [N, C] each
    metrics: dict[str, Any] = {"counts": {"examples": len(label)}}
    if info.multilabel:
        metrics["label_f1_macro"], metrics["label_f1_micro"] = classification.label_f1(label_confusion)
        metrics["mean_average_precision"] = classification.mean_average_precision(probabilities, label)
    metrics |= {name: segmentation.mean_iou(confusion) for name, confusion in confusions.items()}
    for path, pair in pairs.items():
        *control, name = path.removeprefix("controls/").split("/")
        value = mean(pair)
        if not control:
            metrics["counts"][name] = int(np.sum(pair[1]))
        if value is None:
            logging.warning("No example has what %r asks for: it is left out of the results.", path)
            continue
        table = metrics.setdefault("controls", {}).setdefault(control[0], {}) if control else metrics
        table[name] = value
    for name in ("mask_only_accuracy", "swap_owner_rate"):
        if name in metrics and f"{name}_ground_truth" in metrics:
            gap = metrics[name] - metrics[f"{name}_ground_truth"]
            metrics[f"{name.removesuffix('_accuracy').removesuffix('_rate')}_gap"] = gap
    return metrics


def finite(value: Any, name: str) -> Any:
    """Returns plain JSON values.

    Raises:
      UserError: a NaN or an infinity, named by its path below `name`.
    """
    if isinstance(value, Mapping):
        return {str(key): finite(item, f"{name}.{key}") for key, item in value.items()}
    if isinstance(value, np.ndarray) or hasattr(value, "__array__"):
        value = np.asarray(value).tolist()
    if isinstance(value, list | tuple):
        return [finite(item, f"{name}[{place}]") for place, item in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{name} is {value}: results.json takes finite numbers only. Find out where it comes from.")
    return value
