"""This project's networks as predictors: layers by name, from which the rest of the network goes on, and attention."""

import types

import jax
import numpy as np
import pytest
from goldens import formula
from test_backbones import SAME, SMALL, dataset_info, filled

from selfexplain_jax import attribution
from selfexplain_jax.config import base_config
from selfexplain_jax.models.backbones import Classifier
from selfexplain_jax.models.encoder_unet import EncoderUNet
from selfexplain_jax.models.unet import UNet
from selfexplain_jax.training.state import make_predictor

SIZE, CLASSES = 32, 3
# In the range of normalised images.
IMAGES, IDS = formula.images(2, SIZE) / 2, np.array([[0, 1], [2, 2]])
NETWORKS = {
    "efficientnet_lite": (Classifier(SMALL["efficientnet_lite"], SAME), ["stride32", "stride2"]),
    "resnet_dilated": (Classifier(SMALL["resnet_bottleneck_dilated"], SAME), ["stride8", "stride4", "stride2"]),
    "vgg": (Classifier(SMALL["vgg"], SAME), ["stride32", "stride16"]),
    # Skip connections, and the image's edges, go around their layers.
    "unet": (UNet(CLASSES, (8, 8), edge_distances=(1,), local_contrast=False), ["features", "level1", "level0"]),
    "encoder_unet": (EncoderUNet(SMALL["vgg"], SAME, CLASSES, width=4, mask_stride=8), ["stride32", "stride8"]),
}


def predictor_of(model, variables):
    config = base_config()
    config.method = "self_explainer" if model.draws_maps else "classifier"
    config.passes.evaluate_ema = False
    state = types.SimpleNamespace(params=variables["params"], batch_stats=variables.get("batch_stats", {}))
    return make_predictor(config, dataset_info(CLASSES, SIZE), model, state)


@pytest.mark.parametrize("name", NETWORKS)
def test_network_goes_on_from_the_features_of_a_layer(name):
    model, layers = NETWORKS[name]
    predictor = predictor_of(model, filled(model, SIZE))
    assert set(layers) <= set(predictor.layers) and next(iter(predictor.layers)) == layers[0], (
        "what is taken where none is named"
    )

    @jax.jit
    def everything(images):
        found = {}
        for layer in layers:
            features, head = predictor.layers[layer]
            activations = features(images)
            found[layer] = head(activations, images), head(activations[..., ::-1], images)
        return predictor.scores(images), found

    scores, found = everything(IMAGES)
    for same, other in found.values():
        np.testing.assert_allclose(same, scores, rtol=1e-4, atol=1e-5)
        assert np.abs(other - scores).max() > 1e-3, "the features that are given are not looked at"


def test_self_explainer_has_class_activation_maps_and_new_weights_compile_nothing():
    model, _ = NETWORKS["unet"]
    variables, compiled = filled(model, SIZE), []
    method = attribution.build_method("grad_cam")
    maps = method(predictor_of(model, variables), IMAGES, IDS)
    assert maps.shape == (2, 2, SIZE, SIZE) and np.isfinite(maps).all() and np.asarray(maps).any(axis=(2, 3)).all()
    variables = jax.tree.map(lambda weight: 0.5 * weight, variables)

    def listen(event, duration, **_):
        if "compile" in event:
            compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        other = method(predictor_of(model, variables), IMAGES, IDS)
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert not compiled and not np.allclose(maps, other)


def test_transformer_has_attention_and_no_layers():
    model = Classifier(SMALL["vit"], SAME)
    predictor = predictor_of(model, filled(model, SIZE))
    assert not predictor.layers and predictor.features is None
    maps = np.asarray(attribution.METHODS["attention_relevance"](predictor, IMAGES, IDS))
    assert maps.shape == (2, 2, SIZE, SIZE) and np.isfinite(maps).all() and maps.min() >= 0
    assert not np.allclose(maps[0, 0], maps[0, 1]), "each class has its own map"
    np.testing.assert_allclose(maps[1, 0], maps[1, 1], rtol=1e-5)
