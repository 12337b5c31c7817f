"""Boxes and own-size masks in a comparison, on the fakes of the photo sets: counted by hand."""

import jax
import numpy as np
import pytest
from hosts import on_hosts

from selfexplain_jax import compare
from selfexplain_jax.config import base_config
from selfexplain_jax.data import build_dataset
from selfexplain_jax.data.fakes import FAKES, draw_photo
from selfexplain_jax.metrics.photo_truth import PhotoTruth, check_needs, photo_truth
from selfexplain_jax.types import Boxes, Predictor, UserError

SIZE = 32
AGAINST_BOXES = {"box_accuracy": {}, "pointing_game_boxes": {}}


def settings(name, folder, **metrics):
    made, config = FAKES[name](folder), base_config()
    config.data.update({"name": name, "data_dir": made.data_dir, "image_size": SIZE, "options": made.options})
    config.data.update({"eval_split": made.eval_split, "num_threads": 0})
    config.evaluation.batch_size, config.evaluation.examples = 3, 0
    config.comparison.models, config.comparison.methods = {"nobody": "no/folder"}, {"ground_truth": {}}
    config.comparison.metrics, config.comparison.figure_images = metrics, 0
    config.comparison.classes_per_image = 3
    return config


def compared(config, folder, monkeypatch):
    """What a comparison says of the annotated masks as maps."""
    info = build_dataset(config).info
    predictor = Predictor(lambda images: images, jax.nn.sigmoid, info.class_names, SIZE)
    monkeypatch.setattr(compare, "model_settings", lambda config: dict(config.comparison.models))
    monkeypatch.setattr(compare, "open_model", lambda *arguments: (predictor, ["no/folder", 0, 0]))
    row = compare.compare(config, folder)["methods"]["ground_truth"]
    return row["metrics"], row["counts"]


def test_truth_is_read_at_the_photos_own_sizes(tmp_path):
    config = settings("voc2012", tmp_path)
    source = build_dataset(config).source("val")
    truth = photo_truth(source, config, np.array([0, -1, 1]), ("boxes", "photo_sizes", "mask"))
    _, inside = draw_photo(4)  # The first photo of val.
    np.testing.assert_array_equal(truth.photo_sizes, [inside.shape, (1, 1), draw_photo(5)[1].shape])
    dog = source.subset.names.index("dog")
    np.testing.assert_array_equal(truth.photo_masks[0] == dog + 1, inside)
    rows, columns = np.nonzero(inside)
    height, width = inside.shape
    expected = np.array(
        [columns.min() / width, rows.min() / height, (columns.max() + 1) / width, (rows.max() + 1) / height]
    )
    np.testing.assert_allclose(truth.boxes.corners[0, 0], SIZE * expected, rtol=1e-5)
    assert truth.boxes.class_ids[:, 0].tolist() == [dog, -1, source.subset.names.index("cat")]
    assert truth.boxes.ignored[:, 0].tolist() == [False, False, True]
    assert photo_truth(source, config, np.array([0]), ("mask", "model")) == PhotoTruth()


class TwoBoxes:
    """A photo of 60 x 40 pixels with a box in its corner and one in its middle."""

    def boxes(self, index):
        corners = np.array([[0, 0, 0.1, 0.1], [0.4, 0.4, 0.6, 0.6]], np.float32)
        return Boxes(corners, np.array([5, 7]), np.array([False, True]), (40, 60))


def test_boxes_that_the_fit_cuts_off_are_left_out():
    config = base_config()
    config.data.update({"image_size": SIZE, "fit": "center", "center_fraction": 1.0})
    found = photo_truth(TwoBoxes(), config, np.array([0]), ("boxes",)).boxes
    # The square's 40 pixels begin at the photo's tenth: 24 - 10 and 36 - 10, 16 and 24, times 32 / 40.
    np.testing.assert_allclose(found.corners[0, 0], [11.2, 12.8, 20.8, 19.2], rtol=1e-5)
    assert found.class_ids[0].tolist() == [7] + 7 * [-1] and found.ignored[0, 0]


def test_difficult_boxes_do_not_count(tmp_path, monkeypatch):
    config = settings("voc2012", tmp_path / "data", **AGAINST_BOXES, pointing_game_photo={}, segmentation={})
    numbers, counts = compared(config, tmp_path / "run", monkeypatch)
    # Two photos, and the box of the second one's cat is difficult.
    assert counts["max_box_accuracy"] == counts["pointing_game_boxes"] == counts["pointing_game_photo"] == 1
    assert counts["continuous_iou"] == 2
    assert numbers["box_accuracy_50"] == numbers["pointing_game_boxes"] == numbers["pointing_game_photo"] == 1


# COCO's fake photos show a dog on a cat, of which four corners are left, and a crowd of persons, which do not count.
@pytest.mark.parametrize(("name", "count", "found"), [("coco2017", 4, 0.5), ("cub200", 2, 1)])
def test_boxes_and_photos_of_other_sets(name, count, found, tmp_path, monkeypatch):
    config = settings(name, tmp_path / "data", **AGAINST_BOXES, pointing_game_photo={"regions": "mask"})
    numbers, counts = compared(config, tmp_path / "run", monkeypatch)
    assert counts["max_box_accuracy"] == counts["pointing_game_boxes"] == counts["pointing_game_photo"] == count
    assert numbers["box_accuracy_30"] == found and numbers["pointing_game_boxes"] == numbers["pointing_game_photo"] == 1


@pytest.mark.parametrize("name", ["coco2017", "cub200"])
def test_hosts_that_share_the_photos_find_what_one_does(name, tmp_path, monkeypatch):
    config = settings(name, tmp_path / "data", **AGAINST_BOXES, pointing_game_photo={"regions": "mask"})
    config.evaluation.batch_size = 1
    one = compared(config, tmp_path / "one", monkeypatch)
    assert one[1]["pointing_game_photo"] > 1
    found = on_hosts(monkeypatch, 2, lambda host: compared(config, tmp_path / "two", monkeypatch))
    assert found == [one, one]


def test_a_folder_has_masks_and_no_boxes(tmp_path):
    config = settings("folder", tmp_path)
    info = build_dataset(config).info
    check_needs("pointing_game_photo", ("photo_sizes", "mask"), info, config)
    with pytest.raises(UserError, match="'pointing_game_boxes' needs boxes, which data set 'folder'"):
        check_needs("pointing_game_boxes", ("boxes",), info, config)
    config.data.fit = "center"
    with pytest.raises(UserError, match="maps of whole photos: set config.data.fit = 'squeeze'"):
        check_needs("pointing_game_photo", ("photo_sizes", "mask"), info, config)
