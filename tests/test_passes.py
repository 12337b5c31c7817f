"""The passes of one step: what goes in, how often the network runs, and whose weights the gradient reaches."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from selfexplain_jax.config import base_config
from selfexplain_jax.models import build_model, masking, pooling
from selfexplain_jax.objectives.terms import cross_entropy
from selfexplain_jax.training import passes
from selfexplain_jax.training.passes import DRAWN, EVALUATOR_MASKS, EXPLANATION_TERMS, PASS_WEIGHTS, run_passes
from selfexplain_jax.training.state import create_state
from selfexplain_jax.types import DatasetInfo, UserError

SIZE, BATCH, CLASSES = 8, 4, 3
RNG = jax.random.key(5)


def tiny_config(terms=EXPLANATION_TERMS, **options):
    """A network of two layers and no norm, so that what it says can be computed again beside it."""
    config = base_config()
    config.data.image_size = SIZE
    config.model.update(
        {"widths": (4,), "encoder_depth": 0, "refine_width": 0, "norm": "none", "local_contrast": False}
    )
    config.passes.update({"infills": ("zero",), **options})
    config.objective = {name: {"weight": 1.0} for name in terms}
    return config


def tiny_model():
    info = DatasetInfo("fake", CLASSES, ("a", "b", "c"), multilabel=True, image_size=SIZE, has_masks=False)
    return build_model(tiny_config(), info)


@pytest.fixture(scope="module")
def setting():
    """The model, a state whose averaged parameters differ from its own, and a batch."""
    model, rng = tiny_model(), np.random.default_rng(0)
    state = jax.jit(lambda key: create_state(tiny_config(), model, optax.sgd(0.1), key))(jax.random.key(0))
    noisy = lambda parameter: rng.normal(0, 0.5, parameter.shape).astype(np.float32)  # noqa: E731
    state = state.replace(params=jax.tree.map(noisy, state.params), ema_params=jax.tree.map(noisy, state.params))
    batch = {
        "image": rng.normal(size=(BATCH, SIZE, SIZE, 3)).astype(np.float32),
        "label": np.asarray([[1, 0, 0], [0, 1, 1], [0, 1, 0], [0, 0, 1]], np.float32),
    }
    return model, state, batch


def runner(setting, config):
    """The passes as one compiled program, from changes of the batch to outputs in NumPy."""
    model, state, batch = setting

    @jax.jit
    def run(state, batch):
        return run_passes(state.params, state, batch, RNG, config=config, model=model, explain=True)[0]

    return lambda **changes: jax.tree.map(np.asarray, run(state, batch | changes))


# ---- What runs -------------------------------------------------------------------------------------------------------


def counted(setting, config, explain=True):
    """Batch sizes of the network's calls, and the outputs as shapes; nothing is computed."""
    model, state, batch = setting
    sizes = []

    def apply(variables, images, **options):
        sizes.append(images.shape[0])
        return model.apply(variables, images, **options)

    counting = types.SimpleNamespace(apply=apply)
    run = lambda state: run_passes(state.params, state, batch, RNG, config=config, model=counting, explain=explain)  # noqa: E731
    return sizes, jax.eval_shape(run, state)[0]


IMAGE_OUTPUTS = {
    "scores": (BATCH, CLASSES),
    "logit_maps": (BATCH, 4, 4, CLASSES),
    "target_logits": (BATCH, 4, 4),
    "non_target_logits": (BATCH, 4, 4),
    "target_mask": (BATCH, 4, 4),
    "non_target_mask": (BATCH, 4, 4),
    "image": (BATCH, 4, 4, 3),
}


def object_outputs(count):
    return {
        "object_scores": (BATCH, count, CLASSES),
        "object_label": (BATCH, count, CLASSES),
        "object_valid": (BATCH, count),
    }


BACKGROUND, EVALUATOR = {"background_scores": (BATCH, CLASSES)}, {"evaluator_scores": (BATCH, CLASSES)}


@pytest.mark.parametrize(
    "terms, options, sizes, outputs",
    [
        (("area_target",), {}, [4], {}),
        (("object",), {}, [4, 4], object_outputs(1)),
        (("background",), {}, [4, 4], BACKGROUND),
        (("evaluator",), {}, [4, 4], EVALUATOR),
        # Object and background run as one batch, with the same weights; the evaluator apart.
        (EXPLANATION_TERMS, {}, [4, 8, 4], object_outputs(1) | BACKGROUND | EVALUATOR),
        (EXPLANATION_TERMS, {"classes_per_image": 2}, [4, 12, 4], object_outputs(2) | BACKGROUND | EVALUATOR),
        # There are three classes only.
        (("object",), {"classes_per_image": 9}, [4, 12], object_outputs(3)),
    ],
    ids=str,
)
def test_only_what_a_term_asks_for_is_run(setting, terms, options, sizes, outputs):
    ran, result = counted(setting, tiny_config(terms, **options))
    assert ran == sizes
    assert {name: value.shape for name, value in result.items()} == IMAGE_OUTPUTS | outputs
    assert {value.dtype for value in result.values()} == {jnp.dtype("float32")}


def test_without_explanations_there_is_the_image_pass_alone(setting):
    ran, result = counted(setting, tiny_config(), explain=False)
    assert ran == [BATCH] and set(result) == set(IMAGE_OUTPUTS)


def test_explanations_start_with_the_first_term_that_counts():
    config = tiny_config(("classification",))
    assert passes.explanations_start(config) == config.train.steps  # Never.
    config.objective.object = {"weight": 0.0}
    assert passes.explanations_start(config) == config.train.steps
    config.objective.background = {"start": 70}
    config.objective.evaluator = {"weight": 1.0, "start": 50, "ramp": 10}
    assert passes.explanations_start(config) == 50
    config.objective.object = {}
    assert passes.explanations_start(config) == 0


# ---- What goes in ----------------------------------------------------------------------------------------------------


def test_outputs_are_what_the_network_says_of_the_isolated_images(setting):
    model, state, batch = setting
    outputs = runner(setting, tiny_config())()
    score = jax.jit(lambda images: model.apply({"params": state.params}, images)[0])
    mask = masking.resize_mask(outputs["target_mask"], SIZE)
    np.testing.assert_allclose(outputs["scores"], score(batch["image"]), rtol=1e-4, atol=1e-5)
    seen = batch["image"] * mask[..., None]
    np.testing.assert_allclose(outputs["object_scores"][:, 0], score(seen), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(outputs["background_scores"], score(batch["image"] - seen), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(outputs["object_label"][:, 0], batch["label"])
    np.testing.assert_array_equal(outputs["object_valid"], np.ones((BATCH, 1)))
    blocks = batch["image"].reshape(BATCH, 4, 2, 4, 2, 3)
    np.testing.assert_allclose(outputs["image"], blocks.mean(axis=(2, 4)), rtol=1e-4, atol=1e-6)


def test_hard_masks_hide_all_or_nothing(setting):
    model, state, batch = setting
    outputs = runner(setting, tiny_config(("object", "background"), hard_masks=True))()
    hard = np.asarray(masking.resize_mask(outputs["target_mask"], SIZE) > 0.5)[..., None]
    assert 0 < hard.mean() < 1
    score = jax.jit(lambda images: model.apply({"params": state.params}, images)[0])
    expected = score(np.where(hard, batch["image"], 0))
    np.testing.assert_allclose(outputs["object_scores"][:, 0], expected, rtol=1e-4, atol=1e-5)
    expected = score(np.where(hard, 0, batch["image"]))
    np.testing.assert_allclose(outputs["background_scores"], expected, rtol=1e-4, atol=1e-5)


def test_smaller_passes_see_the_image_resized_behind_masks_of_its_own_size(setting):
    model, state, batch = setting
    small = jax.jit(lambda images: jax.image.resize(images, (BATCH, SIZE // 2, SIZE // 2, 3), "linear"))(batch["image"])
    outputs = runner(setting, tiny_config(("object", "background", "evaluator"), image_size=SIZE // 2))()
    whole = runner(setting, tiny_config(("area_target",)))()
    np.testing.assert_allclose(outputs["target_mask"], whole["target_mask"], rtol=1e-6)
    mask = masking.resize_mask(whole["target_mask"], SIZE // 2)[..., None]
    for name, seen in (("object_scores", mask * small), ("background_scores", (1 - mask) * small)):
        expected = jax.jit(model.apply)({"params": state.params}, seen)[0]
        np.testing.assert_allclose(outputs[name].reshape(BATCH, CLASSES), expected, rtol=1e-4, atol=1e-5)
    assert outputs["evaluator_scores"].shape == (BATCH, CLASSES)


def test_an_image_without_classes_shows_nothing(setting):
    label = setting[2]["label"] * np.asarray([[1], [0], [1], [1]], np.float32)
    for count in (0, 2):
        outputs = runner(setting, tiny_config(("object",), classes_per_image=count))(label=label)
        np.testing.assert_array_equal(outputs["object_valid"].max(axis=1), [1, 0, 1, 1])
        np.testing.assert_array_equal(outputs["object_label"][1], np.zeros((max(count, 1), CLASSES)))


def test_annealed_temperature_serves_every_pass_and_ends_at_the_models_own(setting):
    model, state, batch = setting
    config = tiny_config(EXPLANATION_TERMS, evaluator_masks=("swapped",))
    constant = runner(setting, config)()
    config.model.update({"pooling_temperature": 1.0, "initial_temperature": 4.0, "temperature_steps": 10})
    run = jax.jit(
        lambda state: run_passes(state.params, state, batch, RNG, config=config, model=model, explain=True)[0]
    )
    first, last = (jax.tree.map(np.asarray, run(state.replace(step=jnp.int32(step)))) for step in (0, 10))
    hot = pooling.pool(first["logit_maps"], "softmax", 4.0)
    np.testing.assert_allclose(first["scores"], hot, rtol=1e-4, atol=1e-5)
    for name in ("scores", "object_scores", "background_scores", "evaluator_scores"):
        # The hotter the pool, the nearer it is to the maximum.
        assert np.all(first[name] > last[name])
        np.testing.assert_allclose(last[name], constant[name], rtol=1e-4, atol=1e-5)


# ---- Classes one at a time -------------------------------------------------------------------------------------------


def test_present_classes_are_drawn_without_repetition():
    label = np.asarray([[0, 1, 1, 1, 0], [0, 0, 0, 1, 0], [0, 0, 0, 0, 0]], np.float32)
    draw = jax.jit(jax.vmap(lambda key: passes.shown_classes(label, 2, key)))
    class_ids, valid = map(np.asarray, draw(jax.random.split(jax.random.key(0), 50)))
    np.testing.assert_array_equal(valid, np.broadcast_to([[1, 1], [1, 0], [0, 0]], (50, 3, 2)))
    assert np.all(class_ids[:, 0, 0] != class_ids[:, 0, 1])
    assert set(class_ids[:, 0].ravel()) == {1, 2, 3}  # Each has its turn.
    assert set(class_ids[:, 1, 0]) == {3}


def test_each_class_is_shown_through_its_own_mask(setting):
    _, _, batch = setting
    maps = np.random.default_rng(1).normal(size=(BATCH, 4, 4, CLASSES)).astype(np.float32)
    masks, shown, valid = passes.object_masks({"logit_maps": maps}, batch["label"], 2, SIZE, RNG)
    assert masks.shape == (BATCH, 2, SIZE, SIZE)
    np.testing.assert_array_equal(valid, [[1, 0], [1, 1], [1, 0], [1, 0]])
    np.testing.assert_array_equal(np.sum(shown, axis=1), batch["label"])  # Two are enough to show all that there is.
    np.testing.assert_array_equal(np.sum(shown, axis=2), valid)
    for image, place in np.argwhere(valid):
        own = masking.class_masks(maps, np.full((BATCH, 1), np.argmax(shown[image, place])), SIZE)
        np.testing.assert_allclose(masks[image, place], own[image, 0], rtol=1e-5)


# ---- Whose weights ---------------------------------------------------------------------------------------------------


def object_gradient(setting, config):
    """Gradient of the object term alone, in the parameters."""
    model, state, batch = setting

    def loss(params):
        outputs, _ = run_passes(params, state, batch, RNG, config=config, model=model, explain=True)
        return cross_entropy(outputs["object_scores"][:, 0], batch["label"], "sigmoid").sum()

    return jax.jit(jax.grad(loss))(state.params)


def explicit_gradient(setting, evaluator_of):
    """The same by hand: masks by `params`, the object seen by `evaluator_of(params)`."""
    model, state, batch = setting

    def loss(params):
        maps = model.apply({"params": params}, batch["image"])[1]["logit_maps"]
        mask = masking.target_mask(maps, batch["label"], SIZE)
        scores = model.apply({"params": evaluator_of(params)}, batch["image"] * mask[..., None])[0]
        return optax.sigmoid_binary_cross_entropy(scores, batch["label"]).mean(axis=-1).sum()

    return jax.jit(jax.grad(loss))(state.params)


def assert_same_tree(first, second):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), first, second)


def distance(first, second):
    return float(optax.tree.norm(optax.tree.sub(first, second)) / optax.tree.norm(first))


def test_gradient_of_the_object_pass_takes_the_way_that_the_weights_allow(setting):
    _, state, _ = setting
    gradients = {name: object_gradient(setting, tiny_config(("object",), weights=name)) for name in PASS_WEIGHTS}
    # Live: through the masks and through the weights that look at them. Otherwise through the masks alone.
    assert_same_tree(gradients["live"], explicit_gradient(setting, lambda params: params))
    assert_same_tree(gradients["stop_gradient"], explicit_gradient(setting, lambda params: state.params))
    assert_same_tree(gradients["ema"], explicit_gradient(setting, lambda params: state.ema_params))
    for first, second in (("live", "stop_gradient"), ("live", "ema"), ("stop_gradient", "ema")):
        assert distance(gradients[first], gradients[second]) > 0.1


@pytest.mark.parametrize("weights, reached", [("live", True), ("stop_gradient", False), ("ema", False)])
def test_without_a_way_through_the_masks_only_live_weights_are_reached(setting, weights, reached):
    model, state, batch = setting
    config = tiny_config(("object", "background"), weights=weights)
    detached = types.SimpleNamespace(apply=lambda *arguments, **options: stop_maps(model.apply(*arguments, **options)))

    def loss(params):
        outputs, _ = run_passes(params, state, batch, RNG, config=config, model=detached, explain=True)
        return outputs["object_scores"].sum() + outputs["background_scores"].sum()

    norm = optax.tree.norm(jax.jit(jax.grad(loss))(state.params))
    assert (norm > 0) == reached


def stop_maps(result):
    """The model's result with maps that carry no gradient; its scores still do."""
    if isinstance(result[1], dict) and "logit_maps" not in result[1]:  # With updated collections beside it.
        return stop_maps(result[0]), result[1]
    scores, endpoints = result
    return scores, endpoints | {name: jax.lax.stop_gradient(endpoints[name]) for name in DRAWN if name in endpoints}


@pytest.mark.parametrize("weights", PASS_WEIGHTS)
def test_evaluator_pass_always_trains_the_weights_and_never_the_masks(setting, weights):
    model, state, batch = setting
    config = tiny_config(("evaluator",), weights=weights, evaluator_masks=("swapped",))

    def score(params, masks):
        outputs = {"target_mask": masks}
        apply = lambda variables, images: model.apply(variables, images)[0]  # noqa: E731
        live = {"params": params}
        frozen = jax.lax.stop_gradient(live)
        return passes.explanation_passes(apply, live, frozen, outputs, batch, config, RNG)["evaluator_scores"].sum()

    masks = np.full((BATCH, 4, 4), 0.3, np.float32)
    of_weights, of_masks = jax.jit(jax.grad(score, argnums=(0, 1)))(state.params, masks)
    assert all(np.any(part != 0) for part in jax.tree.leaves(of_weights))
    np.testing.assert_array_equal(of_masks, np.zeros(masks.shape))


# ---- Evaluator masks -------------------------------------------------------------------------------------------------


def evaluator_masks(names, masks, seed=0):
    return np.asarray(jax.jit(passes.evaluator_mask, static_argnums=0)(names, masks, jax.random.key(seed)))


@pytest.mark.parametrize("name", EVALUATOR_MASKS)
def test_evaluator_masks_do_not_know_their_own_image(name):
    masks = np.random.default_rng(0).uniform(size=(BATCH, SIZE, SIZE)).astype(np.float32)
    result = evaluator_masks((name,), masks)
    assert result.shape == masks.shape and result.min() >= 0 and result.max() <= 1
    np.testing.assert_array_equal(result, evaluator_masks((name,), masks))
    for own in range(BATCH):
        changed = masks.copy()
        changed[own] = 0.5
        np.testing.assert_array_equal(evaluator_masks((name,), changed)[own], result[own])
    gradient = jax.jit(jax.grad(lambda masks: passes.evaluator_mask((name,), masks, RNG).sum()))(masks)
    np.testing.assert_array_equal(gradient, np.zeros(masks.shape))


def test_evaluator_masks_are_another_images_or_its_complement():
    masks = np.broadcast_to(np.asarray([0.1, 0.2, 0.3, 0.4], np.float32).reshape(4, 1, 1), (BATCH, SIZE, SIZE))
    swapped = evaluator_masks(("swapped",), masks)
    assert np.all(swapped != masks) and set(np.unique(swapped)) == set(np.unique(masks))
    np.testing.assert_allclose(evaluator_masks(("complement",), masks), 1 - swapped, rtol=1e-6)
    assert set(np.unique(evaluator_masks(("blobs",), masks))) == {0.0, 1.0}


def test_kinds_of_evaluator_masks_are_mixed():
    masks = np.full((32, SIZE, SIZE), 0.5, np.float32)
    swapped = np.all(evaluator_masks(("swapped", "blobs"), masks) == 0.5, axis=(1, 2))
    assert 4 < swapped.sum() < 28


@pytest.mark.parametrize("infill", sorted(masking.INFILLS))
def test_evaluator_scores_do_not_depend_on_the_own_label(setting, infill):
    label = setting[2]["label"].copy()
    label[0] = [0, 0, 1]
    config = tiny_config(("object", "evaluator"), evaluator_masks=EVALUATOR_MASKS, infills=(infill,))
    run = runner(setting, config)
    before, after = run(), run(label=label)
    np.testing.assert_allclose(after["evaluator_scores"][0], before["evaluator_scores"][0], rtol=1e-5)
    assert not np.allclose(after["object_scores"][0], before["object_scores"][0])


# ---- Refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options, message",
    [
        ({"weights": "frozen"}, "config.passes.weights = 'frozen' is unknown.*live.*stop_gradient.*ema"),
        ({"evaluator_masks": ("swapped", "stripes")}, "evaluator_masks = .*stripes.*choose from.*blobs"),
        ({"evaluator_masks": ()}, "evaluator_masks = .*choose from"),
        ({"infills": ("mirror",)}, "config.passes.infills = .*mirror"),
        ({"ema_decay": 1.0}, "config.passes.ema_decay = 1.0 must be in"),
        ({"classes_per_image": -1}, "config.passes.classes_per_image = -1 must be 0 or more"),
        ({"image_size": 48}, "config.passes.image_size = 48 must be 0, or a multiple of 32 up to config.data"),
    ],
    ids=str,
)
def test_bad_passes_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        passes.validate_passes(tiny_config(**options))


@pytest.mark.parametrize(
    "options", [{"temperature_steps": -1}, {"temperature_steps": 5, "initial_temperature": 0.0}], ids=str
)
def test_bad_annealing_is_refused(options):
    config = tiny_config()
    config.model.update(options)
    with pytest.raises(UserError, match="config.model.temperature_steps must be 0 or more.*positive"):
        passes.validate_passes(config)


def test_unknown_infill_of_the_evaluation_is_refused():
    config = tiny_config()
    passes.validate_passes(config)
    config.evaluation.infill = "mirror"
    with pytest.raises(UserError, match="config.evaluation.infill = .*mirror"):
        passes.validate_passes(config)
