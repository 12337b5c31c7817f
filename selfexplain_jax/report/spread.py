"""Several runs as one: means and spreads over seeds, in the form of a comparison, which every table takes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from selfexplain_jax.report.runs import Run
from selfexplain_jax.report.tables import is_number
from selfexplain_jax.types import UserError

BOOKKEEPING = ("steps", "train_seconds")
"""Entries of a run's metrics that measure nothing of its masks."""


class Spread(float):
    """A mean over runs that knows how far they spread: a number like any other, written as 0.87 ± 0.01.

    deviation: sample standard deviation (n - 1 in the denominator); runs: n.
    """

    deviation: float
    runs: int

    def __new__(cls, values: Sequence[float]):
        made = super().__new__(cls, np.mean(np.asarray(values, np.float64)))
        made.deviation, made.runs = float(np.std(np.asarray(values, np.float64), ddof=1)), len(values)
        return made

    def __format__(self, form: str) -> str:
        return f"{float(self):{form}} ± {self.deviation:.1g}"


def run_as_comparison(runs: Sequence[Run]) -> dict[str, Any]:
    """Returns evaluated runs in the form of `compare.compare`: a row per experiment, and one per control.

    Runs whose configs differ in the seed alone are one row; the controls are the first run's. Each run has a name of
    its own, see `runs.with_labels`.
    """
    groups: dict[str, list[Run]] = {}
    for run in runs:
        if run.results is not None:
            config = {name: value for name, value in run.results.get("config", {}).items() if name != "seed"}
            groups.setdefault(json.dumps(config, sort_keys=True), []).append(run)
    methods, controls, images = {}, {}, None
    for group in groups.values():
        label = group[0].name if len(group) == 1 else f"{group[0].name} ({len(group)} runs)"
        metrics = over_runs([_numbers(run.results["metrics"]) for run in group])
        methods[label] = {"model": group[0].results.get("config", {}).get("method", ""), "metrics": metrics}
        controls = controls or group[0].results["metrics"].get("controls", {})
        images = images or group[0].results.get("counts", {}).get("examples")
    for name, values in controls.items():
        methods[name.replace("_", " ")] = {"model": "control", "metrics": _numbers(values)}
    for row in methods.values():
        row["failures"] = []
    return {"methods": methods, "images": images, "controls": [name.replace("_", " ") for name in controls]}


def comparisons_as_one(comparisons: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns comparisons with other seeds or models as one, each number a `Spread` over those that have it.

    Raises:
      UserError: they are of different data.
    """
    first = comparisons[0]
    data = [comparison.get("config", {}).get("data", {}) for comparison in comparisons]
    for number, other in enumerate(data):
        differing = [n for n in ("name", "eval_split", "image_size", "options") if other.get(n) != data[0].get(n)]
        if differing:
            raise UserError(f"Comparison {number + 1} differs from the first one in config.data.{differing[0]}.")
    if len(comparisons) == 1:
        return dict(first)
    methods = {}
    for label in dict.fromkeys(label for comparison in comparisons for label in comparison["methods"]):
        rows = [comparison["methods"][label] for comparison in comparisons if label in comparison["methods"]]
        seconds = over_runs([{"seconds": row.get("seconds_per_image")} for row in rows]).get("seconds")
        methods[label] = rows[0] | {
            "metrics": over_runs([_numbers(row.get("metrics", {})) for row in rows]),
            "seconds_per_image": seconds,
            "failures": [failure for row in rows for failure in row["failures"]],
            "metric_failures": {name: text for row in rows for name, text in row.get("metric_failures", {}).items()},
            "not_finite": list(dict.fromkeys(name for row in rows for name in row.get("not_finite", ()))),
            "flat_maps": sum(row.get("flat_maps") or 0 for row in rows),
        }
    # Sanity checks have no spread yet; each comparison's own page shows them.
    left_out = sorted({position for comparison in comparisons for position in comparison.get("left_out", ())})
    numbers = {metric: names for one in reversed(comparisons) for metric, names in one.get("numbers_of", {}).items()}
    merged = {"methods": methods, "left_out": left_out, "numbers_of": numbers, "sanity_checks": {}}
    return dict(first) | merged


def over_runs(rows: Sequence[Mapping[str, float | None]]) -> dict[str, float]:
    """Returns the mean of each number over the rows that have it, with its spread where two have."""
    names = dict.fromkeys(name for row in rows for name in row)
    values = {name: [row[name] for row in rows if row.get(name) is not None] for name in names}
    return {name: Spread(v) if len(v) > 1 else v[0] for name, v in values.items() if v}


def _numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if is_number(value) and name not in BOOKKEEPING}
