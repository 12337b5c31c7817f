"""Results as tables to read and to paste: a comparison as Markdown and as CSV. Knows numbers and no model."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from selfexplain_jax.report import failures

LOWER_IS_BETTER = (
    "average_drop",
    "background_accuracy",
    "background_probability",
    "class_specific_other",
    "background_coverage",
    "deletion",
    "mask_only_accuracy",
    "mask_only_gap",
    "mean_absolute_error",
    "saliency_score",
    "seconds_per_image",
    "swap_owner_gap",
    "swap_owner_rate",
)
"""Numbers of which the smallest is the best; of all others it is the largest."""
NO_CONTEST = ("class_specific_unmasked", "failed", "mask_area", "object_area")
"""Numbers that describe and do not compare; so do those of the ground truth and of whole images."""
HEADLINES = (
    "accuracy",
    "mean_average_precision",
    "object_accuracy",
    "background_accuracy",
    "iou",
    "continuous_iou",
    "miou",
    "pointing_game",
    "energy_pointing_game",
    "pixel_average_precision",
    "deletion",
    "insertion",
    "average_drop",
    "road",
    "swap_owner_gap",
    "mask_only_gap",
    "evaluator_accuracy",
)
"""Numbers that stand for the others where there is room for a few."""


def comparison_rows(results: Mapping[str, Any], numbers: Sequence[str] | None = None) -> tuple[list[str], list[list]]:
    """Returns (header, rows) of a comparison: a row per method, a column per number; None where there is none.

    Args:
      results: from `compare.compare`: {"methods": {label: {"model", "metrics", "seconds_per_image", "failures"}}}.
      numbers: columns to show, in order; default: every number that is no curve and no table, in the order they came,
        and what failed for all methods.
    """
    methods = results["methods"]
    if numbers is None:
        found = [n for row in methods.values() for n, value in row.get("metrics", {}).items() if is_number(value)]
        numbers = list(dict.fromkeys([*found, *failures.columns_of_failures(results)]))
    header = ["method", "model", *numbers, "seconds_per_image", "failed"]
    rows = []
    for label, row in methods.items():
        values = [row.get("metrics", {}).get(number) for number in numbers]
        rows.append([label, row["model"], *values, row.get("seconds_per_image"), len(row["failures"])])
    # Nobody takes the time of a run's own masks.
    timed = any(row[-2] is not None for row in rows)
    return (header, rows) if timed else ([*header[:-2], "failed"], [[*row[:-2], row[-1]] for row in rows])


def contest(name: str) -> str | None:
    """Returns which values of a number are the better ones: "lower" or "higher"; None where it compares nothing."""
    if name in NO_CONTEST or name.endswith(("_ground_truth", "_full_image")):
        return None
    return "lower" if name in LOWER_IS_BETTER else "higher"


def headline_numbers(results: Mapping[str, Any]) -> list[str]:
    """Returns those of HEADLINES that some method of the comparison has; all numbers where none has one."""
    there = {name for row in results["methods"].values() for name in row.get("metrics", {})}
    return [name for name in HEADLINES if name in there] or comparison_rows(results)[0][2:-1]


def comparison_markdown(results: Mapping[str, Any], numbers: Sequence[str] | None = None) -> str:
    """Returns the comparison as a Markdown table, the best of each column in bold, with what failed below it.

    A cell whose method failed says so beside a number or in the place of one, see `failures.failed_cells`. Controls do
    not compete. Numbers that depend on the classifier behind a method have a best one for each classifier; an
    Explainer's masks are held against other maps of the classifier that they explain.
    """
    header, rows = comparison_rows(results, numbers)
    best = best_cells(results, header, rows)
    lines = _markdown_lines(header, rows, best, failures.failed_cells(results, header, rows))
    if results.get("images"):
        lines.append(f"\n{results['images']} images, the same for every method.")
    if left_out := results.get("left_out"):
        named = ", ".join(map(str, left_out[:10])) + (" ..." if len(left_out) > 10 else "")
        lines.append(f"Left out of all rows, since some method failed on them: {len(left_out)} images ({named}).")
    counted = {name: count for row in results["methods"].values() for name, count in row.get("counts", {}).items()}
    if len(set(counted.values())) > 1:
        lines.append(
            "Counted: " + ", ".join(f"{name} {count}" for name, count in counted.items() if name in header) + "."
        )
    for label, row in results["methods"].items():
        if row["failures"]:
            lines.append(f"- `{label}` {failures.first_failure(row)}")
        for metric, message in row.get("metric_failures", {}).items():
            lines.append(f"- `{metric}` of `{label}` has no number: {message}")
        if row.get("flat_maps"):
            lines.append(f"- `{label}` has {row['flat_maps']} maps of one value alone, which count like any other.")
    if bad := failures.not_finite_numbers(results):
        named = ", ".join(f"`{number}` of `{label}`" for label, number in bad)
        lines.append(f"- Not finite (NaN or infinity), and so left out: {named}.")
    if results.get("classes_without_a_map"):
        beyond = results["classes_without_a_map"]
        lines.append(
            f"\n{beyond} classes of images that show more than config.comparison.classes_per_image have no map."
        )
    lines += [f"- {text}" for text in results.get("warnings", ())]
    lines += _sanity_lines(results)
    return "\n".join(lines) + "\n"


def sanity_rows(results: Mapping[str, Any]) -> tuple[list[str], list[list]]:
    """Returns (header, rows) of a comparison's sanity checks; no rows where there are none.

    A method has a row for the first run of layers from the top, one for all layers, one for the mean over redrawing
    each run alone, and one for the model of random labels. The columns are similarities, 1 for the same map, how many
    maps were compared, and for how many the similarity that is defined for the fewest was (a flat map has no
    correlation).

    Args:
      results: with "sanity_checks", see `sanity_checks.sanity_checks`.
    """
    rows, names = [], []
    for label, found in results.get("sanity_checks", {}).items():
        asked = sanity_of(found["checks"])
        names = names or [name for values in asked.values() for name in values if name != "defined"]
        names = list(dict.fromkeys(names))
        for check, values in asked.items():
            rows.append([label, check, *(values[name] for name in names), found["images"], values["defined"]])
    return ["method", "check", *names, "maps", "defined"], rows


def sanity_of(checks: Mapping[str, Any]) -> dict[str, Mapping[str, float | None]]:
    """Returns {row of `sanity_rows`: {similarity: value or None, "defined": maps}} of one method's checks, as far as
    they were taken.

    Args:
      checks: {"cascading", "independent", "random_labels"}, see `sanity_checks.sanity_checks`.
    """
    rows = {}
    if "cascading" in checks:
        stages = list(checks["cascading"].items())
        rows |= {f"redrawn down to {stages[0][0]}": stages[0][1], "all redrawn": stages[-1][1]}
    if "independent" in checks:
        alone = list(checks["independent"].values())
        rows["one run redrawn, mean"] = {name: _mean([values[name] for values in alone]) for name in alone[0]}
        rows["one run redrawn, mean"]["defined"] = min(values["defined"] for values in alone)
    return rows | ({"random labels": checks["random_labels"]} if "random_labels" in checks else {})


def _mean(values: Sequence[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return sum(there) / len(there) if there else None


def sanity_failures(results: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Returns (method, check, message) of the sanity checks that could not be taken."""
    checked = results.get("sanity_checks", {})
    return [(label, check, text) for label, found in checked.items() for check, text in found["failures"].items()]


def _sanity_lines(results: Mapping[str, Any]) -> list[str]:
    """The sanity checks as lines of Markdown; none where nothing was checked."""
    header, rows = sanity_rows(results)
    lines = []
    if rows:
        lines += ["\nSanity checks: similarity of the maps before and after (1: the map stayed the same).\n"]
        lines += _markdown_lines(header, rows, set())
    failed = [f"- `{label}`, {check}: could not be checked: {text}" for label, check, text in sanity_failures(results)]
    return lines + ["", *failed] if failed else lines


def comparison_csv(results: Mapping[str, Any], numbers: Sequence[str] | None = None) -> str:
    """Returns the comparison as CSV, numbers in full precision, an empty cell where there is none.

    A number with a spread over runs is followed by the column NAME_deviation. Where something failed, cells without a
    number say so (`failures.failed_cells`), and a last column, "failure", gives each method's reasons; a number stands
    alone in its cell. "images": how many the numbers are of, where that is known.
    """
    header, rows = comparison_rows(results, numbers)
    said = failures.failed_cells(results, header, rows)
    rows = [[said.get((n, p)) if v is None else v for p, v in enumerate(row)] for n, row in enumerate(rows)]
    why = [failures.reasons(results["methods"][row[0]]) for row in rows]
    if any(why):
        header, rows = [*header, "failure"], [[*row, text] for row, text in zip(rows, why, strict=True)]
    if results.get("images") is not None:
        header, rows = [*header, "images"], [[*row, results["images"]] for row in rows]
    for place in reversed(range(len(header))):
        if any(hasattr(row[place], "deviation") for row in rows):
            header = [*header[: place + 1], f"{header[place]}_deviation", *header[place + 1 :]]
            rows = [[*r[: place + 1], getattr(r[place], "deviation", None), *r[place + 1 :]] for r in rows]
    return table_csv(header, rows)


def table_markdown(header: list[str], rows: list[list]) -> str:
    """Returns any table as Markdown, nothing in bold; None is "-"."""
    return "\n".join(_markdown_lines(header, rows, set())) + "\n"


def table_csv(header: list[str], rows: list[list]) -> str:
    """Returns any table as CSV, numbers in full precision; None is an empty cell."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([["" if value is None else value for value in row] for row in rows])
    return text.getvalue()


def is_number(value: Any) -> bool:
    """Whether a metric is one number: no curve, no table, and there."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def best_cells(results: Mapping[str, Any], header: list[str], rows: list[list]) -> set[tuple[int, int]]:
    """Returns (row, column) of the best values of `comparison_rows`, as `comparison_markdown` marks them."""
    asked = [row.get("asks", row["model"]) for row in results["methods"].values()]
    return _best_cells(header, rows, asked, results.get("controls", ()), results.get("asks_the_model", ()))


def _best_cells(
    header: list[str], rows: list[list], asked: list[str], controls: Sequence[str], own_model: Sequence[str]
) -> set:
    """Returns {(row, column)} of the best values among methods; of numbers in `own_model` among those asking alike."""
    best = set()
    for place, name in enumerate(header):
        groups: dict[str, list[int]] = {}
        for number, row in enumerate(rows):
            if is_number(row[place]) and row[0] not in controls and contest(name):
                groups.setdefault(asked[number] if name in own_model else "", []).append(number)
        for group in groups.values():
            if len(group) > 1:
                values = [rows[number][place] for number in group]
                wanted = min(values) if contest(name) == "lower" else max(values)
                best |= {(number, place) for number in group if rows[number][place] == wanted}
    return best


def _markdown_lines(
    header: list[str], rows: list[list], best: set[tuple[int, int]], said: failures.Cells | None = None
) -> list[str]:
    """The lines of a table, with the cells of `best`, (row, column), in bold, and what is `said` in some."""
    said = said or {}
    lines = [header, ["---"] * len(header)]
    for number, row in enumerate(rows):
        places = [(number, place) for place in range(len(row))]
        lines.append([_cell(v, place in best, said.get(place)) for v, place in zip(row, places, strict=True)])
    return ["| " + " | ".join(cells) + " |" for cells in lines]


def _cell(value: Any, best: bool, said: str | None = None) -> str:
    if value is None:
        return said or "-"
    # A pipe in a label would end the cell.
    text = f"{value:.3g}" if isinstance(value, float) else str(value).replace("|", "\\|")
    text = f"**{text}**" if best else text
    return f"{text} ({said})" if said else text
