"""What a training tells while it runs: metrics.jsonl and TensorBoard events.

On many hosts only the first one writes; on the others every call does nothing.
"""

from __future__ import annotations

import json
import pathlib
import tempfile
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from absl import logging
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto import event_pb2
from tensorboardX.record_writer import directory_check

from selfexplain_jax.folders import in_bucket, make_folder, open_folder, write_whole

EVENT_FILE = "events.out.tfevents."
"""How the names of TensorBoard's files begin; the second of their making, a dot and the host's name follow."""


class MetricWriter:
    """Scalars to WORKDIR/metrics.jsonl (a line per call) and to TensorBoard (WORKDIR/tensorboard); images to it.

    Args:
      workdir: folder of the run.
        In a bucket, whose objects cannot be appended to, metrics.jsonl is written anew with every line.
      resume_step: step that the run goes on from: what an earlier process wrote of later steps is taken out, because
        this one writes it again. 0 for a fresh start.
    """

    def __init__(self, workdir: str, resume_step: int = 0):
        self._active = jax.process_index() == 0
        if not self._active:
            return
        folder = open_folder(workdir)
        make_folder(folder)
        self._path = folder / "metrics.jsonl"
        had_lines = self._path.exists()
        if had_lines:
            drop_lines_after(self._path, resume_step)
        self._whole = self._path.read_text() if in_bucket(folder) and had_lines else ""
        self._lines = None if in_bucket(folder) else self._path.open("a")
        # TensorBoard hides what older event files hold from purge_step on.
        purge_step = resume_step + 1 if had_lines else None
        make_older(folder / "tensorboard")
        self._events = EventFile(folder / "tensorboard", purge_step)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Writes one line {"step": step, **values} and a TensorBoard scalar for each value."""
        if not self._active:
            return
        values = {name: float(value) for name, value in values.items()}
        line = json.dumps({"step": int(step)} | values) + "\n"
        # A reader, or a kill, always finds whole lines.
        if self._lines is None:
            self._whole += line
            write_whole(self._path, self._whole.encode())
        else:
            self._lines.write(line)
            self._lines.flush()
        for name, value in values.items():
            self._events.write(step, summary.scalar(name, value))
        if self._lines is not None:
            self._events.flush()

    def images(self, step: int, pictures: Mapping[str, np.ndarray]) -> None:
        """Shows pictures, float [B, H, W, 3] or [B, H, W] in 0..1, as one grid in TensorBoard: a row per example."""
        if not self._active:
            return
        self._events.write(step, summary.image("masks", picture_grid(list(pictures.values())), dataformats="HWC"))
        self._events.flush()

    def flush(self) -> None:
        """Writes out TensorBoard's events, which wait in a bucket alone: a kill then loses none of them."""
        if self._active:
            self._events.flush()

    def close(self) -> None:
        """Writes out what is buffered and closes the files."""
        if self._active:
            if self._lines is not None:
                self._lines.close()
            self._events.close()


class EventFile:
    """One of TensorBoard's files, written in order by who calls.

    tensorboardX's own SummaryWriter leaves that to a thread, for which its `flush` does not wait: what a run had told
    before a checkpoint was lost with a process that was killed behind it. It knows some kinds of buckets alone: here
    each gets a copy of the whole file with every `flush`.

    Args:
      folder: is made if it does not exist.
      purge_step: TensorBoard hides what older files hold from this step on; None: nothing.
    """

    def __init__(self, folder: pathlib.Path, purge_step: int | None = None):
        self._bucket = folder if in_bucket(folder) else None
        self._local = tempfile.TemporaryDirectory() if self._bucket else None
        directory = pathlib.Path(self._local.name) if self._local else folder
        directory_check(str(directory))
        self._writer = EventsWriter(str(directory / EVENT_FILE.partition(".")[0]))
        if purge_step is not None:
            start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            self._writer.write_event(event_pb2.Event(wall_time=time.time(), step=purge_step, session_log=start))

    def write(self, step: int, content: Any) -> None:
        """Appends a summary of `tensorboardX.summary`."""
        self._writer.write_event(event_pb2.Event(wall_time=time.time(), step=int(step), summary=content))

    def flush(self) -> None:
        """Hands what was appended to the disk, or to the bucket."""
        self._writer.flush()
        if self._bucket is not None:
            for path in pathlib.Path(self._local.name).iterdir():
                write_whole(self._bucket / path.name, path.read_bytes())

    def close(self) -> None:
        """Writes out what was appended, and closes the file."""
        self.flush()
        self._writer.close()
        if self._local is not None:
            self._local.cleanup()


def drop_lines_after(path: pathlib.Path, step: int) -> None:
    """Rewrites a metrics file without the lines of later steps, and without a line that a kill cut short.

    The new file replaces the old one in one move, so there is no moment without it.
    """
    lines = path.read_text().splitlines()
    kept = [line for line in lines if _step_of(line) is not None and _step_of(line) <= step]
    if len(kept) < len(lines):
        logging.warning("Took %d lines of steps after %d out of %s.", len(lines) - len(kept), step, path)
        write_whole(path, "".join(line + "\n" for line in kept).encode())


def make_older(folder: pathlib.Path) -> None:
    """Gives TensorBoard's files names of before now, in their order, where one has a name of now or of later.

    TensorBoard reads files in the order of their names, which begin with the second of their making: after a clock that
    jumped back, a run that goes on would be read before what it goes on from, or written over it.
    """
    names = sorted(path.name for path in folder.glob(f"{EVENT_FILE}*")) if folder.exists() else []
    stamps, now = [_stamp_of(name) for name in names], int(time.time())
    if not names or stamps[-1] < now:
        return
    logging.warning("%s in %s is of now or later by the clock: the files get older names.", names[-1], folder)
    # Before the first one's too: no new name is another file's.
    end = min(stamps[0], now)
    for age, name in zip(range(len(names), 0, -1), names, strict=True):
        (folder / name).rename(folder / name.replace(str(_stamp_of(name)), str(end - age), 1))


def _stamp_of(name: str) -> int:
    return int(name.removeprefix(EVENT_FILE).partition(".")[0])


def picture_grid(columns: list[np.ndarray], gap: int = 2) -> np.ndarray:
    """Pictures beside each other: one column per array, one row per example.

    Args:
      columns: float arrays [B, H, W, 3] or [B, H, W] in 0..1.
      gap: white pixels between the pictures.

    Returns:
      uint8 [B (H + gap) - gap, n (W + gap) - gap, 3] for n columns.
    """
    columns = [np.asarray(c, np.float32) for c in columns]
    columns = [c if c.ndim == 4 else np.repeat(c[..., None], 3, axis=-1) for c in columns]
    pictures = np.stack(columns, axis=1)  # [B, n, H, W, 3]
    pictures = np.pad(pictures, ((0, 0), (0, 0), (0, gap), (0, gap), (0, 0)), constant_values=1.0)
    rows, n, height, width, _ = pictures.shape
    grid = pictures.transpose(0, 2, 1, 3, 4).reshape(rows * height, n * width, 3)
    grid = grid[: rows * height - gap, : n * width - gap]
    return np.round(255 * np.clip(grid, 0, 1)).astype(np.uint8)


def _step_of(line: str) -> int | None:
    """The step of a line of metrics.jsonl; None for a line that is not whole."""
    try:
        return json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError, TypeError):
        return None
