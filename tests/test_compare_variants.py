"""Variants of configs/compare_synthetic.py on networks of random weights: maps of all classes, and a transformer's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selfexplain_jax import compare, report, sanity_checks
from selfexplain_jax.config import load_config
from selfexplain_jax.data import build_dataset
from selfexplain_jax.metrics import sanity
from selfexplain_jax.models import build_model
from selfexplain_jax.training.mesh import own_batches
from selfexplain_jax.training.state import apply_masks, bind, bound_to, network_predictor

SIZE = 32
TRANSFORMER_LAYERS = ["classifier", "norm", "block_1", "block_0", "tokens", "patch_embed", "stem_conv_0"]


def small(config, widths):
    config.data.image_size, config.data.options.num_classes = SIZE, 3
    config.model.widths, config.model.encoder_depth = widths, 2
    return config


def untrained(config, masks):
    """A small network of the config as a predictor, with random weights."""
    info = build_dataset(config).info
    model = build_model(config, info)
    variables = jax.jit(lambda key: model.init(key, jnp.zeros((1, SIZE, SIZE, 3)), train=False))(jax.random.key(3))
    variables = jax.device_put(dict(variables), jax.devices()[0])
    return network_predictor(config, info, model, variables, bind(apply_masks, model, variables) if masks else None)


def comparison(variant, monkeypatch, kept, **predictors):
    """The variant on eight small images, with these methods alone, and predictors in the place of trained runs."""
    config = load_config(f"configs/compare_synthetic.py:{variant}")
    config.data.image_size, config.data.options.num_classes = SIZE, 3
    config.evaluation.batch_size, config.evaluation.max_examples, config.evaluation.examples = 4, 8, 0
    config.comparison.figure_images = 0
    config.comparison.models = dict.fromkeys(predictors, "no/folder")
    config.comparison.leave_out = tuple(set(config.comparison.methods) - set(kept))
    monkeypatch.setattr(compare, "model_settings", lambda config: dict(config.comparison.models))
    monkeypatch.setattr(compare, "open_model", lambda name, *rest: (predictors[name], ["no/folder", 1, name]))
    return config


def test_maps_of_all_classes_compete_for_each_pixel(tmp_path, monkeypatch):
    own = untrained(small(load_config("configs/synthetic.py:multi"), (8, 8)), masks=True)
    kept = ("learned", "grad_cam", "gradient", "ground_truth", "all_zero", "all_one")
    config = comparison("classes", monkeypatch, kept, self_explainer=own, classifier=own)
    config.comparison.classes_per_image = 3
    dataset = build_dataset(config)
    rows = compare.compare(config, tmp_path)["methods"]
    assert set(rows) == set(kept) and all(not row["metric_failures"] for row in rows.values())
    numbers = {label: row["metrics"] for label, row in rows.items()}
    assert numbers["ground_truth"]["miou"] == 1.0
    # Everything is background: its IoU is its share of the pixels, that of each of the classes there are is 0.
    masks = np.concatenate([batch["mask"] for batch in own_batches(dataset, config)])
    assert numbers["all_zero"]["miou"] == pytest.approx((masks == 0).mean() / len(np.unique(masks)))
    # A mask that hides nothing leaves the image's own probabilities, whatever class it is of.
    whole = numbers["all_one"]
    for name in ("class_specific_own", "class_specific_other"):
        assert whole[name] == pytest.approx(whole["class_specific_unmasked"], rel=1e-5)
    for label in ("learned", "grad_cam", "gradient"):
        assert 0 <= numbers[label]["miou"] < 1 and np.shape(numbers[label]["class_specific_table"]) == (3, 3)
    assert "class_specific_table" not in report.comparison_markdown({"methods": rows, "images": 8})


def test_attention_of_a_transformer_is_compared_and_checked(tmp_path, monkeypatch):
    trained = load_config("configs/synthetic.py:vit_classifier")
    predictor = untrained(small(trained, (8, 32)), masks=False)
    layers = sanity_checks.top_down(*bound_to(predictor.scores), SIZE)
    assert layers == [f"backbone/{name}" for name in TRANSFORMER_LAYERS]
    kept = ("attention_rollout", "attention_relevance", "gradient", "edges", "ground_truth")
    config = comparison("vit", monkeypatch, kept, classifier=predictor)
    config.comparison.metrics = {"pointing_game": {}}
    config.comparison.sanity_checks.update({"images": 4, "stages": len(layers)})
    results = compare.compare(config, tmp_path)
    assert set(results["methods"]) == set(kept) and results["left_out"] == []
    for row in results["methods"].values():
        assert not row["failures"] and not row["metric_failures"] and row["metrics"]["pointing_game"] is not None
    found = results["sanity_checks"]
    assert set(found) == set(kept) - {"ground_truth"} and not any(row["failures"] for row in found.values())
    cascading = {label: row["checks"]["cascading"] for label, row in found.items()}
    assert list(cascading["gradient"]) == layers
    for name in sanity.SIMILARITIES:
        # The edges ask no network, and the rollout none of what is behind the last block's attention.
        for layer in layers:
            assert cascading["edges"][layer][name] == pytest.approx(1, abs=1e-4)
        assert cascading["attention_rollout"]["backbone/classifier"][name] == pytest.approx(1, abs=1e-4)
    for label in ("attention_relevance", "gradient"):
        assert cascading[label]["backbone/classifier"]["rank_correlation"] < 0.9
    for label in ("attention_rollout", "attention_relevance", "gradient"):
        assert abs(cascading[label]["backbone/stem_conv_0"]["rank_correlation"]) < 0.9
