"""Sanity checks as part of a comparison: layers in order, results per method, failures named, nothing done twice."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selfexplain_jax import compare, maps, report, sanity_checks
from selfexplain_jax.config import base_config, load_config
from selfexplain_jax.data import build_dataset
from selfexplain_jax.metrics import sanity
from selfexplain_jax.models import build_model
from selfexplain_jax.training.state import bound_to, network_predictor, with_variables
from selfexplain_jax.types import Predictor, UserError

SIZE = 32


def settings(**checks):
    config = base_config()
    config.data.image_size, config.data.options = SIZE, {"num_classes": 3}
    config.evaluation.batch_size, config.evaluation.max_examples = 4, 12
    config.comparison.models = {"network": "no/folder", "other": "no/folder"}
    config.comparison.methods = {"gradient": {}, "edges": {}, "ground_truth": {}, "grad_cam": {}}
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
    return [network_predictor(config, info, model, dict(draw(jax.random.key(seed)))) for seed in (5, 6)]


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
    stages = sanity_checks.stages_of(layers, 3)
    assert [layer for stage in stages.values() for layer in stage] == layers
    assert list(stages)[-1] == "stem" and max(map(len, stages.values())) - min(map(len, stages.values())) <= 1
    redrawn = jax.tree.map(lambda leaf: leaf + 1, variables)
    paths = [sanity_checks.paths_of(stage, variables) for stage in stages.values()]
    everything = sanity.redraw(variables, redrawn, ", ".join(paths))
    jax.tree.map(np.testing.assert_array_equal, everything, redrawn)


def test_a_backbone_is_taken_layer_by_layer():
    config = load_config("configs/imagenet.py:classifier")
    config.model.pretrained, config.data.image_size = "", 64
    config.data.name, config.data.options = "synthetic", {"num_classes": 3}
    model = build_model(config, build_dataset(config).info)
    zeros = jnp.zeros((1, 64, 64, 3))
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), zeros, train=False))
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
    assert list(found) == ["edges", "grad_cam", "gradient"] and {row["images"] for row in found.values()} == {6}
    assert set(found["gradient"]["checks"]) == {"cascading", "independent", "random_labels"}
    # Edges ask no model; the gradient does.
    for check in ("cascading", "independent"):
        for values in found["edges"]["checks"][check].values():
            np.testing.assert_allclose(list(values.values()), 1, atol=1e-5)
    last = list(found["gradient"]["checks"]["cascading"].values())[-1]
    assert abs(last["rank_correlation"]) < 0.9
    assert abs(found["gradient"]["checks"]["random_labels"]["rank_correlation"]) < 0.9
    # All layers redrawn is another network altogether, the same in both ways of telling.
    table = report.comparison_markdown(results)
    assert "| gradient | top redrawn (" in table and "| edges | all redrawn | 1 |" in table
    (tmp_path / "comparison.json").write_text("{}")
    monkeypatch.setattr(sanity_checks, "check_method", None)
    assert compare.compare(config, tmp_path)["sanity_checks"] == found


def test_a_method_that_cannot_be_checked_is_named_and_tried_again(tmp_path, monkeypatch):
    config = settings(methods=("gradient",))

    def fails(predictor, *arguments, **options):
        raise ValueError("no | room\nat all")

    monkeypatch.setattr(sanity, "randomisation_sums", fails)
    results = compare.compare(config, tmp_path)
    assert results["sanity_checks"] == {"gradient": {"failure": "ValueError: no | room"}}
    assert "`gradient` could not be checked: ValueError: no | room" in report.comparison_markdown(results)
    monkeypatch.undo()


def test_a_users_own_functions_are_not_redrawn():
    predictor = Predictor(lambda images: images.mean(axis=(1, 2)), jax.nn.sigmoid, ("a", "b", "c"), SIZE)
    config, dataset = settings(), build_dataset(settings())
    column = compare.make_columns(config, dict.fromkeys(("network", "other"), (predictor, [])), dataset.info)[0]
    found = sanity_checks.check_method(column, None, dataset, config, [])
    assert found["failure"].startswith("UserError: Only a network of this project can be redrawn")


@pytest.mark.parametrize(
    ("checks", "message"),
    [
        ({"methods": ("lime",)}, "sanity_checks.methods names 'lime'; the comparison has edges, grad_cam"),
        ({"random_labels": {"network": "third"}}, "random_labels names 'third'; the comparison has network, other"),
        ({"stages": 0}, "stages >= 1"),
        ({"images": -1}, "images >= 0"),
    ],
)
def test_bad_settings_are_refused_before_anything_is_explained(tmp_path, monkeypatch, checks, message):
    monkeypatch.setattr(maps, "make_maps", None)
    with pytest.raises(UserError, match=message):
        compare.compare(settings(**checks), tmp_path)
