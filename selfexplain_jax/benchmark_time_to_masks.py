"""Seconds of training until the masks cover the objects, beside the Self-Explainer's first implementation.

python -m selfexplain_jax.main --mode=benchmark --what=time_to_masks --config=configs/synthetic.py --peers=PYTHON \\
  --json=time_to_masks.json

The other side trains as config.benchmark.peer_config says (configs/predecessor.py; its :plain leaves out what our
network adds to a U-Net), in PyTorch, on the same images and cores. Both sides take turns of
config.benchmark.check_seconds, so that whatever else the machine does meets both alike, and after each turn the IoU at
.5 of the target masks of the same validation images is looked at, which does not count. Ours counts compilation, and
the drawing of its images; the other side's lie ready in memory.

A U-Net of our size, and not the predecessor's DeepLab: that one has 39.6 million parameters and takes a step of some
seconds here, for masks of 8 x 8 cells of these small images; its handicap would not be the recipe's.
"""

from __future__ import annotations

import functools
import pathlib
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from selfexplain_jax import benchmark_peers as peers_lib
from selfexplain_jax import benchmark_predecessor
from selfexplain_jax.config import load_config
from selfexplain_jax.data.pipeline import evaluation_batches, train_iterator
from selfexplain_jax.metrics import segmentation
from selfexplain_jax.models import masking
from selfexplain_jax.training import mesh as mesh_lib
from selfexplain_jax.training.config_json import jsonable
from selfexplain_jax.training.experiment import build, make_step
from selfexplain_jax.training.passes import explanations_start
from selfexplain_jax.training.state import TrainState, evaluated_variables
from selfexplain_jax.training.steps import is_correct
from selfexplain_jax.types import Dataset, UserError

SPLIT = "validation"


class Side(Protocol):
    """A training that can be gone on with."""

    def turn(self, seconds: float) -> dict[str, float]:
        """Trains for so long, one step at least.

        Returns:
          {"seconds": that it took, "steps": so far, "loss", "iou", "accuracy", "mask_area"}, the last three means over
          the validation images; "seconds" 0 where all steps are done.

        Raises:
          PeerError: it cannot be gone on with.
        """
        ...


class OwnTraining:
    """Our training of a config, as the loop does it, without its files.

    Attributes:
      compile_seconds: of the programs that were needed so far; they count as training.
    """

    def __init__(self, config: ml_collections.ConfigDict, checks: list[dict]):
        self._experiment, self._mesh = build(config), mesh_lib.make_mesh()
        mesh_lib.check_batch_size(config.train.batch_size, self._mesh)
        self._iterator = train_iterator(self._experiment.dataset, config)
        self._state = benchmark_predecessor.create(self._experiment, self._mesh)
        self._explanations_from = explanations_start(self._experiment.config)
        self._programs: dict[bool, Callable] = {}
        self._checks, self._steps, self._loss = checks, 0, float("nan")
        self.compile_seconds = 0.0

    def turn(self, seconds: float) -> dict[str, float]:
        """See `Side`."""
        started, taken = time.perf_counter(), 0.0
        while taken < seconds and self._steps < self._experiment.config.train.steps:
            batch = mesh_lib.to_global(next(self._iterator), self._mesh)
            program = self._program(self._steps >= self._explanations_from, batch)
            self._state, logs = program(self._state, batch)
            self._loss = float(logs["loss"])
            self._steps, taken = self._steps + 1, time.perf_counter() - started
        return {"seconds": taken, "steps": self._steps, "loss": self._loss} | self.check(self._state)

    def _program(self, explain: bool, batch) -> Callable:
        if explain not in self._programs:
            started = time.perf_counter()
            step = make_step(self._experiment, self._mesh, explain)
            self._programs[explain] = step.lower(self._state, batch).compile()
            self.compile_seconds += time.perf_counter() - started
        return self._programs[explain]

    def check(self, state: TrainState) -> dict[str, float]:
        """{"iou", "accuracy", "mask_area"} of a state, means over the validation images."""
        look = functools.partial(look_at, self._experiment.config, self._experiment.model, mesh_lib.local_copy(state))
        sums = sum(np.asarray(look(batch), np.float64) for batch in self._checks)
        count = sum(batch["valid"].sum() for batch in self._checks)
        return dict(zip(("iou", "accuracy", "mask_area"), (sums / count).tolist(), strict=True))


def look_batches(dataset: Dataset, config: ml_collections.ConfigDict, count: int) -> list[dict]:
    """Batches of `count` images of the validation split, evenly spaced."""
    return list(evaluation_batches(dataset, SPLIT, config, batch_size=50, max_examples=count))


@functools.partial(jax.jit, static_argnums=(0, 1))
def look_at(config, model, state: TrainState, batch: dict) -> jax.Array:
    """[3] sums over the valid images: IoU of the target mask at .5, whether the prediction is right, mask area."""
    (scores, endpoints), label = model.apply(evaluated_variables(config, state), batch["image"]), batch["label"]
    mask = masking.target_mask(endpoints["logit_maps"], label, batch["image"].shape[1])
    truth, weight = segmentation.target_truth(batch["mask"], label), segmentation.pixel_weights(batch["mask"])
    values = (segmentation.iou(mask, truth, weight)[0], is_correct(scores, label), mask.mean(axis=(1, 2)))
    return (jnp.stack(values) * batch["valid"][None]).sum(axis=1)


class PeerTraining:
    """The predecessor's training in its process; see `Side`."""

    def __init__(self, peers: peers_lib.Peers):
        self._peers = peers

    def turn(self, seconds: float) -> dict[str, float]:
        """See `Side`. The copy of the network has no gradients of weights: the quicker of the two forms."""
        return self._peers.ask("train", {"seconds": seconds, "copy_gradients": False}, wanted="iou")


def race(
    sides: Mapping[str, Side], *, target: float, turn_seconds: float, limit_seconds: float, say=print
) -> dict[str, dict[str, Any]]:
    """Lets the sides train in turn until each has reached an IoU, its steps' or its time's end.

    Args:
      sides: by name.
      target: IoU that ends a side's training.
      turn_seconds: of training between two looks. limit_seconds: of training, at most.
      say: takes a line for each turn.

    Returns:
      Of each side {"seconds": of training until the target was seen to be reached, None where it was not, "reached":
      the last look, "best_iou", "curve": every look with the seconds up to it, "missing": why it ended otherwise}.
    """
    results = {name: {"seconds": None, "reached": {}, "best_iou": None, "curve": [], "missing": ""} for name in sides}
    running = dict(sides)
    while running:
        for name, side in list(running.items()):
            result = results[name]
            before = result["curve"][-1]["seconds"] if result["curve"] else 0.0
            try:
                look = side.turn(min(turn_seconds, limit_seconds - before))
            except peers_lib.PeerError as error:
                result["missing"] = str(error)
                del running[name]
                continue
            done = look["seconds"] == 0
            look = {**look, "seconds": before + look["seconds"]}
            result["curve"].append(look)
            result["reached"], result["best_iou"] = look, max(look["iou"], result["best_iou"] or 0.0)
            say(
                f"{name:<12} {look['seconds']:>8.1f} s {look['steps']:>7} steps, IoU {look['iou']:.3f}, accuracy "
                f"{look['accuracy']:.3f}, mask area {look['mask_area']:.3f}"
            )
            if look["iou"] >= target:
                result["seconds"] = look["seconds"]
            if result["seconds"] is not None or done or look["seconds"] >= limit_seconds:
                del running[name]
    return results


def run(config: ml_collections.ConfigDict, workdir: str, peers: str = "") -> dict[str, Any]:
    """Trains both sides, prints how far they are, and how many times longer the other takes.

    Args:
      config: ours, on a data set with masks and one class an image; `config.benchmark` says how the other side trains,
        and until when.
      workdir: what the other side is handed (the training images are some 600 MB) is written to WORKDIR/peers.
      peers: see `benchmark_peers.find_interpreter`.

    Returns:
      {"cores", "peers", "settings", "compile_seconds": ours, "sides": see `race`, "ratio": their seconds over ours,
      "ratio_at_least": the same where they did not reach the target, by the time that they had}.

    Raises:
      UserError: a bad config, interpreter or number.
    """
    settings = config.benchmark
    check_settings(settings)
    benchmark_predecessor.check_cores()
    interpreter = peers_lib.find_interpreter(peers)
    theirs = peer_config(config)
    experiment, mesh = build(theirs), mesh_lib.make_mesh()
    dataset = experiment.dataset
    if dataset.info.multilabel or not dataset.info.has_masks:
        raise UserError("--what=time_to_masks needs data with masks and one class an image: configs/synthetic.py.")
    checks = look_batches(dataset, config, settings.validation_size)
    folder = pathlib.Path(workdir).expanduser() / "peers"
    if interpreter:
        print("Writing the images that the other side is handed ...", flush=True)
        export(dataset, config, folder, settings.train_size, settings.validation_size)
    own, state = OwnTraining(config, checks), benchmark_predecessor.create(experiment, mesh)
    batch = {name: value[: theirs.train.batch_size] for name, value in checks[0].items()}
    other = benchmark_predecessor.start(interpreter, folder, experiment, state, batch)
    print(other.missing or f"Peers: {other.about}", flush=True)
    sides = {"ours": own} | ({} if other.missing else {"predecessor": PeerTraining(other)})
    try:
        results = race(
            sides,
            target=settings.target_iou,
            turn_seconds=settings.check_seconds,
            limit_seconds=settings.limit_seconds,
            say=functools.partial(print, flush=True),
        )
    finally:
        other.close()
    ratios = compared(results)
    print(conclusion(results, ratios, settings.target_iou))
    print(f"Of ours {own.compile_seconds:.0f} s are compilation.")
    about = {"cores": mesh_lib.usable_cores(), "peers": other.about, "missing": other.missing}
    return about | {"settings": jsonable(settings), "compile_seconds": own.compile_seconds, "sides": results} | ratios


def compared(results: Mapping[str, Mapping[str, Any]]) -> dict[str, float | None]:
    """{"ratio": the other side's seconds over ours, "ratio_at_least": with its time where it missed the target}."""
    ours, theirs = results["ours"]["seconds"], results.get("predecessor", {"seconds": None, "reached": {}})
    if ours is None:
        return {"ratio": None, "ratio_at_least": None}
    if theirs["seconds"] is not None:
        return {"ratio": theirs["seconds"] / ours, "ratio_at_least": None}
    return {"ratio": None, "ratio_at_least": theirs["reached"]["seconds"] / ours if theirs["reached"] else None}


def conclusion(results: Mapping[str, Mapping], ratios: Mapping[str, float | None], target: float) -> str:
    """Returns what came out, in lines."""
    lines = []
    for name, result in results.items():
        look = result["reached"]
        if result["seconds"] is not None:
            lines.append(f"{name}: IoU {target} after {result['seconds']:.0f} s and {look['steps']} steps.")
        elif look:
            best, accuracy = f"IoU {result['best_iou']:.3f} at best", f"accuracy {look['accuracy']:.3f} at the end"
            within = f"not within {look['seconds']:.0f} s and {look['steps']} steps"
            lines.append(f"{name}: {within}; {best}, {accuracy}. {result['missing']}".rstrip())
        else:
            lines.append(f"{name}: {result['missing']}")
    for name, words in (("ratio", ""), ("ratio_at_least", "more than ")):
        if ratios[name] is not None:
            lines.append(f"The predecessor takes {words}{ratios[name]:.1f} times as long.")
    return "\n".join(lines)


def check_settings(settings: ml_collections.ConfigDict) -> None:
    """Checks the numbers of `config.benchmark` that count here.

    Raises:
      UserError: one that makes no sense.
    """
    for name in ("check_seconds", "limit_seconds", "train_size", "validation_size"):
        if not settings[name] > 0:
            raise UserError(f"config.benchmark.{name} = {settings[name]} must be above 0.")
    if not 0 < settings.target_iou <= 1:
        raise UserError(f"config.benchmark.target_iou = {settings.target_iou} must be in (0, 1].")


def peer_config(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """The config that `config.benchmark.peer_config` names, on the data and with the seed of `config`."""
    theirs = load_config(config.benchmark.peer_config)
    theirs.data, theirs.seed = config.data.copy_and_resolve_references(), config.seed
    return theirs


def export(dataset: Dataset, config: ml_collections.ConfigDict, folder: pathlib.Path, train: int, checks: int) -> None:
    """Writes train_images.npy, train_label.npy and check.npz (images, label, mask), as tests/parity reads them.

    Args:
      dataset: its train and validation splits are read.
      config: `config.data` is read.
      folder: is made.
      train: examples of the train split, at most. checks: of the validation split, those that our side looks at.
    """
    folder.mkdir(parents=True, exist_ok=True)
    source, info = dataset.source(config.data.train_split), dataset.info
    count = min(len(source), train)
    shape = (count, info.image_size, info.image_size, 3)
    images = np.lib.format.open_memmap(folder / "train_images.npy", "w+", np.uint8, shape)
    label = np.zeros((count, info.num_classes), np.float32)
    for index in range(count):
        example = source[index]
        images[index], label[index] = example["image"], example["label"]
    images.flush()
    np.save(folder / "train_label.npy", label)
    batches = evaluation_batches(dataset, SPLIT, config, batch_size=1, max_examples=checks)
    examples = [dataset.source(SPLIT)[int(index)] for index in batches.positions]
    names = {"images": "image", "label": "label", "mask": "mask"}
    arrays = {name: np.stack([example[field] for example in examples]) for name, field in names.items()}
    np.savez(folder / "check.npz", **arrays)
