"""The networks of selfexplain_jax's `unet` and `encoder_unet` (ResNet-50, atrous head) in PyTorch, and their weights.

Images [B, 3, H, W], channels last in memory. `forward` gives the logit maps that the predecessor works on: DeepLab's at
the size of the images, as torchvision's segmentation networks do, the U-Net's at its mask stride. `cells` gives them
before they are resized, which is what selfexplain_jax has.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from unittest import mock

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torchvision_names import DEEPLAB

DIRECTIONS = [(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1) if i or j]


class DeepLab(nn.Module):
    """torchvision's deeplabv3_resnet50 as its users call it, without weights from elsewhere."""

    def __init__(self, classes: int):
        super().__init__()
        # It stops where torchvision's compiled operators are of another build of torch; none is used here.
        with mock.patch("torch.library.register_fake", lambda name: lambda function: function):
            from torchvision.models import segmentation
        self.whole = segmentation.deeplabv3_resnet50(weights=None, weights_backbone=None, num_classes=classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.whole(images)["out"]

    def cells(self, images: torch.Tensor) -> torch.Tensor:
        return self.whole.classifier(self.whole.backbone(images)["out"])


class Residual(nn.Module):
    """x + conv3x3(relu(norm(x)))."""

    def __init__(self, width: int):
        super().__init__()
        self.norm, self.conv = norm(width), nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x):
        return x + self.conv(torch.relu(self.norm(x)))


class UNet(nn.Module):
    """The U-Net of selfexplain_jax/models/unet.py with batch normalisation and without a refining level.

    Args:
      classes: C.
      options: widths, encoder_depth, decoder_depth, stem_stride, mask_stride, map_blur, edge_distances, edge_scale,
        local_contrast, as there.
    """

    def __init__(self, classes: int, options: Mapping):
        super().__init__()
        self.options, widths = dict(options), options["widths"]
        self.factor = options["stem_stride"] // options["mask_stride"]
        parts = {"stem": nn.Conv2d(3 * options["stem_stride"] ** 2, widths[0], 3, padding=1)}
        for level, width in enumerate(widths):
            if level:
                parts[f"down{level}"] = nn.Conv2d(4 * widths[level - 1], width, 1)
            parts |= {f"encoder{level}_{i}": Residual(width) for i in range(options["encoder_depth"])}
        for level in reversed(range(len(widths) - 1)):
            parts[f"up_norm{level}"] = norm(widths[level + 1])
            parts[f"up{level}"] = nn.Conv2d(widths[level + 1], widths[level], 1)
            parts |= {f"decoder{level}_{i}": Residual(widths[level]) for i in range(options["decoder_depth"])}
        parts |= {"head_norm": norm(widths[0]), "head": nn.Conv2d(widths[0], classes * self.factor**2, 1)}
        self.parts = nn.ModuleDict(parts)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        options, parts = self.options, self.parts
        x = local_contrast(images) if options["local_contrast"] else images
        x = parts["stem"](functional.pixel_unshuffle(x, options["stem_stride"]))
        skips = []
        for level in range(len(options["widths"])):
            if level:
                x = parts[f"down{level}"](functional.pixel_unshuffle(x, 2))
            for i in range(options["encoder_depth"]):
                x = parts[f"encoder{level}_{i}"](x)
            skips.append(x)
        for level in reversed(range(len(skips) - 1)):
            x = parts[f"up{level}"](torch.relu(parts[f"up_norm{level}"](x)))
            x = skips[level] + functional.interpolate(x, scale_factor=2, mode="nearest")
            for i in range(options["decoder_depth"]):
                x = parts[f"decoder{level}_{i}"](x)
        maps = functional.pixel_shuffle(parts["head"](torch.relu(parts["head_norm"](x))), self.factor)
        if options["map_blur"]:
            maps = blurred(maps, options["map_blur"])
        if options["edge_distances"]:
            maps = smooth_within_edges(maps, images, options["edge_distances"], options["edge_scale"])
        return maps

    cells = forward


def norm(width: int) -> nn.BatchNorm2d:
    """Batch normalisation with the momentum of the other side, .95."""
    return nn.BatchNorm2d(width, momentum=0.05)


def blurred(x: torch.Tensor, sigma: float) -> torch.Tensor:
    """Gaussian blur with standard deviation `sigma`, renormalised at the borders."""
    rows, columns = (gaussian(size, sigma) for size in x.shape[2:])
    return rows @ x @ columns.T


def gaussian(size: int, sigma: float) -> torch.Tensor:
    """[size, size] with rows that sum to 1."""
    place = torch.arange(size, dtype=torch.float32)
    kernel = torch.exp(-0.5 * ((place[:, None] - place[None]) / sigma) ** 2)
    return kernel / kernel.sum(dim=1, keepdim=True)


def local_contrast(images: torch.Tensor, sigma: float = 4.0, floor: float = 0.1) -> torch.Tensor:
    """(x - mean) / (std + floor), both in a Gaussian window, the deviation over colours too."""
    centred = images - blurred(images, sigma)
    variance = blurred(centred.square().mean(dim=1, keepdim=True), sigma)
    contrast = centred / (torch.sqrt(variance + 1e-6) + floor)
    return contrast.contiguous(memory_format=torch.channels_last)


def around(x: torch.Tensor, distance: int, outside: float = 0.0) -> list[torch.Tensor]:
    """The eight neighbours of each cell at that distance."""
    d, (height, width) = distance, x.shape[2:]
    padded = functional.pad(x, (d, d, d, d), value=outside)
    return [padded[:, :, d + d * i : d + d * i + height, d + d * j : d + d * j + width] for i, j in DIRECTIONS]


def smooth_within_edges(maps: torch.Tensor, images: torch.Tensor, distances, scale: float) -> torch.Tensor:
    """Averages over neighbours v, weighted exp(-|x_u - x_v|^2 / (2 scale^2)), at one distance after another."""
    with torch.no_grad():
        small = functional.avg_pool2d(images, images.shape[2] // maps.shape[2])
    for distance in distances:
        with torch.no_grad():
            # Beyond the border every colour is unlike.
            apart = [(other - small).square().sum(dim=1, keepdim=True) for other in around(small, distance, 1e6)]
            alike = [torch.exp(-difference / (2 * scale**2)) for difference in apart]
            total = 1 + sum(alike)
        maps = (maps + sum(a * other for a, other in zip(alike, around(maps, distance), strict=True))) / total
    return maps


# ---- Weights from the other side -------------------------------------------------------------------------------------

LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
NAMES = {
    "unet": (
        (r"\.Norm_0\.BatchNorm_0", ".norm"),
        (r"\.BatchNorm_0", ""),
        (r"\.Conv_0", ".conv"),
        (r"^", "parts."),
    ),
    "deeplab": (
        *DEEPLAB,
        (r"^", "whole."),
    ),
}


def build(kind: str, classes: int, options: Mapping, weights: Mapping[str, np.ndarray]) -> nn.Module:
    """The network "unet" or "deeplab" with the other side's weights, {"block/conv/kernel": array}; channels last."""
    network = DeepLab(classes) if kind == "deeplab" else UNet(classes, options)
    state, found = network.state_dict(), {}
    for path, array in weights.items():
        *place, leaf = path.split("/")
        name = ".".join([*place, LEAVES[leaf]])
        for pattern, replacement in NAMES[kind]:
            name = re.sub(pattern, replacement, name)
        if kind == "unet":
            array = in_their_order(array, place[0], options, classes)
        found[name] = torch.from_numpy(in_their_layout(array, state[name].dim()))
    missing = [name for name in state if name not in found and not name.endswith("num_batches_tracked")]
    if missing:
        raise ValueError(f"no weights for {missing[:3]}")
    network.load_state_dict(found, strict=False)
    return network.to(memory_format=torch.channels_last)


def in_their_layout(array: np.ndarray, axes: int) -> np.ndarray:
    """[h, w, I, O] or, of a 1x1 convolution, [I, O] to [O, I, h, w]."""
    if array.ndim == 2 and axes == 4:
        array = array[None, None]
    return np.ascontiguousarray(array.transpose(3, 2, 0, 1) if array.ndim == 4 else array)


def in_their_order(array: np.ndarray, layer: str, options: Mapping, classes: int) -> np.ndarray:
    """A block's pixels lie pixel by pixel there and channel by channel here: reorders the axis that holds them."""
    factor = options["stem_stride"] // options["mask_stride"]
    if layer == "head":
        return blocks_by_channel(array, array.ndim - 1, factor, classes)
    if array.ndim > 1 and layer == "stem":
        return blocks_by_channel(array, array.ndim - 2, options["stem_stride"], 3)
    if array.ndim > 1 and layer.startswith("down"):
        return blocks_by_channel(array, array.ndim - 2, 2, array.shape[-2] // 4)
    return array


def blocks_by_channel(array: np.ndarray, axis: int, factor: int, channels: int) -> np.ndarray:
    """An axis of factor x factor x channels as one of channels x factor x factor."""
    shape = array.shape
    split = array.reshape(*shape[:axis], factor**2, channels, *shape[axis + 1 :])
    return np.swapaxes(split, axis, axis + 1).reshape(shape)
