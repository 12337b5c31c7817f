"""The report page: one HTML file with all that it shows inside, its tables as files to paste, its figures to print."""

from __future__ import annotations

import base64
import hashlib
import importlib.resources
import json
import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import jinja2

from selfexplain_jax.config import base_config
from selfexplain_jax.folders import in_bucket, open_folder, write_whole
from selfexplain_jax.report import curves, failures, findings, gallery, tables
from selfexplain_jax.report.definitions import definition
from selfexplain_jax.report.latex import comparison_latex, table_latex
from selfexplain_jax.report.runs import Run, read_run, with_labels
from selfexplain_jax.report.spread import comparisons_as_one, run_as_comparison
from selfexplain_jax.types import UserError

MOST_TRAINING_PICTURES = 12
"""Pictures of masks while training that the page shows, evenly spaced, the last among them."""
TRAINING_PICTURE_SIDE = 1600
TRAINING_BUDGET = 2 * 2**20
"""Bytes that they may take in the page, else all are halved in size until they fit."""
CARDS_AT_ONCE = 24
CHECKOUT = pathlib.Path(__file__).resolve().parents[2]
"""The repository, where the package lies in one."""


def write_report(workdir: str | os.PathLike, others: Sequence[str | os.PathLike] = ()) -> list[pathlib.Path]:
    """Writes WORKDIR/report.html from what a run or a comparison left there; loads no model and computes no map.

    Beside it: every table of numbers of the page as .md, .csv and .tex (results or comparison, sanity_checks,
    mistakes), and the training curves as pictures/curves.png and .pdf.

    Args:
      workdir: folder with results.json, comparison.json or metrics.jsonl.
      others: folders of further runs. Numbers of those whose config differs in the seed alone, and those of
        comparisons, become means with their spread; other runs get rows of their own.

    Returns:
      The files, the page first.

    Raises:
      UserError: a folder without results, a damaged file, comparisons of different data.
    """
    read = [read_run(folder) for folder in (workdir, *others)]
    named = with_labels([*read, *_models_of(read[0])])
    every, models, run = named[: len(read)], named[len(read) :], named[0]
    compared = [other.comparison for other in every if other.comparison is not None]
    if compared and len(compared) < len(every) and any(other.results is None for other in every):
        raise UserError("A comparison and a run that was only trained have no table in common: report them one by one.")
    shown = {}
    if any(other.results is not None for other in every):
        shown["results"] = run_as_comparison(every)
    if compared:
        shown["comparison"] = comparisons_as_one(compared)
    lines = {other.name: other.curves for other in [*every, *models] if other.curves}
    written = [run.folder / "report.html"]
    write_whole(written[0], render(run, every, models, shown, lines).encode())
    for name, content in table_files(run, shown).items():
        written.append(run.folder / name)
        write_whole(written[-1], content.encode())
    if lines:
        names = [chart.name for chart in curves.charts(lines, {})]
        curves.save_curves(run.folder / "pictures" / "curves.png", lines, names)
        written += [run.folder / "pictures" / f"curves{suffix}" for suffix in (".png", ".pdf")]
    return written


def table_files(run: Run, shown: Mapping[str, dict]) -> dict[str, str]:
    """Returns {file name: content} of the page's tables; see `render` for the arguments."""
    files = {}
    for name, table in shown.items():
        files[f"{name}.md"] = tables.comparison_markdown(table)
        files[f"{name}.csv"] = tables.comparison_csv(table)
        files[f"{name}.tex"] = comparison_latex(table)
    plain = {"sanity_checks": tables.sanity_rows(shown.get("comparison", {}))}
    if run.kept:
        plain["mistakes"] = findings.confusion_rows(findings.failure_findings(run.kept))
    for name, (header, rows) in plain.items():
        if rows:
            files[f"{name}.md"] = tables.table_markdown(header, rows)
            files[f"{name}.csv"] = tables.table_csv(header, rows)
            files[f"{name}.tex"] = table_latex(header, rows)
    return files


def render(
    run: Run, every: Sequence[Run], models: Sequence[Run], shown: Mapping[str, dict], lines: Mapping[str, dict]
) -> str:
    """Returns the page's HTML.

    Args:
      run: whose images and masks are shown.
      every: the runs behind the tables.
      models: the runs that a comparison compares, whose audit is told.
      shown: {"results" or "comparison": table in the form of a comparison}.
      lines: {run: its curves}.
    """
    results = run.comparison or run.results or {}
    config = results.get("config", {})
    cards, no_room = gallery.gallery(run.kept) if run.kept else ([], 0)
    audited = [other for other in [*every, *models] if other.results is not None]
    audits = {
        other.name: findings.audit_findings(other.results["metrics"], other.results.get("counts", {}))
        for other in audited
    }
    starts = {name: term.get("start", 0) for name, term in config.get("objective", {}).items()}
    views = [table_view(name, table) for name, table in shown.items()]
    sanity = sanity_view(shown.get("comparison", {}))
    columns = [column for view in [*views, *([sanity] if sanity else [])] for column in view["columns"]]
    numbers = dict.fromkeys(column["name"] for column in columns)
    script, style = read_part("page.js"), read_part("page.css")
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(read_part),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["name_of"] = lambda class_id, names: names[class_id]
    return environment.get_template("page.html").render(
        name=run.name,
        compares=run.comparison is not None,
        facts=facts(run, every),
        changed=changed_settings(config) if config else [],
        config=json.dumps(config, indent=2, sort_keys=True),
        headlines=headlines(shown),
        charts=curves.charts(lines, starts),
        run_names=list(lines),
        views=views,
        training=training_views(run),
        sanity=sanity,
        audits={name: found for name, found in audits.items() if found},
        failures=findings.failure_findings(run.kept) if run.kept else None,
        kept=run.kept,
        cards=cards,
        no_room=no_room,
        small=bool(cards) and max(run.kept.kept[cards[0].position].image.shape[:2]) <= gallery.LOSSLESS_SIDE,
        cards_at_once=CARDS_AT_ONCE,
        class_choices=class_choices(run, cards),
        definitions=[(number, definition(number)) for number in numbers if definition(number)],
        metrics_page=metrics_page(run.folder),
        chart_size=(curves.WIDTH, curves.HEIGHT, curves.LEFT, curves.BOTTOM, curves.TOP, curves.RIGHT),
        script=script,
        style=style,
        script_hash=content_hash(script),
        style_hash=content_hash(style),
    )


def sanity_view(comparison: Mapping[str, Any]) -> dict[str, Any] | None:
    """Returns what the page shows of the sanity checks, or None where there are none.

    Returns:
      {"columns": those behind method and check, "rows": [{"label", "check", "cells"}], "failed": [(method, check,
      message)]}, with columns and cells as `table_view` has them.
    """
    if not comparison.get("sanity_checks"):
        return None
    header, rows = tables.sanity_rows(comparison)
    lines = [
        {"label": row[0], "check": row[1], "cells": [{"text": _hundredths(v), "value": v} for v in row[2:]]}
        for row in rows
    ]
    columns = [{"name": name, "contest": None, "known": bool(definition(name))} for name in header[2:]]
    return {"columns": columns, "rows": lines, "failed": tables.sanity_failures(comparison)}


def metrics_page(folder: pathlib.Path) -> str:
    """Returns the address of docs/metrics.md from a folder in the same checkout, as of runs/NAME; else "".

    A link out of the checkout would lead nowhere as soon as the folder is copied.
    """
    if in_bucket(folder):
        return ""
    folder, page = folder.resolve(), CHECKOUT / "docs" / "metrics.md"
    if CHECKOUT not in folder.parents or not page.is_file():
        return ""
    return pathlib.Path(os.path.relpath(page, folder)).as_posix()


def read_part(name: str) -> str:
    """Returns a file of the page: page.html, page.css or page.js."""
    return importlib.resources.files("selfexplain_jax.report").joinpath(name).read_text(encoding="utf-8")


def content_hash(text: str) -> str:
    """Returns what a content security policy says to allow exactly this inline text."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def facts(run: Run, every: Sequence[Run]) -> list[tuple[str, str]]:
    """Returns (what, value) of a run: what it is, what made it, how long it took."""
    results = run.comparison or run.results or {}
    config = results.get("config", {})
    data = config.get("data", {})
    steps = max((line[-1][0] for line in run.curves.values()), default=None)
    seconds = results.get("train_seconds") or (run.curves.get("train_seconds") or [(0, None)])[-1][1]
    seeds = [str(other_results["seed"]) for other in every if (other_results := other.comparison or other.results)]
    commit = results.get("commit")
    images = results.get("images") or results.get("counts", {}).get("examples")
    found = {
        "Folder": str(run.folder),
        "Method": f"comparison of {len(results['methods'])} methods" if run.comparison else config.get("method"),
        "Data": f"{data['name']}, {data['image_size']} px" if data else None,
        "Evaluated on": f"{images:,} images of split {data.get('eval_split')!r}" if images else None,
        "Models": ", ".join(f"{n}: {where}" for n, where in _compared_models(config).items()) or None,
        "Seed" if len(seeds) == 1 else "Seeds": ", ".join(seeds) or None,
        "Steps": f"{results.get('steps') or steps:,}" if results.get("steps") or steps else None,
        "Training time": duration(seconds) if seconds else None,
        "Commit": f"{commit}{', with changes' if results.get('dirty') else ''}" if commit else None,
        "Versions": ", ".join(f"{n} {v}" for n, v in results.get("versions", {}).items() if v) or None,
    }
    return [(what, value) for what, value in found.items() if value]


def changed_settings(config: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Returns (field, value, default) of the settings that are not the defaults of `config.base_config`."""
    default, there = _flat(json.loads(base_config().to_json_best_effort())), _flat(config)
    return [
        (name, json.dumps(value), json.dumps(default[name]) if name in default else "not there")
        for name, value in sorted(there.items())
        if default.get(name, math.nan) != value
    ]


def table_view(name: str, table: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what the page shows of a table: columns, rows of cells, and what failed."""
    main = tables.headline_numbers(table)
    header, rows = tables.comparison_rows(table)
    # The main numbers first, the others in the order in which they were measured.
    numbers = [*main, *(name for name in header[2:-1] if name not in (*main, "seconds_per_image"))]
    header, rows = tables.comparison_rows(table, numbers)
    best, main = tables.best_cells(table, header, rows), {*main, "seconds_per_image"}
    said = failures.failed_cells(table, header, rows)
    controls = set(table.get("controls", ()))
    columns = [
        {"name": n, "contest": tables.contest(n), "headline": n in main, "known": bool(definition(n))}
        for n in header[2:]
    ]
    if any(row["failures"] for row in table["methods"].values()):
        columns[-1]["headline"] = True
    lines = [
        {
            "label": row[0],
            "model": row[1],
            "control": row[0] in controls,
            "cells": [
                {"text": text(v), "value": v, "best": (number, place) in best, "said": said.get((number, place))}
                for place, v in enumerate(row[2:], 2)
            ],
        }
        for number, row in enumerate(rows)
    ]
    failed = [
        (label, len(row["failures"]), row["failures"][0]) for label, row in table["methods"].items() if row["failures"]
    ]
    unmeasured = [
        (label, metric, message)
        for label, row in table["methods"].items()
        for metric, message in row.get("metric_failures", {}).items()
    ]
    flat = [(label, row["flat_maps"]) for label, row in table["methods"].items() if row.get("flat_maps")]
    view = {"name": name, "columns": columns, "rows": lines, "failed": failed, "unmeasured": unmeasured}
    view |= {"flat": flat, "not_finite": failures.not_finite_numbers(table), "warnings": table.get("warnings", [])}
    return view | {"images": table.get("images"), "left_out": len(table.get("left_out", ()))}


def headlines(shown: Mapping[str, dict]) -> list[tuple[str, str, str, str]]:
    """Returns (name, value, its spread or "", what it means) of the main numbers of the first run's own masks.

    Of a comparison there are none: its table says it.
    """
    if "comparison" in shown or "results" not in shown:
        return []
    metrics = next(iter(shown["results"]["methods"].values()))["metrics"]
    found = {name: metrics[name] for name in tables.HEADLINES if name in metrics}
    spreads = {name: f"{value.deviation:.1g}" for name, value in found.items() if hasattr(value, "deviation")}
    return [(n, f"{float(v):.3g}", spreads.get(n, ""), definition(n)) for n, v in found.items()]


def training_views(run: Run) -> list[tuple[int, str]]:
    """Returns (step, data URI) of pictures of the masks while training."""
    pictures = run.pictures
    if len(pictures) > MOST_TRAINING_PICTURES:
        last = len(pictures) - 1
        places = sorted({round(n * last / (MOST_TRAINING_PICTURES - 1)) for n in range(MOST_TRAINING_PICTURES)})
        pictures = [pictures[place] for place in places]
    read = []
    for step, file in pictures:
        picture = cv2.imread(str(file), cv2.IMREAD_COLOR)
        if picture is None:
            raise UserError(f"{file} is no picture that can be read: delete it, or train again.")
        read.append((step, picture[..., ::-1]))
    side = TRAINING_PICTURE_SIDE
    views = [(step, gallery.data_uri(picture, side, 60)) for step, picture in read]
    while sum(len(uri) for _, uri in views) > TRAINING_BUDGET:
        side //= 2
        views = [(step, gallery.data_uri(picture, side, 60)) for step, picture in read]
    return views


def class_choices(run: Run, cards: Sequence[gallery.Card]) -> list[tuple[int, str]]:
    """Returns (class id, name) of the classes that the gallery can be narrowed to, by name."""
    if run.kept is None:
        return []
    ids = {class_id for card in cards for class_id in card.listed_under()}
    return sorted(((class_id, run.kept.class_names[class_id]) for class_id in ids), key=lambda found: found[1])


def text(value: Any) -> str:
    """Returns a cell's text: three digits, with the spread where there is one."""
    if value is None:
        return "–"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _hundredths(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:z.2f}" if isinstance(value, float) else str(value)


def duration(seconds: float) -> str:
    """3 s, 4 min 05 s, 2 h 03 min."""
    minutes, left = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes} min {left:02d} s" if minutes else f"{left} s"


def _models_of(run: Run) -> list[Run]:
    """The runs behind a comparison that are still there: their curves and their audit are part of the picture."""
    if run.comparison is None:
        return []
    folders = [open_folder(where) for where in _compared_models(run.comparison.get("config", {})).values()]
    return [
        read_run(folder)
        for folder in dict.fromkeys(folders)
        if any((folder / name).is_file() for name in ("results.json", "metrics.jsonl"))
    ]


def _compared_models(config: Mapping[str, Any]) -> dict[str, str]:
    return dict(config.get("comparison", {}).get("models", {}))


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found = {}
    for name, value in config.items():
        found |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return found
