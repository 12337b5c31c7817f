"""Stored rows and rows that were run again: spreads worked out by hand, what differs and what is refused."""

import json
import math

import pytest

from selfexplain_jax.config import load_config
from selfexplain_jax.report import reproduce, run_again, stored
from selfexplain_jax.report.stored import StoredRow, StoredRun, allowance, seed_deviation
from selfexplain_jax.training.config_json import jsonable
from selfexplain_jax.types import UserError

CONFIG = "configs/synthetic.py:texture"


def row(name="a", *values, metric="iou", config=CONFIG, images=100, superseded=False):
    runs = tuple(StoredRun(seed, "abcdef0", 1.0, {metric: value}) for seed, value in enumerate(values))
    return StoredRow(name, "main", config, superseded, "two cores", 10, "test", images, runs)


def results(seed=0, commit="abcdef0123", dirty=False, steps=10, config=CONFIG, **metrics):
    """The content of a results.json of that config."""
    loaded = load_config(str(stored.ROOT / config))
    loaded.seed = seed
    found = {"metrics": metrics, "counts": {"examples": 100}, "seed": seed, "commit": commit, "dirty": dirty}
    return found | {"config": jsonable(loaded), "steps": steps, "train_seconds": 90.0}


def write_measured(runs, name, seed, **entries):
    folder = runs / f"{name}_seed{seed}"
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps(results(seed, **entries)))
    return folder


@pytest.fixture
def files(tmp_path):
    """(file of stored results, folder of runs): row a of three seeds, b of one and old, which is superseded."""
    path = tmp_path / "results.json"
    rows = [row("a", 0.5, 0.6, 0.7), row("b", 0.8), row("old", 0.1, superseded=True)]
    stored.write_stored({one.name: one for one in rows}, path)
    return path, tmp_path / "runs"


def test_spread_over_seeds_by_hand():
    three, five = row("a", 0.5, 0.6, 0.7), row("b", 0.1, 0.1, 0.1, 0.1, 0.3)
    assert seed_deviation([three], "iou") == (pytest.approx(0.1), 2)
    # Squares .02 and .032 over 2 + 4 degrees of freedom.
    assert seed_deviation([three, five, row("c", 0.9)], "iou") == (pytest.approx(math.sqrt(0.052 / 6)), 6)
    assert seed_deviation([row("c", 0.9)], "iou") is None and seed_deviation([three], "accuracy") is None


def test_allowance_is_students_interval_of_a_difference_of_means():
    own = row("a", 0.1, 0.1, 0.1, 0.1, 0.3)
    deviation = math.sqrt(0.032 / 4)
    assert allowance([own], own, "iou", 1) == (pytest.approx(4.604 * deviation * math.sqrt(1 / 5 + 1)), False)
    assert allowance([own], own, "iou", 3) == (pytest.approx(4.604 * deviation * math.sqrt(1 / 5 + 1 / 3)), False)


def test_a_row_without_seeds_of_its_own_borrows_the_spread():
    lender, single = row("a", 0.1, 0.1, 0.1, 0.1, 0.3), row("b", 0.5, config="other.py")
    expected = 4.604 * math.sqrt(0.032 / 4) * math.sqrt(2)
    assert allowance([lender, single], single, "iou", 1) == (pytest.approx(expected), True)
    # Two degrees of freedom of its own are too few to stand alone: all are pooled.
    three = row("c", 0.5, 0.6, 0.7, config="third.py")
    allowed, borrowed = allowance([lender, three], three, "iou", 1)
    assert borrowed and allowed == pytest.approx(3.707 * math.sqrt(0.052 / 6) * math.sqrt(1 / 3 + 1))
    assert allowance([single], single, "iou", 1) is None


def test_shares_are_allowed_the_draw_of_the_images_and_scale_with_it():
    lender = row("a", 0.5, 0.5, 0.5, 0.5, metric="accuracy", config="other.py")
    single = row("b", 0.9, metric="accuracy")
    share = 92 / 104
    expected = 5.841 * math.sqrt(share * (1 - share) / 100) * math.sqrt(2)
    assert allowance([lender, single], single, "accuracy", 1) == (pytest.approx(expected), True)
    # None wrong of a hundred is not never wrong.
    assert allowance([lender], row("c", 1.0, metric="accuracy"), "accuracy", 1)[0] > 0.05
    # A wide spread at one half is a narrower one at nine tenths.
    wide = row("a", 0.2, 0.4, 0.6, 0.8, metric="accuracy", config="other.py", images=10_000)
    at_half = allowance([wide], wide, "accuracy", 1)[0] / math.sqrt(1 / 4 + 1)
    at_nine = allowance([wide, single], single, "accuracy", 1)[0] / math.sqrt(2)
    assert at_nine / at_half == pytest.approx(math.sqrt(share * (1 - share)) / 0.5, rel=1e-3)


def test_what_lies_within_the_spread_and_what_does_not(files, capsys):
    path, runs = files
    write_measured(runs, "a", 0, iou=0.62)
    write_measured(runs, "a", 5, iou=0.66)
    assert reproduce.main(["--stored", str(path), "compare", str(runs)]) == 0
    text = capsys.readouterr().out
    # 9.925 x .1 x sqrt(1/3 + 1/2), from seeds of the same config.
    assert "| a   | iou    | 0.600 (mean of 3) | 0.640 (mean of 2) | +0.040     | 0.906" in text
    assert "None differs by more than the spread." in text and "Not measured: b." in text
    assert "Measured at commit abcdef0." in text and text.strip() in (runs / "reproduced.md").read_text()
    write_measured(runs, "b", 0, iou=0.8 - 1.41)
    assert reproduce.main(["--stored", str(path), "compare", str(runs), "b"]) == 1
    text = capsys.readouterr().out
    assert "| NO " in text and "1 differ by more than the spread: b: iou." in text


def test_unknown_spread_is_said_and_is_no_difference(tmp_path):
    one = row("b", 0.8)
    (made,) = reproduce.compare({"b": one}, one, [results(iou=0.1)])
    assert made.allowed is None and not made.differs
    assert "unknown" in run_again.comparison_table([made])


def test_finished_is_what_has_results_of_the_rows_config(files, capsys):
    path, runs = files
    ask = ["--stored", str(path), "finished", str(runs / "a_seed1"), "a", "1"]
    assert reproduce.main(ask) == run_again.NOT_FINISHED
    file = write_measured(runs, "a", 1, iou=0.5) / "results.json"
    assert reproduce.main(ask) == 0
    # Where the data lie and how often it logs makes no number another one.
    found = json.loads(file.read_text())
    found["config"]["data"]["data_dir"] = "elsewhere"
    found["config"]["train"]["log_every"] = 7
    file.write_text(json.dumps(found))
    assert reproduce.main(ask) == 0
    found["config"]["train"]["steps"] = 9
    file.write_text(json.dumps(found))
    assert reproduce.main(ask) == 2
    message = capsys.readouterr().err
    assert "train.steps: 9 there, 2400 now" in message and f"Remove {file.parent}" in message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["compare", "{runs}", "nosuch"], "Row 'nosuch' is not there. Choose among: a, b."),
        (["compare", "{runs}", "old"], "Row 'old' is of an older recipe"),
        (["compare", "{runs}"], "Nothing of that was measured in"),
        (["--stored", "{runs}/none.json", "compare", "{runs}"], "There are no stored results in"),
    ],
)
def test_bad_input_is_told_in_one_line(files, capsys, arguments, message):
    path, runs = files
    arguments = [argument.format(runs=runs) for argument in arguments]
    assert reproduce.main(["--stored", str(path), *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1


def test_a_run_that_lacks_a_stored_number_is_refused():
    one = row("b", 0.8)
    with pytest.raises(UserError, match="has no iou, which is stored"):
        reproduce.compare({"b": one}, one, [results(accuracy=0.5)])


def test_storing_a_row_and_reading_it_again(files, tmp_path):
    path, runs = files
    folders = [str(write_measured(runs, "c", seed, iou=0.5 + seed, accuracy=1.0, loss=3.0)) for seed in (0, 1)]
    options = ["--table=main", f"--config={CONFIG}", "--hardware=two cores"]
    assert reproduce.main(["--stored", str(path), "store", "c", *folders, *options]) == 0
    read = stored.read_stored(path)
    assert list(read) == ["a", "b", "old", "c"] and read["a"] == row("a", 0.5, 0.6, 0.7)
    first, second = read["c"].runs
    assert first == StoredRun(0, "abcdef0", 1.5, {"accuracy": 1.0, "iou": 0.5}) and second.metrics["iou"] == 1.5
    assert (read["c"].steps, read["c"].split, read["c"].images) == (10, "test", 100)
    assert reproduce.main(["--stored", str(path), "store", "d", str(tmp_path), *options]) == 2


def test_what_nobody_could_repeat_is_not_stored():
    for changes in ({"dirty": True}, {"commit": None}):
        with pytest.raises(UserError, match="not from a clean commit"):
            stored.row_of_runs("a", "main", CONFIG, "two cores", [results(iou=1.0, **changes)])
    with pytest.raises(UserError, match="differ in more than the seed"):
        stored.row_of_runs("a", "main", CONFIG, "two cores", [results(iou=1.0), results(iou=1.0, steps=11)])
    with pytest.raises(UserError, match="needs at least one"):
        stored.row_of_runs("a", "main", CONFIG, "two cores", [])


@pytest.mark.parametrize("change", [{"seed": 3}, {"runs": []}, {"runs": [{"seed": 0}]}])
def test_a_damaged_file_of_stored_results_is_told(files, change):
    path, _ = files
    content = json.loads(path.read_text())
    content["rows"][1] |= change
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="Row 2 of"):
        stored.read_stored(path)
