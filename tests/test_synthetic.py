"""The synthetic pictures: schema, determinism, independence of what must be independent, and areas known by hand."""

import math
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from selfexplain_jax.data import scene_pixels, scenes
from selfexplain_jax.data.scene_pixels import coverage, render
from selfexplain_jax.data.scenes import polygon_area, sample_scene, shape_vertices
from selfexplain_jax.data.synthetic import Synthetic
from selfexplain_jax.types import UserError

CHOICES = [
    {},
    {"label": "shape"},
    {"label": "texture"},
    {"max_objects": 4},
    {"min_objects": 2, "max_objects": 3, "num_classes": 3},
    {"confounding": 0.9},
    {"difficulty": 0.0},
    {"difficulty": 1.0},
    {"image_size": 32, "max_objects": 8},
    {"image_size": 224},
]


def drawn_scenes(count=2000, **options):
    rng = np.random.default_rng(1)
    return [sample_scene(rng, **options) for _ in range(count)]


def table(rows, columns, row_names, column_names):
    """Contingency table [R, C] of two sequences of names."""
    counts = np.zeros((len(row_names), len(column_names)))
    for row, column in zip(rows, columns, strict=True):
        counts[row_names.index(row), column_names.index(column)] += 1
    return counts


def assert_independent(counts):
    """Pearson's chi-square of a table is within 4 standard deviations of what independence gives."""
    expected = counts.sum(axis=1, keepdims=True) * counts.sum(axis=0, keepdims=True) / counts.sum()
    freedom = (counts.shape[0] - 1) * (counts.shape[1] - 1)
    statistic = ((counts - expected) ** 2 / expected).sum()
    assert statistic < freedom + 4 * math.sqrt(2 * freedom), f"chi-square {statistic:.1f}, {freedom} degrees of freedom"


# ---- Schema ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", CHOICES, ids=str)
def test_items_follow_the_schema(options):
    dataset = Synthetic(**options)
    size, classes = options.get("image_size", 64), options.get("num_classes", 8)
    info = dataset.info
    assert (info.name, info.num_classes, info.image_size, info.has_masks) == ("synthetic", classes, size, True)
    assert len(set(info.class_names)) == classes
    assert info.multilabel == (options.get("max_objects", 1) > 1)
    for split in ("train", "validation", "test"):
        source = dataset.source(split)
        for index in (0, 7, len(source) - 1):
            item = source[index]
            assert set(item) == {"image", "label", "mask", "id"}
            assert item["id"] == f"{split}_{index:06d}"
            assert item["image"].shape == (size, size, 3) and item["image"].dtype == np.uint8
            assert item["mask"].shape == (size, size) and item["mask"].dtype == np.uint8
            assert item["label"].shape == (classes,) and item["label"].dtype == np.float32
            assert set(np.unique(item["label"])) <= {0.0, 1.0}
            # The mask shows exactly the classes of the label: no void, nothing hidden, nothing extra.
            assert set(np.unique(item["mask"])) - {0} == set(np.flatnonzero(item["label"]) + 1)


def test_class_names_say_what_the_class_is():
    assert Synthetic(num_classes=3).info.class_names == ("circle", "triangle", "square")
    assert Synthetic(num_classes=2, label="texture").info.class_names == ("dots", "rings")


def test_sizes_of_the_splits():
    dataset = Synthetic(train_size=5, validation_size=3, test_size=2)
    assert [len(dataset.source(split)) for split in ("train", "validation", "test")] == [5, 3, 2]
    assert [len(Synthetic().source(split)) for split in ("train", "validation", "test")] == [50000, 2000, 2000]


# ---- Determinism -----------------------------------------------------------------------------------------------------


def same(first, second):
    return first["id"] == second["id"] and all(np.array_equal(first[k], second[k]) for k in ("image", "mask", "label"))


def test_same_index_same_item_in_any_order_and_copy():
    source = Synthetic(max_objects=3).source("train")
    forward = [source[index] for index in range(12)]
    other = pickle.loads(pickle.dumps(Synthetic(max_objects=3, data_dir="elsewhere").source("train")))
    for index in reversed(range(12)):
        assert same(forward[index], other[np.int64(index)])


def test_threads_give_the_same_items():
    source = Synthetic(max_objects=3).source("train")
    expected = [source[index] for index in range(60)]
    scene_pixels.texture_tile.cache_clear()  # So that the threads also race for the tiles.
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(source.__getitem__, range(60)))
    assert all(map(same, expected, found))


def test_size_of_a_split_does_not_change_its_items():
    assert same(Synthetic(train_size=10).source("train")[9], Synthetic().source("train")[9])


def test_no_picture_occurs_twice():
    pictures = set()
    for seed in (0, 1):
        for split in ("train", "validation", "test"):
            source = Synthetic(seed=seed).source(split)
            pictures |= {source[index]["image"].tobytes() for index in range(30)}
    assert len(pictures) == 2 * 3 * 30


# ---- What is in a picture --------------------------------------------------------------------------------------------


def test_label_object_ties_shape_and_texture():
    for scene in drawn_scenes(200):
        (item,) = scene.objects
        assert item.shape == scenes.SHAPES[item.class_id]
        assert item.texture.family == scenes.OBJECT_TEXTURES[item.class_id]


def test_label_shape_leaves_the_texture_free():
    items = [scene.objects[0] for scene in drawn_scenes(label="shape")]
    assert all(item.shape == scenes.SHAPES[item.class_id] for item in items)
    families = [item.texture.family for item in items]
    assert_independent(table([i.shape for i in items], families, scenes.SHAPES, scenes.OBJECT_TEXTURES))


def test_label_texture_leaves_the_shape_free():
    items = [scene.objects[0] for scene in drawn_scenes(label="texture", num_classes=4)]
    families = [item.texture.family for item in items]
    assert families == [scenes.OBJECT_TEXTURES[item.class_id] for item in items]
    counts = table([item.shape for item in items], families, scenes.SHAPES, scenes.OBJECT_TEXTURES[:4])
    assert counts.min() > 0
    assert_independent(counts)


def test_background_is_independent_of_the_object():
    drawn = drawn_scenes()
    shapes, families = scenes.SHAPES, scenes.BACKGROUND_TEXTURES
    backgrounds = [scene.background.family for scene in drawn]
    counts = table([scene.objects[0].shape for scene in drawn], backgrounds, shapes, families)
    assert counts.min() > 15  # 2000 / 48 = 42 expected.
    assert_independent(counts)
    # Its colours too: which channel is the strongest.
    strongest = [int(np.argmax(scene.background.mean_color)) for scene in drawn]
    assert_independent(table([scene.objects[0].class_id for scene in drawn], strongest, list(range(8)), [0, 1, 2]))


def test_place_and_area_are_independent_of_the_class():
    drawn = [scene.objects[0] for scene in drawn_scenes()]
    areas = np.array([polygon_area(scenes.POLYGONS[i.shape]) * i.radius**2 for i in drawn])
    large = (areas > np.median(areas)).tolist()
    classes = [item.class_id for item in drawn]
    assert_independent(table(classes, large, list(range(8)), [False, True]))
    left = [item.center[0] < 0.5 for item in drawn]
    assert_independent(table(classes, left, list(range(8)), [False, True]))


def test_classes_of_several_objects_are_independent_and_counts_uniform():
    drawn = drawn_scenes(2000, min_objects=1, max_objects=3, num_classes=4)
    counts = np.bincount([len(scene.objects) for scene in drawn])[1:]
    assert len(counts) == 3 and np.all(np.abs(counts - 2000 / 3) < 4 * math.sqrt(2000 * 2 / 9))
    pairs = [[item.class_id for item in scene.objects[:2]] for scene in drawn if len(scene.objects) > 1]
    assert_independent(table(*zip(*pairs, strict=True), list(range(4)), list(range(4))))


def test_textures_of_objects_never_occur_in_backgrounds():
    assert not set(scenes.OBJECT_TEXTURES) & set(scenes.BACKGROUND_TEXTURES)


@pytest.mark.parametrize("difficulty", [0.0, 0.5, 1.0])
def test_contrasts(difficulty):
    for scene in drawn_scenes(300, difficulty=difficulty):
        (item,) = scene.objects
        lumas = [np.dot(scenes._LUMA, color) for color in item.texture.colors]
        assert abs(lumas[0] - lumas[1]) >= 0.62 - 0.36 * difficulty - 1e-6
        assert math.dist(item.texture.mean_color, scene.background.mean_color) >= 0.2
        assert 0 <= np.min(item.texture.colors) and np.max(item.texture.colors) <= 1


def test_difficulty_adds_noise():
    flat, noisy = (
        render(scene, 64)[0].astype(float)
        for scene in (
            next(s for s in drawn_scenes(50, difficulty=difficulty) if s.background.family == "plain")
            for difficulty in (0.0, 1.0)
        )
    )
    corner = np.s_[:3, :3]
    assert np.ptp(flat[corner], axis=(0, 1)).max() == 0
    # Uniform in +-24 grey levels: standard deviation 48 / sqrt(12) = 13.9.
    assert 8 < noisy[corner].std(axis=(0, 1)).mean() < 20


# ---- Several objects -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("least", "most"), [(1, 2), (2, 4), (8, 8)])
def test_objects_are_as_many_as_asked_inside_and_apart(least, most):
    for scene in drawn_scenes(150, min_objects=least, max_objects=most):
        assert least <= len(scene.objects) <= most
        for number, item in enumerate(scene.objects):
            vertices = shape_vertices(item.shape, item.center, item.radius, item.angle)
            assert vertices.min() >= scenes.MARGIN - 1e-9 and vertices.max() <= 1 - scenes.MARGIN + 1e-9
            for other in scene.objects[:number]:
                gap = math.dist(item.center, other.center) - item.radius - other.radius
                assert gap >= scenes.MARGIN - 1e-9


def test_grid_takes_what_random_places_cannot(monkeypatch):
    monkeypatch.setattr(scenes, "AREA_RANGE", (0.9, 0.95))  # Nothing of that size can ever be placed beside another.
    placed = scenes._place(np.random.default_rng(0), ["circle"] * 5)
    assert len(placed) == 5
    for number, (center, radius, _) in enumerate(placed):
        # 3 x 3 cells, radius half a cell less the margin: 1/6 - 1/32.
        assert radius == pytest.approx(1 / 6 - 1 / 32)
        for other, other_radius, _ in placed[:number]:
            assert math.dist(center, other) - radius - other_radius >= 2 * scenes.MARGIN - 1e-9


def test_pixels_of_each_object_match_its_polygon():
    for scene in drawn_scenes(40, min_objects=2, max_objects=4):
        _, mask = render(scene, 96)
        for class_id in {item.class_id for item in scene.objects}:
            expected = sum(
                polygon_area(scenes.POLYGONS[item.shape]) * (item.radius * 96) ** 2
                for item in scene.objects
                if item.class_id == class_id
            )
            assert (mask == class_id + 1).sum() == pytest.approx(expected, rel=0.08, abs=6)


def test_area_of_a_single_object():
    source = Synthetic().source("train")
    areas = [(source[index]["mask"] > 0).mean() for index in range(300)]
    assert 0.06 < min(areas) < 0.09 and 0.2 < max(areas) < 0.24


# ---- Confounding -----------------------------------------------------------------------------------------------------


def agreement(source, count=1500):
    """How often the background's family is that of the first object's class."""
    drawn = [source.scene(index) for index in range(count)]
    families = scenes.BACKGROUND_TEXTURES
    return np.mean([s.background.family == families[s.objects[0].class_id % 6] for s in drawn])


def test_confounding_is_in_train_only():
    dataset = Synthetic(confounding=0.7)
    # 0.7 by design and 0.3 / 6 by chance; three standard deviations are .034.
    assert agreement(dataset.source("train")) == pytest.approx(0.75, abs=0.034)
    assert agreement(dataset.source("test")) == pytest.approx(1 / 6, abs=0.03)
    assert agreement(dataset.source("validation")) == pytest.approx(1 / 6, abs=0.03)
    assert not any(dataset.source("test").scene(index).confounded for index in range(200))
    assert agreement(Synthetic().source("train")) == pytest.approx(1 / 6, abs=0.03)


def test_full_confounding_gives_each_class_its_colour():
    means = {}
    for scene in drawn_scenes(400, confounding=1.0):
        assert scene.confounded
        color = np.array(scene.background.mean_color)
        means.setdefault(scene.objects[0].class_id, []).append(
            (color - color.mean()) / np.linalg.norm(color - color.mean())
        )
    centers = np.array([np.mean(means[class_id], axis=0) for class_id in range(8)])  # [8, 3]
    spread = max(np.linalg.norm(np.array(means[c]) - centers[c], axis=1).max() for c in range(8))
    distances = np.linalg.norm(centers[:, None] - centers[None], axis=-1)
    # Any confounded background is nearer to its own class's hue than half-way to another's.
    assert spread < distances[~np.eye(8, dtype=bool)].min() / 2 + 0.1
    assert distances[~np.eye(8, dtype=bool)].min() > 0.3


# ---- Known answers ---------------------------------------------------------------------------------------------------


def test_area_of_unit_polygons():
    areas = {name: polygon_area(points) for name, points in scenes.POLYGONS.items()}
    assert areas["circle"] == pytest.approx(math.pi, rel=0.002)
    assert areas["triangle"] == pytest.approx(3 * math.sqrt(3) / 4)
    assert areas["square"] == pytest.approx(2.0)
    assert areas["hexagon"] == pytest.approx(3 * math.sqrt(3) / 2)
    # Ten triangles with sides 1 and .45 and 36 degrees between them.
    assert areas["star"] == pytest.approx(5 * 0.45 * math.sin(math.pi / 5))
    for points in scenes.POLYGONS.values():
        assert np.linalg.norm(points, axis=1).max() == pytest.approx(1.0)


@pytest.mark.parametrize("size", [64, 224])
@pytest.mark.parametrize(("shape", "area"), [("circle", math.pi), ("square", 2.0)])
def test_area_of_circle_and_square_in_pixels(shape, area, size):
    radius = 0.27 * size
    alpha, left, top = coverage(shape_vertices(shape, (0.51 * size, 0.47 * size), radius, 0.3), size)
    assert alpha.sum() / 255 == pytest.approx(area * radius**2, rel=0.02)
    assert (alpha >= 128).sum() == pytest.approx(area * radius**2, rel=0.02)
    y, x = np.indices(alpha.shape)
    center = [np.average(grid, weights=alpha) + 0.5 + start for grid, start in ((x, left), (y, top))]
    assert center == pytest.approx([0.51 * size, 0.47 * size], abs=0.15)


def test_border_of_an_axis_parallel_square_is_anti_aliased():
    # From x = y = 10.25 to 20.25: the first column is covered by 3/4, the last one by 1/4.
    half = 5.0
    vertices = shape_vertices("square", (15.25, 15.25), half * math.sqrt(2), math.pi / 4)
    alpha, left, top = coverage(vertices, 64)
    assert (left, top) == (10, 10) and alpha.shape == (11, 11)
    assert alpha[5, 5] == 255
    assert alpha[5, 0] / 255 == pytest.approx(0.75, abs=0.07)
    assert alpha[5, 10] / 255 == pytest.approx(0.25, abs=0.07)


@pytest.mark.parametrize("family", scenes.OBJECT_TEXTURES + ("stripes", "checks"))
def test_tiles_use_both_colours_and_wrap_around(family):
    tile, cell = scene_pixels.texture_tile(family, 64)
    assert cell == 10 and tile.shape == (200, 200) and tile.dtype == np.uint8
    assert 0.2 < tile.mean() / 255 < 0.7
    assert tile.min() < 20 and tile.max() > 235
    if family not in ("rings", "maze"):
        assert np.array_equal(tile[:40, :40], tile[40:80, 120:160])  # Four cells are a period.


def test_a_scene_looks_alike_at_every_size():
    scene = next(s for s in drawn_scenes(50, difficulty=0.0) if s.background.family == "stripes")
    small, small_mask = render(scene, 64)
    large, large_mask = render(scene, 128)
    shrunk = large.reshape(64, 2, 64, 2, 3).mean(axis=(1, 3))  # [64, 64, 3]
    assert np.abs(shrunk - small).mean() < 8
    assert (large_mask > 0).mean() == pytest.approx((small_mask > 0).mean(), rel=0.03)


# ---- Bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label": "colour"}, "label='colour' does not exist; choose from object, shape, texture"),
        ({"image_size": 16}, "image_size=16 must be a whole number, 32 to 512"),
        ({"image_size": 64.0}, "image_size=64.0 must be a whole number"),
        ({"num_classes": 9}, "num_classes=9 must be a whole number, 2 to 8"),
        ({"seed": -1}, "seed=-1 must be a whole number, 0 or more"),
        ({"max_objects": 9}, "max_objects=9 must be a whole number, 1 to 8"),
        ({"max_objects": 2, "min_objects": 3}, "min_objects=3 must be a whole number, 1 to 2"),
        ({"num_classes": 1}, "num_classes=1 must be a whole number, 2 to 8"),
        ({"num_classes": True}, "num_classes=True must be a whole number, 2 to 8"),
        ({"difficulty": 1.5}, "difficulty=1.5 must be a number from 0 to 1"),
        ({"difficulty": "hard"}, "difficulty='hard' must be a number from 0 to 1"),
        ({"confounding": -0.1}, "confounding=-0.1 must be a number from 0 to 1"),
        ({"confounding": float("nan")}, "confounding=nan must be a number from 0 to 1"),
        ({"test_size": 0}, "test_size=0 must be a whole number, 1 or more"),
    ],
)
def test_bad_options_say_what_is_wrong(options, message):
    with pytest.raises(UserError, match="Dataset 'synthetic'") as caught:
        Synthetic(**options)
    assert message in str(caught.value)


def test_unknown_split_names_those_that_exist():
    with pytest.raises(UserError, match="no split 'val'; it has train, validation, test"):
        Synthetic().source("val")


@pytest.mark.parametrize("index", [-1, 2000, 10**9])
def test_index_outside_the_split(index):
    with pytest.raises(IndexError, match="test split of 2000"):
        Synthetic().source("test")[index]
