"""Every dataset of the registry, on the tiny fake of itself: the contract, splits, subsets of classes, the pipeline."""

import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from selfexplain_jax.config import base_config
from selfexplain_jax.data import DATASETS, build_dataset, dataset_options
from selfexplain_jax.data.balance import labels_of
from selfexplain_jax.data.fakes import FAKES
from selfexplain_jax.data.pipeline import evaluation_batches, train_iterator
from selfexplain_jax.types import VOID, UserError

SIZE = 32


@pytest.fixture(scope="module", params=sorted(FAKES))
def fake(request, tmp_path_factory):
    return request.param, FAKES[request.param](tmp_path_factory.mktemp(request.param))


def config_of(fake, **options):
    name, made = fake
    config = base_config()
    config.data.update({"name": name, "data_dir": made.data_dir, "image_size": SIZE})
    config.data.update({"train_split": made.train_split, "eval_split": made.eval_split})
    config.data.options = {**made.options, **options}
    config.train.batch_size = 4
    return config


def sources(fake, **options):
    config = config_of(fake, **options)
    dataset = build_dataset(config)
    return dataset, [dataset.source(split) for split in (config.data.train_split, config.data.eval_split)]


def test_every_dataset_has_a_fake():
    assert set(FAKES) == set(DATASETS) - {"mnist"}


def test_examples_hold_the_contract(fake):
    dataset, both = sources(fake)
    info = dataset.info
    assert info.name == fake[0] and len(set(info.class_names)) == info.num_classes and info.image_size == SIZE
    sizes = set()
    for source in both:
        assert len(source) > 0
        ids = set()
        for index in range(len(source)):
            example = source[index]
            image, label = example["image"], example["label"]
            assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3
            assert label.dtype == np.float32 and label.shape == (info.num_classes,)
            assert set(np.unique(label)) <= {0.0, 1.0} and (info.multilabel or label.sum() == 1)
            assert ("mask" in example) == info.has_masks
            if info.has_masks:
                mask = example["mask"]
                assert mask.dtype == np.uint8 and mask.shape == image.shape[:2]
                # What the mask shows, the label names; a mask may be void where the label speaks.
                assert set(np.unique(mask)) - {0, VOID} <= set(np.flatnonzero(label) + 1)
            ids.add(example["id"])
            sizes.add(image.shape[:2])
        assert len(ids) == len(source)
        with pytest.raises(IndexError):
            source[len(source)]
    if not info.own_sizes:
        assert sizes == {(SIZE, SIZE)}


def test_labels_at_once_are_the_labels_one_by_one(fake):
    for source in sources(fake)[1]:
        labels = labels_of(source)
        assert labels.dtype == np.float32
        np.testing.assert_array_equal(labels, np.stack([source[index]["label"] for index in range(len(source))]))


def test_same_index_same_example_from_any_thread(fake):
    source = sources(fake)[1][0]
    with ThreadPoolExecutor(4) as pool:
        threaded = list(pool.map(source.__getitem__, [i % len(source) for i in range(24)]))
    for position, example in enumerate(threaded):
        np.testing.assert_array_equal(example["image"], source[position % len(source)]["image"])


def test_what_the_info_promises_is_there(fake):
    dataset, both = sources(fake)
    for source in both:
        assert hasattr(source, "boxes") == dataset.info.has_boxes
        # Small photos are decoded whole: the masks are the same.
        for index in range(len(source) if dataset.info.has_masks and dataset.info.own_sizes else 0):
            np.testing.assert_array_equal(source.photo_mask(index), source[index]["mask"])


def test_boxes_lie_inside_and_are_of_the_label(fake):
    for source in sources(fake)[1]:
        for index in range(len(source) if hasattr(source, "boxes") else 0):
            boxes, example = source.boxes(index), source[index]
            assert boxes.corners.dtype == np.float32 and boxes.corners.shape == (len(boxes.class_ids), 4)
            assert boxes.ignored.shape == boxes.class_ids.shape and boxes.photo_size == example["image"].shape[:2]
            assert (boxes.corners >= 0).all() and (boxes.corners <= 1).all()
            assert (boxes.corners[:, :2] < boxes.corners[:, 2:]).all()
            assert set(boxes.class_ids.tolist()) == set(np.flatnonzero(example["label"]).tolist())


def test_evaluation_and_training_batches(fake):
    config = config_of(fake)
    config.data.crop_area = (0.3, 1.0)
    config.data.flip = True
    config.data.color_jitter = (0.2, 0.2, 0.2, 0.1)
    dataset = build_dataset(config)
    iterator = train_iterator(dataset, config)
    first = [next(iterator) for _ in range(2)]
    state = json.dumps(iterator.get_state())
    later = [next(iterator) for _ in range(3)]
    resumed = train_iterator(dataset, config)
    resumed.set_state(json.loads(state))
    for batch in later:
        again = next(resumed)
        for key in batch:
            np.testing.assert_array_equal(batch[key], again[key])
    evaluated = list(evaluation_batches(dataset, config.data.eval_split, config, batch_size=4))
    for batch in [*first, *evaluated]:
        assert batch["image"].shape == (4, SIZE, SIZE, 3) and batch["image"].dtype == np.float32
        assert batch["mask"].shape == (4, SIZE, SIZE) and batch["mask"].dtype == np.uint8
        assert np.isfinite(batch["image"]).all()
    assert sum(batch["valid"].sum() for batch in evaluated) == len(dataset.source(config.data.eval_split))


def test_subset_of_the_classes(fake):
    if "classes" not in dataset_options(fake[0]):
        pytest.skip("this dataset has no option classes")
    dataset, (whole, _) = sources(fake)
    present = np.flatnonzero(labels_of(whole).any(axis=0))[:2]
    names = tuple(dataset.info.class_names[class_id] for class_id in present[::-1])  # In another order.
    subset, (part, _) = sources(fake, classes=names)
    assert subset.info.class_names == names and subset.info.num_classes == 2
    by_id = {whole[index]["id"]: whole[index] for index in range(len(whole))}
    for index in range(len(part)):
        example = part[index]
        original = by_id[example["id"]]
        np.testing.assert_array_equal(example["label"], original["label"][present[::-1]])
        if dataset.info.has_masks:
            expected = np.zeros_like(original["mask"])
            for new, old in enumerate(present[::-1]):
                expected[original["mask"] == old + 1] = new + 1
            expected[original["mask"] == VOID] = VOID
            np.testing.assert_array_equal(example["mask"], expected)


@pytest.mark.parametrize(
    ("classes", "message"),
    [(("no such class", "nor this"), "no class 'no such class', 'nor this'"), ("cat", "must be a list of names")],
)
def test_class_subsets_that_make_no_sense(fake, classes, message):
    if "classes" not in dataset_options(fake[0]):
        pytest.skip("this dataset has no option classes")
    with pytest.raises(UserError, match=message):
        build_dataset(config_of(fake, classes=classes))


def test_unknown_split_lists_those_there_are(fake):
    dataset, _ = sources(fake)
    with pytest.raises(UserError, match="no_such_split"):
        dataset.source("no_such_split")


def test_what_is_not_there_is_named(fake, tmp_path):
    if fake[0] == "synthetic":
        pytest.skip("nothing is stored")
    config = config_of(fake)
    config.data.data_dir = str(tmp_path / "nowhere")
    with pytest.raises(UserError, match="nowhere") as error:
        build_dataset(config).source(config.data.train_split)
    assert fake[0] == "folder" or f"selfexplain_jax.data.prepare --dataset={fake[0]}" in str(error.value)


@pytest.mark.parametrize("name", sorted(DATASETS))
def test_a_model_can_be_built_before_the_data_are_there(name, tmp_path):
    # configs/ are traced and compiled where there are no data.
    config = base_config()
    config.data.update({"name": name, "image_size": SIZE, "data_dir": "" if name == "folder" else str(tmp_path)})
    config.data.options = {"classes": ("cat", "dog")} if name == "folder" else {}
    assert build_dataset(config).info.num_classes >= 2
