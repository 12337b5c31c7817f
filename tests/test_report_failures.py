"""What failed stands in the cells of every table, with its reason: worked out for one comparison, form by form."""

import csv
import io
import json

import pytest
from report_runs import write_comparison

from selfexplain_jax import pictures, report
from selfexplain_jax.report import page
from selfexplain_jax.report.failures import reasons
from selfexplain_jax.report.spread import comparisons_as_one


def row(failures=(), **more):
    found = {"model": "m", "failures": [{"image": image, "message": text} for image, text in failures]}
    return found | {"metric_failures": {}, "not_finite": [], "flat_maps": 0} | more


FAILURES = [(4, "no | masks"), (7, "b"), (9, "c")]
RESULTS = {
    "images": 7,
    "left_out": [4, 7, 9],
    "numbers_of": {"faithful": ["deletion", "insertion"]},
    "methods": {
        "whole": row(metrics={"iou": 0.5, "deletion": 0.25, "insertion": 0.5, "f1": None}, seconds_per_image=2.0),
        "some": row(FAILURES, metrics={"iou": 0.75, "deletion": 0.5, "insertion": 0.5}, seconds_per_image=1.0),
        "bad": row(
            metrics={"iou": None, "f1": None, "curve": None},
            not_finite=["iou", "f1"],
            metric_failures={"faithful": "RuntimeError: memory", "road": "UserError: none"},
            flat_maps=6,
            seconds_per_image=4.0,
        ),
        "none": row(FAILURES),
    },
}
NUMBERS = ["iou", "deletion", "road"]


def test_markdown_says_in_every_cell_what_failed():
    assert report.comparison_markdown(RESULTS) == (
        "| method | model | iou | deletion | insertion | road | f1 | seconds_per_image | failed |\n"
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |\n"
        "| whole | m | 0.5 | **0.25** | **0.5** | - | - | 2 | 0 |\n"
        "| some | m | **0.75** (failed on 3) | 0.5 (failed on 3) | **0.5** (failed on 3) | - | - | **1** | 3 |\n"
        "| bad | m | not finite | failed | failed | failed | not finite | 4 | 0 |\n"
        "| none | m | failed on 3 | failed on 3 | failed on 3 | failed on 3 | failed on 3 | failed on 3 | 3 |\n"
        "\n7 images, the same for every method.\n"
        "Left out of all rows, since some method failed on them: 3 images (4, 7, 9).\n"
        "- `some` failed on 3 images, first on image 4 of the split: no | masks\n"
        "- `faithful` of `bad` has no number: RuntimeError: memory\n"
        "- `road` of `bad` has no number: UserError: none\n"
        "- `bad` has 6 maps of one value alone, which count like any other.\n"
        "- `none` failed on 3 images, first on image 4 of the split: no | masks\n"
        "- Not finite (NaN or infinity), and so left out: `iou` of `bad`, `f1` of `bad`.\n"
    )


def test_csv_has_bare_numbers_and_the_reasons():
    why = "failed on 3 images, first on image 4 of the split: no | masks"
    broken = "faithful has no number: RuntimeError: memory; road has no number: UserError: none; not finite: iou, f1"
    assert list(csv.reader(io.StringIO(report.comparison_csv(RESULTS, NUMBERS)))) == [
        ["method", "model", "iou", "deletion", "road", "seconds_per_image", "failed", "failure", "images"],
        ["whole", "m", "0.5", "0.25", "", "2.0", "0", "", "7"],
        ["some", "m", "0.75", "0.5", "", "1.0", "3", why, "7"],
        ["bad", "m", "not finite", "failed", "failed", "4.0", "0", broken, "7"],
        ["none", "m", "failed on 3", "failed on 3", "failed on 3", "failed on 3", "3", why, "7"],
    ]


def test_latex_has_the_cells_and_a_column_of_failures():
    assert report.comparison_latex(RESULTS, NUMBERS) == (
        "\\begin{tabular}{llrrrrr}\n\\toprule\n"
        "method & model & iou~$\\uparrow$ & deletion~$\\downarrow$ & road~$\\uparrow$ & "
        "seconds per image~$\\downarrow$ & failed \\\\\n\\midrule\n"
        "whole & m & $0.5$ & $\\mathbf{0.25}$ & -- & $2$ & $0$ \\\\\n"
        "some & m & $\\mathbf{0.75}$ & $0.5$ & -- & $\\mathbf{1}$ & $3$ \\\\\n"
        "bad & m & not finite & failed & failed & $4$ & $0$ \\\\\n"
        "none & m & failed on 3 & failed on 3 & failed on 3 & failed on 3 & $3$ \\\\\n"
        "\\bottomrule\n\\end{tabular}\n"
    )


def test_the_page_has_them_too(tmp_path):
    view = page.table_view("comparison", RESULTS)
    place = [column["name"] for column in view["columns"]].index("iou")
    said = {row["label"]: row["cells"][place]["said"] for row in view["rows"]}
    assert said == {"whole": None, "some": "failed on 3", "bad": "not finite", "none": "failed on 3"}
    assert view["flat"] == [("bad", 6)] and view["not_finite"] == [("bad", "iou"), ("bad", "f1")]
    folder = write_comparison(tmp_path / "c", pictures=0)
    stored = json.loads((folder / "comparison.json").read_text())
    (folder / "comparison.json").write_text(json.dumps(stored | RESULTS | {"warnings": ["1 maps & more."]}))
    text = report.write_report(folder)[0].read_text()
    assert 'data-value="0.75"><span class="unseen">best: </span>0.75<span aria-hidden="true">&nbsp;★</span> ' in text
    assert '<span class="tag bad">failed on 3</span></td>' in text
    assert 'data-value=""> <span class="tag bad">not finite</span></td>' in text
    assert "<strong>bad</strong> has 6 maps of one value alone, which count like any other." in text
    assert '<p class="note">1 maps &amp; more.</p>' in text
    assert "and so left out: <strong>iou</strong> of bad, <strong>f1</strong> of bad.</p>" in text


@pytest.mark.parametrize("write", [report.comparison_markdown, report.comparison_csv, report.comparison_latex])
def test_where_nothing_failed_nothing_is_said(write):
    whole = {"images": 7, "methods": {"whole": RESULTS["methods"]["whole"]}}
    text = write(whole)
    # But in the heading of the column that counts failures, which LaTeX leaves out.
    assert text.count("fail") == (write is not report.comparison_latex) and "finite" not in text
    assert reasons(whole["methods"]["whole"]) == ""


def test_comparisons_that_become_one_keep_what_failed():
    other = json.loads(json.dumps(RESULTS))
    other["methods"]["bad"] |= {"metrics": {"iou": 0.5}, "not_finite": ["f1", "curve"], "metric_failures": {}}
    other["numbers_of"] = {"road": ["road"]}
    one = comparisons_as_one([RESULTS, other])
    assert one["numbers_of"] == {"faithful": ["deletion", "insertion"], "road": ["road"]}
    assert one["methods"]["bad"]["not_finite"] == ["iou", "f1", "curve"]
    text = report.comparison_markdown(one, NUMBERS)
    # The number of the comparison that has one, and the note of the one that has none.
    assert "| bad | m | 0.5 | failed | failed |" in text and "`iou` of `bad`" in text
    assert "| none | m | failed on 6 |" in text


def test_a_cell_of_a_figure_can_say_why_it_is_empty(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(pictures, "save_figure", lambda figure, path: figures.append(figure))
    pictures.save_grid(tmp_path / "a.png", {"a": ["failed", None]})
    said, empty = figures[0].axes
    assert [text.get_text() for text in said.texts] == ["failed"] and said.get_frame_on()
    assert not empty.texts and not empty.get_frame_on()
