"""Parameters, their average and the optimizer's numbers split over the devices: the same training in less memory."""

import dataclasses
import os
import pathlib
import subprocess
import sys
import textwrap

import jax
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec
from test_loop import tiny_config

from selfexplain_jax.training import checkpoint, experiment, loop
from selfexplain_jax.training import mesh as mesh_lib

TESTS = pathlib.Path(__file__).parent


def mesh_of(devices):
    axis_types = (jax.sharding.AxisType.Auto,)
    return jax.make_mesh((devices,), ("data",), axis_types=axis_types, devices=jax.devices()[:devices])


def wide_config(shard, batch_size=4, weights="live", **train):
    """A network with arrays that are worth splitting; with the weights "ema" also a pass that uses the average."""
    config = tiny_config()
    config.model.widths = (64,)
    if weights == "ema":
        config.passes.weights = weights
    else:
        del config.objective.object
    config.train.batch_size, config.train.shard_parameters = batch_size, shard
    config.train.update(train)
    return config


@pytest.mark.parametrize(
    ("shape", "devices", "spec"),
    [
        ((3, 3, 64, 64), 2, PartitionSpec(None, None, None, "data")),  # the last of two equally long axes
        ((3, 3, 128, 64), 2, PartitionSpec(None, None, "data")),
        ((4096,), 2, PartitionSpec("data")),
        ((2, 2047), 2, PartitionSpec()),  # 4,094 elements are too few
        ((4097,), 2, PartitionSpec()),  # nothing that two divide
        ((2, 2049), 2, PartitionSpec("data")),  # two divide the short axis alone
        ((), 2, PartitionSpec()),
    ],
)
def test_longest_axis_that_divides_is_split(shape, devices, spec):
    assert mesh_lib.split_sharding(shape, mesh_of(devices)).spec == spec


def three_steps(config, devices):
    """The state after three steps of a config on so many devices, and the logs of the last."""
    built = dataclasses.replace(loop.build(config), optimizer=optax.sgd(0.1, momentum=0.9))
    mesh = mesh_of(devices)
    create, _ = experiment.state_creation(built, mesh)
    state, step = create(jax.random.key(0)), experiment.make_step(built, mesh)
    iterator = loop.train_iterator(built.dataset, built.config)
    for _ in range(3):
        state, logs = jax.block_until_ready(step(state, mesh_lib.to_global(next(iterator), mesh)))
    return state, logs


def assert_many_equal_one(devices, batch_size, weights, shard):
    """Three steps on many devices, each with the whole state or a part of it, and on one."""
    whole, logs = three_steps(wide_config(False, batch_size, weights), 1)
    split, split_logs = three_steps(wide_config(shard, batch_size, weights), devices)
    for name in ("params", "opt_state", "ema_params"):
        pairs = list(zip(*(map(jax.tree.leaves, (getattr(whole, name), getattr(split, name)))), strict=True))
        for one, other in pairs:
            np.testing.assert_allclose(one, other, rtol=2e-3, atol=2e-5)
        # What of them lies on the first device.
        held = sum(leaf.addressable_data(0).nbytes for _, leaf in pairs)
        total = sum(leaf.nbytes for _, leaf in pairs)
        # Small arrays are whole.
        assert total / devices <= held < total / devices + 0.05 * total if shard else held == total
    assert all(leaf.is_fully_replicated for leaf in jax.tree.leaves((split.step, split.batch_stats, split_logs)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), logs, split_logs)


def test_split_steps_equal_whole_ones():
    assert_many_equal_one(devices=2, batch_size=4, weights="live", shard=True)


EIGHT = """
    import sys
    import jax
    import conftest
    jax.config.update("jax_num_cpu_devices", 8)
    import test_sharding
    test_sharding.assert_many_equal_one(8, batch_size=8, weights="ema", shard=sys.argv[1] == "True")
"""


@pytest.mark.slow
@pytest.mark.parametrize("shard", [False, True])
def test_eight_devices_equal_one(shard):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)])}
    command = [sys.executable, "-c", textwrap.dedent(EIGHT), str(shard)]
    result = subprocess.run(command, env=environment, timeout=600, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@pytest.mark.slow
def test_run_goes_on_split_or_whole(tmp_path):
    first = loop.train(wide_config(True, steps=2, checkpoint_every=0), str(tmp_path))
    # Whole on one device of this host, for whoever uses the result.
    assert all(len(leaf.devices()) == 1 for leaf in jax.tree.leaves(first.state))
    whole = loop.restore(wide_config(False, steps=2, checkpoint_every=0), str(tmp_path))
    jax.tree.map(np.testing.assert_array_equal, first.state, whole.state)


@pytest.mark.parametrize("before, after, devices", [(True, False, 1), (False, True, 2), (True, True, 2)])
def test_checkpoint_is_restored_split_or_whole(tmp_path, before, after, devices):
    from test_checkpoint import make_iterator, make_state

    def place(state, split, mesh):
        put = lambda leaf: mesh_lib.split_sharding(leaf.shape, mesh) if split else mesh_lib.replicated(mesh)  # noqa: E731
        return jax.tree.map(lambda leaf: jax.device_put(leaf, put(leaf)), state)

    state = jax.tree.map(np.asarray, make_state(5, width=100))
    saved, wanted = place(state, before, mesh_of(2)), place(state, after, mesh_of(devices))
    store = checkpoint.CheckpointStore(str(tmp_path), tiny_config())
    store.save(5, saved, make_iterator(), 1.0)
    store.wait()
    abstract = jax.tree.map(lambda leaf: mesh_lib.placed(leaf, leaf.sharding), wanted)
    restored = store.restore(abstract, make_iterator()).state
    store.close()
    jax.tree.map(np.testing.assert_array_equal, restored, state)
    kernel = restored.params["kernel"]
    assert kernel.sharding == wanted.params["kernel"].sharding and kernel.is_fully_replicated == (not after)
    assert checkpoint.checksums(saved) == checkpoint.checksums(restored)


def test_copies_of_split_arrays_are_whole():
    mesh = mesh_of(2)
    array = np.arange(8192.0, dtype=np.float32).reshape(64, 128)
    split = jax.device_put(array, mesh_lib.split_sharding(array.shape, mesh))
    assert split.addressable_data(0).shape == (64, 64)
    np.testing.assert_array_equal(mesh_lib.host_copy(split), array)
    local = mesh_lib.local_copy({"a": split})["a"]
    assert len(local.devices()) == 1
    np.testing.assert_array_equal(local, array)
