"""Devices, hosts and sharding: one mesh axis `data`, over which the batch is split, and the state if a config says so.

The same code runs on one CPU and on many hosts with many accelerators each.
"""

from __future__ import annotations

import itertools
import math
import os
import pickle
import re
from collections.abc import Sequence
from typing import Any

import jax
import ml_collections
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from orbax.checkpoint import multihost

from selfexplain_jax.data.pipeline import EvaluationBatches, evaluation_batches
from selfexplain_jax.types import Batch, Dataset, UserError

DATA_AXIS = "data"

SPLIT_FROM = 2**12
"""Elements from which an array is worth splitting: below, putting it together takes longer than sending it."""

PATIENCE = 7 * 24 * 3600 * 1000
"""Milliseconds that a host waits for one whose share of long work is not done: a week."""

_MEETINGS = itertools.count()


def distributed_start(
    coordinator_address: str | None = None, num_processes: int | None = None, process_id: int | None = None
) -> None:
    """Joins the processes of a run on many hosts; does nothing when no argument is given (one process).

    Must come before anything else touches JAX's devices.

    Args:
      coordinator_address: "host:port" of process 0, or "auto" where JAX finds all three by itself (Cloud TPU, Slurm,
        Open MPI, Kubernetes). Under Slurm and Open MPI every process then takes the GPU of its number on its
        host; with an address that is written out, all GPUs that it sees.
      num_processes: how many processes there are.
      process_id: number of this one, 0 ... num_processes - 1.

    Raises:
      UserError: only some of the three are given, the number of this process is out of range, the address has no port,
        the cluster does not say where the others are, or they do not answer within five minutes.
    """
    given = (coordinator_address, num_processes, process_id)
    if all(value is None for value in given):
        return
    if given == ("auto", None, None):
        _join()
        return
    if any(value is None for value in given) or coordinator_address == "auto":
        raise UserError(
            f"A run of many processes needs all of --coordinator_address={coordinator_address}, "
            f"--num_processes={num_processes} and --process_id={process_id} (or --coordinator_address=auto alone "
            "on Cloud TPU, Slurm, Open MPI and Kubernetes); a run of one process needs none."
        )
    if not 0 <= process_id < num_processes:
        raise UserError(f"--process_id={process_id} must lie in 0 ... --num_processes - 1 = {num_processes - 1}.")
    if not re.fullmatch(r".+:\d+", coordinator_address):
        raise UserError(f"--coordinator_address={coordinator_address} must be HOST:PORT of process 0.")
    _join(
        coordinator_address=coordinator_address,
        num_processes=num_processes,
        process_id=process_id,
        # What is written out counts, whatever a cluster's variables say.
        cluster_detection_method="deactivate",
    )


def _join(**options: Any) -> None:
    """Calls `jax.distributed.initialize`, whose errors become UserErrors."""
    try:
        jax.distributed.initialize(**options)
    except ValueError as error:  # Nothing that JAX knows says where the others are.
        raise UserError(
            f"--coordinator_address=auto finds no cluster here ({error}) Start the processes with srun, mpirun or on a "
            "Cloud TPU, or give --coordinator_address=HOST:PORT, --num_processes and --process_id; one process needs "
            "none. On Kubernetes without TPUs it takes: pip install kubernetes."
        ) from error
    except RuntimeError as error:
        raise UserError(
            f"The processes of this run did not find each other: {str(error).splitlines()[0]} Do all of them run, can "
            "they reach the address, and is its port free?"
        ) from error


def usable_cores() -> int:
    """How many cores this process may use."""
    # Only Linux says which.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_devices_for(batch_size: int, cores: int) -> int:
    """How many devices a CPU is best split into: the most that divide the batch, with eight examples or more on each.

    XLA runs convolutions on all cores but most of the rest of a step on one, so two devices with half the batch each
    take two thirds of the time that one device takes on two cores.
    """
    return max(n for n in range(1, max(cores, 1) + 1) if n == 1 or (batch_size % n == 0 and batch_size // n >= 8))


def split_cpu(batch_size: int) -> None:
    """Makes JAX see this process's CPU as several devices, one a core; must come before anything touches the devices.

    Does nothing where somebody has chosen a number already, or the devices are in use; accelerators are not concerned.
    """
    chosen = jax.config.values["jax_num_cpu_devices"] > 0
    if chosen or "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
        return
    try:
        jax.config.update("jax_num_cpu_devices", cpu_devices_for(batch_size, usable_cores()))
    except RuntimeError:  # The devices are in use: a notebook that has computed before.
        return


def make_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh of these devices, or of all devices of all hosts, with the one axis `data`."""
    devices = jax.devices() if devices is None else devices
    # Auto: the compiler places the collectives. make_mesh's own default wants every sharding spelt out in the program.
    return jax.make_mesh((len(devices),), (DATA_AXIS,), axis_types=(AxisType.Auto,), devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
    """Sharding of what every device holds in full: the logged numbers, and the training state if it is not split."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Sharding of a batch: its first axis is split over the devices."""
    return NamedSharding(mesh, PartitionSpec(DATA_AXIS))


def split_sharding(shape: tuple[int, ...], mesh: Mesh) -> NamedSharding:
    """Sharding of a large array in parts: its longest axis that the number of devices divides is split over them.

    Whole on every device where there is no such axis, or the array has less than SPLIT_FROM elements. Of axes that are
    equally long the last one is split.
    """
    devices = mesh.devices.size
    divisible = [axis for axis, length in enumerate(shape) if length % devices == 0]
    if not divisible or math.prod(shape) < SPLIT_FROM:
        return replicated(mesh)
    longest = max(divisible, key=lambda axis: (shape[axis], axis))
    return NamedSharding(mesh, PartitionSpec(*[None] * longest, DATA_AXIS))


def placed(leaf: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    """Shape and type of an array (or of its description) with that sharding."""
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def check_batch_size(batch_size: int, mesh: Mesh) -> None:
    """Refuses a global batch that does not divide over the devices.

    Raises:
      UserError: with both numbers and the nearest sizes that do.
    """
    devices = mesh.devices.size
    if batch_size < 1 or batch_size % devices:
        below = batch_size // devices * devices
        choices = f"{below} or {below + devices}" if below > 0 else f"{devices}"
        raise UserError(
            f"config.train.batch_size = {batch_size} does not divide over {devices} devices "
            f"({len({device.process_index for device in mesh.devices.flat})} hosts). Choose {choices}, or use fewer "
            "devices."
        )


def to_global(batch: Batch, mesh: Mesh) -> Batch:
    """Makes one global batch of the hosts' parts.

    Args:
      batch: this host's examples, numpy arrays [B / hosts, ...].
      mesh: from `make_mesh`.

    Returns:
      The same fields as global arrays [B, ...], split over the devices.

    Raises:
      UserError: the global batch does not divide over the devices.
    """
    sharding = batch_sharding(mesh)
    check_batch_size(len(next(iter(batch.values()))) * jax.process_count(), mesh)
    return {name: jax.make_array_from_process_local_data(sharding, value) for name, value in batch.items()}


def local_copy(tree: Any) -> Any:
    """Arrays as one device of this host holds them in full: what a host can compute with, without the others.

    All hosts must call it where the arrays are split over them, since they have to put them together.
    """

    def whole(array):
        if array.is_fully_replicated:
            return array.addressable_data(0)
        return jax.device_put(host_copy(array), jax.local_devices()[0])

    return jax.tree.map(whole, tree)


def host_copy(array: jax.Array) -> np.ndarray:
    """A whole array in this host's memory; one at a time, so that no device has to hold a whole state that is split.

    All hosts must call it where the array is split over them.
    """
    if array.is_fully_replicated:
        return np.asarray(array.addressable_data(0))
    if array.is_fully_addressable:
        return np.asarray(array)
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(array, tiled=True))


def own_batches(dataset: Dataset, config: ml_collections.ConfigDict) -> EvaluationBatches:
    """This host's share of the batches that evaluations and comparisons go through, again and again."""
    settings = config.evaluation
    return evaluation_batches(
        dataset,
        config.data.eval_split,
        config,
        batch_size=settings.batch_size,
        max_examples=settings.max_examples,
        host=jax.process_index(),
        hosts=jax.process_count(),
    )


def gather(value: Any, *, patiently: bool = False) -> list[Any]:
    """Every host's value on every host, in their order: anything that can be pickled, by memory and not by files.

    All hosts must call it; with one process it costs nothing. On CPUs a host gives the slowest one half an hour;
    `patiently` it waits as long as the others live (and hears a minute and a half later that one does not).
    """
    if jax.process_count() == 1:
        return [value]
    if patiently:
        multihost.get_barrier_sync_fn()(key=f"gather_{next(_MEETINGS)}", timeout_ms=PATIENCE)
    from jax.experimental import multihost_utils

    content = np.frombuffer(pickle.dumps(value), np.uint8)
    lengths = np.asarray(multihost_utils.process_allgather(np.asarray(len(content), np.int32))).ravel()
    padded = np.zeros(int(lengths.max()), np.uint8)
    padded[: len(content)] = content
    rows = np.asarray(multihost_utils.process_allgather(padded)).reshape(len(lengths), -1)  # [hosts, longest]
    # From processes of this run, which run the same program.
    return [pickle.loads(row[:length].tobytes()) for row, length in zip(rows, lengths, strict=True)]  # noqa: S301


def agree(value: bool) -> bool:
    """True on every host if it is true on any. All hosts must call it; with one process it costs nothing."""
    if jax.process_count() == 1:
        return value
    from jax.experimental import multihost_utils

    return bool(np.any(multihost_utils.process_allgather(np.asarray(value))))
