"""The published implementations: a process of their own in an environment of their own, same weights and photos.

launch/parity.sh makes that environment, and tests/parity/time_peers.py is what runs in it. Both sides take turns, so
that whatever else the machine does meets both alike.
"""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from selfexplain_jax.training.mesh import usable_cores
from selfexplain_jax.types import UserError

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]
SCRIPT = REPOSITORY / "tests" / "parity" / "time_peers.py"
VARIABLE = "SELFEXPLAIN_PARITY_VENV"
"""Environment variable that says where launch/parity.sh has made the peers' environment."""


class PeerError(Exception):
    """Why a peer has no time: the message is what the table says in its place."""


class Peers:
    """The peers' process. With `missing` there is none, and it says why.

    about: what the process said of itself: "versions", "threads", "score_difference".
    """

    def __init__(self, process: subprocess.Popen | None = None, about: Mapping[str, Any] | None = None, missing=""):
        self._process, self.about, self.missing = process, dict(about or {}), missing

    def seconds(self, task: str, settings: Mapping[str, Any]) -> float:
        """Has a task done once and returns the seconds that it took there.

        Raises:
          PeerError: it could not be done; says why.
        """
        if self.missing:
            raise PeerError(self.missing)
        try:
            answer = _exchange(self._process, {"task": task, "settings": dict(settings)})
        except PeerError as error:
            # A process that has ended, or no longer answers as agreed, is asked for nothing more.
            self.missing = str(error)
            raise
        if "seconds" not in answer:
            raise PeerError(str(answer.get("error", f"an answer without a time: {answer}")))
        return float(answer["seconds"])

    def close(self) -> None:
        """Ends the process."""
        if self._process is not None:
            # An end of the input is what the process waits for.
            self._process.stdin.close()
            try:
                self._process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process.stdout.close()


def find_interpreter(asked: str = "") -> str:
    """Returns the Python of the peers' environment, or "" where there is none.

    Args:
      asked: --peers: an interpreter, or the folder of an environment; "" is $SELFEXPLAIN_PARITY_VENV, else .venv-parity
        in the repository, if that exists.

    Raises:
      UserError: what was asked for, or what the environment variable names, does not exist.
    """
    for name, value in (("--peers", asked), (VARIABLE, os.environ.get(VARIABLE, ""))):
        if value:
            path = pathlib.Path(value).expanduser()
            path = path / "bin" / "python" if path.is_dir() else path
            if not path.is_file():
                raise UserError(f"{name}={value}: there is no Python there. bash launch/parity.sh install makes it.")
            # A virtual environment's Python is a link, and what it is called by says which environment it is.
            return os.path.abspath(path)
    usual = REPOSITORY / ".venv-parity" / "bin" / "python"
    return str(usual) if usual.is_file() else ""


def start(
    interpreter: str,
    folder: pathlib.Path,
    *,
    weights: Mapping[str, np.ndarray],
    strides: list[int],
    inputs: Mapping[str, np.ndarray],
) -> Peers:
    """Writes what both sides share and starts the peers' process.

    Args:
      interpreter: as from `find_interpreter`; "": no peers.
      folder: where weights.npz, inputs.npz and task.json are written, and the process's messages, peers.log.
      weights: of EfficientNet-Lite0 by PyTorch's names; empty: the network is another, and there are no peers.
      strides: of its blocks.
      inputs: images, class_ids, saliency and scores, see tests/parity/time_peers.py.
    """
    if not interpreter:
        return Peers(missing="no environment of the peers: bash launch/parity.sh install, or --peers=PYTHON")
    if not weights:
        return Peers(missing="the peers' network is EfficientNet-Lite0, and this is another")
    if not SCRIPT.is_file():
        return Peers(missing="tests/parity/time_peers.py is part of the repository, and this is an installed package")
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "weights.npz", **weights)
    np.savez(folder / "inputs.npz", **inputs)
    (folder / "task.json").write_text(json.dumps({"strides": strides, "threads": usable_cores()}))
    with (folder / "peers.log").open("w") as log:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": log}
        process = subprocess.Popen([interpreter, str(SCRIPT), str(folder)], text=True, **pipes)
    peers = Peers(process)
    try:
        peers.about = _read(process)
    except PeerError as error:
        peers.missing = f"{error}; see {folder / 'peers.log'}"
    return peers


def in_turn(
    ours: Callable[[], Any], theirs: Callable[[], float] | None, repetitions: int
) -> tuple[list[float], list[float], str]:
    """Measures ours, theirs, ours, theirs, ..., after one call of each that does not count.

    Args:
      ours: returns arrays, which are waited for.
      theirs: returns the seconds it took; None: there is nothing to compare with.
      repetitions: of each.

    Returns:
      Seconds of each call of ours, of theirs, and why theirs are fewer; "" where they are not.
    """
    own, other, missing = [], [], "" if theirs is not None else "no other package does this"
    for repetition in range(-1, repetitions):
        started = time.perf_counter()
        jax.block_until_ready(ours())
        seconds = [time.perf_counter() - started]
        if not missing:
            try:
                seconds.append(theirs())
            except PeerError as error:
                missing = str(error)
        if repetition >= 0:
            own.append(seconds[0])
            other += seconds[1:]
    return own, other, missing


def _exchange(process: subprocess.Popen, asked: Mapping[str, Any]) -> dict:
    try:
        print(json.dumps(asked), file=process.stdin, flush=True)
    except OSError:
        pass  # It has ended, which reading says with its exit code.
    return _read(process)


def _read(process: subprocess.Popen) -> dict:
    line = process.stdout.readline()
    if not line:
        raise PeerError(f"the peers' process ended with exit code {process.wait()}")
    try:
        answer = json.loads(line)
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        raise PeerError(f"the peers' process wrote something else than an answer: {line.strip()[:80]!r}")
    return answer
