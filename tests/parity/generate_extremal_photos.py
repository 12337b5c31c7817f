"""Writes extremal_photos.npz: Extremal Perturbations of TorchRay as published, EfficientNet-Lite0 on eight photos.

As generate_perturbation.py, and in the same environment; half an hour on two cores. Weights and photos are those of
$SELFEXPLAIN_DATA/weights, else of `../shared/data`; without them nothing is written.

Every photo is searched three times: for the first steps, to the end, and to the end from an image that differs by a
rounding error. How far the last two lie apart is how near any other implementation can be asked to come.
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
STEPS, FIRST_STEPS = 800, 60
"""Steps of a whole search; those after which masks are compared before searches part."""
NOISE = 1e-6
"""Standard deviation of what is added to images of about -1 to 1: some ten units in the last place."""
STRIDE = 4
"""Of a mask every fourth value each way is kept: it is smooth over more than twenty."""
FOLDER = pathlib.Path(__file__).parent


def search(network, images, class_ids, steps):
    """uint8 [N, H / STRIDE, W / STRIDE]: each image's mask after so many steps."""
    from torchray.attribution.extremal_perturbation import extremal_perturbation

    masks = []
    for image, number in zip(images, class_ids.tolist(), strict=True):
        found = extremal_perturbation(network, image[None], number, areas=[AREA], max_iter=steps)[0]
        masks.append(found[0, 0, ::STRIDE, ::STRIDE].numpy())
        print(f"{steps} steps: {len(masks)}/{len(images)}", flush=True)
    return (np.stack(masks) * 255).round().astype(np.uint8)


def main():
    """Searches the mask of each photo's likeliest class."""
    warnings.simplefilter("ignore")
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
    class_ids = scores.argmax(axis=1)
    noise = NOISE * torch.from_numpy(np.random.default_rng(0).normal(size=images.shape).astype(np.float32))
    np.savez_compressed(
        FOLDER / "extremal_photos.npz",
        scores=scores[np.arange(len(scores)), class_ids],
        class_ids=class_ids,
        first_masks=search(network, images, class_ids, FIRST_STEPS),
        masks=search(network, images, class_ids, STEPS),
        masks_again=search(network, images + noise, class_ids, STEPS),
    )


if __name__ == "__main__":
    main()
