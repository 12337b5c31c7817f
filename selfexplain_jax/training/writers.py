"""What a training tells while it runs: metrics.jsonl, TensorBoard events, and one line of progress on the terminal.

On many hosts only the first one writes; on the others every call does nothing.
"""

from __future__ import annotations

import json
import pathlib
import sys
import time
from collections.abc import Mapping
from typing import TextIO

import jax
import numpy as np
import tensorboardX
import tqdm
from absl import logging

from selfexplain_jax.folders import in_bucket, make_folder, open_folder, write_whole


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
        self._events = tensorboardX.SummaryWriter(str(folder / "tensorboard"), purge_step=purge_step)

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
            self._events.add_scalar(name, value, step)

    def images(self, step: int, pictures: Mapping[str, np.ndarray]) -> None:
        """Shows pictures, float [B, H, W, 3] or [B, H, W] in 0..1, as one grid in TensorBoard: a row per example."""
        if not self._active:
            return
        self._events.add_image("masks", picture_grid(list(pictures.values())), step, dataformats="HWC")
        self._events.flush()

    def close(self) -> None:
        """Writes out what is buffered and closes the files."""
        if self._active:
            if self._lines is not None:
                self._lines.close()
            self._events.close()


def drop_lines_after(path: pathlib.Path, step: int) -> None:
    """Rewrites a metrics file without the lines of later steps, and without a line that a kill cut short.

    The new file replaces the old one in one move, so there is no moment without it.
    """
    lines = path.read_text().splitlines()
    kept = [line for line in lines if _step_of(line) is not None and _step_of(line) <= step]
    if len(kept) < len(lines):
        logging.warning("Took %d lines of steps after %d out of %s.", len(lines) - len(kept), step, path)
        write_whole(path, "".join(line + "\n" for line in kept).encode())


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


class Progress:
    """One line on the terminal that shows steps, rate, time left and the loss; plain lines where stderr is no terminal.

    Args:
      total: steps of the whole training.
      start: steps done before.
      stream: where it goes; stderr by default.
      plain_every: seconds that pass at least between two plain lines.
    """

    def __init__(self, total: int, start: int = 0, stream: TextIO | None = None, plain_every: float = 10.0):
        self._stream = stream or sys.stderr
        self._active = jax.process_index() == 0
        self._total, self._plain_every, self._last_line = total, plain_every, -float("inf")
        self._bar = None
        if self._active and self._stream.isatty():
            # The rate that the bar itself would work out includes compiling and pictures: it is given from outside.
            form = "{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}{postfix}"
            self._bar = tqdm.tqdm(
                total=total, initial=start, desc="train", file=self._stream, bar_format=form, dynamic_ncols=True
            )

    def step(self, step: int) -> None:
        """Moves the bar; plain output waits for `report`."""
        if self._bar is not None:
            self._bar.update(step - self._bar.n)

    def report(self, step: int, values: Mapping[str, float], steps_per_second: float, images_per_second: float) -> None:
        """Shows the rates (0: not known yet), the time left and `values`; plain lines come only every so often."""
        parts = [f"{name} {value:.4g}" for name, value in values.items()]
        if steps_per_second > 0:
            left = _duration((self._total - step) / steps_per_second)
            parts = [f"{steps_per_second:.3g} steps/s, {images_per_second:.3g} images/s, {left} left", *parts]
        text = ", ".join(parts)
        if self._bar is not None:
            self._bar.set_postfix_str(text)
            return
        now = time.monotonic()
        if now - self._last_line >= self._plain_every or step >= self._total:
            self._last_line = now
            self.say(f"step {step}/{self._total} ({step / self._total:.0%}), {text}")

    def say(self, text: str) -> None:
        """Prints a line of its own without tearing the bar."""
        if self._bar is not None:
            self._bar.write(text, file=self._stream)
        elif self._active:
            print(text, file=self._stream, flush=True)

    def close(self) -> None:
        """Ends the bar's line."""
        if self._bar is not None:
            self._bar.close()


def _duration(seconds: float) -> str:
    """3 s, 4 min 05 s, 2 h 03 min."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"


def _step_of(line: str) -> int | None:
    """The step of a line of metrics.jsonl; None for a line that is not whole."""
    try:
        return json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError, TypeError):
        return None
