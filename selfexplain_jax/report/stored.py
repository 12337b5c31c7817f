"""The stored results, docs/results.json: what each row of the tables in docs/results.md measured, seed by seed.

From them follows how far a row that is run again may lie from the stored one: `allowance`.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from selfexplain_jax.folders import write_whole
from selfexplain_jax.report.runs import read_json
from selfexplain_jax.types import UserError

ROOT = pathlib.Path(__file__).resolve().parents[2]
STORED = ROOT / "docs" / "results.json"

KEPT = (
    "accuracy",
    "mean_average_precision",
    "object_accuracy",
    "object_accuracy_ground_truth",
    "background_accuracy",
    "iou",
    "continuous_iou",
    "miou",
    "miou_named",
    "miou_refined",
    "mean_iou_per_class",
    "mask_area",
    "pointing_game",
    "swap_owner_rate",
    "swap_owner_rate_ground_truth",
    "swap_owner_gap",
    "mask_only_gap",
    "evaluator_accuracy",
)
"""Numbers of a run that are stored, as far as the run has them."""

SHARES = (
    "accuracy",
    "object_accuracy",
    "object_accuracy_ground_truth",
    "background_accuracy",
    "pointing_game",
    "swap_owner_rate",
    "swap_owner_rate_ground_truth",
    "evaluator_accuracy",
)
"""Those that are a share of the images: the draw of the images alone moves them."""

STUDENT = (63.657, 9.925, 5.841, 4.604, 4.032, 3.707, 3.499, 3.355, 3.25, 3.169)
"""Two-sided 99 % quantiles of Student's t for 1, 2, ... degrees of freedom."""


@dataclasses.dataclass(frozen=True)
class StoredRun:
    """One training: its seed, the commit and the minutes of it, and {metric: value} on the row's split."""

    seed: int
    commit: str
    minutes: float
    metrics: Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class StoredRow:
    """A row of a table: runs that differ in the seed alone.

    name: what `launch/reproduce.sh` calls it.
    table: "main", "ablation", "photographs", or "other" for what stands in the text.
    config: PATH or PATH:VARIANT, from the repository.
    superseded: an older recipe or program, which the config of today does not give; it is not run again.
    hardware: what the minutes were measured on.
    steps, split, images: how long it was trained, and on how many images of which split it was measured.
    """

    name: str
    table: str
    config: str
    superseded: bool
    hardware: str
    steps: int
    split: str
    images: int
    runs: tuple[StoredRun, ...]

    def mean(self, metric: str) -> float | None:
        """The mean over the runs; None where they do not have that number."""
        values = [run.metrics[metric] for run in self.runs if metric in run.metrics]
        return math.fsum(values) / len(values) if values else None


def read_stored(path: str | os.PathLike = STORED) -> dict[str, StoredRow]:
    """Returns {name: row}.

    Raises:
      UserError: there is no such file, it is no JSON, or a row lacks an entry.
    """
    path = pathlib.Path(path)
    content = read_json(path, "rows")
    if content is None:
        raise UserError(
            f"There are no stored results in {path}: they lie in docs/ of the repository, not in the package."
        )
    rows = {}
    for number, row in enumerate(content["rows"], 1):
        try:
            runs = tuple(StoredRun(**run) for run in row["runs"])
            read = StoredRow(**{**row, "runs": runs})
        except (KeyError, TypeError) as error:
            raise UserError(f"Row {number} of {path} cannot be read: {error}.") from error
        if read.name in rows or not runs:
            raise UserError(f"Row {number} of {path} ({read.name}) is there twice, or has no runs.")
        rows[read.name] = read
    return rows


def write_stored(rows: Mapping[str, StoredRow], path: str | os.PathLike = STORED) -> None:
    """Writes them all; a run is one line, so that changes can be read."""
    lines = []
    for row in rows.values():
        plain = dataclasses.asdict(row)
        runs = ",\n".join(f"        {json.dumps(run)}" for run in plain.pop("runs"))
        fields = ",\n".join(f"      {json.dumps(name)}: {json.dumps(value)}" for name, value in plain.items())
        lines.append(f'    {{\n{fields},\n      "runs": [\n{runs}\n      ]\n    }}')
    write_whole(pathlib.Path(path), ('{\n  "rows": [\n' + ",\n".join(lines) + "\n  ]\n}\n").encode())


def row_of_runs(name: str, table: str, config: str, hardware: str, results: Sequence[Mapping[str, Any]]) -> StoredRow:
    """Makes a row of the contents of results.json files that differ in the seed alone.

    Raises:
      UserError: there are none, one is from a tree with changes that no commit has, or they are not of one experiment.
    """
    if not results:
        raise UserError(f"Row {name} needs at least one folder with a results.json.")
    for found in results:
        if found.get("dirty") is not False or not found.get("commit"):
            raise UserError(
                f"Row {name}, seed {found.get('seed')}: the run is not from a clean commit, so nobody could repeat it. "
                "Commit, and run it again."
            )
    of = {(found["steps"], found["config"]["data"]["eval_split"], found["counts"]["examples"]) for found in results}
    if len(of) > 1:
        raise UserError(f"Row {name}: the runs differ in more than the seed: (steps, split, images) = {sorted(of)}.")
    runs = tuple(
        StoredRun(
            found["seed"],
            found["commit"][:7],
            round(found["train_seconds"] / 60, 2),
            {metric: round(found["metrics"][metric], 6) for metric in KEPT if metric in found["metrics"]},
        )
        for found in results
    )
    steps, split, images = of.pop()
    return StoredRow(name, table, config, False, hardware, steps, split, images, runs)


def scale(row: StoredRow, metric: str) -> float:
    """What a number's deviation is counted in: sqrt(p (1 - p)) for a share p of the images, else 1.

    p = (n share + 2) / (n + 4): none wrong of n images does not mean never wrong.
    """
    if metric not in SHARES:
        return 1.0
    share = (row.images * row.mean(metric) + 2) / (row.images + 4)
    return math.sqrt(share * (1 - share))


def seed_deviation(rows: Sequence[StoredRow], metric: str) -> tuple[float, int] | None:
    """Returns (standard deviation over seeds in units of `scale`, degrees of freedom), pooled over rows with seeds.

    None where no row has two runs with that number.

    >>> def row(*values):
    ...     runs = tuple(StoredRun(seed, "abc", 1.0, {"iou": value}) for seed, value in enumerate(values))
    ...     return StoredRow("a", "main", "a.py", False, "", 1, "test", 10, runs)
    >>> deviation, freedom = seed_deviation([row(0.1, 0.3), row(0.8, 0.8, 0.8), row(0.5)], "iou")
    >>> round(deviation, 4), freedom  # sqrt((0.1^2 + 0.1^2) / 3)
    (0.0816, 3)
    """
    squares, freedom = 0.0, 0
    for row in rows:
        values = [run.metrics[metric] for run in row.runs if metric in run.metrics]
        if len(values) > 1:
            mean = math.fsum(values) / len(values)
            squares += math.fsum((value - mean) ** 2 for value in values) / scale(row, metric) ** 2
            freedom += len(values) - 1
    return (math.sqrt(squares / freedom), freedom) if freedom else None


def allowance(rows: Sequence[StoredRow], row: StoredRow, metric: str, runs: int) -> tuple[float, bool] | None:
    """Returns (how far the mean of that many new runs may lie from the stored mean, whether the spread is borrowed).

    t s sqrt(1 / m + 1 / runs), with m stored runs, s the deviation of one run and t Student's 99 % quantile. s is that
    over seeds of the rows with the same config; where these have fewer than three degrees of freedom, it is borrowed
    from all rows with several seeds. For a share of n images s is no less than what the draw of the images alone makes.

    Args:
      rows: all stored rows.
      row: the one that is run again.
      metric: of it.
      runs: how many new runs there are.

    Returns:
      None where nothing is known of the spread.
    """
    borrowed = False
    found = seed_deviation([other for other in rows if other.config == row.config], metric)
    if found is None or found[1] < 3:
        borrowed, found = True, seed_deviation(rows, metric)
    if found is None or row.mean(metric) is None:
        return None
    deviation, freedom = found
    if metric in SHARES:
        deviation = max(deviation, 1 / math.sqrt(row.images))
    quantile = STUDENT[min(freedom, len(STUDENT)) - 1]
    return quantile * deviation * scale(row, metric) * math.sqrt(1 / len(row.runs) + 1 / runs), borrowed
