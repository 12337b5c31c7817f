"""The Self-Explainer's first implementation: its step of three passes in eager PyTorch, from its description.

image pass: s = f(x); object pass: f(x m) with the target mask, or the mask of one present class, through a copy of the
network that is made anew in every step; background pass: f(x (1 - m)) through that copy. The gradient reaches the
network through the masks. Where the description names no number (weights of the smoothness and of the area's bounds),
it is that of Stalder et al. 2022 for VOC and ResNet-50; see selfexplain_jax/recipes.py.

Not known from the description, and so chosen here: the copy is in training mode, as the network is; the smoothness is
held back by the gate of the area.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping

import predecessor_losses as losses
import torch
from torch import nn
from torch.nn import functional


class Stopwatch:
    """Seconds by phase; eager PyTorch on a CPU has done its work when a call returns."""

    def __init__(self):
        self.seconds: dict[str, float] = {}
        self._since = time.perf_counter()

    def lap(self, phase: str) -> None:
        """Books the time since the last call under that name."""
        now = time.perf_counter()
        self.seconds[phase] = self.seconds.get(phase, 0.0) + now - self._since
        self._since = now


class Predecessor:
    """A network in training.

    Args:
      network: images [B, 3, H, W] to logit maps [B, C, h, w].
      settings: link ("softmax" or "sigmoid"), temperature (k of the pool), classes_per_image (0: the target mask),
        objective ({term: {"weight", "gate_steepness", "gate_offset", "lower", "upper"}}), mask_stride (the stride that
        the weight of the smoothness is for), learning_rate.
    """

    def __init__(self, network: nn.Module, settings: Mapping):
        self.network, self.settings = network, settings
        self.optimizer = torch.optim.Adam(network.parameters(), lr=settings["learning_rate"])
        self.generator = torch.Generator().manual_seed(0)

    def step(self, images: torch.Tensor, label: torch.Tensor, *, copy_gradients: bool) -> tuple[float, Stopwatch]:
        """One update; returns the loss and the seconds of its phases.

        Args:
          images: [B, 3, H, W]. label: [B, C].
          copy_gradients: the copy's weights have gradients, as those of a plain copy do, though nobody uses them.
        """
        self.network.train()
        watch = Stopwatch()
        temporary = copy.deepcopy(self.network)
        if not copy_gradients:
            temporary.requires_grad_(False)
        watch.lap("copy of the network")
        maps = self.network(images)
        scores = losses.pooled(maps, self.settings["temperature"])
        watch.lap("image pass")
        target, other = losses.largest_of(maps, label, True), losses.largest_of(maps, label, False)
        shown_mask, shown = target, label
        if self.settings["classes_per_image"]:
            shown_mask, shown = losses.one_class(maps, label, self.generator)
        watch.lap("masks and losses")
        object_scores = self.answer(temporary, images * self.at_full_size(shown_mask, images))
        watch.lap("object pass")
        background_scores = self.answer(temporary, images * (1 - self.at_full_size(target, images)))
        watch.lap("background pass")
        object_part, size = (object_scores, shown), images.shape[2]
        loss = self.loss(maps, label, scores, (target, other), object_part, background_scores, size)
        watch.lap("masks and losses")
        self.optimizer.zero_grad()
        loss.backward()
        watch.lap("gradient")
        self.optimizer.step()
        watch.lap("update")
        return float(loss.detach()), watch

    def answer(self, network: nn.Module, images: torch.Tensor) -> torch.Tensor:
        """Class scores of images [B, 3, H, W]."""
        return losses.pooled(network(images), self.settings["temperature"])

    def at_full_size(self, masks: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
        """Masks [B, h, w] to [B, 1, H, W]."""
        masks = masks[:, None]
        if masks.shape[2:] == images.shape[2:]:
            return masks
        return functional.interpolate(masks, size=images.shape[2:], mode="bilinear", align_corners=False)

    def loss(self, maps, label, scores, masks, shown, background_scores, size) -> torch.Tensor:
        """The objective: every term times its weight and its gate. `size`: side of the images."""
        terms = self.settings["objective"]
        (target, other), (object_scores, object_label), link = masks, shown, self.settings["link"]
        bounds = terms["area_bounds"]
        classification = losses.cross_entropy(scores, label, link)
        values = {
            "classification": classification,
            "object": losses.cross_entropy(object_scores, object_label, link),
            "background": losses.lacking_entropy(background_scores),
            "area_bounds": losses.area_bounds(maps, label, bounds["lower"], bounds["upper"]),
            "area_target": target.mean(),
            "area_non_target": other.mean(),
            # Differences between neighbours are smaller where cells are.
            "smoothness": (losses.total_variation(target) + losses.total_variation(other))
            * (self.settings["mask_stride"] * maps.shape[2] / size),
        }
        total = torch.zeros(())
        for name, value in values.items():
            held = 1.0 if name == "classification" else losses.gate(classification, terms[name])
            total = total + terms[name]["weight"] * held * value
        return total

    @torch.no_grad()
    def check(self, images: torch.Tensor, label: torch.Tensor, truth: torch.Tensor) -> dict[str, float]:
        """Means over images [N, 3, H, W] with one class each: "iou" of the target mask at .5, "accuracy", "mask_area".

        Args:
          images: [N, 3, H, W]. label: [N, C]. truth: [N, H, W], above 0 where the object is.
        """
        self.network.eval()
        sums = torch.zeros(3, dtype=torch.float64)
        for part in torch.arange(len(images)).split(50):
            maps, there = self.network(images[part]), label[part]
            right = losses.pooled(maps, self.settings["temperature"]).argmax(dim=1)
            masks = self.at_full_size(losses.largest_of(maps, there, True), images[part])[:, 0]
            correct = there.gather(1, right[:, None])[:, 0] > 0
            columns = (losses.iou(masks, truth[part]), correct.float(), masks.mean(dim=(1, 2)))
            sums += torch.stack(columns).sum(dim=1)
        return dict(zip(("iou", "accuracy", "mask_area"), (sums / len(images)).tolist(), strict=True))
