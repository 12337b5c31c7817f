"""The sanity checks of a comparison: how much of a method's maps is left when its model is taken away layer by layer.

`metrics/sanity.py` has the checks (Adebayo et al. 2018); here they get the models, layers and images of a comparison,
by `config.comparison.sanity_checks`. What was checked is kept in WORKDIR/sanity_checks and not computed again.
"""

from __future__ import annotations

import functools
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from absl import logging

from selfexplain_jax import maps, progress
from selfexplain_jax.folders import write_whole
from selfexplain_jax.metrics import add, mean, sanity, view
from selfexplain_jax.training.state import bound_to, with_variables
from selfexplain_jax.types import Dataset, Predictor, UserError

OPENED = ("backbone",)
"""Modules whose own modules are layers; every other module of a network is one layer."""
REDRAWN_SEED = 1
"""Folded into the comparison's seed for the freshly initialised networks."""


def sanity_checks(
    columns: Sequence[maps.Column],
    predictors: Mapping[str, Predictor],
    dataset: Dataset,
    config: ml_collections.ConfigDict,
    folder: pathlib.Path,
    left_out: Sequence[int],
) -> dict[str, dict[str, Any]]:
    """Returns what the checks say of each method of `config.comparison.sanity_checks.methods`.

    Of every image the first present class is explained; images that some method could not explain are left out.

    Args:
      columns: of the comparison.
      predictors: {name of a model: its predictor}.
      dataset: whose evaluation split is explained.
      config: the comparison's.
      folder: the comparison's.
      left_out: positions in the split.

    Returns:
      {label: {"images": maps counted, "checks": {"cascading" or "independent": {last layer redrawn: {name in
      `sanity.SIMILARITIES`: value}}, "random_labels": the same of one model}}}, or {label: {"failure": message}}.

    """
    settings = config.comparison.sanity_checks
    if not settings.images:
        return {}
    random_labels, found = dict(settings.random_labels), {}
    for column in checked_columns(columns, config):
        label = column.label
        other = predictors.get(random_labels.get(column.model, ""))
        path = folder / "sanity_checks" / f"{label}.json"
        key = {"of": column.identity, "settings": settings.to_dict(), "left_out": list(left_out)}
        key = json.loads(json.dumps(key))
        known = json.loads(path.read_text()) if path.is_file() else {}
        if known.get("asked") != key:
            known = {"asked": key, "found": check_method(column, other, dataset, config, left_out)}
            if "failure" not in known["found"]:
                write_whole(path, json.dumps(known, indent=1).encode())
        found[label] = known["found"]
    return found


def checked_columns(columns: Sequence[maps.Column], config: ml_collections.ConfigDict) -> list[maps.Column]:
    """Returns the columns that are checked: those named, else all but those that take a time for every map.

    The data set's own masks ask no model and are never checked.
    """
    named = config.comparison.sanity_checks.methods
    return [
        column
        for column in columns
        if column.method is not None
        and (column.label in named if named else column.identity["method"] not in maps.PER_MAP)
    ]


def check_settings(
    columns: Sequence[maps.Column], predictors: Mapping[str, Predictor], config: ml_collections.ConfigDict
) -> None:
    """Raises a UserError where `config.comparison.sanity_checks` names what is not there, or a number that is none."""
    settings = config.comparison.sanity_checks
    if settings.images < 0 or settings.stages < 1:
        raise UserError("config.comparison.sanity_checks needs images >= 0 and stages >= 1.")
    random_labels = settings.random_labels.to_dict()
    check_names("methods", settings.methods, {column.label: column for column in columns})
    check_names("random_labels", [*random_labels, *random_labels.values()], predictors)


def check_names(setting: str, names: Sequence[str], there: Mapping[str, Any]) -> None:
    """Raises a UserError that lists what is there, where a name is not."""
    unknown = [name for name in names if name not in there]
    if unknown:
        raise UserError(
            f"config.comparison.sanity_checks.{setting} names {', '.join(map(repr, unknown))}; the comparison has "
            f"{', '.join(there)}."
        )


def check_method(
    column: maps.Column,
    random_labels: Predictor | None,
    dataset: Dataset,
    config: ml_collections.ConfigDict,
    left_out: Sequence[int],
) -> dict[str, Any]:
    """Returns {"images", "checks"} of one method, or {"failure": message}; see `sanity_checks`."""
    try:
        checks = checks_of(column, random_labels, config)
        totals: dict[str, dict] = {name: {} for name in checks}
        images_counted = 0
        for images, class_ids, counted, rng in checked_batches(column, dataset, config, left_out):
            images_counted += int(counted.sum())
            for name, check in checks.items():
                totals[name] = add(totals[name], check(images, class_ids, counted=counted, rng=rng))
    except Exception as error:  # noqa: BLE001 (whatever a method raises is a failure to be reported)
        known = isinstance(error, UserError)
        logging.warning("Sanity checks of %r fail: %s", column.label, error, exc_info=not known)
        return {"failure": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"}
    found = {name: by_stage(totals[name]) for name in ("cascading", "independent")}
    if "random_labels" in totals:
        found["random_labels"] = {name: mean(pair) for name, pair in totals["random_labels"].items()}
    return {"images": images_counted, "checks": found}


def checks_of(
    column: maps.Column, random_labels: Predictor | None, config: ml_collections.ConfigDict
) -> dict[str, Callable]:
    """Returns {name: (images, class_ids, *, counted, rng) -> sums} of the checks that this method takes."""
    learned = column.identity["method"] == "learned"
    predictor = column.predictor
    model, variables = bound_to(predictor.masks if learned else predictor.scores)
    size = predictor.image_size
    seed = jax.random.fold_in(jax.random.key(config.seed), REDRAWN_SEED)
    fresh = jax.jit(functools.partial(model.init, train=False))(seed, jnp.zeros((1, size, size, 3)))
    redrawn = {name: fresh[name] for name in variables}
    stages = stages_of(top_down(model, variables, size), config.comparison.sanity_checks.stages)
    paths = {name: paths_of(layers, variables) for name, layers in stages.items()}
    names = {path: name for name, path in paths.items()}

    def randomised(independent: bool) -> Callable:
        def check(images, class_ids, *, counted, rng):
            sums = sanity.randomisation_sums(
                lambda changed: with_variables(predictor, variables, changed),
                variables,
                redrawn,
                list(names),
                column.method,
                images,
                class_ids,
                counted=counted,
                rng=rng,
                independent=independent,
            )
            # "ssim/params/head, ..." becomes "ssim/head".
            split = {key: key.split("/", 1) for key in sums}
            return {f"{split[key][0]}/{names[split[key][1]]}": pair for key, pair in sums.items()}

        return check

    checks = {"cascading": randomised(False), "independent": randomised(True)}
    if random_labels is not None:
        checks["random_labels"] = functools.partial(sanity.random_label_sums, predictor, random_labels, column.method)
    return checks


def checked_batches(column: maps.Column, dataset: Dataset, config: ml_collections.ConfigDict, left_out: Sequence[int]):
    """Yields (images, class_ids [B, 1], counted [B, 1], rng) of the first images of the split, in whole batches."""
    wanted = config.comparison.sanity_checks.images
    for number, batch in enumerate(progress.counted(maps.evaluation(dataset, config), f"sanity {column.label}")):
        if number * config.evaluation.batch_size >= wanted:
            return
        batch = view.fill_padding(batch)
        class_ids = maps.present_classes(batch["label"], 1)
        present = np.take_along_axis(batch["label"], class_ids, axis=1) > 0
        counted = present & (batch["valid"][:, None] > 0) & ~np.isin(batch["index"], left_out)[:, None]
        place = number * config.evaluation.batch_size + np.arange(len(counted))
        rng = jax.random.fold_in(jax.random.key(config.seed), number)
        yield jnp.asarray(batch["image"]), class_ids, counted & (place < wanted)[:, None], rng


def top_down(model: nn.Module, variables: Mapping[str, Any], size: int) -> list[str]:
    """Returns the network's layers with parameters, "backbone/block_3" and so on, from what is computed last to first.

    A layer is a module of the network, or one of a module in `OPENED`; they are in the order of their first call.

    Args:
      model: a network.
      variables: its variables, with "params".
      size: of its images, pixels a side.
    """
    called = []

    def record(following, arguments, keywords, context):
        if context.method_name != "setup":
            called.append(context.module.path)
        return following(*arguments, **keywords)

    with nn.intercept_methods(record):
        jax.eval_shape(lambda v: model.apply(v, jnp.zeros((1, size, size, 3)), train=False), variables)
    depth = {path: 2 if path[:1] in [(name,) for name in OPENED] else 1 for path in called}
    layers = ["/".join(path) for path in dict.fromkeys(called) if len(path) == depth[path]]
    there = {
        "/".join(keys[: 2 if keys[0] in OPENED else 1])
        for keys in (path.split("/")[1:] for path in sanity.layer_paths(variables) if path.startswith("params/"))
    }
    return [layer for layer in reversed(layers) if layer in there]


def stages_of(layers: Sequence[str], count: int) -> dict[str, list[str]]:
    """Returns {last layer: layers} of at most `count` runs of layers, as equal in number as they can be."""
    runs = np.array_split(np.array(layers), min(count, len(layers)))
    return {str(run[-1]): run.tolist() for run in runs}


def paths_of(layers: Sequence[str], variables: Mapping[str, Any]) -> str:
    """Returns the paths of layers in every collection of the variables, as `sanity.redraw` takes them."""
    there = sanity.layer_paths(variables)
    paths = [f"{collection}/{layer}" for layer in layers for collection in variables]
    return ", ".join(path for path in paths if any(known.startswith(f"{path}/") for known in there))


def by_stage(sums: Mapping[str, tuple]) -> dict[str, dict[str, float | None]]:
    """{"SIMILARITY/STAGE": (sum, count)} as {stage: {similarity: mean, None where it is nowhere defined}}."""
    found: dict[str, dict] = {}
    for key, pair in sums.items():
        similarity, stage = key.split("/", 1)
        found.setdefault(stage, {})[similarity] = mean(pair)
    return found
