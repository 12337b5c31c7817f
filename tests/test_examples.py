"""Rows and pictures of single images: which are kept, what is written, what damaged files say."""

import numpy as np
import pytest

from selfexplain_jax import examples
from selfexplain_jax.types import UserError


def row(iou, *, probability=0.9, correct=True):
    """A row of an image of class 0 of three."""
    told = np.asarray([probability, 1 - probability, 0.0])
    decided = np.asarray([1, 0, 0] if correct else [0, 1, 0])
    return examples.row_of(np.asarray([1, 0, 0]), {"model": (told, decided)}, {"mask": iou})


def pictures(position, methods=1):
    image = np.full((8, 8, 3), position / 100)
    class_ids = np.asarray([0, -1])
    return examples.keep(image, np.zeros((8, 8), np.uint8), class_ids, np.full((methods, 2, 8, 8), 0.5))


def test_a_row_by_hand():
    label, probabilities = np.asarray([1, 0, 1, 0]), np.asarray([0.9, 0.6, 0.3, 0.7])
    told = (probabilities, (probabilities > 0.5).astype(np.float32))
    parts = {"object": np.asarray([0.5, 0, 0.1, 0])}
    assert examples.row_of(label, {"m": told}, {"mask": 0.12345, "other": None}, parts) == {
        "labels": [0, 2],
        "iou": {"mask": 0.1235, "other": None},
        "predictions": {
            "m": {"classes": [0, 3, 1], "probabilities": [0.9, 0.7, 0.6], "label_probability": 0.6, "correct": False}
        },
        "parts": {"object": 0.3},
    }


def test_the_worst_the_wrong_and_evenly_spaced_ones_are_kept():
    positions = np.arange(40)
    rows = {int(p): row(0.5 + p / 100) for p in positions}
    rows[13], rows[17], rows[27] = row(0.1), row(0.2), row(0.05)
    rows[6], rows[22] = row(0.9, probability=0.4, correct=False), row(0.9, probability=0.1, correct=False)
    rows[31] = row(None)  # without annotation it cannot be the worst
    asked = []

    def draw(position):
        asked.append(position)
        return pictures(position)

    collector = examples.Collector("abc", ["mask"], "mask", 8, positions)
    for start in range(0, 40, 10):
        collector.add({p: rows[p] for p in range(start, start + 10)}, draw)
    found = collector.examples(str)
    # Two worst, two wrong, four evenly spaced from the first to the last, 13 twice.
    assert list(found.kept) == sorted([27, 13, 22, 6, 0, 26, 39])
    assert found.kept[27].identifier == "27" and len(found.rows) == 40
    assert len(asked) < 20  # pictures are made of candidates only
    assert examples.lowest_iou(found.rows, "mask")[:3] == [27, 13, 17]
    assert examples.wrong_predictions(found.rows) == [22, 6]


def test_what_is_written_is_read(tmp_path):
    assert examples.read(tmp_path) is None
    collector = examples.Collector(["a", "b", "c"], ["one", "two"], "one", 4, np.arange(3))
    rows = {p: row(0.5) | {"iou": {"one": 0.5, "two": None}} for p in range(3)}
    collector.add(rows, lambda position: pictures(position, 2))
    before = collector.examples(lambda position: f"photo {position}")
    examples.write(tmp_path, before)
    after = examples.read(tmp_path)
    assert (after.class_names, after.methods, after.ranked_by) == (["a", "b", "c"], ["one", "two"], "one")
    assert after.rows == before.rows and list(after.kept) == list(before.kept)
    kept = after.kept[2]
    assert kept.identifier == "photo 2" and kept.image[0, 0, 0] == 5 and kept.maps.shape == (2, 2, 8, 8)
    assert kept.maps[0, 0, 0, 0] == 128 and kept.maps[0, 1, 0, 0] == 0
    np.testing.assert_array_equal(kept.drawn, [[True, False], [True, False]])

    (tmp_path / "examples.npz").write_bytes(b"PK\x03\x04 cut")
    with pytest.raises(UserError, match="Evaluate again"):
        examples.read(tmp_path)
    (tmp_path / "examples.npz").unlink()
    with pytest.raises(UserError, match="Evaluate again"):
        examples.read(tmp_path)


def test_large_pictures_are_reduced_and_a_classifier_has_none_of_masks():
    mask = np.zeros((600, 300), np.uint8)
    mask[:300] = 255
    kept = examples.keep(np.ones((600, 300, 3)), mask, np.asarray([1]), np.ones((1, 1, 600, 300)))
    assert kept.image.shape == (256, 128, 3) and kept.mask.shape == (128, 64) and kept.maps.shape == (1, 1, 128, 64)
    assert set(np.unique(kept.mask)) == {0, 255}
    bare = examples.keep(np.ones((9, 9, 3)), np.zeros((9, 9), np.uint8), np.full(1, -1), np.zeros((0, 1, 9, 9)))
    assert bare.maps.shape[:2] == bare.drawn.shape == (0, 1)
