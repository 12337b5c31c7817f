"""The sanity checks of a comparison: how much of a method's maps is left when its model is taken away layer by layer.

`metrics/sanity.py` has the checks (Adebayo et al. 2018); here they get the models, layers and images of a comparison,
by `config.comparison.sanity_checks`. What was checked is kept in WORKDIR/sanity_checks and not computed again. Many
hosts share the batches, and add up.
"""

from __future__ import annotations

import functools
import json
import pathlib
from collections import ChainMap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from absl import logging

from selfexplain_jax import maps, progress
from selfexplain_jax.metrics import add, mean, sanity, view
from selfexplain_jax.training import mesh
from selfexplain_jax.training.state import bound_to, with_variables
from selfexplain_jax.types import Dataset, Predictor, UserError

OPENED = ("backbone",)
"""Modules whose own modules are layers; every other module of a network is one layer."""
REDRAWN_SEED = 2**31 - 1
"""Folded into the comparison's seed for the freshly initialised networks; no batch has that number."""
NOT_BY_ITSELF = ("constant", "centre", *maps.PER_MAP)
"""Methods that are checked only if they are named: those that look at nothing, and those that take a time for every
map."""


class Redrawn(NamedTuple):
    """A network and itself freshly initialised: `paths` {last layer of a run: what `sanity.redraw` takes of the run},
    from the top of the network down."""

    variables: dict
    fresh: dict
    paths: dict[str, str]


def sanity_checks(
    columns: Sequence[maps.Column],
    models: Mapping[str, tuple[Predictor, list]],
    dataset: Dataset,
    config: ml_collections.ConfigDict,
    folder: pathlib.Path,
    left_out: Sequence[int],
) -> dict[str, dict[str, Any]]:
    """Returns what the checks say of each method of `config.comparison.sanity_checks.methods`.

    Of every image the first present class is explained; images that some method could not explain are left out. All
    hosts must call it, and get the same.

    Args:
      columns: of the comparison.
      models: {name: (predictor, what tells it from another one)}, of the comparison.
      dataset: whose evaluation split is explained.
      config: the comparison's.
      folder: the comparison's.
      left_out: positions in the split.

    Returns:
      {label: {"images": maps counted, "checks": {"cascading" or "independent": {last layer redrawn: numbers},
      "random_labels": numbers}, "failures": {check: message}}}, with numbers = {name in `sanity.SIMILARITIES`: mean,
      "defined": the fewest maps that a similarity is defined for}.
    """
    settings, found = config.comparison.sanity_checks, {}
    if not settings.images:
        return found
    random_labels, networks = dict(settings.random_labels), {}
    for column in checked_columns(columns, config):
        other, origin = models.get(random_labels.get(column.model, ""), (None, None))
        key = {"of": column.identity, "images": settings.images, "stages": settings.stages}
        key = json.loads(json.dumps(key | {"random_labels": origin, "left_out": list(left_out)}))
        path = folder / "sanity_checks" / f"{column.label}.json"
        known = maps.read_kept(path)
        if known.get("asked") != key:
            known = {"asked": key, "found": check_method(column, other, networks, dataset, config, left_out)}
            # What failed may be mended by now: it is tried again.
            if not known["found"]["failures"]:
                maps.keep(path, known)
        found[column.label] = known["found"]
    return found


def checked_columns(columns: Sequence[maps.Column], config: ml_collections.ConfigDict) -> list[maps.Column]:
    """Returns the columns that are checked: those named, else all of methods that are not in NOT_BY_ITSELF.

    The data set's own masks ask no model and are never checked.
    """
    named = config.comparison.sanity_checks.methods
    return [
        column
        for column in columns
        if column.method is not None
        and (column.label in named if named else column.identity["method"] not in NOT_BY_ITSELF)
    ]


def check_settings(
    columns: Sequence[maps.Column], models: Mapping[str, Any], config: ml_collections.ConfigDict
) -> None:
    """Raises a UserError where `config.comparison.sanity_checks` names what is not there, or a number that is none."""
    settings = config.comparison.sanity_checks
    if settings.images < 0 or settings.stages < 1:
        raise UserError("config.comparison.sanity_checks needs images >= 0 and stages >= 1.")
    random_labels = settings.random_labels.to_dict()
    asking = {column.label: column for column in columns if column.method is not None}
    for setting, names, there in (
        ("methods", settings.methods, asking),
        ("random_labels", [*random_labels, *random_labels.values()], models),
    ):
        unknown = [name for name in names if name not in there]
        if unknown:
            raise UserError(
                f"config.comparison.sanity_checks.{setting} names {', '.join(map(repr, unknown))}; of these there are "
                f"{', '.join(there)}."
            )


# ---- One method ------------------------------------------------------------------------------------------------------


def check_method(
    column: maps.Column,
    random_labels: Predictor | None,
    networks: dict,
    dataset: Dataset,
    config: ml_collections.ConfigDict,
    left_out: Sequence[int],
) -> dict[str, Any]:
    """Returns {"images", "checks", "failures"} of one method, see `sanity_checks`.

    Args:
      column: the method.
      random_labels: the predictor of random labels; None: without that check.
      networks: {(model, whether its masks' network): `Redrawn`}, which is filled here: columns of a model share it.
      dataset, config, left_out: as in `sanity_checks`.
    """
    checks = {
        "cascading": functools.partial(randomised, column, networks, config, independent=False),
        "independent": functools.partial(randomised, column, networks, config, independent=True),
    }
    if random_labels is not None:
        checks["random_labels"] = functools.partial(
            sanity.random_label_sums, column.predictor, random_labels, column.method
        )
    totals: dict[str, dict] = {name: {} for name in checks}
    failures: dict[str, str] = {}
    images_counted = 0
    for images, class_ids, counted, rng in checked_batches(column, dataset, config, left_out):
        images_counted += int(counted.sum())
        for name, check in checks.items():
            if name not in failures:
                try:
                    totals[name] = add(totals[name], check(images, class_ids, counted=counted, rng=rng))
                except Exception as error:  # noqa: BLE001 (whatever a method raises is a failure to be reported)
                    known = isinstance(error, UserError)
                    logging.warning("%s of %r fails: %s", name, column.label, error, exc_info=not known)
                    failures[name] = maps.failure_text(error)
    shares = mesh.gather((totals, failures, images_counted), patiently=True)
    totals = {name: functools.reduce(add, [share[0][name] for share in shares]) for name in checks}
    failures = dict(ChainMap(*(share[1] for share in shares)))
    images_counted = sum(share[2] for share in shares)
    done = {name: sums for name, sums in totals.items() if name not in failures}
    found = {name: numbers_of(sums) if name == "random_labels" else by_stage(sums) for name, sums in done.items()}
    return {"images": images_counted, "checks": found, "failures": failures}


def randomised(
    column: maps.Column,
    networks: dict,
    config: ml_collections.ConfigDict,
    images: jax.Array,
    class_ids: np.ndarray,
    *,
    counted: np.ndarray,
    rng: jax.Array,
    independent: bool,
) -> dict[str, tuple]:
    """Returns {"SIMILARITY/LAYER": (sum, count)}, the layer being the last one of a run that is redrawn at once.

    Args:
      column, networks: as in `check_method`.
      config: the comparison's.
      images, class_ids, counted, rng, independent: as `sanity.randomisation_sums` takes them.
    """
    learned = column.identity["method"] == "learned"
    where = (column.model, learned)
    if where not in networks:
        networks[where] = redraw_network(column.predictor, learned, config)
    network = networks[where]
    sums = sanity.randomisation_sums(
        lambda changed: with_variables(column.predictor, network.variables, changed),
        network.variables,
        network.fresh,
        list(network.paths.values()),
        column.method,
        images,
        class_ids,
        counted=counted,
        rng=rng,
        independent=independent,
    )
    named = {paths: last for last, paths in network.paths.items()}
    split = {key: key.split("/", 1) for key in sums}
    return {f"{similarity}/{named[paths]}": sums[key] for key, (similarity, paths) in split.items()}


def redraw_network(predictor: Predictor, learned: bool, config: ml_collections.ConfigDict) -> Redrawn:
    """Returns the network behind the predictor's masks, if `learned`, or scores, and itself freshly initialised.

    Raises:
      UserError: the predictor is no network of this project.
    """
    model, variables = bound_to(predictor.masks if learned else predictor.scores)
    size = predictor.image_size
    seed = jax.random.fold_in(jax.random.key(config.seed), REDRAWN_SEED)
    drawn = jax.jit(functools.partial(model.init, train=False))(seed, jnp.zeros((1, size, size, 3)))
    # On the device of the model's own: a mixture of both would be compiled anew for each.
    fresh = {
        name: jax.tree.map(lambda new, old: jax.device_put(new, old.sharding), drawn[name], variables[name])
        for name in variables
    }
    runs = runs_of(top_down(model, variables, size), config.comparison.sanity_checks.stages)
    return Redrawn(variables, fresh, {last: paths_of(layers, variables) for last, layers in runs.items()})


def checked_batches(
    column: maps.Column, dataset: Dataset, config: ml_collections.ConfigDict, left_out: Sequence[int]
) -> Iterator[tuple[jax.Array, np.ndarray, np.ndarray, jax.Array]]:
    """Yields (images, class_ids [B, 1], counted [B, 1], rng) of this host's share of the first images of the split.

    An image that does not count is shown as one that does: a method that fails on it would fail here too.
    """
    wanted, size = config.comparison.sanity_checks.images, config.evaluation.batch_size
    batches = mesh.own_batches(dataset, config)
    numbers = [number for number in batches.numbers if number * size < wanted]
    seen = progress.counted(batches, f"sanity {column.label}", len(numbers))
    for number, batch in zip(numbers, seen, strict=True):
        batch = view.fill_padding(batch)
        class_ids = maps.present_classes(batch["label"], 1)
        present = np.take_along_axis(batch["label"], class_ids, axis=1)[:, 0] > 0
        place = number * size + np.arange(len(present))
        counted = present & (batch["valid"] > 0) & ~np.isin(batch["index"], left_out) & (place < wanted)
        if counted.any():
            kept = np.flatnonzero(counted)
            rows = np.where(counted, np.arange(len(counted)), kept[np.arange(len(counted)) % kept.size])
            rng = jax.random.fold_in(jax.random.key(config.seed), number)
            yield jnp.asarray(batch["image"][rows]), class_ids[rows], counted[:, None], rng


# ---- Layers ----------------------------------------------------------------------------------------------------------


def top_down(model: nn.Module, variables: Mapping[str, Any], size: int) -> list[str]:
    """Returns the network's layers with parameters, "backbone/block_3" and so on, from what is computed last to first.

    A layer is a module of the network, or one of a module in `OPENED`; they are in the order of their first call.

    Args:
      model: a network.
      variables: its variables, with "params", or their shapes.
      size: of its images, pixels a side.

    Raises:
      UserError: parameters that belong to no layer.
    """
    called = []

    def record(following, arguments, keywords, context):
        if context.method_name != "setup":
            called.append(context.module.path)
        return following(*arguments, **keywords)

    with nn.intercept_methods(record):
        jax.eval_shape(lambda v: model.apply(v, jnp.zeros((1, size, size, 3)), train=False), variables)
    layers = ["/".join(path) for path in dict.fromkeys(called) if path and len(path) == _depth(path)]
    paths = [path.split("/")[1:] for path in sanity.layer_paths(variables) if path.startswith("params/")]
    there = {"/".join(path[: _depth(path)]) for path in paths}
    if strange := there - set(layers):
        raise UserError(f"Parameters of {', '.join(sorted(strange))} belong to no layer that is called by itself.")
    return [layer for layer in reversed(layers) if layer in there]


def _depth(path: Sequence[str]) -> int:
    """How many names of a module's path are its layer's."""
    return 2 if path[0] in OPENED else 1


def runs_of(layers: Sequence[str], count: int) -> dict[str, list[str]]:
    """Returns {last layer: layers} of at most `count` runs of layers, as equal in number as they can be."""
    runs = np.array_split(np.array(layers), min(count, len(layers)))
    return {str(run[-1]): run.tolist() for run in runs}


def paths_of(layers: Sequence[str], variables: Mapping[str, Any]) -> str:
    """Returns the paths of layers in every collection of the variables, as `sanity.redraw` takes them."""
    there = sanity.layer_paths(variables)
    paths = [f"{collection}/{layer}" for layer in layers for collection in variables]
    return ", ".join(path for path in paths if any(known.startswith(f"{path}/") for known in there))


# ---- Numbers ---------------------------------------------------------------------------------------------------------


def by_stage(sums: Mapping[str, tuple]) -> dict[str, dict[str, float | None]]:
    """{"SIMILARITY/STAGE": (sum, count)} as {stage: numbers}, see `numbers_of`."""
    found: dict[str, dict] = {}
    for key, pair in sums.items():
        similarity, stage = key.split("/", 1)
        found.setdefault(stage, {})[similarity] = pair
    return {stage: numbers_of(pairs) for stage, pairs in found.items()}


def numbers_of(pairs: Mapping[str, tuple]) -> dict[str, float | None]:
    """{similarity: (sum, count)} as {similarity: mean, None where it is nowhere defined, "defined": smallest count}."""
    fewest = min((int(count) for _, count in pairs.values()), default=0)
    return {name: mean(pair) for name, pair in pairs.items()} | {"defined": fewest}
