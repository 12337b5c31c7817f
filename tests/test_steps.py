"""The training step on a tiny network: it learns, repeats itself, ignores padding, and may be split."""

import functools

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import pytest

from selfexplain_jax.config import base_config
from selfexplain_jax.models import build_model
from selfexplain_jax.training import mesh as mesh_lib
from selfexplain_jax.training import steps
from selfexplain_jax.training.optimizer import build_optimizer
from selfexplain_jax.training.state import create_state, evaluated_variables, make_predictor
from selfexplain_jax.types import DatasetInfo

SIZE, BATCH, CLASSES = 16, 4, 3
INFO = DatasetInfo("fake", CLASSES, ("a", "b", "c"), multilabel=False, image_size=SIZE, has_masks=False)
EXPLANATION = ("object", "background", "evaluator")


def tiny_config(terms=("classification",), widths=(8,), norm="group", **passes):
    config = base_config()
    config.data.image_size = SIZE
    config.model.update({"widths": widths, "encoder_depth": len(widths) - 1, "refine_width": 0, "norm": norm})
    config.model.local_contrast = False
    config.passes.update({"infills": ("zero",), "evaluator_masks": ("blobs",), **passes})
    config.objective = {name: {"weight": 1.0} for name in terms}
    config.train.update({"learning_rate": 0.01, "warmup_steps": 0, "schedule": "constant"})
    return config


def build(config, optimizer=None):
    """The jitted step of a config, and its state at step 0."""
    model, config = build_model(config, INFO), ml_collections.FrozenConfigDict(config)
    optimizer = optimizer or build_optimizer(config)[0]
    state = jax.jit(lambda key: create_state(config, model, optimizer, key))(jax.random.key(config.seed))
    step = functools.partial(steps.train_step, config=config, model=model, optimizer=optimizer)
    return jax.jit(step, static_argnames="explain"), state


def fake_batch(count=BATCH, seed=0):
    """Faint noise with an object in the middle that has the color of its class."""
    rng = np.random.default_rng(seed)
    label = np.eye(CLASSES, dtype=np.float32)[np.arange(count) % CLASSES]
    image = 0.2 * rng.normal(size=(count, SIZE, SIZE, 3))
    image[:, 4:12, 4:12] += 2 * label[:, None, None, :]
    return {
        "image": image.astype(np.float32),
        "label": label,
        "mask": np.full((count, SIZE, SIZE), 255, np.uint8),
        "valid": np.ones(count, np.float32),
        "index": np.arange(count, dtype=np.int32),
    }


def assert_close(first, second, rtol=1e-3, atol=1e-5):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), first, second)


def differs(first, second):
    return float(optax.tree.norm(optax.tree.sub(first, second))) > 1e-3 * float(optax.tree.norm(first))


def gradient_of(state):
    """The gradient of the first step, times a constant: Adam's first moment is linear in it, its update is not."""
    return optax.tree.get(state.opt_state, "mu")


# ---- One step --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def full():
    """The step with every pass and most terms, unclipped, and its first state."""
    terms = ("classification", *EXPLANATION, "area_target", "area_bounds", "smoothness")
    # Live weights: with others the gradient is not that of the loss, which may rise as the classifier learns.
    config = tiny_config(terms, widths=(8, 8), weights="live", ema_decay=0.3)
    config.train.clip_norm = 0.0
    return build(config)


def test_step_lowers_the_loss(full):
    step, state = full
    batch, losses = fake_batch(), []
    for number in range(25):
        assert int(state.step) == number
        state, logs = step(state, batch)
        losses.append(float(logs["loss"]))
    assert np.all(np.isfinite(losses))
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])


def test_step_logs_scalars_of_every_term(full):
    step, state = full
    after, logs = step(state, fake_batch())
    terms = ("classification", *EXPLANATION, "area_target", "area_bounds", "smoothness")
    assert set(logs) == {"loss", "accuracy", "mask_area", "gradient_norm", *(f"term/{name}" for name in terms)}
    assert {(value.shape, value.dtype) for value in logs.values()} == {((), jnp.dtype("float32"))}
    # All weights are one.
    assert float(logs["loss"]) == pytest.approx(sum(float(logs[f"term/{name}"]) for name in terms), rel=1e-5)
    assert float(logs["mask_area"]) == pytest.approx(float(logs["term/area_target"]), rel=1e-5)
    # Adam's first moment is a tenth of the gradient.
    assert float(logs["gradient_norm"]) == pytest.approx(10 * float(optax.tree.norm(gradient_of(after))), rel=1e-4)


def test_same_state_and_batch_give_the_same_step_and_the_next_step_other_random_numbers(full):
    step, state = full
    first, second = step(state, fake_batch()), step(state, fake_batch())
    jax.tree.map(np.testing.assert_array_equal, first, second)
    # The same weights one step later draw other evaluator masks; what is not random stays.
    _, later = step(state.replace(step=state.step + 1), fake_batch())
    assert float(later["term/evaluator"]) != float(first[1]["term/evaluator"])
    assert float(later["term/object"]) == pytest.approx(float(first[1]["term/object"]), rel=1e-5)


def test_moving_average_follows_the_parameters(full):
    step, state = full
    # (1 + step) / (10 + step) to begin with, but never above the decay asked for.
    for decay in (0.1, 2 / 11, 3 / 12, 0.3, 0.3):
        after, _ = step(state, fake_batch())
        expected = jax.tree.map(lambda a, p: decay * a + (1 - decay) * p, state.ema_params, after.params)  # noqa: B023
        assert_close(after.ema_params, expected, rtol=1e-4, atol=1e-6)
        state = after


def test_averaged_parameters_have_averaged_statistics():
    config = tiny_config(norm="batch", ema_decay=0.3)
    step, state = build(config)
    for decay in (0.1, 2 / 11):
        after, _ = step(state, fake_batch())
        expected = jax.tree.map(
            lambda a, b: decay * a + (1 - decay) * b,  # noqa: B023
            state.ema_batch_stats,
            after.batch_stats,
        )
        assert_close(after.ema_batch_stats, expected, rtol=1e-4, atol=1e-6)
        assert differs(after.ema_batch_stats, after.batch_stats)
        state = after
    config.passes.evaluate_ema = True
    assert evaluated_variables(config, state) == {"params": state.ema_params, "batch_stats": state.ema_batch_stats}


def test_padding_changes_nothing(full):
    step, state = full
    batch = fake_batch()
    batch["valid"] = np.asarray([1, 1, 1, 0], np.float32)
    other = fake_batch(seed=1)
    changed = {name: np.concatenate([batch[name][:3], other[name][3:]]) for name in batch} | {"valid": batch["valid"]}
    changed["label"] = np.concatenate([batch["label"][:3], 1 - batch["label"][3:]])
    (first, first_logs), (second, second_logs) = step(state, batch), step(state, changed)
    assert_close(gradient_of(second), gradient_of(first))
    assert_close(second_logs, first_logs)
    # And an image that is valid does change something.
    third, _ = step(state, changed | {"valid": np.ones(BATCH, np.float32)})
    assert differs(gradient_of(third), gradient_of(first))


# ---- Before the explanations -----------------------------------------------------------------------------------------


def test_leaving_the_passes_out_before_they_start_changes_nothing():
    config = tiny_config(("classification", *EXPLANATION, "area_target"))
    for name in EXPLANATION:
        config.objective[name] = {"weight": 1.0, "start": 2}
    step, state = build(config)
    full, full_logs = step(state, fake_batch(), explain=True)
    early, early_logs = step(state, fake_batch(), explain=False)
    assert_close(gradient_of(early), gradient_of(full))
    assert set(full_logs) - set(early_logs) == {f"term/{name}" for name in EXPLANATION}
    assert_close(early_logs, {name: full_logs[name] for name in early_logs})


# ---- Splitting a batch -----------------------------------------------------------------------------------------------


def test_accumulated_halves_equal_the_whole_batch():
    config = tiny_config()
    whole, batch = build(config, optax.sgd(0.1)), fake_batch(8)
    parts = build(config, optax.MultiSteps(optax.sgd(0.1), 2))
    expected, logs = whole[0](whole[1], batch)
    state, losses = parts[1], []
    for half in (slice(0, 4), slice(4, 8)):
        assert_close(state.params, whole[1].params, rtol=0, atol=0)  # Nothing moves before the last.
        state, part_logs = parts[0](state, {name: value[half] for name, value in batch.items()})
        losses.append(float(part_logs["loss"]))
    assert_close(state.params, expected.params)
    assert differs(state.params, whole[1].params)
    assert np.mean(losses) == pytest.approx(float(logs["loss"]), rel=1e-4)


def test_two_devices_equal_one():
    # Batch statistics and swapped masks need the images of the other device.
    config = tiny_config(("classification", *EXPLANATION), norm="batch", evaluator_masks=("swapped",))
    config.train.clip_norm = 0.0
    step, state = build(config)
    mesh = mesh_lib.make_mesh()
    assert mesh.devices.size == 2
    alone, logs = step(state, fake_batch())
    sharded = mesh_lib.to_global(fake_batch(), mesh)
    assert len(sharded["image"].sharding.device_set) == 2
    together, together_logs = step(jax.device_put(state, mesh_lib.replicated(mesh)), sharded)
    assert_close(mesh_lib.local_copy(gradient_of(together)), gradient_of(alone))
    assert_close(mesh_lib.local_copy(together.batch_stats), alone.batch_stats)
    assert_close(mesh_lib.local_copy(together_logs), logs)


# ---- Counting, pictures, predicting ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "scores, label, correct",
    [
        # One class: the highest score, whatever its sign.
        ([-1.0, -3.0, -2.0], [1, 0, 0], 1),
        ([2.0, 5.0, -2.0], [1, 0, 0], 0),
        # More classes or none: exactly those above 0.
        ([2.0, 5.0, -2.0], [1, 1, 0], 1),
        ([2.0, 5.0, 1.0], [1, 1, 0], 0),
        ([2.0, -5.0, -1.0], [1, 1, 0], 0),
        ([-2.0, -5.0, -1.0], [0, 0, 0], 1),
        ([-2.0, 5.0, -1.0], [0, 0, 0], 0),
    ],
)
def test_accuracy_counts(scores, label, correct):
    result = steps.is_correct(np.asarray([scores], np.float32), np.asarray([label], np.float32))
    assert result.shape == (1,) and result.dtype == jnp.float32 and float(result[0]) == correct


def test_pictures_are_in_range_and_split_the_image():
    config = tiny_config()
    config.data.mean, config.data.std = (100.0, 120.0, 140.0), (20.0, 20.0, 20.0)
    model = build_model(config, INFO)
    _, state = build(config)
    batch = fake_batch()
    draw = jax.jit(functools.partial(steps.mask_pictures, config=config, model=model))
    pictures = jax.tree.map(np.asarray, draw(state, batch))
    colored, flat = (BATCH, SIZE, SIZE, 3), (BATCH, SIZE, SIZE)
    shapes = {"image": colored, "object": colored, "background": colored, "target_mask": flat, "non_target_mask": flat}
    assert {name: value.shape for name, value in pictures.items()} == shapes
    assert all(value.min() >= 0 and value.max() <= 1 for value in pictures.values())
    pixels = np.clip((batch["image"] * 20 + np.asarray([100, 120, 140])) / 255, 0, 1)
    np.testing.assert_allclose(pictures["image"], pixels, atol=1e-5)
    # What is hidden has the mean colour; nothing is clipped at a deviation this small.
    mean = np.asarray([100, 120, 140]) / 255
    mask = pictures["target_mask"][..., None]
    np.testing.assert_allclose(pictures["object"], mask * pixels + (1 - mask) * mean, atol=1e-4)
    np.testing.assert_allclose(pictures["object"] + pictures["background"] - mean, pixels, atol=1e-4)


@pytest.mark.parametrize("average", [False, True])
def test_predictor_uses_the_parameters_that_the_config_asks_for(average):
    config = tiny_config(evaluate_ema=average)
    model = build_model(config, INFO)
    _, state = build(config)
    state = state.replace(ema_params=jax.tree.map(lambda p: 0.5 * p, state.params))
    predictor = make_predictor(config, INFO, model, state)
    images, ids = fake_batch()["image"], np.asarray([[0, 2]] * BATCH)
    scores, masks = np.asarray(predictor.scores(images)), np.asarray(predictor.masks(images, ids))
    params = state.ema_params if average else state.params
    expected = jax.jit(lambda params, images: model.apply({"params": params}, images)[0])(params, images)
    np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-5)
    assert masks.shape == (BATCH, 2, SIZE, SIZE) and masks.min() >= 0 and masks.max() <= 1
    # Under the sigmoid link each class has a probability of its own; under softmax they share one.
    np.testing.assert_allclose(predictor.probabilities(jnp.zeros((1, CLASSES))), np.full((1, CLASSES), 0.5))
    config.model.link = "softmax"
    shared = make_predictor(config, INFO, model, state).probabilities(jnp.zeros((1, CLASSES)))
    np.testing.assert_allclose(shared, np.full((1, CLASSES), 1 / 3), rtol=1e-6)
