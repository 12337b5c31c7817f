"""Compiles the training step without running it: does it fit, what does it cost, what do devices send each other?"""

from __future__ import annotations

import json
import math
import time
from typing import Any

import jax
import ml_collections
import numpy as np
from clu import parameter_overview

from selfexplain_jax import topology as topology_lib
from selfexplain_jax.costs import contractions, memory_of
from selfexplain_jax.folders import open_folder, write_whole
from selfexplain_jax.models.backend import written_for
from selfexplain_jax.program_text import collectives_in
from selfexplain_jax.provenance import provenance
from selfexplain_jax.training import mesh as mesh_lib
from selfexplain_jax.training.experiment import Experiment, build, make_step, state_creation
from selfexplain_jax.training.state import TrainState
from selfexplain_jax.types import Batch


def abstract_batch(config: ml_collections.ConfigDict, num_classes: int, mesh: jax.sharding.Mesh) -> Batch:
    """Returns shapes, types and sharding of a training batch, without the data."""
    count, size = config.train.batch_size, config.data.image_size
    fields = {
        "image": ((count, size, size, 3), np.float32),
        "label": ((count, num_classes), np.float32),
        "mask": ((count, size, size), np.uint8),
        "valid": ((count,), np.float32),
        "index": ((count,), np.int32),
    }
    sharding = mesh_lib.batch_sharding(mesh)
    return {name: jax.ShapeDtypeStruct(shape, dtype, sharding=sharding) for name, (shape, dtype) in fields.items()}


def abstract_state(experiment: Experiment, mesh: jax.sharding.Mesh) -> TrainState:
    """Returns shapes, types and sharding of the training state, without computing it."""
    return state_creation(experiment, mesh)[1]


def abstract_frozen(experiment: Experiment, mesh: jax.sharding.Mesh) -> tuple:
    """Returns shapes, types and sharding of what the step takes behind state and batch; see `experiment.make_step`."""
    if experiment.classifier is None:
        return ()
    sharding = mesh_lib.replicated(mesh)
    return (jax.tree.map(lambda leaf: mesh_lib.placed(leaf, sharding), experiment.classifier.shapes),)


def size_of(tree: Any) -> tuple[int, int]:
    """Returns the number of elements and of bytes in a tree of arrays or of their shapes."""
    leaves = jax.tree.leaves(tree)
    return sum(leaf.size for leaf in leaves), sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)


def bytes_per_device(tree: Any) -> int:
    """Returns the bytes of a tree of arrays or of their shapes that lie on one device, by their shardings."""
    sizes = ((leaf.sharding.shard_shape(leaf.shape), leaf.dtype.itemsize) for leaf in jax.tree.leaves(tree))
    return sum(math.prod(shape) * size for shape, size in sizes)


def compile_step(config: ml_collections.ConfigDict, workdir: str | None = None, topology: str = "") -> dict:
    """Lowers and compiles the step of the training loop; runs nothing, reads no data.

    Prints the network's parameters and a summary. Memory and operations are those of one device.

    Args:
      config: the whole configuration.
      workdir: where compile.json is written; None: nowhere.
      topology: TPUs that need not be here, see `topology.devices_of`; "": the devices that are here.

    Returns:
      {"device", "devices", "topology", "batch_size", "parameters", "parameter_bytes", "state_bytes",
      "parameter_bytes_per_device", "state_bytes_per_device", "memory_bytes": {"arguments", "outputs", "shared",
      "temporary", "program", "total", "peak"}, "contraction_flops" (a device's share of `costs.contractions`), "flops"
      and "bytes_accessed" (by the compiler, which counts the body of a loop once, as where many classes come in
      chunks), "collectives": {operation: {"count", "bytes"}} (see `program_text.collectives_in`), "trace_seconds",
      "compile_seconds"} and `provenance.provenance`; what the backend does not tell is None or left out.

    Raises:
      UserError: a bad config, a batch that does not divide over the devices, or a topology that is unknown or cannot be
        compiled for.
    """
    devices = topology_lib.devices_of(topology) if topology else jax.devices()
    experiment, mesh = build(config), mesh_lib.make_mesh(devices)
    mesh_lib.check_batch_size(config.train.batch_size, mesh)
    state = abstract_state(experiment, mesh)
    batch = abstract_batch(config, experiment.dataset.info.num_classes, mesh)
    started = time.monotonic()
    with written_for(devices[0].platform):
        step, arguments = make_step(experiment, mesh), (state, batch, *abstract_frozen(experiment, mesh))
        lowered = step.lower(*arguments)
        counted = contractions(step, *arguments) / mesh.devices.size
    traced = time.monotonic()
    compiled = lowered.compile()
    finished = time.monotonic()
    parameters, parameter_bytes = size_of(state.params)
    costs = compiled.cost_analysis() or {}
    result = {
        "device": mesh.devices.flat[0].device_kind,
        "devices": mesh.devices.size,
        "topology": topology,
        "batch_size": config.train.batch_size,
        "parameters": parameters,
        "parameter_bytes": parameter_bytes,
        "state_bytes": size_of(state)[1],
        "parameter_bytes_per_device": bytes_per_device(state.params),
        "state_bytes_per_device": bytes_per_device(state),
        "memory_bytes": memory_of(compiled),
        "contraction_flops": counted,
        "flops": costs.get("flops"),
        "bytes_accessed": costs.get("bytes accessed"),
        "collectives": collectives_in(compiled.as_text()),
        "trace_seconds": round(traced - started, 2),
        "compile_seconds": round(finished - traced, 2),
    } | provenance(config)
    print(parameter_overview.get_parameter_overview(state.params, include_stats=False))
    print(summary(result))
    if workdir is not None and jax.process_index() == 0:
        path = open_folder(workdir) / "compile.json"
        write_whole(path, (json.dumps(result, indent=2) + "\n").encode())
        print(f"Written to {path}")
    return result


def summary(result: dict) -> str:
    """Returns the lines that `compile_step` prints of its result."""
    lines = [
        f"One training step, batch {result['batch_size']} on {result['devices']} x {result['device']}, "
        f"traced in {result['trace_seconds']} s, compiled in {result['compile_seconds']} s. Per device:",
        f"  parameters   {result['parameters']:>14,}   {_megabytes(result['parameter_bytes_per_device'])}",
        f"  state        {'':>14}   {_megabytes(result['state_bytes_per_device'])}",
    ]
    for name, value in (result["memory_bytes"] or {}).items():
        lines.append(f"  {name:<12} {'':>14}   {_megabytes(value)}")
    lines.append(f"  operations   {result['contraction_flops'] / 1e9:>14,.3f}   GFLOP of products and convolutions")
    if result["flops"] is not None:
        lines.append(f"  {'':<12} {result['flops'] / 1e9:>14,.3f}   GFLOP of all, as the compiler counts: loops once")
    for name, entry in result["collectives"].items():
        lines.append(f"  {name:<18} {entry['count']:>8,}   {_megabytes(entry['bytes'])}")
    return "\n".join(lines if result["collectives"] else [*lines, "  collectives  none"])


def _megabytes(value: int) -> str:
    return f"{value / 1e6:>12,.2f} MB"
