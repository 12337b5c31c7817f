"""Schedules by their numbers, clipping, decay, accumulation, and refusals."""

import jax
import numpy as np
import optax
import pytest

from selfexplain_jax.config import base_config
from selfexplain_jax.training.optimizer import OPTIMIZERS, build_optimizer
from selfexplain_jax.types import UserError


def config_with(**train):
    config = base_config()
    config.train.update({"steps": 110, "warmup_steps": 10, "learning_rate": 0.5, **train})
    return config


@pytest.mark.parametrize("name, middle, end", [("constant", 0.5, 0.5), ("linear", 0.25, 0.0), ("cosine", 0.25, 0.0)])
def test_schedule_warms_up_and_then_falls_as_its_name_says(name, middle, end):
    _, schedule = build_optimizer(config_with(schedule=name))
    rates = [float(schedule(update)) for update in (0, 5, 10, 60, 110)]
    assert rates == pytest.approx([0.0, 0.25, 0.5, middle, end], abs=1e-6)


def test_cosine_at_a_quarter():
    _, schedule = build_optimizer(config_with(schedule="cosine"))
    assert float(schedule(35)) == pytest.approx(0.5 * (1 + np.cos(np.pi / 4)) / 2, rel=1e-5)


def test_schedule_counts_updates_and_not_micro_batches():
    _, schedule = build_optimizer(config_with(schedule="linear", steps=440, warmup_steps=40, accumulate=4))
    assert [float(schedule(update)) for update in (5, 10, 60, 110)] == pytest.approx([0.25, 0.5, 0.25, 0.0], abs=1e-6)


def without_warmup(**train):
    return build_optimizer(config_with(schedule="constant", warmup_steps=0, **train))[0]


PARAMS = {"kernel": np.asarray([[1.0, -2.0]], np.float32), "bias": np.asarray([3.0], np.float32)}


def run(optimizer, gradients):
    """Parameters after each of these gradients."""
    state, params, after = optimizer.init(PARAMS), PARAMS, []
    update = jax.jit(optimizer.update)
    for gradient in gradients:
        updates, state = update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        after.append(jax.tree.map(np.asarray, params))
    return after


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_first_update_is_the_learning_rate_against_the_sign(name):
    gradient = {"kernel": np.asarray([[0.1, -0.2]], np.float32), "bias": np.asarray([0.05], np.float32)}
    (after,) = run(without_warmup(optimizer=name, weight_decay=0.0), [gradient])
    np.testing.assert_allclose(after["kernel"], [[0.5, -1.5]], rtol=1e-4)
    np.testing.assert_allclose(after["bias"], [2.5], rtol=1e-4)


def test_weight_decay_acts_on_kernels_alone():
    nothing = jax.tree.map(np.zeros_like, PARAMS)
    (after,) = run(without_warmup(optimizer="adamw", weight_decay=0.2), [nothing])
    # The rate times the decay is a tenth.
    np.testing.assert_allclose(after["kernel"], 0.9 * PARAMS["kernel"], rtol=1e-5)
    np.testing.assert_array_equal(after["bias"], PARAMS["bias"])
    (after,) = run(without_warmup(optimizer="adam", weight_decay=0.2), [nothing])
    np.testing.assert_array_equal(after["kernel"], PARAMS["kernel"])


def moments(optimizer, gradient):
    """The first moment, a tenth of the gradient that reaches Adam."""
    _, state = jax.jit(optimizer.update)(gradient, optimizer.init(PARAMS), PARAMS)
    return 10 * optax.tree.get(state, "mu")["kernel"]


def test_gradients_are_clipped_by_their_global_norm():
    gradient = {"kernel": np.asarray([[6.0, 0.0]], np.float32), "bias": np.asarray([8.0], np.float32)}  # Norm 10.
    np.testing.assert_allclose(moments(without_warmup(clip_norm=2.0), gradient), [[1.2, 0.0]], rtol=1e-5)
    np.testing.assert_allclose(moments(without_warmup(clip_norm=20.0), gradient), [[6.0, 0.0]], rtol=1e-5)
    np.testing.assert_allclose(moments(without_warmup(clip_norm=0.0), gradient), [[6.0, 0.0]], rtol=1e-5)


def test_accumulated_micro_batches_make_one_update_by_their_mean():
    rng = np.random.default_rng(0)
    draw = lambda: jax.tree.map(lambda p: rng.normal(size=p.shape).astype(np.float32), PARAMS)  # noqa: E731
    first, second, third, fourth = gradients = [draw() for _ in range(4)]
    mean = lambda *trees: jax.tree.map(lambda *leaves: np.mean(leaves, axis=0), *trees)  # noqa: E731
    # The clipping acts on the mean, not on its parts.
    accumulated = run(without_warmup(accumulate=2, clip_norm=0.5), gradients)
    at_once = run(without_warmup(clip_norm=0.5), [mean(first, second), mean(third, fourth)])
    same = lambda a, b: jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6), a, b)  # noqa: E731
    same(accumulated[0], PARAMS)
    same(accumulated[1], at_once[0])
    same(accumulated[2], at_once[0])
    same(accumulated[3], at_once[1])


@pytest.mark.parametrize(
    "options, message",
    [
        ({"optimizer": "lion"}, "config.train.optimizer = 'lion' is unknown.*adamw.*adam"),
        ({"schedule": "steps"}, "config.train.schedule = 'steps' is unknown.*constant.*cosine.*linear"),
        ({"learning_rate": 0.0}, "config.train.learning_rate = 0.0 must be positive"),
        ({"learning_rate": -1e-3}, "config.train.learning_rate = -0.001 must be positive"),
        ({"accumulate": 0}, "config.train.accumulate = 0 must be at least 1"),
        ({"accumulate": 4}, "config.train.accumulate = 4 .*divide config.train.steps = 110"),
        ({"warmup_steps": 110}, "config.train.warmup_steps = 110 must be less than config.train.steps = 110"),
    ],
    ids=str,
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        build_optimizer(config_with(**options))
