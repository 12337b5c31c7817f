"""The other side of selfexplain_jax/benchmark_predecessor.py, which starts this in the peers' environment.

python tests/parity/time_predecessor.py FOLDER

FOLDER/task.json: {"network": "unet" or "deeplab", "options" of a U-Net, "classes", "settings" (see predecessor.py),
"threads", "seed", "batch_size", "mean", "std"}. FOLDER/weights.npz: the network's, by the other side's names.
FOLDER/inputs.npz: images [B, H, W, 3], normalised, label [B, C], and cells [1, h, w, C], the logit maps that the other
side has of the first image. With FOLDER/train_images.npy (uint8 [N, H, W, 3]) and train_label.npy there are check.npz
(images uint8, label, mask) and a task more.

The first line written says what runs here: {"versions", "threads", "parameters", "difference": of the logit maps,
relative to the largest}. Then for each line read, {"task": name, "settings": {...}}, a line is written:
  "step" {"steps", "copy_gradients"} -> {"seconds", "phases": {name: seconds}, "losses": one a step}
  "operations" {"copy_gradients"} -> {"operations": of one step, as torch.utils.flop_counter counts them}
  "train" {"seconds", "copy_gradients"} -> {"seconds", "steps": so far, "loss": the last, "iou", "accuracy",
    "mask_area"}: trains for so long, and goes on there when asked again. Checking does not count.
  "check" {} -> {"iou", "accuracy", "mask_area"}
or {"error": why not}. An empty line, or the end of the input, ends it.
"""

from __future__ import annotations

import json
import pathlib
import time
from collections.abc import Callable, Iterator

import numpy as np
import predecessor_networks as networks
import torch
from answering import serve, version_of
from predecessor import Predecessor
from torch.utils.flop_counter import FlopCounterMode


class Given:
    """What the other side has handed over, and the network."""

    def __init__(self, folder: pathlib.Path):
        self.folder, self.task = folder, json.loads((folder / "task.json").read_text())
        torch.set_num_threads(self.task["threads"])
        torch.manual_seed(self.task["seed"])
        with np.load(folder / "weights.npz") as weights:
            arguments = (self.task["network"], self.task["classes"], self.task["options"], dict(weights))
        self.network = networks.build(*arguments)
        with np.load(folder / "inputs.npz") as inputs:
            self.images, self.label = channels_last(inputs["images"]), torch.from_numpy(inputs["label"])
            self.cells = inputs["cells"]
        self.training = Predecessor(self.network, self.task["settings"])
        self.steps, self.loss = 0, float("nan")
        self._batches, self._check = None, None

    def difference(self) -> float:
        """Of the first image's logit maps here from those of the other side, at most, relative to the largest."""
        self.network.eval()
        with torch.no_grad():
            found = self.network.cells(self.images[:1]).permute(0, 2, 3, 1).numpy()
        return float(np.abs(found - self.cells).max() / np.abs(self.cells).max())

    def normalised(self, images: np.ndarray) -> torch.Tensor:
        """uint8 [N, H, W, 3] as the network takes it."""
        mean, std = (np.asarray(self.task[name], np.float32) for name in ("mean", "std"))
        return channels_last((images - mean) / std)

    def next_batch(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Of the training images, every one once before any comes again."""
        if self._batches is None:
            self._batches = self._shuffled()
        return next(self._batches)

    def _shuffled(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        images, label = (np.load(self.folder / f"train_{name}.npy", mmap_mode="r") for name in ("images", "label"))
        random, count = np.random.default_rng(self.task["seed"]), self.task["batch_size"]
        while True:
            order = random.permutation(len(images))
            for start in range(0, len(order) - count + 1, count):
                rows = order[start : start + count]
                yield self.normalised(images[rows]), torch.from_numpy(label[rows])

    def check(self) -> dict[str, float]:
        """See `Predecessor.check`; on the other side's images for that."""
        if self._check is None:
            with np.load(self.folder / "check.npz") as given:
                truth = torch.from_numpy(given["mask"])
                self._check = self.normalised(given["images"]), torch.from_numpy(given["label"]), truth
        return self.training.check(*self._check)


def channels_last(images: np.ndarray) -> torch.Tensor:
    """[N, H, W, 3] to [N, 3, H, W], as they lie in memory."""
    return torch.from_numpy(np.ascontiguousarray(images, np.float32)).permute(0, 3, 1, 2)


def step(given: Given, settings: dict) -> dict:
    """Some steps on one batch."""
    phases: dict[str, float] = {}
    found, started = [], time.perf_counter()
    for _ in range(settings["steps"]):
        loss, watch = given.training.step(given.images, given.label, copy_gradients=settings["copy_gradients"])
        found.append(loss)
        for phase, seconds in watch.seconds.items():
            phases[phase] = phases.get(phase, 0.0) + seconds
    return {"seconds": time.perf_counter() - started, "phases": phases, "losses": found}


def operations(given: Given, settings: dict) -> dict:
    """Of products and convolutions; nothing else is counted."""
    counter = FlopCounterMode(display=False)
    with counter:
        given.training.step(given.images, given.label, copy_gradients=settings["copy_gradients"])
    return {"operations": counter.get_total_flops()}


def train(given: Given, settings: dict) -> dict:
    """Goes on training for some seconds, one step at least."""
    started, taken = time.perf_counter(), 0.0
    while taken < settings["seconds"]:
        loss, _ = given.training.step(*given.next_batch(), copy_gradients=settings["copy_gradients"])
        given.steps, given.loss, taken = given.steps + 1, loss, time.perf_counter() - started
    return {"seconds": taken, "steps": given.steps, "loss": given.loss} | given.check()


def check(given: Given, settings: dict) -> dict:
    """Where the training is."""
    del settings
    return given.check()


TASKS: dict[str, Callable[[Given, dict], dict]] = {
    "step": step,
    "operations": operations,
    "train": train,
    "check": check,
}


def begin(folder: pathlib.Path) -> tuple[dict, Callable[[str, dict], dict]]:
    """What runs here, and what does a task."""
    given = Given(folder)
    about = {
        "versions": {package: version_of(package) for package in ("torch", "torchvision")},
        "threads": torch.get_num_threads(),
        "parameters": sum(parameter.numel() for parameter in given.network.parameters()),
        "difference": given.difference(),
    }
    return about, lambda task, settings: TASKS[task](given, settings)


if __name__ == "__main__":
    serve(begin)
