"""How fast things are here: medians of several repetitions, as a table and as JSON.

python -m selfexplain_jax.main --mode=benchmark --what=pipeline --config=configs/synthetic.py
python -m selfexplain_jax.main --mode=benchmark --what=train --config=configs/mnist.py
python -m selfexplain_jax.main --mode=benchmark --what=explain --config=configs/mnist.py

The input pipeline, the training step and the network's own masks are measured by benchmark_step.py.
With --peers=PYTHON the step is measured beside that of the Self-Explainer's first implementation
(benchmark_predecessor.py), and --what=time_to_masks measures how long training takes until masks cover the objects
(benchmark_time_to_masks.py); --what=backbone puts EfficientNet-Lite0 beside PyTorch's (benchmark_backbone.py).
Attribution methods, their metrics, memory and curves are measured by benchmark_attribution.py and benchmark_curves.py.
"""

from __future__ import annotations

import json
import statistics
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
from selfexplain_jax.benchmark_step import Measurement, benchmark_explain, benchmark_pipeline, benchmark_train
from selfexplain_jax.folders import open_folder, write_whole
from selfexplain_jax.provenance import provenance
from selfexplain_jax.training.config_json import jsonable
from selfexplain_jax.types import UserError

EXPLAINING = ("attribution", "metrics", "memory", "curves")
TRAINING = ("pipeline", "train", "explain", "all")
WHAT = (*TRAINING, *EXPLAINING, "backbone", "time_to_masks")
"""--what; "all" is pipeline and train."""


def table(measured: Mapping[str, Sequence[float]]) -> str:
    """Returns the measurements as lines of text: median, smallest and largest repetition."""
    lines = [f"{'':<24} {'median':>12} {'min':>12} {'max':>12} {'n':>4}"]
    for name, values in measured.items():
        cells = "".join(f" {value:>12,.1f}" for value in (statistics.median(values), min(values), max(values)))
        lines.append(f"{name:<24}{cells} {len(values):>4}")
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
      What the file holds: {"device", "devices", "hosts", "backend", "jax", "image_size", "dataset", "what"},
      `provenance.provenance`, and for `TRAINING` {"batch_size", "measured": {name: {"median", "values"}}}; else
      "settings" (config.benchmark) and what `benchmark_attribution.run`, `benchmark_curves.memory`,
      `benchmark_curves.curves`, `benchmark_backbone.run`, `benchmark_predecessor.run` or
      `benchmark_time_to_masks.run` return.

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
        "what": what,
    } | provenance(config)
    usual = "benchmark.json" if what in TRAINING else f"benchmark_{what}.json"
    path = open_folder(json_path) if json_path else open_folder(workdir) / usual
    if what in EXPLAINING:
        result |= {"settings": jsonable(config.benchmark)}
        result |= _explaining(config, workdir, what, images, peers)
    elif what == "train" and peers:
        result |= benchmark_predecessor.run(config, workdir, peers)
    elif what == "backbone":
        result |= benchmark_backbone.run(config, workdir, peers)
    elif what == "time_to_masks":
        result |= benchmark_time_to_masks.run(config, workdir, peers)
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
    if what == "explain":
        measured |= benchmark_explain(config)
    if jax.process_index() == 0:
        devices = 1 if what == "explain" else jax.device_count()
        print(
            f"{config.data.name}, {config.data.image_size} px, batch {_batch_size(config, what)}, "
            f"{devices} x {jax.devices()[0].device_kind} ({jax.process_count()} hosts)"
        )
        print(table(measured))
    values = {name: {"median": statistics.median(values), "values": values} for name, values in measured.items()}
    return {"batch_size": _batch_size(config, what), "measured": values}


def _batch_size(config, what) -> int:
    return config.evaluation.batch_size if what == "explain" else config.train.batch_size
