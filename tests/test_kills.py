"""One command, killed at one moment after the other and started again: it ends as if it had never been killed."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import textwrap

import pytest
from command_line import CONFIG_HEAD, ended_at
from event_files import shown_scalars
from test_loop import metrics_of

ROOT = pathlib.Path(__file__).resolve().parents[1]
CONFIG = (
    CONFIG_HEAD
    + """
        config.data.options.test_size = 12
        config.train.batch_size = 4
        config.train.steps = 6
        config.train.checkpoint_every = 2
        config.train.picture_every = 3
        config.evaluation.batch_size = 4
        config.evaluation.pictures = 2
        config.evaluation.examples = 4
        return config
"""
)
MOMENTS = (
    ("a step is told, none is saved", "selfexplain_jax.training.writers:MetricWriter.scalars", 2),
    ("a part of the second checkpoint is written", "grain.checkpoint:CheckpointHandler.save", 2),
    ("the state is restored, its place in the data is not", "grain.checkpoint:CheckpointHandler.restore", 1),
    ("lines of later steps are still there", "selfexplain_jax.training.writers:drop_lines_after", 1),
    ("they are gone, and TensorBoard knows nothing of it", "selfexplain_jax.training.writers:EventFile.__init__", 1),
    ("a picture is drawn and not shown", "selfexplain_jax.training.writers:MetricWriter.images", 1),
    ("the last checkpoint is on its way", "selfexplain_jax.training.checkpoint:CheckpointStore.wait", 1),
    ("a third of the images is evaluated", "selfexplain_jax.metrics.view:look", 2),
    ("one of two pictures is written", "selfexplain_jax.image_rows:draw_rows", 2),
    ("one of two files of examples is written", "selfexplain_jax.examples:write_whole", 2),
    ("all is evaluated, no number is written", "selfexplain_jax.evaluate:write_whole", 1),
    ("only the report is missing", "selfexplain_jax.report.page:render", 1),
)
"""In the order of a run: what has happened by then, and the function's call that is the last one."""


def run(beginning, config_file, workdir, cache):
    """Runs the command to its end; returns what it said."""
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": "1",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "PYTHONPATH": str(ROOT),
    }
    command = [*beginning, f"--config={config_file}", f"--workdir={workdir}"]
    # subprocess.run ends a process that takes too long with SIGKILL, but raises then.
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_killed_at_twelve_moments_a_run_ends_as_if_it_had_not_been(tmp_path):
    config_file, cache = tmp_path / "tiny.py", tmp_path / "cache"
    config_file.write_text(textwrap.dedent(CONFIG))
    whole, killed, plain = tmp_path / "whole", tmp_path / "killed", [sys.executable, "-m", "selfexplain_jax.main"]
    done = run(plain, config_file, whole, cache)
    assert done.returncode == 0, done.stderr
    went_on = []
    for moment, place, number in MOMENTS:
        done = run(ended_at(place, number), config_file, killed, cache)
        assert done.returncode == -signal.SIGKILL, f"{moment}: {done.stderr}"
        went_on.append("Going on from the checkpoint" in done.stderr or "All 6 steps are done" in done.stderr)
    # Killed while restoring, it had not come to say so.
    assert went_on[:4] == [False] * 4 and all(went_on[5:7]), went_on
    done = run(plain, config_file, killed, cache)
    assert done.returncode == 0, done.stderr

    results, expected = (json.loads((folder / "results.json").read_text()) for folder in (killed, whole))
    assert results["metrics"].pop("train_seconds") > 0 and expected["metrics"].pop("train_seconds") > 0
    for name in ("metrics", "counts", "config"):
        assert results[name] == expected[name], name
    for name in ("examples.json", "examples.npz", "pictures/pictures.png", "pictures/class_masks.png"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes(), name
    assert {path.name for path in killed.iterdir()} == {path.name for path in whole.iterdir()}
    lines, expected = (metrics_of(folder) for folder in (killed, whole))
    assert lines == expected and [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    shown, expected = shown_scalars(killed), shown_scalars(whole)
    assert shown["loss"] == expected["loss"] and len(shown["loss"]) == 6
