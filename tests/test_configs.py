"""Every experiment in configs/, in every variant: it loads, says how to run it, and its real step can be traced."""

import importlib.util
import inspect
import json
import math
import pathlib
import re

import jax
import jax.numpy as jnp
import ml_collections
import pytest

from selfexplain_jax import attribution, compare, sanity_checks
from selfexplain_jax.compile import abstract_batch, abstract_frozen, abstract_state
from selfexplain_jax.config import base_config, default_workdir, load_config
from selfexplain_jax.data import build_dataset
from selfexplain_jax.metrics.map_metrics import MAP_METRICS
from selfexplain_jax.training import frozen, loop
from selfexplain_jax.training import mesh as mesh_lib
from selfexplain_jax.training.passes import explanations_start
from selfexplain_jax.types import Predictor, UserError

ROOT = pathlib.Path(__file__).resolve().parents[1]
FILES = sorted((ROOT / "configs").glob("*.py"))


def module_of(file):
    spec = importlib.util.spec_from_file_location(f"config_{file.stem}", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# `path` alone, the default, and each `path:variant`.
SPECS = [
    f"{file.relative_to(ROOT)}{suffix}"
    for file in FILES
    for suffix in ("", *(f":{variant}" for variant in getattr(module_of(file), "VARIANTS", ())))
]


# Those that train something; the others compare what was trained.
TRAINED = [spec for spec in SPECS if "/compare_" not in spec]
COMPARISONS = [spec for spec in SPECS if spec not in TRAINED]


def load(spec):
    config = load_config(str(ROOT / spec))
    if config.data.name == "folder":
        # Whose classes are known when there are photos.
        config.data.options.classes = ("cat", "dog")
    return config


def test_there_are_experiments():
    assert {"synthetic", "mnist"} <= {file.stem for file in FILES}


@pytest.mark.parametrize("spec", SPECS)
def test_config_is_locked_and_has_the_known_fields_alone(spec):
    config, base = load(spec), base_config()
    assert config.is_locked
    with pytest.raises((AttributeError, KeyError)):
        config.train.lerning_rate = 1.0
    # Options of the dataset and the terms are free here; the dataset and the objective check them.
    for group in base:
        assert group in config
        if isinstance(base[group], ml_collections.ConfigDict) and group != "objective":
            assert set(config[group]) == set(base[group])
    assert set(config) == set(base)
    # A checkpoint holds the config as JSON.
    assert config.to_json_best_effort() == load(spec).to_json_best_effort()


@pytest.fixture(scope="module")
def traced():
    """Steps that were traced: variants that differ in their data alone have the same."""
    return []


def costly(spec):
    """Marks the variants of an ablation and large networks as slow: 2 to 20 s each; the others are always traced."""
    small = any(spec.startswith(f"configs/{name}") for name in ("synthetic", "mnist"))
    return pytest.param(spec, marks=pytest.mark.slow) if "_ablation.py:" in spec or not small else spec


def build(config):
    """The experiment; an Explainer's classifier is that of its `classifier_config`, without weights."""
    if config.method != "explainer":
        return loop.build(config)
    return loop.build(config, frozen.from_config(load(config.explainer.classifier_config)))


@pytest.mark.parametrize("spec", SPECS)
def test_parts_fit_together(spec):
    experiment = build(load(spec))
    assert (experiment.classifier is not None) == (experiment.config.method == "explainer")


@pytest.mark.parametrize("spec", [spec for spec in SPECS if load(spec).method == "explainer"])
def test_explainers_say_which_command_makes_their_classifier(spec):
    config = load(spec)
    with pytest.raises(UserError, match="no trained classifier") as error:
        loop.build(config)
    command = f"--config={config.explainer.classifier_config} --workdir={config.explainer.classifier}"
    assert command in str(error.value)
    assert load(config.explainer.classifier_config).method == "classifier"


@pytest.mark.parametrize("spec", [costly(spec) for spec in TRAINED])
def test_real_step_can_be_traced_with_the_true_shapes(spec, traced):
    config = load(spec)
    experiment, mesh = build(config), mesh_lib.make_mesh()
    step = (config.method, experiment.model, config.passes, config.objective, config.train, config.data.image_size)
    if step in traced:
        return
    traced.append(step)
    state = abstract_state(experiment, mesh)
    batch = abstract_batch(config, experiment.dataset.info.num_classes, mesh)
    arguments = (state, batch, *abstract_frozen(experiment, mesh))
    before = explanations_start(config) > 0
    after = explanations_start(config) < config.train.steps
    assert before or after
    for explain in [False] * before + [True] * after:
        new_state, logs = jax.eval_shape(loop.make_step(experiment, mesh, explain), *arguments)
        described = lambda tree: jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)  # noqa: E731
        assert described(new_state) == described(state)
        assert {"loss", "accuracy", "gradient_norm"} <= set(logs)
        assert {(value.shape, value.dtype) for value in logs.values()} == {((), jnp.dtype("float32"))}
        if explain:
            assert {name for name in logs if name.startswith("term/")} == {f"term/{name}" for name in config.objective}


@pytest.mark.parametrize("variant", ["object", "shape", "multi", "confounded"])
def test_small_experiments_take_real_steps_with_all_their_terms(variant, tmp_path):
    config = load(f"configs/synthetic.py:{variant}")
    config.data.image_size, config.train.batch_size, config.train.steps, config.train.warmup_steps = 32, 4, 2, 1
    config.model.widths = (8,) * len(config.model.widths)
    for term in config.objective.values():
        term.start = term.ramp = 0
    result = loop.train(config, str(tmp_path))
    assert result.step == 2
    (line,) = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert {f"term/{name}" for name in config.objective} == {name for name in line if name.startswith("term/")}
    assert all(math.isfinite(value) for value in line.values())


@pytest.mark.parametrize("spec", COMPARISONS)
def test_comparisons_name_methods_metrics_and_options_that_exist(spec):
    config = load(spec)
    info = build_dataset(config).info
    predictor = Predictor(lambda images: images.mean(axis=(1, 2)), lambda z: z, info.class_names, info.image_size)
    models = config.comparison.models
    columns = compare.make_columns(config, dict.fromkeys(models, (predictor, [])), info)
    assert len(columns) == len(config.comparison.methods) > 1
    sanity_checks.check_settings(columns, models, config)
    for name, options in compare.choose_metrics(config, info).items():
        known = inspect.signature(MAP_METRICS[name].measure).parameters
        assert set(options) <= set(known)
    # Each model is there with its weights, or the message says which experiment makes it and where training puts it.
    for name, source in models.items():
        made_by = config.comparison.model_configs.get(name, source)
        experiment = load(made_by)
        assert source in (made_by, default_workdir(made_by))
        for field in ("name", "image_size", "mean", "std", "options"):
            assert experiment.data[field] == config.data[field], (name, field)


def test_every_method_and_every_metric_is_in_a_comparison():
    configs = [load(spec).comparison for spec in COMPARISONS]
    methods = {options.get("method", label) for config in configs for label, options in config.methods.items()}
    assert set(attribution.METHODS) - methods == set()
    assert set(MAP_METRICS) - {name for config in configs for name in config.metrics} == set()


@pytest.mark.parametrize("spec", COMPARISONS)
def test_every_network_of_masks_has_a_column_and_random_labels_are_all_that_differs(spec):
    comparison = load(spec).comparison
    shuffled = comparison.sanity_checks.random_labels.to_dict()
    learned = {row["model"] for label, row in comparison.methods.items() if row.get("method", label) == "learned"}
    for name, experiment in comparison.model_configs.items():
        if name not in shuffled.values():
            assert (name in learned) or load(experiment).method == "classifier"
    for name, other in shuffled.items():
        config = load(comparison.model_configs[name])
        config.data.shuffle_labels = True
        assert config == load(comparison.model_configs[other])


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_header_says_what_it_is_and_how_to_run_it(file):
    header = module_of(file).__doc__
    assert header and len(header.strip().splitlines()) >= 3
    command = re.search(r"python -m selfexplain_jax\.main ((?:.*\\\n)*.*)", header)
    assert command, f"{file.name}: no command line in its header"
    assert f"--config=configs/{file.name}" in command.group(1) and "--workdir=" in command.group(1)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_unknown_variant_is_refused_with_the_known_ones(file):
    with pytest.raises(UserError, match="no_such_variant") as error:
        load_config(f"{file}:no_such_variant")
    for variant in getattr(module_of(file), "VARIANTS", ()):
        assert variant in str(error.value)


def test_file_that_is_not_there_is_refused():
    with pytest.raises(UserError, match="no_such_file.py' does not exist.*configs/"):
        load_config("configs/no_such_file.py:variant")


def test_file_without_get_config_is_refused(tmp_path):
    (tmp_path / "empty.py").write_text("")
    with pytest.raises(UserError, match="defines no get_config"):
        load_config(str(tmp_path / "empty.py"))


def test_variant_is_handed_to_get_config(tmp_path):
    (tmp_path / "echo.py").write_text("def get_config(variant='first'):\n    return variant\n")
    assert load_config(f"{tmp_path}/echo.py") == "first"
    assert load_config(f"{tmp_path}/echo.py:second") == "second"
