"""Saving, restoring, falling back and refusing, on a tiny made-up state."""

import gc
import logging
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import textwrap

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from selfexplain_jax.config import base_config
from selfexplain_jax.training import checkpoint
from selfexplain_jax.training import mesh as mesh_lib
from selfexplain_jax.training.state import TrainState
from selfexplain_jax.types import UserError

OPTIMIZER = optax.adamw(1e-3)
# Where TensorStore gives up on a damaged file, it leaves coroutines behind that nobody awaited.
LEFT_BEHIND = pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(autouse=True)
def swept(request):
    """Those coroutines go while their test still ignores the warnings, and not in the middle of another one."""
    yield
    if request.node.get_closest_marker("filterwarnings"):
        gc.collect()


def make_state(value, width=40):
    params = {"kernel": jnp.arange(width * 50.0).reshape(width, 50) + value, "bias": jnp.full(3, float(value))}
    state = TrainState(jnp.int32(value), params, {}, OPTIMIZER.init(params), jax.tree.map(jnp.copy, params), {})
    return jax.device_put(state, mesh_lib.replicated(mesh_lib.make_mesh()))


def abstract(state):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


def make_iterator():
    return iter(grain.MapDataset.range(100).shuffle(0).repeat().batch(4).to_iter_dataset())


def tiny_config(**train):
    config = base_config()
    config.model.widths = (24, 48)
    for name, value in ({"batch_size": 32, "steps": 100} | train).items():
        config.train[name] = value
    return config


@pytest.fixture(scope="module")
def three_checkpoints(tmp_path_factory):
    """Checkpoints of steps 1, 2 and 3: a state of value n after n batches for each of them."""
    workdir = tmp_path_factory.mktemp("three")
    store, iterator = checkpoint.CheckpointStore(str(workdir), tiny_config()), make_iterator()
    for step in (1, 2, 3):
        next(iterator)
        store.save(step, make_state(step), iterator, train_seconds=10.0 * step)
    store.close()
    return workdir / "checkpoints"


@pytest.fixture
def folder(three_checkpoints, tmp_path):
    """The checkpoints of a run in `tmp_path`, to be damaged."""
    return shutil.copytree(three_checkpoints, tmp_path / "checkpoints")


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def assert_is_state(state, value):
    jax.tree.map(np.testing.assert_array_equal, state, make_state(value))


def test_restores_state_position_and_seconds_and_keeps_the_newest(tmp_path):
    store, iterator = checkpoint.CheckpointStore(str(tmp_path), tiny_config(keep_checkpoints=2)), make_iterator()
    assert store.restore(abstract(make_state(0)), iterator) is None
    batches = []
    for step in range(1, 6):
        batches.append(next(iterator))
        if step < 5:
            store.save(step, make_state(step), iterator, train_seconds=10.0 * step)
            store.save(step, make_state(-1), iterator, train_seconds=-1.0)  # Saved already: left as it is.
    store.close()
    assert names(tmp_path / "checkpoints") == ["3", "4"]

    store, iterator = checkpoint.CheckpointStore(str(tmp_path), tiny_config()), make_iterator()
    restored = store.restore(abstract(make_state(0)), iterator)
    store.close()
    assert (restored.step, restored.train_seconds) == (4, 40.0)
    assert_is_state(restored.state, 4)
    assert isinstance(restored.state, TrainState) and len(restored.state.params["bias"].devices()) == 2
    np.testing.assert_array_equal(next(iterator), batches[4])


def test_saved_values_survive_donation(tmp_path, caplog):
    step = jax.jit(lambda s: s.replace(params=jax.tree.map(lambda x: x + 1, s.params)), donate_argnums=0)
    store, state = checkpoint.CheckpointStore(str(tmp_path), tiny_config(keep_checkpoints=9)), make_state(0)
    for number in range(1, 6):
        state = step(state)
        store.save(number, state, make_iterator(), 0.0)
    store.close()
    restored = checkpoint.CheckpointStore(str(tmp_path), tiny_config(), read_only=True).restore(abstract(make_state(0)))
    np.testing.assert_array_equal(restored.state.params["bias"], np.full(3, 5.0))
    # Opened to be read, as was asked: nothing to warn of.
    assert "read_only" not in caplog.text and "read only" not in caplog.text


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def largest(folder):
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


DAMAGE = {
    "flipped values": lambda folder: flip(largest(folder)),
    "truncated values": lambda folder: truncate(largest(folder)),
    "no manifest": lambda folder: (folder / "state" / "manifest.ocdbt").unlink(),
    "truncated tree": lambda folder: truncate(folder / "state" / "_METADATA"),
    "truncated config": lambda folder: truncate(folder / "config" / "metadata"),
    "no position": lambda folder: [path.unlink() for path in (folder / "data").iterdir()],
    "empty folder": lambda folder: [path.unlink() for path in folder.rglob("*") if path.is_file()],
}


@LEFT_BEHIND
@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_newest_checkpoint_gives_way_to_the_one_before(tmp_path, folder, caplog, damage):
    DAMAGE[damage](folder / "3")
    store, iterator = checkpoint.CheckpointStore(str(tmp_path), tiny_config()), make_iterator()
    with caplog.at_level(logging.WARNING):
        restored = store.restore(abstract(make_state(0)), iterator)
    assert "The checkpoint of step 3" in caplog.text and "3.corrupt" in caplog.text
    assert (restored.step, restored.train_seconds) == (2, 20.0)
    assert_is_state(restored.state, 2)
    assert iterator.get_state()["next_index"] == 2
    assert names(folder) == ["1", "2", "3.corrupt"]
    # The run comes to step 3 again and saves it.
    next(iterator)
    store.save(3, make_state(3), iterator, 30.0)
    store.close()
    assert names(folder) == ["1", "2", "3", "3.corrupt"]
    store = checkpoint.CheckpointStore(str(tmp_path), tiny_config(), read_only=True)
    assert store.restore(abstract(make_state(0))).step == 3


@LEFT_BEHIND
def test_all_damaged_is_refused_and_nothing_is_touched(tmp_path, folder):
    for name in ("1", "2", "3"):
        truncate(folder / name / "config" / "metadata")
    before = sorted(folder.rglob("*"))
    with pytest.raises(UserError, match=r"None of the checkpoints in .* \(steps \[1, 2, 3\]\)"):
        checkpoint.CheckpointStore(str(tmp_path), tiny_config()).restore(abstract(make_state(0)))
    assert sorted(folder.rglob("*")) == before


@LEFT_BEHIND
def test_read_only_falls_back_and_renames_nothing(tmp_path, folder):
    truncate(folder / "3" / "config" / "metadata")
    store = checkpoint.CheckpointStore(str(tmp_path), tiny_config(), read_only=True)
    assert store.restore(abstract(make_state(0))).step == 2
    assert names(folder) == ["1", "2", "3"]


def test_read_only_needs_checkpoints_and_makes_no_folder(tmp_path):
    with pytest.raises(UserError, match="holds no checkpoints. Train first"):
        checkpoint.CheckpointStore(str(tmp_path / "none"), tiny_config(), read_only=True)
    assert not list(tmp_path.iterdir())


def test_other_configuration_or_network_is_refused_and_nothing_is_touched(tmp_path, folder):
    before = sorted(folder.rglob("*"))
    other = tiny_config(steps=7, batch_size=8)
    other.model.widths = (8, 16)
    other.objective.area = {"weight": 0.5}
    with pytest.raises(UserError) as caught:
        checkpoint.CheckpointStore(str(tmp_path), other).restore(abstract(make_state(0)))
    message = str(caught.value)
    assert "model.widths: [24, 48] there, [8, 16] now" in message
    assert "objective.area.weight: 'absent' there, 0.5 now" in message
    # No flag takes a term away.
    assert message.endswith("the configuration that it was made with")
    assert "train.batch_size: 32 there, 8 now" in message and "train.steps: 100 there, 7 now" in message
    assert "Use another --workdir" in message and "learning_rate" not in message
    with pytest.raises(UserError, match=r"network: parameter kernel is float32\[40, 50\] there and float32\[20"):
        checkpoint.CheckpointStore(str(tmp_path), tiny_config()).restore(abstract(make_state(0, width=20)))
    assert sorted(folder.rglob("*")) == before


def test_fields_that_may_change_do_not_stand_in_the_way(tmp_path, folder):
    config = tiny_config(log_every=1, picture_every=2, checkpoint_every=3, keep_checkpoints=4, evaluate=False)
    config.evaluation.max_examples = 5
    config.data.num_threads = 1
    config.data.data_dir = "elsewhere"
    store = checkpoint.CheckpointStore(str(tmp_path), config, read_only=True)
    assert store.restore(abstract(make_state(0))).step == 3


def test_checkpoint_of_another_number_of_hosts_goes_on_at_the_same_position(tmp_path, folder):
    data = folder / "3" / "data"
    (data / "process_0-of-1.json").rename(data / "process_0-of-2.json")
    iterator = make_iterator()
    checkpoint.CheckpointStore(str(tmp_path), tiny_config(), read_only=True).restore(abstract(make_state(0)), iterator)
    assert iterator.get_state()["next_index"] == 3


def test_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="Cannot write to .*file/run: Not a directory. Choose another"):
        checkpoint.CheckpointStore(str(tmp_path / "file" / "run"), tiny_config())


def test_save_that_fails_says_what_remains(tmp_path, monkeypatch):
    store = checkpoint.CheckpointStore(str(tmp_path), tiny_config())

    def no_space(*arguments, **keywords):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store._manager, "save", no_space)
    with pytest.raises(UserError, match="Saving the checkpoint of step 5 .*No space left.*before it are untouched"):
        store.save(5, make_state(5), make_iterator(), 0.0)


def test_flat_comparison_ignores_empty_groups_and_tuples_against_lists():
    config = tiny_config()
    saved = checkpoint.jsonable(config)
    del saved["data"]["options"]
    checkpoint.check_same_config(saved, checkpoint.jsonable(config), "It")


KILLED_WHILE_SAVING = """
    import os, signal, sys
    import numpy as np
    from test_checkpoint import checkpoint, make_iterator, make_state, tiny_config
    store = checkpoint.CheckpointStore(sys.argv[1], tiny_config())
    store.save(1, make_state(1), make_iterator(), 1.0)
    store.wait()
    # 80 MB that do not compress take long enough to be caught in the middle.
    big = np.random.default_rng(0).standard_normal(20_000_000).astype(np.float32)
    store.save(2, make_state(2).replace(batch_stats={"big": make_state(0).step + big}), make_iterator(), 2.0)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_kill_in_the_middle_of_saving_leaves_the_checkpoint_before(tmp_path):
    tests = pathlib.Path(__file__).parent
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join([str(tests), str(tests.parent)])}
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(KILLED_WHILE_SAVING), str(tmp_path)],
        env=environment,
        timeout=60,
        capture_output=True,
    )
    assert result.returncode == -signal.SIGKILL, result.stderr.decode()
    folder = tmp_path / "checkpoints"
    assert "1" in names(folder) and "2" not in names(folder) and len(names(folder)) == 2
    store = checkpoint.CheckpointStore(str(tmp_path), tiny_config())
    restored = store.restore(abstract(make_state(0)), make_iterator())
    assert restored.step == 1
    assert_is_state(restored.state, 1)
    store.save(2, make_state(2), make_iterator(), 2.0)
    store.close()
    assert names(folder) == ["1", "2"]


def test_flags_give_back_the_checkpoints_configuration():
    config = tiny_config()
    saved = checkpoint.jsonable(config)
    config.model.widths, config.train.steps = (8, 16), 7
    with pytest.raises(UserError) as caught:
        checkpoint.check_same_config(saved, checkpoint.jsonable(config), "It")
    # As a shell takes them: tuples in quotes.
    assert str(caught.value).endswith("'--config.model.widths=(24, 48)' --config.train.steps=100")
