"""What reproduce.py, reproduce_comparisons.py and reproduce_benchmarks.py share: numbers held against stored ones, the
table and the verdict, entries of docs/*.json, and the command line.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import json
import os
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ml_collections

from selfexplain_jax.config import load_config
from selfexplain_jax.folders import write_whole
from selfexplain_jax.report.runs import read_json
from selfexplain_jax.report.stored import ROOT
from selfexplain_jax.training.config_json import differing_fields, jsonable
from selfexplain_jax.types import UserError

NOT_FINISHED = 3
"""Exit code of `finished` where something is left to do; a program that fails ends with 1."""

HEADER = ("row", "metric", "stored", "measured", "difference", "allowed", "within")


@dataclasses.dataclass(frozen=True)
class Comparison:
    """One number of one row: the mean over the stored runs and over the new ones, and what they may differ by.

    allowed: None where nothing is known of the spread, so that nothing is said.
    borrowed: the spread is not this row's own, see `stored.allowance`.
    digits: how the number is shown, as `format` takes it.
    """

    row: str
    metric: str
    stored: float
    stored_runs: int
    measured: float
    measured_runs: int
    allowed: float | None
    borrowed: bool
    digits: str = ".3f"

    @property
    def differs(self) -> bool:
        return self.allowed is not None and abs(self.measured - self.stored) > self.allowed


# ---- The table -------------------------------------------------------------------------------------------------------


def comparison_table(made: Sequence[Comparison]) -> str:
    """Returns the comparisons as a Markdown table with aligned columns."""
    lines = [HEADER]
    for one in made:
        allowed = "unknown" if one.allowed is None else format(one.allowed, one.digits) + " (borrowed)" * one.borrowed
        within = "-" if one.allowed is None else ("NO" if one.differs else "yes")
        stored, measured = _over(one.stored, one.stored_runs, one), _over(one.measured, one.measured_runs, one)
        difference = format(one.measured - one.stored, f"+{one.digits}")
        lines.append((one.row, one.metric, stored, measured, difference, allowed, within))
    widths = [max(len(line[place]) for line in lines) for place in range(len(HEADER))]
    cells = [[text.ljust(width) for text, width in zip(line, widths, strict=True)] for line in lines]
    cells.insert(1, ["-" * width for width in widths])
    return "\n".join("| " + " | ".join(line) + " |" for line in cells)


def verdict(made: Sequence[Comparison], missing: Sequence[str], advice: str = "") -> str:
    """Returns in words what the table says: how many numbers differ, of which rows, and what was not measured.

    Args:
      made: the table.
      missing: rows that were not measured.
      advice: a line on what to do where a number differs.
    """
    differing = [one for one in made if one.differs]
    rows = dict.fromkeys(one.row for one in differing)
    lines = [f"{len(made)} numbers of {len(dict.fromkeys(one.row for one in made))} rows compared."]
    if differing:
        named = "; ".join(f"{row}: {', '.join(one.metric for one in differing if one.row == row)}" for row in rows)
        lines.append(f"{len(differing)} differ by more than the spread: {named}.")
        lines += [advice] * bool(advice)
    elif made:
        lines.append("None differs by more than the spread.")
    if missing:
        lines.append(f"Not measured: {', '.join(missing)}.")
    return "\n".join(lines)


def tell(file: pathlib.Path, title: str, made: Sequence[Comparison], words: str) -> int:
    """Prints the table and what it says, and writes both to a file below a title; returns 1 where one differs, else 0.

    Raises:
      UserError: nothing was measured.
    """
    if not made:
        raise UserError(f"Nothing of that was measured in {file.parent} yet: bash launch/reproduce.sh NAME runs it.")
    text = f"{comparison_table(made)}\n\n{words}"
    file.write_text(f"# {title}\n\n{text}\n")
    print(text)
    return int(any(one.differs for one in made))


def _over(value: float, runs: int, one: Comparison) -> str:
    return format(value, one.digits) + (f" (mean of {runs})" if runs > 1 else "")


# ---- What was run ----------------------------------------------------------------------------------------------------


def config_of(spec: str, overrides: Sequence[str]) -> ml_collections.ConfigDict:
    """Returns the config of a row with its overrides, FIELD=VALUE with a Python literal or a word.

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


def hold_to_config(
    path: pathlib.Path, found: Mapping[str, Any], row: str, config: ml_collections.ConfigDict, may_differ: Sequence[str]
) -> None:
    """Holds the config in a file of results against that of its row as it is today.

    Args:
      path: of the file. found: its content.
      row: what the message calls the row.
      config: of today.
      may_differ: fields, or groups of fields, that change no number.

    Raises:
      UserError: it is of another config.
    """
    differing = differing_fields(found.get("config", {}), jsonable(config), may_differ)
    if differing:
        raise UserError(
            f"{path} is not of {row} as it is today:\n"
            + "\n".join(f"  {line}" for line in differing)
            + f"\nRemove {path.parent}, or name another folder with --runs=DIR."
        )


def hold_to_commit(what: str, found: Mapping[str, Any]) -> str:
    """Returns the commit of a file of results, seven digits of it.

    Raises:
      UserError: it is not from a clean commit.
    """
    if found.get("dirty") is not False or not found.get("commit"):
        raise UserError(f"{what} is not from a clean commit, so nobody could repeat it. Commit, and run it again.")
    return found["commit"][:7]


def commits_of(results: Sequence[Mapping[str, Any]]) -> str:
    """Names the commits of several files of results, each once."""
    names = [(found.get("commit") or "unknown")[:7] + " with changes" * bool(found.get("dirty")) for found in results]
    return ", ".join(dict.fromkeys(names))


# ---- Stored entries --------------------------------------------------------------------------------------------------


def read_entries(path: str | os.PathLike, key: str, kind: type, tuples: Sequence[str]) -> dict[str, Any]:
    """Returns {name: entry} of a file {key: [entry, ...]}; none where there is no such file.

    Args:
      path: of the file.
      key: the list's.
      kind: dataclass of an entry, with a name.
      tuples: fields of it that are tuples, and lists in JSON.

    Raises:
      UserError: the file is no JSON, or an entry lacks something.
    """
    content = read_json(pathlib.Path(path), key) or {key: []}
    found = {}
    for number, entry in enumerate(content[key], 1):
        try:
            read = kind(**entry | {name: tuple(entry[name]) for name in tuples})
        except (KeyError, TypeError) as error:
            raise UserError(f"Entry {number} of {path} cannot be read: {error}.") from error
        found[read.name] = read
    return found


def write_entries(path: str | os.PathLike, key: str, entries: Mapping[str, Any], tables: Sequence[str]) -> None:
    """Writes dataclasses as {key: [entry, ...]}; fields in `tables`, mappings, have a line for each of their rows.

    An empty table is left out.
    """
    texts = []
    for entry in entries.values():
        plain = dataclasses.asdict(entry)
        rows_of = {name: plain.pop(name) for name in tables}
        fields = [f"      {json.dumps(name)}: {json.dumps(value)}" for name, value in plain.items()]
        for name, rows in rows_of.items():
            lines = ",\n".join(f"        {json.dumps(label)}: {json.dumps(row)}" for label, row in rows.items())
            fields += [f'      "{name}": {{\n{lines}\n      }}'] if rows else []
        texts.append("    {\n" + ",\n".join(fields) + "\n    }")
    write_whole(pathlib.Path(path), (f'{{\n  "{key}": [\n' + ",\n".join(texts) + "\n  ]\n}\n").encode())


def choose(known: Mapping[str, Any], name: str, what: str) -> Any:
    """Returns the entry of that name, or raises a UserError that lists those there are; `what` names the kind."""
    if name not in known:
        raise UserError(f"There is no stored {what} {name!r}. Choose among: {', '.join(known)}.")
    return known[name]


# ---- The command line ------------------------------------------------------------------------------------------------


def command_line(
    description: str,
    stored: pathlib.Path,
    flags_of: Mapping[str, Mapping[str, Mapping[str, Any]]],
    finished: Callable[[argparse.Namespace], bool],
    compare: Callable[[str, Sequence[str], str], int],
    store: Callable[[argparse.Namespace], None],
    arguments: Sequence[str] | None,
) -> int:
    """Runs one of the three commands; returns the exit code. Bad input is 2, with one message on standard error.

    Args:
      description: for --help.
      stored: file of the stored numbers, unless --stored names another one.
      flags_of: {command: {flag: options of argparse}} beside those that all have: FOLDER NAME of `finished`, RUNS and
        NAME... of `compare`, NAME of `store`.
      finished: whether nothing is left to do. compare: takes RUNS, names and the stored file; returns its exit code.
      store: puts a run into the stored file.
      arguments: of the command line; None: those of the process.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stored", default=str(stored), help=f"default: docs/{stored.name} of the repository")
    commands = parser.add_subparsers(dest="command", required=True)
    usual = {"finished": {"folder": {}, "name": {}}, "compare": {"runs": {}, "names": {"nargs": "*"}}}
    usual["store"] = {"name": {}}
    for command, shared in usual.items():
        asked = commands.add_parser(command)
        for flag, options in (shared | flags_of.get(command, {})).items():
            asked.add_argument(flag, **options)
    flags = parser.parse_args(arguments)
    try:
        if flags.command == "finished":
            return 0 if finished(flags) else NOT_FINISHED
        if flags.command == "compare":
            return compare(flags.runs, flags.names, flags.stored)
        store(flags)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0
