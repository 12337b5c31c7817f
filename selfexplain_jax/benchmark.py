"""How fast the input pipeline and the training step are here: medians of several repetitions, as a table and as JSON.

python -m selfexplain_jax.main --mode=benchmark --what=pipeline --config=configs/synthetic.py
python -m selfexplain_jax.main --mode=benchmark --what=train --config=configs/mnist.py

With --peers=PYTHON the step is measured beside that of the Self-Explainer's first implementation
(benchmark_predecessor.py), and --what=time_to_masks measures how long training takes until masks cover the objects
(benchmark_time_to_masks.py); --what=backbone puts EfficientNet-Lite0 beside PyTorch's (benchmark_backbone.py).
Attribution methods, their metrics, memory and curves are measured by benchmark_attribution.py and benchmark_curves.py.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Mapping, Sequence

import jax
import ml_collections

from selfexplain_jax import (
    benchmark_attribution,
    benchmark_backbone,
    benchmark_curves,
    benchmark_predecessor,
    benchmark_time_to_masks,
)
from selfexplain_jax.data import build_dataset
from selfexplain_jax.data.pipeline import train_iterator
from selfexplain_jax.folders import open_folder, write_whole
from selfexplain_jax.training import mesh as mesh_lib
from selfexplain_jax.training.config_json import jsonable
from selfexplain_jax.training.experiment import build, load_frozen, make_step, state_creation
from selfexplain_jax.types import UserError

EXPLAINING = ("attribution", "metrics", "memory", "curves")
TRAINING = ("pipeline", "train", "all")
WHAT = (*TRAINING, *EXPLAINING, "backbone", "time_to_masks")
"""--what; "all" is pipeline and train."""

Measurement = dict[str, list[float]]


def benchmark_pipeline(config: ml_collections.ConfigDict, *, steps: int = 20, repetitions: int = 5) -> Measurement:
    """Reads batches as the training does and throws them away.

    Args:
      config: the whole configuration.
      steps: batches per repetition; one is read beforehand and not counted.
      repetitions: how often.

    Returns:
      {"pipeline images/s": one number per repetition}, of this host.

    Raises:
      UserError: a bad config, or a number below 1.
    """
    _check_counts(steps, repetitions)
    host, hosts = jax.process_index(), jax.process_count()
    iterator = train_iterator(build_dataset(config), config, host=host, hosts=hosts)
    images = len(next(iterator)["label"]) * steps
    # What was read ahead while nobody measured would count as speed: it is used up first.
    for _ in range(config.data.prefetch // config.train.batch_size + 1):
        next(iterator)
    rates = []
    for _ in range(repetitions):
        started = time.perf_counter()
        for _ in range(steps):
            next(iterator)
        rates.append(images / (time.perf_counter() - started))
    return {"pipeline images/s": rates}


def benchmark_train(config: ml_collections.ConfigDict, *, steps: int = 10, repetitions: int = 5) -> Measurement:
    """Trains from scratch for a few steps with the loop's own jitted step, and keeps nothing.

    Every step is waited for, so that time spent in the iterator is time that the devices have nothing to do.

    Args:
      config: the whole configuration.
      steps: steps per repetition, after two that compile and warm up.
      repetitions: how often.

    Returns:
      One number per repetition each: "train images/s" over all devices, "step ms" (median over the repetition's steps,
      waiting for data left out), "waiting for data %" of the wall time.

    Raises:
      UserError: a bad config, or a number below 1.
    """
    _check_counts(steps, repetitions)
    experiment, mesh = build(config), mesh_lib.make_mesh()
    mesh_lib.check_batch_size(config.train.batch_size, mesh)
    host, hosts = jax.process_index(), jax.process_count()
    iterator = train_iterator(experiment.dataset, config, host=host, hosts=hosts)
    create, _ = state_creation(experiment, mesh)
    state, train_step = create(jax.random.key(config.seed)), make_step(experiment, mesh)
    frozen = load_frozen(experiment, mesh)
    measured: Measurement = {"train images/s": [], "step ms": [], "waiting for data %": []}
    for _ in range(2):
        state, logs = jax.block_until_ready(train_step(state, mesh_lib.to_global(next(iterator), mesh), *frozen))
    for _ in range(repetitions):
        waited, computed = [], []
        for _ in range(steps):
            started = time.perf_counter()
            batch = next(iterator)
            arrived = time.perf_counter()
            state, logs = jax.block_until_ready(train_step(state, mesh_lib.to_global(batch, mesh), *frozen))
            waited.append(arrived - started)
            computed.append(time.perf_counter() - arrived)
        seconds = sum(waited) + sum(computed)
        measured["train images/s"].append(steps * config.train.batch_size / seconds)
        measured["step ms"].append(1000 * statistics.median(computed))
        measured["waiting for data %"].append(100 * sum(waited) / seconds)
    return measured


def table(measured: Mapping[str, Sequence[float]]) -> str:
    """Returns the measurements as lines of text: median, smallest and largest repetition."""
    lines = [f"{'':<20} {'median':>12} {'min':>12} {'max':>12} {'n':>4}"]
    for name, values in measured.items():
        cells = "".join(f" {value:>12,.1f}" for value in (statistics.median(values), min(values), max(values)))
        lines.append(f"{name:<20}{cells} {len(values):>4}")
    return "\n".join(lines)


def run(
    config: ml_collections.ConfigDict,
    workdir: str,
    what: str = "all",
    *,
    images: Sequence[str] = (),
    peers: str = "",
    json_path: str = "",
) -> dict:
    """Measures, prints the table and writes it as JSON.

    Args:
      config: the whole configuration.
      workdir: is made if it does not exist.
      what: one of `WHAT`.
      images, peers: see `benchmark_attribution.run`; with peers "train" is `benchmark_predecessor.run`.
      json_path: where the JSON is written; "": WORKDIR/benchmark.json, of what is not `TRAINING` benchmark_WHAT.json.

    Returns:
      What the file holds: {"device", "devices", "hosts", "backend", "jax", "image_size", "dataset"}, and for pipeline
      and train {"batch_size", "measured": {name: {"median", "values"}}}; else "what", "settings" (config.benchmark) and
      what `benchmark_attribution.run`, `benchmark_curves.memory`, `benchmark_curves.curves`,
      `benchmark_backbone.run`, `benchmark_predecessor.run` or `benchmark_time_to_masks.run` return.

    Raises:
      UserError: a bad config, or an unknown `what`.
    """
    if what not in WHAT:
        raise UserError(f"--what={what} is unknown. Choose one of {', '.join(WHAT)}.")
    devices = jax.devices()
    result = {
        "device": devices[0].device_kind,
        "devices": len(devices),
        "hosts": jax.process_count(),
        "backend": jax.default_backend(),
        "jax": jax.__version__,
        "image_size": config.data.image_size,
        "dataset": config.data.name,
    }
    usual = "benchmark.json" if what in TRAINING else f"benchmark_{what}.json"
    path = open_folder(json_path) if json_path else open_folder(workdir) / usual
    if what in EXPLAINING:
        result |= {"what": what, "settings": jsonable(config.benchmark)}
        result |= _explaining(config, workdir, what, images, peers)
    elif what == "train" and peers:
        result |= {"what": what} | benchmark_predecessor.run(config, workdir, peers)
    elif what == "backbone":
        result |= {"what": what} | benchmark_backbone.run(config, workdir, peers)
    elif what == "time_to_masks":
        result |= {"what": what} | benchmark_time_to_masks.run(config, workdir, peers)
    else:
        result |= _training(config, what)
    if jax.process_index() == 0:
        write_whole(path, (json.dumps(result, indent=2) + "\n").encode())
        print(f"Written to {path}")
    return result


def _explaining(config, workdir, what, images, peers) -> dict:
    if jax.process_count() > 1:
        raise UserError(f"--what={what} measures one process: leave out --num_processes and --coordinator_address.")
    if what in benchmark_attribution.ROWS:
        return benchmark_attribution.run(config, workdir, what, images, peers)
    subject = benchmark_attribution.build_subject(config, images)
    print(f"{config.model.name}, {subject.images.shape[1]} px, {subject.photos}")
    return {"photos": subject.photos, **getattr(benchmark_curves, what)(subject, config.benchmark)}


def _training(config, what) -> dict:
    measured: Measurement = {}
    if what in ("pipeline", "all"):
        measured |= benchmark_pipeline(config)
    if what in ("train", "all"):
        measured |= benchmark_train(config)
    if jax.process_index() == 0:
        print(
            f"{config.data.name}, {config.data.image_size} px, batch {config.train.batch_size}, "
            f"{jax.device_count()} x {jax.devices()[0].device_kind} ({jax.process_count()} hosts)"
        )
        print(table(measured))
    values = {name: {"median": statistics.median(values), "values": values} for name, values in measured.items()}
    return {"batch_size": config.train.batch_size, "measured": values}


def _check_counts(steps: int, repetitions: int) -> None:
    if steps < 1 or repetitions < 1:
        raise UserError(f"A benchmark needs at least one step and one repetition; got {steps} and {repetitions}.")
