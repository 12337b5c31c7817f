"""What a training step carries from one step to the next, and the predictor that a state makes."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from selfexplain_jax.models import masking
from selfexplain_jax.models.pretrained import load_pretrained
from selfexplain_jax.training import mesh as mesh_lib
from selfexplain_jax.types import DatasetInfo, Predictor, UserError


class TrainState(flax.struct.PyTreeNode):
    """All that a checkpoint must hold of the computation; random numbers come from the config's seed and `step`.

    step: int32 scalar, micro-batches seen. params, batch_stats: the network's variables (batch_stats may be empty).
    opt_state: Optax's. ema_params, ema_batch_stats: exponential moving averages of both; averaged parameters under
    the statistics of the present ones would be normalised by what other weights have put out.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any
    ema_params: Any
    ema_batch_stats: Any


def variables_of(params: Any, batch_stats: Any) -> dict:
    """The variable collections that `model.apply` takes."""
    return {"params": params, "batch_stats": batch_stats} if batch_stats else {"params": params}


def create_state(config, model, optimizer: optax.GradientTransformation, rng: jax.Array) -> TrainState:
    """The state at step 0; pure, so it works under `jax.eval_shape` and `jax.jit`."""
    size = config.data.image_size
    variables = model.init(rng, jnp.zeros((1, size, size, 3)), train=False)
    params, batch_stats = variables["params"], variables.get("batch_stats", {})
    return TrainState(
        step=jnp.int32(0),
        params=params,
        batch_stats=batch_stats,
        opt_state=optimizer.init(params),
        ema_params=jax.tree.map(jnp.copy, params),
        ema_batch_stats=jax.tree.map(jnp.copy, batch_stats),
    )


def abstract_state(config, model, optimizer: optax.GradientTransformation, sharding) -> TrainState:
    """Shapes and types of the state, with one sharding (or None) for all of it; nothing is computed."""
    shapes = jax.eval_shape(functools.partial(create_state, config, model, optimizer), jax.random.key(0))
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), shapes)


def state_shardings(config, shapes: TrainState, mesh: jax.sharding.Mesh) -> TrainState:
    """Where each leaf of the state lies: whole on every device, or with `config.train.shard_parameters` in parts.

    Parameters, their average and all that the optimizer keeps are split as `mesh.split_sharding` says, so that a
    parameter and its moments are split alike. Batch statistics and the step are whole.

    Args:
      config: the whole configuration.
      shapes: the state's, from `abstract_state`.
      mesh: from `mesh.make_mesh`.
    """
    everywhere = mesh_lib.replicated(mesh)
    places = jax.tree.map(lambda leaf: everywhere, shapes)
    if not config.train.shard_parameters:
        return places
    split = {
        name: jax.tree.map(lambda leaf: mesh_lib.split_sharding(leaf.shape, mesh), getattr(shapes, name))
        for name in ("params", "opt_state", "ema_params")
    }
    return places.replace(**split)


def initial_state(
    config, create: Callable[[jax.Array], TrainState], abstract: TrainState, frozen: tuple = ()
) -> TrainState:
    """The state at step 0, with the weights that `config.model.pretrained` names in place of random ones.

    With `config.explainer.start_from_classifier` they are those of the frozen classifier.

    Files are read before anything compiles. The optimizer's numbers do not depend on the values of the parameters, so
    they stay. A checkpoint holds the weights: a run that goes on reads no file of them.

    Args:
      config: the whole configuration.
      create: random key -> state, as `create_state`.
      abstract: shapes of what `create` returns.
      frozen: (variables of the frozen classifier,), of an Explainer.

    Raises:
      UserError: see `pretrained.load_pretrained`.
    """
    rng = jax.random.key(config.seed)
    if config.explainer.start_from_classifier:
        # Copies: the step takes over the memory of the state, and the classifier keeps its own.
        variables = jax.tree.map(np.array, frozen[0])
        params, batch_stats = variables["params"], variables.get("batch_stats", {})
    elif config.model.pretrained:
        params, batch_stats = load_pretrained(config.model, abstract.params, abstract.batch_stats)
    else:
        return create(rng)
    state = create(rng)

    def put(new, old):
        # What no file gives is still a shape. Each tree gets memory of its own, which the step may take over.
        return jax.device_put(np.array(new), old.sharding) if isinstance(new, np.ndarray) else old

    return state.replace(
        params=jax.tree.map(put, params, state.params),
        batch_stats=jax.tree.map(put, batch_stats, state.batch_stats),
        ema_params=jax.tree.map(put, params, state.ema_params),
        ema_batch_stats=jax.tree.map(put, batch_stats, state.ema_batch_stats),
    )


@functools.partial(jax.jit, static_argnums=0)
def apply_scores(model, variables: dict, images: jax.Array) -> jax.Array:
    """Class scores [B, C] of images [B, H, W, 3]."""
    return model.apply(variables, images, train=False)[0]


@functools.partial(jax.jit, static_argnums=0)
def apply_features(model, variables: dict, images: jax.Array) -> jax.Array:
    """Features [B, h, w, K] of images [B, H, W, 3]."""
    return model.apply(variables, images, method="features")


@functools.partial(jax.jit, static_argnums=0)
def apply_head(model, variables: dict, features: jax.Array) -> jax.Array:
    """Class scores [B, C] of features."""
    return model.apply(variables, features, method="head")


@functools.partial(jax.jit, static_argnums=0)
def apply_masks(model, variables: dict, images: jax.Array, class_ids: jax.Array) -> jax.Array:
    """Masks [B, k, H, W] of the classes asked for."""
    logit_maps = model.apply(variables, images, train=False)[1]["logit_maps"]
    return masking.class_masks(logit_maps, class_ids, images.shape[1])


@functools.partial(jax.jit, static_argnums=(0, 1))
def apply_layer(model, name: str, variables: dict, images: jax.Array) -> jax.Array:
    """Features [B, h, w, K] of the layer of that name."""
    return model.apply(variables, images, train=False)[1][name]


@functools.partial(jax.jit, static_argnums=(0, 1))
def apply_from_layer(model, name: str, variables: dict, features: jax.Array, images: jax.Array) -> jax.Array:
    """Class scores [B, C] where the layer of that name has these features; of the images only what goes around it."""
    return model.apply(variables, images, train=False, given={name: features})[0]


@functools.partial(jax.jit, static_argnums=0)
def apply_attention(model, variables: dict, images: jax.Array, offsets: jax.Array | None = None):
    """Class scores [B, C] and attention [L, B, heads, N, N], to which the offsets are added."""
    return model.apply(variables, images, offsets, method="attend")


@dataclasses.dataclass(frozen=True)
class Applied:
    """function(*leading, ...), equal to another where both parts are: predictors of one network share compiled code."""

    function: Callable
    leading: tuple

    def __call__(self, *arguments):
        return self.function(*self.leading, *arguments)


def bind(function: Callable, model, variables: dict, *leading) -> Callable:
    """function(model, *leading, variables, ...); the variables are arguments of what is compiled, not constants in it.

    A predictor of other variables therefore compiles nothing anew.
    """
    return jax.tree_util.Partial(Applied(function, (model, *leading)), variables)


def bound_to(function: Callable) -> tuple[Any, dict]:
    """Returns the network and the variables that `bind` has bound a predictor's function to.

    Raises:
      UserError: the function is another one.
    """
    if not isinstance(function, jax.tree_util.Partial) or not isinstance(function.func, Applied):
        raise UserError("Only a network of this project can be redrawn; this predictor's functions are the user's own.")
    return function.func.leading[0], function.args[0]


def with_variables(predictor: Predictor, old: dict, new: dict) -> Predictor:
    """Returns the predictor with other variables in each of its functions that is bound to `old`.

    Args:
      predictor: from `make_predictor` or `network_predictor`.
      old: the very object that `bound_to` returned.
      new: variables of the same shapes.
    """

    def replace(function):
        if isinstance(function, tuple):
            return tuple(replace(part) for part in function)
        if isinstance(function, dict):
            return {name: replace(part) for name, part in function.items()}
        if isinstance(function, jax.tree_util.Partial) and any(argument is old for argument in function.args):
            return jax.tree_util.Partial(function.func, new)
        return function

    fields = {field.name: replace(getattr(predictor, field.name)) for field in dataclasses.fields(predictor)}
    return dataclasses.replace(predictor, **fields)


def evaluated_variables(config, state: TrainState) -> dict:
    """The variables to evaluate with: the averages if `config.passes.evaluate_ema`."""
    if config.passes.evaluate_ema:
        return variables_of(state.ema_params, state.ema_batch_stats)
    return variables_of(state.params, state.batch_stats)


def make_predictor(
    config, info: DatasetInfo, model, state: TrainState, classifier: Predictor | None = None
) -> Predictor:
    """The network as pure functions, with averaged parameters if `config.passes.evaluate_ema`.

    A "self_explainer" has masks; an "explainer" has the masks of its own network and everything else of `classifier`.

    Args:
      config: the whole configuration.
      info: the dataset's.
      model, state: the network that was trained.
      classifier: the frozen one of an "explainer" (`loop.TrainResult.classifier`).

    Raises:
      UserError: an "explainer" without its classifier.
    """
    variables = evaluated_variables(config, state)
    masks = bind(apply_masks, model, variables) if config.method != "classifier" else None
    if config.method != "explainer":
        return network_predictor(config, info, model, variables, masks)
    if classifier is None:
        raise UserError("An Explainer's predictor needs its classifier: hand over TrainResult.classifier.")
    return dataclasses.replace(classifier, masks=masks)


def network_predictor(config, info: DatasetInfo, model, variables: dict, masks: Callable | None = None) -> Predictor:
    """A network and its variables as pure functions; features and head if they lie in the plane of the image."""
    spatial = getattr(model, "has_spatial_features", False)

    def bound(function, *leading):
        return bind(function, model, variables, *leading)

    return Predictor(
        scores=bound(apply_scores),
        probabilities=jax.nn.softmax if config.model.link == "softmax" else jax.nn.sigmoid,
        class_names=info.class_names,
        image_size=info.image_size,
        features=bound(apply_features) if spatial else None,
        head=bound(apply_head) if spatial else None,
        masks=masks,
        layers={
            name: (bound(apply_layer, name), bound(apply_from_layer, name)) for name in getattr(model, "layers", ())
        },
        attention=bound(apply_attention) if getattr(model, "has_attention", False) else None,
        image_range=image_range(config.data),
    )


def image_range(data: ml_collections.ConfigDict) -> tuple[float, float]:
    """What black and white become: the lowest and the highest value of a normalised image."""
    pairs = list(zip(data.mean, data.std, strict=True))
    return min((0 - mean) / std for mean, std in pairs), max((255 - mean) / std for mean, std in pairs)
