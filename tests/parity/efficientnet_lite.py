"""EfficientNet-Lite0 in PyTorch, for weights by the names that tests/parity/time_peers.py is handed.

From the paper's table of blocks, TensorFlow's "SAME" padding, batch normalisation with epsilon 1e-3 and ReLU6. The last
activation is a module, because grad-cam hooks modules.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import nn

EPSILON = 1e-3


def names_of_blocks(weights: Mapping[str, np.ndarray]) -> list[str]:
    """ "_blocks.0", "_blocks.1", ... as far as there are weights."""
    numbers = {int(name.split(".")[1]) for name in weights if name.startswith("_blocks.")}
    return [f"_blocks.{number}" for number in sorted(numbers)]


class Same(nn.Module):
    """A convolution without bias, padded so that there are ceil(size / stride) outputs; the odd cell at the end."""

    def __init__(self, weight: np.ndarray, stride: int, depthwise: bool = False):
        super().__init__()
        outputs, inputs, size, _ = weight.shape
        groups = outputs if depthwise else 1
        self.size, self.stride = size, stride
        # Symmetric padding is oneDNN's own; only strides of 2 on even sizes need another.
        self.convolution = nn.Conv2d(
            inputs * groups, outputs, size, stride, padding=0 if stride > 1 else size // 2, groups=groups, bias=False
        )
        self.convolution.weight.data = torch.from_numpy(weight)

    def forward(self, x):
        if self.stride > 1:
            totals = [max((-(-n // self.stride) - 1) * self.stride + self.size - n, 0) for n in x.shape[2:]]
            (top, bottom), (left, right) = ((total // 2, total - total // 2) for total in totals)
            x = nn.functional.pad(x, (left, right, top, bottom))
        return self.convolution(x)


class Lite(nn.Module):
    """Images [B, 3, H, W] to scores [B, C].

    Args:
      weights: by the names of the published PyTorch weights; kernels of 1x1 convolutions may be [O, I].
      strides: of the blocks.
    """

    def __init__(self, weights: Mapping[str, np.ndarray], strides: list[int]):
        super().__init__()
        self.weights = {name: np.ascontiguousarray(array, np.float32) for name, array in weights.items()}
        self.stem = nn.Sequential(Same(self.weights["_conv_stem.weight"], 2), self._norm("_bn0"), nn.ReLU6())
        self.blocks = nn.ModuleList(
            Block(self, name, stride) for name, stride in zip(names_of_blocks(weights), strides, strict=True)
        )
        self.top = nn.Sequential(self._point("_conv_head"), self._norm("_bn1"))
        # grad-cam's target layer.
        self.features = nn.ReLU6()
        outputs, inputs = self.weights["_fc.weight"].shape
        self.classifier = nn.Linear(inputs, outputs)
        self.classifier.weight.data = torch.from_numpy(self.weights["_fc.weight"])
        self.classifier.bias.data = torch.from_numpy(self.weights["_fc.bias"])
        for name in ("input_scale", "input_offset"):
            self.register_buffer(name, torch.from_numpy(self.weights[name]).reshape(1, 3, 1, 1))
        del self.weights

    def _norm(self, name: str) -> nn.BatchNorm2d:
        norm = nn.BatchNorm2d(len(self.weights[f"{name}.weight"]), eps=EPSILON)
        for part in ("weight", "bias", "running_mean", "running_var"):
            getattr(norm, part).data = torch.from_numpy(self.weights[f"{name}.{part}"])
        return norm

    def _point(self, name: str) -> Same:
        weight = self.weights[f"{name}.weight"]
        return Same(weight.reshape(*weight.shape[:2], 1, 1), 1)

    def forward(self, images):
        x = self.stem(images * self.input_scale + self.input_offset)
        for block in self.blocks:
            x = block(x)
        return self.classifier(self.features(self.top(x)).mean(dim=(2, 3)))


def score_difference(network: Lite, images: torch.Tensor, scores: np.ndarray) -> float:
    """Of a network's scores from those that the other side has found, at most, relative to the largest."""
    with torch.no_grad():
        found = network.eval()(images).numpy()
    return float(np.abs(found - scores).max() / np.abs(scores).max())


class Block(nn.Module):
    """1x1 to more channels, depthwise k x k, 1x1 to fewer; plus the input where shapes agree."""

    def __init__(self, network: Lite, name: str, stride: int):
        super().__init__()
        layers = []
        if f"{name}._expand_conv.weight" in network.weights:
            layers += [network._point(f"{name}._expand_conv"), network._norm(f"{name}._bn0"), nn.ReLU6()]
        depthwise = network.weights[f"{name}._depthwise_conv.weight"]
        layers += [Same(depthwise, stride, depthwise=True), network._norm(f"{name}._bn1"), nn.ReLU6()]
        layers += [network._point(f"{name}._project_conv"), network._norm(f"{name}._bn2")]
        self.layers = nn.Sequential(*layers)

    def forward(self, x):
        y = self.layers(x)
        return x + y if y.shape == x.shape else y
