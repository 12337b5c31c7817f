"""Writes torchvision.json: what torchvision's networks say, with the weights and images of formula.py.

Needs torch and torchvision, which neither the package nor its tests ask for (last run with torch 2.13.0, CPU build, and
torchvision 0.28.0), and is run by hand: python tests/goldens/generate.py
"""

from __future__ import annotations

import json
import pathlib

import formula
import torch
from torch import nn
from torchvision import models


def networks() -> dict[str, tuple[nn.Module, int]]:
    """Each network with the size of its images; heads are small, so that the tests are quick."""
    vgg = models.vgg16(num_classes=5)
    vgg.classifier = nn.Sequential(
        *(nn.Linear(512 * 49, 8), nn.ReLU(), nn.Dropout(), nn.Linear(8, 8), nn.ReLU(), nn.Dropout(), nn.Linear(8, 5))
    )
    vit = models.VisionTransformer(32, 16, num_layers=2, num_heads=2, hidden_dim=32, mlp_dim=128, num_classes=5)
    deeplab = models.segmentation.deeplabv3_resnet50(weights=None, weights_backbone=None, num_classes=3)
    return {
        "resnet18": (models.resnet18(num_classes=5), 32),
        "resnet50": (models.resnet50(num_classes=5), 32),
        # Not a multiple of 7 cells: the adaptive pooling has uneven windows.
        "vgg16": (vgg, 96),
        "vit_small": (vit, 32),
        "deeplab_resnet50": (_Maps(deeplab), 32),
    }


class _Maps(nn.Module):
    """The logit maps of a segmentation network before they are resized to the image."""

    def __init__(self, network):
        super().__init__()
        self.backbone, self.classifier = network.backbone, network.classifier

    def forward(self, images):
        return self.classifier(self.backbone(images)["out"])


def main():
    """Computes and writes the file."""
    results = {}
    for name, (network, size) in networks().items():
        with torch.no_grad():
            for key, tensor in network.state_dict().items():
                if not key.endswith("num_batches_tracked"):
                    tensor.copy_(torch.from_numpy(formula.weight(key, tensor.shape)))
            images = torch.from_numpy(formula.images(2, size)).permute(0, 3, 1, 2)
            output = network.eval()(images)
        output = output.permute(0, 2, 3, 1) if output.ndim == 4 else output
        results[name] = {"size": size, "output": [[float(f"{v:.7g}") for v in row.flatten()] for row in output.numpy()]}
    path = pathlib.Path(__file__).with_name(formula.GOLDENS)
    path.write_text(json.dumps(results) + "\n")
    print(f"Written to {path}")


if __name__ == "__main__":
    main()
