"""How far long work has come: a bar on a terminal, a plain line now and then where standard error is none.

On many hosts only the first one speaks.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import TextIO, TypeVar

import jax
import tqdm

Item = TypeVar("Item")

PLAIN_EVERY = 10.0
"""Seconds that pass at least between two plain lines."""


def counted(
    items: Iterable[Item], text: str, total: int | None = None, *, unit: str = "batches", stream: TextIO | None = None
) -> Iterator[Item]:
    """Hands the items on and shows how many are done, their rate and the time left.

    Args:
      items: one after the other.
      text: what the line begins with.
      total: how many are wanted, no more are taken; by default all, and there must be a length.
      unit: what an item is, in the plural.
      stream: where it goes; stderr by default.
    """
    stream = stream or sys.stderr
    total = len(items) if total is None else total
    taken = zip(range(1, total + 1), items, strict=False)
    if jax.process_index() != 0:
        yield from (item for _, item in taken)
        return
    if stream.isatty():
        with tqdm.tqdm(desc=text, total=total, unit=f" {unit}", file=stream, dynamic_ncols=True) as bar:
            for _, item in taken:
                yield item
                bar.update()
        return
    start = last = time.monotonic()
    for done, item in taken:
        yield item
        now = time.monotonic()
        if now - last >= PLAIN_EVERY:
            last, rate = now, done / (now - start)
            left = duration((total - done) / rate)
            print(
                f"{text}: {done}/{total} ({done / total:.0%}), {rate:.3g} {unit}/s, {left} left",
                file=stream,
                flush=True,
            )


class Progress:
    """A training's line: steps, rate, time left and the loss; plain lines where stderr is no terminal.

    Args:
      total: steps of the whole training.
      start: steps done before.
      stream: where it goes; stderr by default.
      plain_every: seconds that pass at least between two plain lines.
    """

    def __init__(self, total: int, start: int = 0, stream: TextIO | None = None, plain_every: float = PLAIN_EVERY):
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
            left = duration((self._total - step) / steps_per_second)
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


def duration(seconds: float) -> str:
    """Returns seconds in words: 3 s, 4 min 05 s, 2 h 03 min."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"
