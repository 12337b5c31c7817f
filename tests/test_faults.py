"""A file of the data disappears, the clock jumps. Kills: test_loop and test_main; full disks: test_checkpoint."""

import shutil
import time

import pytest
from event_files import events_of
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
