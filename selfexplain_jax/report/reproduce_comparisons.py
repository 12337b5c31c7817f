"""Comparisons of docs/results.md that were run again, held against the stored ones. `launch/reproduce.sh` calls it.

python -m selfexplain_jax.report.reproduce_comparisons finished FOLDER NAME     exit code 3 where it is left to do
python -m selfexplain_jax.report.reproduce_comparisons compare RUNS NAME...     the table; exit code 1 where one differs
python -m selfexplain_jax.report.reproduce_comparisons store NAME FOLDER FIELD=VALUE... --config=SPEC --models=M=ROW,...

What asks no model must come out the same: the controls against annotated masks, and their maps before and after the
model is redrawn. The models behind the rest are trained again too, and no seeds say how far their maps spread: means
over images may differ as two draws of so many images would, see `drawn`. Other numbers are shown beside the stored ones
and not judged.
"""

from __future__ import annotations

import dataclasses
import math
import os
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from selfexplain_jax.report.reproduce import NO_NUMBER_CHANGES
from selfexplain_jax.report.run_again import (
    Comparison,
    choose,
    command_line,
    config_of,
    hold_to_commit,
    hold_to_config,
    read_entries,
    tell,
    verdict,
    write_entries,
)
from selfexplain_jax.report.runs import read_json
from selfexplain_jax.report.stored import ROOT
from selfexplain_jax.report.tables import HEADLINES, is_number, sanity_failures, sanity_of
from selfexplain_jax.types import UserError

STORED = ROOT / "docs" / "comparisons.json"
ADVICE = "Of what asks a model one in a hundred may do so by chance; another seed of the models tells."
SAME = 0.002
"""How far a number may lie that depends on no training: rounding, and decoders of photos."""
QUANTILE = 2.576
"""Two-sided 99 % quantile of the normal distribution."""
MEANS = dict.fromkeys(("iou", "continuous_iou", "pointing_game", "energy_pointing_game"), (0.0, 1.0))
MEANS |= dict.fromkeys(("deletion", "insertion", "average_drop"), (0.0, 1.0))
MEANS |= {"road": (-0.5, 0.5), "swap_owner_gap": (-1.0, 1.0)}
"""Those of `tables.HEADLINES` that are means over images, or over classes of such, and between what an image's lies."""
MAY_DIFFER = (
    *(name for name in NO_NUMBER_CHANGES if name != "comparison"),
    "comparison.models",
    "comparison.model_configs",
    "comparison.figure_images",
)
"""Fields that may differ between two runs of one comparison. So may a method's `chunk_size`, which changes no map."""
SIMILARITIES = ("ssim", "rank_correlation")
"""Those of the sanity checks that are compared; all are stored."""


@dataclasses.dataclass(frozen=True)
class StoredComparison:
    """A comparison as it was measured.

    name: what `launch/reproduce.sh` calls it.
    config: PATH or PATH:VARIANT, from the repository. overrides: FIELD=VALUE of it that were given.
    models: {model of the comparison: row of docs/results.json that trains it; "" where the config names weights}.
    commit, images: of it. controls, asks_the_model: see `compare.compare`.
    methods: {label: {metric: value}}.
    sanity: {label: {row of `tables.sanity_rows`: {similarity: value, "defined": maps}}}; {} where nothing was checked.
    """

    name: str
    config: str
    overrides: tuple[str, ...]
    models: Mapping[str, str]
    commit: str
    images: int
    controls: tuple[str, ...]
    asks_the_model: tuple[str, ...]
    methods: Mapping[str, Mapping[str, float]]
    sanity: Mapping[str, Mapping[str, Mapping[str, float]]] = dataclasses.field(default_factory=dict)


def read_comparisons(path: str | os.PathLike = STORED) -> dict[str, StoredComparison]:
    """Returns {name: comparison}; none where there is no such file. See `run_again.read_entries`."""
    return read_entries(path, "comparisons", StoredComparison, ("overrides", "controls", "asks_the_model"))


def write_comparisons(comparisons: Mapping[str, StoredComparison], path: str | os.PathLike = STORED) -> None:
    """Writes them all; a method is one line, and so is what the sanity checks say of it."""
    write_entries(path, "comparisons", comparisons, ("methods", "sanity"))


def read_again(folder: str | os.PathLike, stored: StoredComparison) -> dict[str, Any] | None:
    """Returns the content of a comparison.json of that comparison; None where the folder has none yet.

    Raises:
      UserError: it is of another config.
    """
    config = config_of(stored.config, stored.overrides)
    path = pathlib.Path(folder) / "comparison.json"
    found = read_json(path, "methods")
    if found is not None:
        chunks = [f"comparison.methods.{label}.options.chunk_size" for label in config.comparison.methods]
        hold_to_config(path, found, f"comparison {stored.name}", config, (*MAY_DIFFER, *chunks))
    return found


def failing(found: Mapping[str, Any]) -> list[str]:
    """Returns the methods that failed on an image, or for which a metric or a sanity check failed.

    The same command tries them again.
    """
    unchecked = {label for label, _, _ in sanity_failures(found)}
    return [
        label
        for label, row in found["methods"].items()
        if row.get("failures") or row.get("metric_failures") or label in unchecked
    ]


def drawn(metric: str, value: float, images: int) -> float | None:
    """Returns how far the means of two draws of images may lie apart, 99 % of the time, at most; None where unknown.

    Numbers in [a, b] with mean m have a variance of (m - a) (b - m) at most, so that of the difference between two
    means of n is 2 (m - a) (b - m) / n at most. As in `stored.scale`, four numbers in the middle are added: none wrong
    of n images does not mean never wrong.

    >>> round(drawn("iou", 0.5, 100), 3)  # 2.576 sqrt(2 x .25 / 100)
    0.182
    """
    if metric not in MEANS:
        return None
    low, high = MEANS[metric]
    mean = (images * value + 2 * (low + high)) / (images + 4)
    return QUANTILE * math.sqrt(2 * (mean - low) * (high - mean) / images)


def compare(stored: StoredComparison, found: Mapping[str, Any]) -> list[Comparison]:
    """Returns what a comparison that was run again says of each stored number in `tables.HEADLINES` and SIMILARITIES.

    Raises:
      UserError: a method or number is gone.
    """
    made = []
    for label, numbers in stored.methods.items():
        measured = found["methods"].get(label, {}).get("metrics", {})
        for metric in HEADLINES:
            if metric not in numbers:
                continue
            if not is_number(measured.get(metric)):
                raise UserError(f"Comparison {stored.name} has no {metric} of {label} any more, which is stored.")
            no_model = label in stored.controls and metric not in stored.asks_the_model
            value, row = numbers[metric], f"{stored.name} {label}"
            allowed = SAME if no_model else drawn(metric, value, stored.images)
            made.append(Comparison(row, metric, value, 1, measured[metric], 1, allowed, not no_model))
    return made + _compare_sanity(stored, sanity_numbers(found))


def _compare_sanity(stored: StoredComparison, measured: Mapping[str, Any]) -> list[Comparison]:
    """As `compare`, of the sanity checks. A control's map asks no model, and so is the same for any."""
    made = []
    for label, checks in stored.sanity.items():
        allowed = SAME if label in stored.controls else None
        for check, numbers in checks.items():
            for name in (name for name in SIMILARITIES if name in numbers):
                value = measured.get(label, {}).get(check, {}).get(name)
                if value is None:
                    raise UserError(
                        f"Comparison {stored.name} has no {name} of {label}, {check}, any more, which is stored."
                    )
                row = f"{stored.name} {label}, {check}"
                made.append(Comparison(row, name, numbers[name], 1, value, 1, allowed, False))
    return made


def sanity_numbers(found: Mapping[str, Any]) -> dict[str, dict[str, dict[str, float]]]:
    """Returns {label: {row of `tables.sanity_rows`: {similarity: value, "defined": maps}}} of a comparison.json.

    A similarity that is defined for no map is left out.
    """
    return {
        label: {
            check: {name: round(value, 6) for name, value in numbers.items() if is_number(value)}
            for check, numbers in sanity_of(checked["checks"]).items()
        }
        for label, checked in found.get("sanity_checks", {}).items()
    }


def compare_folder(runs: str | os.PathLike, names: Sequence[str], stored: str | os.PathLike = STORED) -> int:
    """Prints the table for RUNS and writes it to RUNS/reproduced_comparisons.md; returns 1 where one differs, else 0.

    Raises:
      UserError: an unknown comparison, one of another config, or nothing that was measured.
    """
    known = read_comparisons(stored)
    made, missing = [], []
    for name in names or known:
        one = choose(known, name, "comparison")
        found = read_again(pathlib.Path(runs) / name, one)
        made += compare(one, found) if found else []
        missing += [] if found else [name]
    words = f"{verdict(made, missing, ADVICE)}\nBorrowed: the most that the draw of the images makes."
    return tell(pathlib.Path(runs) / "reproduced_comparisons.md", "Comparisons, stored and measured", made, words)


def store(
    name: str,
    folder: str | os.PathLike,
    config: str,
    models: Mapping[str, str],
    overrides: Sequence[str] = (),
    stored: str | os.PathLike = STORED,
) -> None:
    """Puts a comparison into the stored ones, in the place of the one of that name.

    Raises:
      UserError: there is none in the folder, it is of another config or not from a clean commit, something failed in
        it, or its models differ.
    """
    blank = StoredComparison(name, config, tuple(overrides), dict(models), "", 0, (), (), {})
    found = read_again(folder, blank)
    if found is None:
        raise UserError(f"There is no comparison.json in {folder}: --mode=evaluate with {config} writes it.")
    commit = hold_to_commit(str(folder), found)
    if failing(found):
        raise UserError(f"{folder}: {', '.join(failing(found))} failed; run the comparison again before it is stored.")
    if set(models) != set(found["config"]["comparison"]["models"]):
        raise UserError(f"--models must name a row for each of {', '.join(found['config']['comparison']['models'])}.")
    methods = {
        label: {metric: round(value, 6) for metric, value in row.get("metrics", {}).items() if is_number(value)}
        for label, row in found["methods"].items()
    }
    entry = dataclasses.replace(
        blank,
        commit=commit,
        images=found["images"],
        controls=tuple(found["controls"]),
        asks_the_model=tuple(found["asks_the_model"]),
        methods=methods,
        sanity=sanity_numbers(found),
    )
    write_comparisons(read_comparisons(stored) | {name: entry}, stored)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns its exit code. See `run_again.command_line`."""

    def finished(flags) -> bool:
        found = read_again(flags.folder, choose(read_comparisons(flags.stored), flags.name, "comparison"))
        return found is not None and not failing(found)

    def put(flags) -> None:
        pairs = dict(pair.partition("=")[::2] for pair in flags.models.split(","))
        store(flags.name, flags.folder, flags.config, pairs, flags.overrides, flags.stored)

    needed = {flag: {"required": True} for flag in ("--config", "--models")}
    flags_of = {"store": {"folder": {}, "overrides": {"nargs": "*"}} | needed}
    return command_line(__doc__, STORED, flags_of, finished, compare_folder, put, arguments)


if __name__ == "__main__":
    sys.exit(main())
