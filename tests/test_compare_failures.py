"""What a comparison says of images, maps and ground truth that it cannot use, each in one place and once."""

import types

import numpy as np
import pytest
from test_compare import breaks_on, brightness_of, colours, settings  # noqa: F401 (colours is a fixture)

from selfexplain_jax import compare, report
from selfexplain_jax.attribution import METHODS
from selfexplain_jax.data import build_dataset
from selfexplain_jax.training.mesh import own_batches
from selfexplain_jax.types import UserError


def test_figure_says_where_a_method_failed(tmp_path, monkeypatch):
    drawn, config = {}, settings(ground_truth={}, broken={})
    monkeypatch.setattr(compare, "save_grid", lambda path, cells, titles, also=(): drawn.update(cells))
    monkeypatch.setitem(METHODS, "broken", breaks_on(brightness_of(config, 9)))
    compare.compare(config, tmp_path)
    assert isinstance(drawn["broken"][0], np.ndarray) and drawn["broken"][1] == "failed"
    assert all(isinstance(cell, np.ndarray) for cell in drawn["ground_truth"])


def with_source(monkeypatch, config, change):
    """The comparison's data set with `change(source)` in the place of every split's source."""
    real = build_dataset(config)
    dataset = types.SimpleNamespace(info=real.info, source=lambda split: change(real.source(split)))
    monkeypatch.setattr(compare, "build_dataset", lambda settings: dataset)
    return dataset


def test_an_empty_split_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    config = settings(ground_truth={})
    with_source(monkeypatch, config, lambda source: [])
    with pytest.raises(UserError, match="Split 'test' of dataset 'synthetic' is empty"):
        compare.compare(config, tmp_path)
    assert not list(tmp_path.iterdir())


def test_ground_truth_that_is_empty_or_full_is_said_once_and_below_the_tables(tmp_path, monkeypatch, caplog):
    """Image `empty` shows nothing of its class, `full` nothing else; the eight others are as they were."""
    config = settings(ground_truth={}, half={"method": "constant"}, centre={})
    source = build_dataset(config).source("test")
    empty, full = (int(own_batches(build_dataset(config), config).positions[place]) for place in (2, 5))
    shown = {position: int(source[position]["label"].argmax()) for position in (empty, full)}
    masks = {empty: 0, full: shown[full] + 1}

    class Changed:
        def __len__(self):
            return len(source)

        def __getitem__(self, position):
            example = source[position]
            value = masks.get(int(position))
            return example if value is None else example | {"mask": np.full_like(example["mask"], value)}

    with_source(monkeypatch, config, lambda source: Changed())
    with caplog.at_level("WARNING", logger="absl"):
        results = compare.compare(config, tmp_path)
    expected = [
        f"1 maps, first (image, class) [({empty}, {shown[empty]})] of the split, have no annotated pixel of their "
        "class, and are left out of the metrics that need masks.",
        f"1 maps, first (image, class) [({full}, {shown[full]})] of the split, are of images whose objects leave no "
        "background pixel: nothing can lie beside them, and background_coverage and pixel_auc leave these images out.",
    ]
    assert results["warnings"] == expected
    # Three methods and two metrics: once all the same.
    assert [text for text in caplog.messages if " maps, first " in text] == expected
    for row in results["methods"].values():
        assert row["counts"]["iou"] == 9 and row["counts"]["pixel_auc"] == 8 and row["counts"]["pointing_game"] == 9
    assert report.comparison_markdown(results).endswith("".join(f"- {text}\n" for text in expected))
    # Read from what is written down, it is said again.
    assert compare.compare(config, tmp_path)["warnings"] == expected
    page = report.page.table_view("comparison", results)
    assert page["warnings"] == expected
