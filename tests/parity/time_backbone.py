"""Times EfficientNet-Lite0 in eager PyTorch for selfexplain_jax/benchmark_backbone.py, which starts this.

python tests/parity/time_backbone.py FOLDER

FOLDER/task.json: {"strides", "threads", "frozen_norm": batch normalisation keeps its statistics in training too,
"link": "softmax" or "sigmoid", "weight": of the loss, "learning_rate"}. FOLDER/weights.npz: see efficientnet_lite.py.
FOLDER/inputs.npz: images [N, H, W, 3], label [N, C] and the scores [N, C] that the other side has found.

The tasks are "forward" and "train_step", settings {"steps": how many}; answers {"seconds": of all of them, "losses":
one a training step}. See answering.py. Network and images are channels last, PyTorch's fastest form on CPUs.
"""

from __future__ import annotations

import json
import pathlib
import time
from collections.abc import Callable

import numpy as np
import torch
from answering import serve, version_of
from efficientnet_lite import Lite, score_difference
from torch import nn


class Given:
    """Network, batch and optimizer."""

    def __init__(self, folder: pathlib.Path):
        self.task = json.loads((folder / "task.json").read_text())
        torch.set_num_threads(self.task["threads"])
        with np.load(folder / "weights.npz") as weights:
            network = Lite(dict(weights), self.task["strides"])
        self.network = network.to(memory_format=torch.channels_last)
        with np.load(folder / "inputs.npz") as inputs:
            self.images = torch.from_numpy(inputs["images"]).permute(0, 3, 1, 2)  # channels last, as they lie in memory
            self.label, self.scores = torch.from_numpy(inputs["label"]), inputs["scores"]
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=self.task["learning_rate"])

    def loss(self, scores: torch.Tensor) -> torch.Tensor:
        """The classification term on a batch."""
        if self.task["link"] == "softmax":
            value = nn.functional.cross_entropy(scores, self.label)
        else:
            value = nn.functional.binary_cross_entropy_with_logits(scores, self.label)
        return self.task["weight"] * value


def forward(given: Given, steps: int) -> dict:
    """Scores as they are evaluated."""
    given.network.eval()
    started = time.perf_counter()
    with torch.inference_mode():
        for _ in range(steps):
            given.network(given.images)
    return {"seconds": time.perf_counter() - started}


def train_step(given: Given, steps: int) -> dict:
    """Loss, gradient and update."""
    given.network.train(not given.task["frozen_norm"])
    losses, started = [], time.perf_counter()
    for _ in range(steps):
        given.optimizer.zero_grad()
        loss = given.loss(given.network(given.images))
        loss.backward()
        given.optimizer.step()
        losses.append(loss.item())
    return {"seconds": time.perf_counter() - started, "losses": losses}


TASKS: dict[str, Callable[[Given, int], dict]] = {"forward": forward, "train_step": train_step}


def begin(folder: pathlib.Path) -> tuple[dict, Callable[[str, dict], dict]]:
    """What runs here, and what does a task."""
    given = Given(folder)
    about = {
        "versions": {"torch": version_of("torch")},
        "threads": torch.get_num_threads(),
        "score_difference": score_difference(given.network, given.images, given.scores),
    }
    return about, lambda task, settings: TASKS[task](given, settings["steps"])


if __name__ == "__main__":
    serve(begin)
