"""What a comparison says of images, maps and ground truth that it cannot use, each in one place and once."""

import numpy as np
from test_compare import breaks_on, brightness_of, colours, settings  # noqa: F401 (colours is a fixture)

from selfexplain_jax import compare
from selfexplain_jax.attribution import METHODS


def test_figure_says_where_a_method_failed(tmp_path, monkeypatch):
    drawn, config = {}, settings(ground_truth={}, broken={})
    monkeypatch.setattr(compare, "save_grid", lambda path, cells, titles, also=(): drawn.update(cells))
    monkeypatch.setitem(METHODS, "broken", breaks_on(brightness_of(config, 9)))
    compare.compare(config, tmp_path)
    assert isinstance(drawn["broken"][0], np.ndarray) and drawn["broken"][1] == "failed"
    assert all(isinstance(cell, np.ndarray) for cell in drawn["ground_truth"])
