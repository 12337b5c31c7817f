"""Checkpoints with Orbax: what is saved, which one is restored, and when a run refuses to go on.

WORKDIR/checkpoints/<step>/ holds four items: `state` (parameters, optimizer, averages), `data` (position in the stream
of examples), `config` (the configuration as JSON) and `progress` (seconds of training, checksums of the state).
Orbax writes into a temporary folder and renames it at the end, so a process killed while saving leaves the checkpoints
before it as they were.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import tempfile
import zlib
from typing import Any

import grain.checkpoint
import jax
import ml_collections
import numpy as np
import orbax.checkpoint as ocp
from absl import logging

from selfexplain_jax.folders import BUCKETS, in_bucket, make_folder, open_folder
from selfexplain_jax.training import mesh as mesh_lib
from selfexplain_jax.training.config_json import check_same_config, from_json, jsonable
from selfexplain_jax.types import UserError

_ABSENT = "absent"


@dataclasses.dataclass(frozen=True)
class Restored:
    """A checkpoint that was read: its step, the training state, and the seconds of training behind it."""

    step: int
    state: Any
    train_seconds: float


class CheckpointStore:
    """The checkpoints of one run.

    Args:
      workdir: folder of the run; one that all hosts see.
      config: the run's configuration; saved with every checkpoint, and held against that of the one restored.
      read_only: only restore; nothing on the disk is touched.
      classifier: `fingerprint` of the frozen classifier that the run explains; 0 without one.

    Raises:
      UserError: the folder cannot be made or written, or (read_only) it holds no checkpoints.
    """

    def __init__(
        self, workdir: str, config: ml_collections.ConfigDict, *, read_only: bool = False, classifier: int = 0
    ):
        self._config, self._classifier = jsonable(config), classifier
        self._read_only = read_only
        self.directory = _directory(workdir)
        if read_only and not self.directory.exists():
            raise UserError(f"{workdir} holds no checkpoints. Train first, or name another --workdir.")
        if not read_only:
            check_writable(workdir)
        self._manager = _open(self.directory, read_only, config.train.keep_checkpoints)

    @property
    def latest_step(self) -> int | None:
        """Step of the newest checkpoint, readable or not; None without any."""
        return self._manager.latest_step()

    def save(self, step: int, state: Any, iterator: Any, train_seconds: float) -> None:
        """Saves a checkpoint in the background; a step that is saved already is left as it is.

        The values are copied before this returns, so the state may be donated to the next step.

        Raises:
          UserError: the disk refuses, now or in the background since the last call.
        """
        if step in self._manager.all_steps():
            return
        progress = {
            "train_seconds": train_seconds,
            "checksums": checksums(state),
            "config_checksum": _checksum_of_json(self._config),
            "classifier": self._classifier,
        }
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(state),
            data=grain.checkpoint.CheckpointSave(iterator),
            config=ocp.args.JsonSave(self._config),
            progress=ocp.args.JsonSave(progress),
        )
        try:
            self._manager.save(step, args=items, force=True)
        except Exception as error:
            raise self._save_failed(step, error) from error

    def wait(self) -> None:
        """Waits until what was saved is on the disk.

        Raises:
          UserError: it could not be written.
        """
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            raise self._save_failed(self.latest_step, error) from error

    def close(self) -> None:
        """Waits for the background and lets go of the folder."""
        self.wait()
        self._manager.close()

    def restore(self, abstract_state: Any, iterator: Any = None) -> Restored | None:
        """Restores the newest checkpoint that can be read.

        One that is damaged is passed over with a warning. Once an older one has been restored in its place, the
        damaged ones are renamed to `<step>.corrupt`, so that the run can save those steps again; nothing is deleted.

        Args:
          abstract_state: the state as `jax.ShapeDtypeStruct`s with shardings.
          iterator: the training iterator; it is moved to where it was. None: only the state is wanted.

        Returns:
          What was restored; None if there is no checkpoint.

        Raises:
          UserError: the checkpoint belongs to another configuration or another network, or none can be read.
        """
        damaged = []
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                restored, problem = self._read(step, abstract_state, iterator), None
            except UserError:
                raise
            except Exception as error:  # Orbax and TensorStore raise many kinds for damaged files.
                problem = error
            if not mesh_lib.agree(problem is not None):
                self._set_aside(damaged)
                return restored
            damaged.append(step)
            logging.warning(
                "The checkpoint of step %d in %s cannot be read (%s); trying the one before it.",
                step,
                self.directory,
                _first_line(problem) or "another host could not read it",
            )
        if damaged:
            raise UserError(
                f"None of the checkpoints in {self.directory} can be read (steps {sorted(damaged)}). Nothing was "
                "deleted. Start again with another --workdir, or move that folder away."
            )
        return None

    def _read(self, step: int, abstract_state: Any, iterator: Any) -> Restored:
        json_items = self._manager.restore(
            step, args=ocp.args.Composite(config=ocp.args.JsonRestore(), progress=ocp.args.JsonRestore())
        )
        saved_config, progress = json_items["config"], json_items["progress"]
        if _checksum_of_json(saved_config) != progress["config_checksum"]:
            raise ValueError("its config is damaged")
        where = f"The checkpoint of step {step} in {self.directory}"
        check_same_config(saved_config, self._config, where)
        if progress.get("classifier", 0) != self._classifier:
            raise UserError(
                f"{where} explains another classifier than this one: its weights are not those that "
                "config.explainer.classifier holds now. Name that of the checkpoint, or use another --workdir."
            )
        saved_params = self._manager.item_metadata(step)["state"]["params"]
        check_same_shapes(saved_params, abstract_state.params, where)
        restore_state = ocp.args.Composite(state=ocp.args.StandardRestore(abstract_state))
        state = self._manager.restore(step, args=restore_state)["state"]
        # TensorStore notices truncated files, but not every changed byte.
        changed = [name for name, value in checksums(state).items() if progress["checksums"].get(name) != value]
        if changed:
            raise ValueError(f"the values of {changed[0]} are damaged")
        if iterator is not None:
            self._restore_data(step, iterator)
        return Restored(step, state, progress["train_seconds"])

    def _restore_data(self, step: int, iterator: Any) -> None:
        folder = self.directory / str(step) / "data"
        if (folder / f"process_{jax.process_index()}-of-{jax.process_count()}.json").exists():
            self._manager.restore(step, args=ocp.args.Composite(data=grain.checkpoint.CheckpointRestore(iterator)))
            return
        # Saved by another number of hosts. The position in the stream is the same on each of them.
        first = sorted(folder.glob("process_0-of-*.json"))
        if not first:
            raise ValueError("the position in the data is missing")
        iterator.set_state(json.loads(first[0].read_text()))

    def _set_aside(self, damaged: list[int]) -> None:
        if not damaged or self._read_only:
            return
        if jax.process_index() == 0:
            for step in damaged:
                folder, number = self.directory / str(step), 0
                target = self.directory / f"{step}.corrupt"
                while target.exists():
                    number += 1
                    target = self.directory / f"{step}.corrupt.{number}"
                folder.rename(target)
                logging.warning("The damaged checkpoint of step %d is now called %s.", step, target)
        mesh_lib.agree(False)  # The other hosts wait here until the renaming is done.
        self._manager.reload()

    def _save_failed(self, step: int | None, error: Exception) -> UserError:
        return UserError(
            f"Saving the checkpoint of step {step} in {self.directory} failed: {_first_line(error)} Is the disk full "
            "or read-only? The checkpoints before it are untouched; run the same command again to go on."
        )


def _directory(workdir: str) -> pathlib.Path:
    """Where the checkpoints of a run lie; absolute, as Orbax wants it."""
    folder = open_folder(workdir)
    return (folder if in_bucket(folder) else folder.resolve()) / "checkpoints"


def _open(directory: pathlib.Path, read_only: bool, keep: int | None = None) -> ocp.CheckpointManager:
    handlers = {
        "state": ocp.StandardCheckpointHandler(),
        "data": grain.checkpoint.CheckpointHandler(),
        "config": ocp.JsonCheckpointHandler(),
        "progress": ocp.JsonCheckpointHandler(),
    }
    verbosity = logging.get_verbosity()
    if read_only:
        # Orbax warns that the folder is read only, which was asked for and reads like a fault of the disk.
        logging.set_verbosity(logging.ERROR)
    try:
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=not read_only, read_only=read_only)
        return ocp.CheckpointManager(directory, item_handlers=handlers, options=options)
    finally:
        logging.set_verbosity(verbosity)


def saved_config(workdir: str) -> ml_collections.ConfigDict:
    """The configuration of the newest checkpoint in a folder that tells it, with the defaults of fields it lacks.

    Raises:
      UserError: there is no checkpoint, or none whose configuration can be read.
    """
    directory = _directory(workdir)
    if not directory.exists():
        raise UserError(f"{workdir} holds no checkpoints.")
    manager = _open(directory, read_only=True)
    items = ocp.args.Composite(config=ocp.args.JsonRestore(), progress=ocp.args.JsonRestore())
    try:
        for step in sorted(manager.all_steps(), reverse=True):
            try:
                found = manager.restore(step, args=items)
                if _checksum_of_json(found["config"]) == found["progress"]["config_checksum"]:
                    return from_json(found["config"])
            except Exception as error:  # Orbax raises many kinds for damaged files.
                logging.warning("The config of step %d in %s: %s", step, directory, _first_line(error))
    finally:
        manager.close()
    raise UserError(f"{workdir} holds no checkpoint that can be read.")


def check_writable(workdir: str | os.PathLike) -> None:
    """Makes the folder and writes a file into it, which is removed at once.

    Raises:
      UserError: that is not possible.
    """
    folder = open_folder(workdir)
    if in_bucket(folder):
        probe = folder / f".writable.{jax.process_index()}"
        try:
            probe.write_bytes(b"")
            probe.unlink()
        except Exception as error:  # The package of each kind of bucket has errors of its own.
            package = BUCKETS[str(folder).partition("://")[0]]
            raise UserError(
                f"Cannot write to {workdir} ({_first_line(error)}). Is the Python package {package} "
                "installed, is the bucket there, and may this account write to it?"
            ) from error
        return
    try:
        make_folder(folder)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"Cannot write to {workdir}: {error.strerror or error}. Choose another --workdir.") from error


def check_same_shapes(saved: Any, present: Any, where: str) -> None:
    """Holds the parameters of a checkpoint against those of this network, by name, shape and dtype.

    Args:
      saved: tree of anything with `shape` and `dtype`.
      present: the same.
      where: names the checkpoint in the message.

    Raises:
      UserError: names the first parameter that differs.
    """
    saved, present = shapes_of(saved), shapes_of(present)
    for name in sorted(saved.keys() | present.keys()):
        there, now = saved.get(name, _ABSENT), present.get(name, _ABSENT)
        if there != now:
            raise UserError(
                f"{where} belongs to another network: parameter {name} is {there} there and {now} now. "
                "Use another --workdir for this network."
            )


def fingerprint(tree: Any) -> int:
    """A number that tells one tree of arrays from another; 0 where it holds none. See `checksums`."""
    return _checksum_of_json(checksums(tree)) if jax.tree.leaves(tree) else 0


def checksums(state: Any) -> dict[str, int]:
    """CRC-32 of the bytes of each array of a state, the same however it is split; all hosts must call it."""
    return {
        jax.tree_util.keystr(path): zlib.crc32(np.ascontiguousarray(mesh_lib.host_copy(leaf)).tobytes())
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
    }


def _checksum_of_json(value: Any) -> int:
    return zlib.crc32(json.dumps(value, sort_keys=True).encode())


def shapes_of(tree: Any) -> dict[str, str]:
    """{path: type and shape, "float32[3, 3]"} of the leaves of a tree of arrays, or of their shapes and types."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): f"{np.dtype(leaf.dtype).name}{list(leaf.shape)}"
        for path, leaf in leaves
    }


def _first_line(error: Exception | None) -> str:
    """The first line of an error's message, shortened; its type when there is no message."""
    if error is None:
        return ""
    lines = str(error).splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:200]}"
