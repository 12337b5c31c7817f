"""Maps against boxes: answers worked out by hand."""

from xml.etree import ElementTree

import cv2
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from selfexplain_jax.metrics import boxes
from selfexplain_jax.types import UserError


def test_regions_are_the_pixels_whose_centre_lies_in_a_box_of_the_class():
    corners = jnp.asarray([[[1.0, 0.0, 3.0, 2.0], [0.0, 2.6, 0.5, 4.0], [0.4, 2.4, 1.6, 4.0]]])
    regions = boxes.box_regions(corners, jnp.asarray([[0, 1, 1]]), jnp.asarray([[1, 0, 2]]), jnp.zeros((1, 4, 4, 3)))
    expected = np.zeros((3, 4, 4))
    expected[1, 0:2, 1:3] = 1
    # The second box holds no centre; the third reaches over those of rows 2 and 3 and columns 0 and 1.
    expected[0, 2:4, 0:2] = 1
    np.testing.assert_array_equal(regions[0], expected)


def test_padding_is_no_box():
    regions = boxes.box_regions(
        jnp.asarray([[[0.0, 0.0, 2.0, 2.0]]]), jnp.asarray([[-1]]), jnp.asarray([[0, 1]]), jnp.zeros((1, 2, 2, 3))
    )
    assert not regions.any()


def test_iou_counts_both_ends():
    found = boxes.box_iou(np.array([[0, 0, 1, 1], [4, 4, 5, 5]]), np.array([[1, 1, 2, 2], [0, 0, 1, 1]]))
    np.testing.assert_allclose(found, [[1 / 7, 1], [0, 0]])


def test_boxes_of_a_map_of_two_blobs():
    unit_map = np.zeros((10, 12), np.float32)
    unit_map[1:4, 2:5] = 1.0
    unit_map[6:9, 7:12] = 0.5
    found = boxes.boxes_at_thresholds(unit_map)
    assert len(found) == 1000
    # Up to half of the maximum both blobs are there, each with the published end: x + w, cut at the last pixel.
    assert sorted(found[0].tolist()) == [[2, 1, 5, 4], [7, 6, 11, 9]]
    # .5 is step 127 of 255, and at threshold .5 the level is 127 too: strictly above it there is the first blob alone.
    assert found[500].tolist() == [[2, 1, 5, 4]]
    assert len(found[490]) == 2


def test_a_flat_map_gives_the_published_box_of_nothing():
    found = boxes.boxes_at_thresholds(np.zeros((5, 5), np.float32))
    assert all(box.tolist() == [[0, 0, 0, 0]] for box in found)


def test_thresholds_shared_by_a_level_give_what_each_alone_gives():
    unit_map = np.random.default_rng(0).random((9, 9), np.float32)
    unit_map[0, 0], unit_map[8, 8] = 0, 1
    found = boxes.boxes_at_thresholds(unit_map)
    grey = (unit_map * 255).astype(np.uint8)
    for place in (0, 137, 613, 999):
        above = (grey > int(boxes.MAP_THRESHOLDS[place] * 255)).astype(np.uint8)
        contours, _ = cv2.findContours(above, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)
        rectangles = [cv2.boundingRect(contour) for contour in contours]
        expected = [[x, y, min(x + w, 8), min(y + h, 8)] for x, y, w, h in rectangles]
        assert found[place].tolist() == expected


def test_max_box_accuracy_takes_the_best_threshold_of_the_whole_set():
    # Two maps, each of one bright and one dim blob; the object is the bright one in the first and both in the second.
    first, second = np.zeros((2, 12, 12), np.float32)
    first[2:5, 2:5], first[2:5, 8:11] = 1, 0.5
    second[2:5, 2:5], second[2:5, 5:11] = 1, 0.5
    hits = boxes.localised(first, np.array([[2, 2, 5, 5]])).astype(float)
    assert hits[:, 600].all() and hits[:, 100].all()  # all contours are looked at, so the dim blob does no harm
    hits += boxes.localised(second, np.array([[2.9, 2.2, 11, 5]]))
    # The second map's bright blob is a box (2, 2)-(5, 5) of 16 pixels in the object's 10 x 4: IoU .4.
    np.testing.assert_array_equal(hits[:, 600], [2, 1, 1])
    np.testing.assert_array_equal(hits[:, 100], [2, 2, 2])
    accuracy = boxes.max_box_accuracy(hits, 2)
    assert accuracy == {"max_box_accuracy": 1, "box_accuracy_30": 1, "box_accuracy_50": 1, "box_accuracy_70": 1}
    accuracy = boxes.max_box_accuracy(np.where(np.arange(1000) > 500, hits, 0), 2)
    assert accuracy["max_box_accuracy"] == pytest.approx((1 + 0.5 + 0.5) / 3)


def test_boxes_without_an_area_are_refused():
    for corners in (np.zeros((0, 4)), np.array([[3, 3, 3, 5]])):
        with pytest.raises(UserError, match="with an area"):
            boxes.localised(np.eye(4, dtype=np.float32), corners)


def test_most_photos_silhouettes_give_their_own_boxes(shared_data):
    folder = shared_data / "raw" / "VOCdevkit" / "VOC2012"
    names = (folder / "ImageSets" / "Segmentation" / "val.txt").read_text().split()[:40]
    hits = []
    for name in names:
        objects = ElementTree.parse(folder / "Annotations" / f"{name}.xml").findall("object")
        mask = np.asarray(Image.open(folder / "SegmentationClass" / f"{name}.png"))
        classes = set(np.unique(mask)) - {0, 255}
        if len(objects) != 1 or len(classes) != 1:
            continue
        # The void border is part of the annotated object's box.
        sides = [float(objects[0].findtext(f"bndbox/{side}")) for side in ("xmin", "ymin", "xmax", "ymax")]
        corners = np.array([[sides[0] - 1, sides[1] - 1, sides[2], sides[3]]])
        hits.append(boxes.localised((mask > 0).astype(np.float32), corners)[:2, 500].all())
    # Something in front of an object can cut its silhouette in two.
    assert len(hits) >= 5 and np.mean(hits) >= 0.8
