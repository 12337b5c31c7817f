"""Extremal Perturbations as published, on eight photos, beside TorchRay's: tests/parity/generate_extremal_photos.py."""

import pathlib

import jax
import numpy as np
import pytest

from selfexplain_jax.attribution.extremal_perturbation import extremal_masks
from selfexplain_jax.config import base_config
from selfexplain_jax.models import pretrained
from selfexplain_jax.models.backbones import BACKBONES
from selfexplain_jax.types import Predictor

GOLDEN = pathlib.Path(__file__).parent / "parity" / "extremal_photos.npz"
AREA = 0.1


@pytest.mark.slow
def test_extremal_masks_of_photos(shared_data):
    options, folder = base_config().model, shared_data / "weights"
    options.name, options.pretrained = "efficientnet_lite0", str(folder / "efficientnet_lite0_fp16.npz")
    network = BACKBONES["efficientnet_lite0"].make(1000, options)
    images = np.load(folder / "efficientnet_lite0_reference.npz")["images_uint8"].astype(np.float32)
    shapes = jax.eval_shape(network.init, jax.random.key(0), images)
    trees = pretrained.load_pretrained(options, {"backbone": shapes["params"]}, {"backbone": shapes["batch_stats"]})
    variables = dict(zip(("params", "batch_stats"), (tree["backbone"] for tree in trees), strict=True))
    predictor = Predictor(
        scores=lambda x: network.apply(variables, x)[0],
        probabilities=jax.nn.softmax,
        class_names=tuple(map(str, range(1000))),
        image_size=images.shape[1],
    )
    images = (images - 127) / 128
    golden = np.load(GOLDEN)
    class_ids = golden["class_ids"]
    scores = np.take_along_axis(np.asarray(predictor.scores(images)), class_ids[:, None], axis=1)[:, 0]
    np.testing.assert_allclose(scores, golden["scores"], rtol=1e-4)
    ours = np.asarray(extremal_masks(predictor, images, class_ids[:, None], areas=(AREA,)))[:, 0, 0]
    theirs = golden["masks"] / np.float32(255)
    overlap = np.minimum(ours, theirs).sum(axis=(1, 2)) / np.maximum(ours, theirs).sum(axis=(1, 2))
    print(f"IoU {overlap.round(4).tolist()}")
    assert overlap.min() >= 0.95
