"""Sanity checks as part of a comparison: layers in order, results per method, failures named, nothing done twice."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selfexplain_jax import compare, maps, report, sanity_checks
from selfexplain_jax.config import base_config, load_config
from selfexplain_jax.data import build_dataset
from selfexplain_jax.metrics import sanity
from selfexplain_jax.models import build_model
from selfexplain_jax.training.mesh import own_batches
from selfexplain_jax.training.state import bound_to, network_predictor, with_variables
from selfexplain_jax.types import Predictor, UserError

SIZE = 32


def settings(**checks):
    config = base_config()
    config.data.image_size, config.data.options = SIZE, {"num_classes": 3}
    config.evaluation.batch_size, config.evaluation.max_examples = 4, 12
    config.comparison.models = {"network": "no/folder", "other": "no/folder"}
    config.comparison.methods = {"gradient": {}, "edges": {}, "ground_truth": {}}
    config.comparison.metrics = {"pointing_game": {}}
    config.comparison.figure_images = 0
    config.comparison.sanity_checks.update({"images": 6, "stages": 3} | checks)
    return config


@pytest.fixture(scope="module")
def predictors():
    """A network of random weights, and the same one of others."""
    config = load_config("configs/synthetic.py:classifier")
    config.data.image_size, config.data.options = SIZE, {"num_classes": 3}
    info = build_dataset(config).info
    model = build_model(config, info)
    draw = jax.jit(lambda seed: model.init(seed, jnp.zeros((1, SIZE, SIZE, 3)), train=False))
    # On a device of their own, as those of a checkpoint are.
    variables = [jax.device_put(dict(draw(jax.random.key(seed))), jax.devices()[0]) for seed in (5, 6)]
    return [network_predictor(config, info, model, found) for found in variables]


@pytest.fixture(autouse=True)
def opened(monkeypatch, predictors):
    monkeypatch.setattr(compare, "model_settings", lambda config: dict(config.comparison.models))
    monkeypatch.setattr(
        compare, "open_model", lambda name, *rest: (predictors[name == "other"], ["no/folder", 1, name])
    )


def test_layers_come_from_the_top_down_and_name_every_parameter(predictors):
    model, variables = bound_to(predictors[0].scores)
    layers = sanity_checks.top_down(model, variables, SIZE)
    assert layers[:2] == ["head", "head_norm"] and layers[-1] == "stem"
    assert sorted(layers) == sorted(variables["params"])
    stages = sanity_checks.runs_of(layers, 3)
    assert [layer for stage in stages.values() for layer in stage] == layers
    assert list(stages)[-1] == "stem" and max(map(len, stages.values())) - min(map(len, stages.values())) <= 1
    redrawn = jax.tree.map(lambda leaf: leaf + 1, variables)
    paths = [sanity_checks.paths_of(stage, variables) for stage in stages.values()]
    everything = sanity.redraw(variables, redrawn, ", ".join(paths))
    jax.tree.map(np.testing.assert_array_equal, everything, redrawn)


def shapes_of(spec):
    """The network of a config at 64 px for three classes, and the shapes of its variables."""
    config = load_config(spec)
    config.model.pretrained, config.data.image_size = "", 64
    config.data.name, config.data.options = "synthetic", {"num_classes": 3}
    model = build_model(config, build_dataset(config).info)
    zeros = jnp.zeros((1, 64, 64, 3))
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), zeros, train=False))
    return model, variables


@pytest.mark.parametrize("spec", ["voc2012_animals", "voc2007_vgg16", "cub200:classifier"])
def test_every_parameter_belongs_to_a_layer(spec):
    model, variables = shapes_of(f"configs/{spec.partition(':')[0]}.py" + "".join(spec.partition(":")[1:]))
    layers = sanity_checks.top_down(model, variables, 64)
    everything = ", ".join(sanity_checks.paths_of([layer], variables) for layer in layers)
    assert set(everything.split(", ")) == {
        "/".join(path.split("/")[: 3 if path.split("/")[1] == "backbone" else 2])
        for path in sanity.layer_paths(variables)
    }


def test_parameters_of_no_layer_are_named():
    class Bare(nn.Module):
        @nn.compact
        def __call__(self, images, train):
            return self.param("scale", nn.initializers.ones, (1, 1, 1, 3)) * nn.Dense(3, name="head")(images)

    variables = Bare().init(jax.random.key(0), jnp.zeros((1, 4, 4, 3)), train=False)
    with pytest.raises(UserError, match="Parameters of scale belong to no layer"):
        sanity_checks.top_down(Bare(), variables, 4)


def test_a_backbone_is_taken_layer_by_layer():
    model, variables = shapes_of("configs/imagenet.py:classifier")
    layers = sanity_checks.top_down(model, variables, 64)
    assert layers[0] == "backbone/classifier" and layers[-1] in ("backbone/stem_conv", "backbone/stem_norm")
    assert layers.index("backbone/block_15") < layers.index("backbone/block_2") < layers.index("backbone/block_0")
    assert len(layers) == len(variables["params"]["backbone"])


def test_other_variables_are_put_in_every_function_of_that_network(predictors):
    model, variables = bound_to(predictors[0].scores)
    _, others = bound_to(predictors[1].scores)
    images = jax.random.normal(jax.random.key(0), (2, SIZE, SIZE, 3))
    changed = with_variables(predictors[0], variables, others)
    np.testing.assert_array_equal(changed.scores(images), predictors[1].scores(images))
    name = next(iter(changed.layers))
    np.testing.assert_array_equal(changed.layers[name][0](images), predictors[1].layers[name][0](images))
    with pytest.raises(UserError, match="the user's own"):
        bound_to(lambda images: images)


def test_a_comparison_checks_its_methods_and_goes_on(tmp_path, monkeypatch):
    config = settings(random_labels={"network": "other"})
    results = compare.compare(config, tmp_path)
    found = results["sanity_checks"]
    assert list(found) == ["gradient", "edges"] and {row["images"] for row in found.values()} == {6}
    checks = found["gradient"]["checks"]
    assert set(checks) == {"cascading", "independent", "random_labels"}
    # The same runs of layers in one order; the first is the same redrawing in both.
    assert list(checks["cascading"]) == list(checks["independent"]) and list(checks["cascading"])[-1] == "stem"
    first, last = (checks["cascading"][list(checks["cascading"])[place]] for place in (0, -1))
    assert first == checks["independent"][next(iter(checks["independent"]))]
    assert abs(last["rank_correlation"]) < 0.9 and abs(checks["random_labels"]["rank_correlation"]) < 0.9
    assert last["defined"] == 6
    # Edges ask no model.
    for check in ("cascading", "independent"):
        for values in found["edges"]["checks"][check].values():
            np.testing.assert_allclose([values[name] for name in sanity.SIMILARITIES], 1, atol=1e-5)
    table = report.comparison_markdown(results)
    assert "| gradient | redrawn down to " in table and "| edges | all redrawn | 1 |" in table
    # Nothing is checked again; another method is, and another model of random labels.
    checked = []
    real = sanity_checks.check_method

    def check_method(column, *arguments):
        checked.append(column.label)
        return real(column, *arguments)

    monkeypatch.setattr(sanity_checks, "check_method", check_method)
    assert compare.compare(config, tmp_path)["sanity_checks"] == found
    config.comparison.methods["gradient_x_input"] = {}
    compare.compare(config, tmp_path)
    assert checked == ["gradient_x_input"]
    trained_on = compare.open_model
    monkeypatch.setattr(compare, "open_model", lambda name, *rest: (trained_on(name)[0], ["no/folder", 2, name]))
    compare.compare(config, tmp_path / "further")
    assert len(checked) == 4


def test_a_check_that_fails_is_named_and_tried_again(tmp_path, monkeypatch):
    config = settings(methods=("gradient",))

    def fails(*arguments, independent, **options):
        if independent:
            raise ValueError("no | room\nat all")
        return real(*arguments, independent=independent, **options)

    real = sanity.randomisation_sums
    with monkeypatch.context() as patch:
        patch.setattr(sanity, "randomisation_sums", fails)
        results = compare.compare(config, tmp_path)
    found = results["sanity_checks"]["gradient"]
    assert found["failures"] == {"independent": "ValueError: no | room"} and set(found["checks"]) == {"cascading"}
    text = report.comparison_markdown(results)
    assert "`gradient`, independent: could not be checked: ValueError: no | room" in text
    again = compare.compare(config, tmp_path)["sanity_checks"]["gradient"]
    assert not again["failures"] and again["checks"]["cascading"] == found["checks"]["cascading"]


def test_images_that_do_not_count_are_not_shown():
    config, dataset = settings(images=3), build_dataset(settings())
    column = compare.make_columns(config, compare.open_all(config, dataset.info), dataset.info)[0]
    positions = own_batches(dataset, config).positions
    ((images, class_ids, counted, _),) = sanity_checks.checked_batches(column, dataset, config, [int(positions[1])])
    assert counted[:, 0].tolist() == [True, False, True, False]
    np.testing.assert_array_equal(images[1], images[2])
    assert class_ids[3] == class_ids[2] and not np.array_equal(images[0], images[2])
    assert not list(sanity_checks.checked_batches(column, dataset, config, positions[:4].tolist()))


def test_redrawing_compiles_nothing_anew(predictors):
    config, dataset = settings(), build_dataset(settings())
    columns = compare.make_columns(config, compare.open_all(config, dataset.info), dataset.info)
    (column,) = (column for column in columns if column.label == "gradient")
    network = sanity_checks.redraw_network(column.predictor, False, config)
    images, class_ids, _, rng = next(sanity_checks.checked_batches(column, dataset, config, []))
    column.method(column.predictor, images, class_ids, rng=rng)
    compiled = []
    monitoring = jax.monitoring.register_event_duration_secs_listener
    monitoring(lambda event, *rest, **more: compiled.append(event) if "backend_compile" in event else None)
    current = network.variables
    for path in network.paths.values():
        current = sanity.redraw(current, network.fresh, path)
        changed = with_variables(column.predictor, network.variables, current)
        column.method(changed, images, class_ids, rng=rng)
    assert not compiled


def test_an_explainers_masks_are_of_its_own_network(predictors):
    config = settings()
    model, variables = bound_to(predictors[0].scores)
    masks = jax.tree_util.Partial(predictors[1].scores.func, bound_to(predictors[1].scores)[1])
    explainer = dataclasses.replace(predictors[0], masks=masks)
    network = sanity_checks.redraw_network(explainer, True, config)
    assert network.variables is masks.args[0]
    changed = with_variables(explainer, network.variables, network.fresh)
    assert changed.scores is explainer.scores and changed.masks.args[0] is network.fresh
    asked = sanity_checks.redraw_network(explainer, False, config)
    assert asked.variables is variables


def test_a_users_own_functions_are_not_redrawn():
    predictor = Predictor(lambda images: images.mean(axis=(1, 2)), jax.nn.sigmoid, ("a", "b", "c"), SIZE)
    config, dataset = settings(), build_dataset(settings())
    column = compare.make_columns(config, dict.fromkeys(("network", "other"), (predictor, [])), dataset.info)[0]
    found = sanity_checks.check_method(column, None, {}, dataset, config, [])
    for check in ("cascading", "independent"):
        assert found["failures"][check].startswith("UserError: Only a network of this project can be redrawn")


@pytest.mark.parametrize(
    ("checks", "message"),
    [
        ({"methods": ("lime",)}, "sanity_checks.methods names 'lime'; of these there are gradient, edges\\."),
        ({"random_labels": {"network": "third"}}, "random_labels names 'third'; of these there are network, other"),
        ({"methods": ("ground_truth",)}, "sanity_checks.methods names 'ground_truth'"),
        ({"stages": 0}, "stages >= 1"),
        ({"images": -1}, "images >= 0"),
    ],
)
def test_bad_settings_are_refused_before_anything_is_explained(tmp_path, monkeypatch, checks, message):
    monkeypatch.setattr(maps, "make_maps", None)
    with pytest.raises(UserError, match=message):
        compare.compare(settings(**checks), tmp_path)
