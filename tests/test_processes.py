"""Two processes that share one run: equal to one, on from each other's checkpoints, and one that is lost or fails."""

import contextlib
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time

import jax
import numpy as np
import pytest
from command_line import CONFIG_HEAD, ended_at, free_address

from selfexplain_jax import main
from selfexplain_jax.config import load_config
from selfexplain_jax.data.fakes import write_folder
from selfexplain_jax.training import loop
from selfexplain_jax.types import UserError

ROOT = pathlib.Path(__file__).resolve().parents[1]
PLAIN = [sys.executable, "-m", "selfexplain_jax.main"]
CONFIG = (
    CONFIG_HEAD
    + """
        config.data.options.test_size = 11
        # Everything that draws: by the row of the batch, or from the next row.
        config.passes.infills = ("zero", "color_noise", "blur", "other_image")
        config.passes.evaluator_masks = ("swapped", "complement", "blobs")
        config.passes.classes_per_image = 1
        for name in ("object", "background", "evaluator"):
            config.objective[name] = {"weight": 1.0}
        config.train.batch_size = 8
        config.train.steps = 6
        config.train.checkpoint_every = 3
        config.train.picture_every = 0
        # Six batches: three for each of two processes, the last one padded.
        config.evaluation.batch_size = 2
        config.evaluation.pictures = 4
        config.evaluation.examples = 8
        if variant in ("long", "photos"):
            config.train.steps = 1_000_000
            config.train.checkpoint_every = 20
        if variant == "photos":
            config.data.name, config.data.options = "folder", {"test_fraction": 0.25}
            # The smallest step there is.
            config.method = "classifier"
            for name in ("object", "background", "evaluator"):
                del config.objective[name]
        return config
"""
)


@pytest.fixture(scope="module")
def config_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "tiny.py"
    path.write_text(textwrap.dedent(CONFIG))
    return path


@contextlib.contextmanager
def started(spec, workdir, processes, *flags, each=((), ()), begin=(PLAIN, PLAIN)):
    """The processes of a run with two devices in all, each with flags of its own; whatever happens, none is left.

    Each begins as the command line does, or with what `ended_at` returns.
    """
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(2 // processes)}
    arguments = [f"--config={spec}", f"--workdir={workdir}", *flags]
    shared = [f"--coordinator_address={free_address()}", f"--num_processes={processes}"] if processes > 1 else []
    logs = [workdir.parent / f"{workdir.name}_{number}.log" for number in range(processes)]
    running = []
    try:
        for number, log in enumerate(logs):
            own = [*shared, f"--process_id={number}", *each[number]] if shared else []
            with log.open("w") as file:
                options = {"env": environment | {"PYTHONPATH": str(ROOT)}, "stdout": file, "stderr": file}
                running.append(subprocess.Popen([*begin[number], *arguments, *own], **options))
        yield running, logs
    finally:
        # JAX's processes catch SIGTERM.
        for process in running:
            process.kill()
            process.wait()


def run(spec, workdir, processes, *flags):
    run_beside((spec, workdir, processes, *flags))


def run_beside(*runs):
    """Several runs at once, each as `run` takes it."""
    with contextlib.ExitStack() as stack:
        for running, logs in [stack.enter_context(started(*of_run)) for of_run in runs]:
            codes = [process.wait(timeout=600) for process in running]
            assert codes == [0] * len(running), [log.read_text() for log in logs]


def parameters(config_file, workdir):
    """Path -> array of the newest checkpoint."""
    result = loop.restore(load_config(str(config_file)), str(workdir))
    assert result.step == 6
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(result.state.params)}


def assert_equal_runs(config_file, one, other):
    ours, theirs = parameters(config_file, one), parameters(config_file, other)
    assert ours.keys() == theirs.keys() and len(ours) > 5
    for name, array in ours.items():
        np.testing.assert_allclose(array, theirs[name], rtol=1e-3, atol=1e-5, err_msg=name)
    results, others = (json.loads((folder / "results.json").read_text()) for folder in (one, other))
    assert results["counts"] == others["counts"] and results["counts"]["examples"] == 11
    compare(results["metrics"], others["metrics"])
    rows, other_rows = (json.loads((folder / "examples.json").read_text()) for folder in (one, other))
    assert list(rows["rows"]) == list(other_rows["rows"]) == [str(position) for position in range(11)]
    assert rows["kept"] == other_rows["kept"]
    for name in ("pictures.png", "class_masks.png"):
        assert (one / "pictures" / name).is_file() and (other / "pictures" / name).is_file()


def compare(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        if isinstance(value, dict):
            compare(value, theirs[name])
        elif "second" not in name:
            np.testing.assert_allclose(value, theirs[name], rtol=1e-3, atol=1e-4, err_msg=name)


@pytest.mark.slow
def test_two_processes_equal_one_and_go_on_from_each_others_checkpoints(tmp_path, config_file):
    one, two = tmp_path / "one", tmp_path / "two"
    run(config_file, one, 1)
    run(config_file, two, 2)
    assert_equal_runs(config_file, one, two)
    for folder, processes in ((one, 2), (two, 1)):
        changed = tmp_path / f"{folder.name}_then_{processes}"
        shutil.copytree(folder, changed)
        shutil.rmtree(changed / "checkpoints" / "6")
        (changed / "results.json").unlink()
        run(config_file, changed, processes)
        log = (tmp_path / f"{changed.name}_0.log").read_text()
        assert "Going on from the checkpoint of step 3." in log
        assert_equal_runs(config_file, changed, one)


@pytest.mark.slow
def test_two_processes_explain_photos_like_one(tmp_path, config_file):
    one, photos = tmp_path / "one", tmp_path / "photos"
    run(config_file, one, 1)
    two = shutil.copytree(one, tmp_path / "two")
    # More than a batch, so that each process has some.
    for number in range(3):
        write_folder(photos / str(number))
    flags = ["--mode=explain", f"--images={photos}"]
    run_beside((config_file, one, 1, *flags), (config_file, two, 2, *flags))
    ours, theirs = (json.loads((folder / "explained" / "index.json").read_text())["photos"] for folder in (one, two))
    assert len(ours) == len(theirs) == 30
    for photo, other in zip(ours, theirs, strict=True):
        assert photo["name"] == other["name"] and (two / "explained" / other["picture"]).is_file()
        for found, same in zip(photo["explained"], other["explained"], strict=True):
            assert found.pop("class") == same.pop("class")
            compare(found, same)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_one_of_two_is_killed_the_other_says_so_and_both_go_on(tmp_path, config_file, victim):
    workdir = tmp_path / "run"
    with started(f"{config_file}:long", workdir, 2) as (running, logs):
        wait_for_checkpoint(workdir, running, logs)
        running[victim].send_signal(signal.SIGKILL)
        other = 1 - victim
        code = running[other].wait(timeout=300)
        text = logs[other].read_text()
        assert code not in (0, None), text
        # JAX itself ends the other one, in words of its own, where the lost one was the coordinator.
        assert "Another process of this run has ended" in text or "another task died" in text, text
    before = max(int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdecimal())
    with started(f"{config_file}:long", workdir, 2) as (running, logs):
        wait_for_checkpoint(workdir, running, logs, beyond=before)
        assert f"Going on from the checkpoint of step {before}." in logs[0].read_text()
    steps = [json.loads(line)["step"] for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, steps[-1] + 1))


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_one_of_two_is_killed_while_they_evaluate_and_both_evaluate_again(tmp_path, config_file, victim):
    workdir, begin = tmp_path / "run", [PLAIN, PLAIN]
    begin[victim] = ended_at("selfexplain_jax.metrics.view:look", 2)
    with started(config_file, workdir, 2, begin=begin) as (running, logs):
        codes = [running[number].wait(timeout=300) for number in (victim, 1 - victim)]
        other = logs[1 - victim].read_text()
        assert codes[0] == -signal.SIGKILL, logs[victim].read_text()
        assert codes[1] != 0, other
        assert "Another process of this run has ended" in other or "another task died" in other, other
    assert not (workdir / "results.json").exists()
    run(config_file, workdir, 2)
    assert "All 6 steps are done." in (tmp_path / "run_0.log").read_text()
    assert json.loads((workdir / "results.json").read_text())["counts"]["examples"] == 11
    steps = [json.loads(line)["step"] for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4, 5, 6]


@pytest.mark.slow
def test_sigterm_ends_a_process_that_evaluates_at_once(tmp_path, config_file):
    """With many processes JAX catches SIGTERM, for trainings that stop at a common step; here nothing asks for it."""
    workdir = tmp_path / "run"
    begin = [PLAIN, ended_at("selfexplain_jax.metrics.view:look", 2, signal="SIGTERM")]
    with started(config_file, workdir, 2, begin=begin) as (running, logs):
        codes = [process.wait(timeout=240) for process in running]
        texts = [log.read_text() for log in logs]
        assert codes[1] == -signal.SIGTERM, texts
        assert codes[0] not in (0, None) and "Another process of this run has ended" in texts[0], texts
    run(config_file, workdir, 1, "--mode=evaluate")
    assert json.loads((workdir / "results.json").read_text())["counts"]["examples"] == 11


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_one_of_two_loses_its_photos_and_neither_waits_for_the_other(tmp_path, config_file, victim):
    workdir, folders = tmp_path / "run", [tmp_path / "photos_0", tmp_path / "photos_1"]
    for folder in folders:
        write_folder(folder)
        shutil.rmtree(folder / "masks")
    own = [[f"--config.data.data_dir={folder}"] for folder in folders]
    with started(f"{config_file}:photos", workdir, 2, each=own) as (running, logs):
        wait_for_checkpoint(workdir, running, logs)
        for photo in folders[victim].rglob("*.jpg"):
            photo.unlink()
        # An ordinary end would wait five minutes for the other one, and the other one for ever.
        codes = [running[number].wait(timeout=240) for number in (victim, 1 - victim)]
        text, other = (logs[number].read_text() for number in (victim, 1 - victim))
        assert codes[0] == 1, text
        assert re.search(rf"^error: .*{folders[victim]}.*\.jpg", text, re.MULTILINE), text
        assert codes[1] != 0, other
        # JAX itself ends the other one, in words of its own, where the lost one was the coordinator.
        assert "Another process of this run has ended" in other or "another task died" in other, other


@pytest.mark.slow
def test_two_processes_that_refuse_the_same_say_so_both(tmp_path, config_file):
    with started(config_file, tmp_path / "run", 2, "--config.train.batch_size=7") as (running, logs):
        codes = [process.wait(timeout=300) for process in running]
        for code, log in zip(codes, logs, strict=True):
            text = log.read_text()
            assert code == 1 and "error: config.train.batch_size = 7 does not divide over 2 devices" in text, text
            assert "Traceback" not in text, text


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (UserError("no such thing"), 1, "error: no such thing\n"),
        (OSError(28, "No space left on device", "a.npz"), 1, "error: Cannot read or write a.npz: No space left"),
        (KeyboardInterrupt(), 130, "Stopped by Ctrl-C."),
        (ValueError("UNKNOWN: Gloo AllGather failed: closed"), 1, "error: Another process of this run has ended or"),
        (jax.errors.JaxRuntimeError("INTERNAL: no answer"), 1, "error: Another process of this run has ended or"),
        (ZeroDivisionError("a bug"), 1, "Traceback (most recent call last):"),
    ],
)
def test_every_error_ends_a_process_of_several_at_once(monkeypatch, capsys, error, code, message):
    assert end_of(monkeypatch, error) == [code] and message in capsys.readouterr().err


@pytest.mark.parametrize("error", [UserError("no such thing"), ZeroDivisionError("a bug"), BrokenPipeError(32, "gone")])
def test_a_process_whose_terminal_is_gone_ends_all_the_same(monkeypatch, error):
    """As of a connection that broke: whatever is printed raises."""

    class Gone:
        def write(self, text=""):
            raise BrokenPipeError(32, "Broken pipe")

        flush = write

    monkeypatch.setattr(sys, "stderr", Gone())
    monkeypatch.setattr(sys, "stdout", Gone())
    assert end_of(monkeypatch, error) == [1]


def end_of(monkeypatch, error):
    """The exit codes of a command of several processes that such an error ends, JAX's longer wait replaced."""
    left, given_up = [], threading.Event()

    def fail(argv):
        raise error

    monkeypatch.setattr(main, "parse_flags", fail)
    monkeypatch.setattr(main, "LEAVE_SECONDS", 0.01)
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(jax.distributed, "shutdown", lambda: given_up.wait(60))
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(os, "_exit", left.append)
    start = time.monotonic()
    main.run(["main"])
    given_up.set()
    assert time.monotonic() - start < 30
    return left


def wait_for_checkpoint(workdir, running, logs, beyond=0):
    end = time.monotonic() + 600
    while not any(path.name.isdecimal() and int(path.name) > beyond for path in (workdir / "checkpoints").glob("*")):
        gone = any(process.poll() is not None for process in running)
        assert not gone and time.monotonic() < end, [log.read_text() for log in logs]
        time.sleep(0.1)
