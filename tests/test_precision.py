"""bfloat16 between float32 parameters and scores; classes in chunks; what is computed again in the gradient."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import pytest
from test_steps import EXPLANATION, INFO, fake_batch, tiny_config

from selfexplain_jax.config import base_config
from selfexplain_jax.models import MODELS, backbones, build_model, map_head
from selfexplain_jax.training import steps
from selfexplain_jax.training.optimizer import build_optimizer
from selfexplain_jax.training.passes import validate_passes
from selfexplain_jax.training.state import create_state
from selfexplain_jax.types import DatasetInfo, UserError


def info_of(num_classes, size=16):
    names = tuple(map(str, range(num_classes)))
    return DatasetInfo("fake", num_classes, names, multilabel=False, image_size=size, has_masks=False)


def network(name, encoder="efficientnet_lite0", decoder="unet", **options):
    """A network of the registry for images of 64 px, and its variables' shapes."""
    config = base_config()
    config.data.image_size = 64
    config.model.update({"name": name, "encoder": encoder, "decoder": decoder, "mask_stride": 4, **options})
    model = build_model(config, info_of(5, 64))
    return model, jax.eval_shape(lambda key: model.init(key, jnp.zeros((1, 64, 64, 3))), jax.random.key(0))


def convolutions(jaxpr):
    """Types of what the convolutions of a jaxpr take, those of functions called in it included."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "conv_general_dilated":
            yield from (variable.aval.dtype for variable in equation.invars)
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            yield from convolutions(inner)


NETWORKS = [(name, "efficientnet_lite0", "unet") for name in MODELS if name not in backbones.BACKBONES]
NETWORKS += [(name, "", "unet") for name in backbones.BACKBONES if name not in ("resnet50", "vgg16")]
NETWORKS += [("encoder_unet", "resnet18", "aspp")]


@pytest.mark.parametrize("name, encoder, decoder", NETWORKS)
def test_every_network_computes_in_bfloat16_with_parameters_and_scores_in_float32(name, encoder, decoder):
    options = {"encoder": encoder or "efficientnet_lite0", "decoder": decoder, "compute_dtype": "bfloat16"}
    model, variables = network(name, **options)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    images = jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.float32)

    def forward(variables, images):
        return model.apply(variables, images, train=True, mutable=["batch_stats"])

    closed = jax.make_jaxpr(forward)(variables, images)
    assert set(convolutions(closed.jaxpr)) == {jnp.dtype("bfloat16")}
    (scores, endpoints), updates = jax.eval_shape(forward, variables, images)
    kept = {"scores": scores, "updates": updates, "maps": endpoints.get("logit_maps", scores)}
    assert {leaf.dtype for leaf in jax.tree.leaves(kept)} == {jnp.dtype("float32")}
    assert "bfloat16" in {str(leaf.dtype) for leaf in jax.tree.leaves(endpoints)}


def gradient_of(config, info=None):
    """The jitted gradient of a config's first step, batch -> (gradient, logs); all passes take part."""
    model, config = build_model(config, info or INFO), ml_collections.FrozenConfigDict(config)
    state = create_state(config, model, build_optimizer(config)[0], jax.random.key(0))
    loss = functools.partial(steps.loss_and_logs, config=config, model=model, explain=True)

    def gradient(batch):
        (_, (logs, _)), gradient = jax.value_and_grad(loss, has_aux=True)(state.params, state, batch, jax.random.key(1))
        return gradient, logs

    return jax.jit(gradient)


def assert_close(one, other, rtol, atol):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), one, other)


@pytest.fixture(scope="module")
def plain():
    """Gradient and logs of a float32 step that keeps everything."""
    return gradient_of(everything())(fake_batch())


def everything(**options):
    config = tiny_config(("classification", *EXPLANATION), norm="batch", weights="live")
    config.model.update(options)
    return config


def count(function, kind):
    """How many convolutions, or operations of another kind, a step has."""
    text = str(jax.make_jaxpr(function)(fake_batch()))
    return len(re.findall(rf"= {kind}\b", text))


@pytest.mark.parametrize("how", ["elementwise", "passes"])
def test_what_is_computed_again_changes_no_gradient(plain, how):
    step, kept = gradient_of(everything(rematerialise=how)), gradient_of(everything())
    assert_close(step(fake_batch()), plain, rtol=1e-4, atol=1e-6)
    # Normalisations are computed again in either case, convolutions with whole passes alone.
    assert count(step, "rsqrt") > count(kept, "rsqrt")
    convolutions = [count(function, "conv_general_dilated") for function in (step, kept)]
    assert convolutions[0] > convolutions[1] if how == "passes" else convolutions[0] == convolutions[1]


def test_a_step_in_bfloat16_is_near_that_in_float32(plain):
    gradient, logs = gradient_of(everything(compute_dtype="bfloat16"))(fake_batch())
    assert {leaf.dtype for leaf in jax.tree.leaves((gradient, logs))} == {jnp.dtype("float32")}
    for name, value in plain[1].items():
        assert float(logs[name]) == pytest.approx(float(value), rel=0.02, abs=0.01), name
    size = float(optax.tree.norm(plain[0]))
    assert 0 < float(optax.tree.norm(optax.tree.sub(gradient, plain[0]))) < 0.05 * size


@pytest.mark.parametrize("pool, coarse", [("softmax", False), ("ngwp", False), ("softmax", True)])
def test_classes_in_chunks_are_the_classes_at_once(monkeypatch, pool, coarse):
    # Ten classes as 4, 4 and 2, with cells of depth-to-space; ngwp's classes depend on each other and are no chunks.
    head = map_head.MapHead(10, factor=2, mask_stride=2, map_blur=0.7, edge_distances=(2, 1), pooling=pool)
    x, images = jax.random.normal(jax.random.key(0), (2, 4, 4, 6)), jax.random.normal(jax.random.key(1), (2, 16, 16, 3))
    coarse = jax.random.normal(jax.random.key(4), (2, 2, 2, 5)) if coarse else None
    variables = jax.tree.map(lambda leaf: leaf + 0.1, head.init(jax.random.key(2), x, images, 0.5, coarse))
    weights = jax.random.normal(jax.random.key(3), (2, 10))
    # One image of two classes, in different chunks, and one of none.
    label = jnp.zeros((2, 10)).at[0, jnp.asarray([1, 9])].set(1.0)
    of_cells = jax.random.normal(jax.random.key(5), (2, 8, 8))

    def run():
        def loss(variables, x):
            scores, drawn = head.apply(variables, x, images, 0.5, coarse, label)
            maxima = (of_cells * (jnp.tanh(drawn["target_logits"]) + jnp.tanh(drawn["non_target_logits"]))).sum()
            return (weights * scores).sum() + maxima, (scores, drawn)

        return jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(variables, x)

    at_once = run()
    monkeypatch.setattr(map_head, "MOST_CLASSES", 4)
    assert_close(run(), at_once, rtol=1e-4, atol=1e-6)


def test_scores_of_a_thousand_classes_keep_no_maps_of_all():
    config = tiny_config(("classification", "background", "evaluator"))
    config.model.link = "softmax"
    batch = fake_batch() | {"label": np.eye(1000, dtype=np.float32)[:4]}
    text = gradient_of(config, info_of(1000)).lower(batch).compile().as_text()
    # 125 classes are drawn at a time, in every pass.
    sizes = [math.prod(map(int, found.split(","))) for found in re.findall(r"f32\[([\d,]+)\]", text)]
    cells = (16 // 2) ** 2
    assert max(sizes) < 4 * cells * 1000
    assert any(f"f32[{rows},8,8,125]" in text for rows in (4, 8))


def test_unknown_choices_are_refused():
    with pytest.raises(UserError, match="config.model.compute_dtype = 'float16' is unknown.*bfloat16"):
        network("resnet18", compute_dtype="float16")
    config = base_config()
    config.model.rematerialise = "all"
    with pytest.raises(UserError, match="config.model.rematerialise = 'all' is unknown.*elementwise"):
        validate_passes(config)
