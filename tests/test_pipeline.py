import dataclasses
import json

import numpy as np
import pytest

from selfexplain_jax import data
from selfexplain_jax.config import base_config
from selfexplain_jax.data import augment
from selfexplain_jax.data.pipeline import evaluation_batches, normalise, train_iterator
from selfexplain_jax.types import VOID, DatasetInfo, UserError

SIZE, CLASSES = 4, 3


@dataclasses.dataclass
class Fake:
    """Images whose left half says which example it is, so that flips and orders can be seen."""

    length: int = 10
    has_masks: bool = True
    changes: dict = dataclasses.field(default_factory=dict)

    @property
    def info(self):
        return DatasetInfo("fake", CLASSES, ("a", "b", "c"), False, SIZE, self.has_masks)

    def source(self, split):
        return self

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        image = np.zeros((SIZE, SIZE, 3), np.uint8)
        image[:, : SIZE // 2] = index
        example = {"image": image, "label": np.eye(CLASSES, dtype=np.float32)[index % CLASSES], "id": f"fake_{index}"}
        if self.has_masks:
            example["mask"] = np.repeat(np.uint8([[1, 1, 0, 0]]), SIZE, axis=0)
        return {**example, **self.changes} if index == 2 else example


def fake_config(batch_size=4, **data_fields):
    config = base_config()
    config.train.batch_size = batch_size
    config.data.update({"image_size": SIZE, "mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0), **data_fields})
    return config


def take(iterator, count):
    return [next(iterator) for _ in range(count)]


def indices(batches):
    return np.concatenate([batch["index"] for batch in batches]).tolist()


def assert_same(batches, others):
    assert len(batches) == len(others)
    for batch, other in zip(batches, others, strict=True):
        assert batch.keys() == other.keys()
        for key in batch:
            np.testing.assert_array_equal(batch[key], other[key], err_msg=key)


def test_shuffled_labels_are_another_ones_all_used_once_and_the_same_in_every_epoch():
    labels = np.eye(CLASSES)[np.arange(10) % CLASSES]
    seen = {}
    for batch in take(train_iterator(Fake(), fake_config(5, shuffle_labels=True)), 4):
        for index, label in zip(batch["index"].tolist(), batch["label"], strict=True):
            np.testing.assert_array_equal(seen.setdefault(index, label), label)
    shuffled = np.stack([seen[index] for index in range(10)])
    assert sorted(shuffled.tolist()) == sorted(labels.tolist()) and (shuffled != labels).any()
    # The evaluation keeps the true ones; draws by class go by the labels that are borne.
    [batch] = evaluation_batches(Fake(), "test", fake_config(shuffle_labels=True), batch_size=10)
    np.testing.assert_array_equal(batch["label"], labels)
    for batch in take(train_iterator(Fake(), fake_config(5, shuffle_labels=True, balance=1.0)), 2):
        np.testing.assert_array_equal(batch["label"], shuffled[batch["index"]])


# ---- Training --------------------------------------------------------------------------------------------------------


def test_training_batch_has_the_fields_of_the_contract():
    batch = next(train_iterator(Fake(), fake_config()))
    described = {key: (value.dtype, value.shape) for key, value in batch.items()}
    assert described == {
        "image": (np.float32, (4, SIZE, SIZE, 3)),
        "label": (np.float32, (4, CLASSES)),
        "mask": (np.uint8, (4, SIZE, SIZE)),
        "valid": (np.float32, (4,)),
        "index": (np.int32, (4,)),
    }
    np.testing.assert_array_equal(batch["valid"], 1)
    np.testing.assert_array_equal(batch["image"][:, 0, 0, 0], batch["index"])
    np.testing.assert_array_equal(batch["label"].argmax(axis=-1), batch["index"] % CLASSES)
    np.testing.assert_array_equal(np.unique(batch["mask"]), [0, 1])


def test_masks_are_void_where_the_dataset_has_none():
    batch = next(train_iterator(Fake(has_masks=False), fake_config()))
    np.testing.assert_array_equal(batch["mask"], VOID)


def test_every_epoch_shows_each_example_once_and_in_another_order():
    # Batches of 4 over 10 examples: five of them are two epochs, and the third spans both.
    seen = indices(take(train_iterator(Fake(), fake_config()), 10))
    epochs = [seen[start : start + 10] for start in range(0, 40, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_order_depends_on_the_seed_and_neighbouring_seeds_share_no_epoch():
    config, other = fake_config(10), fake_config(10)
    other.seed = config.seed + 1
    assert indices(take(train_iterator(Fake(), config), 3)) == indices(take(train_iterator(Fake(), config), 3))
    orders = {tuple(b["index"].tolist()) for c in (config, other) for b in take(train_iterator(Fake(), c), 3)}
    assert len(orders) == 6


def test_split_smaller_than_a_batch_repeats():
    batch = next(train_iterator(Fake(length=3), fake_config(6)))
    assert sorted(batch["index"].tolist()) == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("num_threads", [0, 3])
@pytest.mark.parametrize("steps", [0, 1, 7])
def test_restored_iterator_continues_bit_for_bit(num_threads, steps):
    config = fake_config(flip=True, num_threads=num_threads)
    uninterrupted = train_iterator(Fake(), config)
    take(uninterrupted, steps)
    state = json.dumps(uninterrupted.get_state())
    fresh = train_iterator(Fake(), config)
    take(fresh, 2)  # Where the fresh one stands must not matter.
    fresh.set_state(json.loads(state))
    assert_same(take(uninterrupted, 6), take(fresh, 6))


def test_number_of_threads_changes_nothing():
    streams = [take(train_iterator(Fake(), fake_config(flip=True, num_threads=n)), 6) for n in (0, 1, 4)]
    assert_same(streams[0], streams[1])
    assert_same(streams[0], streams[2])


@pytest.mark.parametrize("hosts", [2, 4])
def test_hosts_share_the_batch_that_one_host_would_take(hosts):
    config = fake_config(8, flip=True)
    whole = take(train_iterator(Fake(length=11), config), 5)
    shares = [take(train_iterator(Fake(length=11), config, host=host, hosts=hosts), 5) for host in range(hosts)]
    for step, batch in enumerate(whole):
        parts = [share[step] for share in shares]
        assert all(part["image"].shape[0] == 8 // hosts for part in parts)
        for key in batch:
            np.testing.assert_array_equal(np.concatenate([part[key] for part in parts]), batch[key])


def test_state_is_the_step_so_a_run_can_go_on_with_another_number_of_hosts():
    config = fake_config(4)
    one, two = train_iterator(Fake(), config), [train_iterator(Fake(), config, host=h, hosts=2) for h in (0, 1)]
    take(one, 3)
    for iterator in two:
        iterator.set_state(one.get_state())
    parts = [next(iterator)["index"] for iterator in two]
    np.testing.assert_array_equal(np.concatenate(parts), next(one)["index"])


def test_batch_size_must_divide_over_the_hosts():
    with pytest.raises(UserError, match=r"batch_size=6 does not divide over 4 hosts"):
        train_iterator(Fake(), fake_config(6), host=0, hosts=4)
    with pytest.raises(UserError, match="batch_size=0"):
        train_iterator(Fake(), fake_config(0))
    with pytest.raises(UserError, match="host=2 of hosts=2"):
        train_iterator(Fake(), fake_config(4), host=2, hosts=2)


# ---- Evaluation ------------------------------------------------------------------------------------------------------


def test_evaluation_reads_in_order_and_pads_the_last_batch():
    batches = evaluation_batches(Fake(), "test", fake_config(mean=(5.0, 5.0, 5.0)), batch_size=4)
    listed = list(batches)
    assert len(batches) == len(listed) == 3 and batches.num_examples == 10
    assert indices(listed) == [*range(10), -1, -1]
    np.testing.assert_array_equal(listed[-1]["valid"], [1, 1, 0, 0])
    np.testing.assert_array_equal(listed[-1]["image"][2:], 0)
    np.testing.assert_array_equal(listed[-1]["label"][2:], 0)
    np.testing.assert_array_equal(listed[-1]["mask"][2:], VOID)
    assert listed[-1]["image"][0].min() == -5
    assert_same(listed, list(batches))


@pytest.mark.parametrize(
    ("max_examples", "expected"),
    [(0, [*range(10)]), (3, [0, 3, 6]), (8, [0, 1, 2, 3, 5, 6, 7, 8]), (50, [*range(10)])],
)
def test_max_examples_are_evenly_spaced(max_examples, expected):
    batches = evaluation_batches(Fake(), "test", fake_config(), batch_size=4, max_examples=max_examples)
    listed = list(batches)
    assert [i for i in indices(listed) if i >= 0] == expected
    assert len(listed) == len(batches) == -(-len(expected) // 4)


class SomeEmpty(Fake):
    """Examples 0, 3, 6, 9 show nothing, and it knows without reading them."""

    def labels(self):
        return (
            np.eye(CLASSES, dtype=np.float32)[np.arange(self.length) % CLASSES]
            * (np.arange(self.length) % 3 > 0)[:, None]
        )


def test_examples_of_no_class_are_trained_on_and_not_evaluated(caplog):
    batches = evaluation_batches(SomeEmpty(), "test", fake_config(), batch_size=4)
    assert indices(list(batches)) == [1, 2, 4, 5, 7, 8, -1, -1] and batches.num_examples == 6
    assert batches.positions.tolist() == [1, 2, 4, 5, 7, 8]
    assert "4 examples show none of the classes" in caplog.text
    some = evaluation_batches(SomeEmpty(), "test", fake_config(), batch_size=4, max_examples=3)
    assert indices(list(some)) == [1, 4, 7, -1]
    assert set(indices(take(train_iterator(SomeEmpty(), fake_config(5)), 2))) == set(range(10))
    with pytest.raises(UserError, match="No example of dataset 'fake', split 'test' shows one of the classes"):
        evaluation_batches(SomeEmpty(length=1), "test", fake_config(), batch_size=4)


@pytest.mark.parametrize("length", [1, 9, 10, 13])
def test_hosts_take_turns_at_the_batches_that_one_host_would_take(length):
    hosts = 3
    whole = evaluation_batches(Fake(length=length), "test", fake_config(), batch_size=2)
    shares = [
        evaluation_batches(Fake(length=length), "test", fake_config(), batch_size=2, host=h, hosts=hosts)
        for h in range(hosts)
    ]
    found = {number: batch for share in shares for number, batch in zip(share.numbers, share, strict=True)}
    assert sum(map(len, shares)) == len(found) == len(whole)
    assert_same([found[number] for number in whole.numbers], list(whole))
    assert all(share.num_examples == length for share in shares)


def test_evaluation_never_augments():
    listed = list(evaluation_batches(Fake(), "test", fake_config(flip=True), batch_size=10))
    np.testing.assert_array_equal(listed[0]["mask"][:, :, 0], 1)


@pytest.mark.parametrize(("fields", "message"), [({"batch_size": 0}, "batch_size=0"), ({"max_examples": -1}, "-1")])
def test_evaluation_refuses_numbers_that_make_no_sense(fields, message):
    with pytest.raises(UserError, match=message):
        evaluation_batches(Fake(), "test", fake_config(), **{"batch_size": 4, **fields})


# ---- What comes in ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image": np.zeros((SIZE, SIZE + 1, 3), np.uint8)}, r"uint8 \(4, 5, 3\), expected uint8 \(4, 4, 3\)"),
        ({"image": np.zeros((SIZE, SIZE, 3), np.float32)}, "image is float32"),
        ({"label": np.zeros(CLASSES + 1, np.float32)}, r"label has shape \(4,\), expected \(3,\)"),
        ({"mask": np.zeros((SIZE, SIZE - 1), np.uint8)}, r"mask is uint8 \(4, 3\)"),
        ({"mask": np.full((SIZE, SIZE), CLASSES + 1, np.uint8)}, "mask holds 4, above num_classes=3"),
    ],
)
@pytest.mark.parametrize("num_threads", [0, 2])
def test_malformed_example_is_named(changes, message, num_threads):
    config = fake_config(10, num_threads=num_threads)
    with pytest.raises(UserError, match=r"(?s)'fake', split 'train', example 'fake_2'.*" + message):
        next(train_iterator(Fake(changes=changes), config))
    with pytest.raises(UserError, match=r"split 'test', example 'fake_2'"):
        list(evaluation_batches(Fake(changes=changes), "test", config, batch_size=5))


def test_void_is_allowed_in_masks():
    changes = {"mask": np.full((SIZE, SIZE), VOID, np.uint8)}
    list(evaluation_batches(Fake(changes=changes), "test", fake_config(), batch_size=5))


def test_missing_mask_is_named():
    class Maskless(Fake):
        def __getitem__(self, index):
            return {key: value for key, value in super().__getitem__(index).items() if key != "mask"}

    with pytest.raises(UserError, match="has_masks=True"):
        next(train_iterator(Maskless(), fake_config()))


def test_empty_split_and_other_size_are_refused():
    with pytest.raises(UserError, match="Split 'train' of dataset 'fake' is empty"):
        train_iterator(Fake(length=0), fake_config())
    with pytest.raises(UserError, match="Split 'test' of dataset 'fake' is empty"):
        evaluation_batches(Fake(length=0), "test", fake_config(), batch_size=2)
    with pytest.raises(UserError, match="images of 4 px, but config.data.image_size=8"):
        train_iterator(Fake(), fake_config(image_size=8))


@pytest.mark.parametrize("field", ["num_threads", "prefetch"])
def test_negative_reading_options_are_refused(field):
    with pytest.raises(UserError, match=f"{field}=-1"):
        train_iterator(Fake(), fake_config(**{field: -1}))


# ---- Normalisation and augmentation ----------------------------------------------------------------------------------


def test_normalise_known_answers():
    images = np.zeros((2, 1, 2, 3), np.uint8)
    images[0, 0, 0] = (100, 50, 255)
    images[1, 0, 1] = (10, 20, 30)
    result = normalise(images, mean=(100.0, 40.0, 5.0), std=(50.0, 5.0, 100.0))
    assert result.dtype == np.float32
    np.testing.assert_allclose(result[0, 0, 0], (0.0, 2.0, 2.5))
    np.testing.assert_allclose(result[1, 0, 1], (-1.8, -4.0, 0.25))
    np.testing.assert_allclose(result[0, 0, 1], (-2.0, -8.0, -0.05))


@pytest.mark.parametrize(
    ("mean", "std"), [((1.0,), (1.0, 1.0, 1.0)), ((0.0,) * 3, (1.0, 0.0, 1.0)), ((0.0,) * 3, (1.0,))]
)
def test_normalise_refuses_what_it_cannot_use(mean, std):
    with pytest.raises(UserError, match="three entries"):
        normalise(np.zeros((1, 1, 1, 3), np.uint8), mean, std)


def test_flip_mirrors_image_and_mask_alike_about_half_of_the_time():
    example = Fake()[7]
    flipped = 0
    for seed in range(200):
        result = augment.flip(example, np.random.default_rng(seed))
        # In this example image and mask both have something in the left half only.
        np.testing.assert_array_equal(result["image"][:, :, 0] > 0, result["mask"] > 0)
        flipped += bool(result["mask"][0, -1])
        assert result["id"] == example["id"]
    assert 70 <= flipped <= 130
    np.testing.assert_array_equal(example["mask"][:, 0], 1)  # The original is left alone.


def test_flip_works_without_masks():
    example = {"image": np.arange(12, dtype=np.uint8).reshape(2, 2, 3), "label": np.zeros(1, np.float32), "id": "x"}
    results = [augment.flip(example, np.random.default_rng(seed))["image"] for seed in range(20)]
    assert any((result == example["image"][:, ::-1]).all() for result in results)


def test_the_same_example_is_flipped_anew_in_every_epoch():
    batches = take(train_iterator(Fake(), fake_config(10, flip=True)), 12)
    flips = {index: set() for index in range(10)}
    for batch in batches:
        for index, mask in zip(batch["index"].tolist(), batch["mask"], strict=True):
            flips[index].add(int(mask[0, 0]))
    assert all(seen == {0, 1} for seen in flips.values())


# ---- Registry --------------------------------------------------------------------------------------------------------


def test_unknown_dataset_lists_the_known_ones():
    config = base_config()
    config.data.name = "minst"
    with pytest.raises(UserError, match=r"'minst' is no dataset. There are: .*mnist.*synthetic"):
        data.build_dataset(config)


def test_unknown_option_lists_the_known_ones():
    config = base_config()
    config.data.options.max_object = 3
    with pytest.raises(UserError, match=r"no option 'max_object'.*max_objects=1"):
        data.build_dataset(config)


@pytest.mark.parametrize("name", sorted(data.DATASETS))
def test_every_registered_dataset_describes_its_options(name):
    options = data.dataset_options(name)
    assert not {"image_size", "seed", "data_dir"} & set(options)


def test_synthetic_runs_through_the_pipeline():
    config = base_config()
    config.data.options.max_objects = 2
    config.data.image_size = 32
    config.train.batch_size = 4
    dataset = data.build_dataset(config)
    batch = next(train_iterator(dataset, config))
    assert batch["image"].shape == (4, 32, 32, 3) and batch["label"].sum() >= 4
    example = dataset.source("train")[int(batch["index"][0])]
    np.testing.assert_allclose(batch["image"][0], (example["image"] - 127.5) / 64.0, atol=1e-6)
    np.testing.assert_array_equal(batch["mask"][0], example["mask"])


def test_more_classes_than_names_are_refused():
    with pytest.raises(UserError, match="'fake' names 2 classes but says num_classes=3"):
        DatasetInfo("fake", 3, ("a", "b"), multilabel=False, image_size=8, has_masks=False)
