"""Evaluation on a tiny dataset with predictors whose numbers are known: one reads pixels, one the mask's shape."""

import json
import math
import types

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from selfexplain_jax import evaluate, examples, image_rows
from selfexplain_jax.config import base_config
from selfexplain_jax.metrics import audit
from selfexplain_jax.pictures import overlay
from selfexplain_jax.types import VOID, DatasetInfo, Predictor, UserError

SIZE, CLASSES, CELL = 16, ("red", "green", "blue"), slice(5, 11)


class Source:
    """A grey image with one square in the middle, bright in the class's channel; multi-label: also a second one."""

    def __init__(self, length, multilabel=False, unlabelled=(), unannotated=()):
        self.length, self.multilabel, self.unlabelled, self.unannotated = length, multilabel, unlabelled, unannotated

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        label = np.zeros(3, np.float32)
        image, mask = np.full((SIZE, SIZE, 3), 128, np.uint8), np.zeros((SIZE, SIZE), np.uint8)
        for class_id in {index % 3, (index + 1) % 3} if self.multilabel and index % 2 else {index % 3}:
            place = slice(5, 11) if class_id == index % 3 else slice(0, 4)
            image[place, place, class_id] = 255
            mask[place, place] = class_id + 1
            label[class_id] = index not in self.unlabelled
        if index in self.unannotated:  # As VOC's images outside the segmentation lists: all void.
            mask[:] = VOID
        return {"image": image, "label": label, "mask": mask, "id": str(index)}


def make_dataset(length=7, multilabel=False, has_masks=True, unlabelled=(), unannotated=()):
    info = DatasetInfo("squares", 3, CLASSES, multilabel=multilabel, image_size=SIZE, has_masks=has_masks)
    return types.SimpleNamespace(info=info, source=lambda split: Source(length, multilabel, unlabelled, unannotated))


def make_config(**evaluation):
    config = base_config()
    config.data.image_size = SIZE
    config.data.num_threads = 0
    config.evaluation.batch_size = 5
    config.evaluation.audit = False
    config.evaluation.update(evaluation)
    return config


@pytest.mark.parametrize("multilabel", [False, True])
def test_true_masks_are_asked_about_where_there_are_some(multilabel):
    """Two of nine images have no annotation: their empty masks say nothing of true ones, nor of the others."""
    found = [
        evaluate.evaluate(make_predictor(), make_dataset(9, multilabel, unannotated=without), make_config())
        for without in ((), (1, 6))
    ]
    for metrics, count in zip(found, (9, 7), strict=True):
        assert metrics["object_accuracy_ground_truth"] == metrics["controls"]["ground_truth"]["object_accuracy"] == 1
        for name in ("object_accuracy_ground_truth", "iou"):
            assert metrics["counts"][name] == count, name
        # Of several classes, one image's may all be among those of each that is left.
        pairs = [metrics["counts"][f"swap_owner_rate{suffix}"] for suffix in ("", "_ground_truth")]
        assert pairs[0] == pairs[1] and (pairs[0] == count or multilabel and 0 < pairs[0] < count)
        assert metrics["counts"]["object_accuracy"] == metrics["counts"]["accuracy"] == 9
        assert metrics["swap_owner_gap"] == 0
    assert found[0]["object_accuracy"] == found[1]["object_accuracy"] == 1


def exact_masks(images, class_ids):
    """The pixels that are bright in the class's channel."""
    bright = jnp.transpose(jnp.asarray(images) > 1.5, (0, 3, 1, 2)).astype(jnp.float32)  # [B, 3, H, W]
    return jnp.take_along_axis(bright, class_ids[:, :, None, None], axis=1)


def pixel_scores(images):
    """High for each class of which there are bright pixels."""
    return 10.0 * (2 * (jnp.asarray(images) > 1.5).any(axis=(1, 2)) - 1)


def make_predictor(scores=pixel_scores, masks=exact_masks):
    def sigmoid(z):
        return 1 / (1 + jnp.exp(-jnp.asarray(z)))

    return Predictor(scores=scores, probabilities=sigmoid, class_names=CLASSES, image_size=SIZE, masks=masks)


def test_a_perfect_predictor_scores_perfectly(tmp_path):
    dataset, config = make_dataset(), make_config(pictures=3)
    metrics = evaluate.evaluate(make_predictor(), dataset, config, pictures_dir=tmp_path, examples_dir=tmp_path)
    kept = examples.read(tmp_path)
    assert kept.rows[4]["iou"] == {"mask": 1.0} and kept.rows[4]["labels"] == [1] and len(kept.rows) == 7
    assert kept.rows[4]["predictions"]["self_explainer"]["correct"] and kept.rows[4]["parts"]["object"] > 0.99
    assert kept.kept[4].identifier == "4" and list(kept.kept[4].class_ids) == [1, -1, -1]
    np.testing.assert_array_equal(kept.kept[4].maps[0, 0] > 0, kept.kept[4].mask > 0)
    ones = (
        "accuracy object_accuracy object_accuracy_zero object_accuracy_blur object_accuracy_ground_truth iou f1 "
        "continuous_iou iou_predicted mean_iou_per_class miou pointing_game pointing_game_strict energy_pointing_game "
        "pixel_auc swap_pixel_rate swap_pixel_rate_ground_truth object_coverage"
    )
    for name in ones.split():
        assert metrics[name] == pytest.approx(1), name
    for name in "swap_owner_rate swap_owner_rate_ground_truth mean_absolute_error background_coverage".split():
        assert metrics[name] == pytest.approx(0), name
    assert metrics["swap_owner_gap"] == 0
    # With nothing bright left all scores are equal: class 0 is named, right for 3 of 7 images.
    assert metrics["background_accuracy"] == pytest.approx(3 / 7)
    assert metrics["background_entropy"] == pytest.approx(1, abs=1e-5)
    assert metrics["saliency_score"] == pytest.approx(math.log(36 / 256), abs=1e-3)
    assert metrics["mask_area"] == metrics["object_area"] == pytest.approx(36 / 256)
    assert metrics["iou_curve"] == [1] * 9
    assert metrics["counts"]["examples"] == metrics["counts"]["iou"] == metrics["counts"]["pointing_game"] == 7
    controls = metrics["controls"]
    assert controls["all_one"]["iou"] == pytest.approx(36 / 256)
    assert controls["center_box"]["pointing_game_strict"] == 1  # the objects are in the middle
    assert controls["all_zero"]["object_coverage"] == 0
    # The whole image is its own object, at an area of 1; where nothing is shown class 0 is named.
    assert controls["all_one"]["object_accuracy"] == 1 and controls["all_one"]["saliency_score"] == pytest.approx(
        0, abs=1e-3
    )
    assert controls["all_one"]["background_accuracy"] == controls["all_zero"]["object_accuracy"] == pytest.approx(3 / 7)
    assert controls["ground_truth"]["saliency_score"] == pytest.approx(metrics["saliency_score"])
    assert controls["ground_truth"]["continuous_iou"] == 1
    for name in ("pictures.png", "class_masks.png"):
        with Image.open(tmp_path / name) as picture:
            assert min(picture.size) > 100


@pytest.mark.slow
def test_neither_batch_size_nor_padding_changes_a_number():
    dataset, config = make_dataset(), make_config()
    metrics = evaluate.evaluate(make_predictor(), dataset, config)
    config.evaluation.batch_size = 7
    again = evaluate.evaluate(make_predictor(), dataset, config)
    for name in metrics.keys() - {"controls", "counts", "object_accuracy_color_noise"}:  # colours are drawn per batch
        np.testing.assert_allclose(again[name], metrics[name], rtol=1e-5, err_msg=name)
    assert again["counts"] == metrics["counts"]


def test_a_predictor_that_reads_the_masks_shape_is_caught():
    quadrants = np.zeros((3, SIZE, SIZE), np.float32)
    for class_id, (rows, columns) in enumerate([(slice(0, 10), slice(0, 16)), (slice(6, 16), slice(0, 9))]):
        quadrants[class_id, rows, columns] = 1
    quadrants[2, :, 5:11] = 1

    def shape_masks(images, class_ids):
        del images
        return jnp.asarray(quadrants)[class_ids]

    def shape_scores(images):
        images = np.asarray(images)
        hidden = (images == 0).all(axis=3)  # zero infill; no pixel of the images is exactly the mean colour
        agreement = [((~hidden) == (quadrant > 0)).mean(axis=(1, 2)) for quadrant in quadrants]
        return np.where(hidden.any(axis=(1, 2))[:, None], np.stack(agreement, axis=1), np.asarray(pixel_scores(images)))

    metrics = evaluate.evaluate(make_predictor(shape_scores, shape_masks), make_dataset(), make_config())
    assert metrics["accuracy"] == metrics["object_accuracy"] == 1
    assert metrics["swap_owner_rate"] == 1 and metrics["swap_pixel_rate"] == 0
    assert metrics["swap_owner_gap"] > 0
    assert metrics["iou"] < 0.5


def test_multilabel_numbers_and_pictures(tmp_path):
    config = make_config(pictures=2)
    metrics = evaluate.evaluate(make_predictor(), make_dataset(multilabel=True), config, pictures_dir=tmp_path)
    for name in "accuracy mean_average_precision label_f1_macro label_f1_micro object_accuracy iou miou".split():
        assert metrics[name] == pytest.approx(1), name
    assert metrics["pointing_game_strict"] == metrics["mean_iou_per_class"] == 1
    assert metrics["counts"]["pointing_game"] == 10  # 4 images with one class, 3 with two
    assert metrics["swap_owner_rate"] == 0
    assert (tmp_path / "pictures.png").is_file()


def rows_of_class_masks(monkeypatch, tmp_path, **predictor):
    rows = {}
    monkeypatch.setattr(image_rows, "draw_rows", lambda path, drawn: rows.setdefault(path.name, drawn))
    config, dataset = make_config(pictures=7), make_dataset(multilabel=True)
    evaluate.evaluate(make_predictor(**predictor), dataset, config, pictures_dir=tmp_path)
    assert len(rows["pictures.png"]) == 7
    return rows.get("class_masks.png")


def test_masks_of_all_classes_stand_side_by_side_in_the_order_of_the_classes(monkeypatch, tmp_path):
    rows = rows_of_class_masks(monkeypatch, tmp_path)
    assert [list(row["pictures"]) for row in rows] == [["image", "ground truth", *CLASSES]] * 7
    # The present classes of image 5 are blue in the middle and red in the corner; green is last among its candidates.
    row = rows[5]
    assert row["title"] == "red\nblue"
    assert row["titles"] == {"red": "1.00, present", "green": "0.00", "blue": "1.00, present"}
    image = row["pictures"]["image"]
    for name, place in zip(CLASSES, (slice(0, 4), slice(0, 0), CELL), strict=True):
        mask = np.zeros((SIZE, SIZE), np.float32)
        mask[place, place] = 1
        np.testing.assert_array_equal(row["pictures"][name], overlay(image, mask), err_msg=name)


def test_there_is_no_such_picture_without_a_mask_of_every_class(monkeypatch, tmp_path):
    assert rows_of_class_masks(monkeypatch, tmp_path, masks=None) is None
    monkeypatch.setattr(image_rows, "CLASS_COLUMNS", 2)
    assert rows_of_class_masks(monkeypatch, tmp_path) is None


class MeanClassifier(nn.Module):
    """A classifier that compiles in no time."""

    @nn.compact
    def __call__(self, inputs, train=False):
        return nn.Dense(3)(inputs.mean(axis=(1, 2)))


def test_audit_numbers_are_there_and_without_masks_the_segmentation_is_not(monkeypatch):
    monkeypatch.setattr(audit, "mask_classifier", lambda info: MeanClassifier())
    monkeypatch.setattr(audit, "image_classifier", lambda info: MeanClassifier())
    metrics = evaluate.evaluate(
        make_predictor(), make_dataset(has_masks=False), make_config(audit=True, audit_steps=2, max_examples=6)
    )
    assert metrics["counts"]["mask_only_accuracy"] == metrics["counts"]["examples"] == 6
    assert 0 <= metrics["evaluator_accuracy"] <= 1 and "evaluator_accuracy_full_image" in metrics
    absent = "iou pointing_game controls miou swap_owner_rate_ground_truth swap_owner_gap mask_only_gap"
    assert not set(absent.split()) & set(metrics)


@pytest.mark.parametrize("multilabel", [False, True])
def test_results_have_the_stable_names(monkeypatch, multilabel):
    monkeypatch.setattr(audit, "mask_classifier", lambda info: MeanClassifier())
    monkeypatch.setattr(audit, "image_classifier", lambda info: MeanClassifier())
    dataset = make_dataset(multilabel=multilabel)
    metrics = evaluate.evaluate(make_predictor(), dataset, make_config(audit=True, audit_steps=2))
    names = (
        "accuracy object_accuracy background_accuracy iou continuous_iou f1 pointing_game saliency_score "
        "swap_owner_rate swap_owner_rate_ground_truth mask_only_gap evaluator_accuracy mean_iou_per_class"
    )
    assert not set(names.split()) - set(metrics)
    gap = metrics["mask_only_accuracy"] - metrics["mask_only_accuracy_ground_truth"]
    assert metrics["mask_only_gap"] == pytest.approx(gap)


def test_a_model_without_masks_is_a_classifier(tmp_path):
    metrics = evaluate.evaluate(
        make_predictor(masks=None), make_dataset(), make_config(audit=True), examples_dir=tmp_path
    )
    assert metrics["accuracy"] == 1 and set(metrics) == {"accuracy", "counts"}
    kept = examples.read(tmp_path)
    assert kept.methods == [] and kept.kept[0].maps.size == 0 and kept.rows[0]["iou"] == {}


@pytest.mark.parametrize(
    ("predictor", "dataset", "message"),
    [
        (make_predictor(masks=lambda images, ids: exact_masks(images, ids)[..., ::2]), {}, r"shape \(5, 3, 16, 8\)"),
        (make_predictor(masks=lambda images, ids: exact_masks(images, ids) / 0 * 0), {}, r"masks hold NaN.*first \[0"),
        (make_predictor(masks=lambda images, ids: 2 * exact_masks(images, ids)), {}, r"in \[0, 1\].* to 2"),
        (make_predictor(scores=lambda images: pixel_scores(images) * np.nan), {}, "scores of images hold NaN"),
        (make_predictor(scores=lambda images: pixel_scores(images)[:, :2]), {}, r"expected \(5, 3\)"),
        (make_predictor(), {"unlabelled": (2, 6)}, r"Examples \[2\] .* no label"),
        (make_predictor(), {"length": 0}, "empty"),
    ],
)
def test_bad_input_is_named(predictor, dataset, message):
    with pytest.raises(UserError, match=message):
        evaluate.evaluate(predictor, make_dataset(**dataset), make_config())


def test_predictor_and_dataset_must_agree():
    predictor = Predictor(pixel_scores, lambda z: z, class_names=("a", "b"), image_size=SIZE)
    with pytest.raises(UserError, match="knows 2 classes at 16 px"):
        evaluate.evaluate(predictor, make_dataset(), make_config())
    with pytest.raises(UserError, match="infill"):
        evaluate.evaluate(make_predictor(), make_dataset(), make_config(infill="snow"))


def test_results_are_written_and_read(tmp_path):
    path, config = tmp_path / "run" / "results.json", make_config()
    config.model.pooling_temperature = float("inf")
    metrics = {"accuracy": np.float32(0.5), "curve": [1, np.float64(2)], "counts": {"accuracy": 4}}
    evaluate.write_results(path, config, metrics, extra={"train_seconds": 3.5, "steps": 10, "device": "cpu"})
    results = evaluate.read_results(path)
    assert results["metrics"] == {"accuracy": 0.5, "curve": [1, 2], "train_seconds": 3.5, "steps": 10}
    assert results["counts"] == {"accuracy": 4} and results["device"] == "cpu" and results["seed"] == 0
    assert results["config"]["evaluation"]["batch_size"] == 5
    assert results["config"]["model"]["pooling_temperature"] == "inf"
    assert results["versions"]["jax"] and {"commit", "dirty"} <= results.keys()
    assert [file.name for file in path.parent.iterdir()] == ["results.json"]
    assert "counts" in metrics  # the caller's dictionary is left alone


def test_results_refuse_nan_and_leave_the_old_file(tmp_path):
    path, config = tmp_path / "results.json", make_config()
    evaluate.write_results(path, config, {"accuracy": 1.0})
    with pytest.raises(UserError, match="metrics.controls.all_zero.iou is nan"):
        evaluate.write_results(path, config, {"controls": {"all_zero": {"iou": np.float32("nan")}}})
    with pytest.raises(UserError, match=r"metrics.curve\[1\] is inf"):
        evaluate.write_results(path, config, {"curve": [1.0, float("inf")]})
    with pytest.raises(UserError, match="seed"):
        evaluate.write_results(path, config, {}, extra={"seed": 3})
    assert evaluate.read_results(path)["metrics"] == {"accuracy": 1.0}


def test_unreadable_results_are_named(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        evaluate.read_results(tmp_path / "none.json")
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(UserError, match="not JSON"):
        evaluate.read_results(tmp_path / "broken.json")
    (tmp_path / "other.json").write_text(json.dumps({"a": 1}))
    with pytest.raises(UserError, match="no entry 'metrics'"):
        evaluate.read_results(tmp_path / "other.json")
