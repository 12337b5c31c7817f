"""The training loop: goes on from the newest checkpoint, steps, logs, saves, stops."""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from selfexplain_jax import pictures
from selfexplain_jax.data.pipeline import evaluation_batches, train_iterator
from selfexplain_jax.folders import open_folder
from selfexplain_jax.models.backend import on_cpu
from selfexplain_jax.progress import Progress
from selfexplain_jax.training import mesh as mesh_lib
from selfexplain_jax.training import steps
from selfexplain_jax.training.checkpoint import CheckpointStore, fingerprint
from selfexplain_jax.training.experiment import Experiment, build, load_frozen, make_step, state_creation
from selfexplain_jax.training.frozen import FrozenClassifier
from selfexplain_jax.training.passes import SCORE_TERMS, explanations_start
from selfexplain_jax.training.signals import Stopped, StopSignal
from selfexplain_jax.training.state import TrainState, initial_state
from selfexplain_jax.training.writers import MetricWriter
from selfexplain_jax.types import Batch, Dataset, Predictor, UserError

PICTURE_EXAMPLES = 8
"""Examples of the evaluation split whose masks are drawn while training."""

RUN_AHEAD = 8
"""Steps that the host may be ahead of the accelerator: enough to hide reading and the transfer of batches, which JAX
makes while the device computes, and few enough to bound the memory."""


@dataclasses.dataclass(frozen=True)
class TrainResult:
    """A trained (or restored) network. `state` is whole on one device of this host.

    step: steps behind it. train_seconds: wall time up to the checkpoint of that step, summed over the processes that
    took part in turn; compiling is included, evaluation is not. classifier: the frozen one of an "explainer".
    """

    state: TrainState
    dataset: Dataset
    model: Any
    step: int
    train_seconds: float
    classifier: Predictor | None = None


def train(config: ml_collections.ConfigDict, workdir: str, classifier: FrozenClassifier | None = None) -> TrainResult:
    """Trains to `config.train.steps`, from the newest checkpoint in `workdir` if there is one.

    Writes WORKDIR/checkpoints, metrics.jsonl, tensorboard/ and pictures/masks_STEP.png. The result of a run that was
    stopped and started again is that of an uninterrupted one. `classifier`: see `build`.

    Raises:
      UserError: a bad config, a checkpoint of another one, a folder that cannot be written, a loss that is not finite.
      Stopped: Ctrl-C or SIGTERM, after the state has been saved.
    """
    experiment, mesh = build(config, classifier), mesh_lib.make_mesh()
    mesh_lib.check_batch_size(config.train.batch_size, mesh)
    frozen = load_frozen(experiment, mesh)
    host, hosts = jax.process_index(), jax.process_count()
    iterator = train_iterator(experiment.dataset, config, host=host, hosts=hosts)
    preview = None
    if config.train.evaluate or config.method != "classifier":  # A bad split is refused now, not when it is needed.
        shown = {"batch_size": PICTURE_EXAMPLES, "max_examples": PICTURE_EXAMPLES}
        preview = evaluation_batches(experiment.dataset, config.data.eval_split, config, **shown)
    store = CheckpointStore(workdir, config, classifier=fingerprint(frozen))
    create, abstract = state_creation(experiment, mesh)
    restored = store.restore(abstract, iterator)
    start, seconds = (restored.step, restored.train_seconds) if restored else (0, 0.0)
    state = restored.state if restored else initial_state(config, create, abstract, frozen)
    run = _Run(experiment, mesh, frozen, workdir, store, iterator, preview, start, seconds)
    try:
        with StopSignal() as stop:
            state = run.to_the_end(state, stop)
    finally:
        run.close()
    return _result(experiment, frozen, state, run.step, run.saved_seconds)


def restore(config: ml_collections.ConfigDict, workdir: str, classifier: FrozenClassifier | None = None) -> TrainResult:
    """The network of the newest readable checkpoint in `workdir`, for evaluating and explaining; changes no file.

    `classifier`: see `build`.

    Raises:
      UserError: there is none, or it belongs to another config or was trained with another classifier.
    """
    experiment, mesh = build(config, classifier), mesh_lib.make_mesh()
    frozen = load_frozen(experiment, mesh)
    store = CheckpointStore(workdir, config, read_only=True, classifier=fingerprint(frozen))
    _, abstract = state_creation(experiment, mesh)
    restored = store.restore(abstract)
    store.close()
    if restored is None:
        raise UserError(f"{workdir} holds no checkpoint yet. Train first, or name another --workdir.")
    return _result(experiment, frozen, restored.state, restored.step, restored.train_seconds)


def untrained(config: ml_collections.ConfigDict) -> TrainResult:
    """The network as training starts from it, with the weights that `config.model.pretrained` names.

    Raises:
      UserError: a bad config, or weights that cannot be read.
    """
    experiment, mesh = build(config), mesh_lib.make_mesh()
    frozen = load_frozen(experiment, mesh)
    state = initial_state(config, *state_creation(experiment, mesh), frozen)
    return _result(experiment, frozen, state, 0, 0.0)


def _result(experiment: Experiment, frozen: tuple, state: TrainState, step: int, seconds: float) -> TrainResult:
    predictor = experiment.classifier.predictor(mesh_lib.local_copy(frozen[0])) if frozen else None
    return TrainResult(mesh_lib.local_copy(state), experiment.dataset, experiment.model, step, seconds, predictor)


class _Run:
    """One process's part of a training: the steps, and what is due between them."""

    def __init__(self, experiment, mesh, frozen, workdir, store, iterator, preview, start, seconds_before):
        self.step = self._start = start
        self._experiment, self._mesh, self._frozen = experiment, mesh, frozen
        self._store, self._iterator, self._preview = store, iterator, preview
        self._workdir = open_folder(workdir)
        self._seconds_before, self._started = seconds_before, time.monotonic()
        # Seconds of training behind the newest checkpoint.
        self.saved_seconds = seconds_before
        self._writer = MetricWriter(workdir, resume_step=start)
        self._progress = Progress(experiment.config.train.steps, start)
        # (step, logs on the device) since the last line that was logged.
        self._history: list[tuple[int, dict[str, jax.Array]]] = []
        self._rate_since: tuple[float, int] | None = None  # None: the program is yet to be compiled, which is no rate.
        self._program_since = self._started
        # Also where the parameters are split over hosts, each of them sees all the answers.
        self._finite_leaves = jax.jit(finite_leaves, out_shardings=mesh_lib.replicated(mesh))
        self._run_ahead = 0 if on_cpu() else RUN_AHEAD

    def train_seconds(self) -> float:
        """Seconds of training so far, those of earlier processes included."""
        return self._seconds_before + time.monotonic() - self._started

    def close(self) -> None:
        """Waits for the saving and closes the files."""
        try:
            self._store.close()
        finally:
            self._progress.close()
            self._writer.close()

    def to_the_end(self, state: TrainState, stop: StopSignal) -> TrainState:
        """Steps until `config.train.steps`, or until a signal; returns the state, which has been saved."""
        train = self._experiment.config.train
        self._introduce(state)
        explanations_from = explanations_start(self._experiment.config)
        draw, batch, step = self._picture_function(), None, None
        while self.step < train.steps:
            if self._start < self.step == explanations_from:
                self._progress.say(f"From step {self.step + 1} on: all passes, a slower step, which is compiled now.")
                # For a batch like the last one: a state that is saved now must not have taken the next.
                step = self._compiled(True, state, batch, stop)
            batch = mesh_lib.to_global(next(self._iterator), self._mesh)
            if step is None:
                step = self._compiled(self.step >= explanations_from, state, batch, stop)
            state, logs = step(state, batch, *self._frozen)
            self.step += 1
            self._history.append((self.step, logs))
            self._wait_for_device()
            last, log = self.step == train.steps, self.step % train.log_every == 0
            signal_number = stop.requested(self.step, together=log)
            save = last or _due(self.step, train.checkpoint_every) or signal_number is not None
            # A line at every checkpoint, so that the averages of a resumed run begin where the first run's did.
            if log or save:
                self._log()
            if save:
                self._save(state)
            if last or _due(self.step, train.picture_every):
                draw(state)
            if signal_number is not None:
                self._store.wait()
                raise Stopped(signal_number, self.step)
            if save or _due(self.step, train.picture_every):
                self._rate_since = (time.monotonic(), self.step)
        self._store.wait()
        if jax.process_count() == 1 and stop.received is not None:  # While the last state was saved or drawn.
            raise Stopped(stop.received, self.step)
        return state

    def _compiled(self, explain: bool, state: TrainState, batch: Batch, stop: StopSignal) -> Callable:
        """The step as a program for such a state and batch.

        Raises:
          Stopped: a signal came while XLA compiled; the state is saved.
        """
        started = time.monotonic()
        program = compiled_step(make_step(self._experiment, self._mesh, explain), (state, batch, *self._frozen), stop)
        if program is None:
            # A run that has not made a step yet stands where its newest checkpoint does.
            if self.step > self._start:
                self._log()
                self._save(state)
            self._store.wait()
            raise Stopped(stop.received, self.step, compiling=True)
        self._rate_since, self._program_since = None, started
        return program

    def _introduce(self, state: TrainState) -> None:
        parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
        devices, train = self._mesh.devices, self._experiment.config.train
        self._progress.say(
            f"{type(self._experiment.model).__name__} with {parameters:,} parameters on {devices.size} x "
            f"{devices.flat[0].device_kind} ({jax.process_count()} hosts), batch {train.batch_size}."
        )
        if self.step >= train.steps:
            self._progress.say(f"All {train.steps} steps are done.")
        elif self.step:
            self._progress.say(f"Going on from the checkpoint of step {self.step}.")

    def _wait_for_device(self) -> None:
        """Keeps the host from running ahead without end; on CPU, where steps share the threads, not at all."""
        if self._rate_since is None:
            jax.block_until_ready(self._history[-1][1])
            seconds = time.monotonic() - self._program_since
            self._progress.say(f"First step after {seconds:.1f} s, compilation included.")
            self._rate_since = (time.monotonic(), self.step)
        elif len(self._history) > self._run_ahead:
            jax.block_until_ready(self._history[-1 - self._run_ahead][1])
        self._progress.step(self.step)

    def _log(self) -> None:
        """Writes the means since the last line. Here, and only here, the host waits for the newest numbers."""
        if not self._history:
            return
        steps_seen = [step for step, _ in self._history]
        logs = jax.device_get([values for _, values in self._history])
        bad = first_not_finite(steps_seen, logs)
        if bad is not None:
            raise self._not_finite(*bad)
        # The steps before the explanations begin log fewer terms than those after.
        names = sorted(set().union(*logs))
        means = {name: float(np.mean([v[name] for v in logs if name in v], dtype=np.float64)) for name in names}
        train = self._experiment.config.train
        since, since_step = self._rate_since
        rate = (self.step - since_step) / max(time.monotonic() - since, 1e-9)
        rates = {"steps_per_second": rate, "images_per_second": rate * train.batch_size} if rate else {}
        learning_rate = float(self._experiment.schedule((self.step - 1) // train.accumulate))
        seconds = {"learning_rate": learning_rate, "train_seconds": self.train_seconds()}
        self._writer.scalars(self.step, means | seconds | rates)
        shown = {name: means[name] for name in ("loss", "accuracy") if name in means}
        self._progress.report(self.step, shown, rate, rate * train.batch_size)
        self._history.clear()
        self._rate_since = (time.monotonic(), self.step)

    def _save(self, state: TrainState) -> None:
        finite = np.asarray(self._finite_leaves(state.params))
        if not finite.all():
            path, _ = jax.tree_util.tree_leaves_with_path(state.params)[int(np.argmin(finite))]
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            raise self._not_finite(self.step, f"parameter {name}", math.nan)
        self.saved_seconds = self.train_seconds()
        # A run that goes on from this checkpoint does not tell again what came before it.
        self._writer.flush()
        self._store.save(self.step, state, self._iterator, self.saved_seconds)

    def _not_finite(self, step: int, name: str, value: float) -> UserError:
        self._store.wait()
        latest = self._store.latest_step
        kept = "There is no checkpoint yet" if latest is None else f"The last good checkpoint is that of step {latest}"
        return UserError(
            f"Training stopped: {name} is {value} at step {step}. {kept} ({self._store.directory}). Try a lower "
            "config.train.learning_rate, a longer warmup_steps or a smaller clip_norm, in another --workdir."
        )

    def _picture_function(self):
        """Returns state -> None, which draws the masks of a few fixed examples to TensorBoard and to a PNG file.

        All hosts call it: parameters that are split over them have to be put together. The first one draws.
        """
        if self._experiment.config.method == "classifier":
            return lambda state: None
        config, model = self._experiment.config, self._experiment.model
        of_state = jax.jit(functools.partial(steps.mask_pictures, config=config, model=model))
        examples = functools.cache(lambda: next(iter(self._preview)))

        def draw(state: TrainState) -> None:
            # Pictures need no optimizer.
            state = mesh_lib.local_copy(state.replace(opt_state=()))
            if jax.process_index() != 0:
                return
            real = examples()["valid"] > 0
            drawn = jax.device_get(of_state(state, examples()))
            drawn = {name.replace("_", " "): drawn[name][real] for name in steps.PICTURES}
            self._writer.images(self.step, drawn)
            path = self._workdir / "pictures" / f"masks_{self.step:06d}.png"
            pictures.save_grid(path, {name: list(array) for name, array in drawn.items()})

        return draw


def compiled_step(step: Callable, arguments: tuple, stop: StopSignal) -> Callable | None:
    """A jitted step compiled for such arguments, or None: see `StopSignal.beside`."""
    return stop.beside(step.lower(*arguments).compile)


def first_not_finite(
    step_numbers: Sequence[int], logs: Sequence[Mapping[str, np.ndarray]]
) -> tuple[int, str, float] | None:
    """The first step at which a number is not finite, its name and value: scores' terms before others and the loss."""
    for step, values in zip(step_numbers, logs, strict=True):
        terms = sorted(name for name in values if name.startswith("term/"))
        names = [*(f"term/{name}" for name in SCORE_TERMS), *terms, "loss", "gradient_norm"]
        for name in names:
            if name in values and not np.isfinite(values[name]):
                return step, name, float(values[name])
    return None


def finite_leaves(tree: Any) -> jax.Array:
    """[number of leaves] whether all values of each are finite."""
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)])


def _due(step: int, every: int) -> bool:
    """Every so many steps; 0 is never."""
    return every > 0 and step % every == 0
