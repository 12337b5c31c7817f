"""Lines of progress: what they say on a terminal, in a log, and on hosts that are not the first."""

import io
import itertools

import pytest

from selfexplain_jax import progress


@pytest.fixture
def clock(monkeypatch):
    """Every look at the clock is four seconds after the one before."""
    times = itertools.count(100.0, 4.0)
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(times))


def test_a_log_gets_a_line_now_and_then(clock):
    stream = io.StringIO()
    assert list(progress.counted(range(8), "maps", stream=stream)) == list(range(8))
    # Three items in twelve seconds make the first line; the clock ends two items behind the second.
    assert stream.getvalue().splitlines() == [
        "maps: 3/8 (38%), 0.25 batches/s, 20 s left",
        "maps: 6/8 (75%), 0.25 batches/s, 8 s left",
    ]


def test_no_more_are_taken_than_are_wanted(clock):
    for terminal in (False, True):
        stream, endless = io.StringIO(), itertools.count()
        stream.isatty = lambda terminal=terminal: terminal
        assert list(progress.counted(endless, "audit", 4, unit="steps", stream=stream)) == [0, 1, 2, 3]
        assert next(endless) == 4
        assert ("4/4" in stream.getvalue()) == terminal


def test_short_work_leaves_a_log_as_it_is():
    stream = io.StringIO()
    assert list(progress.counted("abc", "evaluate", stream=stream)) == ["a", "b", "c"]
    assert not stream.getvalue()


def test_other_hosts_say_nothing(monkeypatch, capsys, clock):
    monkeypatch.setattr(progress.jax, "process_index", lambda: 1)
    assert list(progress.counted(range(9), "evaluate")) == list(range(9))
    line = progress.Progress(10)
    line.report(10, {}, 1.0, 1.0)
    line.close()
    assert not capsys.readouterr().err


def test_plain_lines_come_every_so_often_and_at_the_end():
    stream = io.StringIO()
    line = progress.Progress(200, stream=stream, plain_every=1000.0)
    for step in range(50, 201, 50):
        line.step(step)
        line.report(step, {"loss": 1 / step}, steps_per_second=0.5, images_per_second=16.0)
    line.say("Saved.")
    line.close()
    assert stream.getvalue().splitlines() == [
        "step 50/200 (25%), 0.5 steps/s, 16 images/s, 5 min 00 s left, loss 0.02",
        "step 200/200 (100%), 0.5 steps/s, 16 images/s, 0 s left, loss 0.005",
        "Saved.",
    ]


def test_terminal_gets_a_bar():
    stream = io.StringIO()
    stream.isatty = lambda: True
    line = progress.Progress(200, start=100, stream=stream)
    line.step(150)
    line.report(150, {"loss": 0.25}, steps_per_second=2.0, images_per_second=64.0)
    line.close()
    assert "150/200" in stream.getvalue() and "25 s left, loss 0.25" in stream.getvalue()


@pytest.mark.parametrize("s, text", [(0.4, "0 s"), (59.6, "1 min 00 s"), (245, "4 min 05 s"), (7380, "2 h 03 min")])
def test_durations(s, text):
    assert progress.duration(s) == text
