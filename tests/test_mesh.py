"""Sharding over the two simulated devices of conftest.py."""

import jax
import numpy as np
import pytest

from selfexplain_jax.training import mesh as mesh_lib
from selfexplain_jax.types import UserError


@pytest.fixture(scope="module")
def mesh():
    return mesh_lib.make_mesh()


def test_mesh_has_one_automatic_axis_over_all_devices(mesh):
    assert mesh.axis_names == ("data",)
    assert mesh.devices.size == jax.device_count() == 2
    assert mesh.axis_types == (jax.sharding.AxisType.Auto,)


def test_batch_is_split_and_keeps_its_values(mesh):
    batch = {"image": np.arange(4 * 2 * 2 * 3, dtype=np.float32).reshape(4, 2, 2, 3), "index": np.arange(4)}
    result = mesh_lib.to_global(batch, mesh)
    assert result["image"].sharding.is_equivalent_to(mesh_lib.batch_sharding(mesh), 4)
    for shard, start in zip(sorted(result["index"].addressable_shards, key=lambda s: s.device.id), (0, 2), strict=True):
        np.testing.assert_array_equal(shard.data, [start, start + 1])
    np.testing.assert_array_equal(result["image"], batch["image"])


def test_replicated_state_has_a_copy_on_each_device(mesh):
    tree = jax.device_put({"a": np.ones(3), "b": np.int32(2)}, mesh_lib.replicated(mesh))
    assert len(tree["a"].addressable_shards) == 2
    local = mesh_lib.local_copy(tree)
    assert len(local["a"].devices()) == 1
    np.testing.assert_array_equal(local["a"], np.ones(3))


@pytest.mark.parametrize("size, named", [(3, "2 or 4"), (1, "Choose 2")])
def test_batch_that_does_not_divide_is_refused_with_the_numbers(mesh, size, named):
    with pytest.raises(UserError, match=f"{size} does not divide over 2 devices.*{named}"):
        mesh_lib.to_global({"index": np.zeros(size)}, mesh)


def test_distributed_start_takes_all_flags_or_none():
    mesh_lib.distributed_start()
    with pytest.raises(UserError, match="--num_processes=None"):
        mesh_lib.distributed_start("127.0.0.1:1234", None, 0)
    with pytest.raises(UserError, match="--process_id=2"):
        mesh_lib.distributed_start("127.0.0.1:1234", 2, 2)


@pytest.fixture
def initialize(monkeypatch):
    """What jax.distributed.initialize was called with; an error in `fails` is raised."""

    class Calls(list):
        fails = None

        def __call__(self, **options):
            self.append(options)
            if self.fails:
                raise self.fails

    calls = Calls()
    monkeypatch.setattr(jax.distributed, "initialize", calls)
    return calls


def test_distributed_start_by_the_cluster_or_as_written(initialize):
    mesh_lib.distributed_start("auto")
    mesh_lib.distributed_start("host-0.net:8482", 4, 3)
    assert initialize[0] == {}
    assert initialize[1] == {
        "coordinator_address": "host-0.net:8482",
        "num_processes": 4,
        "process_id": 3,
        "cluster_detection_method": "deactivate",
    }
    with pytest.raises(UserError, match="--coordinator_address=host must be HOST:PORT"):
        mesh_lib.distributed_start("host", 2, 0)
    with pytest.raises(UserError, match="--num_processes=2"):
        mesh_lib.distributed_start("auto", 2, 0)


def test_processes_that_find_no_cluster_or_not_each_other_are_told(initialize):
    initialize.fails = ValueError("coordinator_address should be defined.")
    with pytest.raises(UserError, match="finds no cluster here .coordinator_address should be defined.. Start"):
        mesh_lib.distributed_start("auto")
    initialize.fails = RuntimeError("DEADLINE_EXCEEDED: Barrier timed out.\nmore")
    with pytest.raises(UserError, match="did not find each other: DEADLINE_EXCEEDED: Barrier timed out. Do all"):
        mesh_lib.distributed_start("host:1", 2, 1)


def test_agreeing_alone_is_the_value_itself():
    assert mesh_lib.agree(True) and not mesh_lib.agree(False)


@pytest.mark.parametrize(
    ("batch_size", "cores", "devices"),
    # Two cores halve 32; 64 cores leave eight examples each; 9 and 8 cannot be split so; 30 / 3 = 10.
    [(32, 1, 1), (32, 2, 2), (32, 64, 4), (9, 2, 1), (8, 2, 1), (30, 4, 3)],
)
def test_a_cpu_is_split_as_far_as_the_batch_allows(batch_size, cores, devices):
    assert mesh_lib.cpu_devices_for(batch_size, cores) == devices
