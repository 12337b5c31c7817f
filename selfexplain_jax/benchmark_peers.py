"""The published implementations: a process of their own in an environment of their own, same weights and photos.

launch/parity.sh makes that environment, and tests/parity/time_peers.py, or another script there, is what runs in it.
Both sides take turns, so that whatever else the machine does meets both alike.
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

    def ask(self, task: str, settings: Mapping[str, Any], wanted: str = "seconds") -> dict[str, Any]:
        """Has a task done once and returns the answer.

        Args:
          task: its name. settings: of it.
          wanted: what the answer must hold.

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
        if wanted not in answer:
            raise PeerError(str(answer.get("error", f"an answer without {wanted}: {answer}")))
        return answer

    def seconds(self, task: str, settings: Mapping[str, Any]) -> float:
        """As `ask`; returns the seconds that it took there alone."""
        return float(self.ask(task, settings)["seconds"])

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
    if interpreter and not weights:
        return Peers(missing="the peers' network is EfficientNet-Lite0, and this is another")
    task = {"strides": strides, "threads": usable_cores()}
    return launch(interpreter, SCRIPT, folder, task, {"weights": weights, "inputs": inputs})


def launch(
    interpreter: str,
    script: pathlib.Path,
    folder: pathlib.Path,
    task: Mapping[str, Any],
    arrays: Mapping[str, Mapping[str, np.ndarray]],
) -> Peers:
    """Writes what both sides share and starts a script of tests/parity on it.

    Args:
      interpreter: as from `find_interpreter`; "": no peers.
      script: takes the folder, and answers a line of JSON for each line of JSON.
      folder: where task.json and the arrays are written, and the process's messages, peers.log.
      task: what JSON can hold.
      arrays: {name: arrays by name}, each of them NAME.npz.
    """
    if not interpreter:
        return Peers(missing="no environment of the peers: bash launch/parity.sh install, or --peers=PYTHON")
    if not script.is_file():
        return Peers(missing=f"tests/parity/{script.name} is part of the repository, and this is an installed package")
    folder.mkdir(parents=True, exist_ok=True)
    for name, contents in arrays.items():
        np.savez(folder / f"{name}.npz", **contents)
    (folder / "task.json").write_text(json.dumps(task))
    with (folder / "peers.log").open("w") as log:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": log}
        process = subprocess.Popen([interpreter, str(script), str(folder)], text=True, **pipes)
    peers = Peers(process)
    try:
        peers.about = _read(process)
    except PeerError as error:
        peers.missing = f"{error}; see {folder / 'peers.log'}"
    return peers


def alternate(
    sides: Mapping[str, Callable[[], float]], repetitions: int
) -> tuple[dict[str, list[float]], dict[str, str]]:
    """Has each side work in turn, and all of them again, after one round that does not count.

    Args:
      sides: name -> does its work and returns the seconds it took; where it raises `PeerError` it is left out from
        then on.
      repetitions: of each.

    Returns:
      Seconds by name, one number per repetition; and by name why some are missing, of those sides alone.
    """
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    missing: dict[str, str] = {}
    for repetition in range(-1, repetitions):
        for name, side in sides.items():
            if name in missing:
                continue
            try:
                taken = side()
            except PeerError as error:
                missing[name] = str(error)
                continue
            if repetition >= 0:
                seconds[name].append(taken)
    return seconds, missing


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

    def timed() -> float:
        started = time.perf_counter()
        jax.block_until_ready(ours())
        return time.perf_counter() - started

    seconds, missing = alternate({"ours": timed} | ({"theirs": theirs} if theirs is not None else {}), repetitions)
    reason = "no other package does this" if theirs is None else missing.get("theirs", "")
    return seconds["ours"], seconds.get("theirs", []), reason


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
