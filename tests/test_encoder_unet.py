"""The U-Net over a backbone, and plain classifiers, in the real loop on a tiny backbone with weights from a file."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from goldens import formula

from selfexplain_jax import evaluate
from selfexplain_jax.config import base_config, load_config
from selfexplain_jax.data import pipeline
from selfexplain_jax.models import MODELS, backbones, build_model, pretrained
from selfexplain_jax.models.backbones import BACKBONES, Backbone
from selfexplain_jax.models.map_head import MapHead
from selfexplain_jax.models.resnet import ResNet
from selfexplain_jax.training import experiment, loop, steps
from selfexplain_jax.training.optimizer import build_optimizer
from selfexplain_jax.training.state import make_predictor
from selfexplain_jax.types import DatasetInfo, UserError

ROOT = pathlib.Path(__file__).resolve().parents[1]
SIZE, CLASSES, CHANNELS = 32, 3, (8, 8, 8, 8)


def dataset_info(image_size=64):
    return DatasetInfo("fake", CLASSES, ("a", "b", "c"), multilabel=False, image_size=image_size, has_masks=False)


@pytest.mark.parametrize(
    "encoder, decoder, last",
    [("efficientnet_lite0", "unet", 32), ("resnet18", "unet", 32), ("resnet50", "aspp", 8), ("vgg16", "unet", 32)],
)
def test_maps_have_the_mask_stride_over_every_encoder(encoder, decoder, last):
    config = base_config()
    options = {"name": "encoder_unet", "encoder": encoder, "decoder": decoder, "mask_stride": 4, "decoder_width": 8}
    config.model.update(options | {"output_stride": last})
    model = build_model(config, dataset_info())
    images = jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.float32)
    (scores, endpoints), variables = jax.eval_shape(
        lambda x: model.init_with_output(jax.random.key(0), x, temperature=jnp.float32(1)), images
    )
    assert scores.shape == (2, CLASSES) and endpoints["logit_maps"].shape == (2, 16, 16, CLASSES)
    assert model.draws_maps and endpoints[f"stride{last}"].shape[:3] == (2, 64 // last, 64 // last)
    # An encoder has no head of its own: nothing else classifies.
    assert "classifier" not in variables["params"]["backbone"] and "top_conv" not in variables["params"]["backbone"]


@pytest.mark.parametrize("encoder, channels", [("efficientnet_lite0", 1280), ("resnet18", 512), ("vgg16", 512)])
def test_coarse_maps_are_a_linear_layer_on_what_the_backbones_head_reads(encoder, channels):
    config = base_config()
    options = {"name": "encoder_unet", "encoder": encoder, "mask_stride": 4, "decoder_width": 8, "map_blur": 0.0}
    config.model.update(options | {"coarse_maps": True, "edge_distances": ()})
    model = build_model(config, dataset_info())
    images = jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.float32)
    (_, endpoints), variables = jax.eval_shape(lambda x: model.init_with_output(jax.random.key(0), x), images)
    assert endpoints["logit_maps"].shape == (2, 16, 16, CLASSES)
    assert variables["params"]["head"]["coarse_kernel"].shape == (channels, CLASSES)


def test_coarse_maps_by_hand():
    head = MapHead(2, mask_stride=4)
    x, images = jnp.ones((1, 4, 4, 3)), jnp.zeros((1, 16, 16, 3))
    # Left and right half; class 0 reads the left one's feature, class 1 twice the right one's.
    coarse = jnp.array([[[[1.0, 0.0], [0.0, 1.0]]] * 2])  # [1, 2, 2, 2]
    variables = head.init(jax.random.key(0), x, images, 1.0, coarse)
    before = head.apply(variables, x, images, 1.0, coarse)[1]["logit_maps"]
    # It begins as if it were not there.
    without = {"params": {name: variables["params"][name] for name in ("kernel", "bias")}}
    np.testing.assert_array_equal(before, head.apply(without, x, images, 1.0)[1]["logit_maps"])
    variables["params"]["coarse_kernel"] = jnp.array([[1.0, 0.0], [0.0, 2.0]])
    after = head.apply(variables, x, images, 1.0, coarse)[1]["logit_maps"]
    # Cells have their centres at .5 and 1.5 of the coarse ones: half-way between these, three quarters and one quarter.
    left = np.array([1.0, 0.75, 0.25, 0.0])
    np.testing.assert_allclose((after - before)[0, 2, :, 0], left, atol=1e-6)
    np.testing.assert_allclose((after - before)[0, 2, :, 1], 2 * left[::-1], atol=1e-6)


# ---- The loop --------------------------------------------------------------------------------------------------------


@pytest.fixture
def tiny(monkeypatch):
    """A backbone called "tiny" in all registries."""

    def make(num_classes, options):
        return ResNet(num_classes, (1, 1, 1, 1), False, options.frozen_norm, channels=CHANNELS)

    monkeypatch.setitem(BACKBONES, "tiny", Backbone(make, (127.5,) * 3, (64.0,) * 3, "package:none"))
    monkeypatch.setitem(pretrained.NAMINGS, "tiny", pretrained.RESNET)
    monkeypatch.setitem(MODELS, "tiny", backbones.build_classifier)


@pytest.fixture
def weights_file(tiny, tmp_path):
    """The weights of the tiny network in torchvision's names, with a head of 7 classes."""
    module = ResNet(7, (1, 1, 1, 1), False, channels=CHANNELS)
    shapes = jax.eval_shape(module.init, jax.random.key(0), jax.ShapeDtypeStruct((1, SIZE, SIZE, 3), jnp.float32))
    arrays = {}
    for path, leaf in traverse_util.flatten_dict(shapes).items():
        name = pretrained.foreign_name(path[1:], pretrained.RESNET.dialects[0])
        order = (leaf.shape[3], leaf.shape[2], *leaf.shape[:2]) if len(leaf.shape) == 4 else leaf.shape[::-1]
        arrays[name] = formula.weight(name, order)
    path = tmp_path / "tiny.npz"
    np.savez(path, **arrays)
    return path, arrays


def short(config, **model):
    config.data.image_size = SIZE
    config.data.options.train_size = 16
    config.data.options.test_size = 8
    config.data.num_threads = 0
    config.data.prefetch = 4
    config.model.update(model)
    train = config.train
    train.batch_size, train.steps, train.warmup_steps, train.log_every = 4, 2, 1, 1
    train.checkpoint_every, train.picture_every = 1, 0
    config.evaluation.update({"batch_size": 4, "audit": False, "pictures": 0})
    return config


def self_explainer(weights):
    config = base_config()
    config.passes.evaluator_masks = ("swapped",)
    config.objective.object = {"weight": 1.0}
    config.train.backbone_rate = 0.0
    options = {"name": "encoder_unet", "encoder": "tiny", "decoder_width": 8, "mask_stride": 8, "frozen_norm": True}
    return short(config, **options, pretrained=str(weights))


def test_pretrained_encoder_keeps_its_weights_and_resumes_without_the_file(weights_file, tmp_path):
    file, arrays = weights_file
    config = self_explainer(file)
    result = loop.train(config, str(tmp_path / "run"))
    for _ in range(2):
        backbone = result.state.params["backbone"]
        expected = arrays["layer2.0.conv1.weight"].transpose(2, 3, 1, 0)
        np.testing.assert_array_equal(backbone["layer2_0"]["conv1"]["kernel"], expected)
        average = result.state.ema_params["backbone"]["bn1"]["scale"]
        np.testing.assert_allclose(average, arrays["bn1.weight"], rtol=1e-6)
        statistics = result.state.batch_stats["backbone"]["layer4_0"]["downsample_norm"]
        np.testing.assert_array_equal(statistics["var"], arrays["layer4.0.downsample.1.running_var"])
        # The checkpoint holds all of it.
        file.unlink(missing_ok=True)
        result = loop.restore(config, str(tmp_path / "run"))
    first = result.state.params["head"]["kernel"]
    assert np.isfinite(first).all() and np.abs(first).max() > 0
    with pytest.raises(UserError, match="tiny.npz' does not exist"):
        loop.train(config, str(tmp_path / "another"))


def test_plain_classifier_trains_and_is_evaluated(weights_file, tmp_path):
    config = load_config(f"{ROOT / 'configs' / 'synthetic.py'}:classifier")
    config = short(config, name="tiny", pretrained=str(weights_file[0]))
    result = loop.train(config, str(tmp_path / "run"))
    predictor = make_predictor(config, result.dataset.info, result.model, result.state)
    metrics = evaluate.evaluate(predictor, result.dataset, config)
    assert set(metrics) == {"accuracy", "counts"} and metrics["counts"]["examples"] == 8
    images = formula.images(4, SIZE)
    np.testing.assert_allclose(predictor.head(predictor.features(images)), predictor.scores(images), rtol=1e-5)
    assert predictor.features(images).shape == (4, 1, 1, 8) and predictor.masks is None
    logged = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert "term/classification" in logged[-1] and "mask_area" not in logged[-1]
    # The weights were trained, unlike the head of the file, which has seven classes.
    assert result.state.params["backbone"]["classifier"]["bias"].shape == (8,)


def test_a_backbone_at_rate_0_gets_no_gradient_and_takes_none_from_the_rest(weights_file):
    config = self_explainer(weights_file[0])
    config.objective = {name: {"weight": 1.0} for name in ("classification", "object", "background", "evaluator")}
    built = experiment.build(config)
    state = loop.untrained(config).state
    batch = next(iter(pipeline.train_iterator(built.dataset, config)))

    def gradient(rate):
        options = config.copy_and_resolve_references()
        options.train.backbone_rate = rate

        def loss(params):
            return steps.loss_and_logs(
                params, state, batch, jax.random.key(0), config=options, model=built.model, explain=True
            )[0]

        return jax.tree.map(np.asarray, jax.jit(jax.grad(loss))(state.params))

    frozen, trained = gradient(0.0), gradient(0.1)
    assert max(np.abs(part).max() for part in jax.tree.leaves(frozen.pop("backbone"))) == 0
    assert max(np.abs(part).max() for part in jax.tree.leaves(trained.pop("backbone"))) > 0
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), frozen, trained)


def test_backbone_rate_scales_the_update_of_the_backbone_alone():
    config = base_config()
    config.train.update({"backbone_rate": 0.1, "warmup_steps": 0, "weight_decay": 0.0, "schedule": "constant"})
    optimizer, _ = build_optimizer(config)
    params = {"backbone": {"kernel": jnp.ones((2, 2))}, "head": {"kernel": jnp.ones((2, 2))}}
    updates = None
    state = optimizer.init(params)
    for _ in range(2):
        updates, state = optimizer.update(jax.tree.map(jnp.ones_like, params), state, params)
    np.testing.assert_allclose(updates["backbone"]["kernel"], 0.1 * updates["head"]["kernel"], rtol=1e-5)
    assert np.abs(updates["head"]["kernel"]).min() > 0
    config.train.backbone_rate = -1.0
    with pytest.raises(UserError, match="backbone_rate = -1.0 must be 0 or more"):
        build_optimizer(config)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"method": "oracle"}, "config.method = 'oracle' is unknown"),
        ({"model.name": "resnet18"}, "'resnet18' draws no maps, so it cannot explain itself.*encoder_unet"),
        ({"method": "classifier", "objective.object": {"weight": 1.0}}, r"'classifier' has no masks for \['object'\]"),
    ],
    ids=str,
)
def test_methods_and_networks_that_do_not_fit_are_refused(changes, message):
    config = base_config()
    with config.unlocked():
        config.update_from_flattened_dict(changes)
    with pytest.raises(UserError, match=message):
        loop.build(config)
