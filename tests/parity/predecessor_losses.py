"""Masks and losses of the Self-Explainer's first implementation, written anew in PyTorch from their description.

A loop over images, and in it one over classes, wherever a class is chosen. s: logit maps [B, C, h, w]; label [B, C],
multi-hot; masks [B, h, w] in 0..1; N = h w cells. `predecessor.py` has the step.
"""

from __future__ import annotations

import torch
from torch.nn import functional


def pooled(maps: torch.Tensor, temperature: float) -> torch.Tensor:
    """z_c = sum_u softmax_u(k s_c)_u s_c(u): [B, C]."""
    flat = maps.flatten(2)  # [B, C, N]
    return (torch.softmax(temperature * flat, dim=2) * flat).sum(dim=2)


def largest_of(maps: torch.Tensor, label: torch.Tensor, present: bool) -> torch.Tensor:
    """sigmoid(max_c s_c) over the classes that are present, or over those that are not; 0 where there is none."""
    masks = []
    for logits, row in zip(maps, label, strict=True):
        largest = torch.full_like(logits[0], -1e9)
        for number, there in enumerate(row.tolist()):
            if (there > 0) == present:
                largest = torch.maximum(largest, logits[number])
        masks.append(torch.sigmoid(largest))
    return torch.stack(masks)


def one_class(maps: torch.Tensor, label: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """S_c of one present class c of each image, drawn, and its label [B, C]; 0 where no class is present."""
    masks, shown = [], torch.zeros_like(label)
    for number, row in enumerate(label):
        present = torch.nonzero(row)[:, 0]
        if len(present) == 0:
            masks.append(torch.zeros_like(maps[number, 0]))
            continue
        chosen = int(present[torch.randint(len(present), (), generator=generator)])
        masks.append(torch.sigmoid(maps[number, chosen]))
        shown[number, chosen] = 1
    return torch.stack(masks), shown


def cross_entropy(scores: torch.Tensor, label: torch.Tensor, link: str) -> torch.Tensor:
    """Mean over the batch of CE(z, y) under "softmax", of mean_c BCE(z_c, y_c) under "sigmoid"."""
    if link == "sigmoid":
        return functional.binary_cross_entropy_with_logits(scores, label)
    return functional.cross_entropy(scores, label / label.sum(dim=1, keepdim=True))


def lacking_entropy(scores: torch.Tensor) -> torch.Tensor:
    """Mean over the batch of log C - H(softmax z): 0 where every class is as likely as the others."""
    log_q = torch.log_softmax(scores, dim=1)
    return torch.log(torch.tensor(float(scores.shape[1]))) + (log_q.exp() * log_q).sum(dim=1).mean()


def area_bounds(maps: torch.Tensor, label: torch.Tensor, lower: float, upper: float) -> torch.Tensor:
    """Sum over the present classes, mean over the batch, of how far the sorted mask leaves its bounds.

    Of the N cells of S_c, largest first, the first lower N are to be 1 and those behind the first upper N are to be 0;
    mean_u relu(least - S_c) + relu(S_c - most).
    """
    cells = maps[0, 0].numel()
    least, most = torch.zeros(cells), torch.zeros(cells)
    least[: round(lower * cells)] = 1
    most[: round(upper * cells)] = 1
    total = torch.zeros(())
    for logits, row in zip(maps, label, strict=True):
        for number, there in enumerate(row.tolist()):
            if there > 0:
                ordered = torch.sort(torch.sigmoid(logits[number]).flatten(), descending=True).values
                total = total + torch.relu(least - ordered).mean() + torch.relu(ordered - most).mean()
    return total / len(maps)


def total_variation(masks: torch.Tensor) -> torch.Tensor:
    """mean |dx m| + mean |dy m|."""
    down, right = masks[:, 1:] - masks[:, :-1], masks[:, :, 1:] - masks[:, :, :-1]
    return down.abs().mean() + right.abs().mean()


def gate(loss: torch.Tensor, options: dict) -> torch.Tensor:
    """min(1, exp(-steepness (L - offset))) of the classification loss L, without a gradient; 1 where there is none."""
    steepness = options.get("gate_steepness", 0.0)
    return torch.exp(-steepness * (loss.detach() - options.get("gate_offset", 0.0))).clamp(max=1.0)


def iou(masks: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Intersection over union of the cells above one half, of each image: masks and truth [B, h, w] to [B]."""
    drawn, there = masks > 0.5, truth > 0
    together, either = (drawn & there).sum(dim=(1, 2)), (drawn | there).sum(dim=(1, 2))
    return together / either.clamp(min=1)
