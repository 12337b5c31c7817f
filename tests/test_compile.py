"""The compile check tells what the real step needs, without data and without a step."""

import json
import os
import pathlib
import subprocess

import jax
import numpy as np
import pytest

from selfexplain_jax import compile as compile_check
from selfexplain_jax import main, topology
from selfexplain_jax.config import base_config
from selfexplain_jax.models import backend
from selfexplain_jax.models.depthwise import depthwise_convolution
from selfexplain_jax.types import UserError

ROOT = pathlib.Path(__file__).resolve().parents[1]


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
    # Parameters, their average, and Adam's two moments; then the step, and the batch statistics and theirs.
    assert 4 * result["parameter_bytes"] <= result["state_bytes"] < 4 * result["parameter_bytes"] + 200
    memory = result["memory_bytes"]
    # The donated state is updated in place; the arguments also hold this device's half of the batch.
    assert memory["shared"] == pytest.approx(result["state_bytes"], abs=1000)
    assert memory["arguments"] >= result["state_bytes"] + 2 * 32 * 32 * 3 * 4
    assert memory["total"] >= memory["arguments"]
    # Two devices have to add up their gradients.
    assert result["collectives"]["all-reduce"]["bytes"] >= result["parameter_bytes"]
    assert result["parameter_bytes_per_device"] == result["parameter_bytes"]
    assert result["state_bytes_per_device"] == result["state_bytes"] and result["topology"] == ""
    assert result["flops"] > result["contraction_flops"] > 2 * result["parameters"]
    told = capsys.readouterr().out
    assert "stem/kernel" in told and f"{result['parameters']:,}" in told and "all-reduce" in told


def test_batch_that_does_not_divide_is_refused_before_compiling():
    config = tiny_config()
    config.train.batch_size = 3
    with pytest.raises(UserError, match="does not divide over 2 devices"):
        compile_check.compile_step(config)


def test_devices_send_each_other_sums_alone():
    config = tiny_config()
    # All passes, and all that an image may borrow from another one.
    config.objective = {name: {"weight": 1.0} for name in ("classification", "object", "background", "evaluator")}
    config.passes.infills, config.passes.evaluator_masks = ("other_image",), ("swapped",)
    config.model.local_contrast = False
    # Of so many images those that borrow from each other lie on one device.
    config.train.batch_size = 128
    result = compile_check.compile_step(config)
    assert set(result["collectives"]) == {"all-reduce"}
    # Gradients of the two passes that train, which a compiler that is in no hurry adds first; for each of two batch
    # normalisations two sums per channel, forth and back; and the logged numbers.
    sent, statistics = result["collectives"]["all-reduce"]["bytes"], 2 * 4 * (2 * 4) * 2
    assert result["parameter_bytes"] <= sent <= 2 * result["parameter_bytes"] + statistics + 200


def test_split_parameters_leave_a_device_half_of_them():
    config = tiny_config()
    config.model.widths = (64,)
    config.train.shard_parameters = True
    result = compile_check.compile_step(config)
    for name in ("parameter_bytes", "state_bytes"):
        assert result[name] / 2 <= result[f"{name}_per_device"] < 0.55 * result[name]
    batch = 2 * (32 * 32 * (3 * 4 + 1) + 8 * 4 + 2 * 4)
    held = {"arguments": result["state_bytes_per_device"] + batch}
    held["outputs"] = held["shared"] = result["state_bytes_per_device"]
    for name, value in held.items():
        assert result["memory_bytes"][name] == pytest.approx(value, abs=3000)
    # Each large parameter is put together once, or more often.
    assert result["collectives"]["all-gather"]["bytes"] >= 0.9 * result["parameter_bytes"]


def test_operators_are_those_of_the_platform_that_is_compiled_for():
    x, kernel = np.ones((1, 4, 4, 2), np.float32), np.ones((3, 3, 2), np.float32)

    def operations():
        return str(jax.make_jaxpr(lambda x, kernel: depthwise_convolution(x, kernel, 1))(x, kernel))

    assert backend.on_cpu() and "conv_general_dilated" not in operations()
    with backend.written_for("tpu"):
        assert not backend.on_cpu() and "conv_general_dilated" in operations()
    assert backend.on_cpu()


# How ml_collections loads a config file.
@pytest.mark.filterwarnings(r"ignore:the load_module\(\) method is deprecated:DeprecationWarning")
def test_topology_without_its_compiler_is_told_what_to_install(monkeypatch):
    monkeypatch.setattr(topology.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"--topology=v5e:2x2 needs .* libtpu .*pip install libtpu==\d.*scaling.md"):
        compile_check.compile_step(tiny_config(), topology="v5e:2x2")
    assert main.run(["main", f"--config={ROOT / 'configs' / 'synthetic.py'}", "--topology=v5e:2x2"]) == 1


@pytest.mark.slow
def test_step_is_compiled_for_a_tpu_that_is_not_here(tmp_path):
    python = os.environ.get("SELFEXPLAIN_TPU_PYTHON")
    if not python:
        pytest.skip("set SELFEXPLAIN_TPU_PYTHON to the Python of an environment with libtpu, see docs/scaling.md")
    command = [python, "-m", "selfexplain_jax.main", "--mode=compile", "--config=configs/synthetic.py"]
    command += ["--config.data.image_size=32", "--config.model.widths=(8,)", f"--workdir={tmp_path}"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "XLA_"))}
    environment["JAX_EXEC_TIME_OPTIMIZATION_EFFORT"] = "-1"
    for slice_, code in (("v5e:2x2", 0), ("v5e:3x3", 1), ("h100:8", 1)):
        done = subprocess.run(
            [*command, f"--topology={slice_}"], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900
        )
        assert done.returncode == code, done.stderr
        assert code == 0 or done.stderr.startswith(f"error: --topology={slice_} is no TPU slice")
    result = json.loads((tmp_path / "compile.json").read_text())
    assert (result["devices"], result["device"], result["topology"]) == (4, "TPU v5 lite", "v5e:2x2")
    assert result["collectives"]["all-reduce"]["bytes"] >= result["parameter_bytes"]
