"""What a compiled program's text (HLO) tells: how often its parts run, and what devices send each other."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")

_COLLECTIVE = re.compile(rf"= (.*?)[\s)}}\]]({'|'.join(COLLECTIVES)})(-done)?\((.*)")
_ARRAY = re.compile(r"\b([a-z]+\d*\w*)\[([\d,]*)\]")
_GROUPS = re.compile(r"replica_groups=(?:\[\d+,(\d+)\]|\{\{([\d,]+)\}|mesh\[(.*?)\] ?\{(.*?)\})")
_BITS = {"pred": 8, "token": 0}
_COMPUTATION = re.compile(r"^\s*(ENTRY )?%?([\w.\-]+) \(.*\{$")
_LOOP = re.compile(r"\bwhile\(.*?\bcondition=%?([\w.\-]+), body=%?([\w.\-]+)")
_TURNS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_LIMIT = re.compile(r"= [su]\d+\[\]\S* constant\((\d+)\)")
_CALLED = re.compile(r"\b(?:calls|to_apply|branch_computations|called_computations)=\{?((?:%[\w.\-]+(?:, )?)+)")


def collectives_in(hlo: str) -> dict[str, dict[str, int]]:
    """Returns {operation: {"count", "bytes"}} of the collectives in a compiled program's text; others are left out.

    Bytes are those of the whole arrays that one device sends or gets in a step: the result of each operation, of a
    reduce-scatter what goes in. An asynchronous pair (all-reduce-start, all-reduce-done) counts as one. What stands in
    a loop counts as often as that runs, see `turns`.
    """
    found: dict[str, dict[str, int]] = {}
    computations = computations_of(hlo)
    times = turns(computations)
    for name_of_computation, lines in computations.items():
        for match in filter(None, map(_COLLECTIVE.search, lines)):
            shape, name, _, rest = match.groups()
            entry = found.setdefault(name, {"count": 0, "bytes": 0})
            sent = _bytes_of(shape) * (_group_size(rest) if name == "reduce-scatter" else 1)
            entry["count"] += times[name_of_computation]
            entry["bytes"] += times[name_of_computation] * sent
    return {name: found[name] for name in COLLECTIVES if name in found}


def _bytes_of(shape: str) -> int:
    """Bytes of an HLO shape as text, "f32[8,4]{1,0}" or a tuple of such."""
    total = 0
    for kind, sizes in _ARRAY.findall(shape):
        bits = _BITS[kind] if kind in _BITS else int(re.search(r"\d+", kind).group())
        total += bits * math.prod(int(size) for size in sizes.split(",") if size)
    return total // 8


def _group_size(attributes: str) -> int:
    """How many devices take part, by an instruction's replica_groups.

    They are written [groups,size]<=[...], {{0,1,...},...} or mesh['a'=4,'b'=2] {'b'}.
    """
    match = _GROUPS.search(attributes)
    if match is None:
        return 1
    size, listed, axes, named = match.groups()
    if size:
        return int(size)
    if listed:
        return listed.count(",") + 1
    return math.prod(int(length) for axis, length in re.findall(r"('\w+')=(\d+)", axes) if axis in named)


def computations_of(hlo: str) -> dict[str, list[str]]:
    """Returns {computation: its lines} of a text; that of the program itself has the name ""."""
    found: dict[str, list[str]] = {"": []}
    name = ""
    for line in hlo.splitlines():
        if match := _COMPUTATION.match(line):
            name = "" if match.group(1) else match.group(2)
            found.setdefault(name, [])
        else:
            found[name].append(line)
    return found


def turns(computations: dict[str, list[str]]) -> dict[str, int]:
    """Returns {computation: how often it runs in one call of the program}.

    A loop runs as often as XLA says that it knows, or as the one whole number in its condition, where it counts from 0;
    once where neither tells. Of branches each counts as taken.
    """
    times = dict.fromkeys(computations, 0)

    def visit(name: str, count: int) -> None:
        times[name] += count
        for line in computations[name]:
            for called, often in _called(line, computations):
                visit(called, count * often)

    visit("", 1)
    return times


def _called(line: str, computations: dict[str, list[str]]) -> Iterator[tuple[str, int]]:
    """(computation that an instruction runs, how often) of one line."""
    if loop := _LOOP.search(line):
        condition, body = loop.groups()
        known = _TURNS.search(line)
        limits = [int(found.group(1)) for found in map(_LIMIT.search, computations[condition]) if found]
        yield body, int(known.group(1)) if known else limits[0] if len(limits) == 1 else 1
    elif called := _CALLED.search(line):
        for name in re.findall(r"%([\w.\-]+)", called.group(1)):
            if name in computations:  # Not where the text is a part of a program's.
                yield name, 1
