"""The training step beside the Self-Explainer's first implementation: three passes in eager PyTorch, on one network.

python -m selfexplain_jax.main --mode=benchmark --what=train --config=configs/predecessor.py:deeplab --peers=PYTHON
python -m selfexplain_jax.main --mode=benchmark --what=train --config=configs/predecessor.py --peers=PYTHON

Both sides take the same weights, the same batch (of noise, which no time depends on) and the same loss, and steps in
turn. Theirs, tests/parity/predecessor.py, is written from the description: passes one after another, loops over
classes, maps of all classes at the image's size where the network is DeepLab, and a copy of the network in every step.
It is measured twice: as a plain copy is, which computes gradients of weights that nobody uses, and with these left out.
"""

from __future__ import annotations

import functools
import pathlib
import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from flax import traverse_util

from selfexplain_jax import benchmark_peers as peers_lib
from selfexplain_jax import costs
from selfexplain_jax.compile import size_of
from selfexplain_jax.recipes import predecessor_recipe
from selfexplain_jax.training import mesh as mesh_lib
from selfexplain_jax.training.config_json import jsonable
from selfexplain_jax.training.experiment import Experiment, build, make_step, state_creation
from selfexplain_jax.training.state import TrainState, variables_of
from selfexplain_jax.types import Batch, DatasetInfo, UserError

SCRIPT = peers_lib.SCRIPT.with_name("time_predecessor.py")
OWN = {"ours": True, "image_pass": False}
"""Our programs -> whether they have the passes behind the image's."""
COPIES = {"predecessor": True, "predecessor_frozen": False}
"""Side -> whether its copy of the network has gradients of weights."""
FIXED = (
    *("passes.weights", "passes.infills", "passes.hard_masks", "model.temperature_steps", "model.pooling"),
    *("train.optimizer", "train.schedule", "train.warmup_steps", "train.clip_norm", "train.backbone_rate"),
    "train.accumulate",
)
"""What the predecessor's side knows in one form alone."""
UNET_OPTIONS = (
    *("widths", "encoder_depth", "decoder_depth", "stem_stride", "mask_stride"),
    *("map_blur", "edge_distances", "edge_scale", "local_contrast"),
)
DEEPLAB = {
    "encoder": "resnet50",
    "decoder": "aspp",
    "output_stride": 8,
    "decoder_width": 256,
    "map_blur": 0.0,
    "edge_distances": (),
    "frozen_norm": False,
}


# ---- What the other side is handed -----------------------------------------------------------------------------------


def network_name(options: ml_collections.ConfigDict) -> str:
    """What tests/parity/predecessor_networks.py calls the network of `config.model`: "unet" or "deeplab".

    Raises:
      UserError: it has another one.
    """
    if options.name == "unet" and options.norm == "batch" and options.refine_width == 0:
        return "unet"
    differs = [name for name, value in DEEPLAB.items() if options[name] != value]
    if options.name == "encoder_unet" and not differs:
        return "deeplab"
    raise UserError(
        'The predecessor\'s side has two networks: config.model.name = "unet" with norm = "batch" and refine_width = 0,'
        f' and "encoder_unet" with {DEEPLAB}. This config has another; take configs/predecessor.py.'
    )


def peer_settings(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """Loss and optimizer of a config of `recipes.predecessor_recipe`, as tests/parity/predecessor.py reads them.

    Raises:
      UserError: the config has another objective, other passes or another optimizer.
    """
    usual = predecessor_recipe(config.copy_and_resolve_references(), temperature=1.0, upper=1.0, non_target_area=0.0)
    usual.model.pooling, usual.passes.hard_masks, usual.method = "softmax", False, "self_explainer"
    other = [] if config.method == usual.method else ["method"]
    for field in FIXED:
        group, name = field.split(".")
        other += [] if config[group][name] == usual[group][name] else [field]
    background = config.objective.get("background", {})
    if set(config.objective) != set(usual.objective) or background.get("form") != "entropy":
        other.append("objective")
    if other:
        raise UserError(
            f"The predecessor's step is that of recipes.predecessor_recipe, and config.{other[0]} is not; take "
            "configs/predecessor.py."
        )
    return {
        "link": config.model.link,
        "temperature": config.model.pooling_temperature,
        "classes_per_image": min(config.passes.classes_per_image, 1),
        "objective": jsonable(config.objective),
        "mask_stride": config.model.mask_stride,
        "learning_rate": config.train.learning_rate,
    }


def noise_batch(info: DatasetInfo, count: int, seed: int = 0) -> Batch:
    """A batch of normalised noise; one class an image, or one to three where the data have several."""
    rng, size = np.random.default_rng(seed), info.image_size
    label = np.zeros((count, info.num_classes), np.float32)
    for row in label:
        present = rng.integers(1, min(3, info.num_classes) + 1) if info.multilabel else 1
        row[rng.choice(info.num_classes, present, replace=False)] = 1
    return {
        "image": rng.normal(size=(count, size, size, 3)).astype(np.float32),
        "label": label,
        "mask": np.full((count, size, size), 255, np.uint8),
        "valid": np.ones(count, np.float32),
        "index": np.arange(count, dtype=np.int32),
    }


def create(experiment: Experiment, mesh: jax.sharding.Mesh) -> TrainState:
    """The state at step 0 from the config's seed, with random weights whatever `config.model.pretrained` names."""
    make, _ = state_creation(experiment, mesh)
    return make(jax.random.key(experiment.config.seed))


def flat_weights(state: TrainState) -> dict[str, np.ndarray]:
    """{"block/conv/kernel": array} of parameters and batch statistics."""
    trees = (state.params, state.batch_stats)
    flat = (traverse_util.flatten_dict(tree, sep="/") for tree in trees)
    return {path: np.asarray(array) for tree in flat for path, array in tree.items()}


def logit_cells(experiment: Experiment, state: TrainState, images: np.ndarray) -> np.ndarray:
    """The logit maps of images [B, H, W, 3] as they are evaluated, [B, h, w, C]."""

    def maps(state, images):
        return experiment.model.apply(variables_of(state.params, state.batch_stats), images)[1]["logit_maps"]

    return np.asarray(jax.jit(maps)(mesh_lib.local_copy(state), images))


def start(
    interpreter: str, folder: pathlib.Path, experiment: Experiment, state: TrainState, batch: Batch
) -> peers_lib.Peers:
    """Starts the other side on the network of a config, its weights and a batch.

    Args:
      interpreter: see `benchmark_peers.find_interpreter`.
      folder: what it is handed is written there.
      experiment: that of a config of `recipes.predecessor_recipe`.
      state: its weights.
      batch: what it steps on, as NumPy arrays.

    Raises:
      UserError: the config is another one, or both sides' networks turn out to be different.
    """
    config = experiment.config
    kind, settings = network_name(config.model), peer_settings(ml_collections.ConfigDict(config))
    task = {
        "network": kind,
        "options": {name: value for name, value in jsonable(config.model).items() if name in UNET_OPTIONS},
        "classes": batch["label"].shape[1],
        "settings": settings,
        "threads": mesh_lib.usable_cores(),
        "seed": config.seed,
        "batch_size": config.train.batch_size,
        "mean": list(config.data.mean),
        "std": list(config.data.std),
    }
    weights = flat_weights(mesh_lib.local_copy(state))
    inputs = {"images": batch["image"], "label": batch["label"]}
    inputs["cells"] = logit_cells(experiment, state, batch["image"][:1])
    peers = peers_lib.launch(interpreter, SCRIPT, folder, task, {"weights": weights, "inputs": inputs})
    own, _ = size_of(state.params)
    if not peers.missing and peers.about["parameters"] != own:
        peers.close()
        raise UserError(f"The other side's network has {peers.about['parameters']:,} parameters, and ours {own:,}.")
    if not peers.missing and not peers.about["difference"] < 1e-2:
        peers.close()
        raise UserError(f"The other side's logit maps differ from ours by {peers.about['difference']} of the largest.")
    return peers


# ---- Measuring -------------------------------------------------------------------------------------------------------


class OwnSteps:
    """Our step, compiled ahead, and its state.

    Args:
      experiment, mesh: what is trained, and where.
      state: to start from; it is copied, since a step takes over the memory of the state before.
      batch: that every step takes, as NumPy arrays.
      explain: with the passes behind the image's.

    Attributes:
      batch_size: of that batch.
      compile_seconds: of the step.
      operations: floating-point operations of a step as XLA counts them, over all devices; None where it does not tell.
      contractions: the same as `costs.contractions` counts them, and the other side.
      losses: of every step so far.
    """

    def __init__(self, experiment: Experiment, mesh: jax.sharding.Mesh, state: TrainState, batch: Batch, explain: bool):
        self._batch, self.batch_size = mesh_lib.to_global(batch, mesh), len(batch["label"])
        self._state = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree))(state)
        step = make_step(experiment, mesh, explain)
        self.contractions = costs.contractions(step, self._state, self._batch)
        started = time.perf_counter()
        self._step = step.lower(self._state, self._batch).compile()
        self.compile_seconds = time.perf_counter() - started
        counted = (self._step.cost_analysis() or {}).get("flops")
        self.operations = None if counted is None else counted * mesh.devices.size
        self.losses: list[float] = []

    def run(self, steps: int) -> float:
        """Takes steps and returns the seconds."""
        started = time.perf_counter()
        for _ in range(steps):
            self._state, logs = self._step(self._state, self._batch)
            self.losses.append(float(logs["loss"]))
        return time.perf_counter() - started


def run(config: ml_collections.ConfigDict, workdir: str, peers: str = "") -> dict[str, Any]:
    """Measures both sides' steps in turn, and prints a table.

    Args:
      config: of `recipes.predecessor_recipe`; `config.benchmark.repetitions` of `config.benchmark.steps` each.
      workdir: what the other side is handed, and its messages, are written to WORKDIR/peers.
      peers: see `benchmark_peers.find_interpreter`.

    Returns:
      {"batch_size", "cores", "network", "parameters", "compile_seconds", "peers": what their process says of itself,
      "settings": config.benchmark, "sides": {"ours", "image_pass" (our step without the passes behind it),
      "predecessor", "predecessor_frozen": see `measure`}}.

    Raises:
      UserError: a bad config or interpreter, devices that are not this machine's cores, or networks that differ.
    """
    interpreter, settings = peers_lib.find_interpreter(peers), config.benchmark
    check_cores()
    check_counts(settings)
    experiment, mesh = build(config), mesh_lib.make_mesh()
    mesh_lib.check_batch_size(config.train.batch_size, mesh)
    batch, state = noise_batch(experiment.dataset.info, config.train.batch_size), create(experiment, mesh)
    about = {
        "batch_size": config.train.batch_size,
        "cores": mesh_lib.usable_cores(),
        "network": network_name(config.model),
        "parameters": size_of(state.params)[0],
    }
    other = start(interpreter, pathlib.Path(workdir).expanduser() / "peers", experiment, state, batch)
    print(f"{about}, {config.data.image_size} px. {other.missing or f'Peers: {other.about}'}", flush=True)
    try:
        own = {name: OwnSteps(experiment, mesh, state, batch, explain) for name, explain in OWN.items()}
        print(f"Compiled in {own['ours'].compile_seconds:.1f} s.", flush=True)
        sides = measure(own, other, settings)
    finally:
        other.close()
    print(table(sides))
    about["compile_seconds"] = own["ours"].compile_seconds
    return about | {"settings": jsonable(settings), "peers": other.about, "sides": sides}


def measure(
    own: Mapping[str, OwnSteps], other: peers_lib.Peers, settings: ml_collections.ConfigDict
) -> dict[str, dict[str, Any]]:
    """Has all sides step in turn, and then counts the other side's operations.

    Returns:
      Of each side {"seconds": of a step, one number per repetition, "median_seconds", "images_per_second", "ratio": its
      seconds over ours, "missing": why there are none, "contractions": operations of a step's products and convolutions
      (`costs.contractions`, torch.utils.flop_counter), "operations": of all of a step by XLA's count, "losses": one
      a step, "phases": seconds of a step by phase}. What there is not is None, or empty.
    """
    answers: dict[str, list[dict]] = {name: [] for name in COPIES}

    def ours(name: str) -> float:
        return own[name].run(settings.steps) / settings.steps

    def theirs(name: str) -> float:
        answers[name].append(other.ask("step", {"steps": settings.steps, "copy_gradients": COPIES[name]}))
        return answers[name][-1]["seconds"] / settings.steps

    turns = {name: functools.partial(ours, name) for name in own}
    turns |= {name: functools.partial(theirs, name) for name in COPIES}
    seconds, missing = peers_lib.alternate(turns, settings.repetitions)
    sides = {}
    for name, taken in seconds.items():
        # Half of the times would be another median.
        median = None if name in missing else statistics.median(taken)
        side = {"seconds": taken, "median_seconds": median, "missing": missing.get(name, "")}
        side["images_per_second"] = own["ours"].batch_size / median if median else None
        side["ratio"] = median / statistics.median(seconds["ours"]) if median else None
        if name in own:
            side |= {"contractions": own[name].contractions, "operations": own[name].operations}
            side |= {"losses": own[name].losses, "phases": {}}
        else:
            counted = _operations(other, name) if median and settings.operations else None
            side |= {"contractions": counted, "operations": None}
            side["losses"] = [loss for answer in answers[name] for loss in answer["losses"]]
            # The first answer is of the round that does not count.
            side["phases"] = _phases(answers[name][1:], settings.steps)
        sides[name] = side
    return sides


def table(sides: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns the sides as lines of text: medians, and how many times as long as ours; then the phases of theirs."""
    lines = [f"{'':<20} {'s/step':>9} {'images/s':>9} {'x ours':>7} {'GFLOP':>9} {'GFLOP/s':>8}"]
    for name, side in sides.items():
        median, operations = side["median_seconds"], side["contractions"]
        if median is None:
            lines.append(f"{name:<20} {side['missing']}")
            continue
        counted = (
            f"{operations / 1e9:>9,.1f} {operations / 1e9 / median:>8,.1f}" if operations else f"{'-':>9} {'-':>8}"
        )
        lines.append(f"{name:<20} {median:>9.3f} {side['images_per_second']:>9.2f} {side['ratio']:>7.2f} {counted}")
    for name, side in sides.items():
        if side["phases"]:
            lines.append(f"{name}: " + ", ".join(f"{phase} {value:.3f} s" for phase, value in side["phases"].items()))
    return "\n".join(lines)


def check_counts(settings: ml_collections.ConfigDict) -> None:
    """Refuses no steps or no repetitions in `config.benchmark`.

    Raises:
      UserError: there are none.
    """
    for name in ("steps", "repetitions"):
        if settings[name] < 1:
            raise UserError(f"config.benchmark.{name} = {settings[name]} must be at least 1.")


def check_cores() -> None:
    """Refuses devices that the other side does not compute on.

    Raises:
      UserError: JAX computes on an accelerator, or there are several hosts.
    """
    if jax.default_backend() != "cpu" or jax.process_count() > 1:
        raise UserError(
            "The predecessor's side computes on the cores of this machine: set JAX_PLATFORMS=cpu, one process."
        )


def _operations(peers: peers_lib.Peers, name: str) -> float | None:
    try:
        return float(peers.ask("operations", {"copy_gradients": COPIES[name]}, wanted="operations")["operations"])
    except peers_lib.PeerError as error:
        print(f"{name}: operations not counted: {error}")
        return None


def _phases(answers: Sequence[Mapping], steps: int) -> dict[str, float]:
    """Medians over the repetitions, the longest first."""
    names = answers[0]["phases"] if answers else ()
    medians = {name: statistics.median(answer["phases"][name] for answer in answers) / steps for name in names}
    return dict(sorted(medians.items(), key=lambda item: -item[1]))
