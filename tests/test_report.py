"""The report from files: tables, spreads, sentences, what is escaped, how large it gets."""

import csv
import dataclasses
import functools
import io
import json
import re
import types

import cv2
import numpy as np
import pytest
from PIL import Image
from report_runs import ATTACK, CLASSES, ROOT, write_comparison, write_run

from selfexplain_jax import examples, report
from selfexplain_jax.report import curves, findings, gallery, page, tables
from selfexplain_jax.report.definitions import DEFINITIONS, definition
from selfexplain_jax.report.reproduce_comparisons import read_comparisons
from selfexplain_jax.report.runs import read_curves, read_run, with_labels
from selfexplain_jax.report.spread import comparisons_as_one, run_as_comparison
from selfexplain_jax.types import UserError


def test_seeds_become_means_with_their_spread_and_other_configs_rows_of_their_own(tmp_path):
    for seed, iou in enumerate((0.5, 0.6, 0.7)):
        write_run(tmp_path / f"s{seed}", seed=seed, iou=iou, pictures=0)
    write_run(tmp_path / "other", seed=0, iou=0.9, pictures=0, steps=9)
    runs = [read_run(tmp_path / name) for name in ("s0", "s1", "s2", "other")]
    table = run_as_comparison(runs)
    assert list(table["methods"]) == ["s0 (3 runs)", "other", "all one"] and table["controls"] == ["all one"]
    value = table["methods"]["s0 (3 runs)"]["metrics"]["iou"]
    assert value == pytest.approx(0.6) and value.deviation == pytest.approx(0.1) and value.runs == 3
    assert "steps" not in table["methods"]["other"]["metrics"]
    markdown = tables.comparison_markdown(table)
    assert "| s0 (3 runs) | self_explainer | 0.6 ± 0.1 |" in markdown and "**0.9**" in markdown
    read = list(csv.DictReader(io.StringIO(tables.comparison_csv(table, ["iou"]))))
    assert float(read[0]["iou"]) == pytest.approx(0.6) and float(read[0]["iou_deviation"]) == pytest.approx(0.1)
    assert read[1]["iou_deviation"] == ""


def test_runs_of_one_name_keep_their_curves_and_audits_apart(tmp_path):
    for number, iou in enumerate((0.5, 0.9)):
        write_run(tmp_path / str(number) / "run", seed=number, iou=iou, pictures=0, steps=9 + number)
    report.write_report(tmp_path / "0" / "run", [tmp_path / "1" / "run"])
    html = (tmp_path / "0" / "run" / "report.html").read_text()
    labels = [run.name for run in with_labels([read_run(tmp_path / str(number) / "run") for number in (0, 1, 1)])]
    assert labels == ["run", "run'", "run''"] and "run&#39;" in html
    assert "| run' |" in (tmp_path / "0" / "run" / "results.md").read_text()


def test_comparisons_become_one_or_are_refused(tmp_path):
    write_comparison(tmp_path / "a", shift=0.0, pictures=0)
    write_comparison(tmp_path / "b", shift=0.2, pictures=0)
    comparisons = [read_run(tmp_path / name).comparison for name in "ab"]
    one = comparisons_as_one(comparisons)
    assert f"{one['methods']['grad_cam']['metrics']['iou']:.3g}" == "0.5 ± 0.1"
    comparisons[1]["config"]["data"]["name"] = "mnist"
    with pytest.raises(UserError, match="Comparison 2 differs from the first one in config.data.name"):
        comparisons_as_one(comparisons)


def test_latex_by_hand():
    def row(model, **metrics):
        return {"model": model, "metrics": metrics, "failures": []}

    results = {
        "methods": {"half": row("x", iou=0.25, deletion=None), "a_b": row("50 % & m", iou=0.5, deletion=0.125)},
        "controls": ["half"],
    }
    assert report.comparison_latex(results) == (
        "\\begin{tabular}{llrr}\n\\toprule\n"
        "method & model & iou~$\\uparrow$ & deletion~$\\downarrow$ \\\\\n\\midrule\n"
        "a\\_b & 50 \\% \\& m & $0.5$ & $0.125$ \\\\\n\\midrule\n"
        "half & x & $0.25$ & -- \\\\\n\\bottomrule\n\\end{tabular}\n"
    )
    results["methods"]["c"] = row("y", iou=0.4, deletion=0.1)
    assert "& $\\mathbf{0.5}$ &" in report.comparison_latex(results)


def test_every_definition_stands_in_the_documentation_too():
    documented = (ROOT / "docs" / "metrics.md").read_text()
    own = {"background_probability", "object_probability", "mask_area", "object_area", "seconds_per_image", "failed"}
    # Written there as `class_specific_own`, `_other`, `_unmasked`.
    own |= {"class_specific_other", "class_specific_unmasked"}
    missing = [name for name in DEFINITIONS.keys() - own if name not in documented]
    assert not missing
    assert ".25" in definition("iou_25") and "mean colour" in definition("object_accuracy_zero")
    assert definition("swap_owner_rate_ground_truth").startswith(DEFINITIONS["swap_owner_rate"])
    comparisons = read_comparisons().values()
    measured = {name for comparison in comparisons for numbers in comparison.methods.values() for name in numbers}
    assert len(measured) > 30 and not [name for name in measured if not definition(name)]
    assert definition("nonsense") == definition("iou_of_nothing") == ""


def test_the_audit_in_words():
    metrics = {"swap_owner_rate": 0.5, "swap_owner_rate_ground_truth": 0.1, "swap_pixel_rate": 0.25}
    metrics |= {"mask_only_accuracy": 0.3, "mask_only_accuracy_ground_truth": 0.32, "evaluator_accuracy": 0.7}
    swap, alone, opinion = findings.audit_findings(metrics, {"swap_owner_rate": 100, "mask_only_accuracy": 100})
    assert "50.0% of the cases" in swap["text"] and "10.0%" in swap["text"] and "25.0%" in swap["text"]
    assert swap["verdict"] == "speaks for encoding"  # .4 is 7 standard errors of .058
    assert alone["verdict"] == "no difference that can be told"  # .02 is less than one of .066
    assert "-2.0 points" in alone["text"] and "70.0%" in opinion["text"] and opinion["verdict"] == ""
    assert findings.audit_findings({"accuracy": 1.0}, {}) == []


def test_curves_are_read_drawn_and_their_damage_named(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 10, "loss": 4.0}\n{"step": 20, "loss": 2.0, "term/x": 1.0}\n{"step": 30, "lo')
    found = read_curves(path)
    assert found == {"loss": [(10, 4.0), (20, 2.0)], "term/x": [(20, 1.0)]}
    loss, term = curves.charts({"a": found}, {"x": 15})
    # The highest value at the top of the drawing, the last step at its right end.
    assert loss.lines[0][1] == f"M{46 + 264 / 2:.1f} {curves.TOP:.1f}L310.0 148.0" and loss.starts is None
    assert term.name == "term/x" and term.starts == 46 + 264 * 15 / 20
    path.write_text("nothing\n" + path.read_text())
    with pytest.raises(UserError, match="Line 1 of"):
        read_curves(path)
    with pytest.raises(UserError, match="nothing to report"):
        read_run(tmp_path / "empty")
    gap = curves.chart("loss", {"a": [(0, 1.0), (1, float("nan")), (2, 3.0)]})
    assert gap.lines[0][1].count("M") == 2 and len(gap.lines[0][2]) == 2
    long = curves.thinned([(step, 0.0) for step in range(5000)])
    assert len(long) <= curves.MOST_POINTS and long[-1][0] == 4999


def test_outside_strings_are_escaped_and_nothing_is_asked_of_a_network(tmp_path):
    write_run(tmp_path / "run", pictures=6)
    page, *others = report.write_report(tmp_path / "run")
    tabled = [f"{table}{suffix}" for table in ("results", "mistakes") for suffix in (".md", ".csv", ".tex")]
    assert [file.name for file in others] == [*tabled, "curves.png", "curves.pdf"]
    with Image.open(others[6]) as picture:
        assert picture.width > 300
    assert others[7].read_bytes().startswith(b"%PDF")
    # Images 4, 14, 24 and 34 of the classes 1, 2, 0 and 1 are taken for the next one.
    mistakes = list(csv.reader(io.StringIO((tmp_path / "run" / "mistakes.csv").read_text())))
    assert mistakes == [["label", "predicted", "times"], [ATTACK, CLASSES[2], "2"], *mistakes[2:]]
    assert sorted(mistakes[2:]) == [["cat", ATTACK, "1"], [CLASSES[2], "cat", "1"]]
    assert f"| cat | {ATTACK} | 1 |" in (tmp_path / "run" / "mistakes.md").read_text()
    latex = (tmp_path / "run" / "mistakes.tex").read_text()
    assert "\\begin{tabular}{llr}" in latex and "dog \\& " in latex
    html = page.read_text()
    assert ATTACK not in html and "&lt;script&gt;alert(1)&lt;/script&gt;" in html
    # Only this package's own script, and every address is inside the page.
    assert html.count("<script") == 1
    assert all(re.match(r"data:|#", address) for address in re.findall(r"(?:src|href)=[\"']([^\"']*)", html))
    assert "url(" not in html and "@import" not in html
    assert "default-src 'none'" in html


def test_a_page_of_what_little_there_is(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 1.0}\n')
    html = report.write_report(tmp_path)[0].read_text()
    assert 'id="curves"' in html and 'id="numbers"' not in html and 'id="images"' not in html
    (tmp_path / "results.json").write_text("{")
    with pytest.raises(UserError, match="not JSON"):
        report.write_report(tmp_path)


def test_two_hundred_images_of_many_methods_fit(monkeypatch):
    """The largest that is kept, of noise, which packs worst: by a few images the quality is chosen for all of them."""
    rng, methods = np.random.default_rng(0), [f"method_{number}" for number in range(12)]

    def kept(position):
        image, maps = rng.random((256, 256, 3)), rng.random((12, 1, 128, 128))
        return examples.keep(image, np.ones((128, 128), np.uint8), np.zeros(1, int), maps)

    told = {"m": (np.asarray([1.0]), np.asarray([1]))}
    rows = {p: examples.row_of(np.ones(1), told, dict.fromkeys(methods, 0.5)) for p in range(200)}
    same = kept(0)
    all_kept = examples.Examples(["a"], methods, methods[0], rows, dict.fromkeys(range(200), same))
    order = gallery.ordered(all_kept)
    quality = gallery.choose_quality(all_kept, order[:1] * 200, gallery.BUDGET)
    size = gallery.card_bytes(gallery.make_card(all_kept, 0, ["even"], quality))
    assert quality != gallery.LADDER[0] and 200 * size < gallery.BUDGET
    # Where nothing helps, images are left out and counted.
    monkeypatch.setattr(gallery, "LADDER", gallery.LADDER[-1:])
    cards, no_room = gallery.gallery(all_kept, budget=10 * size)
    assert len(cards) + no_room == 200 and no_room > 0


def test_a_page_of_large_pictures_of_the_training_keeps_its_bound(tmp_path, monkeypatch):
    noise = np.random.default_rng(0).integers(0, 256, (600, 500, 3), np.uint8)
    files = [(step, tmp_path / f"masks_{step}.png") for step in range(4)]
    for _, file in files:
        cv2.imwrite(str(file), noise)
    run = types.SimpleNamespace(pictures=files)
    large = page.training_views(run)
    monkeypatch.setattr(page, "TRAINING_BUDGET", sum(len(uri) for _, uri in large) // 3)
    small = page.training_views(run)
    assert [step for step, _ in small] == [0, 1, 2, 3]
    assert 0 < sum(len(uri) for _, uri in small) <= page.TRAINING_BUDGET
    # Gallery and training together leave room for the text.
    assert gallery.BUDGET + 2 * 2**20 <= 14 * 2**20


def test_sanity_checks_have_a_table(tmp_path):
    folder = write_comparison(tmp_path / "c", pictures=0)
    results = json.loads((folder / "comparison.json").read_text())
    header, rows = tables.sanity_rows(results)
    assert header == ["method", "check", "ssim", "rank_correlation", "maps", "defined"]
    assert rows == [
        ["learned", "redrawn down to head", 0.5, None, 7, 0],
        ["learned", "all redrawn", 0.1, 0.2, 7, 7],
        ["learned", "one run redrawn, mean", pytest.approx(0.4), 0.6, 7, 0],
        ["learned", "random labels", 0.3, -0.1, 7, 5],
    ]
    text = tables.comparison_markdown(results)
    assert "| learned | all redrawn | 0.1 | 0.2 | 7 | 7 |" in text
    assert f"- `rise`, cascading: could not be checked: {ATTACK}" in text
    view = page.sanity_view(results)
    assert [column["name"] for column in view["columns"]] == header[2:] and all(c["known"] for c in view["columns"])
    first = view["rows"][0]
    assert (first["label"], first["check"]) == ("learned", "redrawn down to head")
    assert [cell["text"] for cell in first["cells"]] == ["0.50", "–", "7", "0"]
    assert view["failed"] == [("rise", "cascading", ATTACK)]
    files = report.write_report(folder)
    text = (folder / "report.html").read_text()
    assert 'id="sanity"' in text and ATTACK not in text and 'id="def-rank_correlation"' in text
    assert {f"sanity_checks{suffix}" for suffix in (".md", ".csv", ".tex")} <= {file.name for file in files}
    markdown = (folder / "sanity_checks.md").read_text().splitlines()
    assert markdown[0] == "| method | check | ssim | rank_correlation | maps | defined |"
    assert markdown[2] == "| learned | redrawn down to head | 0.5 | - | 7 | 0 |" and len(markdown) == 6
    assert (folder / "sanity_checks.csv").read_text().splitlines()[1] == "learned,redrawn down to head,0.5,,7,0"
    latex = (folder / "sanity_checks.tex").read_text()
    assert latex.startswith("\\begin{tabular}{llrrrr}\n\\toprule\nmethod & check & ssim & rank correlation & maps")
    assert "learned & redrawn down to head & $0.5$ & -- & $7$ & $0$ \\\\\n" in latex
    assert page.sanity_view({}) is None and tables.sanity_rows({})[1] == []


def many_kept(images, methods, classes):
    """The same picture of noise many times, with maps of as many methods and classes."""
    rng, names = np.random.default_rng(0), [f"method_{number}" for number in range(methods)]
    shown = rng.random((256, 256, 3)), np.ones((128, 128), np.uint8)
    kept = examples.keep(*shown, np.arange(classes), rng.random((methods, classes, 128, 128)))
    label = np.ones(classes)
    rows = {p: examples.row_of(label, {"m": (label, label)}, dict.fromkeys(names, 0.5)) for p in range(images)}
    named = [f"class number {number}" for number in range(classes)]
    return examples.Examples(named, names, names[0], rows, dict.fromkeys(range(images), kept))


@pytest.mark.parametrize("images, methods, classes, all_fit", [(200, 4, 1, True), (450, 12, 3, False)])
def test_a_page_of_many_images_keeps_its_bound(tmp_path, monkeypatch, images, methods, classes, all_fit):
    """The whole file, with pictures of the training that fill what they may take."""
    kept, make_card = many_kept(images, methods, classes), gallery.make_card
    folder = write_run(tmp_path / "run", pictures=0)
    # All cards show the same: each quality is encoded once.
    encoded = functools.cache(lambda quality: make_card(kept, 0, ["even"], quality))

    def card(kept, position, kinds, quality):
        return dataclasses.replace(encoded(quality), position=position, kinds=kinds)

    monkeypatch.setattr(gallery, "make_card", card)
    if not all_fit:  # Many small pictures, so that the markup around them counts most.
        monkeypatch.setattr(gallery, "LADDER", gallery.LADDER[-1:])
    monkeypatch.setattr(page, "read_run", lambda where: dataclasses.replace(read_run(where), kept=kept))
    monkeypatch.setattr(page, "training_views", lambda run: [(1, "data:," + "0" * (page.TRAINING_BUDGET - 6))])
    file = report.write_report(folder)[0]
    assert 5e6 < file.stat().st_size <= 15e6
    count = file.read_text().count("<article class=")
    assert count == images if all_fit else 200 < count < images


def test_classes_with_maps_can_be_picked_beside_those_labelled_and_named():
    label, named = np.asarray([1, 0, 0, 0]), np.asarray([0, 1, 0, 0])
    rows = {0: examples.row_of(label, {"m": (named, named)}, {"mask": 0.5})}
    picture = examples.keep(np.zeros((4, 4, 3)), np.zeros((4, 4), np.uint8), np.asarray([0, 3]), np.zeros((1, 2, 4, 4)))
    kept = examples.Examples(["cat", "dog", "cow", "ant"], ["mask"], "mask", rows, {0: picture})
    cards, _ = gallery.gallery(kept)
    assert cards[0].listed_under() == [0, 1, 3]
    assert page.class_choices(types.SimpleNamespace(kept=kept), cards) == [(3, "ant"), (0, "cat"), (1, "dog")]


def test_definitions_lead_to_their_page_from_a_folder_in_the_checkout(tmp_path, monkeypatch):
    monkeypatch.setattr(page, "CHECKOUT", tmp_path / "clone")
    inside, outside = tmp_path / "clone" / "runs" / "a", tmp_path / "elsewhere"
    write_run(inside, pictures=0)
    write_run(outside, pictures=0)
    assert page.metrics_page(inside) == ""  # An installed package brings no documents.
    (tmp_path / "clone" / "docs").mkdir()
    (tmp_path / "clone" / "docs" / "metrics.md").write_text("")
    assert page.metrics_page(outside) == page.metrics_page("gs://bucket/run") == ""
    html = report.write_report(inside)[0].read_text()
    assert '<a href="../../docs/metrics.md">docs/metrics.md</a>' in html
    assert "href=" not in re.search(r"<p>Formulas.*?</p>", report.write_report(outside)[0].read_text()).group()


def test_failures_stand_first():
    told = {"m": (np.asarray([0.9, 0.1]), np.asarray([1, 0]))}
    bad = {"m": (np.asarray([0.2, 0.8]), np.asarray([0, 1]))}
    label = np.asarray([1, 0])
    rows = {p: examples.row_of(label, bad if p in (5, 3) else told, {"mask": 0.3 + p / 10}) for p in range(7)}
    picture = examples.keep(np.zeros((4, 4, 3)), np.zeros((4, 4), np.uint8), np.zeros(1, int), np.zeros((1, 1, 4, 4)))
    found = examples.Examples(["cat", "dog"], ["mask"], "mask", rows, dict.fromkeys([1, 2, 3, 5, 0], picture))
    kinds = gallery.ordered(found)
    assert kinds == [(3, ["wrong"]), (5, ["wrong"]), (0, ["worst"]), (1, ["even"]), (2, ["even"])]
    summary = findings.failure_findings(found)
    assert summary["wrong"] == 2 and summary["confusions"] == [("cat", "dog", 2)]
    assert summary["below_half"] == 2 and summary["measured"] == 7 and sum(summary["histogram"]) == 7
    json.dumps(summary)
