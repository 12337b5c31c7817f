"""Rows of docs/results.md that were run again, held against the stored ones. `launch/reproduce.sh` calls it.

python -m selfexplain_jax.report.reproduce finished RUN_FOLDER NAME SEED    exit code 3 where something is left to do
python -m selfexplain_jax.report.reproduce compare RUNS_FOLDER NAME...      the table; exit code 1 where a row differs
python -m selfexplain_jax.report.reproduce store NAME RUN_FOLDER... --table=main --config=SPEC --hardware=TEXT
"""

from __future__ import annotations

import os
import pathlib
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from selfexplain_jax.report.run_again import (
    Comparison,
    command_line,
    commits_of,
    config_of,
    hold_to_config,
    tell,
    verdict,
)
from selfexplain_jax.report.runs import read_json
from selfexplain_jax.report.stored import (
    STORED,
    StoredRow,
    allowance,
    read_stored,
    row_of_runs,
    write_stored,
)
from selfexplain_jax.types import UserError

ADVICE = "One in a hundred does so by chance: more seeds of the row (--seeds) tell."

COMPARED = (
    "accuracy",
    "mean_average_precision",
    "object_accuracy",
    "background_accuracy",
    "iou",
    "miou",
    "miou_refined",
    "swap_owner_gap",
)
"""What is compared. More numbers would be more that differ by chance."""

NO_NUMBER_CHANGES = (
    "benchmark",
    "comparison",
    "data.data_dir",
    "data.num_threads",
    "data.prefetch",
    # The audit's classifiers add numbers, and move none of those that are compared.
    "evaluation.audit",
    "evaluation.examples",
    "evaluation.pictures",
    # Where it lies; whose it is, the list of rows says.
    "explainer.classifier",
    "train.checkpoint_every",
    "train.keep_checkpoints",
    "train.log_every",
    "train.picture_every",
)
"""Fields that may differ between two runs of one row."""


def choose(rows: Mapping[str, StoredRow], names: Sequence[str]) -> list[StoredRow]:
    """Returns the rows of those names, or all that can be run again.

    Raises:
      UserError: there is no such row, or it cannot be run again.
    """
    can = {name: row for name, row in rows.items() if not row.superseded}
    for name in names:
        if name not in can:
            why = "is of an older recipe, which no config gives any more" if name in rows else "is not there"
            raise UserError(f"Row {name!r} {why}. Choose among: {', '.join(can)}.")
    return [can[name] for name in names or can]


def read_measured(folder: str | os.PathLike, row: StoredRow, seed: int) -> dict[str, Any] | None:
    """Returns the results of a run of that row; None where the folder has none yet.

    Raises:
      UserError: they are of another config than the row's.
    """
    path = pathlib.Path(folder) / "results.json"
    found = read_json(path, "metrics")
    if found is None:
        return None
    config = config_of(row.config, [f"seed={seed}"])
    hold_to_config(path, found, f"row {row.name}", config, NO_NUMBER_CHANGES)
    return found


def measured_runs(runs: str | os.PathLike, row: StoredRow) -> list[dict[str, Any]]:
    """Returns the results in RUNS/NAME_seedNUMBER, by seed; those that are not finished are left out."""
    found = [(re.fullmatch(rf"{row.name}_seed(\d+)", path.name), path) for path in pathlib.Path(runs).glob("*_seed*")]
    seeds = sorted((int(match.group(1)), path) for match, path in found if match)
    return [results for seed, path in seeds if (results := read_measured(path, row, seed)) is not None]


def compare(rows: Mapping[str, StoredRow], row: StoredRow, results: Sequence[Mapping[str, Any]]) -> list[Comparison]:
    """Returns what a row's new results say of each number in `COMPARED` that is stored.

    Args:
      rows: all stored rows; their seeds say how far numbers spread.
      row: the one that was run again.
      results: contents of results.json files, a seed each.

    Raises:
      UserError: a run lacks a number that is stored.
    """
    made = []
    for metric in COMPARED:
        stored = row.mean(metric)
        if stored is None:
            continue
        values = [found["metrics"].get(metric) for found in results]
        if any(value is None for value in values):
            raise UserError(f"A run of row {row.name} has no {metric}, which is stored: evaluate it again.")
        allowed, borrowed = allowance(tuple(rows.values()), row, metric, len(values)) or (None, False)
        measured = sum(values) / len(values)
        made.append(Comparison(row.name, metric, stored, len(row.runs), measured, len(values), allowed, borrowed))
    return made


def compare_folder(runs: str | os.PathLike, names: Sequence[str], stored: str | os.PathLike = STORED) -> int:
    """Prints the table for RUNS and writes it to RUNS/reproduced.md; returns 1 where a row differs, else 0.

    Raises:
      UserError: an unknown row, results of another config, or nothing that was measured.
    """
    rows = read_stored(stored)
    made, missing, measured = [], [], []
    for row in choose(rows, names):
        results = measured_runs(runs, row)
        measured += results
        made += compare(rows, row, results) if results else []
        missing += [] if results else [row.name]
    words = f"{verdict(made, missing, ADVICE)}\nMeasured at commit {commits_of(measured)}."
    return tell(pathlib.Path(runs) / "reproduced.md", "Stored and measured", made, words)


def store(name: str, folders: Sequence[str], table: str, config: str, hardware: str, stored: str = str(STORED)) -> None:
    """Puts runs into the stored results as the row of that name, in the place of the one that was there.

    Raises:
      UserError: a folder has no results, or they may not be stored; see `stored.row_of_runs`.
    """
    results = []
    for folder in folders:
        found = read_json(pathlib.Path(folder) / "results.json", "metrics")
        if found is None:
            raise UserError(f"There is no results.json in {folder}: an evaluation writes it.")
        results.append(found)
    rows = read_stored(stored) if pathlib.Path(stored).is_file() else {}
    write_stored(rows | {name: row_of_runs(name, table, config, hardware, results)}, stored)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns its exit code. See `run_again.command_line`."""

    def finished(flags) -> bool:
        (row,) = choose(read_stored(flags.stored), [flags.name])
        return read_measured(flags.folder, row, flags.seed) is not None

    def put(flags) -> None:
        store(flags.name, flags.folders, flags.table, flags.config, flags.hardware, flags.stored)

    needed = {flag: {"required": True} for flag in ("--table", "--config", "--hardware")}
    flags_of = {"finished": {"seed": {"type": int}}, "store": {"folders": {"nargs": "+"}} | needed}
    return command_line(__doc__, STORED, flags_of, finished, compare_folder, put, arguments)


if __name__ == "__main__":
    sys.exit(main())
