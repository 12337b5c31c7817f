"""Comparing methods: the same images for all, failures named, runs that go on, tables."""

import csv
import dataclasses
import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selfexplain_jax import compare, evaluate, examples, map_numbers, maps, report
from selfexplain_jax.attribution import METHODS
from selfexplain_jax.config import base_config
from selfexplain_jax.data import build_dataset
from selfexplain_jax.training.mesh import own_batches
from selfexplain_jax.types import Predictor, UserError

SIZE = 32


def settings(**methods):
    config = base_config()
    config.data.image_size, config.data.options = SIZE, {"num_classes": 3, "max_objects": 2}
    config.evaluation.batch_size, config.evaluation.max_examples = 4, 10
    config.comparison.models = {"colours": "no/folder"}
    config.comparison.methods = methods
    config.comparison.metrics = {"segmentation": {}, "pointing_game": {}}
    config.comparison.figure_images = 2
    return config


MODEL_SETTINGS = compare.model_settings


@pytest.fixture(autouse=True)
def colours(monkeypatch):
    """A classifier that nobody trained, in the place of every model that a comparison opens."""
    names = build_dataset(settings()).info.class_names
    predictor = Predictor(lambda images: images.mean(axis=(1, 2)), jax.nn.sigmoid, names, SIZE)
    monkeypatch.setattr(compare, "model_settings", lambda config: dict(config.comparison.models))
    monkeypatch.setattr(compare, "open_model", lambda *arguments: (predictor, ["no/folder", 7, 1]))


def breaks_on(bad):
    """A method whose maps are NaN for images as bright as `bad`, the image at that place of the run."""

    def method(predictor, images, class_ids, *, rng=None):
        del predictor, rng
        fine = jnp.abs(images.mean(axis=(1, 2, 3)) - bad) > 1e-6
        return jnp.where(fine[:, None, None, None], 0.25, jnp.nan) * jnp.ones((*class_ids.shape, SIZE, SIZE))

    return method


def trained_further(config):
    info = build_dataset(config).info
    [column] = compare.make_columns(config, compare.open_all(config, info), info)
    return dataclasses.replace(column, identity=column.identity | {"model": ["no/folder", 8, 2]})


def brightness_of(config, place):
    dataset = build_dataset(config)
    batches = list(own_batches(dataset, config))
    return float(np.concatenate([batch["image"] for batch in batches])[place].mean())


def test_all_methods_are_averaged_over_the_images_that_all_explain(tmp_path, monkeypatch):
    config = settings(ground_truth={}, half={"method": "constant", "options": {"value": 0.5}}, broken={})
    monkeypatch.setitem(METHODS, "broken", breaks_on(brightness_of(config, 5)))
    results = compare.compare(config, tmp_path)
    position = int(own_batches(build_dataset(config), config).positions[5])
    assert results["images"] == 9 and results["left_out"] == [position]
    rows = results["methods"]
    assert rows["broken"]["failures"] == [{"image": position, "message": "the map holds NaN or infinity"}]
    assert rows["ground_truth"]["failures"] == rows["half"]["failures"] == []
    for row in rows.values():
        assert row["counts"]["continuous_iou"] == 9 and row["seconds_per_image"] > 0
    assert rows["ground_truth"]["metrics"]["continuous_iou"] == pytest.approx(1.0)
    assert rows["ground_truth"]["metrics"]["pointing_game"] == 1.0
    # sum min(1/2, g) / sum max(1/2, g) = (g / 2) / (1/2 + g / 2) for the share g of the object.
    assert 0.02 < rows["half"]["metrics"]["continuous_iou"] < 0.5
    assert (tmp_path / "pictures" / "comparison.png").is_file() and (tmp_path / "pictures" / "comparison.pdf").is_file()
    kept = examples.read(tmp_path)
    assert kept.methods == ["broken", "ground_truth", "half"] and kept.ranked_by == "broken" and len(kept.kept) == 10
    assert kept.rows[position]["iou"]["broken"] is None and kept.rows[position]["iou"]["ground_truth"] == 1.0
    assert not kept.kept[position].drawn[0].any() and kept.kept[position].drawn[1, 0]


def test_an_interrupted_comparison_goes_on(tmp_path, monkeypatch):
    config = settings(constant={}, flaky={})
    calls = []

    def flaky(predictor, images, class_ids, *, rng=None):
        calls.append(len(images))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return jax.random.uniform(rng, (*class_ids.shape, SIZE, SIZE))

    monkeypatch.setitem(METHODS, "flaky", flaky)
    with pytest.raises(KeyboardInterrupt):
        compare.compare(config, tmp_path)
    resumed = compare.compare(config, tmp_path)
    assert len(calls) == 4  # three batches, one of them begun twice
    whole = compare.compare(config, tmp_path / "whole")
    for label in ("constant", "flaky"):
        assert resumed["methods"][label]["metrics"] == whole["methods"][label]["metrics"]
    # All is there: nothing is computed again.
    monkeypatch.setitem(METHODS, "flaky", None)
    monkeypatch.setattr(compare, "build_method", lambda name, **options: None)
    monkeypatch.setattr(map_numbers, "measure", None)
    assert compare.compare(config, tmp_path)["methods"]["flaky"]["metrics"] == whole["methods"]["flaky"]["metrics"]


def test_what_a_method_raised_is_tried_again(tmp_path, monkeypatch):
    config = settings(ground_truth={}, mended={})

    def broken(predictor, images, class_ids, *, rng=None):
        raise RuntimeError("out of memory")

    monkeypatch.setitem(METHODS, "mended", broken)
    row = compare.compare(config, tmp_path)["methods"]["mended"]
    assert row["failures"][0]["message"] == "RuntimeError: out of memory" and "metrics" not in row
    monkeypatch.setitem(METHODS, "mended", METHODS["constant"])
    row = compare.compare(config, tmp_path)["methods"]["mended"]
    assert row["failures"] == [] and "continuous_iou" in row["metrics"]


def test_a_metric_is_added_without_taking_the_others_again(tmp_path, monkeypatch):
    config = settings(constant={})
    before = compare.compare(config, tmp_path)["methods"]["constant"]["metrics"]
    asked, real = [], map_numbers.measure
    monkeypatch.setattr(
        map_numbers, "measure", lambda name, *rest, **options: asked.append(name) or real(name, *rest, **options)
    )
    config.comparison.metrics.pixel_precision = {}
    after = compare.compare(config, tmp_path)["methods"]["constant"]["metrics"]
    assert set(asked) == {"pixel_precision"}
    assert before.items() <= after.items() and "pixel_average_precision" in after


def test_a_number_that_is_not_finite_is_named_and_stops_nothing(tmp_path, monkeypatch):
    real = map_numbers.finish
    monkeypatch.setattr(
        map_numbers, "finish", lambda name, sums: real(name, sums) | ({"iou": np.nan} if name == "segmentation" else {})
    )
    results = compare.compare(settings(constant={}), tmp_path)
    row = results["methods"]["constant"]
    assert row["not_finite"] == ["iou"] and row["metrics"]["iou"] is None and row["metrics"]["f1"] is not None
    text = report.comparison_markdown(results, ["iou"])
    assert "| constant | colours | not finite |" in text and "left out: `iou` of `constant`." in text


def test_a_metric_that_raises_is_named_and_tried_again(tmp_path, monkeypatch):
    config, real = settings(constant={}), map_numbers.measure

    def broken(name, *rest, **options):
        if name == "pointing_game":
            raise RuntimeError("out of | memory\nat all")
        return real(name, *rest, **options)

    with monkeypatch.context() as patch:
        patch.setattr(map_numbers, "measure", broken)
        results = compare.compare(config, tmp_path)
    row = results["methods"]["constant"]
    assert row["metric_failures"] == {"pointing_game": "RuntimeError: out of | memory"}
    assert "pointing_game" not in row["metrics"] and "iou" in row["metrics"]
    assert set(results["numbers_of"]) == {"segmentation"} and "iou" in results["numbers_of"]["segmentation"]
    text = report.comparison_markdown(results)
    assert "`pointing_game` of `constant` has no number: RuntimeError: out of | memory" in text
    row = compare.compare(config, tmp_path)["methods"]["constant"]
    assert row["metric_failures"] == {} and "pointing_game" in row["metrics"]


def test_metrics_go_on_where_they_were_interrupted(tmp_path, monkeypatch):
    config, asked, real = settings(constant={}), [], map_numbers.measure
    config.comparison.metrics["average_drop"] = {}

    def interrupted(name, *rest, **options):
        asked.append(name)
        if len(asked) == 8:
            raise KeyboardInterrupt
        return real(name, *rest, **options)

    monkeypatch.setattr(map_numbers, "measure", interrupted)
    with pytest.raises(KeyboardInterrupt):
        compare.compare(config, tmp_path)
    compare.compare(config, tmp_path)
    # Three batches each. What asks the model comes by itself, behind the others: it was begun twice, they were not.
    assert [asked.count(name) for name in ("segmentation", "pointing_game", "average_drop")] == [3, 3, 5]


@pytest.mark.parametrize(("size", "value", "message"), [(8, 0.5, "have shape"), (SIZE, 1.5, "must lie in")])
def test_maps_of_another_shape_or_range_are_failures_and_not_kept(tmp_path, monkeypatch, size, value, message):
    monkeypatch.setitem(
        METHODS, "odd", lambda predictor, images, ids, *, rng=None: jnp.full((*ids.shape, size, size), value)
    )
    config = settings(ground_truth={}, odd={"scaling": "as_is"})
    row = compare.compare(config, tmp_path)["methods"]["odd"]
    assert len(row["failures"]) == 10 and message in row["failures"][0]["message"]
    monkeypatch.setitem(METHODS, "odd", METHODS["constant"])
    assert compare.compare(config, tmp_path)["methods"]["odd"]["failures"] == []


def test_flat_maps_and_images_left_out_are_said(tmp_path, monkeypatch):
    config = settings(ground_truth={}, flat={}, broken={})
    monkeypatch.setitem(METHODS, "flat", lambda predictor, images, ids, *, rng=None: jnp.ones((*ids.shape, SIZE, SIZE)))
    monkeypatch.setitem(METHODS, "broken", breaks_on(brightness_of(config, 5)))
    results = compare.compare(config, tmp_path)
    assert results["methods"]["flat"]["flat_maps"] == 9 and results["methods"]["ground_truth"]["flat_maps"] == 0
    text = report.comparison_markdown(results)
    assert "`flat` has 9 maps of one value alone" in text
    assert f"some method failed on them: 1 images ({results['left_out'][0]})" in text


def test_times_leave_out_what_compiles_and_what_was_tried_again():
    seen = [(90.0, False, True), (2.0, False, False), (4.0, False, False), (70.0, False, True), (50.0, True, False)]
    notes = [maps.Note({}, *values) for values in seen]
    assert maps.seconds_per_image(notes, 2) == 1.5
    assert maps.seconds_per_image(notes[:1], 2) == 45.0


def test_an_option_that_a_metric_lacks_is_refused_before_anything_is_explained(tmp_path, monkeypatch):
    monkeypatch.setattr(maps, "make_maps", None)
    config = settings(constant={})
    config.comparison.metrics = {"average_drop": {"chunks": 3}}
    with pytest.raises(UserError, match="Metric 'average_drop' has no option 'chunks'; it has: chunk_size"):
        compare.compare(config, tmp_path)


@pytest.mark.parametrize("name", map_numbers.EVERY_CLASS)
def test_metrics_of_all_classes_ask_for_all_maps(tmp_path, name):
    config = settings(constant={})
    config.comparison.metrics = {name: {}}
    with pytest.raises(UserError, match=f"metrics.{name} needs the maps of all classes: .*classes_per_image = 3"):
        compare.compare(config, tmp_path)


def test_a_method_that_fails_everywhere_is_named_and_takes_no_image_away(tmp_path):
    results = compare.compare(settings(ground_truth={}, learned={}), tmp_path)
    assert results["images"] == 10 and results["left_out"] == []
    row = results["methods"]["learned"]
    assert len(row["failures"]) == 10 and "metrics" not in row
    assert "UserError" in row["failures"][0]["message"]
    table = report.comparison_markdown(results)
    assert "`learned` failed on 10 images, first on image 0 of the split: UserError" in table


def test_nothing_to_compare_is_refused(tmp_path):
    with pytest.raises(UserError, match="no image that every method could explain. learned: UserError"):
        compare.compare(settings(learned={}), tmp_path)


def test_a_folder_belongs_to_one_comparison(tmp_path):
    compare.compare(settings(constant={}), tmp_path)
    # A method may be added later.
    assert set(compare.compare(settings(centre={}), tmp_path)["methods"]) == {"centre"}
    with pytest.raises(UserError, match=r"another comparison:\n  methods.constant: .*0.1.* now"):
        compare.compare(settings(constant={"options": {"value": 0.1}}), tmp_path)
    # What changes no image may change; a model that was trained further is another one.
    threads = settings(constant={})
    threads.data.num_threads = 1
    compare.compare(threads, tmp_path)
    with pytest.raises(UserError, match=r"another comparison:\n  methods.constant: .*8, 2"):
        maps.claim_folder(tmp_path, [trained_further(threads)], threads)
    other = settings(constant={})
    other.seed = 7
    with pytest.raises(UserError, match=r"another comparison:\n  seed: 0 there, 7 now"):
        compare.compare(other, tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"comparison.methods": {"grad_kam": {}}}, "grad_kam.method = 'grad_kam' is unknown; there are learned"),
        ({"comparison.methods": {"constant": {"model": "x"}}}, "constant.model = 'x' is none of colours"),
        ({"comparison.methods": {"constant": {"opt": {}}}}, "constant.opt is unknown"),
        (
            {"comparison.methods": {"constant": {"scaling": "max"}}},
            "constant.scaling = 'max' is unknown; there are as_is",
        ),
        ({"comparison.methods": {"a/b": {"method": "constant"}}}, "letters, digits"),
        ({"comparison.metrics": {"box_accuracy": {}}}, "'box_accuracy' needs boxes, which data set 'synthetic'"),
        ({"comparison.metrics": {"pointing_game_photo": {"regions": "mask"}}}, "needs photos at sizes of their own"),
        (
            {"comparison.metrics": {"pointing_game_photo": {}}},
            r"boxes.*leave it out \(or take its option regions='mask'\)",
        ),
        ({"comparison.methods": {"constant": {"options": {"v": 1}}}}, "no option 'v'"),
        ({"comparison.metrics": {"iuo": {}}}, "metrics.iuo is unknown; there are segmentation"),
        ({"comparison.metrics": {}}, "metrics is empty"),
        ({"comparison.models": {}}, "needs models and methods"),
        ({"comparison.leave_out": ("rise",)}, "leave_out: 'rise' is none of config.comparison.methods: constant"),
        ({"comparison.leave_out": ("constant",)}, "leave_out: no method is left"),
    ],
)
def test_bad_comparisons_are_refused(tmp_path, change, message):
    config = settings(constant={})
    for name, value in change.items():
        setattr(config.comparison, name.split(".")[1], value)
    with pytest.raises(UserError, match=message):
        compare.compare(config, tmp_path)
    assert not list(tmp_path.iterdir())


def test_methods_can_be_left_out(tmp_path):
    config = settings(constant={}, centre={})
    config.comparison.leave_out = ("constant",)
    assert list(compare.compare(config, tmp_path)["methods"]) == ["centre"]


def test_learned_masks_come_first_and_controls_last():
    config = settings(centre={}, all_one={"method": "constant"}, gradient={}, masks={"method": "learned"})
    info = build_dataset(config).info
    columns = compare.make_columns(config, compare.open_all(config, info), info)
    assert [column.label for column in columns] == ["masks", "gradient", "all_one", "centre"]


def test_every_model_that_was_not_trained_is_named_with_its_command(tmp_path, monkeypatch):
    monkeypatch.setattr(compare, "model_settings", MODEL_SETTINGS)
    config = settings(constant={})
    with pytest.raises(UserError, match="models.colours: no/folder holds no checkpoints. Train it first"):
        compare.compare(config, tmp_path)
    config.comparison.models = {"one": "no/one", "other": "no/other"}
    config.comparison.model_configs = {"one": "configs/a.py", "other": "configs/b.py:c"}
    config.data.data_dir = "photos"
    with pytest.raises(UserError) as error:
        compare.compare(config, tmp_path)
    for line, name, spec in zip(str(error.value).splitlines(), ("one", "other"), ("a.py", "b.py:c"), strict=True):
        assert line.startswith(f"config.comparison.models.{name}: no/{name} holds no checkpoints.")
        assert f"--config=configs/{spec} --workdir=no/{name} --config.data.data_dir=photos" in line


def test_figure_shows_the_images_that_were_explained(tmp_path, monkeypatch):
    drawn = {}
    monkeypatch.setattr(compare, "save_grid", lambda path, cells, titles, also=(): drawn.update(cells))
    config = settings(ground_truth={})
    compare.compare(config, tmp_path)
    images = np.concatenate([batch["image"] for batch in own_batches(build_dataset(config), config)])
    # The first and the last of ten, one class each; 127.5 and 64 are the mean and deviation of `config.data`.
    for shown, place in zip(drawn["image"], (0, 9), strict=True):
        np.testing.assert_allclose(shown, (images[place] * 64 + 127.5) / 255, atol=1e-5)


def test_absent_classes_cost_a_search_nothing(tmp_path, monkeypatch):
    calls = []

    def search(predictor, images, class_ids, *, rng=None):
        calls.append(class_ids.shape)
        # A map that says which image and class it is of.
        number = images.mean(axis=(1, 2, 3))[:, None] + 10 * class_ids
        return jnp.ones((1, 1, SIZE, SIZE)) * number[:, :, None, None]

    monkeypatch.setitem(METHODS, "search", search)
    config = settings(search={})
    config.comparison.classes_per_image = 2
    numbers = compare.compare(config, tmp_path / "all")["methods"]["search"]["metrics"]
    assert set(calls) == {(4, 2)}
    calls.clear()
    monkeypatch.setattr(maps, "PER_MAP", ("search",))
    assert compare.compare(config, tmp_path / "present")["methods"]["search"]["metrics"] == numbers
    # Pairs of image and class, four at a time.
    shown = [int(batch["label"].sum()) for batch in own_batches(build_dataset(config), config)]
    assert calls == [(4, 1)] * sum(-(-count // 4) for count in shown) and sum(shown) < 20
    for number in range(len(shown)):
        found = [np.load(tmp_path / folder / "maps" / "search" / f"{number:05d}.npz") for folder in ("all", "present")]
        left = found[1]["saliency"] != 0
        np.testing.assert_allclose(found[1]["saliency"][left], found[0]["saliency"][left], rtol=1e-6)
        assert left.any(axis=(2, 3)).sum() == shown[number]
    # A metric that looks at absent classes asks for their maps, and not for these.
    config.comparison.metrics.class_specific, config.comparison.classes_per_image = {}, 3
    with pytest.raises(UserError, match="methods.search: .* now"):
        compare.compare(config, tmp_path / "present")


def test_present_classes_come_first():
    label = np.asarray([[0, 1, 0, 1], [0, 0, 1, 0]])
    np.testing.assert_array_equal(maps.present_classes(label, 2), [[1, 3], [2, 0]])
    assert maps.present_classes(label, 9).shape == (2, 4)


def row(model, seconds, **metrics):
    return {"model": model, "metrics": metrics, "seconds_per_image": seconds, "failures": [], "counts": {"iou": 3}}


RESULTS = {
    "images": 3,
    "controls": ["truth"],
    "asks_the_model": ["deletion"],
    "methods": {
        "a": row("m", 2.0, iou=0.25, deletion=0.5, curve=[1, 2]),
        "b|c": row("m", 1.0, iou=0.5, deletion=0.75),
        "e": row("n", 4.0, iou=0.25, deletion=0.1),
        "truth": row("n", 0.5, iou=1.0, deletion=0.05),
        "d": {"model": "n", "failures": [{"image": 4, "message": "no masks"}] * 3},
    },
}


def test_an_explainer_competes_with_the_methods_of_its_classifier():
    explainer = row("explainer", 1.0, iou=0.5, deletion=0.05) | {"asks": "n"}
    results = {**RESULTS, "methods": RESULTS["methods"] | {"explainer": explainer}}
    lines = report.comparison_markdown(results, ["deletion"]).splitlines()
    assert "| explainer | explainer | **0.05** | **1** | 0 |" in lines
    assert "| e | n | 0.1 | 4 | 0 |" in lines and "| a | m | **0.5** | 2 | 0 |" in lines


def test_tables_by_hand():
    assert report.comparison_markdown(RESULTS) == (
        "| method | model | iou | deletion | seconds_per_image | failed |\n"
        "| --- | --- | --- | --- | --- | --- |\n"
        "| a | m | 0.25 | **0.5** | 2 | 0 |\n"
        "| b\\|c | m | **0.5** | 0.75 | **1** | 0 |\n"
        "| e | n | 0.25 | 0.1 | 4 | 0 |\n"
        "| truth | n | 1 | 0.05 | 0.5 | 0 |\n"
        "| d | n | failed on 3 | failed on 3 | failed on 3 | 3 |\n"
        "\n3 images, the same for every method.\n"
        "- `d` failed on 3 images, first on image 4 of the split: no masks\n"
    )
    rows = list(csv.reader(io.StringIO(report.comparison_csv(RESULTS, ["iou"]))))
    assert rows[0] == ["method", "model", "iou", "seconds_per_image", "failed", "failure", "images"]
    assert rows[1:3] == [["a", "m", "0.25", "2.0", "0", "", "3"], ["b|c", "m", "0.5", "1.0", "0", "", "3"]]
    assert rows[5][:5] == ["d", "n", "failed on 3", "failed on 3", "3"] and "no masks" in rows[5][5]


def test_results_of_a_comparison_can_be_written_and_read(tmp_path):
    evaluate.write_results(tmp_path / "comparison.json", settings(), {}, extra=RESULTS)
    assert evaluate.read_results(tmp_path / "comparison.json")["methods"]["a"]["metrics"]["iou"] == 0.25
