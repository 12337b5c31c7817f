"""The tables of benchmarks in docs/results.md and docs/scaling.md say what docs/benchmarks.json holds."""

import pathlib
import re

import pytest
from test_results import agrees

from selfexplain_jax.report.reproduce_benchmarks import allowance, figures_of, read_benchmarks
from selfexplain_jax.report.run_again import config_of

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGES = {name: (ROOT / "docs" / f"{name}.md").read_text() for name in ("results", "scaling")}
STORED = read_benchmarks()


def figures(*names):
    """The figures of these benchmarks, in one dictionary."""
    return {name: value for benchmark in names for name, value in STORED[benchmark].figures.items()}


def section(title, page="results"):
    """The text below a heading, up to the next one."""
    return re.split(r"\n##+ ", re.split(rf"\n##+ {re.escape(title)}\n", PAGES[page])[1])[0]


def tables(title, page="results"):
    """The tables below a heading: lists of cells for each line but the header, without the stars of bold."""
    found = re.findall(r"(?:^\|.*\n)+", section(title, page) + "\n", re.MULTILINE)
    lines = [[line.replace("**", "").strip("|").split("|") for line in text.splitlines()[2:]] for text in found]
    return [[[cell.strip() for cell in line] for line in table] for table in lines]


def check(shown, value):
    """Holds a number as the page has it, "1,007" or ".36", against a stored one."""
    number = re.search(r"[\d.,]*\d", shown).group().replace(",", "")
    assert agrees(number, value), f"{shown} is written, {value} is stored"


def test_speed_of_methods_and_metrics():
    named = {
        "Grad-CAM": "grad_cam",
        "Grad-CAM++": "grad_cam_plus_plus",
        "masks of a Self-Explainer on this encoder, one pass": "self_explainer",
        "Score-CAM": "score_cam",
        "RISE": "rise",
        "Extremal Perturbations": "extremal_perturbation",
        "deletion and insertion": "deletion_insertion",
        "ROAD": "road",
    }
    stored = figures("class_activation", "score_cam", "rise", "extremal_perturbation", "faithfulness")
    (rows,) = tables("Attribution and metrics: speed")
    assert [row[0] for row in rows] == list(named)
    for title, ours, theirs, ratio, _, operations, done in rows:
        row = named[title]
        check(ours, stored[f"{row} ours s"])
        check(theirs, stored[f"{row} peer s"])
        check(ratio, stored[f"{row} ratio"])
        # Its operations were counted at another commit, and are not stored.
        if row != "extremal_perturbation":
            check(operations, stored[f"{row} by XLA GFLOP"])
        if row == "self_explainer":
            check(done.partition("; ")[2], stored["self_explainer over own grad_cam ratio"])
    assert {STORED[name].commit for name in ("class_activation", "score_cam", "rise", "faithfulness")} == {
        re.search(r"commit (\w{7}):", section("Attribution and metrics: speed")).group(1)
    }


def test_memory_of_methods():
    stored = figures("memory")
    (rows,) = tables("Memory")
    names = [
        [f"rise {masks} masks MB" for masks in (32, 256, 2048)],
        [f"rise {chunk} at a time MB" for chunk in (8, 16, 32)],
        *([f"score_cam stride{stride} MB" for stride in strides] for strides in ((32, 16, 8), (4, 2))),
        ["score_cam features MB"],
    ]
    for row, expected in zip(rows, names, strict=True):
        shown = row[-1].split("; ")
        # One figure stands for all of them where all are the same, to a megabyte.
        for text, name in zip(shown, expected, strict=True):
            check(text, stored[name])
    assert f"commit {STORED['memory'].commit}" in section("Memory")


def test_less_work_for_the_same_map():
    stored = figures("less_work")
    rise, score_cam = tables("Less work for the same map")
    for row, sampling in zip(rise, ("independent", "antithetic", "stratified"), strict=True):
        assert row[0].startswith(sampling)
        for shown, masks in zip(row[1:5], (250, 500, 1000, 2000), strict=True):
            check(shown, stored[f"{sampling} {masks} agreement"])
        if sampling != "independent":
            check(row[5], 2000 * stored[f"{sampling} instead of 2000 share"])
    for shown, clusters in zip(score_cam[0][1:-1], (20, 40, 80, 160, 320), strict=True):
        check(shown, stored[f"score_cam {clusters} agreement"])
    assert f"commit {STORED['less_work'].commit}" in section("Less work for the same map")


def test_steps_beside_the_first_implementation():
    (rows,) = tables("Beside the first implementation")
    sides = ("ours", "image_pass", "predecessor", "predecessor_frozen")
    for first, name in ((1, "step_deeplab"), (4, "step_unet")):
        stored = figures(name)
        for row, side in zip(rows, sides, strict=False):
            seconds, operations, rate = row[first : first + 3]
            check(seconds, stored[f"{side} s"])
            check(operations, stored[f"{side} GFLOP"])
            check(rate, stored[f"{side} GFLOP"] / stored[f"{side} s"])
        check(rows[-1][first], stored["predecessor ratio"])
        check(rows[-1][first + 1], stored["predecessor GFLOP"] / stored["ours GFLOP"])
        assert f"commit {STORED[name].commit}" in section("Beside the first implementation")


def test_time_to_the_same_masks():
    stored = figures("time_to_masks")
    ((ours, theirs),) = tables("Time to the same masks")
    check(ours[1], stored["ours s"])
    check(theirs[1], stored["predecessor s"])
    check(re.search(r"\*\*(\S+) times as long", section("Time to the same masks")).group(1), stored["predecessor race"])


def test_backbone_beside_pytorch():
    stored = figures("backbone")
    for row, task in zip(tables("Backbones")[0], ("forward", "train_step"), strict=True):
        for cell, name in zip(row[1:], ("ours s", "peer s", "ratio"), strict=True):
            # Two calls, of which the first is stored.
            check(cell.partition(", ")[0], stored[f"{task} {name}"])


def test_steps_on_two_cores():
    (rows,) = tables("On two cores", "scaling")
    for row, (name, what) in zip(rows, {"train_step": "train", "explain_step": "explain"}.items(), strict=True):
        stored = figures(name)
        check(row[1].partition(" (")[0], stored[f"{what} images/s"])
        check(row[3], stored["GFLOP/s"])
        check(row[4], 100 * stored["matrix product share"])
        check(row[5], stored["step GFLOP"])
        check(row[6].partition(" ")[0], stored["memory MB"])
        check(row[7], stored["compile s"])
        assert f"commit {STORED[name].commit}" in section("On two cores", "scaling")


def test_memory_of_a_compiled_step():
    rows = {row[0]: row[1:] for row in tables("Less memory", "scaling")[1]}
    few, many, rounded = (
        figures(f"compile_{name}") for name in ("20_classes", "1000_classes", "1000_classes_bfloat16")
    )
    at_20, at_1000, ratio, _ = rows["125 at a time"]
    check(at_20, few["temporary MB"] / 1000)
    check(at_1000.partition("; ")[0], many["temporary MB"] / 1000)
    check(at_1000.partition("; ")[2], many["by XLA GFLOP"])
    check(ratio, many["temporary MB"] / few["temporary MB"])
    check(rows["and bfloat16"][1], rounded["temporary MB"] / 1000)
    check(rows["and bfloat16"][2].partition(" ")[0], rounded["temporary MB"] / many["temporary MB"])


@pytest.mark.parametrize("stored", STORED.values(), ids=lambda stored: stored.name)
def test_stored_benchmarks_are_those_of_configs_that_are_there(stored):
    assert config_of(stored.config, stored.overrides).benchmark.repetitions >= 1
    if stored.name != "pipeline":
        judged = [name for name, value in stored.figures.items() if allowance(name, value, value) is not None]
        assert judged, "nothing of it would ever be said to differ"
    assert re.fullmatch(r"[0-9a-f]{7}", stored.commit) and stored.hardware


def test_allowances_that_the_page_names():
    words = " ".join(section("Running the rows again").split())
    for unit, shown in (("ratio", "1.3"), ("race", "1.6"), ("MB", "5 %"), ("agreement", ".01")):
        assert shown in words
        factor = 1.05 if "%" in shown else float(shown)
        expected = factor if unit == "agreement" else factor - 1
        assert allowance(f"a {unit}", 1.0, 2.0) == pytest.approx(expected)


def test_the_reader_of_figures_gives_seven_digits():
    sides = {"ours": {"seconds": 1 / 3}, "predecessor": {"seconds": 1.0}}
    assert figures_of({"what": "time_to_masks", "sides": sides})["ours s"] == 0.3333333
