"""The benchmark of methods and metrics, on a classifier of a few products: what it measures, and what it writes."""

import ast
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selfexplain_jax import (
    attribution,
    benchmark,
    benchmark_attribution,
    benchmark_curves,
    benchmark_peers,
    benchmark_step,
)
from selfexplain_jax.benchmark_attribution import Subject
from selfexplain_jax.config import base_config
from selfexplain_jax.data import build_dataset
from selfexplain_jax.types import UserError

SIZE, CELLS, CHANNELS, CLASSES = 16, 4, 6, 3
RANDOM = np.random.default_rng(0)
MIX = RANDOM.normal(size=(SIZE * SIZE * 3 // CELLS**2, CHANNELS)).astype(np.float32)
LAST = RANDOM.normal(size=(CHANNELS, CLASSES)).astype(np.float32)


def features(images):
    cell = SIZE // CELLS
    cells = images.reshape(-1, CELLS, cell, CELLS, cell, 3).transpose(0, 1, 3, 2, 4, 5)  # [B, h, w, cell, cell, 3]
    return jax.nn.relu(cells.reshape(-1, CELLS, CELLS, MIX.shape[0]) @ MIX)  # [B, h, w, K]


def head(layer):
    return layer.mean(axis=(1, 2)) @ LAST


def masks(images, class_ids):
    logits = (features(images) @ LAST).transpose(0, 3, 1, 2)  # [B, C, h, w]
    logits = jnp.take_along_axis(logits, class_ids[:, :, None, None], axis=1)
    return jax.nn.sigmoid(jnp.repeat(jnp.repeat(logits, SIZE // CELLS, axis=2), SIZE // CELLS, axis=3))


@pytest.fixture(scope="module")
def subject():
    options = {"features": features, "head": head, "class_names": CLASSES, "image_size": SIZE}
    images = RANDOM.normal(size=(4, SIZE, SIZE, 3)).astype(np.float32)
    return Subject(
        classifier=attribution.build_predictor(**options),
        self_explainer=attribution.build_predictor(**options, masks=masks),
        images=images,
        class_ids=np.array([[0, 1], [2, 0], [1, 2], [0, 2]], np.int32),
        saliency=RANDOM.random((4, SIZE, SIZE)).astype(np.float32),
        photos="4 images of noise",
        weights={"w": np.ones(2)},
        strides=(1,),
    )


@pytest.fixture
def config():
    config = base_config()
    settings = config.benchmark
    settings.repetitions, settings.chunk_size = 3, 4
    settings.images = settings.extremal_images = settings.metric_images = settings.curve_images = 2
    settings.classes, settings.extremal_classes = 2, 1
    settings.rise_masks, settings.extremal_steps, settings.reference_masks = 8, 2, 64
    settings.curve_masks, settings.curve_clusters, settings.curve_repetitions = (8, 16), (3, 50), 1
    return config


def test_rows_make_as_many_maps_as_they_say_and_the_peers_know_them(subject, config):
    tree = ast.parse(benchmark_peers.SCRIPT.read_text())
    (tasks,) = (node.value for node in tree.body if isinstance(node, ast.AnnAssign) and node.target.id == "TASKS")
    known = {key.value for key in tasks.keys}
    shapes = {}
    for rows in benchmark_attribution.ROWS.values():
        for row in rows(subject, config.benchmark):
            assert row.task in known, row.name
            shapes[row.name] = jax.tree.map(lambda leaf: leaf.shape, jax.eval_shape(row.function, *row.arguments))
            first = shapes[row.name][0] if row.package == "quantus" else shapes[row.name]
            assert row.maps == first[0] * first[1], row.name
            # They travel as JSON.
            assert json.loads(json.dumps(row.settings)) == row.settings
    assert shapes["grad_cam"] == shapes["grad_cam_plus_plus"] == shapes["self_explainer"] == (2, 2, SIZE, SIZE)
    assert shapes["score_cam"] == (1, 1, SIZE, SIZE) and shapes["rise"] == (1, CLASSES, SIZE, SIZE)
    assert shapes["extremal_perturbation"] == (2, 1, SIZE, SIZE)
    assert shapes["deletion_insertion"] == ((2, 1, SIZE + 1), (2, 1, SIZE + 1))
    assert shapes["road"] == ((2, 1, 4), (2, 1, 4))


PEERS = f"""#!{sys.executable} -SE
import json, sys
print(json.dumps({{"versions": {{"grad-cam": "9.9"}}, "threads": 2}}), flush=True)
for number, line in enumerate(sys.stdin):
    asked = json.loads(line)
    answer = {{"seconds": 1000.0 + number}} if asked["task"] == "grad_cam" else {{"error": "ImportError: torchray"}}
    print(json.dumps(answer), flush=True)
"""


def test_rows_are_measured_in_turn_and_written(subject, config, tmp_path, monkeypatch, capsys):
    asked = {}

    def build(config, images):
        asked["images"] = images
        return subject

    monkeypatch.setattr(benchmark_attribution, "build_subject", build)
    interpreter = tmp_path / "python"
    interpreter.write_text(PEERS)
    interpreter.chmod(0o755)
    monkeypatch.setattr(benchmark_step, "PEAK_SIDE", 64)
    config.benchmark.rows = ("grad_cam", "self_explainer", "rise")
    path = tmp_path / "elsewhere" / "numbers.json"
    options = {"images": ["photos"], "peers": str(interpreter), "json_path": str(path)}
    result = benchmark.run(config, str(tmp_path / "run"), "attribution", **options)
    assert result == json.loads(path.read_text())
    assert asked["images"] == ["photos"] and result["photos"] == "4 images of noise"
    assert result["settings"]["rise_masks"] == 8 and list(result["rows"]) == ["grad_cam", "self_explainer", "rise"]
    row = result["rows"]["grad_cam"]
    assert row["peer"] == "grad-cam 9.9" and row["maps"] == 4 and row["missing"] == ""
    # The first of both sides does not count.
    assert row["seconds"]["peer"] == [1001.0, 1002.0, 1003.0] and row["median_seconds"]["peer"] == 1002.0
    ours = sorted(row["seconds"]["ours"])[1]
    assert row["median_seconds"]["ours"] == ours and row["ratio"] == pytest.approx(1002.0 / ours)
    assert row["maps_per_second"] == {"ours": pytest.approx(4 / ours), "peer": pytest.approx(4 / 1002.0)}
    # One product of the images with MIX, and what follows.
    product = 2 * 2 * CELLS**2 * MIX.size / 4
    assert product < row["operations_per_map"] < 10 * product
    assert row["operations_per_second"] == pytest.approx(4 * row["operations_per_map"] / ours)
    # Weights, photos and maps are in it: two photos, MIX, LAST and two maps of each photo.
    least = 4 * (2 * SIZE * SIZE * 3 + MIX.size + LAST.size + 4 * SIZE * SIZE)
    assert least <= row["memory_bytes"] < 100 * least and row["compile_seconds"] > 0
    assert len(result["matrix_product"]) == 3
    share = 4 * row["contractions_per_map"] / ours / max(result["matrix_product"])
    assert row["share_of_product"] == pytest.approx(share) and share > 0
    assert "ratio_to_own_grad_cam" in result["rows"]["self_explainer"]
    rise = result["rows"]["rise"]
    assert (rise["ratio"], rise["missing"], rise["seconds"]["peer"]) == (None, "ImportError: torchray", [])
    # Eight masked images, one pass of each for the three classes.
    assert 4 * 8 / 6 * product < rise["operations_per_map"] < 100 * product
    out = capsys.readouterr().out
    assert "Waiting for data: 0 %" in out and "% product   peak MB compile s" in out
    assert "8 of the published 8000 masks" in out and "grad-cam 9.9" in out and "ImportError: torchray" in out


def test_curves_are_agreements_and_are_written(subject, config, tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark_attribution, "build_subject", lambda config, images: subject)
    # One sampling and one number of masks less is a compilation less.
    monkeypatch.setattr(benchmark_curves, "SAMPLINGS", ("independent", "stratified"))
    config.benchmark.curve_masks = (8,)
    result = benchmark.run(config, str(tmp_path), "curves")
    assert json.loads((tmp_path / "benchmark_curves.json").read_text())["photos"] == "4 images of noise"
    curves = result["rise"]["agreement"]
    assert set(curves) == {"independent", "stratified"}
    assert all(set(curve) == {8} and curve[8] <= 1.0001 for curve in curves.values())
    assert set(result["rise"]["masks_needed"]) == {"stratified"}
    # Fewer clusters than channels alone make a point.
    assert result["score_cam"]["channels"] == CHANNELS and list(result["score_cam"]["agreement"]) == [3]
    assert 0 < result["score_cam"]["agreement"][3] <= 1.0001


def test_memory_does_not_grow_with_masks(subject, config):
    config.benchmark.chunk_size = 2
    memory = benchmark_curves.memory(subject, config.benchmark)
    assert list(memory["rise"]) == [2, 16, 128] and list(memory["rise_by_chunk"]) == [1, 2]
    # 64 times as many masks as a chunk: their numbers, and no more.
    assert memory["rise"][128] <= 1.1 * memory["rise"][16] + 128 * 4
    assert memory["score_cam"][""]["channels"] == CHANNELS and memory["score_cam"][""]["bytes"] > 0


def test_masks_needed_lie_between_two_points_in_the_logarithm():
    curve = {400: 0.7, 100: 0.5}
    assert benchmark_curves.masks_needed(curve, 0.6) == pytest.approx(200)
    assert benchmark_curves.masks_needed(curve, 0.7) == pytest.approx(400)
    assert benchmark_curves.masks_needed(curve, 0.4) == 100
    assert benchmark_curves.masks_needed(curve, 0.8) is None


def test_photos_are_those_of_the_folder_or_of_the_split(config, shared_data):
    config.data.image_size = 32
    dataset = build_dataset(config)
    files = sorted(str(file) for file in (shared_data / "photos").glob("voc*"))[:2]
    photos, shown = benchmark_attribution.read_photos(config, dataset, files, 3)
    assert photos.shape == (3, 32, 32, 3) and shown.startswith("2 photos of ") and shown.endswith("repeated to 3")
    np.testing.assert_array_equal(photos[2], photos[0])
    photos, shown = benchmark_attribution.read_photos(config, dataset, (), 3)
    assert photos.shape == (3, 32, 32, 3) and shown == "3 photos of split 'test' of synthetic"


def test_bad_input_is_refused(subject, config, tmp_path):
    with pytest.raises(UserError, match="no row 'grad'; there are grad_cam, grad_cam_plus_plus"):
        benchmark_attribution.chosen(benchmark_attribution.attribution_rows(subject, config.benchmark), ("grad",))
    with pytest.raises(UserError, match='config.method is "self_explainer"'):
        benchmark_attribution.build_subject(config)
    config.benchmark.metric_images = 0
    with pytest.raises(UserError, match="config.benchmark.metric_images = 0 must be at least 1"):
        benchmark_attribution.images_needed(config.benchmark)
    broken = tmp_path / "photo.jpg"
    broken.write_text("no photo")
    with pytest.raises(UserError, match="photo.jpg cannot be read"):
        benchmark_attribution.read_photos(config, build_dataset(config), [str(broken)], 1)
    with pytest.raises(UserError, match="there is no Python there"):
        benchmark.run(config, str(tmp_path), "metrics", peers=str(tmp_path / "nothing"))
