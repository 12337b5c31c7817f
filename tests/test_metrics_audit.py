"""The encoding audit: partners and rates by hand; the classifiers on data where the answer is known."""

import types

import jax.numpy as jnp
import numpy as np
import pytest

from selfexplain_jax.config import base_config
from selfexplain_jax.metrics import audit, mean, swapped_masks
from selfexplain_jax.types import DatasetInfo, UserError


def test_partner_is_the_next_example_of_another_class():
    label = jnp.eye(3)[jnp.asarray([0, 0, 1, 2, 2])]
    partner, exists = swapped_masks.swap_partners(label, jnp.ones(5))
    np.testing.assert_array_equal(partner, [2, 2, 3, 0, 0])
    assert exists.all()


def test_partner_is_never_padding():
    label = jnp.eye(3)[jnp.asarray([0, 1, 1, 2, 2])]
    valid = jnp.asarray([1.0, 1, 1, 0, 0])
    partner, exists = swapped_masks.swap_partners(label, valid)
    np.testing.assert_array_equal(partner[:3], [1, 0, 0])
    np.testing.assert_array_equal(exists, [True, True, True, False, False])
    short, _ = swapped_masks.swap_partners(label[:3], valid[:3])
    np.testing.assert_array_equal(partner[:3], short)


def test_without_another_class_there_is_no_pair():
    label = jnp.eye(2)[jnp.zeros(3, jnp.int32)]
    partner, exists = swapped_masks.swap_partners(label, jnp.ones(3))
    assert not exists.any()
    sums = swapped_masks.swap_sums(label, label, partner, exists, jnp.ones(3))
    assert mean(sums["swap_owner_rate"]) is None


def test_multilabel_owner_needs_a_class_that_the_partner_lacks():
    label = jnp.asarray([[1.0, 0, 0], [1, 1, 0], [0, 1, 1]])
    partner, exists = swapped_masks.swap_partners(label, jnp.ones(3))
    np.testing.assert_array_equal(partner, [2, 2, 0])
    assert exists.all()


def test_rates_by_hand():
    label = jnp.asarray([[1.0, 1, 0, 0], [0, 1, 1, 0]])
    partner = jnp.asarray([1, 0])
    # Mask 0 on image 1: the owner's own class 0 is named, the pixels' own class 2 is not; the shared 1 is ignored.
    decided = jnp.asarray([[1.0, 1, 0, 0], [1.0, 0, 1, 0]])
    both = jnp.asarray([True, True])
    sums = swapped_masks.swap_sums(decided, label, partner, both, jnp.ones(2), "_ground_truth")
    assert mean(sums["swap_owner_rate_ground_truth"]) == 1.0
    assert mean(sums["swap_pixel_rate_ground_truth"]) == 0.5
    sums = swapped_masks.swap_sums(decided, label, partner, both, jnp.asarray([1.0, 0]))
    assert (mean(sums["swap_owner_rate"]), mean(sums["swap_pixel_rate"])) == (1, 0)
    # The leader has two classes of its own, one is named.
    named, both, third = (jnp.asarray([row]) for row in ([1.0, 0, 0], [1.0, 1, 0], [0.0, 0, 1]))
    rate, defined = swapped_masks.followed(named, both, third)
    assert rate[0] == 0.5 and defined[0]
    assert not swapped_masks.followed(jnp.ones((1, 3)), named, both)[1][0]


def test_shrink_keeps_small_masks_and_averages_large_ones():
    small = jnp.asarray(np.random.default_rng(0).random((2, 8, 8)), jnp.float32)
    np.testing.assert_allclose(audit.shrink(small)[..., 0], small, atol=1e-3)
    large = jnp.zeros((1, 32, 32)).at[:, :16].set(1)
    shrunk = audit.shrink(large, 8)
    assert shrunk.shape == (1, 8, 8, 1)
    np.testing.assert_allclose(shrunk[0, :3], 1, atol=1e-3)
    np.testing.assert_allclose(shrunk.mean(), 0.5, atol=1e-2)


class Source:
    """Images of one size: the class is the colour channel of the square, whose place is random."""

    def __init__(self, length, seed):
        self.length, self.seed = length, seed

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        random = np.random.default_rng([self.seed, index])
        class_id = index % 2
        row, column = random.integers(0, 9, 2)
        image = random.integers(100, 156, (16, 16, 3)).astype(np.uint8)
        mask = np.zeros((16, 16), np.uint8)
        image[row : row + 8, column : column + 8, class_id] = 250
        mask[row : row + 8, column : column + 8] = class_id + 1
        return {"image": image, "label": np.eye(2, dtype=np.float32)[class_id], "mask": mask, "id": str(index)}


INFO = DatasetInfo("squares", 2, ("red", "green"), multilabel=False, image_size=16, has_masks=True)


def squares_config(steps):
    config = base_config()
    config.data.image_size = 16
    config.data.num_threads = 0
    config.evaluation.audit_steps = steps
    return config


def test_mask_only_classifiers_read_an_encoding_and_the_evaluator_reads_pixels(monkeypatch):
    monkeypatch.setattr(audit, "mask_classifier", lambda info: audit.MaskClassifier(2, widths=(8, 16), cell=2))
    monkeypatch.setattr(audit, "image_classifier", lambda info: audit.ImageClassifier(2, 16, 1, cell=2))
    dataset = types.SimpleNamespace(info=INFO, source=lambda split: Source(256, 0 if split == "train" else 1))
    config = squares_config(60)

    def encoded(batch):  # the class stands in the mask's place: top or bottom half
        class_id = np.asarray(batch["label"]).argmax(axis=1)
        mask = np.zeros(batch["mask"].shape, np.float32)
        mask[class_id == 0, :8] = 1
        mask[class_id == 1, 8:] = 1
        return mask

    classifiers = audit.train_audit(encoded, dataset, config)
    items = [dataset.source("test")[index] for index in range(100)]
    batch = {name: np.stack([item[name] for item in items]) for name in ("image", "label", "mask")}
    images = (batch["image"].astype(np.float32) - 127.5) / 64
    truth = (batch["mask"] > 0).astype(np.float32)
    sums = audit.audit_sums(
        classifiers,
        batch["label"],
        np.ones(100, np.float32),
        False,
        images=images,
        object_images=images * truth[..., None],
        mask=encoded(batch),
        truth=truth,
        truth_images=images * truth[..., None],
    )
    accuracy = {name: mean(pair) for name, pair in sums.items()}
    assert accuracy["mask_only_accuracy"] == 1
    assert accuracy["mask_only_accuracy_ground_truth"] < 0.7  # the silhouettes of both classes are the same squares
    for name in ("evaluator_accuracy", "evaluator_accuracy_full_image", "evaluator_accuracy_ground_truth"):
        assert accuracy[name] > 0.9, name


def test_outlines_are_learnt_where_there_are_some(monkeypatch, caplog):
    learnt, without = [], types.SimpleNamespace(info=INFO, source=lambda split: Source(16, 0))
    monkeypatch.setattr(
        audit, "fit", lambda model, batches, **options: learnt.append((options["text"], next(batches)[0]))
    )
    masks = np.zeros((16, 8, 8, 1), np.float16)
    outlines = np.where(np.arange(16)[:, None, None, None] < 4, np.float16(1), masks)
    monkeypatch.setattr(audit, "collect_masks", lambda *arguments: (masks, outlines, np.eye(2)[np.zeros(16, int)]))
    audit.train_audit(None, without, squares_config(2))
    shown = dict(learnt)
    assert len(shown["audit: masks"]) == 16 and len(shown["audit: outlines"]) == 4 and shown["audit: outlines"].all()
    monkeypatch.setattr(audit, "collect_masks", lambda *arguments: (masks, masks, np.eye(2)[np.zeros(16, int)]))
    assert audit.train_audit(None, without, squares_config(2)).on_ground_truth is None
    assert "None of 16 training images of 'squares' is annotated" in caplog.text


def test_evaluator_learns_from_random_masks_and_image_labels_alone():
    config = squares_config(10)
    random = np.random.default_rng(0)
    batches = [
        {"image": random.normal(size=(64, 16, 16, 3)).astype(np.float32), "label": np.eye(2)[random.integers(0, 2, 64)]}
        for _ in range(10)
    ]  # without annotations: their use would be a KeyError
    shares = []
    for (images, label), batch in zip(audit.masked_examples(batches, config), batches, strict=True):
        kept = (np.asarray(images) == batch["image"]).all(axis=3)  # the infill is 0
        assert ((np.asarray(images) == 0).all(axis=3) == ~kept).all()
        assert label is batch["label"]
        shares.append(kept.all(axis=(1, 2)).mean())
    assert shares[0] == 1
    assert np.mean(shares[5:]) == pytest.approx(audit.WHOLE_SHARE, abs=0.1)


def test_evaluator_masks_are_drawn_anew_each_step():
    masks = [np.asarray(audit.evaluator_masks(64, 16, 0.0, 0, step)) for step in (0, 0, 1)]
    np.testing.assert_array_equal(masks[0], masks[1])
    assert (masks[0] != masks[2]).any()
    assert set(np.unique(masks[0])) == {0, 1}
    assert (audit.evaluator_masks(64, 16, 1.0, 0, 0) == 1).all()


def test_loss_by_hand():
    scores, label = jnp.asarray([[jnp.log(3.0), 0.0]]), jnp.asarray([[1.0, 0.0]])
    assert audit.audit_loss(scores, label, False) == pytest.approx(-np.log(0.75))
    # Both present: the label is shared out, and the sigmoids 3/4 and 1/2 are judged class by class.
    both = audit.audit_loss(scores, jnp.ones((1, 2)), True)
    assert both == pytest.approx(-(np.log(0.75) + np.log(0.25)) / 2 - (np.log(0.75) + np.log(0.5)) / 2, rel=1e-5)


def test_cells_fill_up_what_the_size_leaves_over():
    folded = audit.cells(jnp.ones((1, 5, 4, 1)), 4)
    assert folded.shape == (1, 2, 1, 16)
    assert folded[0, 0].sum() == 16 and folded[0, 1].sum() == 4


def test_audit_needs_steps():
    dataset = types.SimpleNamespace(info=INFO, source=lambda split: Source(8, 0))
    with pytest.raises(UserError, match="audit_steps=0"):
        audit.train_audit(lambda batch: batch["mask"], dataset, squares_config(0))
