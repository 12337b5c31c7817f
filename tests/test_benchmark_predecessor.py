"""The step beside the first implementation's: a stand-in for its process answers; a slow test asks the real one."""

import json
import math
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selfexplain_jax import benchmark, costs
from selfexplain_jax import benchmark_peers as peers_lib
from selfexplain_jax import benchmark_predecessor as predecessor
from selfexplain_jax import benchmark_time_to_masks as time_to_masks
from selfexplain_jax.compile import abstract_batch, abstract_state
from selfexplain_jax.config import load_config
from selfexplain_jax.training import loop
from selfexplain_jax.training import mesh as mesh_lib
from selfexplain_jax.types import UserError

ROOT = pathlib.Path(__file__).resolve().parents[1]
SPEC = str(ROOT / "configs" / "predecessor.py")


def tiny_config(variant="plain"):
    config = load_config(f"{SPEC}:{variant}")
    config.data.image_size, config.train.batch_size = 32, 2
    config.model.widths, config.model.encoder_depth = (4,), 0
    config.benchmark.repetitions, config.benchmark.steps = 3, 2
    return config


def stand_in(folder, parameters, difference=1e-7):
    """An interpreter that plays the predecessor: 2 and 1.5 s a step, more in the round that does not count."""
    about = {"versions": {"torch": "9"}, "parameters": parameters, "difference": difference}
    file = folder / "python"
    file.write_text(f"""#!{sys.executable} -SE
import json, os, sys
assert {{"weights.npz", "inputs.npz", "task.json"}} <= set(os.listdir(sys.argv[2]))
print({json.dumps(about)!r}, flush=True)
asked = 0
for line in sys.stdin:
    task, settings = json.loads(line).values()
    step = 2 if settings["copy_gradients"] else 1.5
    answer = {{"operations": 1e9 * step}}
    if task == "step":
        step *= settings["steps"] * (9 if asked < 2 else 1)
        answer = {{"seconds": step, "phases": {{"copy": step / 8, "gradient": step / 2}}, "losses": [0.5]}}
        asked += 1
    print(json.dumps(answer), flush=True)
""")
    file.chmod(0o755)
    return str(file)


def parameters_of(config):
    state = abstract_state(loop.build(config), mesh_lib.make_mesh())
    return sum(leaf.size for leaf in jax.tree.leaves(state.params))


def test_both_sides_step_in_turn_and_it_is_written(tmp_path, capsys):
    config = tiny_config()
    interpreter = stand_in(tmp_path, parameters_of(config))
    result = benchmark.run(config, str(tmp_path / "run"), "train", peers=interpreter)
    assert result == json.loads((tmp_path / "run" / "benchmark.json").read_text())
    assert (result["network"], result["batch_size"], result["settings"]["steps"]) == ("unet", 2, 2)
    sides = result["sides"]
    assert list(sides) == ["ours", "image_pass", "predecessor", "predecessor_frozen"]
    assert sides["predecessor"]["seconds"] == [2, 2, 2] and sides["predecessor_frozen"]["seconds"] == [1.5, 1.5, 1.5]
    ours = sorted(sides["ours"]["seconds"])[1]
    assert sides["ours"]["median_seconds"] == ours and sides["ours"]["ratio"] == 1
    assert sides["predecessor"]["ratio"] == pytest.approx(2 / ours)
    assert sides["predecessor"]["images_per_second"] == 1
    assert list(sides["predecessor"]["phases"].items()) == [("gradient", 1), ("copy", 0.25)]
    assert sides["predecessor_frozen"]["contractions"] == 1.5e9
    # A round that does not count and three that do, of two steps each; three passes take more than one.
    assert len(sides["ours"]["losses"]) == 8 and all(map(math.isfinite, sides["ours"]["losses"]))
    for counted in ("contractions", "operations"):
        assert 0 < sides["image_pass"][counted] < sides["ours"][counted]
    task = json.loads((tmp_path / "run" / "peers" / "task.json").read_text())
    assert task["options"]["widths"] == [4] and task["settings"]["objective"]["object"]["weight"] == 0.5
    out = capsys.readouterr().out
    assert "predecessor_frozen: gradient 0.750 s, copy 0.188 s" in out and "images/s" in out


def test_networks_that_differ_are_no_comparison(tmp_path):
    config = tiny_config()
    with pytest.raises(UserError, match="network has 7 parameters, and ours"):
        predecessor.run(config, str(tmp_path), stand_in(tmp_path, 7))
    with pytest.raises(UserError, match="maps differ from ours by 0.5 of the largest"):
        predecessor.run(config, str(tmp_path), stand_in(tmp_path, parameters_of(config), difference=0.5))


def test_configs_that_the_other_side_does_not_know_are_refused(monkeypatch, tmp_path):
    assert predecessor.network_name(load_config(f"{SPEC}:deeplab").model) == "deeplab"
    assert predecessor.peer_settings(load_config(f"{SPEC}:deeplab"))["objective"]["area_non_target"]["weight"] == 0.6
    config = tiny_config()
    config.model.norm = "group"
    with pytest.raises(UserError, match="has two networks.*configs/predecessor.py"):
        predecessor.network_name(config.model)
    config = tiny_config()
    config.passes.weights = "live"
    with pytest.raises(UserError, match="config.passes.weights is not"):
        predecessor.peer_settings(config)
    with pytest.raises(UserError, match="config.objective is not|config.passes.infills is not"):
        predecessor.peer_settings(load_config(str(ROOT / "configs" / "synthetic.py")))
    config = tiny_config()
    config.benchmark.steps = 0
    interpreter = stand_in(tmp_path, 7)
    with pytest.raises(UserError, match="config.benchmark.steps = 0 must be at least 1"):
        predecessor.run(config, str(tmp_path), interpreter)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    with pytest.raises(UserError, match="JAX_PLATFORMS=cpu"):
        predecessor.run(tiny_config(), str(tmp_path), interpreter)


def test_noise_has_as_many_classes_as_the_data():
    info = loop.build(load_config(f"{SPEC}:deeplab")).dataset.info
    label = predecessor.noise_batch(info, 16)["label"]
    assert label.shape == (16, 20) and set(label.sum(axis=1)) == {1, 2, 3}
    assert set(predecessor.noise_batch(loop.build(tiny_config()).dataset.info, 16)["label"].sum(axis=1)) == {1}


@pytest.fixture
def real():
    """The Python of the peers' environment."""
    interpreter = peers_lib.find_interpreter()
    if not interpreter:
        pytest.skip(f"no environment of the peers: bash launch/parity.sh install, or set {peers_lib.VARIABLE}")
    return interpreter


def start(interpreter, config, folder):
    """The experiment, the state with maps on both sides of 0, a batch, and the real process."""
    experiment, mesh = loop.build(config), mesh_lib.make_mesh()
    state = predecessor.create(experiment, mesh)
    state.params["head"]["bias"] = jnp.zeros_like(state.params["head"]["bias"])
    batch = predecessor.noise_batch(experiment.dataset.info, config.train.batch_size)
    return experiment, state, batch, predecessor.start(interpreter, folder, experiment, state, batch)


@pytest.mark.slow
def test_real_predecessor_has_our_unet_and_our_operations(real, tmp_path):
    config = tiny_config("unet")
    config.model.widths, config.model.encoder_depth = (8, 16), 1
    config.train.batch_size, config.train.learning_rate = 4, 1e-2
    time_to_masks.export(loop.build(config).dataset, config, tmp_path, 8, 6)
    experiment, state, batch, peers = start(real, config, tmp_path)
    assert peers.missing == "" and peers.about["difference"] < 1e-5
    # Both sides say the same of the same images and masks.
    own = time_to_masks.OwnTraining(config, time_to_masks.look_batches(experiment.dataset, config, 6))
    found = own.check(state)
    for name, value in peers.ask("check", {}, wanted="iou").items():
        assert found[name] == pytest.approx(value, abs=1e-5), name
    assert found["iou"] > 0
    shapes = abstract_batch(config, experiment.dataset.info.num_classes, mesh_lib.make_mesh())
    ours = costs.contractions(loop.make_step(experiment, mesh_lib.make_mesh()), state, shapes)
    plain, frozen = (
        peers.ask("operations", {"copy_gradients": copy}, wanted="operations")["operations"] for copy in (True, False)
    )
    # No gradients of the copy's weights; the rest is the same, but for the filters, which are no products there.
    assert frozen < 0.9 * plain and ours == pytest.approx(frozen, rel=0.05)
    losses = peers.ask("step", {"steps": 8, "copy_gradients": False})["losses"]
    assert losses[-1] < losses[0]
    look = peers.ask("train", {"seconds": 0.01, "copy_gradients": False}, wanted="iou")
    assert look["steps"] == 1 and math.isfinite(look["loss"])
    peers.close()


@pytest.mark.slow
def test_real_predecessor_has_our_deeplab(real, tmp_path):
    config = load_config(f"{SPEC}:deeplab")
    config.data.image_size, config.train.batch_size = 32, 2
    _, _, _, peers = start(real, config, tmp_path)
    assert peers.missing == "" and peers.about["parameters"] == 39638612 and peers.about["difference"] < 1e-4
    assert np.isfinite(peers.ask("step", {"steps": 1, "copy_gradients": True})["losses"]).all()
    peers.close()
