"""Benchmarks of docs/results.md and docs/scaling.md that were run again, held against the stored ones.
`launch/reproduce.sh` calls it.

python -m selfexplain_jax.report.reproduce_benchmarks finished FOLDER NAME     exit code 3 where it is left to do
python -m selfexplain_jax.report.reproduce_benchmarks compare RUNS NAME...     the table; exit code 1 where one differs
python -m selfexplain_jax.report.reproduce_benchmarks store NAME FOLDER FIELD=VALUE... --config=SPEC --what=WHAT \\
    --hardware=TEXT

Seconds are of one machine on one day: they are shown beside the stored ones and not judged. What is judged is what
holds from day to day, by the unit that a figure's name ends with: see `FACTORS`, `EXACT` and `NEAR`.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from selfexplain_jax.report.run_again import (
    Comparison,
    choose,
    command_line,
    commits_of,
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
from selfexplain_jax.types import UserError

STORED = ROOT / "docs" / "benchmarks.json"
FACTORS = {"ratio": 1.3, "share": 1.3, "race": 1.6, "MB": 1.05}
"""Unit -> how many times as large or as small as the stored figure one may be; docs/results.md has the reasons.

ratio: seconds of two programs that took turns. share: of a bound that was measured in the same minutes. race: seconds
until a target that is looked for every ten seconds. MB: of memory, or sent.
"""
EXACT = {"GFLOP": 1e-6}
"""Unit -> share of the figure that rounding makes. Operations are counted, and must come out the same."""
NEAR = {"agreement": 0.01}
"""Unit -> how far a correlation of maps from the same random numbers may lie."""
MAY_DIFFER = ("data.data_dir", "benchmark.peer_config")
"""Fields that say where something lies, and may differ between two runs of one benchmark."""
ADVICE = "A ratio that differs may be of a machine that was not left alone: run that row again by itself."


@dataclasses.dataclass(frozen=True)
class StoredBenchmark:
    """A benchmark as it was measured.

    name: what `launch/reproduce.sh` calls it.
    config: PATH or PATH:VARIANT, from the repository. overrides: FIELD=VALUE of it that were given.
    what: --what of --mode=benchmark, or "compile" for --mode=compile.
    commit, hardware: of it. versions: {package: version} of what was measured, JAX and the peers.
    figures: {name: value}; a name ends with its unit.
    """

    name: str
    config: str
    what: str
    overrides: tuple[str, ...]
    commit: str
    hardware: str
    versions: Mapping[str, str]
    figures: Mapping[str, float]


# ---- Figures ---------------------------------------------------------------------------------------------------------


def figures_of(found: Mapping[str, Any]) -> dict[str, float]:
    """Returns {name: value} of what --mode=benchmark or --mode=compile wrote, seven digits of each; see `READERS`.

    What was not measured, as peers that are not there, is left out.

    Raises:
      UserError: it is of a kind that is not known.
    """
    kind = "compile" if "memory_bytes" in found else found.get("what")
    if kind not in READERS:
        raise UserError(f"Do not know figures of a benchmark {kind!r}. Known are {', '.join(READERS)}.")
    return {name: float(f"{value:.7g}") for name, value in READERS[kind](found) if value is not None}


def _of_rows(found) -> Iterator[tuple[str, float | None]]:
    for row, measured in found["rows"].items():
        yield f"{row} ratio", measured["ratio"]
        for side, seconds in measured["median_seconds"].items():
            yield f"{row} {side} s", seconds
        counted = {"GFLOP": "contractions_per_map", "by XLA GFLOP": "operations_per_map"}
        yield from ((f"{row} {name}", _giga(measured.get(entry))) for name, entry in counted.items())
        if "ratio_to_own_grad_cam" in measured:
            yield f"{row} over own grad_cam ratio", 1 / measured["ratio_to_own_grad_cam"]


def _of_tasks(found) -> Iterator[tuple[str, float | None]]:
    for task, measured in found["tasks"].items():
        yield f"{task} ratio", measured["ratio"]
        yield from ((f"{task} {side} s", seconds) for side, seconds in measured["median_seconds"].items())


def _of_steps(found) -> Iterator[tuple[str, float | None]]:
    for side, measured in found.get("sides", {}).items():
        if side != "ours":
            yield f"{side} ratio", measured["ratio"]
        yield f"{side} GFLOP", _giga(measured["contractions"])
        yield f"{side} s", measured["median_seconds"]
    for name, measured in found.get("measured", {}).items():
        if name == "of matrix product %":
            yield "matrix product share", measured["median"] / 100
        else:
            yield name, measured["median"]


def _of_memory(found) -> Iterator[tuple[str, float | None]]:
    kinds = {"rise {} masks MB": found["rise"], "rise {} at a time MB": found["rise_by_chunk"]}
    kinds["score_cam {} MB"] = {layer or "features": of["bytes"] for layer, of in found["score_cam"].items()}
    for name, entries in kinds.items():
        yield from ((name.format(number), count / 1e6) for number, count in entries.items())


def _of_curves(found) -> Iterator[tuple[str, float | None]]:
    for sampling, curve in (found["rise"]["agreement"] | {"score_cam": found["score_cam"]["agreement"]}).items():
        yield from ((f"{sampling} {number} agreement", value) for number, value in curve.items())
    for sampling, needed in found["rise"]["masks_needed"].items():
        for number, masks in needed.items():
            yield f"{sampling} instead of {number} share", masks and masks / float(number)


def _of_race(found) -> Iterator[tuple[str, float | None]]:
    yield "predecessor race", found.get("ratio") or _race(found["sides"])
    yield from ((f"{side} s", result["seconds"]) for side, result in found["sides"].items())


def _of_compilation(found) -> Iterator[tuple[str, float | None]]:
    memory = found["memory_bytes"] or {}
    yield "temporary MB", memory["temporary"] / 1e6 if memory else None
    yield "state MB", found["state_bytes_per_device"] / 1e6
    yield "by XLA GFLOP", _giga(found["flops"])
    yield from ((f"{name} MB", entry["bytes"] / 1e6) for name, entry in found["collectives"].items())


def _race(sides) -> float | None:
    seconds = [sides[side]["seconds"] for side in ("predecessor", "ours") if side in sides]
    return seconds[0] / seconds[1] if len(seconds) == 2 and all(seconds) else None


def _giga(value: float | None) -> float | None:
    return None if value is None else value / 1e9


READERS: dict[str, Callable[[Mapping[str, Any]], Iterator[tuple[str, float | None]]]] = {
    "pipeline": _of_steps,
    "train": _of_steps,
    "explain": _of_steps,
    "backbone": _of_tasks,
    "attribution": _of_rows,
    "metrics": _of_rows,
    "memory": _of_memory,
    "curves": _of_curves,
    "time_to_masks": _of_race,
    "compile": _of_compilation,
}
"""--what, or "compile" -> reads the figures of what it wrote; others of --what are no rows of a table."""


def allowance(name: str, stored: float, measured: float) -> float | None:
    """Returns how far a figure may lie from the stored one, on the side on which it lies; None where it is not judged.

    >>> round(allowance("predecessor ratio", 2.0, 2.1), 2), round(allowance("predecessor ratio", 2.0, 1.9), 2)
    (0.6, 0.46)
    >>> allowance("ours s", 2.0, 1.9) is None
    True
    """
    unit = name.rpartition(" ")[2]
    if unit in FACTORS:
        return stored * (FACTORS[unit] - 1) if measured > stored else stored * (1 - 1 / FACTORS[unit])
    return stored * EXACT[unit] if unit in EXACT else NEAR.get(unit)


# ---- Stored and measured ---------------------------------------------------------------------------------------------


def read_benchmarks(path: str | os.PathLike = STORED) -> dict[str, StoredBenchmark]:
    """Returns {name: benchmark}; none where there is no such file. See `run_again.read_entries`."""
    return read_entries(path, "benchmarks", StoredBenchmark, ("overrides",))


def write_benchmarks(benchmarks: Mapping[str, StoredBenchmark], path: str | os.PathLike = STORED) -> None:
    """Writes them all; a figure is one line."""
    write_entries(path, "benchmarks", benchmarks, ("figures",))


def read_again(folder: str | os.PathLike, stored: StoredBenchmark) -> dict[str, Any] | None:
    """Returns the content of FOLDER/benchmark.json, or of compile.json, of that benchmark; None where there is none.

    Raises:
      UserError: it is of another config, or of another --what.
    """
    config = config_of(stored.config, stored.overrides)
    path = pathlib.Path(folder) / ("compile.json" if stored.what == "compile" else "benchmark.json")
    found = read_json(path, "config")
    if found is None:
        return None
    hold_to_config(path, found, f"benchmark {stored.name}", config, MAY_DIFFER)
    if found.get("what", "compile") != stored.what:
        raise UserError(
            f"{path} is of --what={found['what']}, and {stored.name} of {stored.what}. Remove {path.parent}."
        )
    return found


def lacking(stored: StoredBenchmark, found: Mapping[str, Any]) -> list[str]:
    """Returns the figures that are stored and were not measured, as where the peers did not answer."""
    there = figures_of(found)
    return [name for name in stored.figures if name not in there]


def compare(stored: StoredBenchmark, found: Mapping[str, Any]) -> list[Comparison]:
    """Returns what a benchmark that was run again says of each stored figure.

    Raises:
      UserError: a figure is gone.
    """
    if gone := lacking(stored, found):
        raise UserError(f"Benchmark {stored.name} has no {', '.join(gone)}, which is stored: run it again.")
    measured = figures_of(found)
    return [
        Comparison(stored.name, name, value, 1, measured[name], 1, allowance(name, value, measured[name]), False, ".6g")
        for name, value in stored.figures.items()
    ]


def versions_of(found: Mapping[str, Any]) -> dict[str, str]:
    """Returns {package: version} of what was measured: JAX, and the peers where there are any."""
    return {"jax": found["versions"]["jax"]} | found.get("peers", {}).get("versions", {})


def other_versions(stored: StoredBenchmark, found: Mapping[str, Any]) -> list[str]:
    """Returns "PACKAGE VERSION stored, VERSION now" for each that differs."""
    now = versions_of(found)
    pairs = {name: (version, now.get(name)) for name, version in stored.versions.items()}
    return [f"{name} {there} stored, {here} now" for name, (there, here) in pairs.items() if there != here]


def compare_folder(runs: str | os.PathLike, names: Sequence[str], stored: str | os.PathLike = STORED) -> int:
    """Prints the table for RUNS and writes it to RUNS/reproduced_benchmarks.md; returns 1 where one differs, else 0.

    Raises:
      UserError: an unknown benchmark, one of another config, or nothing that was measured.
    """
    known = read_benchmarks(stored)
    made, missing, measured, versions = [], [], [], []
    for name in names or known:
        one = choose(known, name, "benchmark")
        found = read_again(pathlib.Path(runs) / name, one)
        if found is None:
            missing.append(name)
            continue
        made += compare(one, found)
        measured.append(found)
        versions += other_versions(one, found)
    lines = [verdict(made, missing, ADVICE), "Seconds, and what is counted by the second, are not judged."]
    if versions:
        lines.append(f"Other versions: {'; '.join(dict.fromkeys(versions))}. Another JAX may count other operations.")
    lines.append(f"Measured at commit {commits_of(measured)}.")
    file = pathlib.Path(runs) / "reproduced_benchmarks.md"
    return tell(file, "Benchmarks, stored and measured", made, "\n".join(lines))


def store(
    name: str,
    folder: str | os.PathLike,
    config: str,
    what: str,
    hardware: str,
    overrides: Sequence[str] = (),
    stored: str | os.PathLike = STORED,
) -> None:
    """Puts a benchmark into the stored ones, in the place of the one of that name.

    Raises:
      UserError: there is none in the folder, it is of another config, or it is not from a clean commit.
    """
    blank = StoredBenchmark(name, config, what, tuple(overrides), "", hardware, {}, {})
    found = read_again(folder, blank)
    if found is None:
        raise UserError(
            f"{folder} has no benchmark.json or compile.json of {config}: bash launch/reproduce.sh writes it."
        )
    commit = hold_to_commit(str(folder), found)
    entry = dataclasses.replace(blank, commit=commit, versions=versions_of(found), figures=figures_of(found))
    write_benchmarks(read_benchmarks(stored) | {name: entry}, stored)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns its exit code. See `run_again.command_line`."""

    def finished(flags) -> bool:
        one = choose(read_benchmarks(flags.stored), flags.name, "benchmark")
        found = read_again(flags.folder, one)
        return found is not None and not lacking(one, found)

    def put(flags) -> None:
        store(flags.name, flags.folder, flags.config, flags.what, flags.hardware, flags.overrides, flags.stored)

    needed = {flag: {"required": True} for flag in ("--config", "--what", "--hardware")}
    flags_of = {"store": {"folder": {}, "overrides": {"nargs": "*"}} | needed}
    return command_line(__doc__, STORED, flags_of, finished, compare_folder, put, arguments)


if __name__ == "__main__":
    sys.exit(main())
