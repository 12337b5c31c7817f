"""Nothing is compiled behind the first step of a kind, nor behind the first batch of an evaluation."""

import jax
import pytest
from test_evaluate import make_config, make_dataset, make_predictor
from test_loop import tiny_config

from selfexplain_jax import evaluate
from selfexplain_jax.metrics import view
from selfexplain_jax.training import loop
from selfexplain_jax.training.state import make_predictor as network_predictor

COMPILING = "/jax/core/compile/backend_compile_duration"


@pytest.fixture
def compiled():
    """Names of the programs that were compiled so far, also of those that a folder of programs had ready."""
    names = []

    def listen(event, duration, **details):
        if event == COMPILING:
            names.append(details.get("fun_name", "?"))

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield names
    jax.monitoring.unregister_event_duration_listener(listen)


def test_the_listener_sees_a_program_and_its_second_shape(compiled):
    double = jax.jit(lambda x: 2 * x)
    one, two = jax.numpy.ones(3), jax.numpy.ones(4)
    before = len(compiled)
    double(one)
    assert len(compiled) == before + 1
    double(one)
    assert len(compiled) == before + 1
    double(two)
    assert len(compiled) == before + 2


def count_at_steps(monkeypatch, compiled):
    """{step: number of programs compiled before it} of the trainings that follow."""
    counts, real = {}, loop.compiled_step

    def compiled_step(*arguments):
        step = real(*arguments)

        def counted(state, batch):
            counts[int(state.step)] = len(compiled)
            return step(state, batch)

        return counted

    monkeypatch.setattr(loop, "compiled_step", compiled_step)
    return counts


def count_at_batches(monkeypatch, compiled):
    """The number of programs compiled before each batch of the evaluations that follow."""
    counts, real = [], view.look

    def look(*arguments):
        counts.append(len(compiled))
        return real(*arguments)

    monkeypatch.setattr(view, "look", look)
    return counts


@pytest.mark.parametrize("full", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_training_compiles_its_steps_once(tmp_path, monkeypatch, compiled, full):
    config = tiny_config()
    if full:
        config.train.shard_parameters, config.model.widths = True, (64,)
    else:
        del config.objective.object
    # A log, a checkpoint and pictures fall into the first four steps, and again into the next four.
    config.train.steps, config.train.picture_every, config.train.checkpoint_every = 9, 3, 4
    counts = count_at_steps(monkeypatch, compiled)
    loop.train(config, str(tmp_path))
    # One before and, where there is an object pass, one behind its start.
    assert sum("train_step" in name for name in compiled) == (2 if full else 1)
    assert counts[8] == counts[4], compiled[counts[4] : counts[8]]


def test_evaluation_compiles_nothing_for_a_padded_last_batch(tmp_path, monkeypatch, compiled):
    counts = count_at_batches(monkeypatch, compiled)
    # Seven examples in batches of five.
    evaluate.evaluate(make_predictor(), make_dataset(), make_config(), pictures_dir=tmp_path, examples_dir=tmp_path)
    assert len(counts) == 2 and counts[1] == len(compiled), compiled[counts[1] :]


@pytest.mark.slow
def test_evaluation_of_a_network_compiles_nothing_for_a_padded_last_batch(tmp_path, monkeypatch, compiled):
    config = tiny_config()
    config.evaluation.batch_size, config.evaluation.audit = 6, False
    result = loop.untrained(config)
    predictor = network_predictor(config, result.dataset.info, result.model, result.state)
    counts = count_at_batches(monkeypatch, compiled)
    evaluate.evaluate(predictor, result.dataset, config, pictures_dir=tmp_path, examples_dir=tmp_path)
    assert len(counts) == 3 and counts[1] == len(compiled), compiled[counts[1] :]
