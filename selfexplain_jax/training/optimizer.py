"""The optimizer that the config describes, by Optax."""

from __future__ import annotations

import jax
import optax

from selfexplain_jax.types import UserError

OPTIMIZERS = ("adamw", "adam")
SCHEDULES = ("constant", "cosine", "linear")


def build_schedule(train) -> optax.Schedule:
    """Linear warm-up from 0 to `train.learning_rate`, then constant, cosine to 0 or linear to 0 at `train.steps`.

    Raises:
      UserError: unknown schedule, or a warm-up that is longer than the training.
    """
    updates, warmup = train.steps // train.accumulate, train.warmup_steps // train.accumulate
    if train.schedule not in SCHEDULES:
        raise UserError(f"config.train.schedule = {train.schedule!r} is unknown. Choose one of {SCHEDULES}.")
    if warmup >= max(updates, 1):
        raise UserError(
            f"config.train.warmup_steps = {train.warmup_steps} must be less than config.train.steps = {train.steps}."
        )
    after = {
        "constant": optax.constant_schedule(train.learning_rate),
        "cosine": optax.cosine_decay_schedule(train.learning_rate, max(updates - warmup, 1)),
        "linear": optax.linear_schedule(train.learning_rate, 0.0, max(updates - warmup, 1)),
    }[train.schedule]
    return optax.join_schedules([optax.linear_schedule(0.0, train.learning_rate, max(warmup, 1)), after], [warmup])


def build_optimizer(config) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """Clipping by global norm, Adam or AdamW with the schedule, gradients averaged over `accumulate` micro-batches.

    Returns:
      The transformation, and the schedule: update number -> learning rate.

    Raises:
      UserError: unknown optimizer or schedule, a rate that is not positive, `accumulate` below 1.
    """
    train = config.train
    if train.optimizer not in OPTIMIZERS:
        raise UserError(f"config.train.optimizer = {train.optimizer!r} is unknown. Choose one of {OPTIMIZERS}.")
    if not 0 < train.learning_rate < float("inf"):
        raise UserError(f"config.train.learning_rate = {train.learning_rate} must be positive.")
    if train.accumulate < 1 or train.steps % train.accumulate:
        raise UserError(
            f"config.train.accumulate = {train.accumulate} must be at least 1 and divide "
            f"config.train.steps = {train.steps}."
        )
    schedule = build_schedule(train)
    if train.optimizer == "adamw":
        adam = optax.adamw(schedule, weight_decay=train.weight_decay, mask=decayed)
    else:
        adam = optax.adam(schedule)
    if train.backbone_rate < 0:
        raise UserError(f"config.train.backbone_rate = {train.backbone_rate} must be 0 or more.")
    # Behind Adam, which forgets the scale of a gradient but not that of an update.
    slow = [optax.masked(optax.scale(train.backbone_rate), in_backbone)] if train.backbone_rate != 1 else []
    clip = [optax.clip_by_global_norm(train.clip_norm)] if train.clip_norm > 0 else []
    optimizer = optax.chain(*clip, adam, *slow)
    if train.accumulate > 1:
        multi = optax.MultiSteps(optimizer, every_k_schedule=train.accumulate)
        optimizer = optax.GradientTransformation(multi.init, multi.update)
    return optimizer, schedule


def in_backbone(params):
    """True for every parameter below "backbone", where networks keep what may be pretrained."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[0].key == "backbone", params)


def decayed(params):
    """Weight decay acts on kernels alone: True for every parameter with two axes or more."""
    return jax.tree.map(lambda p: p.ndim > 1, params)
