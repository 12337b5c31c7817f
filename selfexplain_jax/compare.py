"""Methods side by side: one split, several models, methods and metrics, all over the same images.

First every method explains every image, and its maps are kept in WORKDIR/maps; then every metric is taken over the
images that all methods could explain. Both go on where they were interrupted. What a method could not explain is named
in the results and never counted as zero. Many hosts share the batches, each of which is the work of one of them.
"""

from __future__ import annotations

import os
import pathlib
import re
from collections import ChainMap
from collections.abc import Mapping
from typing import Any

import jax
import ml_collections
import numpy as np
from absl import logging

from selfexplain_jax import examples, image_rows, maps
from selfexplain_jax.attribution import METHODS, build_method
from selfexplain_jax.data import build_dataset
from selfexplain_jax.data.augment import fitting
from selfexplain_jax.data.balance import labels_of
from selfexplain_jax.folders import in_bucket
from selfexplain_jax.map_numbers import EVERY_CLASS, choose_metrics, is_control, take_metrics, warnings_of_truth
from selfexplain_jax.metrics import parts, segmentation, view
from selfexplain_jax.metrics.explained import SCALINGS, min_max
from selfexplain_jax.metrics.map_metrics import MAP_METRICS
from selfexplain_jax.open_models import asked_models, model_settings, open_model
from selfexplain_jax.pictures import overlay, save_grid
from selfexplain_jax.sanity_checks import check_settings, sanity_checks
from selfexplain_jax.training import mesh
from selfexplain_jax.types import Dataset, DatasetInfo, Predictor, UserError

OWN_MASKS = ("learned", "constant", "centre", "ground_truth")
"""Methods whose maps are masks already; the others' are scaled to [0, 1] map by map where a metric needs a mask."""
ANNOTATION = "ground_truth"
"""The control that comes from the data set; it stands beside METHODS."""


def compare(config: ml_collections.ConfigDict, workdir: str | os.PathLike) -> dict[str, Any]:
    """Runs the comparison that `config.comparison` describes and says what it found; maps and pictures go to WORKDIR.

    All hosts must call it, and get the same result; the first writes figure and examples.

    Returns:
      {"methods": {label: {"model": name, "asks": name of the first model with the same scores, "metrics": {name:
      value}, "counts": {name: count}, "seconds_per_image": s, "failures": [{"image": position, "message": text}],
      "not_finite": [name], "metric_failures": {metric: message}, "flat_maps": counted maps of one value alone}},
      "numbers_of": {metric: numbers that it gives}, "images": how many are in every average, "left_out": positions in
      the split of those that are not, "controls": labels of what is no method, "asks_the_model": numbers that depend on
      the classifier behind the method, "sanity_checks": of `sanity_checks.sanity_checks`, "classes_without_a_map":
      present classes that `config.comparison.classes_per_image` leaves out, "warnings": sentences about empty and full
      ground truth}. A method that failed on every image has no metrics.

    Raises:
      UserError: a workdir in a bucket; an unknown model, method, metric or option; models of other classes or image
        sizes than the data set; an empty split, or one without any image that all methods explain.
    """
    if in_bucket(workdir):
        raise UserError(f"--workdir={workdir}: a comparison keeps its maps in a folder of this machine.")
    folder, dataset = pathlib.Path(workdir).expanduser(), build_dataset(config)
    models = open_all(config, dataset.info)
    columns = make_columns(config, models, dataset.info)
    check_settings(columns, models, config)
    metrics = choose_metrics(config, dataset.info)
    total = mesh.own_batches(dataset, config).num_examples  # Refuses an empty split before anything is written.
    maps.claim_folder(folder, columns, config)
    beyond = classes_without_a_map(dataset, config)
    notes = {column.label: maps.make_maps(column, dataset, config, folder) for column in columns}
    failures = {label: maps.all_failures(of_method) for label, of_method in notes.items()}
    broken = {label for label, rows in failures.items() if len(rows) == total}
    compared = [column for column in columns if column.label not in broken]
    left_out = sorted({position for column in compared for position in failures[column.label]})
    if not compared or total == len(left_out):
        raise UserError(f"There is no image that every method could explain. {_first_failures(failures)}")
    table, asking, numbers_of, everything = {}, set(), {}, []
    for column in columns:
        listed = [{"image": position, "message": text} for position, text in failures[column.label].items()]
        row = {"model": column.model, "asks": column.asks, "failures": listed}
        if column.label not in broken:
            taken = take_metrics(column, metrics, dataset, config, folder, left_out)
            row["metrics"] = {number: value for found in taken.values() for number, value in found["metrics"].items()}
            row["counts"] = {number: count for found in taken.values() for number, count in found["counts"].items()}
            row["not_finite"] = [number for found in taken.values() for number in found["not_finite"]]
            row["metric_failures"] = {name: found["failure"] for name, found in taken.items() if "failure" in found}
            row["flat_maps"] = max((found.get("flat_maps") or 0 for found in taken.values()), default=0)
            row["seconds_per_image"] = maps.seconds_per_image(notes[column.label], config.evaluation.batch_size)
            everything += taken.values()
            numbers_of |= {name: list(found["metrics"]) for name, found in taken.items() if found["metrics"]}
            asking |= {
                n for name, found in taken.items() if "model" in MAP_METRICS[name].needs for n in found["metrics"]
            }
        table[column.label] = row
    warnings = warnings_of_truth(everything)
    for text in warnings:
        logging.warning("%s", text)
    draw(columns, dataset, config, folder)
    keep_examples(columns, dataset, config, folder)
    return {
        "methods": table,
        "numbers_of": numbers_of,
        "images": total - len(left_out),
        "left_out": left_out,
        "controls": [column.label for column in columns if is_control(column)],
        "asks_the_model": sorted(asking),
        "sanity_checks": sanity_checks(compared, models, dataset, config, folder, left_out),
        "classes_without_a_map": beyond,
        "warnings": warnings,
    }


def open_all(config: ml_collections.ConfigDict, info: DatasetInfo) -> dict[str, tuple[Predictor, list]]:
    """Returns {name: (predictor, what tells it from another one)} of the comparison's models; errors as `compare`."""
    settings = config.comparison
    if not settings.models or not settings.methods:
        raise UserError(
            "config.comparison needs models and methods; see configs/compare_synthetic.py for one that has."
        )
    return {name: open_model(name, found, config, info) for name, found in model_settings(config).items()}


def classes_without_a_map(dataset: Dataset, config: ml_collections.ConfigDict) -> int:
    """Returns how many present classes `config.comparison.classes_per_image` leaves without a map; warns of them."""
    if not dataset.info.multilabel:
        return 0
    most = config.comparison.classes_per_image
    labels = labels_of(dataset.source(config.data.eval_split))[mesh.own_batches(dataset, config).positions]
    beyond = int(np.maximum((labels > 0).sum(axis=1) - most, 0).sum())
    if beyond:
        logging.warning(
            "%d classes of images that show more than config.comparison.classes_per_image = %d have no map.",
            beyond,
            most,
        )
    return beyond


def make_columns(
    config: ml_collections.ConfigDict, models: Mapping[str, tuple[Predictor, list]], info: DatasetInfo
) -> list[maps.Column]:
    """Returns the methods of `config.comparison` for these models, learned masks first and controls last.

    Args:
      config: the comparison's.
      models: from `open_all`.
      info: the data set's.

    Raises:
      UserError: an unknown model, method or option, a label that cannot name a file, a label to leave out that is
        none, or annotated masks of a data set that has none.
    """
    settings, columns, asked = config.comparison, [], asked_models(models)
    unknown = sorted(set(settings.leave_out) - set(settings.methods))
    if unknown:
        raise UserError(
            f"config.comparison.leave_out: {unknown[0]!r} is none of config.comparison.methods: "
            f"{', '.join(settings.methods)}."
        )
    if set(settings.leave_out) == set(settings.methods):
        raise UserError("config.comparison.leave_out: no method is left.")
    for label, options in settings.methods.to_dict().items():
        if label in settings.leave_out:
            continue
        unknown = sorted(set(options) - {"model", "method", "scaling", "options"})
        if unknown:
            raise UserError(
                f"config.comparison.methods.{label}.{unknown[0]} is unknown: there are model, method, scaling, options."
            )
        name, model = options.get("method", label), options.get("model", next(iter(models)))
        if model not in models:
            raise UserError(f"config.comparison.methods.{label}.model = {model!r} is none of {', '.join(models)}.")
        if not re.fullmatch(r"[\w+-]+", label):
            raise UserError(f"config.comparison.methods.{label}: a label names files; use letters, digits and _ + -.")
        if name not in METHODS and name != ANNOTATION:
            raise UserError(
                f"config.comparison.methods.{label}.method = {name!r} is unknown; there are "
                f"{', '.join([*METHODS, ANNOTATION])}."
            )
        if name == ANNOTATION and not info.has_masks:
            raise UserError(f"config.comparison.methods.{label}: data set {info.name!r} has no annotated masks.")
        method = None if name == ANNOTATION else build_method(name, **options.get("options", {}))
        scaling = options.get("scaling", "as_is" if name in OWN_MASKS else "min_max")
        if scaling not in SCALINGS:
            raise UserError(
                f"config.comparison.methods.{label}.scaling = {scaling!r} is unknown; there are {', '.join(SCALINGS)}."
            )
        predictor, origin = models[model]
        identity = {"method": name, "model": origin, "options": dict(options.get("options", {})), "scaling": scaling}
        if name == "centre":
            # Since the box's middle pixel stands out; older maps of it are other ones.
            identity["version"] = 2
        present_only = name in maps.PER_MAP and settings.classes_per_image > 1
        if present_only and set(EVERY_CLASS) & set(settings.metrics):
            present_only, identity["absent_classes"] = False, True
        columns.append(maps.Column(label, model, asked[model], predictor, method, scaling, identity, present_only))
    return sorted(columns, key=_place)


def _place(column: maps.Column) -> tuple[bool, bool]:
    """Returns what orders tables and figures: learned masks, then other methods, then controls, by label in each."""
    return is_control(column), column.identity["method"] != "learned"


def draw(columns: list[maps.Column], dataset: Dataset, config: ml_collections.ConfigDict, folder: pathlib.Path) -> None:
    """Writes WORKDIR/pictures/comparison.png and .pdf: a row for each class of some images, a column for each method.

    Maps that are no masks are scaled to 0..1 one by one; a method that failed has "failed" in its cell. All hosts must
    call it: each has the maps of its own batches.
    """
    evaluated = mesh.own_batches(dataset, config)
    wanted = min(config.comparison.figure_images, evaluated.num_examples)
    if not wanted:
        return
    # The images that are shown are read again, and no others.
    source, own_sizes = dataset.source(config.data.eval_split), dataset.info.own_sizes
    fit = fitting(config) if own_sizes else lambda example: example
    rows = {}
    for place in examples.evenly_spaced(evaluated.num_examples, wanted).tolist():
        number, row = divmod(place, config.evaluation.batch_size)
        if number not in evaluated.numbers:
            continue
        example, drawn = fit(source[int(evaluated.positions[place])]), {}
        for column in columns:
            with np.load(maps.map_path(folder, column, number)) as stored:
                drawn[column.label], class_ids = stored["saliency"][row], stored["class_ids"][row]
        image = example["image"].astype(np.float32) / 255
        rows[place] = []
        for k in np.flatnonzero(example["label"][class_ids] > 0):
            cells = {"image": image}
            for column in columns:
                saliency = drawn[column.label][k]
                mask = saliency if column.scaling == "as_is" else np.asarray(min_max(saliency))
                cells[column.label] = overlay(image, mask) if np.isfinite(saliency).all() else "failed"
            rows[place].append((dataset.info.class_names[class_ids[k]], cells))
    found = ChainMap(*mesh.gather(rows))
    if jax.process_index() == 0:
        titled = [row for place in sorted(found) for row in found[place]]
        names = ["image", *(column.label for column in columns)]
        cells = {name: [of_row[name] for _, of_row in titled] for name in names}
        save_grid(folder / "pictures" / "comparison.png", cells, [title for title, _ in titled], also=(".pdf",))


def keep_examples(
    columns: list[maps.Column], dataset: Dataset, config: ml_collections.ConfigDict, folder: pathlib.Path
) -> None:
    """Writes WORKDIR/examples.json and .npz, see `examples.py`; learned masks rank images, else the first method.

    All hosts must call it; the first writes.
    """
    batches, count = mesh.own_batches(dataset, config), config.evaluation.examples
    if not count:
        return
    ranking = [column.label for column in columns if not is_control(column)]
    collector = examples.Collector(
        dataset.info.class_names,
        [column.label for column in columns],
        ranking[0] if ranking and dataset.info.has_masks else None,
        count,
        batches.positions,
    )
    for number, batch in maps.numbered(batches, "examples"):
        _collect(collector, columns, number, view.fill_padding(batch), dataset.info, config, folder)
    others = mesh.gather(collector, patiently=True)
    if jax.process_index() == 0:
        for other in others[1:]:
            collector.merge(other)
        examples.write_collected(folder, collector, dataset.source(config.data.eval_split))


def _collect(collector, columns, number, batch, info, config, folder) -> None:
    """Hands a batch with the maps of all methods to the collector."""
    predictors = {column.model: column.predictor for column in columns}
    told = {model: view.predict(p, batch["image"], batch, info, "images") for model, p in predictors.items()}
    with np.load(maps.map_path(folder, columns[0], number)) as stored:
        class_ids = stored["class_ids"]  # [B, k], the same for every method
    # Of an image's classes some may have no map: neither mask nor truth is theirs.
    label = np.zeros_like(batch["label"])
    np.put_along_axis(label, class_ids, np.take_along_axis(batch["label"], class_ids, axis=1), axis=1)
    truth, weight = segmentation.target_truth(batch["mask"], label), segmentation.pixel_weights(batch["mask"])
    masks, finite, iou = [], [], {}
    for column in columns:
        with np.load(maps.map_path(folder, column, number)) as stored:
            saliency = stored["saliency"]
        finite.append(np.isfinite(saliency).all(axis=(2, 3)))  # [B, k]
        saliency = np.where(finite[-1][..., None, None], saliency, 0)
        masks.append(saliency if column.scaling == "as_is" else np.asarray(min_max(saliency)))
        target = parts.union_of_classes(masks[-1], class_ids, label)
        iou[column.label] = np.where(finite[-1].all(axis=1), image_rows.iou_or_none(target, truth, weight), None)
    place_of = {int(batch["index"][row]): row for row in np.flatnonzero(batch["valid"] > 0)}
    rows = {
        position: examples.row_of(
            batch["label"][row],
            {model: (seen.probabilities[row], seen.decided[row]) for model, seen in told.items()},
            {label: values[row] for label, values in iou.items()},
        )
        for position, row in place_of.items()
    }

    def pictures_of(position: int) -> examples.Kept:
        row = place_of[position]
        image = image_rows.visible(batch["image"][row], config)
        ids = class_ids[row, : examples.CLASSES_PER_IMAGE]
        ids = np.where(batch["label"][row, ids] > 0, ids, -1)
        maps_of_row, drawn = (np.stack([array[row, : len(ids)] for array in arrays]) for arrays in (masks, finite))
        return examples.keep(image, batch["mask"][row], ids, maps_of_row, drawn)

    collector.add(rows, pictures_of)


def _first_failures(failures: Mapping[str, Mapping[int, str]]) -> str:
    return " ".join(f"{label}: {next(iter(rows.values()))}." for label, rows in failures.items() if rows)
