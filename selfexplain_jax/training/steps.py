"""The training step: one pure function that loop, compile check and benchmark all use."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import optax

from selfexplain_jax.models import masking
from selfexplain_jax.objectives.compose import total_objective
from selfexplain_jax.training.passes import EXPLANATION_TERMS, run_passes
from selfexplain_jax.training.state import TrainState, evaluated_variables


def is_correct(scores: jax.Array, label: jax.Array) -> jax.Array:
    """[B] 1 where the prediction is right: the highest score if one class is present, else exactly the classes > 0."""
    single = jnp.take_along_axis(label, scores.argmax(axis=-1)[:, None], axis=-1)[:, 0] > 0
    exact = jnp.all((scores > 0) == (label > 0), axis=-1)
    return jnp.where(label.sum(axis=-1) == 1, single, exact).astype(jnp.float32)


def loss_and_logs(
    params,
    state: TrainState,
    batch: dict,
    rng: jax.Array,
    *,
    config,
    model,
    explain: bool,
    classify=None,
    positive_weights: tuple[float, ...] = (),
):
    """The objective of one batch, and what is logged of it. `classify`: see `run_passes`; the rest: `train_step`."""
    outputs, batch_stats = run_passes(
        params, state, batch, rng, config=config, model=model, explain=explain, classify=classify
    )
    if positive_weights:
        outputs["positive_weights"] = jnp.asarray(positive_weights, jnp.float32)
    objective = {
        name: options for name, options in config.objective.items() if explain or name not in EXPLANATION_TERMS
    }
    loss, means = total_objective(outputs, batch["label"], batch["valid"], state.step, objective, config.model.link)
    count = jnp.maximum(batch["valid"].sum(), 1.0)
    logs = {f"term/{name}": value for name, value in means.items()}
    if config.method != "explainer":
        logs["accuracy"] = (batch["valid"] * is_correct(outputs["scores"], batch["label"])).sum() / count
    elif "object_scores" in outputs:
        # Of the classifier that does not change, on what the masks leave.
        correct = is_correct(outputs["object_scores"][:, 0], outputs["object_label"][:, 0])
        logs["accuracy"] = (batch["valid"] * correct).sum() / count
    if "target_mask" in outputs:
        logs["mask_area"] = (batch["valid"] * outputs["target_mask"].mean(axis=(1, 2))).sum() / count
    return loss, (logs, batch_stats)


def train_step(
    state: TrainState,
    batch: dict,
    frozen=None,
    *,
    config,
    model,
    optimizer,
    explain: bool = True,
    scores=None,
    positive_weights: tuple[float, ...] = (),
    places: TrainState | None = None,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One micro-batch: passes, objective, gradient, update, moving average.

    Args:
      state: the state before; its `step` and the config's seed determine every random number.
      batch: see `types.Batch`.
      frozen: the variables of an Explainer's classifier, which no gradient, no optimizer and no checkpoint sees.
      scores: static; (frozen, images [B, H, W, 3]) -> scores [B, C] of that classifier.
      config, model, optimizer: static; the same objects for every step.
      explain: static; False leaves out the passes behind the image's and their terms, for the steps before
        `passes.explanations_start(config)`.
      positive_weights: static; one for each class, or () for none. See `terms.classification`.
      places: static; the shardings of a state that is split over the devices, `state.state_shardings`; None: it is not.

    Returns:
      The state after, and float32 scalars: "loss", "accuracy" (of an Explainer's classifier on the objects alone),
      "gradient_norm", "term/NAME" of each term, and "mask_area" where there are masks.
    """
    rng = jax.random.fold_in(jax.random.key(config.seed), state.step)
    gradient_of = jax.value_and_grad(loss_and_logs, has_aux=True)
    seen = state if places is None else put_together(state, places, config)
    (loss, (logs, batch_stats)), gradient = gradient_of(
        seen.params,
        seen,
        batch,
        rng,
        config=config,
        model=model,
        explain=explain,
        classify=None if scores is None else functools.partial(scores, frozen),
        positive_weights=positive_weights,
    )
    if places is not None:
        # Each device keeps the sum of its own part alone: a reduce-scatter, where XLA has one. Whole first, so that the
        # gradients of several passes are added before they are sent.
        gradient = jax.lax.with_sharding_constraint(gradient, places.step)
        gradient = jax.lax.with_sharding_constraint(gradient, places.params)
    updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    # The average starts at the initial weights; the ramp lets it forget them.
    decay = jnp.minimum(config.passes.ema_decay, (1.0 + state.step) / (10.0 + state.step))
    ema_params = optax.incremental_update(params, state.ema_params, 1.0 - decay)
    ema_batch_stats = optax.incremental_update(batch_stats, state.ema_batch_stats, 1.0 - decay)
    logs |= {"loss": loss, "gradient_norm": optax.tree.norm(gradient)}
    return TrainState(state.step + 1, params, batch_stats, opt_state, ema_params, ema_batch_stats), logs


def put_together(state: TrainState, places: TrainState, config) -> TrainState:
    """The state with whole parameters on every device, and the whole average where a pass uses it.

    Said here, once, since the compiler left to itself may rather split activations by channel and send those around.
    """
    everywhere = places.step
    names = ("params", "ema_params") if config.passes.weights == "ema" else ("params",)
    return state.replace(**{name: jax.lax.with_sharding_constraint(getattr(state, name), everywhere) for name in names})


def denormalise(images: jax.Array, config) -> jax.Array:
    """Normalised images back to [0, 1]."""
    mean, std = jnp.asarray(config.data.mean, jnp.float32), jnp.asarray(config.data.std, jnp.float32)
    return jnp.clip((images * std.reshape(1, 1, 1, 3) + mean.reshape(1, 1, 1, 3)) / 255.0, 0.0, 1.0)


PICTURES = ("image", "target_mask", "object", "background", "non_target_mask")
"""What `mask_pictures` draws, in the order in which one reads it (jit sorts names)."""


def mask_pictures(state: TrainState, batch: dict, *, config, model) -> dict[str, jax.Array]:
    """Masks as they form, for pictures.

    Returns:
      image, object, background [B, H, W, 3] in [0, 1]; target_mask, non_target_mask [B, H, W] in [0, 1].
    """
    images, label = batch["image"], batch["label"]
    logit_maps = model.apply(evaluated_variables(config, state), images, train=False)[1]["logit_maps"]
    target = masking.target_mask(logit_maps, label, images.shape[1])
    return {
        "image": denormalise(images, config),
        "target_mask": target,
        "non_target_mask": masking.non_target_mask(logit_maps, label, images.shape[1]),
        "object": denormalise(masking.isolate(images, target, jnp.zeros_like(images)), config),
        "background": denormalise(masking.isolate(images, 1.0 - target, jnp.zeros_like(images)), config),
    }
