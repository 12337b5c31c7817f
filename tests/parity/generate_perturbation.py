"""Writes perturbation.npz: RISE and Extremal Perturbations of TorchRay and Score-CAM of grad-cam, on small_network.py.

Run it in an environment with torch, torchray (installed without its dependencies, of which it needs matplotlib,
requests and packaging) and grad-cam:

python tests/parity/generate_perturbation.py
"""

import pathlib
import warnings

import numpy as np
import small_network
import torch
from torch import nn

# At larger areas of so small a mask the penalty begins among equal pixels, and TorchRay's own masks change with a
# millionth of difference at the start.
AREAS = [0.05]
STEPS = 40
FOLDER = pathlib.Path(__file__).parent


class Network(nn.Module):
    """small_network.py in torch; `features` is a module, for hooks."""

    def __init__(self):
        super().__init__()
        weights = {name: torch.from_numpy(array) for name, array in small_network.weights().items()}
        self.first, self.second = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 12, 3, 2, 1)
        self.features, self.linear = nn.ReLU(), nn.Linear(12, small_network.CLASSES)
        with torch.no_grad():
            for name in ("first", "second"):
                getattr(self, name).weight.copy_(weights[name].permute(3, 2, 0, 1))
                getattr(self, name).bias.copy_(weights[f"{name}_bias"])
            self.linear.weight.copy_(weights["linear"].T)
            self.linear.bias.copy_(weights["linear_bias"])

    def forward(self, images):
        hidden = self.features(self.second(torch.relu(self.first(images))))
        return self.linear(hidden.mean(dim=(2, 3)))


def score_cam(network, images):
    """Raw Score-CAM [B, C, h, w] by grad-cam, before its ReLU and scaling, and with masks of unaligned corners."""
    # grad-cam imports torchvision, which fails where its compiled operators are of another build; none is used here.
    register, torch.library.register_fake = torch.library.register_fake, lambda name: lambda function: function
    from pytorch_grad_cam import ScoreCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    torch.library.register_fake = register
    aligned, nn.UpsamplingBilinear2d = nn.UpsamplingBilinear2d, lambda size: nn.Upsample(size=size, mode="bilinear")
    maps = []
    with ScoreCAM(model=network, target_layers=[network.features]) as method:
        for target in range(small_network.CLASSES):
            targets = [ClassifierOutputTarget(target)] * len(images)
            method.activations_and_grads(images)
            (activations,) = (a.numpy() for a in method.activations_and_grads.activations)
            maps.append(method.get_cam_image(images, network.features, targets, activations, None))
    nn.UpsamplingBilinear2d = aligned
    return np.stack(maps, axis=1)


def main():
    """Computes and writes everything."""
    warnings.simplefilter("ignore")
    from torchray.attribution.extremal_perturbation import extremal_perturbation
    from torchray.attribution.rise import rise

    # A fresh mask has equal values, and torch's sort leaves it open which of those are the larger ones: a stable one
    # does not, and both sides start the same way.
    torch.Tensor.sort = lambda tensor, dim: torch.sort(tensor, dim=dim, stable=True)
    network = Network().eval()
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    images = torch.from_numpy(small_network.images()).permute(0, 3, 1, 2)
    masks = torch.from_numpy(small_network.masks()).contiguous()[:, None]
    result = {"scores": network(images).numpy(), "score_cam": score_cam(network, images)}
    result["rise"] = rise(network, images, filter_masks=masks, num_masks=len(masks)).numpy()[:, :2]
    for variant in ("preserve", "delete", "dual"):
        found = [
            extremal_perturbation(
                network,
                images[number : number + 1],
                1,
                areas=AREAS,
                max_iter=STEPS,
                num_levels=5,
                step=3,
                sigma=6,
                variant=variant,
            )[0][:, 0].numpy()
            for number in range(len(images))
        ]
        result[f"extremal_{variant}"] = np.stack(found).astype(np.float16)
    np.savez_compressed(FOLDER / "perturbation.npz", **result)
    print({name: (array.shape, float(array.min()), float(array.max())) for name, array in result.items()})


if __name__ == "__main__":
    main()
