"""The tables of docs/results.md say what docs/results.json holds, to the last digit that they show."""

import pathlib
import re
import statistics

import pytest

from selfexplain_jax.config import load_config
from selfexplain_jax.report.reproduce_comparisons import read_comparisons
from selfexplain_jax.report.stored import allowance, read_stored

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "results.md").read_text()
STORED = read_stored()
HOW = "python -m selfexplain_jax.report.reproduce store (--help) puts a run into docs/results.json"

# Columns, and what cells say in words, of numbers that are stored. What is not here is prose.
COLUMNS = {
    "steps": "steps",
    "train time": "minutes",
    "accuracy": "accuracy",
    "object accuracy": "object_accuracy",
    "background accuracy": "background_accuracy",
    "IoU": "iou",
    "mean IoU": "miou",
    "refined": "miou_refined",
    "continuous IoU": "continuous_iou",
    "mAP": "mean_average_precision",
    "mask area": "mask_area",
    "swap excess": "swap_owner_gap",
}
WORDS = {
    "exact match": "accuracy",
    "per class": "mean_iou_per_class",
    "mean IoU": "miou",
    "owner rate": "swap_owner_rate",
    "swap owner rate": "swap_owner_rate",
    "background accuracy": "background_accuracy",
    "pointing game": "pointing_game",
    "mask-only gap": "mask_only_gap",
    "evaluator": "evaluator_accuracy",
    "mAP": "mean_average_precision",
    "IoU of all objects": "iou",
    "accuracy on the true objects": "object_accuracy_ground_truth",
}
NUMBER = r"[+-]?\d*\.?\d+"


def table(title, page=PAGE):
    """The rows of the table below a heading: {column: cell} each, without the stars of bold."""
    section = page.split(f"## {title}\n", 1)[1].split("\n## ", 1)[0]
    lines = [line for line in section.split("\n### ", 1)[0].splitlines() if line.startswith("|")]
    cells = [[cell.strip().replace("**", "") for cell in line.strip("|").split("|")] for line in lines]
    return [dict(zip(cells[0], row, strict=True)) for row in cells[2:]]


def values(row, metric):
    if metric == "steps":
        return [row.steps]
    return [run.minutes if metric == "minutes" else run.metrics[metric] for run in row.runs]


def agrees(shown, value):
    """Whether a number as it is written is that value, rounded to the digits that it has."""
    digits = len(shown.partition(".")[2])
    return abs(float(shown) - value) <= 0.5 * 10**-digits + 1e-9


def claims(column, cell):
    """Yields (metric, number as written, or the two ends of a range) that a cell claims."""
    cell = re.sub(r"\[.*?\]", "", cell.replace(",", "") if column == "steps" else cell).strip()
    if cell == "-":
        return
    if column in COLUMNS:
        label, first, rest = re.match(rf"([A-Za-z ]*?)\s*({NUMBER})(.*)", cell).groups()
        metric = WORDS[label] if label else COLUMNS[column]
        if metric == "minutes":
            yield metric, re.findall(NUMBER, cell)
            return
        yield metric, first
        if ends := re.match(rf"\s*\(({NUMBER}) to ({NUMBER})\)", rest):
            yield metric, ends.groups()
    elif column == "swap owner rate, masks / truth":
        first, second = cell.split(" / ")
        yield "swap_owner_rate", first
        yield "swap_owner_rate_ground_truth", second
    elif column == "other":
        for part in re.split(r"[,:;] ", cell):
            if (found := re.match(rf"([A-Za-z -]+?) ({NUMBER})(?:$|[ (])(.*)", part)) and found[1] in WORDS:
                yield WORDS[found[1]], found[2]
                if ends := re.match(rf"\(?({NUMBER}) to ({NUMBER})\)", found[3]):
                    yield WORDS[found[1]], ends.groups()


def check(stored, cells):
    """Holds a row of a table against the stored one; returns how many numbers were looked at."""
    count = 0
    for column, cell in cells.items():
        for metric, shown in claims(column, cell):
            measured = values(stored, metric)
            if isinstance(shown, list):
                pairs = list(zip(shown, measured, strict=True))
            elif isinstance(shown, tuple):
                pairs = [(shown[0], min(measured)), (shown[1], max(measured))]
            else:
                pairs = [(shown, statistics.fmean(measured))]
            for text, value in pairs:
                count += 1
                assert agrees(text, value), f"{stored.name}, {column}: {text} is written, {value} is stored. {HOW}"
    return count


@pytest.mark.parametrize(
    ("title", "name", "least"), [("The main table", "main", 60), ("Photographs", "photographs", 25)]
)
def test_table_of_configs(title, name, least):
    seen, count = [], 0
    for cells in table(title):
        spec, commit = re.match(r"`(\S+)`.*?(?:\(|as of )?(?:([0-9a-f]{7})\)?)?$", cells["config"]).groups()
        commits = {commit or re.search(r"Commit (\w{7}) where none is named", PAGE).group(1)}
        found = [row for row in STORED.values() if row.config == spec and {run.commit for run in row.runs} == commits]
        assert len(found) == 1, f"{spec} at {commits} is not in docs/results.json. {HOW}"
        seen.append(found[0].name)
        count += check(found[0], cells)
    assert seen == [row.name for row in STORED.values() if row.table == name]
    assert count >= least, "the reader of the table has missed most of it"


def test_table_of_the_readme():
    rows = table("Results", (ROOT / "README.md").read_text())
    for cells in rows:
        spec = "configs/" + cells["`configs/`"].split("`")[1]
        (stored,) = (row for row in STORED.values() if row.config == spec and not row.superseded)
        iou, _, refined = cells["IoU of masks"].replace("no true masks", "-").partition(", refined ")
        accuracy = cells["accuracy"].partition(" (")[0]
        shown = {"accuracy": accuracy, "IoU": iou, "refined": refined or "-", "swap excess": cells["swap excess"]}
        assert check(stored, shown) >= 1
        minutes = [float(number) for number in re.findall(NUMBER, cells["minutes"])]
        measured = values(stored, "minutes")
        # One figure is the mean, two are the ends, in whole minutes where none is shown.
        expected = [statistics.fmean(measured)] if len(minutes) == 1 else [min(measured), max(measured)]
        assert [round(value, 1) for value in expected] == minutes or list(map(round, expected)) == minutes, spec
    assert len(rows) == 7


COMPARED = {
    "continuous IoU": "continuous_iou",
    "IoU at .5": "iou",
    "F1 at .5": "f1",
    "PxAP": "pixel_average_precision",
    "energy pointing": "energy_pointing_game",
    "pointing": "pointing_game",
    "pointing, no tolerance": "pointing_game_strict",
    "boxes": "pointing_game_boxes",
    "photos": "pointing_game_photo",
    "MaxBoxAccV2": "max_box_accuracy",
    "swap excess": "swap_owner_gap",
    "insertion": "insertion",
    "deletion": "deletion",
    "swap owner rate": "swap_owner_rate",
    "average drop": "average_drop",
    "increase": "increase",
    "ROAD": "road",
    "object probability": "object_probability",
    "background probability": "background_probability",
    "class mIoU": "miou",
    "IoU per class": "mean_iou_per_class",
    "pixel AUC": "pixel_auc",
    "own class": "class_specific_own",
    "other classes": "class_specific_other",
}


@pytest.mark.parametrize(
    ("title", "name"),
    [
        ("Methods side by side", "methods_explainer"),
        ("Extremal Perturbations on the synthetic set", "methods_extremal"),
        ("Several objects", "methods_multi"),
        ("All eight classes of several objects", "methods_classes"),
        ("Backgrounds that go with the label", "methods_confounded"),
        ("A vision transformer's attention", "methods_vit"),
        ("The same on digits", "methods_mnist"),
        ("The same on CIFAR-10", "methods_cifar10"),
        ("The same on three classes of COCO", "methods_coco"),
        ("The same on six animals", "methods_animals"),
    ],
)
def test_tables_of_methods(title, name):
    stored = read_comparisons()[name]
    rows = table(title)
    assert {cells["method"].strip("`") for cells in rows} == set(stored.methods)
    assert f"commit {stored.commit}" in PAGE or f"Commit {stored.commit}" in PAGE
    for cells in rows:
        numbers = stored.methods[cells["method"].strip("`")]
        shown = {column: metric for column, metric in COMPARED.items() if column in cells}
        assert len(shown) >= 8
        for column, metric in shown.items():
            assert agrees(cells[column], numbers[metric]), (cells["method"], column, numbers[metric])


def test_table_of_sanity_checks():
    stored = read_comparisons()["methods_synthetic"]
    rows = table("Sanity checks")
    assert f"commit {stored.commit}" in PAGE.split("### Sanity checks\n", 1)[1].split("\n|", 1)[0]
    assert {cells["method"].strip("`") for cells in rows} == set(stored.sanity)
    for cells in rows:
        checks = stored.sanity[cells["method"].strip("`")]
        (first,) = (check for check in checks if check.startswith("redrawn down to "))
        columns = {"top layers": first, "all layers": "all redrawn", "random labels": "random labels"}
        shown = {column: checks[check] for column, check in columns.items() if check in checks}
        assert {column for column in columns if cells[column] != "-"} == set(shown), cells["method"]
        for column, numbers in shown.items():
            similarity, correlation = cells[column].split(" / ")
            assert agrees(similarity, numbers["ssim"]), (cells["method"], column, numbers)
            assert agrees(correlation, numbers["rank_correlation"]), (cells["method"], column, numbers)
        assert int(cells["defined for"]) == min(numbers["defined"] for numbers in shown.values()), cells["method"]


def test_ablation():
    seen, count, section = [], 0, PAGE.split("## Ablation\n", 1)[1]
    for cells in table("Ablation"):
        name = cells["NAME"].strip("`")
        assert name in STORED, f"{name} is not in docs/results.json. {HOW}"
        seen.append(name)
        count += check(STORED[name], cells)
        # A row of another commit than the table's names it.
        commit = re.search(r"commit (\w{7})", cells["left out or exchanged"] + section).group(1)
        assert {run.commit for run in STORED[name].runs} == {commit}, name
    assert seen == [row.name for row in STORED.values() if row.table == "ablation"]
    assert count == 7 * len(seen)


def test_allowances_that_the_page_names():
    claim = r"allows (\S+) of the accuracy of\s`texture`, (\S+) of that of `shape`, and (\S+) of any IoU"
    found = re.search(claim, PAGE)
    asked = [("texture", "accuracy"), ("shape", "accuracy"), ("texture", "iou"), ("no_edges", "iou")]
    for shown, (name, metric) in zip([*found.groups(), found[3]], asked, strict=True):
        allowed, borrowed = allowance(tuple(STORED.values()), STORED[name], metric, 1)
        assert borrowed and agrees(shown, allowed)


@pytest.mark.parametrize("row", STORED.values(), ids=lambda row: row.name)
def test_stored_rows_are_those_of_configs_that_are_there(row):
    config = load_config(str(ROOT / row.config))
    assert row.table in ("main", "ablation", "photographs", "other")
    if not row.superseded:
        assert (config.train.steps, config.data.eval_split) == (row.steps, row.split)


def test_the_reader_of_cells():
    assert list(claims("IoU", ".866 (.863 to .869) [.80]")) == [("iou", ".866"), ("iou", (".863", ".869"))]
    assert list(claims("accuracy", "exact match .856 [.80]")) == [("accuracy", ".856")]
    assert list(claims("train time", "8.2, 8.3 min [12]")) == [("minutes", ["8.2", "8.3"])]
    assert list(claims("steps", "2,400")) == [("steps", "2400")]
    assert list(claims("swap owner rate, masks / truth", ".068 / .077")) == [
        ("swap_owner_rate", ".068"),
        ("swap_owner_rate_ground_truth", ".077"),
    ]
    other = "plain classifier .14; background accuracy .113, evaluator .792 (.727 to .834), pointing game 1.0"
    assert list(claims("other", other)) == [
        ("background_accuracy", ".113"),
        ("evaluator_accuracy", ".792"),
        ("evaluator_accuracy", (".727", ".834")),
        ("pointing_game", "1.0"),
    ]
    assert agrees(".8", 0.849) and not agrees(".80", 0.849) and agrees("-.010", -0.0105)
