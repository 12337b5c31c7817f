"""The input pipeline, the training step and the network's own masks, each as the loop runs it, against the clock.

What a step computes is held against what the device can: its rate of operations beside that of a large matrix product.
"""

from __future__ import annotations

import functools
import itertools
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from selfexplain_jax.costs import contractions, memory_of, peak_bytes
from selfexplain_jax.data import build_dataset
from selfexplain_jax.data.pipeline import evaluation_batches, train_iterator
from selfexplain_jax.training import mesh as mesh_lib
from selfexplain_jax.training.experiment import build, load_frozen, make_step, state_creation
from selfexplain_jax.training.state import make_predictor
from selfexplain_jax.types import UserError

Measurement = dict[str, list[float]]
PEAK_SIDE = 2048
"""Rows and columns of the product that says what a device can do."""


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

    Every step is waited for, so that time spent in the iterator is time that the devices have nothing to do, and the
    transfer of a batch is part of its step. On CPU so does the loop; on an accelerator the loop runs ahead
    (`loop.RUN_AHEAD`), reads and transfers while the device computes, and is faster than this.

    Args:
      config: the whole configuration.
      steps: steps per repetition, after two that warm up.
      repetitions: how often.

    Returns:
      One number per repetition each: "train images/s" over all devices, "step ms" (median over the repetition's steps,
      waiting for data left out), "waiting for data %" of the wall time, and of `against_peak`. One number each: "step
      GFLOP" of products and convolutions, "compile s" (less where the compilation cache has the step), "memory MB" of
      one device, arguments included, where the backend tells.

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
    batch = mesh_lib.to_global(next(iterator), mesh)
    operations = contractions(train_step, state, batch, *frozen)
    compiled, costs = compile_timed(train_step.lower(state, batch, *frozen), operations)
    for _ in range(2):
        state, logs = jax.block_until_ready(compiled(state, batch, *frozen))
        batch = mesh_lib.to_global(next(iterator), mesh)

    def step(batch):
        nonlocal state
        state, logs = jax.block_until_ready(compiled(state, mesh_lib.to_global(batch, mesh), *frozen))

    measured = timed(iterator, step, config.train.batch_size, steps, repetitions, "train")
    measured |= against_peak(operations, measured["step ms"], mesh, config.model.compute_dtype)
    return measured | costs


def benchmark_explain(config: ml_collections.ConfigDict, *, steps: int = 10, repetitions: int = 5) -> Measurement:
    """Draws the network's own masks of evaluation images, `config.benchmark.classes` of each; its weights are random.

    Args:
      config: the whole configuration.
      steps: batches per repetition, after two that compile and warm up.
      repetitions: how often.

    Returns:
      As `benchmark_train`, with "explain images/s", on one device.

    Raises:
      UserError: a bad config, a number below 1, or a network without masks.
    """
    _check_counts(steps, repetitions)
    if config.method == "classifier":
        raise UserError(
            "--what=explain measures a network's own masks, and config.method = 'classifier' has none: methods for it "
            "are measured by --what=attribution."
        )
    if jax.process_count() > 1:
        raise UserError("--what=explain measures one process: leave out --num_processes and --coordinator_address.")
    experiment, mesh = build(config), mesh_lib.make_mesh(jax.devices()[:1])
    create, _ = state_creation(experiment, mesh)
    state, dataset = create(jax.random.key(config.seed)), experiment.dataset
    frozen = load_frozen(experiment, mesh)
    classifier = experiment.classifier.predictor(*frozen) if frozen else None
    predictor = make_predictor(config, dataset.info, experiment.model, state, classifier)
    size = config.evaluation.batch_size
    batches = evaluation_batches(dataset, config.data.eval_split, config, batch_size=size)
    iterator = itertools.chain.from_iterable(itertools.repeat(batches))
    classes = min(config.benchmark.classes, dataset.info.num_classes)
    class_ids = np.tile(np.arange(classes, dtype=np.int32), (size, 1))

    image = next(iterator)["image"]
    operations = contractions(predictor.masks, image, class_ids)
    # The weights are an argument, as they are in what `predictor.masks` compiles.
    lowered = jax.jit(lambda masks, *arrays: masks(*arrays)).lower(predictor.masks, image, class_ids)
    compiled, costs = compile_timed(lowered, operations)

    def step(batch):
        jax.block_until_ready(compiled(predictor.masks, batch["image"], class_ids))

    for _ in range(2):
        step(next(iterator))
    measured = timed(iterator, step, size, steps, repetitions, "explain")
    measured |= against_peak(operations, measured["step ms"], mesh, config.model.compute_dtype)
    return measured | costs


def compile_timed(lowered: jax.stages.Lowered, operations: float) -> tuple[jax.stages.Compiled, Measurement]:
    """Returns the program, and once each "step GFLOP", "compile s" and, where the backend tells, "memory MB".

    Args:
      lowered: of a step.
      operations: of that step, in products and convolutions.
    """
    started = time.perf_counter()
    compiled = lowered.compile()
    once = {"step GFLOP": [operations / 1e9], "compile s": [time.perf_counter() - started]}
    memory = peak_bytes(memory_of(compiled))
    return compiled, once | ({} if memory is None else {"memory MB": [memory / 1e6]})


def timed(iterator, step: Callable, batch_size: int, steps: int, repetitions: int, name: str) -> Measurement:
    """Returns "NAME images/s", "step ms" and "waiting for data %", each once per repetition of so many steps.

    Args:
      iterator: of batches.
      step: takes a batch and returns when it is done.
      batch_size: images of a batch, over all hosts.
      steps, repetitions: how often.
      name: of the rate.
    """
    measured: Measurement = {f"{name} images/s": [], "step ms": [], "waiting for data %": []}
    for _ in range(repetitions):
        waited, computed = [], []
        for _ in range(steps):
            started = time.perf_counter()
            batch = next(iterator)
            arrived = time.perf_counter()
            step(batch)
            waited.append(arrived - started)
            computed.append(time.perf_counter() - arrived)
        seconds = sum(waited) + sum(computed)
        measured[f"{name} images/s"].append(steps * batch_size / seconds)
        measured["step ms"].append(1000 * statistics.median(computed))
        measured["waiting for data %"].append(100 * sum(waited) / seconds)
    return measured


def against_peak(operations: float, milliseconds: list[float], mesh: jax.sharding.Mesh, dtype: str) -> Measurement:
    """Returns "GFLOP/s" of each repetition, "matrix product GFLOP/s" of the devices, and "of matrix product %".

    Args:
      operations: of a step, in products and convolutions (`costs.contractions`).
      milliseconds: that a step took, once per repetition.
      mesh: the devices that share the step.
      dtype: that convolutions and products are computed in.
    """
    rates = [operations / (1e6 * step) for step in milliseconds]
    peaks = matrix_product_rates(len(rates), mesh, dtype)
    best = max(peaks)
    return {
        "GFLOP/s": rates,
        "matrix product GFLOP/s": peaks,
        "of matrix product %": [100 * rate / best for rate in rates],
    }


def matrix_product_rates(repetitions: int, mesh: jax.sharding.Mesh, dtype: str, side: int = 0) -> list[float]:
    """Returns GFLOP/s of products of square matrices on all devices of a mesh at once, once per repetition.

    A call is one product on CPU, and a chain of many elsewhere, where one would be over before the next is asked for.

    Args:
      repetitions: how often.
      mesh: every device has matrices of its own.
      dtype: "float32" or "bfloat16".
      side: rows and columns; 0: PEAK_SIDE.
    """
    side, chain = side or PEAK_SIDE, 1 if jax.default_backend() == "cpu" else 100
    sharding = mesh_lib.batch_sharding(mesh)

    @functools.partial(jax.jit, out_shardings=sharding)
    def draw():
        # Columns of equal numbers that sum to one: a chain of products stays as it is.
        return jnp.full((mesh.devices.size, side, side), 1 / side, dtype)

    @functools.partial(jax.jit, out_shardings=sharding)
    def multiply(matrices):
        return jax.lax.fori_loop(0, chain, lambda _, found: found @ matrices, matrices)

    matrices = draw()
    multiply(matrices).block_until_ready()
    rates = []
    for _ in range(repetitions):
        started = time.perf_counter()
        multiply(matrices).block_until_ready()
        seconds = time.perf_counter() - started
        rates.append(2 * chain * mesh.devices.size * side**3 / seconds / 1e9)
    return rates


def _check_counts(steps: int, repetitions: int) -> None:
    if steps < 1 or repetitions < 1:
        raise UserError(f"A benchmark needs at least one step and one repetition; got {steps} and {repetitions}.")
