"""Extremal Perturbations on eight photos beside TorchRay's, by tests/parity/generate_extremal_photos.py."""

import pathlib

import jax
import numpy as np
import pytest

from selfexplain_jax.attribution.extremal_perturbation import extremal_masks
from selfexplain_jax.config import base_config
from selfexplain_jax.models import pretrained
from selfexplain_jax.models.backbones import BACKBONES
from selfexplain_jax.types import Predictor

GOLDEN = np.load(pathlib.Path(__file__).parent / "parity" / "extremal_photos.npz")
AREA, STEPS, FIRST_STEPS, STRIDE = 0.1, 800, 60, 4


@pytest.fixture(scope="module")
def subject(shared_data):
    """EfficientNet-Lite0 as a predictor, and the eight photos."""
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
    return predictor, (images - 127) / 128


@pytest.fixture
def optimized():
    """Programs as users compile them: quick compilation, as the other tests have it, makes a search take hours."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


def overlap(one, other):
    """[N] IoU of soft masks: sum of the smaller values over sum of the larger ones."""
    return np.minimum(one, other).sum(axis=(1, 2)) / np.maximum(one, other).sum(axis=(1, 2))


def searched(subject, steps):
    """[N, H / STRIDE, W / STRIDE] our masks of each photo's likeliest class."""
    predictor, images = subject
    class_ids = GOLDEN["class_ids"][:, None]
    masks = extremal_masks(predictor, images, class_ids, areas=(AREA,), steps=steps)
    return np.asarray(masks)[:, 0, 0, ::STRIDE, ::STRIDE]


def golden(name):
    """[N, H / STRIDE, W / STRIDE] TorchRay's masks, of 0 to 1."""
    return GOLDEN[name] / np.float32(255)


def test_scores_of_the_photos(subject):
    predictor, images = subject
    scores = np.take_along_axis(np.asarray(predictor.scores(images)), GOLDEN["class_ids"][:, None], axis=1)[:, 0]
    np.testing.assert_allclose(scores, GOLDEN["scores"], rtol=1e-4)


def test_golden_masks_of_two_published_searches_differ():
    """What is stored, and no code of this project: the reason why the tests below ask for no more."""
    # From images that differ by a millionth. Which of two parts of an object a blob settles on is decided by a hair, so
    # that .95 on every photo cannot be asked of another implementation.
    itself = overlap(golden("masks_again"), golden("masks"))
    print(f"IoU of TorchRay's two searches {itself.round(4).tolist()}")
    assert (itself < 0.95).sum() >= 7


@pytest.mark.slow
@pytest.mark.usefixtures("optimized")
def test_the_search_begins_as_the_published_one(subject):
    found = overlap(searched(subject, FIRST_STEPS), golden("first_masks"))
    print(f"IoU after {FIRST_STEPS} steps {found.round(4).tolist()}")
    assert found.min() >= 0.95


@pytest.mark.slow
@pytest.mark.usefixtures("optimized")
def test_the_search_ends_as_near_the_published_one_as_that_one_to_itself(subject):
    ours = overlap(searched(subject, STEPS), golden("masks"))
    itself = overlap(golden("masks_again"), golden("masks"))
    print(f"IoU ours {ours.round(4).tolist()}, its own {itself.round(4).tolist()}")
    assert ours.mean() >= itself.mean() - 0.05
