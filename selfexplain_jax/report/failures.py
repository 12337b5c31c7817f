"""What failed in a comparison, in the words that its tables say it in: cells, notes below, reasons. Knows no model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Cells = dict[tuple[int, int], str]


def failed_cells(results: Mapping[str, Any], header: Sequence[str], rows: Sequence[Sequence[Any]]) -> Cells:
    """Returns {(row, column): what the cell has to say of a failure} of a comparison's table.

    "failed on 3": the method failed on so many images; a number beside it is the mean over the images that all methods
    explain, as everywhere. "failed": its metric raised an error. "not finite": it is NaN or infinite.

    Args:
      results: from `compare.compare`.
      header, rows: of `tables.comparison_rows`.
    """
    said: Cells = {}
    for number, row in enumerate(rows):
        found = results["methods"][row[0]]
        failed = f"failed on {len(found['failures'])}" if found["failures"] else None
        without = set(numbers_without_metric(results, found))
        for place, name in enumerate(header[2:-1], 2):  # Between method and model, and the count of failures.
            if row[place] is not None:
                # A time is none of an image that failed.
                text = failed if name != "seconds_per_image" else None
            elif name in without:
                text = "failed"
            elif name in found.get("not_finite", ()):
                text = "not finite"
            else:
                # A method that explains some images has a number wherever the metric has one.
                text = None if found.get("metrics") else failed
            if text:
                said[number, place] = text
    return said


def numbers_without_metric(results: Mapping[str, Any], row: Mapping[str, Any]) -> list[str]:
    """Returns the numbers that a method lacks because their metric raised an error.

    Args:
      results: its "numbers_of" says which numbers a metric gives; one that failed for every method gives none, and
        stands for itself.
      row: one of its methods.
    """
    known = results.get("numbers_of", {})
    return [number for metric in row.get("metric_failures", {}) for number in known.get(metric) or [metric]]


def columns_of_failures(results: Mapping[str, Any]) -> list[str]:
    """Returns the columns that a table has for what is in no method a number, so that it is not missing unseen."""
    methods, found = results["methods"].values(), []
    for row in methods:
        found += [metric for metric in row.get("metric_failures", {}) if not results.get("numbers_of", {}).get(metric)]
        found += [
            name
            for name in row.get("not_finite", ())
            # No curve and no table, which have no column.
            if all(other.get("metrics", {}).get(name) is None for other in methods)
        ]
    return list(dict.fromkeys(found))


def not_finite_numbers(results: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Returns (method, number) of what is NaN or infinite, and so stands in no table."""
    return [(label, name) for label, row in results["methods"].items() for name in row.get("not_finite", ())]


def reasons(row: Mapping[str, Any]) -> str:
    """Returns why a method of a comparison lacks images or numbers, in one line; nothing where it lacks none."""
    said = [first_failure(row)] if row["failures"] else []
    said += [f"{metric} has no number: {message}" for metric, message in row.get("metric_failures", {}).items()]
    if bad := row.get("not_finite"):
        said.append(f"not finite: {', '.join(bad)}")
    return "; ".join(said)


def first_failure(row: Mapping[str, Any]) -> str:
    """failed on 3 images, first on image 4 of the split: no masks."""
    first = row["failures"][0]
    return f"failed on {len(row['failures'])} images, first on image {first['image']} of the split: {first['message']}"
