"""EfficientNet-Lite0 beside PyTorch's: a stand-in for its process answers; a slow test asks the real one."""

import json
import pathlib
import sys
import types

import numpy as np
import pytest

from selfexplain_jax import benchmark
from selfexplain_jax import benchmark_backbone as backbone
from selfexplain_jax import benchmark_peers as peers_lib
from selfexplain_jax.config import load_config
from selfexplain_jax.types import UserError

ROOT = pathlib.Path(__file__).resolve().parents[1]
SPEC = str(ROOT / "configs" / "imagenet.py")


def small_config(variant="classifier"):
    config = load_config(f"{SPEC}:{variant}")
    config.data.image_size, config.train.batch_size = 32, 2
    config.benchmark.repetitions, config.benchmark.steps = 3, 2
    return config


def stand_in(folder, difference=1e-7, loss=0.5, refuses=""):
    """An interpreter that plays PyTorch's side: 1 s a forward pass, 4 s a training step."""
    about = {"versions": {"torch": "9"}, "threads": 2, "score_difference": difference}
    file = folder / "python"
    file.write_text(f"""#!{sys.executable} -SE
import json, sys
print({json.dumps(about)!r}, flush=True)
for line in sys.stdin:
    task, settings = json.loads(line).values()
    answer = {{"seconds": settings["steps"] * {{"forward": 1, "train_step": 4}}[task]}}
    if task == "train_step":
        answer["losses"] = [{loss}] * settings["steps"]
    if task == {refuses!r}:
        answer = {{"error": "out of memory"}}
    print(json.dumps(answer), flush=True)
""")
    file.chmod(0o755)
    return str(file)


def measured(interpreter, tmp_path, settings):
    """`measure` with a step of ours that takes 2 s and has a loss of .5 at first."""
    ours = types.SimpleNamespace(losses=[0.5, 0.4], run=lambda steps: 2.0 * steps)
    peers = peers_lib.launch(interpreter, backbone.SCRIPT, tmp_path / "peers", {}, {})
    try:
        return backbone.measure(lambda: np.zeros(1), ours, peers, settings)
    finally:
        peers.close()


def test_the_ratio_is_our_time_over_theirs(tmp_path):
    tasks, losses = measured(stand_in(tmp_path), tmp_path, small_config().benchmark)
    step = tasks["train_step"]
    assert step["seconds"] == {"ours": [2.0] * 3, "peer": [4.0] * 3} and step["median_seconds"]["peer"] == 4
    assert step["ratio"] == 0.5 and step["missing"] == ""
    assert tasks["forward"]["seconds"]["peer"] == [1.0] * 3
    # Ours does nothing here.
    assert 0 < tasks["forward"]["ratio"] < 0.1
    assert losses == {"ours": 0.5, "peer": 0.5}
    assert [line.split() for line in backbone.table(tasks).splitlines()][2] == ["train_step", "2.000", "4.000", "0.50"]


def test_what_they_cannot_do_is_told_and_another_loss_is_refused(tmp_path):
    tasks, losses = measured(stand_in(tmp_path, refuses="train_step"), tmp_path, small_config().benchmark)
    assert tasks["train_step"]["ratio"] is None and tasks["train_step"]["missing"] == "out of memory"
    assert losses["peer"] is None and "out of memory" in backbone.table(tasks)
    with pytest.raises(UserError, match="loss is 0.5 here and 0.51 on the other side"):
        measured(stand_in(tmp_path, loss=0.51), tmp_path, small_config().benchmark)


def test_other_scores_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(backbone, "peer_network", lambda model, state: ({}, ()))
    experiment = types.SimpleNamespace(config=small_config(), model=None)
    batch = {"image": np.zeros((1, 2, 2, 3)), "label": np.zeros((1, 3))}
    interpreter = stand_in(tmp_path, difference=0.1)
    with pytest.raises(UserError, match="scores differ from ours by 0.1 "):
        backbone.start(interpreter, tmp_path / "peers", experiment, None, batch, np.zeros((1, 3)))


@pytest.mark.parametrize("change", ["variant", "network", "steps", "ramp"])
def test_what_it_does_not_measure_is_refused(change, tmp_path):
    config = small_config("self_explainer" if change == "variant" else "classifier")
    if change == "network":
        config.model.name = "resnet18"
    if change == "steps":
        config.benchmark.steps = 0
    if change == "ramp":
        config.objective.classification.ramp = 5
    expected = {"steps": "benchmark.steps = 0", "ramp": "weight alone; leave out ..ramp"}
    expected = expected.get(change, "configs/imagenet.py:classifier")
    with pytest.raises(UserError, match=expected):
        benchmark.run(config, str(tmp_path), "backbone")


def test_the_other_side_knows_the_tasks():
    script = backbone.SCRIPT.read_text()
    assert all(f'"{task}": {task}' in script for task in backbone.TASKS)


@pytest.mark.slow
def test_the_real_one_computes_the_same(tmp_path, monkeypatch, shared_data):
    """Run it with SELFEXPLAIN_PARITY_VENV naming the environment of launch/parity.sh."""
    if not peers_lib.find_interpreter():
        pytest.skip("no environment of the peers: bash launch/parity.sh install")
    monkeypatch.setenv("TFDS_DATA_DIR", str(shared_data / "tfds"))
    config = small_config()
    # Statistics of two cells, as at 32 px, magnify what rounding does.
    config.data.image_size, config.model.frozen_norm = 64, False
    result = benchmark.run(config, str(tmp_path), "backbone")
    assert result["peers"]["score_difference"] < 1e-4
    assert result["first_loss"]["peer"] == pytest.approx(result["first_loss"]["ours"], rel=1e-4)
    assert all(task["ratio"] > 0 for task in result["tasks"].values())
    assert result == json.loads((tmp_path / "benchmark_backbone.json").read_text())
