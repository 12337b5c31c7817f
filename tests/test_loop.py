"""The real loop on a tiny network: resuming, stopping, NaN, many devices, and refusing bad configs."""

import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import textwrap
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from event_files import events_of, shown_scalars

from selfexplain_jax.config import base_config
from selfexplain_jax.objectives.compose import TERMS
from selfexplain_jax.training import loop
from selfexplain_jax.training import mesh as mesh_lib
from selfexplain_jax.training.signals import StopSignal
from selfexplain_jax.types import UserError

TESTS = pathlib.Path(__file__).parent


def tiny_config():
    config = base_config()
    config.data.image_size = 32
    config.data.options.train_size = 64
    config.data.options.test_size = 16
    config.data.num_threads = 1
    config.data.prefetch = 8
    config.model.widths = (8,)
    config.model.encoder_depth = 1
    config.passes.evaluator_masks = ("swapped",)
    # From the second step on: the loop changes from one program to the other in the middle of a line of the log.
    config.objective.object = {"weight": 1.0, "start": 1}
    train = config.train
    train.batch_size, train.steps, train.warmup_steps = 4, 7, 1
    train.log_every, train.checkpoint_every, train.picture_every = 2, 3, 0
    return config


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """A run from start to end, and its folder, in which titles.json has those of the picture's columns."""
    workdir, save_grid = tmp_path_factory.mktemp("uninterrupted"), loop.pictures.save_grid

    def noted(path, columns):
        (workdir / "titles.json").write_text(json.dumps(list(columns)))
        save_grid(path, columns)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.pictures, "save_grid", noted)
        return loop.train(tiny_config(), str(workdir)), workdir


def assert_same_bytes(one, other):
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(one), jax.tree.leaves(other), strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes(), jax.tree_util.keystr(path)


def metrics_of(workdir):
    """Lines of metrics.jsonl without the times."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{name: v for name, v in line.items() if "second" not in name} for line in lines]


def calling(monkeypatch, step, action):
    """Lets the loop call `action` before each time that it goes on from that step."""
    real = loop.compiled_step

    def compiled_step(*arguments):
        take = real(*arguments)

        def acting(state, batch):
            if int(state.step) == step:
                action()
            return take(state, batch)

        return acting

    monkeypatch.setattr(loop, "compiled_step", compiled_step)


def signalling(monkeypatch, after, number):
    """Lets a signal reach this process while step `after` runs, once."""
    calling(monkeypatch, after - 1, lambda: signal.raise_signal(number))


def test_run_writes_what_it_promises(uninterrupted):
    result, workdir = uninterrupted
    assert result.step == int(result.state.step) == 7 and result.train_seconds > 0
    assert [line["step"] for line in metrics_of(workdir)] == [2, 3, 4, 6, 7]
    assert {"loss", "accuracy", "gradient_norm", "learning_rate", "term/classification", "term/object"} < set(
        metrics_of(workdir)[0]
    )
    assert (workdir / "pictures" / "masks_000007.png").stat().st_size > 1000
    # The image comes first.
    titles = ["image", "target mask", "object", "background", "non target mask"]
    assert json.loads((workdir / "titles.json").read_text()) == titles
    assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == ["3", "6", "7"]


def test_run_logs_every_term_and_the_masks_to_tensorboard(uninterrupted):
    _, workdir = uninterrupted
    seen = {value.tag for event in events_of(workdir) for value in event.summary.value}
    assert {"loss", "accuracy", "term/classification", "term/object"} < seen
    assert any("mask" in tag for tag in seen)


def test_two_runs_with_one_seed_are_equal_and_another_seed_is_not(tmp_path, uninterrupted, capsys):
    result, workdir = uninterrupted
    again = loop.train(tiny_config(), str(tmp_path / "again"))
    told = capsys.readouterr().err
    # Who waits for the second program to compile is told so, and the rate does not count it.
    assert "From step 2 on: all passes, a slower step, which is compiled now." in told
    assert told.count("First step after") == 2
    assert_same_bytes(again.state, result.state)
    assert metrics_of(tmp_path / "again") == metrics_of(workdir)
    config = tiny_config()
    config.seed, config.train.steps = 1, 2
    loop.train(config, str(tmp_path / "other"))
    assert metrics_of(tmp_path / "other")[0]["loss"] != metrics_of(workdir)[0]["loss"]


def test_finished_run_is_restored_as_it_was_and_not_trained_again(uninterrupted):
    result, workdir = uninterrupted
    before = {path: path.stat().st_mtime_ns for path in (workdir / "checkpoints").rglob("*")}
    restored = loop.restore(tiny_config(), str(workdir))
    assert_same_bytes(restored.state, result.state)
    assert restored.step == 7
    again = loop.train(tiny_config(), str(workdir))
    assert_same_bytes(again.state, result.state)
    assert [line["step"] for line in metrics_of(workdir)] == [2, 3, 4, 6, 7]
    assert {path: path.stat().st_mtime_ns for path in (workdir / "checkpoints").rglob("*")} == before


@pytest.mark.parametrize("number, code, name", [(signal.SIGTERM, 143, "SIGTERM"), (signal.SIGINT, 130, "Ctrl-C")])
def test_signal_saves_after_the_step_and_the_resumed_run_equals_the_uninterrupted_one(
    tmp_path, monkeypatch, uninterrupted, number, code, name
):
    handler = signal.getsignal(number)
    with monkeypatch.context() as patched:
        signalling(patched, after=5, number=number)
        with pytest.raises(loop.Stopped, match=f"Stopped by {name}.*saved at step 5.*same command again") as caught:
            loop.train(tiny_config(), str(tmp_path))
    assert caught.value.exit_code == code
    assert signal.getsignal(number) is handler
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["3", "5"]
    resumed = loop.train(tiny_config(), str(tmp_path))
    assert_same_bytes(resumed.state, uninterrupted[0].state)
    lines, expected = metrics_of(tmp_path), metrics_of(uninterrupted[1])
    assert [line["step"] for line in lines] == [2, 3, 4, 5, 6, 7]
    assert [lines[i] for i in (0, 1, 2, 5)] == [expected[i] for i in (0, 1, 2, 4)]


@pytest.mark.parametrize("while_saving", [False, True])
def test_signal_at_the_last_step_ends_the_command_and_all_is_saved(tmp_path, monkeypatch, uninterrupted, while_saving):
    """A job that is told to end must not begin its evaluation."""
    with monkeypatch.context() as patched:
        if while_saving:
            real, signals = loop.CheckpointStore.wait, [signal.SIGTERM]

            def wait(store):
                if signals:
                    signal.raise_signal(signals.pop())
                real(store)

            patched.setattr(loop.CheckpointStore, "wait", wait)
        else:
            signalling(patched, after=7, number=signal.SIGTERM)
        with pytest.raises(loop.Stopped, match="saved at step 7"):
            loop.train(tiny_config(), str(tmp_path))
    assert_same_bytes(loop.train(tiny_config(), str(tmp_path)).state, uninterrupted[0].state)
    assert metrics_of(tmp_path) == metrics_of(uninterrupted[1])


@pytest.mark.parametrize("program, step, kept", [(1, 0, []), (2, 1, ["1"])])
def test_signal_while_a_program_is_compiled_ends_the_run_at_once_and_loses_nothing(
    tmp_path, monkeypatch, uninterrupted, program, step, kept
):
    real, asked, never = loop.compiled_step, [], threading.Event()

    def compile_without_end():
        os.kill(os.getpid(), signal.SIGTERM)
        never.wait(60)

    def compiled_step(jitted, arguments, stop):
        asked.append(jitted)
        return stop.beside(compile_without_end) if len(asked) == program else real(jitted, arguments, stop)

    started = time.monotonic()
    with monkeypatch.context() as patched:
        patched.setattr(loop, "compiled_step", compiled_step)
        with pytest.raises(loop.Stopped, match=f"at step {step}" if step else "before the first step") as caught:
            loop.train(tiny_config(), str(tmp_path))
    never.set()
    assert caught.value.exit_code == 143 and caught.value.compiling and time.monotonic() - started < 50
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == kept
    resumed = loop.train(tiny_config(), str(tmp_path))
    assert_same_bytes(resumed.state, uninterrupted[0].state)
    assert metrics_of(tmp_path)[-1] == metrics_of(uninterrupted[1])[-1]


def test_an_error_of_the_compiler_reaches_the_caller():
    def fail():
        raise ValueError("no such instruction")

    with StopSignal() as stop, pytest.raises(ValueError, match="no such instruction"):
        stop.beside(fail)


KILLED = """
    import os, pathlib, signal, sys, time
    import conftest
    import test_loop
    from selfexplain_jax.training import loop
    real = loop.compiled_step

    def compiled_step(*arguments):
        step = real(*arguments)

        def killed(state, batch):
            if int(state.step) == 4:
                while not (pathlib.Path(sys.argv[1]) / "checkpoints" / "3").exists():
                    time.sleep(0.01)
                os.kill(os.getpid(), signal.SIGKILL)
            return step(state, batch)

        return killed

    loop.compiled_step = compiled_step
    loop.train(test_loop.tiny_config(), sys.argv[1])
"""


def test_kill_in_the_middle_then_the_resumed_run_equals_the_uninterrupted_one(tmp_path, uninterrupted):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)])}
    command = [sys.executable, "-c", textwrap.dedent(KILLED), str(tmp_path)]
    # subprocess.run ends a process that takes too long with SIGKILL.
    result = subprocess.run(command, env=environment, timeout=120, capture_output=True, text=True)
    assert result.returncode == -signal.SIGKILL, result.stderr
    assert [line["step"] for line in metrics_of(tmp_path)] == [2, 3, 4]
    before = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[1])["train_seconds"]
    resumed = loop.train(tiny_config(), str(tmp_path))
    assert resumed.train_seconds > before
    assert_same_bytes(resumed.state, uninterrupted[0].state)
    assert metrics_of(tmp_path) == metrics_of(uninterrupted[1])
    # TensorBoard shows every line once as well: those before the checkpoint were not lost with the killed process.
    lines = metrics_of(tmp_path)
    for tag in ("loss", "term/object"):
        assert shown_scalars(tmp_path)[tag] == [(line["step"], np.float32(line[tag])) for line in lines]


def damaging(monkeypatch, damage, after=5):
    """Lets the step return damage(state, logs) from step `after` on."""
    real = loop.compiled_step

    def compiled_step(*arguments):
        step = real(*arguments)

        def damaged(state, batch):
            state, logs = step(state, batch)
            return damage(state, logs) if int(state.step) >= after else (state, logs)

        return damaged

    monkeypatch.setattr(loop, "compiled_step", compiled_step)


def test_nan_stops_names_the_term_and_keeps_the_last_checkpoint(tmp_path, monkeypatch):
    nan = jnp.float32(jnp.nan)
    damaging(monkeypatch, lambda state, logs: (state, logs | {"loss": nan, "term/object": nan}))
    with pytest.raises(UserError, match="term/object is nan at step 5. The last good checkpoint is that of step 3"):
        loop.train(tiny_config(), str(tmp_path))
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["3"]
    assert [line["step"] for line in metrics_of(tmp_path)] == [2, 3, 4]


def test_term_that_becomes_nan_is_named_in_a_real_step(tmp_path, monkeypatch):
    def area(outputs, label, *, link):
        return jnp.log(-outputs["target_mask"].mean(axis=(1, 2)))

    monkeypatch.setitem(TERMS, "area_target", area)
    config = tiny_config()
    config.objective.area_target = {"weight": 1.0}
    # The loss and the gradient are NaN too; the term that made them so is the one to name.
    with pytest.raises(UserError, match="term/area_target is nan at step 1. There is no checkpoint yet"):
        loop.train(config, str(tmp_path))


def test_parameters_that_are_not_finite_are_not_saved(tmp_path, monkeypatch):
    def damage(state, logs):
        params = jax.tree_util.tree_map_with_path(
            lambda path, x: x * jnp.nan if path[0].key == "stem" and path[1].key == "bias" else x, state.params
        )
        return state.replace(params=params), logs

    damaging(monkeypatch, damage, after=6)
    with pytest.raises(UserError, match="parameter stem/bias is nan at step 6. The last good checkpoint is.* step 3"):
        loop.train(tiny_config(), str(tmp_path))
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["3"]


def test_first_not_finite_names_the_earliest_step_and_terms_before_the_loss():
    fine = {"loss": np.float32(1), "term/a": np.float32(1), "term/b": np.float32(1), "other": np.float32(np.nan)}
    bad = fine | {"loss": np.float32(np.nan), "term/b": np.float32(np.inf)}
    assert loop.first_not_finite([1, 2], [fine, fine]) is None
    worse = fine | {"term/a": np.float32(np.nan)}
    assert loop.first_not_finite([8, 9, 10], [fine, bad, worse]) == (9, "term/b", np.inf)
    assert loop.first_not_finite([1], [fine | {"gradient_norm": np.float32(np.inf)}]) == (1, "gradient_norm", np.inf)


def test_two_devices_equal_one():
    """The same three steps with the batch on two devices and on one."""
    # Adam would blow up the rounding of gradients that are nearly zero.
    experiment = dataclasses.replace(loop.build(tiny_config()), optimizer=optax.sgd(0.1))
    results = []
    for devices in (1, 2):
        axis_types = (jax.sharding.AxisType.Auto,)
        mesh = jax.make_mesh((devices,), ("data",), axis_types=axis_types, devices=jax.devices()[:devices])
        create, _ = loop.state_creation(experiment, mesh)
        state, step = create(jax.random.key(0)), loop.make_step(experiment, mesh)
        iterator = loop.train_iterator(experiment.dataset, experiment.config)
        for _ in range(3):
            state, logs = jax.block_until_ready(step(state, mesh_lib.to_global(next(iterator), mesh)))
        assert len(jax.tree.leaves(state.params)[0].devices()) == devices
        results.append(jax.device_get((state.params, logs)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), *results)


def test_second_ctrl_c_interrupts_at_once():
    with loop.StopSignal() as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop.requested(1, together=True) == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


BAD = {
    "method": (lambda c: setattr(c, "method", "oracle"), "config.method = 'oracle' is unknown"),
    "dataset": (lambda c: setattr(c.data, "name", "cats"), "'cats'"),
    "dataset option": (lambda c: c.data.options.update(sizes=3), "'sizes'"),
    "model": (lambda c: setattr(c.model, "name", "vnet"), "config.model.name = 'vnet' is unknown"),
    "norm": (lambda c: setattr(c.model, "norm", "layer"), "config.model.norm"),
    "pooling": (lambda c: setattr(c.model, "pooling", "median"), "config.model.pooling"),
    "link": (lambda c: setattr(c.model, "link", "tanh"), "config.model.link"),
    "image size": (lambda c: setattr(c.data, "image_size", 33), "33"),
    "infill": (lambda c: setattr(c.passes, "infills", ("white",)), "config.passes.infills"),
    "term": (lambda c: c.objective.update(areas={"weight": 1.0}), "config.objective.areas"),
    "optimizer": (lambda c: setattr(c.train, "optimizer", "sgd"), "config.train.optimizer"),
    "schedule": (lambda c: setattr(c.train, "schedule", "step"), "config.train.schedule"),
    "steps": (lambda c: setattr(c.train, "steps", 0), "config.train.steps = 0 must be at least 1"),
    "nothing": (lambda c: setattr(c.train, "steps", None), "config.train.steps is None: give it a value"),
    "log_every": (lambda c: setattr(c.train, "log_every", 0), "config.train.log_every = 0 must be at least 1"),
    "learning_rate": (lambda c: setattr(c.train, "learning_rate", float("nan")), "config.train.learning_rate = nan"),
    "split": (lambda c: setattr(c.data, "eval_split", "tset"), "'tset'"),
    "split of the last picture": (
        lambda c: (setattr(c.data, "eval_split", "tset"), setattr(c.train, "evaluate", False)),
        "'tset'",
    ),
    "audit": (lambda c: c.evaluation.update(audit=True, audit_steps=0), "config.evaluation.audit_steps = 0 trains no"),
    "threshold": (lambda c: setattr(c.evaluation, "refine_threshold", 1.0), "config.evaluation.refine_threshold = 1.0"),
    "temperature": (
        lambda c: c.model.update(temperature_steps=5, initial_temperature=float("inf")),
        "both temperatures positive and finite",
    ),
    "clip_norm": (lambda c: setattr(c.train, "clip_norm", float("nan")), "config.train.clip_norm = nan"),
    "batch": (lambda c: setattr(c.train, "batch_size", 3), "does not divide over 2 devices"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_config_is_refused_before_anything_is_written(tmp_path, case):
    change, message = BAD[case]
    config = tiny_config()
    change(config)
    with pytest.raises(UserError) as caught:
        loop.train(config, str(tmp_path / "run"))
    assert message in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_restore_without_a_checkpoint_is_refused(tmp_path):
    with pytest.raises(UserError, match="holds no checkpoint"):
        loop.restore(tiny_config(), str(tmp_path))


def test_positive_weights_come_from_the_labels_of_the_train_split_and_reach_the_loss():
    config = tiny_config()
    assert loop.build(config).positive_weights == ()
    config.data.positive_weights = True
    experiment = loop.build(config)
    weights = experiment.positive_weights
    source = experiment.dataset.source("train")
    count = np.sum([source[i]["label"] for i in range(len(source))], axis=0)
    np.testing.assert_allclose(weights, np.clip((64 - count) / count, 1 / 20, 20), rtol=1e-6)
    # One present class in eight: its share of the loss grows about sevenfold.
    mesh = mesh_lib.make_mesh()
    create, _ = loop.state_creation(experiment, mesh)
    batch = mesh_lib.to_global(next(loop.train_iterator(experiment.dataset, config)), mesh)
    losses = []
    for on in (False, True):
        config.data.positive_weights = on
        step = loop.make_step(loop.build(config), mesh, False)
        losses.append(float(step(create(jax.random.key(0)), batch)[1]["term/classification"]))
    assert losses[1] > 2 * losses[0]


def test_positive_weights_need_the_sigmoid_link():
    config = tiny_config()
    config.data.positive_weights, config.model.link = True, "softmax"
    with pytest.raises(UserError, match="positive_weights is for config.model.link = 'sigmoid'"):
        loop.build(config)
