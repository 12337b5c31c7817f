"""A data file disappears, the disk is full, a checkpoint is cut, the clock jumps. Kills: test_kills."""

import gc
import logging
import os
import pathlib
import re
import shutil
import subprocess
import sys
import textwrap
import time

import pytest
from event_files import events_of, shown_scalars
from required_tools import missing
from test_checkpoint import LEFT_BEHIND, largest, truncate
from test_loop import assert_same_bytes, calling, metrics_of, tiny_config

from selfexplain_jax.data.fakes import write_folder
from selfexplain_jax.training import loop, writers
from selfexplain_jax.types import UserError


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """A run from start to end, and its folder."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    return loop.train(tiny_config(), str(folder)), folder


def photo_config(folder):
    config = tiny_config()
    config.data.name, config.data.data_dir = "folder", str(folder)
    config.data.options = {"test_fraction": 0.25}
    return config


def test_file_that_disappears_is_named_and_once_it_is_back_the_run_goes_on(tmp_path, monkeypatch):
    photos = tmp_path / "photos"
    write_folder(photos)
    shutil.rmtree(photos / "masks")
    whole = loop.train(photo_config(photos), str(tmp_path / "whole"))
    lost = sorted(photos.rglob("*.jpg"))
    with monkeypatch.context() as patch:
        calling(patch, 4, lambda: [path.rename(path.with_suffix(".lost")) for path in lost])
        with pytest.raises(UserError, match=r"\.jpg"):
            loop.train(photo_config(photos), str(tmp_path / "run"))
    for path in lost:
        path.with_suffix(".lost").rename(path)
    assert_same_bytes(loop.train(photo_config(photos), str(tmp_path / "run")).state, whole.state)
    assert metrics_of(tmp_path / "run") == metrics_of(tmp_path / "whole")


TESTS = pathlib.Path(__file__).resolve().parent
FULL_DISK = """
    import pathlib, subprocess, sys, time
    import pytest
    from test_loop import assert_same_bytes, calling, loop, metrics_of, tiny_config
    from selfexplain_jax import main

    folder, whole = map(pathlib.Path, sys.argv[1:])
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", folder], check=True)
    ballast, patch = folder / "ballast", pytest.MonkeyPatch()

    def fill():
        while not (folder / "run" / "checkpoints" / "3").exists():
            time.sleep(0.05)
        # The last whole block as well: nothing is left.
        with open(ballast, "wb", buffering=0) as file:
            for size in (2**20, 2**12, 1):
                try:
                    while file.write(bytes(size)):
                        pass
                except OSError:
                    pass

    calling(patch, 5, fill)
    patch.setattr(main, "parse_flags", lambda argv: loop.train(tiny_config(), str(folder / "run")))
    assert main.run([]) == 1
    patch.undo()
    ballast.unlink()
    saved = sorted(int(path.name) for path in (folder / "run" / "checkpoints").iterdir() if path.name.isdecimal())
    assert saved[0] == 3 and 7 not in saved, saved
    resumed = loop.train(tiny_config(), str(folder / "run"))
    assert_same_bytes(resumed.state, loop.train(tiny_config(), str(whole)).state)
    assert metrics_of(folder / "run") == metrics_of(whole)
    print("went on from", saved[-1])
"""


def test_disk_that_is_full_is_named_and_with_room_the_run_goes_on(tmp_path):
    """A disk of 32 MB in a namespace of its own, filled to the last byte between two checkpoints."""
    unshare = ["unshare", "--user", "--map-root-user", "--mount"]
    (tmp_path / "disk").mkdir()
    mount = [*unshare, "mount", "-t", "tmpfs", "tmpfs", str(tmp_path / "disk")]
    if not shutil.which("unshare") or subprocess.run(mount, capture_output=True).returncode:
        missing("no disk can be mounted here in a namespace of its own (util-linux, user namespaces allowed)")
    done = subprocess.run(
        [*unshare, sys.executable, "-c", textwrap.dedent(FULL_DISK), str(tmp_path / "disk"), str(tmp_path / "whole")],
        env=os.environ | {"PYTHONPATH": f"{TESTS.parent}{os.pathsep}{TESTS}"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "went on from 3" in done.stdout
    # Orbax logs a traceback of its own thread before.
    assert re.search("^error: .*No space left on device", done.stderr, re.MULTILINE), done.stderr


@LEFT_BEHIND
def test_truncated_newest_checkpoint_gives_way_and_the_run_goes_on_from_the_one_before(
    tmp_path, uninterrupted, caplog, capsys
):
    whole, whole_folder = uninterrupted
    folder = shutil.copytree(whole_folder, tmp_path / "run")
    truncate(largest(folder / "checkpoints" / "7" / "state"))
    with caplog.at_level(logging.WARNING):
        resumed = loop.train(tiny_config(), str(folder))
    assert re.search("The checkpoint of step 7 in .* cannot be read .*; trying the one before it", caplog.text)
    assert "Going on from the checkpoint of step 6." in capsys.readouterr().err
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["3", "6", "7", "7.corrupt"]
    assert_same_bytes(resumed.state, whole.state)
    assert metrics_of(folder) == metrics_of(whole_folder)
    assert [step for step, _ in shown_scalars(folder)["loss"]] == [2, 3, 4, 6, 7]
    gc.collect()  # What TensorStore left behind goes while its warnings are still ignored.


@pytest.mark.parametrize("jump", [-86_400, 0, 86_400])
def test_clock_that_jumps_before_a_run_goes_on_changes_neither_result_nor_order(
    tmp_path, monkeypatch, uninterrupted, jump
):
    def stop():
        raise UserError("stop")

    whole, whole_folder = uninterrupted
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now)
    with monkeypatch.context() as patch:
        calling(patch, 5, stop)
        with pytest.raises(UserError, match="stop"):
            loop.train(tiny_config(), str(tmp_path / "run"))
    now += jump
    resumed = loop.train(tiny_config(), str(tmp_path / "run"))
    assert_same_bytes(resumed.state, whole.state)
    assert 0 < resumed.train_seconds < 3600
    assert metrics_of(tmp_path / "run") == metrics_of(whole_folder)
    events = events_of(tmp_path / "run")
    # Nothing is lost or doubled: what the second session writes hides what the first wrote of the same steps.
    starts = [number for number, event in enumerate(events) if event.HasField("session_log")]
    (start,) = starts
    assert {event.step for event in events[start:] if event.HasField("summary")} == {4, 6, 7}
    assert {event.step for event in events[:start] if event.HasField("summary")} >= {2, 3}


@pytest.mark.parametrize("jump", [-86_400, 86_400])
def test_clock_that_jumps_in_the_middle_of_a_run_costs_no_more_than_a_start(tmp_path, monkeypatch, uninterrupted, jump):
    """Orbax measures its patience by the clock: a day forward while it saves ends that run with a message."""
    whole, whole_folder = uninterrupted
    clock = [time.time()]
    monkeypatch.setattr(time, "time", lambda: clock[-1])
    # Once, whatever is run again.
    calling(monkeypatch, 4, lambda: clock.append(clock[0] + jump))
    try:
        result = loop.train(tiny_config(), str(tmp_path))
    except UserError as error:
        assert jump > 0 and re.search("Saving the checkpoint of step .* failed: TimeoutError", str(error))
        result = loop.train(tiny_config(), str(tmp_path))
    assert_same_bytes(result.state, whole.state)
    assert 0 < result.train_seconds < 3600 and metrics_of(tmp_path) == metrics_of(whole_folder)
    assert [step for step, _ in shown_scalars(tmp_path)["loss"]] == [2, 3, 4, 6, 7]


def test_event_files_keep_their_order_and_none_is_written_over(tmp_path, monkeypatch):
    monkeypatch.setattr(time, "time", lambda: 1.5e9)
    stamps = [1_500_000_000 + age for age in (-5, -3, -2, 4)]
    for stamp in stamps:
        (tmp_path / f"events.out.tfevents.{stamp}.host").write_text(str(stamp))
    writers.make_older(tmp_path)
    found = sorted(tmp_path.iterdir())
    assert [int(path.read_text()) for path in found] == stamps
    assert all(int(path.name.split(".")[3]) < stamps[0] for path in found)
    writers.make_older(tmp_path)
    assert sorted(tmp_path.iterdir()) == found
