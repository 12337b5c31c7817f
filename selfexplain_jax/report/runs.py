"""What a run or a comparison left in its folder, read back for the report."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import re
from collections.abc import Sequence
from typing import Any

from selfexplain_jax import examples
from selfexplain_jax.folders import open_folder
from selfexplain_jax.types import UserError


@dataclasses.dataclass(frozen=True)
class Run:
    """A folder of results.

    folder: where it is.
    results: of results.json; None where the run was not evaluated.
    comparison: of comparison.json; None where nothing was compared.
    curves: {name: [(step, value)]} of metrics.jsonl.
    pictures: (step, file) of the masks that were drawn while training.
    kept: rows and pictures of single images, see `examples.py`.
    label: what the page calls it where its folder's name is another run's too, see `with_labels`.
    """

    folder: pathlib.Path
    results: dict[str, Any] | None
    comparison: dict[str, Any] | None
    curves: dict[str, list[tuple[int, float]]]
    pictures: list[tuple[int, pathlib.Path]]
    kept: examples.Examples | None
    label: str = ""

    @property
    def name(self) -> str:
        return self.label or self.folder.resolve().name


def with_labels(runs: Sequence[Run]) -> list[Run]:
    """Returns the runs with a name for each: folders of one name in two places get marks behind it, run, run', ..."""
    made: dict[str, Run] = {}
    for run in runs:
        label = run.name
        while label in made:
            label += "'"
        made[label] = dataclasses.replace(run, label=label)
    return list(made.values())


def read_run(folder: str | os.PathLike) -> Run:
    """Reads a folder.

    Raises:
      UserError: there is no such folder, it holds neither results.json nor comparison.json nor metrics.jsonl, or one of
        them is damaged.
    """
    folder = open_folder(folder)
    run = Run(
        folder,
        read_json(folder / "results.json", "metrics"),
        read_json(folder / "comparison.json", "methods"),
        read_curves(folder / "metrics.jsonl"),
        training_pictures(folder / "pictures"),
        examples.read(folder),
    )
    if run.results is None and run.comparison is None and not run.curves:
        raise UserError(
            f"There is nothing to report in {folder}: it holds no results.json, comparison.json or metrics.jsonl. "
            "Train (--mode=train) or evaluate (--mode=evaluate) first, or name another --workdir."
        )
    return run


def read_json(path: pathlib.Path, entry: str) -> dict[str, Any] | None:
    """Returns the content of a file of results, which has that entry; None where there is no file.

    Raises:
      UserError: it is not JSON, or is of something else.
    """
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}). Evaluate again.") from error
    if not isinstance(found, dict) or entry not in found:
        raise UserError(f"{path} has no entry {entry!r}: it is not from an evaluation.")
    return found


def read_curves(path: pathlib.Path) -> dict[str, list[tuple[int, float]]]:
    """Returns {name: [(step, value)]} of a metrics.jsonl; nothing where there is no file.

    A last line that a kill cut short is left out, as a resumed training does.

    Raises:
      UserError: another line is not whole.
    """
    curves: dict[str, list[tuple[int, float]]] = {}
    lines = path.read_text().splitlines() if path.is_file() else []
    for number, line in enumerate(lines, 1):
        try:
            values = json.loads(line)
            step = int(values.pop("step"))
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            if number == len(lines):
                break
            raise UserError(f"Line {number} of {path} is not one of a training log: {error!r}.") from error
        for name, value in values.items():
            curves.setdefault(name, []).append((step, float(value)))
    return curves


def training_pictures(folder: pathlib.Path) -> list[tuple[int, pathlib.Path]]:
    """Returns (step, file) of a run's pictures masks_STEP.png, by step."""
    found = [(re.fullmatch(r"masks_(\d+)\.png", file.name), file) for file in folder.glob("masks_*.png")]
    return sorted((int(match.group(1)), file) for match, file in found if match)
