"""Writes extremal_photos.npz: Extremal Perturbations of TorchRay as published, EfficientNet-Lite0 on eight photos.

As tests/parity/generate_perturbation.py, and in the same environment; ten minutes on two cores. Weights and photos are
those of $SELFEXPLAIN_DATA/weights, else of `../shared/data`; without them nothing is written.
"""

import json
import os
import pathlib
import sys
import warnings

import numpy as np
import torch
from efficientnet_lite import Lite

AREA = 0.1
"""One of the published four; the search of one area knows nothing of the others."""
FOLDER = pathlib.Path(__file__).parent


def main():
    """Searches the mask of each photo's likeliest class, in 800 steps."""
    warnings.simplefilter("ignore")
    from torchray.attribution.extremal_perturbation import extremal_perturbation

    data = pathlib.Path(os.environ.get("SELFEXPLAIN_DATA") or FOLDER.parents[2] / "shared" / "data") / "weights"
    if not data.is_dir():
        print(f"There is no {data}: set SELFEXPLAIN_DATA. extremal_photos.npz stays as it is.", file=sys.stderr)
        return
    # As in generate_perturbation.py: a fresh mask has equal values.
    torch.Tensor.sort = lambda tensor, dim: torch.sort(tensor, dim=dim, stable=True)
    weights = {"input_scale": np.ones(3), "input_offset": np.zeros(3), **np.load(data / "efficientnet_lite0_fp16.npz")}
    blocks = json.loads((data / "efficientnet_lite0_arch.json").read_text())["blocks"]
    network = Lite(weights, [block["stride"] for block in blocks]).eval()
    network.requires_grad_(False)
    photos = np.load(data / "efficientnet_lite0_reference.npz")["images_uint8"].astype(np.float32)
    images = (torch.from_numpy(photos).permute(0, 3, 1, 2) - 127) / 128
    scores = network(images).numpy()
    class_ids, masks = scores.argmax(axis=1), []
    for image, number in zip(images, class_ids.tolist(), strict=True):
        masks.append(extremal_perturbation(network, image[None], number, areas=[AREA])[0][0, 0].numpy())
        print(f"{len(masks)}/{len(images)}", flush=True)
    np.savez_compressed(
        FOLDER / "extremal_photos.npz",
        scores=scores[np.arange(len(scores)), class_ids],
        class_ids=class_ids,
        masks=(np.stack(masks) * 255).round().astype(np.uint8),
    )


if __name__ == "__main__":
    main()
