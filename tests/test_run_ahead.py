"""On an accelerator the loop hands over batches and steps ahead of those that it has waited for; the numbers stay."""

import jax
import pytest
from test_loop import assert_same_bytes, metrics_of, tiny_config

from selfexplain_jax.training import loop
from selfexplain_jax.training import mesh as mesh_lib

STEPS, AHEAD = 6, 2


def train_in_order(workdir):
    """The result of a training, and what the loop did: "batch n" handed over, "step n" asked for, "wait n" over."""
    config, order, logged = tiny_config(), [], []
    # One program, and nothing that makes the loop wait before its end: no log, no checkpoint, no picture.
    del config.objective.object
    config.train.update(steps=STEPS, log_every=100, checkpoint_every=0, picture_every=0)
    to_global, compiled_step, block_until_ready = mesh_lib.to_global, loop.compiled_step, jax.block_until_ready

    def placed(*arguments):
        order.append(f"batch {len(logged) + 1}")
        return to_global(*arguments)

    def compiled(*arguments):
        step = compiled_step(*arguments)

        def asked(*arguments):
            state, logs = step(*arguments)
            logged.append(logs)
            order.append(f"step {len(logged)}")
            return state, logs

        return asked

    def waited(value):
        order.extend(f"wait {number}" for number, logs in enumerate(logged, 1) if logs is value)
        return block_until_ready(value)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mesh_lib, "to_global", placed)
        patch.setattr(loop, "compiled_step", compiled)
        patch.setattr(jax, "block_until_ready", waited)
        return loop.train(config, str(workdir)), order


def test_batches_and_steps_are_handed_over_ahead_of_an_accelerator(tmp_path, monkeypatch):
    on_cpu, order = train_in_order(tmp_path / "cpu")
    assert order == [f"{what} {n}" for n in range(1, STEPS + 1) for what in ("batch", "step", "wait")]
    monkeypatch.setattr(loop, "on_cpu", lambda: False)
    monkeypatch.setattr(loop, "RUN_AHEAD", AHEAD)
    ahead, order = train_in_order(tmp_path / "accelerator")
    # The first step is waited for, for its time. From then on step n + AHEAD is asked for before step n is waited for.
    expected = ["batch 1", "step 1", "wait 1", "batch 2", "step 2"]
    for n in range(3, STEPS + 1):
        expected += [f"batch {n}", f"step {n}", f"wait {n - AHEAD}"]
    assert order == expected
    assert_same_bytes(ahead.state, on_cpu.state)
    assert metrics_of(tmp_path / "accelerator") == metrics_of(tmp_path / "cpu")
