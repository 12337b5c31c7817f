"""Who reaches an IoU first: turns of two trainings, with sides that are worked by hand, and a real one of ours."""

import json
import pathlib
import sys

import numpy as np
import pytest

from selfexplain_jax import benchmark
from selfexplain_jax import benchmark_peers as peers_lib
from selfexplain_jax import benchmark_time_to_masks as time_to_masks
from selfexplain_jax.config import load_config
from selfexplain_jax.training import loop
from selfexplain_jax.types import UserError

SPEC = str(pathlib.Path(__file__).resolve().parents[1] / "configs" / "predecessor.py")


class Scripted:
    """A side whose turns are known beforehand; a name in the place of an IoU is a failure."""

    def __init__(self, *ious, seconds=10.0):
        self.ious, self.seconds, self.asked = list(ious), seconds, []

    def turn(self, seconds):
        self.asked.append(seconds)
        iou = self.ious.pop(0) if self.ious else 0.0
        if isinstance(iou, str):
            raise peers_lib.PeerError(iou)
        look = {"steps": len(self.asked), "loss": 1.0, "iou": iou, "accuracy": 0.5, "mask_area": 0.1}
        return look | {"seconds": self.seconds}


def race(limit=100.0, **sides):
    return time_to_masks.race(sides, target=0.5, turn_seconds=8.0, limit_seconds=limit, say=lambda line: None)


def test_seconds_of_training_are_those_of_a_sides_own_turns():
    ours, theirs = Scripted(0.1, 0.5), Scripted(0.2, 0.3, 0.4, 0.6, seconds=12.5)
    results = race(ours=ours, predecessor=theirs)
    assert (results["ours"]["seconds"], results["predecessor"]["seconds"]) == (20.0, 50.0)
    assert [look["seconds"] for look in results["predecessor"]["curve"]] == [12.5, 25.0, 37.5, 50.0]
    assert ours.asked == [8.0, 8.0]
    ratios = time_to_masks.compared(results)
    assert ratios == {"ratio": 2.5, "ratio_at_least": None}
    assert "takes 2.5 times as long" in time_to_masks.conclusion(results, ratios, 0.5)


def test_whoever_does_not_get_there_ends_at_the_limit():
    theirs = Scripted(0.3, 0.45, 0.2)
    results = race(limit=25.0, ours=Scripted(0.9), predecessor=theirs)
    # The last turn is as long as what is left.
    assert theirs.asked == [8.0, 8.0, 5.0]
    assert (results["predecessor"]["seconds"], results["predecessor"]["best_iou"]) == (None, 0.45)
    ratios = time_to_masks.compared(results)
    assert ratios == {"ratio": None, "ratio_at_least": 3.0}
    told = time_to_masks.conclusion(results, ratios, 0.5)
    assert "not within 30 s and 3 steps; IoU 0.450 at best" in told and "more than 3.0 times" in told


def test_one_side_alone_or_one_that_fails_has_no_ratio():
    results = race(ours=Scripted(0.9))
    assert time_to_masks.compared(results) == {"ratio": None, "ratio_at_least": None}
    results = race(ours=Scripted(0.9), predecessor=Scripted("it died"))
    assert results["predecessor"]["missing"] == "it died" and results["ours"]["seconds"] == 10.0
    ratios = time_to_masks.compared(results)
    assert ratios == {"ratio": None, "ratio_at_least": None}
    assert "predecessor: it died" in time_to_masks.conclusion(results, ratios, 0.5)
    # All steps are done: nothing is trained, and that is the end.
    assert race(ours=Scripted(0.1, seconds=0.0))["ours"]["seconds"] is None


def tiny_config(tmp_path):
    config = load_config(f"{SPEC}:plain")
    config.data.image_size, config.train.batch_size, config.train.steps = 32, 2, 3
    config.data.num_threads = 0
    config.model.widths, config.model.encoder_depth = (4,), 0
    file = tmp_path / "theirs.py"
    file.write_text(f"""from selfexplain_jax.config import load_config
def get_config():
    config = load_config({f"{SPEC}:plain"!r})
    config.model.widths, config.model.encoder_depth = (4,), 0
    return config
""")
    settings = config.benchmark
    settings.peer_config, settings.train_size, settings.validation_size = str(file), 6, 3
    return config


STAND_IN = f"""#!{sys.executable} -SE
import json, os, sys
assert {{"train_images.npy", "train_label.npy", "check.npz"}} <= set(os.listdir(sys.argv[2]))
print('{{"parameters": PARAMETERS, "difference": 0.0}}', flush=True)
for line in sys.stdin:
    look = {{"steps": 1, "loss": 1.0, "iou": 0.7, "accuracy": 0.5, "mask_area": 0.1}}
    print(json.dumps(look | {{"seconds": json.loads(line)["settings"]["seconds"]}}), flush=True)
"""


def test_our_training_goes_on_turn_by_turn_and_it_is_written(tmp_path, capsys):
    config = tiny_config(tmp_path)
    interpreter = tmp_path / "python"
    # A 3x3 stem of 4 x 4 pixels, the norm before the head, the head of eight classes at half the stem's stride.
    parameters = (9 * 48 * 4 + 4) + 8 + (4 * 8 * 4 + 8 * 4)
    interpreter.write_text(STAND_IN.replace("PARAMETERS", str(parameters)))
    interpreter.chmod(0o755)
    config.benchmark.check_seconds = 1e-3
    path = tmp_path / "masks.json"
    result = benchmark.run(config, str(tmp_path / "run"), "time_to_masks", peers=str(interpreter), json_path=str(path))
    assert result == json.loads(path.read_text())
    ours = result["sides"]["ours"]
    # A step a turn, and a last turn that has none left.
    assert [look["steps"] for look in ours["curve"]] == [1, 2, 3, 3] and ours["seconds"] is None
    assert 0 < result["compile_seconds"] < ours["curve"][0]["seconds"]
    assert all(0 <= look[name] <= 1 for look in ours["curve"] for name in ("iou", "accuracy", "mask_area"))
    assert result["sides"]["predecessor"]["seconds"] == pytest.approx(1e-3)
    # What the other side is handed is what our pipeline reads.
    folder, dataset = tmp_path / "run" / "peers", loop.build(config).dataset
    images = np.load(folder / "train_images.npy")
    assert images.shape == (6, 32, 32, 3)
    np.testing.assert_array_equal(images[4], dataset.source("train")[4]["image"])
    np.testing.assert_array_equal(np.load(folder / "train_label.npy")[4], dataset.source("train")[4]["label"])
    (batch,) = time_to_masks.look_batches(dataset, config, 3)
    np.testing.assert_array_equal(np.load(folder / "check.npz")["mask"], batch["mask"][batch["valid"] > 0])


def test_bad_input_is_refused(tmp_path):
    config = tiny_config(tmp_path)
    config.benchmark.limit_seconds = 0.0
    with pytest.raises(UserError, match="config.benchmark.limit_seconds = 0.0 must be above 0"):
        time_to_masks.run(config, str(tmp_path))
    config.benchmark.limit_seconds, config.benchmark.target_iou = 1.0, 1.5
    with pytest.raises(UserError, match="target_iou = 1.5 must be in"):
        time_to_masks.run(config, str(tmp_path))
    config.benchmark.target_iou = 0.5
    config.data.options = {"max_objects": 2}
    with pytest.raises(UserError, match="one class an image"):
        time_to_masks.run(config, str(tmp_path))
