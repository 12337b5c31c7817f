"""The benchmark measures the real pipeline and the real step, and writes what it prints."""

import json

import jax
import pytest

from selfexplain_jax import benchmark, benchmark_step
from selfexplain_jax.config import base_config
from selfexplain_jax.training import mesh as mesh_lib
from selfexplain_jax.types import UserError


def tiny_config():
    config = base_config()
    config.data.image_size = 32
    config.data.num_threads = 0
    config.data.prefetch = 4
    config.model.widths = (4,)
    config.model.encoder_depth = 1
    config.train.batch_size = 4
    return config


def test_pipeline_is_measured_and_written(tmp_path, capsys, monkeypatch):
    measure = benchmark.benchmark_pipeline
    monkeypatch.setattr(benchmark, "benchmark_pipeline", lambda config: measure(config, steps=2, repetitions=3))
    result = benchmark.run(tiny_config(), str(tmp_path / "run"), "pipeline")
    assert result == json.loads((tmp_path / "run" / "benchmark.json").read_text())
    assert list(result["measured"]) == ["pipeline images/s"]
    values = result["measured"]["pipeline images/s"]["values"]
    assert len(values) == 3 and min(values) > 0
    assert result["measured"]["pipeline images/s"]["median"] == sorted(values)[1]
    assert "pipeline images/s" in capsys.readouterr().out


@pytest.mark.parametrize("what", ["train", "explain"])
def test_steps_are_measured(what, monkeypatch):
    monkeypatch.setattr(benchmark_step, "PEAK_SIDE", 64)
    config = tiny_config()
    config.evaluation.batch_size = 4
    measured = getattr(benchmark_step, f"benchmark_{what}")(config, steps=2, repetitions=2)
    repeated = [f"{what} images/s", "step ms", "waiting for data %", "GFLOP/s"]
    repeated += ["matrix product GFLOP/s", "of matrix product %"]
    assert [name for name, values in measured.items() if len(values) == 2] == repeated
    once = {name: values[0] for name, values in measured.items() if len(values) == 1}
    assert set(once) == {"step GFLOP", "compile s", "memory MB"} and min(once.values()) > 0
    for rate, milliseconds, waiting, speed, _, share in zip(*(measured[name] for name in repeated), strict=True):
        assert rate > 0 and 0 <= waiting <= 100
        # images/s cannot be more than what the steps alone allow (median of two steps: their mean).
        assert rate <= 4 / (milliseconds / 1000) * 1.001
        assert speed == pytest.approx(once["step GFLOP"] / milliseconds * 1000)
        assert share == pytest.approx(100 * speed / max(measured["matrix product GFLOP/s"]))


def test_a_classifier_has_no_masks_to_be_timed(tmp_path):
    config = tiny_config()
    config.method = "classifier"
    with pytest.raises(UserError, match="--what=attribution"):
        benchmark.run(config, str(tmp_path), "explain")


def test_what_a_device_can_is_a_rate_of_products(monkeypatch):
    monkeypatch.setattr(benchmark_step, "PEAK_SIDE", 32)
    mesh = mesh_lib.make_mesh(jax.devices()[:1])
    rates = benchmark_step.matrix_product_rates(2, mesh, "bfloat16")
    assert len(rates) == 2 and min(rates) > 0
    assert benchmark_step.against_peak(2e9, [500.0], mesh, "float32")["GFLOP/s"] == [4.0]


def test_table_tells_median_and_range():
    lines = benchmark.table({"train images/s": [3.0, 1.0, 2000.0]}).splitlines()
    assert lines[1].split() == ["train", "images/s", "3.0", "1.0", "2,000.0", "3"]


def test_bad_input_is_refused(tmp_path):
    with pytest.raises(UserError, match="--what=speed is unknown. Choose one of pipeline, train, explain, all"):
        benchmark.run(tiny_config(), str(tmp_path), "speed")
    with pytest.raises(UserError, match="at least one"):
        benchmark.benchmark_pipeline(tiny_config(), steps=0)
