"""Overlays and grids."""

import numpy as np
import pytest
from PIL import Image

from selfexplain_jax import pictures
from selfexplain_jax.types import UserError


def test_overlay_blends_a_color_map():
    image, mask = np.zeros((2, 2, 3)), np.asarray([[0.0, 1.0], [0.0, 1.0]])
    result = pictures.overlay(image, mask, opacity=1)
    assert result.dtype == np.uint8 and result.shape == (2, 2, 3)
    np.testing.assert_array_equal(result[0, 0], [68, 1, 84])  # the ends of viridis
    np.testing.assert_array_equal(result[0, 1], [253, 231, 37])
    np.testing.assert_array_equal(pictures.overlay(image + 0.2, mask, opacity=0), np.full((2, 2, 3), 51))


def test_overlay_refuses_other_sizes_and_nan():
    with pytest.raises(UserError, match="does not fit"):
        pictures.overlay(np.zeros((4, 4, 3)), np.zeros((2, 2)))
    with pytest.raises(UserError, match="not finite"):
        pictures.overlay(np.zeros((2, 2, 3)), np.full((2, 2), np.nan))


def test_grid_is_written(tmp_path):
    path = tmp_path / "new" / "grid.png"
    columns = {"image": [np.zeros((4, 4, 3), np.uint8), np.ones((4, 4, 3))], "mask": [None, np.ones((4, 4))]}
    pictures.save_grid(path, columns, ["first", "second"], {"mask": ["", "0.9"]})
    with Image.open(path) as picture:
        assert picture.width > 200 and picture.height > 200


def test_grid_refuses_uneven_columns_and_nan(tmp_path):
    with pytest.raises(UserError, match="one length"):
        pictures.save_grid(tmp_path / "a.png", {"a": [np.zeros((2, 2))], "b": []})
    with pytest.raises(UserError, match="at least one picture"):
        pictures.save_grid(tmp_path / "a.png", {})
    with pytest.raises(UserError, match="'a' holds values"):
        pictures.save_grid(tmp_path / "a.png", {"a": [np.full((2, 2), np.nan)]})
    with pytest.raises(UserError, match="columns that do not exist"):
        pictures.save_grid(tmp_path / "a.png", {"a": [np.zeros((2, 2))]}, cell_titles={"b": [""]})
