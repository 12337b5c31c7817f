"""The numbers of a comparison: every metric of every method, over the images that all methods explain.

A metric of a method is written down when it is taken, and not taken again. Many hosts share the batches, and add up.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import jax
import ml_collections
import numpy as np
from absl import logging

from selfexplain_jax import evaluate, maps
from selfexplain_jax.metrics import add, view
from selfexplain_jax.metrics.explained import Explained, counted_with_truth, explained, extremes, say
from selfexplain_jax.metrics.map_metrics import MAP_METRICS, check_options, finish, measure, needs_of
from selfexplain_jax.metrics.photo_truth import PhotoTruth, check_needs, photo_truth
from selfexplain_jax.training import mesh
from selfexplain_jax.types import Batch, Dataset, DatasetInfo, UserError

EVERY_CLASS = ("class_specific", "class_map")
"""Metrics that take the maps of absent classes too."""
TRUTHS = {"mask": ("no_pixel", "full_mask"), "boxes": ("no_box", "full_box")}
"""What a metric may need -> the extremes of it that are said, see `metrics.explained.SAYING`."""
CONTROLS = ("constant", "centre", "edges", "ground_truth")
"""What a method must beat, or cannot: they win no column."""


def is_control(column: maps.Column) -> bool:
    """Whether a comparison's column shows no method, but one of `CONTROLS`."""
    return column.identity["method"] in CONTROLS


def choose_metrics(config: ml_collections.ConfigDict, info: DatasetInfo) -> dict[str, dict]:
    """Returns {metric: options} of `config.comparison.metrics`.

    Raises:
      UserError: no metric, an unknown one, one that needs what the data set does not have (`check_needs`), or more
        maps than `config.comparison.classes_per_image`.
    """
    metrics = config.comparison.metrics.to_dict()
    if not metrics:
        raise UserError(f"config.comparison.metrics is empty; there are {', '.join(MAP_METRICS)}.")
    for name in metrics:
        if name not in MAP_METRICS:
            raise UserError(f"config.comparison.metrics.{name} is unknown; there are {', '.join(MAP_METRICS)}.")
        if name in EVERY_CLASS and config.comparison.classes_per_image < info.num_classes:
            raise UserError(
                f"config.comparison.metrics.{name} needs the maps of all classes: set "
                f"config.comparison.classes_per_image = {info.num_classes}. With those of present classes alone the "
                "labels would be given away."
            )
        check_options(name, metrics[name])
        check_needs(name, needs_of(name, metrics[name]), info, config)
    return metrics


def take_metrics(
    column: maps.Column,
    metrics: Mapping[str, dict],
    dataset: Dataset,
    config: ml_collections.ConfigDict,
    folder: pathlib.Path,
    left_out: list[int],
) -> dict[str, dict]:
    """Returns the numbers of one method over the images that all explain: {metric: {"metrics", "counts", "not_finite",
    "flat_maps", "truth": {kind of `TRUTHS`: {"count", "first": [[image, class]]} of maps with that ground truth}}}.

    A metric that was taken of the same maps over the same images is read from WORKDIR/metrics/LABEL.json. One that
    raises an error has no numbers, and its "failure" is the message. All hosts must call it, and get the same.
    """
    path = folder / "metrics" / f"{column.label}.json"
    known = maps.read_kept(path)
    asked = {
        name: json.loads(json.dumps({"options": options, "left_out": left_out, "maps": column.identity}))
        for name, options in metrics.items()
    }
    missing = [
        name
        for name in metrics
        if known.get(name, {}).get("asked") != asked[name]
        # Taken before empty and full ground truth was counted.
        or ("truth" not in known[name] and set(TRUTHS) & set(needs_of(name, metrics[name])))
    ]
    # What asks the model takes minutes and more, and is written down one by one; the rest is read together.
    long = [name for name in missing if "model" in needs_of(name, metrics[name])]
    failed = {}
    for names in filter(None, [[name for name in missing if name not in long], *([name] for name in long)]):
        measured = _measure(column, {name: metrics[name] for name in names}, dataset, config, folder, left_out)
        failed |= {name: found for name, found in measured.items() if "failure" in found}
        known |= {name: {"asked": asked[name]} | measured[name] for name in names if name not in failed}
        maps.keep(path, known)
    return {name: failed.get(name) or known[name] for name in metrics}


def _truths(needs: Collection[str]) -> set[str]:
    """What a metric holds maps against, as `counted_with_truth` calls it."""
    if {"photo_sizes", "mask"} <= set(needs):
        return {"photo"}
    return {"mask", "boxes"} & set(needs)


def _measure(column, metrics, dataset, config, folder, left_out) -> dict[str, dict]:
    """Takes metrics of one method in one pass over its maps; each as `take_metrics` returns it."""
    total, noticed = {name: {} for name in metrics}, {}
    needs = {name: needs_of(name, options) for name, options in metrics.items()}
    source, failures = dataset.source(config.data.eval_split), {}
    for number, batch in maps.numbered(mesh.own_batches(dataset, config), f"metrics {column.label}"):
        with np.load(maps.map_path(folder, column, number)) as stored:
            saliency, class_ids = stored["saliency"], stored["class_ids"]
        truth = photo_truth(source, config, batch["index"], set().union(*needs.values()))
        seen = see(column, view.fill_padding(batch), class_ids, saliency, dataset, left_out, truth)
        for kind, pairs in extremes(seen).items():
            noticed.setdefault(kind, []).extend(pairs)
        rng = jax.random.fold_in(jax.random.key(config.seed), number)
        if len(failures) == len(metrics):
            break
        for name in [name for name in metrics if name not in failures]:
            kept = seen
            for annotated in _truths(needs[name]):
                # A crop can cut an object off, or nobody drew a box of it: its map has no truth to be held against.
                kept = dataclasses.replace(kept, counted=counted_with_truth(kept, annotated))
            try:
                total[name] = add(total[name], measure(name, column.predictor, kept, rng=rng, **metrics[name]))
            except Exception as error:  # noqa: BLE001 (whatever a metric raises is a failure to be reported)
                known = isinstance(error, UserError)
                logging.warning("%s of %r fails: %s", name, column.label, error, exc_info=not known)
                failures[name] = number, maps.failure_text(error)
    total, noticed, failures = _of_all_hosts(total, noticed, failures)
    flat = 0 if is_control(column) else len(noticed.get("flat", ()))
    nothing = {"metrics": {}, "counts": {}, "not_finite": []}
    return {
        name: (nothing | {"failure": failures[name]} if name in failures else _numbers(name, column, sums))
        | {"flat_maps": flat, "truth": _truth_of(needs[name], noticed)}
        for name, sums in total.items()
    }


def _truth_of(needs, noticed) -> dict[str, dict]:
    """{kind: {"count", "first"}} of what a metric with these needs is held against."""
    kinds = [kind for need in needs for kind in TRUTHS.get(need, ()) if noticed.get(kind)]
    return {kind: {"count": len(noticed[kind]), "first": noticed[kind][:5]} for kind in kinds}


def warnings_of_truth(taken: Iterable[Mapping[str, Any]]) -> list[str]:
    """Returns one sentence for each kind of `TRUTHS` that some metric of some method met; the truth is that of all.

    Args:
      taken: entries of `take_metrics`.
    """
    most: dict[str, Mapping[str, Any]] = {}
    for found in taken:
        for kind, entry in found.get("truth", {}).items():
            if entry["count"] > most.get(kind, {"count": 0})["count"]:
                most[kind] = entry
    return [
        say(kind, most[kind]["count"], most[kind]["first"])
        for kinds in TRUTHS.values()
        for kind in kinds
        if kind in most
    ]


def _of_all_hosts(total, noticed, failures):
    """What all hosts have counted and noticed together; of failures {metric: (batch, message)}, the first batch's.

    Images are in the order of the split, as one host meets them.
    """
    shares = mesh.gather((total, noticed, failures), patiently=True)
    first = {name: min(share[2][name] for share in shares if name in share[2]) for share in shares for name in share[2]}
    kinds = dict.fromkeys(kind for share in shares for kind in share[1])
    return (
        {name: functools.reduce(add, [share[0][name] for share in shares]) for name in total},
        {
            kind: sorted((pair for share in shares for pair in share[1].get(kind, ())), key=lambda pair: pair[0])
            for kind in kinds
        },
        {name: text for name, (_, text) in first.items()},
    )


def _numbers(name, column, sums) -> dict[str, Any]:
    """{"metrics", "counts", "not_finite"} of a metric's sums over all batches."""
    numbers = finish(name, sums)
    bad = [number for number, value in numbers.items() if not _is_finite(value)]
    if bad:
        logging.warning("%s of %r: %s not finite, left out.", name, column.label, ", ".join(bad))
    numbers = {number: None if number in bad else value for number, value in numbers.items()}
    counts = {number: int(np.sum(count)) for number, (_, count) in sums.items()}
    return {"metrics": evaluate.finite(numbers, name), "counts": counts, "not_finite": bad}


def _is_finite(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(_is_finite(part) for part in value.values())
    return value is None or bool(np.isfinite(np.asarray(value, np.float64)).all())


def see(
    column: maps.Column,
    batch: Batch,
    class_ids: np.ndarray,
    saliency: np.ndarray,
    dataset: Dataset,
    left_out: list[int],
    truth: PhotoTruth,
) -> Explained:
    """Returns the checked batch that metrics take, without the images that some method could not explain."""
    out = np.isin(batch["index"], left_out)
    batch = batch | {"valid": batch["valid"] * ~out}
    return explained(
        column.predictor,
        batch,
        class_ids,
        np.where(out[:, None, None, None], 0, saliency),
        scaling=column.scaling,
        has_masks=dataset.info.has_masks,
        multilabel=dataset.info.multilabel,
        # Said once for the whole comparison, and not for every method and metric.
        warn=False,
        **truth._asdict(),
    )
