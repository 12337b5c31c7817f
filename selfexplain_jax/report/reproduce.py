"""Rows of docs/results.md that were run again, held against the stored ones. `launch/reproduce.sh` calls it.

python -m selfexplain_jax.report.reproduce finished RUN_FOLDER NAME SEED    exit code 3 where something is left to do
python -m selfexplain_jax.report.reproduce compare RUNS_FOLDER NAME...      the table; exit code 1 where a row differs
python -m selfexplain_jax.report.reproduce store NAME RUN_FOLDER... --table=main --config=SPEC --hardware=TEXT
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import pathlib
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from selfexplain_jax.config import load_config
from selfexplain_jax.report.runs import read_json
from selfexplain_jax.report.stored import (
    ROOT,
    STORED,
    StoredRow,
    allowance,
    read_stored,
    row_of_runs,
    write_stored,
)
from selfexplain_jax.training.config_json import differing_fields, jsonable
from selfexplain_jax.types import UserError

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

NOT_FINISHED = 3
"""Exit code of `finished` where something is left to do; a program that fails ends with 1."""

HEADER = ("row", "metric", "stored", "measured", "difference", "allowed", "within")


@dataclasses.dataclass(frozen=True)
class Comparison:
    """One number of one row: the mean over the stored runs and over the new ones, and what they may differ by.

    allowed: None where nothing is known of the spread, so that nothing is said.
    borrowed: the spread is not this row's own, see `stored.allowance`.
    """

    row: str
    metric: str
    stored: float
    stored_runs: int
    measured: float
    measured_runs: int
    allowed: float | None
    borrowed: bool

    @property
    def differs(self) -> bool:
        return self.allowed is not None and abs(self.measured - self.stored) > self.allowed


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
    config = load_config(str(ROOT / row.config))
    config.seed = seed
    differing = differing_fields(found.get("config", {}), jsonable(config), NO_NUMBER_CHANGES)
    if differing:
        raise UserError(
            f"{path} is not of row {row.name} as it is today:\n"
            + "\n".join(f"  {line}" for line in differing)
            + f"\nRemove {path.parent}, or name another folder with --runs=DIR."
        )
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


def comparison_table(made: Sequence[Comparison]) -> str:
    """Returns the comparisons as a Markdown table with aligned columns."""
    lines = [HEADER]
    for one in made:
        allowed = "unknown" if one.allowed is None else f"{one.allowed:.3f}{' (borrowed)' if one.borrowed else ''}"
        within = "-" if one.allowed is None else ("NO" if one.differs else "yes")
        stored, measured = _over(one.stored, one.stored_runs), _over(one.measured, one.measured_runs)
        lines.append((one.row, one.metric, stored, measured, f"{one.measured - one.stored:+.3f}", allowed, within))
    widths = [max(len(line[place]) for line in lines) for place in range(len(HEADER))]
    cells = [[text.ljust(width) for text, width in zip(line, widths, strict=True)] for line in lines]
    cells.insert(1, ["-" * width for width in widths])
    return "\n".join("| " + " | ".join(line) + " |" for line in cells)


def verdict(made: Sequence[Comparison], missing: Sequence[str]) -> str:
    """Returns in words what the table says: how many numbers differ, of which rows, and what was not measured."""
    differing = [one for one in made if one.differs]
    rows = dict.fromkeys(one.row for one in differing)
    lines = [f"{len(made)} numbers of {len(dict.fromkeys(one.row for one in made))} rows compared."]
    if differing:
        named = "; ".join(f"{row}: {', '.join(one.metric for one in differing if one.row == row)}" for row in rows)
        lines.append(f"{len(differing)} differ by more than the spread: {named}.")
        lines.append("One in a hundred does so by chance: more seeds of the row (--seeds) tell.")
    elif made:
        lines.append("None differs by more than the spread.")
    if missing:
        lines.append(f"Not measured: {', '.join(missing)}.")
    return "\n".join(lines)


def compare_folder(runs: str | os.PathLike, names: Sequence[str], stored: str | os.PathLike = STORED) -> int:
    """Prints the table for RUNS and writes it to RUNS/reproduced.md; returns 1 where a row differs, else 0.

    Raises:
      UserError: an unknown row, results of another config, or nothing that was measured.
    """
    rows = read_stored(stored)
    made, missing, commits = [], [], []
    for row in choose(rows, names):
        results = measured_runs(runs, row)
        if results:
            made += compare(rows, row, results)
            commits += [
                f"{(found.get('commit') or 'unknown')[:7]}{' with changes' * bool(found.get('dirty'))}"
                for found in results
            ]
        else:
            missing.append(row.name)
    if not made:
        raise UserError(f"No row was measured in {runs} yet: bash launch/reproduce.sh NAME runs one.")
    text = (
        f"{comparison_table(made)}\n\n{verdict(made, missing)}\nMeasured at commit {', '.join(dict.fromkeys(commits))}."
    )
    (pathlib.Path(runs) / "reproduced.md").write_text(f"# Stored and measured\n\n{text}\n")
    print(text)
    return int(any(one.differs for one in made))


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
    """Runs the command line; returns its exit code. Bad input is 2, with one message on standard error."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stored", default=str(STORED), help="default: docs/results.json of the repository")
    commands = parser.add_subparsers(dest="command", required=True)
    asked = commands.add_parser("finished")
    asked.add_argument("folder")
    asked.add_argument("name")
    asked.add_argument("seed", type=int)
    asked = commands.add_parser("compare")
    asked.add_argument("runs")
    asked.add_argument("names", nargs="*")
    asked = commands.add_parser("store")
    asked.add_argument("name")
    asked.add_argument("folders", nargs="+")
    for flag in ("--table", "--config", "--hardware"):
        asked.add_argument(flag, required=True)
    flags = parser.parse_args(arguments)
    try:
        if flags.command == "finished":
            (row,) = choose(read_stored(flags.stored), [flags.name])
            return 0 if read_measured(flags.folder, row, flags.seed) is not None else NOT_FINISHED
        if flags.command == "compare":
            return compare_folder(flags.runs, flags.names, flags.stored)
        store(flags.name, flags.folders, flags.table, flags.config, flags.hardware, flags.stored)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _over(value: float, runs: int) -> str:
    return f"{value:.3f}" + (f" (mean of {runs})" if runs > 1 else "")


if __name__ == "__main__":
    sys.exit(main())
