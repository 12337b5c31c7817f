"""A backbone's forward pass and training step beside the same network in eager PyTorch, on this machine's cores.

python -m selfexplain_jax.main --mode=benchmark --what=backbone --config=configs/imagenet.py:classifier \\
    --config.train.batch_size=8 --peers=PYTHON

Both sides have the same random weights and one batch of noise, which no time depends on, and take turns. A training
step is the loop's own: loss, gradient, update; theirs (tests/parity/time_backbone.py) is that of PyTorch's Adam.
"""

from __future__ import annotations

import functools
import pathlib
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import ml_collections
import numpy as np

from selfexplain_jax import benchmark_peers as peers_lib
from selfexplain_jax.benchmark_attribution import PEERS_NETWORK, peer_network
from selfexplain_jax.benchmark_predecessor import OwnSteps, check_cores, check_counts, create, noise_batch
from selfexplain_jax.training import mesh as mesh_lib
from selfexplain_jax.training.config_json import jsonable
from selfexplain_jax.training.experiment import Experiment, build
from selfexplain_jax.training.state import TrainState, variables_of
from selfexplain_jax.types import Batch, UserError

SCRIPT = peers_lib.SCRIPT.with_name("time_backbone.py")
TASKS = ("forward", "train_step")
LARGEST_DIFFERENCE = 1e-3
"""Of scores, relative to the largest, and of the first step's loss: beyond that the networks are not the same."""


def check_config(config: ml_collections.ConfigDict) -> None:
    """Refuses what the other side does not know.

    Raises:
      UserError: another network than EfficientNet-Lite0's classifier, another loss, or repetitions below 1.
    """
    if (config.method, config.model.name) != ("classifier", PEERS_NETWORK) or set(config.objective) != {
        "classification"
    }:
        raise UserError(
            f"--what=backbone measures the classifier {PEERS_NETWORK} on its classification term; this config has "
            f'method "{config.method}", network "{config.model.name}" and the terms {sorted(config.objective)}. Take '
            "configs/imagenet.py:classifier."
        )
    if set(config.objective.classification) - {"weight"} or config.data.positive_weights:
        raise UserError(
            "--what=backbone: the other side knows the classification term by its weight alone; leave out "
            f"{sorted(set(config.objective.classification) - {'weight'}) or 'config.data.positive_weights'}."
        )
    check_counts(config.benchmark)


def forward_pass(experiment: Experiment, mesh: jax.sharding.Mesh, state: TrainState, batch: Batch) -> Callable:
    """Returns the compiled scores of the batch as they are evaluated, images split over the devices: () -> [B, C]."""

    def scores(variables, images):
        return experiment.model.apply(variables, images)[0]

    variables = variables_of(state.params, state.batch_stats)
    images = mesh_lib.to_global({"image": batch["image"]}, mesh)["image"]
    return functools.partial(jax.jit(scores).lower(variables, images).compile(), variables, images)


def start(
    interpreter: str, folder: pathlib.Path, experiment: Experiment, state: TrainState, batch: Batch, scores: np.ndarray
) -> peers_lib.Peers:
    """Starts the other side on our weights and batch; see `benchmark_peers.find_interpreter` and `launch`.

    Raises:
      UserError: its scores turn out to be others.
    """
    config = experiment.config
    weights, strides = peer_network(experiment.model, state)
    task = {
        "strides": list(strides),
        "threads": mesh_lib.usable_cores(),
        "frozen_norm": config.model.frozen_norm,
        "link": config.model.link,
        "weight": config.objective.classification.weight,
        "learning_rate": config.train.learning_rate,
    }
    inputs = {"images": batch["image"], "label": batch["label"], "scores": scores}
    peers = peers_lib.launch(interpreter, SCRIPT, folder, task, {"weights": weights, "inputs": inputs})
    if not peers.missing and not peers.about["score_difference"] < LARGEST_DIFFERENCE:
        peers.close()
        raise UserError(
            f"The other side's scores differ from ours by {peers.about['score_difference']} of the largest."
        )
    return peers


def run(config: ml_collections.ConfigDict, workdir: str, peers: str = "") -> dict[str, Any]:
    """Measures both sides in turn, and prints a table.

    Args:
      config: `config.benchmark.repetitions` of `config.benchmark.steps` each, at `config.train.batch_size`.
      workdir: what the other side is handed, and its messages, are written to WORKDIR/peers.
      peers: see `benchmark_peers.find_interpreter`.

    Returns:
      {"batch_size", "cores", "frozen_norm", "peers": what their process says of itself, "settings": config.benchmark,
      "tasks": {"forward", "train_step": {"seconds": {"ours", "peer": [one number per repetition]}, "median_seconds",
      "ratio": our median over theirs, "missing": why there is none}}, "first_loss": {"ours", "peer"}}.

    Raises:
      UserError: see `check_config`; a bad interpreter, devices that are not this machine's cores, or networks that
        differ.
    """
    interpreter, settings = peers_lib.find_interpreter(peers), config.benchmark
    check_cores()
    check_config(config)
    config = config.copy_and_resolve_references()
    # Times do not depend on weights, and random ones need no file.
    config.model.pretrained = ""
    experiment, mesh = build(config), mesh_lib.make_mesh()
    mesh_lib.check_batch_size(config.train.batch_size, mesh)
    batch, state = noise_batch(experiment.dataset.info, config.train.batch_size), create(experiment, mesh)
    forward = forward_pass(experiment, mesh, state, batch)
    folder = pathlib.Path(workdir).expanduser() / "peers"
    other = start(interpreter, folder, experiment, state, batch, np.asarray(forward()))
    about = {"batch_size": config.train.batch_size, "cores": mesh_lib.usable_cores()}
    about["frozen_norm"] = config.model.frozen_norm
    print(f"{about}, {config.data.image_size} px. {other.missing or f'Peers: {other.about}'}", flush=True)
    try:
        steps = OwnSteps(experiment, mesh, state, batch, explain=False)
        tasks, losses = measure(forward, steps, other, settings)
    finally:
        other.close()
    print(table(tasks))
    about |= {"settings": jsonable(settings), "peers": other.about}
    return about | {"tasks": tasks, "first_loss": losses}


def measure(
    forward: Callable, steps: OwnSteps, other: peers_lib.Peers, settings: ml_collections.ConfigDict
) -> tuple[dict[str, dict[str, Any]], dict[str, float | None]]:
    """Has both sides do each task in turn; see `run` for what comes back, "tasks" and "first_loss".

    Raises:
      UserError: the losses of the first step differ.
    """
    peer_losses: list[float] = []

    def passes() -> float:
        started = time.perf_counter()
        for _ in range(settings.steps):
            jax.block_until_ready(forward())
        return (time.perf_counter() - started) / settings.steps

    def theirs(task: str) -> float:
        answer = other.ask(task, {"steps": settings.steps})
        peer_losses.extend(answer.get("losses", []))
        return float(answer["seconds"]) / settings.steps

    own = {"forward": passes, "train_step": lambda: steps.run(settings.steps) / settings.steps}
    tasks = {}
    for name in TASKS:
        turns = {"ours": own[name], "peer": functools.partial(theirs, name)}
        seconds, missing = peers_lib.alternate(turns, settings.repetitions)
        medians = {side: None if side in missing else statistics.median(taken) for side, taken in seconds.items()}
        ratio = medians["ours"] / medians["peer"] if medians["peer"] else None
        tasks[name] = {"seconds": seconds, "median_seconds": medians, "ratio": ratio}
        tasks[name]["missing"] = missing.get("peer", "")
    losses = {"ours": steps.losses[0], "peer": peer_losses[0] if peer_losses else None}
    if peer_losses and not abs(losses["ours"] - losses["peer"]) <= LARGEST_DIFFERENCE * abs(losses["ours"]):
        raise UserError(f"The first step's loss is {losses['ours']} here and {losses['peer']} on the other side.")
    return tasks, losses


def table(tasks: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns the tasks as lines of text: medians of both sides, and how many times as long as theirs ours takes."""
    lines = [f"{'':<12} {'ours s':>9} {'peer s':>9} {'x peer':>7}"]
    for name, task in tasks.items():
        medians = task["median_seconds"]
        told = f"{medians['peer']:>9.3f} {task['ratio']:>7.2f}" if task["ratio"] else f"  {task['missing']}"
        lines.append(f"{name:<12} {medians['ours']:>9.3f} {told}")
    return "\n".join(lines)
