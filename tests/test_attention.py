"""Attention methods on attention whose relevance is worked out in numpy, and on this project's transformer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from goldens import formula

from selfexplain_jax import attribution
from selfexplain_jax.attribution.attention import class_token_row
from selfexplain_jax.models.vit import VisionTransformer
from selfexplain_jax.types import UserError

SIZE, TOKENS = 4, 5
IMAGES = np.ones((1, SIZE, SIZE, 3), np.float32)
IDS = np.array([[1, 0]])
ATTENTION = np.random.default_rng(0).dirichlet(np.ones(TOKENS), size=(3, 1, 2, TOKENS)).astype(np.float32)
"""Three blocks, one image, two heads: [3, 1, 2, N, N]."""
SLOPES = np.random.default_rng(1).normal(size=(2, *ATTENTION.shape)).astype(np.float32)
"""dz_c/dA of the two classes."""


def attention(images, offsets=None):
    """Scores that are linear in the attention, which looks at no image."""
    del images
    seen = jnp.asarray(ATTENTION) + (0.0 if offsets is None else offsets)
    return jnp.einsum("clbhnm,lbhnm->bc", SLOPES, seen), seen


def predictor_of(attention):
    return attribution.build_predictor(
        lambda images: images.mean(axis=(1, 2))[:, :2], class_names=2, image_size=SIZE, attention=attention
    )


def cells_of(maps):
    """[B, k, 4] from maps at image size: the corners of a bilinear resize by 2 are the cells' own values."""
    return np.asarray(maps)[:, :, :: SIZE - 1, :: SIZE - 1].reshape(*maps.shape[:2], 4)


def test_rollout_is_the_product_of_all_blocks_and_the_same_for_every_class():
    cells = cells_of(attribution.METHODS["attention_rollout"](predictor_of(attention), IMAGES, IDS))
    first, second, third = 0.5 * ATTENTION[:, 0].mean(axis=1) + 0.5 * np.eye(TOKENS)
    product = third @ second @ first
    assert product[0].sum() == pytest.approx(1, rel=1e-5)
    np.testing.assert_allclose(cells[0], [product[0, 1:]] * 2, rtol=1e-5)


def test_relevance_grows_block_by_block_for_each_class():
    cells = cells_of(attribution.METHODS["attention_relevance"](predictor_of(attention), IMAGES, IDS))
    for place, number in enumerate(IDS[0]):
        relevance = np.eye(TOKENS)
        for block in range(3):
            weighted = np.maximum(SLOPES[number, block, 0] * ATTENTION[block, 0], 0).mean(axis=0)
            relevance = relevance + weighted @ relevance
        np.testing.assert_allclose(cells[0, place], relevance[0, 1:], rtol=1e-4)


def test_row_of_a_product_by_hand():
    matrices = np.array([[[1.0, 2.0], [3.0, 4.0]], [[0.0, 1.0], [1.0, 0.0]]], np.float32)
    # M_2 M_1 swaps the rows of M_1.
    np.testing.assert_array_equal(class_token_row(jnp.asarray(matrices)), [3, 4])


def test_offsets_of_the_transformer_give_the_gradient_of_its_attention():
    module = VisionTransformer(3, patch=8, width=8, depth=2, heads=2)
    images = formula.images(1, 16)
    variables = jax.jit(module.init)(jax.random.key(0), images)

    @jax.jit
    def attend(offsets):
        return module.apply(variables, images, offsets, method="attend")

    zero = jnp.zeros((2, 1, 2, TOKENS, TOKENS))
    scores, seen = attend(zero)
    plain, endpoints = jax.jit(module.apply)(variables, images)
    np.testing.assert_allclose(scores, plain, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(seen[1], endpoints["attention1"], rtol=1e-5)
    # A step along the gradient changes the score as the gradient says.
    gradient = jax.jit(jax.grad(lambda offsets: attend(offsets)[0][0, 1]))(zero)
    step = 1e-2 * gradient / jnp.linalg.norm(gradient)
    change = attend(step)[0][0, 1] - attend(-step)[0][0, 1]
    assert float(change) == pytest.approx(2e-2 * float(jnp.linalg.norm(gradient)), rel=2e-2)
    assert float(jnp.abs(gradient[0]).max()) > 0 < float(jnp.abs(gradient[1]).max())


def test_what_is_no_attention_over_a_square_of_patches_is_refused():
    for name in ("attention_rollout", "attention_relevance"):
        method = attribution.METHODS[name]
        with pytest.raises(UserError, match=f"'{name}' needs a transformer"):
            method(predictor_of(None), IMAGES, IDS)
        with pytest.raises(UserError, match="a class token and 3 patches, which is no square"):
            method(predictor_of(lambda x, o=None: (x[:, 0, 0, :2], jnp.ones((2, 1, 1, 4, 4)))), IMAGES, IDS)
        with pytest.raises(UserError, match=r"\[L, B, heads, N, N\]; for 1 images it is \(1, 2, 5, 5\)"):
            method(predictor_of(lambda x, o=None: (x[:, 0, 0, :2], jnp.ones((1, 2, 5, 5)))), IMAGES, IDS)
