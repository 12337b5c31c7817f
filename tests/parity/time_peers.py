"""Times the published implementations for selfexplain_jax/benchmark_peers.py, which starts this in their environment.

python tests/parity/time_peers.py FOLDER

FOLDER/task.json: {"strides": of the network's blocks, "threads": n}. FOLDER/weights.npz: the network, see
efficientnet_lite.py. FOLDER/inputs.npz: images [N, H, W, 3], class_ids [N, k] (the likeliest first), saliency
[N, H, W] and the scores [N, C] that the other side has found.

The first line written says what runs here: {"versions": {...}, "threads": n, "score_difference": largest, relative to
the largest score}. Then for each line read, {"task": name, "settings": {...}}, the task is done once, and a line
written: {"seconds": s}, or {"error": why not}. Nothing else goes to standard output. An empty line, or the end of the
input, ends it. Every package is used as its own documentation does; the network and the images are channels last, which
is PyTorch's fastest form on CPUs.
"""

from __future__ import annotations

import json
import os
import pathlib
import time
from collections.abc import Callable
from unittest import mock

os.environ["TQDM_DISABLE"] = "1"

import numpy as np  # noqa: E402
import torch  # noqa: E402
from answering import serve, version_of  # noqa: E402
from efficientnet_lite import Lite, score_difference  # noqa: E402
from torch import nn  # noqa: E402

PACKAGES = ("torch", "grad-cam", "torchray", "quantus")


class Given:
    """The network and its inputs, in PyTorch's layout."""

    def __init__(self, folder: pathlib.Path):
        task = json.loads((folder / "task.json").read_text())
        torch.set_num_threads(task["threads"])
        with np.load(folder / "weights.npz") as weights:
            network = Lite(dict(weights), task["strides"])
        self.network = network.eval().to(memory_format=torch.channels_last)
        inputs = np.load(folder / "inputs.npz")
        self.images = torch.from_numpy(inputs["images"]).permute(0, 3, 1, 2)  # channels last, as they lie in memory
        self.class_ids, self.saliency = inputs["class_ids"].astype(int), inputs["saliency"]
        self.scores = inputs["scores"]


def without_operators():
    """For grad-cam and quantus, which import torchvision; it stops where its operators are of another build."""
    return mock.patch("torch.library.register_fake", lambda name: lambda function: function)


def class_activation(name: str) -> Callable:
    """A task of grad-cam: one class of all images at a time, which is how the package takes classes."""

    def prepare(given: Given, settings: dict) -> Callable[[], None]:
        with without_operators():
            import pytorch_grad_cam
            from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
        images, class_ids = given.images[: settings["images"]], given.class_ids[: settings["images"]]
        method = getattr(pytorch_grad_cam, name)(given.network, [given.network.features])
        # Score-CAM's masked images at a time.
        method.batch_size = settings.get("chunk_size", 16)

        def run():
            for column in class_ids[:, : settings["classes"]].T:
                method(images, [ClassifierOutputTarget(number) for number in column])

        return run

    return prepare


def rise(given: Given, settings: dict) -> Callable[[], None]:
    """TorchRay's RISE gives the maps of all classes."""
    from torchray.attribution.rise import rise

    images = given.images[: settings["images"]]
    return lambda: rise(given.network, images, num_masks=settings["masks"], batch_size=settings["chunk_size"])


def extremal_perturbation(given: Given, settings: dict) -> Callable[[], None]:
    """TorchRay's takes one image and one class, and searches all areas side by side."""
    from torchray.attribution.extremal_perturbation import extremal_perturbation

    images, class_ids = given.images[: settings["images"]], given.class_ids[: settings["images"]]

    def run():
        for image, numbers in zip(images, class_ids[:, : settings["classes"]], strict=True):
            for number in numbers:
                extremal_perturbation(
                    given.network,
                    image[None],
                    int(number),
                    areas=settings["areas"],
                    max_iter=settings["steps"],
                    smooth=0.09,
                )

    return run


def deletion_insertion(given: Given, settings: dict) -> Callable[[], None]:
    """quantus's pixel flipping with steps of one image side; insertion is that from blurred images to the images."""
    with without_operators():
        import quantus
    from scipy.ndimage import gaussian_filter

    count, size = settings["images"], given.images.shape[-1]
    images = np.ascontiguousarray(given.images[:count].numpy())
    whole, maps, class_ids = images.reshape(count, -1), given.saliency[:count, None], given.class_ids[:count, 0]
    point = np.zeros((11, 11))
    point[5, 5] = 1
    kernel = torch.from_numpy(gaussian_filter(point, 5)).float().expand(3, 1, 11, 11)

    def insert(arr, indices, **_):
        arr, rows = arr.copy(), np.arange(count)[:, None]
        arr[rows, indices] = whole[rows, indices]
        return arr

    options = {"features_in_step": 3 * size, "normalise": False, "disable_warnings": True}
    # It wants steps that divide the pixels, where they need to divide the pixels of all channels, and do.
    asked = mock.patch("quantus.helpers.asserts.assert_features_in_step", lambda **_: None)
    deletion = quantus.PixelFlipping(perturb_baseline=0.0, **options)
    insertion = quantus.PixelFlipping(perturb_func=insert, **options)

    def run():
        blurred = nn.functional.conv2d(torch.from_numpy(images), kernel, padding=5, groups=3).numpy()
        with asked:
            for metric, shown in ((deletion, images), (insertion, blurred)):
                metric(given.network, x_batch=shown, y_batch=class_ids, a_batch=maps, softmax=True, channel_first=True)

    return run


def road(given: Given, settings: dict) -> Callable[[], None]:
    """quantus removes the most relevant pixels; the least relevant ones are those of the map turned upside down."""
    with without_operators():
        import quantus
        from quantus.functions.perturb_func import noisy_linear_imputation

    count, pixels = settings["images"], given.saliency[0].size
    images = np.ascontiguousarray(given.images[:count].numpy())
    maps, class_ids = given.saliency[:count, None], given.class_ids[:count, 0]

    def impute(arr, indices, **options):
        return noisy_linear_imputation(arr, np.unique(indices % pixels), **options)

    # It orders the pixels of all channels, and its imputation takes numbers of pixels: images with colours fail there.
    metric = quantus.ROAD(
        percentages=settings["percentages"], perturb_func=impute, normalise=False, disable_warnings=True
    )
    metric.a_size = 3 * pixels

    def run():
        # Turned so that no map is negative throughout, which it refuses.
        for a_batch in (maps, maps.max() - maps):
            metric(model=given.network, x_batch=images, y_batch=class_ids, a_batch=a_batch, channel_first=True)

    return run


TASKS: dict[str, Callable[[Given, dict], Callable[[], None]]] = {
    "grad_cam": class_activation("GradCAM"),
    "grad_cam_plus_plus": class_activation("GradCAMPlusPlus"),
    "score_cam": class_activation("ScoreCAM"),
    "rise": rise,
    "extremal_perturbation": extremal_perturbation,
    "deletion_insertion": deletion_insertion,
    "road": road,
}


def seconds_of(given: Given, task: str, settings: dict) -> float:
    """Does the task once; imports and preparation do not count."""
    # TorchRay leaves the parameters without gradients, and grad-cam needs them.
    given.network.requires_grad_(True)
    run = TASKS[task](given, settings)
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def begin(folder: pathlib.Path) -> tuple[dict, Callable[[str, dict], dict]]:
    """What runs here, and what does a task."""
    given = Given(folder)
    about = {
        "versions": {package: version_of(package) for package in PACKAGES},
        "threads": torch.get_num_threads(),
        "score_difference": score_difference(given.network, given.images, given.scores),
    }
    return about, lambda task, settings: {"seconds": seconds_of(given, task, settings)}


if __name__ == "__main__":
    serve(begin)
