"""Comparisons of docs/results.md that were run again, held against the stored ones. `launch/reproduce.sh` calls it.

python -m selfexplain_jax.report.reproduce_comparisons finished FOLDER NAME     exit code 3 where it is left to do
python -m selfexplain_jax.report.reproduce_comparisons compare RUNS NAME...     the table; exit code 1 where one differs
python -m selfexplain_jax.report.reproduce_comparisons store NAME FOLDER FIELD=VALUE... --config=SPEC --models=M=ROW,...

The models behind a comparison are trained again too, and nobody knows how far post-hoc maps spread over trainings:
these numbers are shown beside the stored ones and not judged. What asks no model must come out the same: the controls
against annotated masks, and their maps before and after the model is redrawn.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import json
import os
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections

from selfexplain_jax.config import load_config
from selfexplain_jax.folders import write_whole
from selfexplain_jax.report.reproduce import NO_NUMBER_CHANGES, NOT_FINISHED, Comparison, comparison_table, verdict
from selfexplain_jax.report.runs import read_json
from selfexplain_jax.report.stored import ROOT
from selfexplain_jax.report.tables import HEADLINES, is_number, sanity_failures, sanity_of
from selfexplain_jax.training.config_json import differing_fields, jsonable
from selfexplain_jax.types import UserError

STORED = ROOT / "docs" / "comparisons.json"
SAME = 0.002
"""How far a number may lie that depends on no training: rounding, and decoders of photos."""
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
    """Returns {name: comparison}; none where there is no such file.

    Raises:
      UserError: the file is no JSON, or an entry lacks something.
    """
    content = read_json(pathlib.Path(path), "comparisons") or {"comparisons": []}
    found = {}
    for number, entry in enumerate(content["comparisons"], 1):
        try:
            lists = {name: tuple(entry[name]) for name in ("overrides", "controls", "asks_the_model")}
            read = StoredComparison(**entry | lists)
        except (KeyError, TypeError) as error:
            raise UserError(f"Comparison {number} of {path} cannot be read: {error}.") from error
        found[read.name] = read
    return found


def write_comparisons(comparisons: Mapping[str, StoredComparison], path: str | os.PathLike = STORED) -> None:
    """Writes them all; a method is one line, so that changes can be read."""
    entries = []
    for comparison in comparisons.values():
        plain = dataclasses.asdict(comparison)
        tables = {name: plain.pop(name) for name in ("methods", "sanity")}
        fields = [f"      {json.dumps(name)}: {json.dumps(value)}" for name, value in plain.items()]
        for name, rows in tables.items():
            lines = ",\n".join(f"        {json.dumps(label)}: {json.dumps(row)}" for label, row in rows.items())
            fields += [f'      "{name}": {{\n{lines}\n      }}'] if rows else []
        entries.append("    {\n" + ",\n".join(fields) + "\n    }")
    write_whole(pathlib.Path(path), ('{\n  "comparisons": [\n' + ",\n".join(entries) + "\n  ]\n}\n").encode())


def config_of(spec: str, overrides: Sequence[str]) -> ml_collections.ConfigDict:
    """Returns the config of a comparison with its overrides, FIELD=VALUE with a Python literal or a word.

    Raises:
      UserError: a field that is not there, or no "=".
    """
    config = load_config(str(ROOT / spec))
    for override in overrides:
        field, equals, text = override.partition("=")
        if not equals:
            raise UserError(f"{override!r} is no FIELD=VALUE of {spec}.")
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            value = text
        try:
            config.update_from_flattened_dict({field: value})
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{override!r} is no FIELD=VALUE of {spec}: {error}") from error
    return config


def read_again(folder: str | os.PathLike, stored: StoredComparison) -> dict[str, Any] | None:
    """Returns the content of a comparison.json of that comparison; None where the folder has none yet.

    Raises:
      UserError: it is of another config.
    """
    config = jsonable(config_of(stored.config, stored.overrides))
    path = pathlib.Path(folder) / "comparison.json"
    found = read_json(path, "methods")
    if found is None:
        return None
    chunks = [f"comparison.methods.{label}.options.chunk_size" for label in config["comparison"]["methods"]]
    differing = differing_fields(found.get("config", {}), config, (*MAY_DIFFER, *chunks))
    if differing:
        raise UserError(
            f"{path} is not of comparison {stored.name} as it is today:\n"
            + "\n".join(f"  {line}" for line in differing)
            + f"\nRemove {path.parent}, or name another folder with --runs=DIR."
        )
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
            allowed = SAME if no_model else None
            row = f"{stored.name} {label}"
            made.append(Comparison(row, metric, numbers[metric], 1, measured[metric], 1, allowed, False))
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
        one = choose(known, name)
        found = read_again(pathlib.Path(runs) / name, one)
        made += compare(one, found) if found else []
        missing += [] if found else [name]
    if not made:
        raise UserError(f"No comparison was measured in {runs} yet: bash launch/reproduce.sh NAME runs one.")
    text = f"{comparison_table(made)}\n\n{verdict(made, missing)}\nPost-hoc maps of trained models are not judged."
    (pathlib.Path(runs) / "reproduced_comparisons.md").write_text(f"# Comparisons, stored and measured\n\n{text}\n")
    print(text)
    return int(any(one.differs for one in made))


def choose(known: Mapping[str, StoredComparison], name: str) -> StoredComparison:
    """Returns the comparison of that name, or raises a UserError that lists those there are."""
    if name not in known:
        raise UserError(f"There is no stored comparison {name!r}. Choose among: {', '.join(known)}.")
    return known[name]


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
    if found.get("dirty") is not False or not found.get("commit"):
        raise UserError(f"{folder} is not from a clean commit, so nobody could repeat it. Commit, and run it again.")
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
        commit=found["commit"][:7],
        images=found["images"],
        controls=tuple(found["controls"]),
        asks_the_model=tuple(found["asks_the_model"]),
        methods=methods,
        sanity=sanity_numbers(found),
    )
    write_comparisons(read_comparisons(stored) | {name: entry}, stored)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns its exit code. Bad input is 2, with one message on standard error."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stored", default=str(STORED), help="default: docs/comparisons.json of the repository")
    commands = parser.add_subparsers(dest="command", required=True)
    asked = commands.add_parser("finished")
    asked.add_argument("folder")
    asked.add_argument("name")
    asked = commands.add_parser("compare")
    asked.add_argument("runs")
    asked.add_argument("names", nargs="*")
    asked = commands.add_parser("store")
    asked.add_argument("name")
    asked.add_argument("folder")
    asked.add_argument("overrides", nargs="*")
    asked.add_argument("--config", required=True)
    asked.add_argument("--models", required=True)
    flags = parser.parse_args(arguments)
    try:
        if flags.command == "finished":
            one = choose(read_comparisons(flags.stored), flags.name)
            found = read_again(flags.folder, one)
            return 0 if found is not None and not failing(found) else NOT_FINISHED
        if flags.command == "compare":
            return compare_folder(flags.runs, flags.names, flags.stored)
        pairs = dict(pair.partition("=")[::2] for pair in flags.models.split(","))
        store(flags.name, flags.folder, flags.config, pairs, flags.overrides, flags.stored)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
