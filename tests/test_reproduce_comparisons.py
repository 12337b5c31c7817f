"""Comparisons that were run again: what is stored of them, what must come out the same, what is refused."""

import json

import pytest

from selfexplain_jax.report import reproduce_comparisons as again
from selfexplain_jax.training.config_json import jsonable
from selfexplain_jax.types import UserError

CONFIG = "configs/compare_synthetic.py"
OVERRIDES = ("evaluation.max_examples=20",)
MODELS = "self_explainer=synthetic,classifier=classifier"


def similar(ssim, rank_correlation, defined):
    return {"ssim": ssim, "rank_correlation": rank_correlation, "hog_correlation": 0.7, "defined": defined}


def write(folder, *, overrides=OVERRIDES, dirty=False, iou=0.4, centre=0.3, untouched=1.0):
    """The comparison.json of a method and a control."""
    rows = {"grad_cam": {"metrics": {"iou": iou, "deletion": 0.1, "iou_curve": [1.0], "road": None}}}
    rows["centre"] = {"metrics": {"iou": centre, "deletion": 0.2}}
    found = {"methods": rows, "controls": ["centre"], "asks_the_model": ["deletion"], "images": 20, "dirty": dirty}
    found |= {"commit": "abcdef0123", "config": jsonable(again.config_of(CONFIG, overrides))}
    cascading = {"head": similar(0.25, None, 0), "middle": similar(9.0, 9.0, 9), "stem": similar(iou, -0.5, 3)}
    independent = {"head": similar(0.25, 0.5, 4), "middle": similar(0.5, 0.0, 3), "stem": similar(0.75, 0.25, 5)}
    checks = {"cascading": cascading, "independent": independent, "random_labels": similar(0.125, 0.1, 6)}
    control = {"cascading": {"stem": similar(untouched, 1.0, 6)}}
    found["sanity_checks"] = {
        "grad_cam": {"images": 6, "checks": checks, "failures": {}},
        "centre": {"images": 6, "checks": control, "failures": {}},
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "comparison.json").write_text(json.dumps(found))
    return folder


@pytest.fixture
def stored(tmp_path):
    path = tmp_path / "comparisons.json"
    folder = write(tmp_path / "first")
    arguments = ["store", "tiny", str(folder), *OVERRIDES, f"--config={CONFIG}", f"--models={MODELS}"]
    assert again.main(["--stored", str(path), *arguments]) == 0
    return path


def test_numbers_are_stored_and_nothing_else(stored):
    (tiny,) = again.read_comparisons(stored).values()
    assert tiny.overrides == OVERRIDES and tiny.models == dict(pair.split("=") for pair in MODELS.split(","))
    assert (tiny.commit, tiny.images) == ("abcdef0", 20)
    assert tiny.methods == {"grad_cam": {"iou": 0.4, "deletion": 0.1}, "centre": {"iou": 0.3, "deletion": 0.2}}
    assert set(tiny.sanity) == {"grad_cam", "centre"}
    # The first and the last run of layers from the top; each run alone, averaged; and the model of random labels.
    assert tiny.sanity["grad_cam"] == {
        "redrawn down to head": {"ssim": 0.25, "hog_correlation": 0.7, "defined": 0},
        "all redrawn": similar(0.4, -0.5, 3),
        "one run redrawn, mean": similar(0.5, 0.25, 3),
        "random labels": similar(0.125, 0.1, 6),
    }
    before = stored.read_text()
    again.write_comparisons(again.read_comparisons(stored), stored)
    assert stored.read_text() == before and again.read_comparisons(stored.with_name("none.json")) == {}


def test_controls_must_come_out_the_same_and_trained_maps_within_the_draw_of_images(stored, tmp_path, capsys):
    runs = tmp_path / "runs"
    # Twenty images of mean .4: (20 x .4 + 2) / 24 = .41667, and 2.576 sqrt(2 x .41667 x .58333 / 20) = .4016.
    write(runs / "tiny", iou=0.79, centre=0.3 + 0.9 * again.SAME)
    assert again.main(["--stored", str(stored), "compare", str(runs)]) == 0
    text = capsys.readouterr().out
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "| tiny grad_cam | iou | 0.400 | 0.790 | +0.390 | 0.402 (borrowed) | yes |" in lines
    # What the classifier says of a control's map depends on the classifier: (20 x .2 + 2) / 24 = .25.
    assert "| tiny centre | deletion | 0.200 | 0.200 | +0.000 | 0.353 (borrowed) | yes |" in lines
    assert "| tiny grad_cam, all redrawn | ssim | 0.400 | 0.790 | +0.390 | unknown | - |" in lines
    assert "| tiny centre, all redrawn | ssim | 1.000 | 1.000 | +0.000 | 0.002 | yes |" in lines
    assert text.strip() in (runs / "reproduced_comparisons.md").read_text()
    write(runs / "tiny", centre=0.3 + 1.1 * again.SAME)
    assert again.main(["--stored", str(stored), "compare", str(runs), "tiny"]) == 1
    assert "tiny centre: iou" in capsys.readouterr().out
    write(runs / "tiny", iou=0.81)
    assert again.main(["--stored", str(stored), "compare", str(runs), "tiny"]) == 1
    assert "tiny grad_cam: iou" in capsys.readouterr().out
    # A control's map does not depend on the layers that are redrawn either.
    write(runs / "tiny", untouched=1 - 0.9 * again.SAME)
    assert again.main(["--stored", str(stored), "compare", str(runs)]) == 0
    write(runs / "tiny", untouched=1 - 1.1 * again.SAME)
    assert again.main(["--stored", str(stored), "compare", str(runs)]) == 1
    assert "tiny centre, all redrawn: ssim." in capsys.readouterr().out


def test_what_two_draws_of_images_may_differ_by():
    # A gap between -1 and 1 has four times the variance of a share of the same images.
    assert again.drawn("swap_owner_gap", 0.0, 100) == pytest.approx(2 * again.drawn("iou", 0.5, 100))
    assert again.drawn("road", 0.0, 100) == pytest.approx(again.drawn("iou", 0.5, 100))
    # None of a hundred is not never, and more images say more.
    assert again.drawn("pointing_game", 1.0, 100) == pytest.approx(2.576 * (2 * 2 / 104 * 102 / 104 / 100) ** 0.5)
    assert again.drawn("iou", 0.5, 400) == pytest.approx(again.drawn("iou", 0.5, 100) / 2)
    # Over all pixels of the data set, and no mean over images.
    assert again.drawn("pixel_average_precision", 0.5, 100) is None
    stored = again.read_comparisons()
    for comparison in stored.values():
        for numbers in comparison.methods.values():
            assert all(
                low <= numbers[metric] <= high for metric, (low, high) in again.MEANS.items() if metric in numbers
            )


def test_the_size_of_chunks_is_no_other_comparison(stored, tmp_path):
    write(tmp_path / "runs" / "tiny")
    path = tmp_path / "runs" / "tiny" / "comparison.json"
    options = json.loads(path.read_text())["config"]["comparison"]["methods"]["score_cam"]["options"]
    for changed, code in (({"chunk_size": options["chunk_size"] + 1}, 0), ({"clusters": 3}, 2)):
        write(path.parent)
        found = json.loads(path.read_text())
        found["config"]["comparison"]["methods"]["score_cam"]["options"] |= changed
        path.write_text(json.dumps(found))
        assert again.main(["--stored", str(stored), "finished", str(path.parent), "tiny"]) == code


def test_finished_is_a_comparison_of_that_config(stored, tmp_path, capsys):
    def finished():
        return again.main(["--stored", str(stored), "finished", str(tmp_path / "runs" / "tiny"), "tiny"])

    assert finished() == 3
    write(tmp_path / "runs" / "tiny")
    assert finished() == 0
    # What failed is tried again by the same command.
    found = json.loads((tmp_path / "runs" / "tiny" / "comparison.json").read_text())
    found["methods"]["centre"]["metric_failures"] = {"road": "RuntimeError: memory"}
    (tmp_path / "runs" / "tiny" / "comparison.json").write_text(json.dumps(found))
    assert finished() == 3
    write(tmp_path / "runs" / "tiny")
    found = json.loads((tmp_path / "runs" / "tiny" / "comparison.json").read_text())
    found["sanity_checks"]["centre"]["failures"] = {"independent": "RuntimeError: memory"}
    (tmp_path / "runs" / "tiny" / "comparison.json").write_text(json.dumps(found))
    assert finished() == 3
    write(tmp_path / "runs" / "tiny", overrides=("evaluation.max_examples=30",))
    assert finished() == 2
    assert "evaluation.max_examples: 30 there, 20 now" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["compare", "RUNS"], "Nothing of that was measured in"),
        (["compare", "RUNS", "huge"], "no stored comparison 'huge'. Choose among: tiny"),
        (["store", "x", "RUNS", f"--config={CONFIG}", f"--models={MODELS}"], "There is no comparison.json in"),
        (["store", "x", "RUNS", "a.b=1", f"--config={CONFIG}", f"--models={MODELS}"], "'a.b=1' is no FIELD=VALUE"),
        (["store", "x", "RUNS", "seed", f"--config={CONFIG}", f"--models={MODELS}"], "'seed' is no FIELD=VALUE"),
        (["store", "x", "DIRTY", *OVERRIDES, f"--config={CONFIG}", f"--models={MODELS}"], "not from a clean commit"),
        (
            ["store", "x", "CLEAN", *OVERRIDES, f"--config={CONFIG}", "--models=a=b"],
            "--models must name a row for each",
        ),
    ],
)
def test_bad_input_is_told(stored, tmp_path, capsys, arguments, message):
    write(tmp_path / "DIRTY", dirty=True)
    write(tmp_path / "CLEAN")
    folders = {name: str(tmp_path / name) for name in ("RUNS", "DIRTY", "CLEAN")}
    arguments = [folders.get(argument, argument) for argument in arguments]
    capsys.readouterr()
    assert again.main(["--stored", str(stored), *arguments]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and message in err


def test_a_number_that_is_gone_is_told(stored):
    (tiny,) = again.read_comparisons(stored).values()
    with pytest.raises(UserError, match="has no iou of grad_cam any more"):
        again.compare(tiny, {"methods": {"grad_cam": {"metrics": {}}}})
    methods = {label: {"metrics": numbers} for label, numbers in tiny.methods.items()}
    with pytest.raises(UserError, match="has no ssim of grad_cam, redrawn down to head, any more"):
        again.compare(tiny, {"methods": methods, "sanity_checks": {}})
