"""metrics.jsonl, TensorBoard events and the progress line."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import textwrap

import numpy as np
from event_files import events_of, shown_scalars

from selfexplain_jax.training import writers

ROOT = pathlib.Path(__file__).resolve().parents[1]


def lines_of(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_scalars_go_to_both_places(tmp_path):
    writer = writers.MetricWriter(str(tmp_path))
    writer.scalars(2, {"loss": np.float32(0.5), "term/object": 1.25})
    assert lines_of(tmp_path) == [{"step": 2, "loss": 0.5, "term/object": 1.25}]  # At once, not at the end.
    writer.close()
    found = {(e.step, v.tag): v.simple_value for e in events_of(tmp_path) for v in e.summary.value}
    assert found == {(2, "loss"): 0.5, (2, "term/object"): 1.25}


def test_resuming_takes_out_later_lines_and_torn_ones(tmp_path):
    writer = writers.MetricWriter(str(tmp_path))
    for step in (10, 20, 30):
        writer.scalars(step, {"loss": step})
    writer.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 40, "lo')
    writer = writers.MetricWriter(str(tmp_path), resume_step=20)
    assert [line["step"] for line in lines_of(tmp_path)] == [10, 20]
    writer.scalars(30, {"loss": -1})
    writer.close()
    assert lines_of(tmp_path) == [{"step": s, "loss": v} for s, v in ((10, 10.0), (20, 20.0), (30, -1.0))]
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["metrics.jsonl"]
    # TensorBoard is told to hide what came before from step 21 on.
    starts = [e.step for e in events_of(tmp_path) if e.HasField("session_log")]
    assert starts == [21]


KILLED = """
    import os, signal, sys
    from selfexplain_jax.training.writers import MetricWriter

    writer = MetricWriter(sys.argv[1])
    for step in (2, 3, 4):
        writer.scalars(step, {"loss": step})
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_kill_loses_nothing_that_was_told_and_what_is_told_again_is_shown_once(tmp_path):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", textwrap.dedent(KILLED), str(tmp_path)]
    done = subprocess.run(command, env=environment, timeout=300, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert shown_scalars(tmp_path) == {"loss": [(2, 2.0), (3, 3.0), (4, 4.0)]}
    # On from the checkpoint of step 3, with what a torn record leaves at the end of the old file.
    [old] = (tmp_path / "tensorboard").iterdir()
    old.write_bytes(old.read_bytes()[:-5])
    writer = writers.MetricWriter(str(tmp_path), resume_step=3)
    for step in (4, 6):
        writer.scalars(step, {"loss": 10 * step})
    writer.close()
    shown = [(2, 2.0), (3, 3.0), (4, 40.0), (6, 60.0)]
    assert shown_scalars(tmp_path) == {"loss": shown}
    assert [(line["step"], line["loss"]) for line in lines_of(tmp_path)] == shown


def test_images_become_one_grid(tmp_path):
    writer = writers.MetricWriter(str(tmp_path))
    writer.images(3, {"image": np.zeros((2, 4, 5, 3)), "mask": np.ones((2, 4, 5))})
    writer.close()
    (value,) = [v for e in events_of(tmp_path) for v in e.summary.value]
    assert (value.image.height, value.image.width) == (2 * 4 + 2, 2 * 5 + 2)


def test_grid_places_examples_in_rows_and_kinds_in_columns():
    image = np.zeros((2, 1, 2, 3))
    image[1] = 0.2
    grid = writers.picture_grid([image, np.array([[[1.0, 0.4]], [[0.0, 2.0]]])], gap=1)
    assert grid.dtype == np.uint8 and grid.shape == (3, 5, 3)
    np.testing.assert_array_equal(grid[..., 0], [[0, 0, 255, 255, 102], [255] * 5, [51, 51, 255, 0, 255]])


def test_other_hosts_write_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(writers.jax, "process_index", lambda: 1)
    writer = writers.MetricWriter(str(tmp_path / "run"))
    writer.scalars(1, {"loss": 1.0})
    writer.images(1, {"image": np.zeros((1, 2, 2, 3))})
    writer.close()
    assert not list(tmp_path.iterdir())
