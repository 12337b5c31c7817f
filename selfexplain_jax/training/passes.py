"""The passes of one step: the image; the object and the background that its masks leave; masks that know nothing.

`run_passes` fills the `outputs` that the objective's terms read (see objectives/terms.py).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from selfexplain_jax.models import masking, pooling
from selfexplain_jax.models.map_head import shrink
from selfexplain_jax.objectives.compose import first_step
from selfexplain_jax.training.state import variables_of
from selfexplain_jax.types import UserError

PASS_WEIGHTS = ("live", "stop_gradient", "ema")
EVALUATOR_MASKS = ("swapped", "complement", "blobs")
EXPLANATION_TERMS = ("object", "background", "evaluator")
SCORE_TERMS = ("classification", "ranking")
"""Terms that need the scores of the image alone, and no map."""
DRAWN = ("logit_maps", "target_logits", "non_target_logits")
"""What of a network's endpoints the terms read."""
REMATERIALISE = ("none", "elementwise", "passes")
METHODS = ("self_explainer", "classifier", "explainer")


def check_method(config, model) -> None:
    """Holds `config.method` against the network and the objective.

    Raises:
      UserError: unknown method, a network without maps where masks are asked for, a classifier with terms that need
        masks, or an Explainer with terms that train a classifier, or with none that asks it.
    """
    if config.method not in METHODS:
        raise UserError(f"config.method = {config.method!r} is unknown. Choose one of {METHODS}.")
    if config.method != "classifier" and not model.draws_maps:
        what = "explain itself" if config.method == "self_explainer" else "explain a classifier"
        raise UserError(
            f"config.model.name = {config.model.name!r} draws no maps, so it cannot {what}. Set config.method "
            '= "classifier", or config.model.name = "encoder_unet" with it as config.model.encoder.'
        )
    training = [name for name in config.objective if name in (*SCORE_TERMS, "evaluator")]
    if config.method == "explainer" and training:
        raise UserError(f"config.method = 'explainer' keeps its classifier as it is: {training} would train it.")
    if config.method == "explainer" and not {"object", "background"} & set(config.objective):
        raise UserError("config.method = 'explainer' needs the term 'object' or 'background': they ask the classifier.")
    surplus = [name for name in config.objective if name not in SCORE_TERMS]
    if config.method == "classifier" and surplus:
        raise UserError(f"config.method = 'classifier' has no masks for {surplus}: the terms are {SCORE_TERMS}.")


def validate_passes(config) -> None:
    """Checks `config.passes`, and `config.model.rematerialise`.

    Raises:
      UserError: an unknown choice, or a number out of range.
    """
    passes = config.passes
    if passes.weights not in PASS_WEIGHTS:
        raise UserError(f"config.passes.weights = {passes.weights!r} is unknown. Choose one of {PASS_WEIGHTS}.")
    if config.model.rematerialise not in REMATERIALISE:
        raise UserError(
            f"config.model.rematerialise = {config.model.rematerialise!r} is unknown. Choose one of {REMATERIALISE}."
        )
    unknown = [name for name in passes.evaluator_masks if name not in EVALUATOR_MASKS]
    if unknown or not passes.evaluator_masks:
        raise UserError(f"config.passes.evaluator_masks = {passes.evaluator_masks!r}: choose from {EVALUATOR_MASKS}.")
    masking.check_infills(passes.infills, "config.passes.infills")
    masking.check_infills((config.evaluation.infill,), "config.evaluation.infill")
    temperatures = (config.model.initial_temperature, config.model.pooling_temperature)
    if config.model.temperature_steps < 0 or (
        config.model.temperature_steps > 0 and not 0 < min(temperatures) <= max(temperatures) < float("inf")
    ):
        raise UserError(
            "config.model.temperature_steps must be 0 or more, and then both temperatures positive and finite."
        )
    borrowed = {"swapped", "complement"} & set(passes.evaluator_masks) | {"other_image"} & set(passes.infills)
    if config.train.batch_size < 2 and first_step(config.objective, EXPLANATION_TERMS) is not None and borrowed:
        raise UserError(
            f"{sorted(borrowed)} need another image of the batch: config.train.batch_size must be 2 or more."
        )
    if not 0 <= passes.ema_decay < 1:
        raise UserError(f"config.passes.ema_decay = {passes.ema_decay} must be in [0, 1).")
    size = config.data.image_size
    if passes.image_size and not (0 < passes.image_size <= size and passes.image_size % 32 == size % 32 == 0):
        raise UserError(
            f"config.passes.image_size = {passes.image_size} must be 0, or a multiple of 32 up to "
            f"config.data.image_size = {size}, itself a multiple of 32."
        )
    if passes.image_size and config.method == "explainer":
        raise UserError("config.passes.image_size: an Explainer's classifier sees whole images: set it to 0.")
    if passes.classes_per_image < 0:
        raise UserError(f"config.passes.classes_per_image = {passes.classes_per_image} must be 0 or more.")


def explanations_start(config) -> int:
    """The first step at which a term of the object, background or evaluator pass counts.

    Before it these passes need not be computed, at a third of the cost; the loop compiles a step for either case.
    """
    start = first_step(config.objective, EXPLANATION_TERMS)
    return config.train.steps if start is None else start


def pool_temperature(step: jax.Array, config) -> jax.Array | None:
    """The pool's temperature at a step while `config.model.temperature_steps` anneal it; None: the model's own."""
    options = config.model
    if options.temperature_steps == 0:
        return None
    return pooling.annealed(step, options.initial_temperature, options.pooling_temperature, options.temperature_steps)


def mask_outputs(drawn: dict[str, jax.Array], images: jax.Array, label: jax.Array) -> dict[str, jax.Array]:
    """What the network has drawn, target and non-target mask, and the image, all at the maps' resolution."""
    if "target_logits" not in drawn:
        drawn = drawn | masking.class_maxima(drawn["logit_maps"], label)
    target, non_target = drawn["target_logits"], drawn["non_target_logits"]
    return drawn | {
        "target_mask": jax.nn.sigmoid(target),
        "non_target_mask": jax.nn.sigmoid(non_target),
        "image": shrink(images, images.shape[1] // target.shape[1]),
    }


def shown_classes(label: jax.Array, count: int, rng: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Draws `count` present classes per image without replacement.

    Returns:
      class ids int32 [B, count], and whether each is present [B, count] (0 where the image has fewer classes).
    """
    noise = jax.random.uniform(rng, label.shape)
    order = jnp.where(label > 0, 1.0 + noise, 0.0)
    values, class_ids = jax.lax.top_k(order, count)
    return class_ids, (values > 0).astype(label.dtype)


def object_masks(outputs: dict, label: jax.Array, count: int, size: int, rng: jax.Array):
    """Masks of the object pass: the target mask (`count` 0) or those of `count` present classes, one at a time.

    Returns:
      masks [B, K, H, W], the label of what each shows [B, K, C], and whether it shows anything [B, K].
    """
    if count == 0:
        masks = masking.resize_mask(outputs["target_mask"], size)[:, None]
        return masks, label[:, None, :], jnp.any(label > 0, axis=1)[:, None].astype(label.dtype)
    class_ids, valid = shown_classes(label, min(count, label.shape[1]), rng)
    masks = masking.class_masks(outputs["logit_maps"], class_ids, size)
    return masks, jax.nn.one_hot(class_ids, label.shape[1]) * valid[..., None], valid


def evaluator_mask(names: tuple[str, ...], masks: jax.Array, rng: jax.Array) -> jax.Array:
    """A mask per image that knows nothing of its label, its kind drawn from `names`: [B, H, W], no gradient.

    swapped: the target mask of another image of the batch; complement: 1 minus that; blobs: `masking.blob_masks`.
    """
    kind_key, shift_key, blob_key = jax.random.split(rng, 3)
    batch, size, _ = masks.shape
    masks = jax.lax.stop_gradient(masks)
    swapped = masking.of_another_image(masks, shift_key)
    made = {"swapped": lambda: swapped, "complement": lambda: 1.0 - swapped}
    made["blobs"] = lambda: masking.blob_masks(blob_key, batch, size)
    kind = jax.random.randint(kind_key, (batch, 1, 1), 0, len(names))
    return jnp.select([kind == i for i in range(len(names))], [made[name]() for name in names])


def explanation_passes(apply, live, frozen, outputs: dict, batch: dict, config, rng: jax.Array) -> dict:
    """Object and background pass as one batch (with `frozen`), and the evaluator pass (with `live` variables).

    What no term asks for is left out.
    """
    passes, objective = config.passes, config.objective
    label, size = batch["label"], passes.image_size or batch["image"].shape[1]
    images = masking.resize_maps(batch["image"], size)
    object_key, infill_key, evaluator_key = jax.random.split(rng, 3)
    harden = masking.harden if passes.hard_masks else lambda mask: mask
    target = masking.resize_mask(outputs["target_mask"], size)  # [B, H, W]
    filling = masking.random_infill(passes.infills, images, infill_key, target)
    parts, results = {}, {}
    if "object" in objective:
        masks, isolated, valid = object_masks(outputs, label, passes.classes_per_image, size, object_key)
        parts["object"] = masking.isolate(images[:, None], harden(masks), filling[:, None])  # [B, K, H, W, 3]
        results |= {"object_label": isolated, "object_valid": valid}
    if "background" in objective:
        parts["background"] = masking.isolate(images, 1.0 - harden(target), filling)[:, None]  # [B, 1, H, W, 3]
    if parts:
        # The parts of an image side by side: one kind behind the other would have to be sent to other devices.
        shown = jnp.concatenate(list(parts.values()), axis=1)
        scores = apply(frozen, shown.reshape(-1, *images.shape[1:]))  # [B (K + 1), C]
        scores = scores.reshape(*shown.shape[:2], -1)  # [B, K + 1, C]
        if "object" in parts:
            results["object_scores"] = scores[:, : parts["object"].shape[1]]  # [B, K, C]
        if "background" in parts:
            results["background_scores"] = scores[:, -1]
    if "evaluator" in objective:
        mask = evaluator_mask(tuple(passes.evaluator_masks), target, evaluator_key)
        # The same draw, but where a filling would show what the image's own mask, and with it its label, has cut out.
        filling = masking.random_infill(passes.infills, images, infill_key, target, own=False)
        results["evaluator_scores"] = apply(live, masking.isolate(images, mask, filling))
    return results


def needs_scores(config) -> bool:
    """Whether a term of an Explainer asks what its classifier says of the image alone."""
    return config.objective.get("object", {}).get("target", "absolute") == "relative"


def rematerialised(function, how: str):
    """A pass of the network that keeps less for its gradient, by `config.model.rematerialise`; the same numbers."""
    if how == "none":
        return function
    # Convolutions and products are kept: what is elementwise between them is cheap to compute again.
    return jax.checkpoint(function, policy=jax.checkpoint_policies.dots_saveable if how == "elementwise" else None)


def run_passes(
    params, state, batch: dict, rng: jax.Array, *, config, model, explain: bool, classify=None
) -> tuple[dict, dict]:
    """All passes of one step; a classifier has the image pass alone, and scores for its only output.

    The image and evaluator passes use `params`; the object and background passes those that `config.passes.weights`
    names. Without `explain` there is the image pass alone.

    An Explainer draws the masks with `params`, and `classify`, images [B, H, W, 3] -> scores [B, C], answers in all
    passes: no gradient reaches it. Its answer to the image alone is there if a term needs it.

    Returns:
      `outputs` for the terms, and the new batch statistics (those of the image pass; the other passes use the running
      ones).
    """
    temperature = pool_temperature(state.step, config)
    how = config.model.rematerialise
    if config.train.backbone_rate == 0 and "backbone" in params:
        # What is not trained needs no gradient of its weights, and in the image pass none of its features either.
        params = params | {"backbone": jax.lax.stop_gradient(params["backbone"])}

    # A network that takes the label keeps the maxima over its classes alone, where these are many.
    takes_label = config.method != "classifier" and getattr(model, "takes_label", False)

    def image_pass(params, images, label):
        (scores, endpoints), updates = model.apply(
            variables_of(params, state.batch_stats),
            images,
            train=True,
            temperature=temperature,
            mutable=["batch_stats"],
            **({"label": label} if takes_label else {}),
        )
        return scores, {name: endpoints[name] for name in DRAWN if name in endpoints}, updates

    def scores_pass(variables, images):
        if classify is not None:
            return classify(images)
        return model.apply(variables, images, train=False, temperature=temperature)[0]

    scores, drawn, updates = rematerialised(image_pass, how)(params, batch["image"], batch["label"])
    apply = rematerialised(scores_pass, how)
    outputs = {"scores": scores}
    if config.method == "explainer":
        outputs = {"scores": classify(batch["image"])} if needs_scores(config) else {}
    if config.method != "classifier":
        outputs |= mask_outputs(drawn, batch["image"], batch["label"])
    live = variables_of(params, state.batch_stats)
    frozen = {
        "live": lambda: live,
        "stop_gradient": lambda: jax.lax.stop_gradient(live),
        "ema": lambda: variables_of(state.ema_params, state.ema_batch_stats),
    }[config.passes.weights]()
    if explain:
        outputs |= explanation_passes(apply, live, frozen, outputs, batch, config, rng)
    return outputs, updates.get("batch_stats", state.batch_stats)
