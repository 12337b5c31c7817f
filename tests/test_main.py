"""The command line: one run through every mode, signals to a real process, and bad input answered in one line."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
from command_line import CONFIG_HEAD, free_address
from PIL import Image

from selfexplain_jax import main
from selfexplain_jax.types import UserError

# How ml_collections loads a config file.
pytestmark = pytest.mark.filterwarnings(r"ignore:the load_module\(\) method is deprecated:DeprecationWarning")

ROOT = pathlib.Path(__file__).resolve().parents[1]

CONFIG = (
    CONFIG_HEAD
    + """
        config.data.options.test_size = 8
        config.train.batch_size = 4
        config.train.steps = 2
        config.evaluation.batch_size = 8
        config.evaluation.pictures = 2
        if variant == "long":
            config.train.steps = 1_000_000
            config.train.checkpoint_every = 25
            config.train.picture_every = 0
        elif variant == "typing_error":
            config.train.stesp = 3
        elif variant == "bug":
            config.seed = 1 / 0
        elif variant:
            raise UserError(f"variant {variant!r} is unknown; there is: long")
        return config
"""
)


@pytest.fixture(scope="module")
def config_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "tiny.py"
    path.write_text(textwrap.dedent(CONFIG))
    return path


def command(*arguments):
    """Runs a command line in this process; returns its exit code."""
    return main.run(["main", *map(str, arguments)])


def test_train_evaluate_explain_and_compile(tmp_path, config_file, capsys):
    workdir, base = tmp_path / "run", (f"--config={config_file}", f"--workdir={tmp_path / 'run'}")
    assert command(*base, "--mode=train") == 0
    out = capsys.readouterr().out
    assert f"Results: {workdir / 'results.json'}" in out and f"Pictures: {workdir / 'pictures'}" in out
    results = json.loads((workdir / "results.json").read_text())
    assert results["metrics"]["steps"] == 2 and results["metrics"]["train_seconds"] > 0
    assert 0 <= results["metrics"]["accuracy"] <= 1
    assert f"Report: {workdir / 'report.html'}" in out
    html = (workdir / "report.html").read_text()
    assert 'id="curves"' in html and html.count('<article class="card') == 8  # the whole split
    assert (workdir / "results.tex").is_file()

    # The report needs files alone, and no config.
    (workdir / "report.html").unlink()
    assert command("--mode=report", f"--workdir={workdir}") == 0
    assert (workdir / "report.html").is_file()
    (workdir / "report.html").unlink()
    (workdir / "report.html").mkdir()
    assert command("--mode=report", f"--workdir={workdir}") == 1
    assert "error: Cannot read or write" in capsys.readouterr().err
    (workdir / "report.html").rmdir()
    assert command("--mode=report", f"--workdir={tmp_path / 'none'}") == 1
    assert "There is nothing to report in" in capsys.readouterr().err

    (workdir / "results.json").unlink()
    assert command(*base, "--mode=evaluate") == 0
    again = json.loads((workdir / "results.json").read_text())
    assert again["metrics"] == results["metrics"]
    # Another configuration than the checkpoint's is refused, and nothing is written.
    (workdir / "results.json").unlink()
    assert command(*base, "--mode=evaluate", "--config.model.pooling_temperature=0.5") == 1
    message = capsys.readouterr().err
    assert "model.pooling_temperature: 1.0 there, 0.5 now" in message
    assert "for what the checkpoint holds, --config.model.pooling_temperature=1.0" in message
    assert not (workdir / "results.json").exists()

    Image.fromarray(np.full((40, 50, 3), 100, np.uint8)).save(tmp_path / "photo.png")
    assert command(*base, "--mode=explain", f"--images={tmp_path / 'photo.png'}") == 0
    assert (workdir / "explained" / "photo.png").exists()
    assert command(*base, "--mode=explain", "--images=") == 1
    assert "--mode=explain needs --images" in capsys.readouterr().err
    # A file where a folder is to be: told before the work, not after it.
    for mode, name in (("explain", "explained"), ("evaluate", "pictures")):
        shutil.rmtree(workdir / name)
        (workdir / name).write_text("")
        assert command(*base, f"--mode={mode}", f"--images={tmp_path / 'photo.png'}") == 1
        assert f"error: Cannot write to {workdir / name}: File exists" in capsys.readouterr().err

    assert command(*base, "--mode=compile") == 0


def start(config_file, workdir, devices=2, *flags):
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "selfexplain_jax.main", f"--config={config_file}:long", f"--workdir={workdir}"]
    command += flags
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)


def steps_of(workdir):
    """Steps of the whole lines of metrics.jsonl."""
    path = workdir / "metrics.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [json.loads(line)["step"] for line in lines]


def wait_until(process, condition, seconds=100):
    """Waits for a condition; a process that ends or takes too long is killed and fails the test."""
    end = time.monotonic() + seconds
    while not condition():
        if process.poll() is not None or time.monotonic() > end:
            process.kill()
            pytest.fail(f"the process ended ({process.wait()}) or took too long: {process.stderr.read()}")
        time.sleep(0.05)


def finish(process, seconds=60):
    """Returns exit code and stderr; a process that takes longer is killed and fails the test."""
    try:
        _, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return process.returncode, err


def test_sigterm_saves_and_the_same_command_goes_on_even_after_a_kill(tmp_path, config_file):
    process = start(config_file, tmp_path)
    wait_until(process, lambda: len(steps_of(tmp_path)) > 30)
    process.terminate()
    # The grace that clusters give.
    code, err = finish(process, seconds=30)
    assert code == 143, err
    assert "Stopped by SIGTERM; the training is saved at step" in err and "Traceback" not in err
    saved = max(int(path.name) for path in (tmp_path / "checkpoints").iterdir())
    assert f"saved at step {saved}." in err and steps_of(tmp_path)[-1] == saved

    process = start(config_file, tmp_path)
    wait_until(process, lambda: steps_of(tmp_path)[-1] > saved + 60)
    process.send_signal(signal.SIGKILL)
    code, err = finish(process)
    assert code == -signal.SIGKILL
    assert f"Going on from the checkpoint of step {saved}." in err
    # However it was cut, there is a checkpoint after the first one, and the lines have no gap and no double.
    kept = [int(path.name) for path in (tmp_path / "checkpoints").iterdir() if path.name.isdecimal()]
    assert max(kept) > saved
    assert steps_of(tmp_path) == list(range(1, steps_of(tmp_path)[-1] + 1))


COMPILING = """
    import os, signal, sys, time
    from selfexplain_jax import main
    from selfexplain_jax.training import loop

    def compile_without_end():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(300)

    loop.compiled_step = lambda step, arguments, stop: stop.beside(compile_without_end)
    sys.exit(main.run())
"""


def test_sigterm_while_xla_compiles_does_not_wait_for_it(tmp_path, config_file):
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    flags = [f"--config={config_file}:long", f"--workdir={tmp_path}"]
    command = [sys.executable, "-c", textwrap.dedent(COMPILING), *flags]
    result = subprocess.run(command, env=environment, timeout=120, capture_output=True, text=True)
    assert result.returncode == 143, result.stderr
    assert "Stopped by SIGTERM before the first step. Run the same command again" in result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("shard", [False, True])
def test_two_processes_train_like_one_and_stop_together(tmp_path, config_file, shard):
    # Wide enough for arrays that are split; pictures need them whole again, on all hosts.
    network = ["--config.model.widths=(64,)"] if shard else []
    flags = [f"--coordinator_address={free_address()}", "--num_processes=2", *network]
    flags += ["--config.train.shard_parameters=True", "--config.train.picture_every=20"] if shard else []
    both = [start(config_file, tmp_path / "two", 1, *flags, f"--process_id={i}") for i in (0, 1)]
    wait_until(both[0], lambda: len(steps_of(tmp_path / "two")) > 30)
    both[1].terminate()
    for code, err in map(finish, both):
        assert code == 143 and "Stopped by SIGTERM; the training is saved at step" in err, err
    # One process goes on from there.
    saved = steps_of(tmp_path / "two")[-1]
    one = start(config_file, tmp_path / "two", 1, *network)
    wait_until(one, lambda: steps_of(tmp_path / "two")[-1] > saved + 5)
    one.kill()
    assert f"Going on from the checkpoint of step {saved}." in finish(one)[1]

    one = start(config_file, tmp_path / "one", 2, *network)
    wait_until(one, lambda: len(steps_of(tmp_path / "one")) > 10)
    one.kill()
    finish(one)
    losses = [
        [json.loads(line)["loss"] for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()[:5]]
        for name in ("one", "two")
    ]
    np.testing.assert_allclose(*losses, rtol=1e-3)


def test_bad_command_line_in_a_process_gives_one_line_and_no_traceback(config_file):
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [sys.executable, "-m", "selfexplain_jax.main", f"--config={config_file}", "--config.train.stepss=3"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert result.returncode == 1 and not result.stdout
    assert len(result.stderr.splitlines()) == 1
    assert "There is no field --config.train.stepss. The nearest one is --config.train.steps." in result.stderr


BAD = {
    "field": (["--config={}", "--config.model.width=3"], "The nearest one is --config.model.widths."),
    "group": (["--config={}", "--config.trian.steps=3"], "The nearest one is --config.train.steps."),
    "field, two words": (["--config={}", "--config.train.step", "3"], "The nearest one is --config.train.steps."),
    "type": (["--config={}", "--config.train.steps=many"], "--config.train.steps=many: invalid literal for int()"),
    "fraction": (["--config={}", "--config.train.steps=1.5"], "--config.train.steps=1.5"),
    "flag": (["--config={}", "--wrokdir=x"], "Unknown command line flag 'wrokdir'. Did you mean: workdir"),
    "mode": (["--config={}", "--mode=trian"], "--mode=trian"),
    "argument": (["--config={}", "train"], "Do not know what to do with train"),
    "no config": (["--mode=train"], "--config is missing"),
    "no file": (["--config=configs/nothing.py"], "Config file 'configs/nothing.py' does not exist"),
    "variant": (["--config={}:wide"], "variant 'wide' is unknown; there is: long"),
    "field in the file": (["--config={}:typing_error"], 'Did you mean "steps" instead of "stesp"?'),
    "bug in the file": (["--config={}:bug"], "fails with ZeroDivisionError: division by zero."),
    "workdir": (["--config={}", "--mode=train", "--workdir=/dev/null/run"], "Cannot write to /dev/null/run"),
    "processes": (["--config={}", "--num_processes=2"], "--coordinator_address=None"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_told_in_one_line(case, config_file, capsys):
    arguments, message = BAD[case]
    assert command(*[argument.format(config_file) for argument in arguments]) == 1
    captured = capsys.readouterr()
    assert message in captured.err and captured.err.startswith("error: ")
    assert len(captured.err.splitlines()) == 1 and not captured.out


def test_overrides_reach_the_config(config_file):
    arguments = ["--config.train.steps=9", "--config.model.widths=(8,16)", "--config.data.flip"]
    config = main.parse_flags(["main", f"--config={config_file}", *arguments]).config
    assert (config.train.steps, config.model.widths, config.data.flip) == (9, (8, 16), True)


def test_help_lists_the_flags(capsys):
    assert command("--help") == 0
    out = capsys.readouterr().out
    assert "--workdir" in out and "--mode: <train|evaluate|explain|report|compile|benchmark>" in out


@pytest.mark.parametrize(
    "spec, folder",
    [
        ("configs/synthetic.py", "runs/synthetic"),
        ("configs/voc.py:resnet50", "runs/voc_resnet50"),
        ("a.py:seed=3,x/y", "runs/a_seed=3_x_y"),
    ],
)
def test_default_workdir(spec, folder):
    assert main.default_workdir(spec) == folder


def test_unknown_field_of_a_group_in_the_objective_says_where_to_name_it(config_file):
    config = main.load_config(str(config_file))
    with pytest.raises(UserError, match="if the config file names them"):
        main.check_fields(["main", "--config.objective.area_target.weight=1"], config)
