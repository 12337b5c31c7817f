"""The peers' process: a stand-in for it answers, refuses, and dies; both sides take turns."""

import json
import os
import sys

import numpy as np
import pytest

from selfexplain_jax import benchmark_peers as peers_lib
from selfexplain_jax.types import UserError

STAND_IN = f"""#!{sys.executable} -SE
import json, os, sys
folder = sys.argv[2]
assert {{"weights.npz", "inputs.npz", "task.json"}} <= set(os.listdir(folder))
print(json.dumps({{"versions": {{"grad-cam": "9.9"}}, "threads": 2, "score_difference": 0.0}}), flush=True)
for line in sys.stdin:
    asked = json.loads(line)
    if asked["task"] == "die":
        sys.exit(7)
    if asked["task"] == "babble":
        print("hello", flush=True)
    elif asked["task"] == "refuse":
        print(json.dumps({{"error": "ValueError: no"}}), flush=True)
    else:
        print(json.dumps({{"seconds": asked["settings"]["seconds"]}}), flush=True)
"""


@pytest.fixture
def stand_in(tmp_path):
    """The file of an interpreter that plays the peers, whatever script it is given."""
    file = tmp_path / "environment" / "bin" / "python"
    file.parent.mkdir(parents=True)
    file.write_text(STAND_IN)
    file.chmod(0o755)
    return file


def start(interpreter, tmp_path, weights=None):
    arrays = {
        "weights": {"w": np.ones(3)} if weights is None else weights,
        "inputs": {"images": np.zeros((1, 2, 2, 3))},
    }
    return peers_lib.start(str(interpreter), tmp_path / "peers", strides=[1, 2], **arrays)


def test_peers_answer_with_their_seconds_and_with_what_went_wrong(stand_in, tmp_path):
    peers = start(stand_in, tmp_path)
    assert (peers.missing, peers.about["versions"]) == ("", {"grad-cam": "9.9"})
    assert json.loads((tmp_path / "peers" / "task.json").read_text())["strides"] == [1, 2]
    assert peers.seconds("rise", {"seconds": 0.25}) == 0.25
    with pytest.raises(peers_lib.PeerError, match="ValueError: no"):
        peers.seconds("refuse", {})
    # One task that cannot be done is not the end.
    assert peers.seconds("rise", {"seconds": 3.0}) == 3.0
    with pytest.raises(peers_lib.PeerError, match="exit code 7"):
        peers.seconds("die", {})
    with pytest.raises(peers_lib.PeerError, match="exit code 7"):
        peers.seconds("rise", {"seconds": 1.0})
    peers.close()


def test_what_is_no_answer_ends_it(stand_in, tmp_path):
    peers = start(stand_in, tmp_path)
    with pytest.raises(peers_lib.PeerError, match="something else than an answer: 'hello'"):
        peers.seconds("babble", {})
    assert "hello" in peers.missing
    peers.close()


def test_without_peers_the_reason_is_told(stand_in, tmp_path):
    assert "launch/parity.sh install" in start("", tmp_path).missing
    assert "EfficientNet-Lite0" in start(stand_in, tmp_path, weights={}).missing
    stand_in.write_text(f"#!{sys.executable}\nimport nothing_of_that_name\n")
    peers = start(stand_in, tmp_path)
    assert "exit code 1; see" in peers.missing and "peers.log" in peers.missing
    assert "nothing_of_that_name" in (tmp_path / "peers" / "peers.log").read_text()
    with pytest.raises(peers_lib.PeerError, match="exit code 1"):
        peers.seconds("rise", {})
    peers.close()


def test_interpreter_is_found_by_flag_and_by_variable(stand_in, tmp_path, monkeypatch):
    monkeypatch.delenv(peers_lib.VARIABLE, raising=False)
    monkeypatch.setattr(peers_lib, "REPOSITORY", tmp_path)
    assert peers_lib.find_interpreter() == ""
    assert peers_lib.find_interpreter(str(stand_in)) == str(stand_in)
    assert peers_lib.find_interpreter(str(tmp_path / "environment")) == str(stand_in)
    monkeypatch.setenv(peers_lib.VARIABLE, str(tmp_path / "environment"))
    assert peers_lib.find_interpreter() == str(stand_in)
    with pytest.raises(UserError, match="--peers=nowhere: there is no Python there"):
        peers_lib.find_interpreter("nowhere")
    monkeypatch.delenv(peers_lib.VARIABLE)
    os.rename(tmp_path / "environment", tmp_path / ".venv-parity")
    assert peers_lib.find_interpreter() == str(tmp_path / ".venv-parity" / "bin" / "python")


def test_both_sides_take_turns_and_the_first_round_does_not_count():
    calls = []

    def theirs():
        calls.append("theirs")
        return float(len(calls))

    own, other, missing = peers_lib.in_turn(lambda: calls.append("ours"), theirs, 3)
    assert calls == ["ours", "theirs"] * 4
    assert len(own) == 3 and min(own) > 0 and other == [4.0, 6.0, 8.0] and missing == ""


def test_ours_go_on_where_theirs_fail():
    def theirs():
        raise peers_lib.PeerError("it is not there")

    own, other, missing = peers_lib.in_turn(lambda: None, theirs, 2)
    assert (len(own), other, missing) == (2, [], "it is not there")


@pytest.mark.slow
def test_real_peers_have_the_same_network_and_do_every_task(shared_data, tmp_path):
    interpreter = peers_lib.find_interpreter()
    if not interpreter:
        pytest.skip(f"no environment of the peers: bash launch/parity.sh install, or set {peers_lib.VARIABLE}")
    reference = np.load(shared_data / "weights" / "efficientnet_lite0_reference.npz")
    with np.load(shared_data / "weights" / "efficientnet_lite0_fp16.npz") as stored:
        weights = dict(stored) | {"input_scale": np.full(3, 1.0), "input_offset": np.zeros(3)}
    images = (reference["images_uint8"].astype(np.float32) - 127) / 128
    inputs = {
        "images": images,
        "class_ids": np.argsort(-reference["logits_fp32"], axis=1)[:, :2],
        "saliency": np.random.default_rng(0).random((8, 224, 224)).astype(np.float32),
        "scores": reference["logits_fp32"],
    }
    strides = [1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1, 1, 1, 1]
    peers = peers_lib.start(interpreter, tmp_path, weights=weights, strides=strides, inputs=inputs)
    assert peers.missing == ""
    # The weights are in half precision, the scores are not.
    assert peers.about["score_difference"] < 0.002
    tasks = {
        "grad_cam": {"images": 2, "classes": 2},
        "grad_cam_plus_plus": {"images": 1, "classes": 1},
        "rise": {"images": 1, "masks": 4, "chunk_size": 2},
        "extremal_perturbation": {"images": 1, "classes": 1, "areas": [0.1, 0.2], "steps": 2},
        "grad_cam_again": None,
        "road": {"images": 1, "percentages": [20]},
    }
    for task, settings in tasks.items():
        if settings is None:
            task, settings = "grad_cam", tasks["grad_cam"]
        assert peers.seconds(task, settings) > 0, task
    peers.close()
