"""The U-Net: its rearrangements, the shapes it promises, what it refuses, and that C full-size maps never exist."""

import functools
import math

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from selfexplain_jax.config import base_config
from selfexplain_jax.models import build_model, map_head, masking, unet
from selfexplain_jax.models.pooling import POOLS, pool
from selfexplain_jax.training import steps
from selfexplain_jax.training.optimizer import build_optimizer
from selfexplain_jax.training.state import create_state
from selfexplain_jax.types import DatasetInfo, UserError

SIZE, BATCH = 16, 4


def dataset_info(num_classes=3, image_size=SIZE):
    names = tuple(str(i) for i in range(num_classes))
    return DatasetInfo("fake", num_classes, names, multilabel=False, image_size=image_size, has_masks=False)


def tiny_config(**model):
    config = base_config()
    config.data.image_size = SIZE
    config.model.widths = (8, 8)
    config.model.encoder_depth = 1
    config.model.norm = "group"
    config.model.update(model)
    return config


def shapes_of(model, size=SIZE):
    """(scores, endpoints) as shapes; nothing is computed."""
    images = jax.ShapeDtypeStruct((BATCH, size, size, 3), jnp.float32)
    return jax.eval_shape(lambda images: model.init_with_output(jax.random.key(0), images)[0], images)


# ---- Rearrangements --------------------------------------------------------------------------------------------------


def test_space_to_depth_puts_a_block_into_a_cell_row_by_row():
    cells = unet.space_to_depth(np.arange(16.0).reshape(1, 4, 4, 1), 2)
    np.testing.assert_array_equal(cells[0, 0], [[0, 1, 4, 5], [2, 3, 6, 7]])
    np.testing.assert_array_equal(cells[0, 1], [[8, 9, 12, 13], [10, 11, 14, 15]])


@pytest.mark.parametrize("factor", [1, 2, 4])
def test_depth_to_space_is_the_inverse(factor):
    x = np.arange(2 * 4 * 8 * 3.0).reshape(2, 4, 8, 3)
    cells = unet.space_to_depth(x, factor)
    assert cells.shape == (2, 4 // factor, 8 // factor, 3 * factor**2)
    np.testing.assert_array_equal(map_head.depth_to_space(cells, factor), x)


def test_upsampling_repeats_each_cell():
    cells = np.arange(4.0).reshape(1, 2, 2, 1)
    expected = [[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 3, 3], [2, 2, 3, 3]]
    np.testing.assert_array_equal(unet.upsample_nearest(cells)[0, :, :, 0], expected)


def test_local_contrast_forgets_brightness_and_contrast():
    rng = np.random.default_rng(0)
    images = rng.normal(size=(1, 32, 32, 3)).astype(np.float32)
    contrast = jax.jit(unet.local_contrast)
    seen = np.asarray(contrast(images))
    assert 0.7 < seen.std() < 1.1
    np.testing.assert_allclose(contrast(images + 5.0), seen, atol=1e-3)
    # The floor is a tenth: ten times the contrast is seen as a tenth more at most.
    assert 1.0 < np.asarray(contrast(10 * images)).std() / seen.std() < 1.12
    np.testing.assert_allclose(contrast(np.full_like(images, 3.0)), np.zeros(images.shape), atol=1e-4)


# ---- Shapes and scores -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stem, stride", [(1, 1), (2, 1), (4, 2), (4, 4), (8, 1), (8, 8)])
def test_maps_have_the_mask_stride(stem, stride):
    config = tiny_config(stem_stride=stem, mask_stride=stride)
    scores, endpoints = shapes_of(build_model(config, dataset_info()))
    assert scores.shape == (BATCH, 3) and scores.dtype == jnp.float32
    assert endpoints["logit_maps"].shape == (BATCH, SIZE // stride, SIZE // stride, 3)
    assert endpoints["logit_maps"].dtype == jnp.float32


@pytest.mark.parametrize("refine_width, features", [(0, (4, 4, 8)), (6, (8, 8, 6))])
def test_a_refining_level_works_at_the_mask_stride(refine_width, features):
    scores, endpoints = shapes_of(build_model(tiny_config(refine_width=refine_width), dataset_info()))
    assert scores.shape == (BATCH, 3) and endpoints["logit_maps"].shape == (BATCH, 8, 8, 3)
    assert endpoints["features"].shape == (BATCH, *features)


@pytest.mark.parametrize("widths, size", [((8,), 4), ((8, 8, 8), 32), ((4, 8, 16, 16), 64)], ids=str)
def test_levels_halve_the_resolution(widths, size):
    config = tiny_config(widths=widths)
    config.data.image_size = size
    scores, endpoints = shapes_of(build_model(config, dataset_info(image_size=size)), size)
    assert scores.shape == (BATCH, 3) and endpoints["logit_maps"].shape == (BATCH, size // 2, size // 2, 3)


@pytest.fixture(scope="module")
def applied():
    """Images, variables, and what the tiny network says of them with the statistics of the batch and without."""
    model = build_model(tiny_config(norm="batch"), dataset_info())
    images = np.random.default_rng(0).normal(size=(BATCH, SIZE, SIZE, 3)).astype(np.float32)
    variables = jax.jit(model.init)(jax.random.key(0), images)
    evaluate = jax.jit(lambda images: model.apply(variables, images))
    train = jax.jit(lambda images: model.apply(variables, images, train=True, mutable=["batch_stats"]))
    return images, variables, evaluate, train


def test_scores_are_the_pool_of_the_maps_and_nothing_else(applied):
    images, _, evaluate, _ = applied
    scores, endpoints = evaluate(images)
    np.testing.assert_allclose(scores, pool(endpoints["logit_maps"], "softmax", 1.0), rtol=1e-5)
    assert jnp.all(jnp.isfinite(scores))


def test_an_image_is_judged_alone_unless_training(applied):
    images, variables, evaluate, train = applied
    changed = np.concatenate([images[:1], 3.0 + images[1:]])
    np.testing.assert_allclose(evaluate(changed)[0][0], evaluate(images)[0][0], rtol=1e-5)
    (scores, _), updates = train(images)
    before, after = jax.tree.leaves(variables["batch_stats"]), jax.tree.leaves(updates["batch_stats"])
    assert all(not np.array_equal(a, b) for a, b in zip(before, after, strict=True))
    assert not np.allclose(scores, evaluate(images)[0])


# ---- No array with all classes at full resolution --------------------------------------------------------------------


def intermediate_shapes(jaxpr):
    """Shapes of every value that a jaxpr and the jaxprs inside it compute."""
    for equation in jaxpr.eqns:
        for variable in equation.outvars:
            yield tuple(variable.aval.shape)
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else (value,):
                inner = getattr(inner, "jaxpr", inner)  # Of a closed one.
                if hasattr(inner, "eqns"):
                    yield from intermediate_shapes(inner)


def largest(function, *arguments):
    """Elements of the largest intermediate array."""
    return max(math.prod(shape) for shape in intermediate_shapes(jax.make_jaxpr(function)(*arguments).jaxpr))


def test_the_walk_sees_arrays_inside_inner_programs():
    maps, flag = jax.ShapeDtypeStruct((2, 4, 4, 5), jnp.float32), jax.ShapeDtypeStruct((), bool)
    inside = jax.jit(lambda maps: masking.resize_maps(maps, 8).sum())

    def outside(flag, maps):
        return jax.lax.cond(flag, inside, jnp.sum, maps)

    assert largest(outside, flag, maps) >= 2 * 8 * 8 * 5
    assert largest(jax.grad(outside, argnums=1), flag, maps) >= 2 * 8 * 8 * 5


@pytest.mark.parametrize("classes_per_image", [0, 2])
def test_a_thousand_classes_are_never_at_full_resolution(classes_per_image):
    classes = 1000
    config = tiny_config()
    config.passes.infills = tuple(masking.INFILLS)
    config.passes.classes_per_image = classes_per_image
    for term in ("object", "background", "evaluator", "area_target", "area_non_target", "area_bounds", "smoothness"):
        config.objective[term] = {"weight": 1.0}
    model = build_model(config, dataset_info(classes))
    optimizer, _ = build_optimizer(config)
    state = jax.eval_shape(lambda rng: create_state(config, model, optimizer, rng), jax.random.key(0))
    batch = {
        "image": jax.ShapeDtypeStruct((BATCH, SIZE, SIZE, 3), jnp.float32),
        "label": jax.ShapeDtypeStruct((BATCH, classes), jnp.float32),
        "mask": jax.ShapeDtypeStruct((BATCH, SIZE, SIZE), jnp.uint8),
        "valid": jax.ShapeDtypeStruct((BATCH,), jnp.float32),
        "index": jax.ShapeDtypeStruct((BATCH,), jnp.int32),
    }
    frozen = ml_collections.FrozenConfigDict(config)
    step = functools.partial(steps.train_step, config=frozen, model=model, optimizer=optimizer)
    shapes = set(intermediate_shapes(jax.make_jaxpr(step)(state, batch).jaxpr))
    assert (BATCH, SIZE // 2, SIZE // 2, classes) in shapes
    # The maps of all passes that run as one batch are the largest: images times passes at the mask stride.
    assert max(math.prod(shape) for shape in shapes) < BATCH * SIZE * SIZE * classes
    assert not [shape for shape in shapes if classes in shape and shape.count(SIZE) >= 2]


# ---- Refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options, message",
    [
        ({"name": "resnet0"}, "config.model.name = 'resnet0' is unknown.*unet"),
        ({"norm": "layer"}, "config.model.norm = 'layer' is unknown.*group.*batch.*none"),
        ({"pooling": "median"}, f"config.model.pooling = 'median' is unknown.*{sorted(POOLS)[0]}"),
        ({"stem_stride": 3}, "stem_stride = 3 with mask_stride = 2 is not possible.*1, 2, 4, 8"),
        ({"stem_stride": 16}, "stem_stride = 16"),
        ({"stem_stride": 2, "mask_stride": 4}, "the stem's is not the smaller"),
        ({"edge_distances": (2, 0)}, "edge_distances = \\(2, 0\\) must be whole numbers of cells"),
        ({"edge_scale": 0.0}, "edge_scale = 0.0 above 0"),
        ({"widths": ()}, "config.model.widths = \\(\\) must be one or more whole numbers"),
        ({"widths": (8, 0)}, "config.model.widths = \\(8, 0\\) must be one or more whole numbers"),
        ({"widths": (8, "a")}, "config.model.widths = .*must be one or more whole numbers"),
        ({"widths": (8, 12)}, "config.model.widths = \\(8, 12\\) must be multiples of 8"),
        ({"encoder_depth": -1}, "encoder_depth = -1 and refine_width = 0 must be 0 or more"),
        ({"refine_width": -1}, "refine_width = -1 must be 0 or more"),
        ({"decoder_depth": -1}, "decoder_depth = -1 and map_blur = 0.0 must be 0 or more"),
        ({"map_blur": -0.5}, "map_blur = -0.5 must be 0 or more"),
        ({"pooling_temperature": float("inf")}, "pooling_temperature = inf must be a finite number.*'max'"),
        ({"pooling_temperature": float("nan")}, "pooling_temperature = nan must be a finite number"),
        ({"edge_distances": ("a",)}, "edge_distances = .*must be whole numbers of cells"),
        ({"widths": (8, 8, 8, 8)}, "Image size 16 is not divisible by 32.*stem_stride 4 and 4 levels.*multiple of 32"),
    ],
    ids=str,
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        build_model(tiny_config(**options), dataset_info())


@pytest.mark.parametrize("norm", unet.NORMS)
def test_norms_keep_their_statistics_where_the_state_looks(norm):
    model = build_model(tiny_config(norm=norm), dataset_info())
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, SIZE, SIZE, 3)))
    assert set(variables) == ({"params", "batch_stats"} if norm == "batch" else {"params"})
