"""The compile check tells what the real step needs, without data and without a step."""

import json

import pytest

from selfexplain_jax import compile as compile_check
from selfexplain_jax.config import base_config
from selfexplain_jax.types import UserError


def tiny_config():
    config = base_config()
    config.data.image_size = 32
    config.model.widths = (4,)
    config.model.encoder_depth = 1
    config.train.batch_size = 4
    return config


def test_step_is_compiled_and_described(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("selfexplain_jax.data.synthetic.Synthetic.source", None)  # no data is read
    result = compile_check.compile_step(tiny_config(), str(tmp_path / "run"))
    assert result == json.loads((tmp_path / "run" / "compile.json").read_text())
    assert result["devices"] == 2 and result["batch_size"] == 4
    assert result["parameter_bytes"] == 4 * result["parameters"]
    # Parameters, their average, and Adam's two moments.
    assert 4 * result["parameter_bytes"] <= result["state_bytes"] < 4 * result["parameter_bytes"] + 100
    memory = result["memory_bytes"]
    # The donated state is updated in place; the arguments also hold this device's half of the batch.
    assert memory["shared"] == pytest.approx(result["state_bytes"], abs=1000)
    assert memory["arguments"] >= result["state_bytes"] + 2 * 32 * 32 * 3 * 4
    assert memory["total"] >= memory["arguments"]
    # Two devices have to add up their gradients.
    assert result["collectives"]["all-reduce"] >= 1
    assert result["flops"] > 2 * result["parameters"]
    told = capsys.readouterr().out
    assert "stem/kernel" in told and f"{result['parameters']:,}" in told and "all-reduce" in told


def test_batch_that_does_not_divide_is_refused_before_compiling():
    config = tiny_config()
    config.train.batch_size = 3
    with pytest.raises(UserError, match="does not divide over 2 devices"):
        compile_check.compile_step(config)


def test_collectives_are_counted():
    hlo = """
      %all-reduce.1 = f32[8]{0} all-reduce(%p.1), channel_id=1, to_apply=%add
      %all-reduce-start.2 = f32[8]{0} all-reduce-start(%p.2), channel_id=2
      %all-reduce-done.2 = f32[8]{0} all-reduce-done(%all-reduce-start.2)
      %g = (f32[8]{0}, f32[4]{0:T(128)}) all-gather(%p.1, %p.2), dimensions={0}
      %add.3 = f32[8]{0} add(%all-reduce.1, %g)
    """
    assert compile_check.count_collectives(hlo) == {"all-reduce": 2, "all-gather": 1}
