"""Every backbone: shapes, features and head, gradients, goldens of torchvision, and the input that it is shown."""

import functools
import json
import math
import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from goldens import formula
from parity.torchvision_names import DEEPLAB

from selfexplain_jax.config import base_config
from selfexplain_jax.models import MODELS, backbones, build_model, channels, depthwise, pretrained, vgg
from selfexplain_jax.models.backbones import BACKBONES
from selfexplain_jax.models.efficientnet_lite import LITE0, EfficientNetLite, Stage, join_phases, split_phases
from selfexplain_jax.models.encoder_unet import EncoderUNet
from selfexplain_jax.models.resnet import ResNet
from selfexplain_jax.models.vgg import VGG
from selfexplain_jax.models.vit import VisionTransformer
from selfexplain_jax.training import mesh as mesh_lib
from selfexplain_jax.types import DatasetInfo, UserError

GOLDENS = json.loads((pathlib.Path(formula.__file__).with_name(formula.GOLDENS)).read_text())
SAME = backbones.InputChange((1.0,) * 3, (0.0,) * 3)

STAGES = tuple(
    stage._replace(blocks=1, kernel=3, channels=8) for stage in LITE0 if stage.channels in (16, 24, 40, 80, 192)
)
# Of each kind of network a small one, so that compiling is quick; the true tables are held by shapes and goldens.
SMALL = {
    "efficientnet_lite": EfficientNetLite(3, stages=STAGES),
    "efficientnet_lite_fine": EfficientNetLite(3, stages=STAGES, output_stride=16),
    "resnet": ResNet(3, (1, 1, 1, 1), bottleneck=False, channels=(8, 8, 8, 8)),
    "resnet_bottleneck_dilated": ResNet(3, (1, 1, 1, 1), True, output_stride=8, channels=(8, 8, 8, 8)),
    "vgg": VGG(3, stages=((4,), (4,), (4,), (4,), (4,)), hidden=(8, 8)),
    "vit": VisionTransformer(3, patch=8, width=8, depth=2, heads=2),
}


def dataset_info(num_classes=3, image_size=64):
    names = tuple(str(i) for i in range(num_classes))
    return DatasetInfo("fake", num_classes, names, multilabel=False, image_size=image_size, has_masks=False)


def shapes_of(module, size, **options):
    images = jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32)
    return jax.eval_shape(lambda x: module.init_with_output(jax.random.key(0), x, **options), images)


def filled(module, size):
    """Variables of the module with numbers by their names, without compiling an initialiser."""

    def fill(path, leaf):
        name = "/".join(path)
        if path[-1] == "var":
            return 1.0 + 0.2 * np.abs(formula.noise(name, leaf.shape))
        if len(leaf.shape) == 1:
            return 0.1 * formula.noise(name, leaf.shape) + (path[-1] == "scale")
        return formula.noise(name, leaf.shape) / np.float32(math.sqrt(math.prod(leaf.shape[:-1])))

    _, variables = shapes_of(module, size)
    flat = traverse_util.flatten_dict(variables)
    return traverse_util.unflatten_dict({path: fill(path, leaf).astype(np.float32) for path, leaf in flat.items()})


# ---- Shapes ----------------------------------------------------------------------------------------------------------


PARAMETERS = {
    # Of torchvision's networks with 1000 classes, and of the published EfficientNet-Lite0 and ViT-S/16 at 224 px.
    "efficientnet_lite0": 4_652_008,
    "resnet18": 11_689_512,
    "resnet50": 25_557_032,
    "vgg16": 138_357_544,
    "vgg16_pooled": 14_714_688 + 513 * 1000,
    "vit_small": 22_050_664,
}


@pytest.mark.parametrize("name", BACKBONES)
def test_classifier_has_the_published_size_and_an_endpoint_at_every_stride(name):
    config = base_config()
    config.model.name = name
    model = build_model(config, dataset_info(1000, 224))
    (scores, endpoints), variables = shapes_of(model, 224)
    assert scores.shape == (2, 1000) and scores.dtype == jnp.float32
    for stride in model.backbone.strides:
        assert endpoints[f"stride{stride}"].shape[:3] == (2, 224 // stride, 224 // stride)
    assert "features" in endpoints and not model.draws_maps
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == PARAMETERS[name]
    assert name in MODELS and name in pretrained.NAMINGS


def test_transformer_of_a_size_of_ones_own():
    config = base_config()
    config.model.update({"name": "vit", "widths": (8, 16, 64), "stem_stride": 8, "encoder_depth": 3})
    (scores, endpoints), variables = shapes_of(build_model(config, dataset_info(5, 64)), 64)
    assert scores.shape == (2, 5)
    # Three blocks of two heads over a class token and 8 x 8 patches.
    assert [endpoints[f"attention{block}"].shape for block in range(3)] == [(2, 2, 65, 65)] * 3
    # Two convolutions leave two cells a side of a patch of 8 px.
    flat = traverse_util.flatten_dict(variables["params"]["backbone"], sep="/")
    assert flat["stem_conv_1/kernel"].shape == (3, 3, 8, 16) and flat["patch_embed/kernel"].shape == (2, 2, 16, 64)


@pytest.mark.parametrize("stride", [32, 16, 8])
def test_dilation_keeps_the_resolution_of_resnet50(stride):
    config = base_config()
    config.model.output_stride = stride
    module = BACKBONES["resnet50"].make(5, config.model)
    (_, endpoints), _ = shapes_of(module, 64)
    assert module.strides[-1] == stride
    assert endpoints["features"].shape == endpoints[f"stride{stride}"].shape == (2, 64 // stride, 64 // stride, 2048)


def test_phases_by_hand():
    x = jnp.arange(1.0, 5.0).reshape(1, 2, 2, 1)  # 1 2 / 3 4
    moved = [[[1, 2], [3, 4]], [[2, 0], [4, 0]], [[3, 4], [0, 0]], [[4, 0], [0, 0]]]
    np.testing.assert_array_equal(split_phases(x)[..., 0], moved)
    # Every second cell of each, put back: the image.
    x = jax.random.normal(jax.random.key(0), (2, 4, 6, 3))
    np.testing.assert_array_equal(join_phases(split_phases(x)[:, ::2, ::2]), x)


def test_finer_features_of_efficientnet_hold_the_coarse_ones_and_those_between():
    stages = [Stage(1, 3, stride, 2, 8) for stride in (1, 2, 2, 2)] + [Stage(2, 3, 2, 2, 8)]
    coarse, fine = (EfficientNetLite(3, True, tuple(stages), stride) for stride in (32, 16))
    variables, images = filled(coarse, 320), formula.images(2, 320)

    def features(module, images):
        return jax.jit(functools.partial(module.apply, method="features"))(variables, images)

    finer = features(fine, images)
    assert fine.strides == (2, 4, 8, 16) and finer.shape[:3] == (2, 20, 20)
    np.testing.assert_allclose(finer[:, ::2, ::2], features(coarse, images), rtol=1e-5, atol=1e-5)
    # One cell further down and right: those of the image moved by 16 px, away from its borders.
    moved = jnp.pad(images[:, 16:, 16:], ((0, 0), (0, 16), (0, 16), (0, 0)))
    found, expected = finer[:, 1::2, 1::2], features(coarse, moved)
    np.testing.assert_allclose(found[:, 3:-4, 3:-4], expected[:, 3:-4, 3:-4], rtol=1e-4, atol=1e-4)
    assert float(jnp.abs(found - finer[:, ::2, ::2]).max()) > 1e-2


# ---- Values ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [kind for kind in SMALL if kind != "resnet"])
def test_head_of_features_batches_and_gradients(kind):
    module = SMALL[kind]
    variables, images = filled(module, 32), formula.images(2, 32)

    @jax.jit
    def everything(params, images):
        def scores_of(params, images):
            return module.apply(variables | {"params": params}, images)[0]

        scores, pull_back = jax.vjp(scores_of, params, images)
        features = module.apply(variables | {"params": params}, images, method="features")
        from_head = module.apply(variables | {"params": params}, features, method="head")
        alone = scores_of(params, images[1:])
        return scores, from_head, alone, pull_back(jnp.ones_like(scores))

    scores, from_head, alone, gradients = everything(variables["params"], images)
    assert np.isfinite(scores).all() and np.std(scores, axis=0).min() > 0
    np.testing.assert_allclose(from_head, scores, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(alone[0], scores[1], rtol=1e-4, atol=1e-5)
    for path, gradient in jax.tree_util.tree_leaves_with_path(gradients):
        assert np.isfinite(gradient).all() and np.abs(gradient).max() > 0, jax.tree_util.keystr(path)


@pytest.mark.parametrize("kind", ["efficientnet_lite", "resnet", "resnet_bottleneck_dilated"])
def test_frozen_norm_hands_its_statistics_through_in_training(kind):
    for frozen in (False, True):
        module = SMALL[kind].clone(frozen_norm=frozen)
        variables = filled(module, 32)

        def statistics(stats, module=module, variables=variables):
            given = variables | {"batch_stats": stats}
            return module.apply(given, formula.images(2, 32), train=True, mutable=["batch_stats"])[1]

        program = jax.make_jaxpr(statistics)(variables["batch_stats"]).jaxpr
        given = {id(variable) for variable in program.invars}
        assert len(given) == len(program.outvars) > 0
        assert all((id(variable) in given) == frozen for variable in program.outvars)


def test_attention_of_the_transformer_is_an_endpoint_whose_rows_sum_to_one():
    module = SMALL["vit"]
    _, endpoints = jax.jit(lambda x: module.apply(filled(module, 32), x))(formula.images(2, 32))
    for layer in range(module.depth):
        assert endpoints[f"attention{layer}"].shape == (2, module.heads, 17, 17)
        np.testing.assert_allclose(endpoints[f"attention{layer}"].sum(axis=-1), np.ones((2, 2, 17)), rtol=1e-5)


def test_adaptive_pooling_has_the_windows_of_pytorch():
    # 3 cells to 2: rows 0..1 and 1..2, which overlap; 2 cells to 3: the middle one is the mean of both.
    np.testing.assert_allclose(vgg.averaging_matrix(3, 2), [[0.5, 0.5, 0], [0, 0.5, 0.5]])
    np.testing.assert_allclose(vgg.averaging_matrix(2, 3), [[1, 0], [0.5, 0.5], [0, 1]])


# ---- The depthwise convolution ---------------------------------------------------------------------------------------


def test_depthwise_by_hand():
    x = np.arange(1.0, 10.0, dtype=np.float32).reshape(1, 3, 3, 1)
    kernel = np.zeros((3, 3, 1), np.float32)
    kernel[1, 1], kernel[1, 2] = 2, 1  # twice the cell itself, and its right neighbour
    y = depthwise.shifted_products(x, kernel, 1)
    np.testing.assert_allclose(y[0, :, :, 0], [[4, 7, 6], [13, 16, 12], [22, 25, 18]])


@pytest.mark.parametrize("stride, kernel, height, width", [(1, 3, 5, 4), (2, 3, 8, 8), (2, 5, 7, 8), (2, 3, 5, 7)])
def test_depthwise_forms_and_their_gradients_agree(stride, kernel, height, width):
    x = formula.noise("x", (2, height, width, 3))
    weights = formula.noise("kernel", (kernel, kernel, 3))

    def of(form):
        def loss(x, weights):
            y = form(x, weights, stride)
            return (y * jnp.cos(y)).sum(), y

        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(x, weights)

    (_, y), gradients = of(depthwise.shifted_products)
    (_, expected), expected_gradients = of(depthwise.grouped_convolution)
    assert y.shape == (2, -(-height // stride), -(-width // stride), 3)
    np.testing.assert_allclose(y, expected, atol=1e-5)
    for gradient, reference in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(gradient, reference, atol=1e-4)


# ---- Channel by channel ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
@pytest.mark.parametrize("batch_statistics", [False, True])
@pytest.mark.parametrize("inputs, outputs", [(3, 5), (5, 3)])
def test_convolution_and_normalisation_are_flax_own_with_their_gradients(
    inputs, outputs, batch_statistics, backend, monkeypatch
):
    monkeypatch.setattr(channels, "on_cpu", lambda: backend == "cpu")
    x, upstream = formula.noise("x", (2, 3, 4, inputs)), formula.noise("g", (2, 3, 4, outputs))
    params = {"scale": 1.0 + 0.1 * formula.noise("scale", (outputs,)), "bias": formula.noise("bias", (outputs,))}
    kernel = {"kernel": formula.noise("kernel", (inputs, outputs))}
    stats = {"mean": formula.noise("mean", (outputs,)), "var": 1.0 + np.abs(formula.noise("var", (outputs,)))}
    conv, norm = channels.PointwiseConv(outputs), channels.BatchNorm(outputs, 0.9, 1e-3)

    def ours(kernel, params, x):
        variables = {"params": params, "batch_stats": stats}
        bound = conv.bind({"params": kernel})
        y, new = norm.apply(variables, bound, x, not batch_statistics, mutable=["batch_stats"])
        return (y * upstream).sum(), (y, new["batch_stats"])

    def theirs(kernel, params, x):
        module = nn.BatchNorm(not batch_statistics, momentum=0.9, epsilon=1e-3)
        variables = {"params": params, "batch_stats": stats}
        y, new = module.apply(variables, x @ kernel["kernel"], mutable=["batch_stats"])
        return (y * upstream).sum(), (y, new["batch_stats"])

    found, expected = (
        jax.jit(jax.value_and_grad(f, (0, 1, 2), has_aux=True))(kernel, params, x) for f in (ours, theirs)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), found, expected)


def test_split_images_are_not_gathered_for_the_gradient_of_a_depthwise_kernel():
    mesh = mesh_lib.make_mesh()
    split, everywhere = mesh_lib.batch_sharding(mesh), mesh_lib.replicated(mesh)

    def gradient(kernel, x, upstream):
        return jax.vjp(lambda kernel: depthwise.shifted_products(x, kernel, 1), kernel)[1](upstream)[0]

    images, kernel = jax.ShapeDtypeStruct((4, 4, 4, 2), jnp.float32), jax.ShapeDtypeStruct((3, 3, 2), jnp.float32)
    step = jax.jit(gradient, in_shardings=(everywhere, split, split), out_shardings=everywhere)
    program = step.lower(kernel, images, images).compile().as_text()
    assert "all-reduce" in program and "all-gather" not in program


# ---- Parity with torchvision -----------------------------------------------------------------------------------------

GOLDEN_MODULES = {
    "resnet18": ResNet(5, (2, 2, 2, 2), bottleneck=False),
    "resnet50": ResNet(5, (3, 4, 6, 3), bottleneck=True),
    "vgg16": VGG(5, hidden=(8, 8)),
    "vit_small": VisionTransformer(5, width=32, depth=2, heads=2),
    "deeplab_resnet50": EncoderUNet(
        ResNet(3, (3, 4, 6, 3), True, output_stride=8), SAME, 3, width=256, decoder="aspp", mask_stride=8
    ),
}


def their_shape(shape, name):
    """PyTorch's layout of one of our shapes."""
    if len(shape) == 4:
        return (shape[3], math.prod(shape[:3])) if name.startswith("classifier.0.w") else (*shape[:1:-1], *shape[:2])
    return shape[::-1] if len(shape) == 2 else shape


@pytest.mark.parametrize("name", GOLDEN_MODULES)
def test_same_weights_give_the_same_numbers_as_in_torchvision(name):
    module, golden = GOLDEN_MODULES[name], GOLDENS[name]
    _, variables = shapes_of(module, golden["size"])
    flat = traverse_util.flatten_dict(variables)
    naming = pretrained.NAMINGS.get(name) or pretrained.Naming((DEEPLAB,), "^$")
    dialect = naming.dialects[-1 if name == "vit_small" else 0]
    weights = {}
    for path, leaf in flat.items():
        key = pretrained.foreign_name(path[1:], dialect)
        shape = their_shape(leaf.shape, key)
        if name == "deeplab_resnet50" and key.startswith("classifier.") and len(shape) == 2:
            shape = (*shape, 1, 1)  # its 1x1 convolutions are linear layers here
        weights[key] = formula.weight(key, shape)
    found = pretrained.match_weights(weights, {path[1:]: leaf for path, leaf in flat.items()}, naming, "formula")
    variables = traverse_util.unflatten_dict({path: found[path[1:]] for path in flat})
    images = formula.images(2, golden["size"])
    scores, endpoints = jax.jit(module.apply)(variables, images)
    output = endpoints["logit_maps"] if name == "deeplab_resnet50" else scores
    expected = np.asarray(golden["output"], np.float32)
    np.testing.assert_allclose(output.reshape(2, -1), expected, rtol=0, atol=2e-5 * np.abs(expected).max())


# ---- The input -------------------------------------------------------------------------------------------------------


def test_network_sees_its_own_normalisation_whatever_the_pipelines():
    config = base_config()
    config.data.mean, config.data.std = (10.0, 20.0, 30.0), (2.0, 4.0, 8.0)
    change = backbones.input_change(config.data, BACKBONES["efficientnet_lite0"])
    # Pixels of 127 are 0 and of 255 are 1 in the network's eyes.
    pixels = np.stack([np.full((1, 1, 3), 127.0), np.full((1, 1, 3), 255.0)])
    normalised = (pixels - np.asarray(config.data.mean)) / np.asarray(config.data.std)
    np.testing.assert_allclose(change(normalised.astype(np.float32))[:, 0, 0], [[0] * 3, [1] * 3], atol=1e-5)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"name": "encoder_unet", "encoder": "resnet0"}, "config.model.encoder = 'resnet0' is unknown.*resnet18"),
        ({"name": "resnet50", "output_stride": 4}, "output_stride = 4 is not one of"),
        ({"name": "encoder_unet", "encoder": "vit_small"}, "'vit_small' has one resolution alone"),
        ({"name": "encoder_unet", "mask_stride": 1}, "mask_stride = 1 is no stride of 'efficientnet_lite0'.*2, 4, 8"),
        ({"name": "encoder_unet", "decoder": "fpn"}, "config.model.decoder = 'fpn' is unknown"),
        ({"name": "encoder_unet", "decoder_width": 0}, "decoder_width = 0 must be 1 or more"),
        ({"name": "vit", "pretrained": "imagenet"}, "'vit' starts from random weights; 'vit_small' has"),
        ({"name": "vit", "widths": (8, 48)}, "widths = \\(8, 48\\) must be .* a multiple of 32"),
        ({"name": "vit", "widths": (8, 8, 8, 32), "stem_stride": 4}, "of a multiple of 8 pixels, since each of the 3"),
        ({"name": "vit", "stem_stride": 24}, "stem_stride = 24 .* that divides the image size 64"),
        ({"name": "vit", "encoder_depth": 0}, "encoder_depth = 0 make no transformer"),
        ({"name": "encoder_unet", "norm": "layer"}, "config.model.norm = 'layer' is unknown"),
    ],
    ids=str,
)
def test_bad_options_are_refused(options, message):
    config = base_config()
    config.model.update(options)
    with pytest.raises(UserError, match=message):
        build_model(config, dataset_info())


def test_image_size_must_fit_the_encoder():
    config = base_config()
    config.model.name = "encoder_unet"
    with pytest.raises(UserError, match="Image size 48 is not divisible by 32.*multiple of 32"):
        build_model(config, dataset_info(image_size=48))
