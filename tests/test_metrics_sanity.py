"""Similarities of maps against scipy and by hand; which layers a randomisation redraws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from selfexplain_jax.metrics import mean, sanity
from selfexplain_jax.types import Predictor, UserError

SIZE = 12
random = np.random.default_rng(0)
IMAGES = random.normal(size=(2, SIZE, SIZE, 3)).astype(np.float32)
CLASS_IDS = np.array([[0, 1], [1, 0]])


def variables(seed):
    """A network of two layers: 1 x 1 convolution, then class weights."""
    random = np.random.default_rng(seed)
    first, last = random.normal(size=(3, 4)).astype(np.float32), random.normal(size=(4, 2)).astype(np.float32)
    return {"params": {"stem": {"kernel": first}, "head": {"kernel": last}}, "statistics": {"stem": np.float32(seed)}}


def build(variables):
    def features(images):
        return jnp.tanh(images @ variables["params"]["stem"]["kernel"] + variables["statistics"]["stem"])

    def head(features):
        return features.mean(axis=(1, 2)) @ variables["params"]["head"]["kernel"]

    return Predictor(lambda x: head(features(x)), jax.nn.softmax, ("a", "b"), SIZE, features=features, head=head)


def gradient(predictor, images, class_ids, *, rng=None):
    """Class activation maps of the network above, without ReLU."""
    del rng
    features = predictor.features(images)  # [B, H, W, 4]
    slopes = jax.jacobian(lambda f: predictor.head(f[None, None, None])[0])(jnp.zeros(4))  # [2, 4]
    maps = jnp.einsum("bhwk,ck->bchw", features, slopes)
    return jnp.take_along_axis(maps, jnp.asarray(class_ids)[:, :, None, None], axis=1)


def edges(predictor, images, class_ids, *, rng=None):
    """A method that does not look at the model."""
    del predictor, rng
    return jnp.broadcast_to(images[:, None, :, :, 0], (*np.shape(class_ids), SIZE, SIZE))


def test_rank_correlation_is_spearmans():
    first = random.integers(0, 5, (3, 6, 7)).astype(np.float32)  # many ties
    second = first + random.normal(size=first.shape).astype(np.float32)
    value, defined = sanity.rank_correlation(first, second)
    expected = [stats.spearmanr(a.ravel(), b.ravel()).statistic for a, b in zip(first, second, strict=True)]
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    assert defined.all()
    value, _ = sanity.absolute_rank_correlation(first, -first)
    np.testing.assert_allclose(value, 1, rtol=1e-5)


def test_a_flat_map_has_no_rank_correlation():
    value, defined = sanity.rank_correlation(jnp.ones((1, 4, 4)), jnp.arange(16.0).reshape(1, 4, 4))
    assert value[0] == 0 and not defined[0]


def test_structural_similarity_of_equal_inverse_and_scaled_maps():
    maps = random.random((2, 16, 13)).astype(np.float32)
    np.testing.assert_allclose(sanity.structural_similarity(maps, 3 * maps + 1)[0], 1, atol=1e-5)
    assert (sanity.structural_similarity(maps, -maps)[0] < 0).all()
    with pytest.raises(UserError, match="at least 11 pixels"):
        sanity.structural_similarity(maps[:, :10], maps[:, :10])


def test_oriented_gradients_of_stripes_are_worked_out_by_hand():
    # Columns 0 1 2 3 ...: every inner difference is 2 across and 0 down, so all votes go to the first direction.
    ramp = jnp.broadcast_to(jnp.arange(12.0), (1, 12, 12))
    features = sanity.oriented_gradients(ramp).reshape(9, 9)  # one block of 3 x 3 cells of 4 pixels
    # Of four columns the outer cells have three with a vote, of 2: means 1.5, 2, 1.5 in each of the three rows, which
    # are above the limit of .2 after division, and so all alike.
    np.testing.assert_allclose(features[:, 0], 1 / 3, rtol=1e-5)
    assert (features[:, 1:] == 0).all()
    upright = ramp.swapaxes(1, 2)
    value, defined = sanity.hog_correlation(
        jnp.concatenate([ramp, ramp, ramp]), jnp.concatenate([ramp, -ramp, upright])
    )
    # Two sets of 9 of 81 entries that share none: -(9/81)^2 / ((9/81) (72/81)) = -1/8.
    np.testing.assert_allclose(value, [1, 1, -1 / 8], rtol=1e-4)
    assert defined.all() and not sanity.hog_correlation(ramp, jnp.zeros_like(ramp))[1][0]
    with pytest.raises(UserError, match="at least 12 pixels"):
        sanity.oriented_gradients(ramp[:, :11])


def test_structural_similarity_of_flat_maps_is_worked_out_by_hand():
    # A flat map is 0 after scaling; a step is 0 and 1. One window of 11 x 11 fits.
    step = np.broadcast_to(np.arange(11) >= 6, (1, 11, 11)).astype(np.float32)
    weights = np.exp(-0.5 * ((np.arange(11) - 5) / 1.5) ** 2)
    share = weights[6:].sum() / weights.sum()
    low, high = 0.01**2, 0.03**2
    expected = low / (share**2 + low) * high / (share * (1 - share) + high)
    np.testing.assert_allclose(sanity.structural_similarity(step, np.zeros_like(step))[0], expected, rtol=1e-4)


def redrawn_maps(names):
    """What the method says of the model with those layers redrawn."""
    current = variables(0)
    for name in names:
        current = sanity.redraw(current, variables(1), name)
    return gradient(build(current), IMAGES, CLASS_IDS)


@pytest.mark.parametrize("independent", [False, True])
def test_layers_are_redrawn_from_the_top_or_alone(independent):
    layers = ["params/head", "params/stem, statistics/stem"]
    sums = sanity.randomisation_sums(
        build, variables(0), variables(1), layers, gradient, IMAGES, CLASS_IDS, independent=independent
    )
    assert sorted(sums) == sorted(f"{name}/{layer}" for name in sanity.SIMILARITIES for layer in layers)
    before = gradient(build(variables(0)), IMAGES, CLASS_IDS)
    redrawn = [redrawn_maps(layers[:1]), redrawn_maps(layers[1:] if independent else layers)]
    for layer, after in zip(layers, redrawn, strict=True):
        expected = sanity.similarity_sums(before, after, jnp.ones((2, 2), bool))
        for name, pair in expected.items():
            np.testing.assert_allclose(sums[f"{name}/{layer}"], pair, rtol=1e-4, atol=1e-5)
            assert pair[1] == 4
    assert mean(sums["rank_correlation/params/head"]) < 0.99


def test_a_method_that_ignores_the_model_is_found_out():
    layers = ["params/head", "params/stem"]
    sums = sanity.randomisation_sums(build, variables(0), variables(1), layers, edges, IMAGES, CLASS_IDS)
    np.testing.assert_allclose([mean(pair) for pair in sums.values()], 1, atol=1e-5)


def test_random_labels_compare_two_models_and_count_what_is_asked():
    counted = np.array([[True, False], [True, True]])
    models = [build(variables(seed)) for seed in (0, 1)]
    sums = sanity.random_label_sums(*models, gradient, IMAGES, CLASS_IDS, counted=counted)
    assert {name: float(pair[1]) for name, pair in sums.items()} == dict.fromkeys(sanity.SIMILARITIES, 3)
    same = sanity.random_label_sums(models[0], models[0], gradient, IMAGES, CLASS_IDS)
    np.testing.assert_allclose([mean(pair) for pair in same.values()], 1, atol=1e-5)


def test_bad_layers_and_maps_are_named():
    model = variables(0)
    assert sanity.layer_paths(model) == ["params/head/kernel", "params/stem/kernel", "statistics/stem"]
    for layer in ("params/neck", "params/head/kernel/bias"):
        with pytest.raises(UserError, match=f"no layer '{layer}'; its arrays are params/head/kernel, params/stem"):
            sanity.redraw(model, variables(1), layer)
    other = {"params": {"head": {"kernel": np.zeros((5, 2))}}}
    with pytest.raises(UserError, match="other shapes"):
        sanity.redraw(model, other, "params/head")

    def broken(predictor, images, class_ids, *, rng=None):
        return gradient(predictor, images, class_ids).at[1].set(jnp.nan)

    with pytest.raises(UserError, match=r"of the model as it is hold NaN or infinity for images \[1\]"):
        sanity.randomisation_sums(build, model, variables(1), ["params/head"], broken, IMAGES, CLASS_IDS)
