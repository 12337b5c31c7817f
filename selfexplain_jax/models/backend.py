"""For which backend the networks are written down; the one place that asks.

Some operations have a form that is fast on CPU and another for accelerators. What counts is where the program will run,
which is not always here: a step may be compiled for a TPU that is elsewhere.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator

import jax

_platform: contextvars.ContextVar[str | None] = contextvars.ContextVar("platform", default=None)


def on_cpu() -> bool:
    """Whether the forms for XLA on CPU are the right ones."""
    return (_platform.get() or jax.default_backend()) == "cpu"


@contextlib.contextmanager
def written_for(platform: str) -> Iterator[None]:
    """Context in which functions are traced for that platform ("cpu", "gpu", "tpu"), wherever this process runs.

    A function that is jitted already keeps the form of its first trace: make it anew inside.
    """
    token = _platform.set(platform)
    try:
        yield
    finally:
        _platform.reset(token)
