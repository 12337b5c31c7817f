"""Writes cam.npz: the maps of grad-cam and captum for the network of cam_network.py.

Run by launch/parity.sh in an environment of its own; the versions are those of requirements.txt in this folder.
"""

from __future__ import annotations

import pathlib
from unittest import mock

import cam_network as given
import numpy as np
import torch
from captum import attr
from torch import nn

# grad-cam imports torchvision, which stops where its compiled operators are of another build than torch (one for CPUs,
# the other for GPUs, say). None of them is used here.
with mock.patch("torch.library.register_fake", lambda name: lambda function: function):
    from pytorch_grad_cam import GradCAM, GradCAMPlusPlus
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget


class Network(nn.Module):
    """The network; every ReLU is a module of its own, because captum replaces modules."""

    def __init__(self):
        super().__init__()
        self.conv0, self.conv1 = nn.Conv2d(3, 6, 3, 1, 1), nn.Conv2d(6, 8, 3, 2, 1)
        self.hidden, self.classifier = nn.Linear(given.SHAPES["hidden"][0], 10), nn.Linear(10, given.CLASSES)
        self.relu0, self.relu1, self.relu2 = nn.ReLU(), nn.ReLU(), nn.ReLU()
        with torch.no_grad():
            for name, (kernel, bias) in given.weights().items():
                layer, kernel = getattr(self, name), torch.from_numpy(kernel)
                layer.weight.copy_(kernel.permute(3, 2, 0, 1) if kernel.ndim == 4 else kernel.T)
                layer.bias.copy_(torch.from_numpy(bias))

    def forward(self, images):
        x = self.relu1(self.conv1(self.relu0(self.conv0(images))))
        return self.classifier(self.relu2(self.hidden(x.permute(0, 2, 3, 1).flatten(1))))


def activation_maps(method_class, network: Network, images: torch.Tensor, ids: list[int]) -> np.ndarray:
    """Raw maps [B, h, w] of grad-cam, before it scales them to 0..1 and resizes them with that."""
    with method_class(network, [network.relu1]) as method:
        targets = [ClassifierOutputTarget(number) for number in ids]
        method(images, targets)
        activations = method.activations_and_grads.activations[0].numpy()
        gradients = method.activations_and_grads.gradients[0].numpy()
        return method.get_cam_image(images, network.relu1, targets, activations, gradients)


def resized(maps: np.ndarray) -> np.ndarray:
    """ReLU, then bilinear resize of [B, h, w] to image size."""
    positive = torch.from_numpy(maps).clamp(min=0)[:, None]
    return nn.functional.interpolate(positive, size=given.SIZE, mode="bilinear")[:, 0].numpy()


def smooth_grad(network: Network, images: torch.Tensor, ids: list[int]) -> torch.Tensor:
    """captum's NoiseTunnel with our noise in the place of its own."""
    noise = torch.from_numpy(given.noise()).permute(0, 3, 1, 2)
    found = []
    for image, number in zip(images, ids, strict=True):
        sigma = given.SIGMA * float(image.max() - image.min())
        with mock.patch("torch.normal", lambda mean, std: mean + std * noise):
            tunnel = attr.NoiseTunnel(attr.Saliency(network))
            found.append(
                tunnel.attribute(
                    image[None], nt_samples=given.SAMPLES, stdevs=sigma, target=number, abs=False, nt_type="smoothgrad"
                )
            )
    return torch.cat(found)


def main():
    """Computes and writes the file."""
    network = Network().eval()
    images = torch.from_numpy(given.images()).permute(0, 3, 1, 2)

    def integrated(method, ids):
        return attr.IntegratedGradients(network).attribute(
            images, baselines=given.BASELINE, target=ids, n_steps=given.STEPS, method=method
        )

    results = {"scores": network(images).detach().numpy()}
    maps: dict[str, list[np.ndarray]] = {}
    for column in given.CLASS_IDS.T:
        ids = [int(number) for number in column]
        found = {
            "grad_cam": resized(activation_maps(GradCAM, network, images, ids)),
            "grad_cam_plus_plus": resized(activation_maps(GradCAMPlusPlus, network, images, ids)),
            "gradient": attr.Saliency(network).attribute(images, target=ids, abs=False).abs().amax(1),
            "gradient_x_input": attr.InputXGradient(network).attribute(images, target=ids).sum(1),
            "smooth_grad": smooth_grad(network, images, ids).abs().sum(1),
            "integrated_gradients": integrated("gausslegendre", ids).sum(1),
            "integrated_gradients_right": integrated("riemann_right", ids).sum(1),
            "integrated_gradients_middle": integrated("riemann_middle", ids).sum(1),
            "integrated_gradients_trapezoid": integrated("riemann_trapezoid", ids).sum(1),
            "guided_backpropagation": attr.GuidedBackprop(network).attribute(images, target=ids).abs().amax(1),
        }
        layer = attr.LayerGradCam(network, network.relu1).attribute(images, target=ids, relu_attributions=True)
        found["grad_cam_captum"] = attr.LayerAttribution.interpolate(layer, (given.SIZE,) * 2, "bilinear")[:, 0]
        for name, value in found.items():
            maps.setdefault(name, []).append(torch.as_tensor(value).detach().numpy())
    results |= {name: np.stack(values, axis=1).astype(np.float32) for name, values in maps.items()}  # [B, k, H, W]
    path = pathlib.Path(__file__).with_name("cam.npz")
    np.savez_compressed(path, **results)
    print(f"Written to {path}: {', '.join(results)}")


if __name__ == "__main__":
    main()
