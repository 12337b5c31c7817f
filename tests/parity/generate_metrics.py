"""Writes tests/goldens/metrics.json: what published implementations say of the small maps of tests/goldens/formula.py.

Needs torch, torchray, quantus, grad-cam, scikit-learn and scikit-image (last run with torch 2.13.0, CPU build, torchray
1.0.0.2, quantus 0.6.0, grad-cam 1.5.7, scikit-learn 1.9.1 and scikit-image 0.26.0), which neither the package nor its
tests ask for, and is run by hand: python tests/parity/generate_metrics.py

Deletion and insertion are written down here from the convention of RISE's published evaluation, since no package has
them as published; quantus's pixel flipping is deletion without the first step, and stands beside it.
"""

from __future__ import annotations

import json
import pathlib
import sys
from unittest import mock

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from skimage.feature import hog
from skimage.metrics import structural_similarity
from sklearn import metrics as sklearn_metrics
from torch import nn

# These import torchvision, which stops where its compiled operators are of another build than torch (a CPU build and
# one for GPUs, say). None of them is used here.
with mock.patch("torch.library.register_fake", lambda name: lambda function: function):
    import quantus
    from pytorch_grad_cam.metrics import cam_mult_image, perturbation_confidence
    from pytorch_grad_cam.metrics import road as grad_cam_road
    from quantus.functions.perturb_func import noisy_linear_imputation
    from torchray.benchmark.pointing_game import PointingGame

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from goldens import formula  # noqa: E402

HOG_CELL = 4
"""Pixels a side of the cells of maps as small as these: `metrics.sanity.oriented_gradients`."""


class Classifier(nn.Module):
    """Class scores that are linear in the tanh of the image; returns probabilities."""

    def __init__(self):
        super().__init__()
        weights = formula.metric_weights()  # [H, W, 3, C]
        self.weights = nn.Parameter(torch.from_numpy(weights))

    def forward(self, images):
        return torch.einsum("hwkc,bkhw->bc", self.weights, torch.tanh(images)).softmax(dim=1)


def pointing() -> dict:
    """TorchRay's pointing game at photos' own sizes, one map per case; every class occurs."""
    maps, regions = formula.pointing_cases()
    game = PointingGame(num_classes=4)
    points, hits = [], []
    for case, (saliency, region) in enumerate(zip(maps, regions, strict=True)):
        resized = nn.functional.interpolate(
            torch.from_numpy(saliency)[None, None], region.shape, mode="bilinear", align_corners=False
        )[0, 0]
        row, column = divmod(int(resized.argmax()), region.shape[1])
        hit = game.evaluate(torch.from_numpy(region), (column, row))
        game.aggregate(hit, case % 4)
        points.append([row, column])
        hits.append(int(hit == 1))
    return {"points": points, "hits": hits, "accuracy": float(game.accuracy)}


def curves(model, images, class_ids, saliency) -> dict:
    """RISE's deletion and insertion: steps of one image side, areas by the trapezoids of the published code."""
    size = images.shape[-1]
    point = np.zeros((11, 11))
    point[5, 5] = 1
    kernel = torch.zeros(3, 3, 11, 11)
    for channel in range(3):
        kernel[channel, channel] = torch.from_numpy(gaussian_filter(point, 5))
    blurred = nn.functional.conv2d(images, kernel, padding=5)
    order = np.argsort(-saliency.reshape(len(images), -1), axis=1)
    result = {}
    for name, start, end in (("deletion", images, torch.zeros_like(images)), ("insertion", blurred, images)):
        rows = []
        for step in range(size + 1):
            shown = start.clone().reshape(len(images), 3, -1)
            for row, pixels in enumerate(order[:, : step * size]):
                shown[row, :, pixels] = end.reshape(len(images), 3, -1)[row, :, pixels]
            probabilities = model(shown.reshape(images.shape))
            rows.append(probabilities[torch.arange(len(images)), class_ids].tolist())
        curve = np.array(rows).T  # [B, T + 1]
        area = (curve.sum(axis=1) - curve[:, 0] / 2 - curve[:, -1] / 2) / size
        result[f"{name}_curve"], result[name] = curve.tolist(), area.tolist()
    flipping = quantus.PixelFlipping(
        features_in_step=3 * size, perturb_baseline=0.0, normalise=False, disable_warnings=True
    )
    result["quantus_pixel_flipping"] = flipping(
        model=model, x_batch=images.numpy(), y_batch=class_ids.numpy(), a_batch=saliency[:, None], softmax=False
    )
    return result


def road(model, images, class_ids, saliency) -> dict:
    """grad-cam's ROAD at each percentile without its noise, and quantus's imputation of one image."""
    imputer = grad_cam_road.NoisyLinearImputer(noise=0.0)
    result = {}
    for name, kind in (
        ("morf", perturbation_confidence.RemoveMostRelevantFirst),
        ("lerf", perturbation_confidence.RemoveLeastRelevantFirst),
    ):
        rows = []
        for removed in (20, 40, 60, 80):
            # Its percentile is the share that stays.
            measure = perturbation_confidence.PerturbationConfidenceMetric(kind(100 - removed, imputer))
            targets = [lambda output, c=int(c): output[c] for c in class_ids]
            rows.append(measure(images, saliency, targets, model, return_diff=False).tolist())
        result[name] = np.array(rows).T.tolist()
    order = np.argsort(-saliency[0].ravel())
    imputed = noisy_linear_imputation(images[0].numpy(), order[: len(order) * 80 // 100], noise=0.0)
    result["quantus_imputation"] = imputed.reshape(3, -1)[:, ::13].tolist()
    return result


def confidence(model, images, class_ids, saliency) -> dict:
    """grad-cam's change of probability under image times map: the drop, not divided, and the rise, [B][C].

    Of every class, so that some rise.
    """
    result = {"drop": [], "increase": []}
    for class_id in range(3):
        targets = [lambda output, c=class_id: output[c] for _ in class_ids]
        for name, measure in (
            ("drop", cam_mult_image.DropInConfidence()),
            ("increase", cam_mult_image.IncreaseInConfidence()),
        ):
            result[name].append(measure(images, unit_maps(saliency), targets, model).tolist())
    return {name: np.array(rows).T.tolist() for name, rows in result.items()}


def energy(model, images, class_ids, saliency, truth) -> list[float]:
    """quantus's relevance mass accuracy: the share of a map's sum that lies on the object."""
    measure = quantus.RelevanceMassAccuracy(normalise=False, abs=False, disable_warnings=True)
    return measure(
        model=model,
        x_batch=images.numpy(),
        y_batch=class_ids.numpy(),
        a_batch=unit_maps(saliency)[:, None],
        s_batch=truth[:, None].astype(bool),
        softmax=False,
    )


def unit_maps(saliency: np.ndarray) -> np.ndarray:
    """Each map scaled to [0, 1] by its minimum and maximum."""
    low, high = (getattr(saliency, end)(axis=(1, 2), keepdims=True) for end in ("min", "max"))
    return (saliency - low) / (high - low)


def maps_against_masks(saliency, truth) -> dict:
    """scikit-learn's area under the ROC curve per map, and its average precision of all pixels on binned scores."""
    result = {
        "pixel_auc": [sklearn_metrics.roc_auc_score(g.ravel(), s.ravel()) for g, s in zip(truth, saliency, strict=True)]
    }
    unit = unit_maps(saliency)
    binned = np.floor(unit.astype(np.float64) * 1000)
    result["pixel_average_precision"] = sklearn_metrics.average_precision_score(truth.ravel(), binned.ravel())
    options = {"data_range": 1.0, "gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    result["ssim"] = [float(structural_similarity(unit[i], unit[i - 1], **options)) for i in range(len(unit))]
    gradients = [hog(unit_map, pixels_per_cell=(HOG_CELL, HOG_CELL)) for unit_map in unit.astype(np.float64)]
    result["hog"] = [float(np.corrcoef(gradients[i], gradients[i - 1])[0, 1]) for i in range(len(unit))]
    return result


def rounded(value):
    """Plain lists of numbers with eight digits."""
    if isinstance(value, dict):
        return {name: rounded(item) for name, item in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [rounded(item) for item in value]
    return value if isinstance(value, int) else float(f"{float(value):.8g}")


def main():
    """Computes and writes the file."""
    images, class_ids, saliency, truth = formula.metric_cases()
    model = Classifier().eval()
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
    arguments = (model, pixels, torch.from_numpy(class_ids), saliency)
    with torch.no_grad():
        results = {"pointing": pointing(), "curves": curves(*arguments), "road": road(*arguments)}
        results["confidence"] = confidence(*arguments)
        results["energy"] = energy(*arguments, truth)
    results["masks"] = maps_against_masks(saliency, truth)
    path = pathlib.Path(formula.__file__).with_name(formula.METRIC_GOLDENS)
    path.write_text(json.dumps(rounded(results)) + "\n")
    print(f"Written to {path}")


if __name__ == "__main__":
    main()
