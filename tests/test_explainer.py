"""The Explainer in the real loop: a frozen classifier that stays as it is, resuming, and what does not fit."""

import dataclasses
import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from selfexplain_jax import attribution, compare, evaluate, explain
from selfexplain_jax import compile as compile_check
from selfexplain_jax.config import base_config, load_config
from selfexplain_jax.models import build_model, masking
from selfexplain_jax.objectives import terms
from selfexplain_jax.recipes import explainer_recipe, real_time_saliency_recipe
from selfexplain_jax.training import config_json, frozen, loop
from selfexplain_jax.training import mesh as mesh_lib
from selfexplain_jax.training.experiment import load_frozen, state_creation
from selfexplain_jax.training.mesh import own_batches
from selfexplain_jax.training.optimizer import build_optimizer
from selfexplain_jax.training.state import create_state, initial_state, make_predictor
from selfexplain_jax.types import Predictor, UserError

SYNTHETIC = pathlib.Path(__file__).resolve().parents[1] / "configs" / "synthetic.py"
SIZE = 32


def tiny(variant, classifier=""):
    """A variant of the synthetic experiments that takes a second."""
    config = load_config(f"{SYNTHETIC}:{variant}")
    config.data.image_size = SIZE
    config.data.options = {"train_size": 16, "test_size": 8}
    config.data.num_threads, config.data.prefetch = 0, 4
    config.model.update({"widths": (8,), "encoder_depth": 1, "edge_distances": (), "local_contrast": False})
    train = config.train
    train.batch_size, train.steps, train.warmup_steps, train.log_every = 4, 4, 1, 1
    train.checkpoint_every, train.picture_every = 2, 0
    config.evaluation.update({"batch_size": 4, "audit": False, "pictures": 2})
    # The tests of the start say so; the others have classifiers of every kind.
    config.explainer.classifier, config.explainer.start_from_classifier = str(classifier), False
    return config


@pytest.fixture(scope="module")
def classifier_run(tmp_path_factory):
    """The folder of a plain classifier's run."""
    workdir = tmp_path_factory.mktemp("classifier")
    config = tiny("classifier")
    config.train.steps = 2
    loop.train(config, str(workdir))
    return workdir


@pytest.fixture(scope="module")
def held(classifier_run):
    """The classifier's arrays on the devices, their bytes, and the bytes of the files that they come from."""
    variables = frozen.from_workdir(tiny("explainer", classifier_run)).load(mesh_lib.make_mesh())
    return variables, bytes_of(variables), files_of(classifier_run)


@pytest.fixture(scope="module")
def uninterrupted(classifier_run, held, tmp_path_factory):
    """An Explainer's run from start to end, and its folder."""
    workdir, config = tmp_path_factory.mktemp("explainer"), tiny("explainer", classifier_run)
    classifier = dataclasses.replace(frozen.from_workdir(config), load=lambda mesh: held[0])
    return loop.train(config, str(workdir), classifier), workdir


def bytes_of(tree):
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


def files_of(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ---- Training --------------------------------------------------------------------------------------------------------


def test_classifier_is_bit_identical_after_training_and_nowhere_in_the_state(uninterrupted, held):
    result, _ = uninterrupted
    variables, before, files = held
    # The very arrays that every step was given, and the files they came from.
    assert bytes_of(variables) == before and len(before) > 0
    assert files == {path: path.read_bytes() for path in files}
    model, config = result.model, tiny("explainer")
    own = jax.eval_shape(lambda key: model.init(key, jnp.zeros((1, SIZE, SIZE, 3))), jax.random.key(0))
    assert jax.tree.structure(own["params"]) == jax.tree.structure(result.state.params)
    # Adam's two moments and its counters, for these parameters and no others.
    optimizer = build_optimizer(config)[0]
    assert jax.tree.structure(jax.eval_shape(optimizer.init, own["params"])) == jax.tree.structure(
        result.state.opt_state
    )


def test_run_trains_the_masks_and_logs_its_terms(uninterrupted):
    _, workdir = uninterrupted
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    names = {"object", "background", "smoothness", "area_bounds", "area_target", "area_non_target"}
    assert {name for name in lines[0] if name.startswith("term/")} == {f"term/{name}" for name in names}
    assert {"accuracy", "mask_area", "gradient_norm"} <= set(lines[0]) and lines[0]["gradient_norm"] > 0
    assert (workdir / "pictures" / "masks_000004.png").stat().st_size > 1000


def tiny_classifier():
    config = tiny("classifier")
    config.train.steps = 2
    return config


def scores_of(workdir):
    """What the classifier in a folder says of an empty image, by its own predictor."""
    config = tiny_classifier()
    result = loop.restore(config, str(workdir))
    predictor = make_predictor(config, result.dataset.info, result.model, result.state)
    return predictor.scores(jnp.zeros((1, SIZE, SIZE, 3)))


def test_resumed_run_equals_the_uninterrupted_one_wherever_the_classifier_lies_now(
    uninterrupted, classifier_run, tmp_path
):
    run = tmp_path / "run"
    shutil.copytree(uninterrupted[1], run)
    shutil.rmtree(run / "checkpoints" / "4")
    moved = shutil.copytree(classifier_run, tmp_path / "moved")
    resumed = loop.train(tiny("explainer", moved), str(run))
    assert bytes_of(resumed.state) == bytes_of(uninterrupted[0].state)


def test_run_does_not_go_on_with_another_classifier(uninterrupted, tmp_path):
    config = tiny_classifier()
    config.seed = 1
    loop.train(config, str(tmp_path / "other"))
    run = shutil.copytree(uninterrupted[1], tmp_path / "run")
    before = files_of(run)
    for start in (loop.train, loop.restore):
        with pytest.raises(UserError, match="explains another classifier than this one"):
            start(tiny("explainer", tmp_path / "other"), str(run))
    assert files_of(run) == before


@pytest.mark.parametrize("recipe", ["explainer", "real_time_saliency"])
def test_step_is_the_sum_of_its_terms_by_the_classifier(recipe):
    """Every term again, from masks and a classifier that is a formula: the mean colour of an image, times three."""
    config = tiny(recipe)
    config.passes.infills = ("zero",)
    predictor = Predictor(lambda x: 3.0 * x.mean(axis=(1, 2)), jax.nn.sigmoid, ("a", "b", "c"), SIZE)
    classifier = frozen.from_predictor(predictor)
    experiment = loop.build(tiny(recipe), frozen.from_predictor(eight_classes()))
    info = experiment.dataset.info
    model = build_model(config, info)
    state = jax.jit(lambda key: create_state(config, model, experiment.optimizer, key))(jax.random.key(0))
    rng = np.random.default_rng(0)
    images = rng.normal(size=(4, SIZE, SIZE, 3)).astype(np.float32)
    # The network draws eight maps; only the first three classes exist for this classifier.
    label = np.eye(8, dtype=np.float32)[[0, 1, 2, 0]]
    scores = lambda variables, x: jnp.pad(classifier.scores(variables, x), ((0, 0), (0, 5)))  # noqa: E731
    batch = {"image": images, "label": label, "valid": np.ones(4, np.float32)}
    step = jax.jit(
        lambda state, batch: loop.steps.train_step(
            state, batch, {}, config=config, model=model, optimizer=experiment.optimizer, scores=scores
        )
    )
    _, logs = step(state, batch)
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    maps = jax.jit(lambda x: model.apply(variables, x, train=True, mutable=True)[0][1]["logit_maps"])(images)
    m = jax.nn.sigmoid(masking.target_logits(maps, label))
    n = jax.nn.sigmoid(masking.non_target_logits(maps, label))
    full = np.asarray(masking.resize_mask(m, SIZE))[..., None]
    on_object, on_background = (np.asarray(scores({}, x)) for x in (full * images, (1 - full) * images))
    p = np.exp(on_background) / np.exp(on_background).sum(axis=1, keepdims=True)
    sigmoid = lambda z: 1 / (1 + np.exp(-z))  # noqa: E731
    expected = {"area_target": m.mean()}
    if recipe == "explainer":
        expected["object"] = (np.log1p(np.exp(on_object)) - label * on_object).mean()
        # mean_c p log p, which is -log C / C at its least.
        expected["background"] = (p * np.log(p)).mean() + np.log(8) / 8
        expected["smoothness"] = (terms.total_variation(m) + terms.total_variation(n)).mean()
        expected["area_non_target"] = n.mean()
        del logs["term/area_bounds"]
    else:
        expected["object"] = -np.log(sigmoid((on_object * label).sum(axis=1))).mean()
        expected["background"] = (sigmoid((on_background * label).sum(axis=1)) ** 0.3).mean()
        expected["squared_smoothness"] = (np.diff(m, axis=1) ** 2).mean() + (np.diff(m, axis=2) ** 2).mean()
    found = {name.removeprefix("term/"): value for name, value in logs.items() if name.startswith("term/")}
    assert set(found) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=1e-6, err_msg=name)
    np.testing.assert_allclose(logs["accuracy"], (on_object.argmax(axis=1) == label.argmax(axis=1)).mean())


def eight_classes():
    """A pure function on images that knows the synthetic set's classes."""
    names = loop.build(tiny("classifier")).dataset.info.class_names
    return Predictor(lambda x: x[:, :: SIZE // 8, 0, 0] + x.mean(axis=(1, 2))[:, :1], jax.nn.sigmoid, names, SIZE)


def test_any_pure_function_can_be_the_classifier(tmp_path):
    predictor = eight_classes()
    result = loop.train(tiny("real_time_saliency"), str(tmp_path / "run"), frozen.from_predictor(predictor))
    assert result.step == 4 and result.classifier is predictor
    restored = loop.restore(tiny("real_time_saliency"), str(tmp_path / "run"), frozen.from_predictor(predictor))
    assert bytes_of(restored.state) == bytes_of(result.state)


# ---- Evaluating, explaining, compiling -------------------------------------------------------------------------------


def test_predictor_has_the_classifiers_scores_and_the_networks_masks(uninterrupted, classifier_run, tmp_path):
    config = tiny("explainer", classifier_run)
    result = loop.restore(config, str(uninterrupted[1]))
    info = result.dataset.info
    predictor = make_predictor(config, info, result.model, result.state, result.classifier)
    empty = jnp.zeros((1, SIZE, SIZE, 3))
    np.testing.assert_array_equal(predictor.scores(empty), scores_of(classifier_run))
    metrics = evaluate.evaluate(predictor, result.dataset, config)
    assert {"accuracy", "object_accuracy", "iou", "pointing_game", "swap_owner_rate"} <= set(metrics)
    assert metrics["counts"]["examples"] == 8
    masks = attribution.learned(predictor, empty, np.asarray([[3, 0]]))
    assert masks.shape == (1, 2, SIZE, SIZE)
    Image.fromarray(np.full((40, 50, 3), 100, np.uint8)).save(tmp_path / "photo.png")
    index = explain.explain_folder(
        predictor, config, images=tmp_path / "photo.png", output_dir=tmp_path / "out", classes=[3]
    )
    assert index["photos"][0]["explained"][0]["class_id"] == 3
    with pytest.raises(UserError, match="needs its classifier"):
        make_predictor(config, info, result.model, result.state)


def test_comparison_asks_the_frozen_classifier_about_the_explainers_masks(uninterrupted, classifier_run, tmp_path):
    config = base_config()
    config.data.update({"image_size": SIZE, "options": {"train_size": 16, "test_size": 8}, "num_threads": 0})
    config.evaluation.update({"batch_size": 4, "max_examples": 4})
    comparison = config.comparison
    comparison.models = {"explainer": str(uninterrupted[1]), "classifier": str(classifier_run)}
    half = {"model": "explainer", "method": "constant", "options": {"value": 0.5}}
    comparison.methods = {"half": half, "half_of_classifier": half | {"model": "classifier"}}
    comparison.methods.learned = {"model": "explainer"}
    comparison.metrics, comparison.figure_images = {"segmentation": {}, "average_drop": {}}, 0
    rows = compare.compare(config, tmp_path)["methods"]
    assert [row["failures"] for row in rows.values()] == [[], [], []]
    # Half of the image answered by the Explainer's classifier, and by that classifier itself.
    assert rows["half"]["metrics"] == rows["half_of_classifier"]["metrics"]
    assert {row["asks"] for row in rows.values()} == {"classifier"}
    assert rows["learned"]["metrics"]["average_drop"] != rows["half"]["metrics"]["average_drop"]
    # The masks are those of the network that was trained, and no other.
    settings = tiny("explainer", classifier_run)
    result = loop.restore(settings, str(uninterrupted[1]))
    predictor = make_predictor(settings, result.dataset.info, result.model, result.state, result.classifier)
    batch = next(iter(own_batches(result.dataset, config)))
    with np.load(tmp_path / "maps" / "learned" / "00000.npz") as stored:
        np.testing.assert_array_equal(stored["saliency"], predictor.masks(batch["image"], stored["class_ids"]))
    # A run whose classifier has been moved is told where it lies now.
    config.explainer.classifier = "moved/away"
    with pytest.raises(UserError, match="models.explainer: config.explainer.classifier = 'moved/away'"):
        compare.compare(config, tmp_path)


def test_compile_check_takes_the_classifiers_shapes_and_no_weights(classifier_run, monkeypatch):
    monkeypatch.setattr(frozen, "_load", lambda *arguments: pytest.fail("the weights were read"))
    config = tiny("explainer", classifier_run)
    result = compile_check.compile_step(config)
    classifier = loop.build(config).classifier
    _, size = compile_check.size_of(classifier.shapes)
    # Behind the state, and the batch, whose half a device holds.
    assert result["memory_bytes"]["arguments"] >= result["state_bytes"] + size


# ---- Refusals --------------------------------------------------------------------------------------------------------

MISFITS = {
    "none named": (lambda c, run: setattr(c.explainer, "classifier", ""), "set config.explainer.classifier to"),
    "no folder": (
        lambda c, run: setattr(c.explainer, "classifier", "runs/nothing"),
        r"no trained classifier \(runs/nothing holds no checkpoints.\).*--config=configs/synthetic.py:classifier "
        "--workdir=runs/nothing",
    ),
    "image size": (lambda c, run: setattr(c.data, "image_size", 64), "config.data.image_size: 32 there, 64 here"),
    "normalisation": (
        lambda c, run: setattr(c.data, "std", (1.0, 1.0, 1.0)),
        r"config.data.std: \(64.0, 64.0, 64.0\) there",
    ),
    "link": (lambda c, run: setattr(c.model, "link", "softmax"), "config.model.link: 'sigmoid' there, 'softmax' here"),
    "classes": (
        lambda c, run: setattr(c.data, "name", "mnist") or setattr(c.data, "options", {}),
        "knows other classes, or in another order, than dataset 'mnist': 8 .* there, 10",
    ),
    "network": (
        lambda c, run: setattr(c.model, "name", "resnet18"),
        "draws no maps, so it cannot explain a classifier",
    ),
    "training terms": (
        lambda c, run: c.objective.update(evaluator={"weight": 1.0}, ranking={"weight": 1.0}),
        "keeps its classifier as it is: .*'evaluator', 'ranking'",
    ),
    "no question": (
        lambda c, run: setattr(c, "objective", {"area_target": {"weight": 1.0}}),
        "needs the term 'object' or 'background'",
    ),
    "power": (
        lambda c, run: setattr(c.objective.background, "power", 0.0),
        "config.objective.background.power = 0.0 must be above 0",
    ),
}


@pytest.mark.parametrize("case", MISFITS)
def test_what_does_not_fit_is_refused_before_anything_is_written(case, classifier_run, tmp_path):
    change, message = MISFITS[case]
    config = tiny("explainer", classifier_run)
    change(config, classifier_run)
    with pytest.raises(UserError, match=message):
        loop.train(config, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_run_of_another_method_is_no_classifier(uninterrupted):
    with pytest.raises(UserError, match="config.method = 'explainer'; an Explainer takes one with classifier or self_"):
        loop.build(tiny("explainer", uninterrupted[1]))


def test_masks_can_start_from_the_classifiers_own_weights(classifier_run, held):
    variables, before, _ = held
    config = tiny("explainer", classifier_run)
    config.explainer.start_from_classifier = True
    classifier = dataclasses.replace(frozen.from_workdir(config), load=lambda mesh: variables)
    experiment, mesh = loop.build(config, classifier), mesh_lib.make_mesh()
    state = initial_state(config, *state_creation(experiment, mesh), load_frozen(experiment, mesh))
    for ours in (state.params, state.ema_params):
        assert bytes_of(ours) == bytes_of(variables["params"])
    for ours in (state.batch_stats, state.ema_batch_stats):
        assert bytes_of(ours) == bytes_of(variables["batch_stats"])
    # The step takes over the memory of the state, and the classifier keeps its own.
    deleted = jax.tree.map(lambda leaf: leaf.delete(), (state.params, state.batch_stats))
    assert deleted and bytes_of(variables) == before


STARTS = {
    "another network": (
        lambda config: setattr(config.model, "widths", (12,)),
        r"two are different networks: not in both with one shape are .*, \.\.\.\. Give both",
    ),
    "a file too": (lambda config: setattr(config.model, "pretrained", "weights.safetensors"), "set one of them"),
    "no Explainer": (lambda config: setattr(config, "method", "self_explainer"), "config.method is 'self_explainer'"),
}


@pytest.mark.parametrize("case", STARTS)
def test_a_start_that_does_not_fit_is_refused(case, classifier_run):
    change, message = STARTS[case]
    config = tiny("object" if case == "no Explainer" else "explainer", classifier_run)
    config.explainer.start_from_classifier = True
    change(config)
    with pytest.raises(UserError, match=f"start_from_classifier starts .*{message}"):
        loop.build(config)


def test_a_self_explainer_can_be_explained(tmp_path):
    own = tiny("object")
    own.train.steps = 2
    trained = loop.train(own, str(tmp_path / "own"))
    config = tiny("explainer", tmp_path / "own")
    config.train.steps = 2
    result = loop.train(config, str(tmp_path / "run"))
    shown = jax.random.normal(jax.random.key(3), (2, SIZE, SIZE, 3)).clip(-1)
    of_its_own = make_predictor(own, trained.dataset.info, trained.model, trained.state)
    np.testing.assert_allclose(result.classifier.scores(shown), of_its_own.scores(shown), rtol=1e-5)
    assert result.classifier.masks is None


def test_damaged_weights_of_the_classifier_are_refused(classifier_run, tmp_path):
    folder = shutil.copytree(classifier_run, tmp_path / "damaged")
    for file in (folder / "checkpoints").glob("*/state/**/*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(UserError, match="None of the checkpoints"):
        loop.train(tiny("explainer", folder), str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


# ---- Configurations --------------------------------------------------------------------------------------------------


def test_config_comes_back_from_json_and_younger_fields_have_their_defaults():
    config = tiny("classifier")
    config.model.widths = (4, 8)
    saved = config_json.jsonable(config)
    assert config_json.jsonable(config_json.from_json(saved)) == saved
    assert config_json.from_json(saved).model.widths == (4, 8)
    del saved["explainer"], saved["model"]["edge_scale"]
    read = config_json.from_json(saved)
    assert read.explainer.classifier == "" and read.model.edge_scale == base_config().model.edge_scale
    # A checkpoint of before these fields goes on, unless they are used.
    config_json.check_same_config(saved, config_json.jsonable(config), "It")
    config.model.edge_scale = 0.5
    with pytest.raises(UserError, match="model.edge_scale: 0.2 there, 0.5 now"):
        config_json.check_same_config(saved, config_json.jsonable(config), "It")


def test_recipes_scale_variation_with_the_cells():
    config = base_config()
    for stride in (1, 4):
        config.model.mask_stride = stride
        explainer_recipe(config, entropy=3.0, variation=1.0, bounds=0.8, target_area=0.01, non_target_area=0.3)
        assert config.objective.smoothness.weight == 1.0 / stride
        real_time_saliency_recipe(config)
        assert config.objective.squared_smoothness.weight == 10.0 / stride**2
    assert (config.train.optimizer, config.train.batch_size) == ("adam", 16)


@pytest.mark.parametrize(
    "name, rate, weights",
    [
        # Learning rate; weights of entropy, variation, bounds, target and non-target area.
        ("voc2007_resnet50", 1e-4, (3, 1, 0.8, 0.01, 0.3)),
        ("voc2007_vgg16", 1e-5, (1, 1, 1, 0.1, 0.3)),
        ("coco2014_resnet50", 1e-5, (3, 0.05, 0.1, 0.01, 0.03)),
        ("coco2014_vgg16", 1e-5, (1, 0.3, 0.3, 0.03, 0.1)),
    ],
)
def test_published_settings(name, rate, weights):
    config = load_config(str(SYNTHETIC.with_name(f"{name}.py")))
    objective = config.objective
    assert (config.train.learning_rate, config.train.batch_size, config.data.image_size) == (rate, 16, 224)
    found = [objective[term].weight for term in ("background", "smoothness", "area_bounds")]
    found += [objective.area_target.weight, objective.area_non_target.weight]
    # Over cells of two pixels.
    assert tuple(found) == (weights[0], weights[1] / 2, *weights[2:])
    assert (objective.area_bounds.lower, objective.area_bounds.upper) == (0.05, 0.3)
    assert objective.area_bounds.max_classes == 20
