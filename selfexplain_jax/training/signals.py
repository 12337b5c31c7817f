"""Ctrl-C and SIGTERM: a training ends between two steps, with all of it saved."""

from __future__ import annotations

import concurrent.futures
import signal
import threading
from collections.abc import Callable
from typing import Any

import jax
from jax.experimental import multihost_utils

from selfexplain_jax.training import mesh as mesh_lib

LISTEN_SECONDS = 0.1
"""So often the main thread looks for a signal while another one works."""


class Stopped(Exception):
    """A signal ended the training after a step; all of it is saved.

    Attributes:
      exit_code: 130 for Ctrl-C, 143 for SIGTERM.
      compiling: whether XLA is still at work in another thread, which the end of the process need not wait for.
    """

    def __init__(self, signal_number: int, step: int, compiling: bool = False):
        self.exit_code, self.compiling = 128 + signal_number, compiling
        name = "Ctrl-C" if signal_number == signal.SIGINT else "SIGTERM"
        where = f"; the training is saved at step {step}" if step else " before the first step"
        super().__init__(f"Stopped by {name}{where}. Run the same command again to go on from there.")


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

    def beside(self, work: Callable[[], Any]) -> Any:
        """The result of `work`, done in another thread; None where a signal asks for the end before it is done.

        While the main thread waits for XLA, it hears nothing, and a job that is told to end has half a minute. With
        many processes, which only stop together, and outside the main thread `work` is done here.
        """
        if jax.process_count() > 1 or not self._previous:
            return work()
        future = concurrent.futures.Future()

        def run():
            try:
                future.set_result(work())
            except BaseException as error:  # The main thread raises it.
                future.set_exception(error)

        threading.Thread(target=run, daemon=True).start()
        while self.received is None:
            done, _ = concurrent.futures.wait((future,), timeout=LISTEN_SECONDS)
            if done:
                return future.result()
        return None

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
