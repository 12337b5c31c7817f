"""Ctrl-C and SIGTERM: a training ends between two steps, with all of it saved."""

from __future__ import annotations

import signal
import threading
from typing import Any

import jax
from jax.experimental import multihost_utils

from selfexplain_jax.training import mesh as mesh_lib


class Stopped(Exception):
    """A signal ended the training after a step; all of it is saved. `exit_code` is 130 for Ctrl-C, 143 for SIGTERM."""

    def __init__(self, signal_number: int, step: int):
        self.exit_code = 128 + signal_number
        name = "Ctrl-C" if signal_number == signal.SIGINT else "SIGTERM"
        super().__init__(
            f"Stopped by {name}; the training is saved at step {step}. Run the same command again to go on from there."
        )


class StopSignal:
    """Context in which Ctrl-C and SIGTERM do not end the process but are remembered, to stop between two steps.

    A second Ctrl-C interrupts at once. Outside the main thread signals cannot be caught: nothing changes there.
    """

    def __init__(self):
        self.received: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopSignal:
        # With many processes, JAX catches SIGTERM itself and lets all of them agree on a step (see `requested`).
        caught = (signal.SIGINT,) if jax.process_count() > 1 else (signal.SIGINT, signal.SIGTERM)
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._remember) for number in caught}
        return self

    def __exit__(self, *exception) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _remember(self, number: int, frame: Any) -> None:
        if number == signal.SIGINT and self.received == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number

    def requested(self, step: int, together: bool) -> int | None:
        """The signal after which all hosts stop at this step, or None.

        Args:
          step: every host must ask at every step.
          together: at such a step (the same ones on all hosts) they tell each other of a Ctrl-C.
        """
        if jax.process_count() == 1:
            return self.received
        if multihost_utils.reached_preemption_sync_point(step):
            return signal.SIGTERM
        return signal.SIGINT if together and mesh_lib.agree(self.received is not None) else None
