"""The encoding audit: does the mask point at evidence, or does its shape tell the class?

Three questions. Swap: with image i's mask on image j, does the prediction follow the pixels or the mask's owner?
Mask-only: how well does a classifier do that sees masks and nothing else, beside the same one on ground-truth
silhouettes? Evaluator: does a separate classifier that was trained without any of these masks recognise what they show
(EVAL-X, Jethani et al., arXiv 2103.01890)?
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from selfexplain_jax.data.pipeline import train_iterator
from selfexplain_jax.metrics import classification, parts, segmentation, sum_and_count
from selfexplain_jax.models import masking
from selfexplain_jax.models.unet import space_to_depth
from selfexplain_jax.types import Batch, Dataset, DatasetInfo, SumCount, UserError

BATCH_SIZE = 64
"""Examples per step of the audit's classifiers."""
MASK_EXAMPLES = 4000
"""Masks of the training split that the mask-only classifiers learn from, at most."""
MASK_SIZE = 64
"""Larger masks are shrunk to this many pixels a side for the mask-only classifiers."""
LEARNING_RATE = 3e-3
GUIDED_SHARE = 0.6
"""Share of the evaluator's steps in which some images are shown as the annotated object, fewer and fewer."""


@jax.jit
def swap_partners(label: jax.Array, valid: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns for each mask owner i the image j that gets its mask, (int32 [B], bool [B]: there is one).

    j is the next valid example of the batch, cyclically, that lacks at least one of i's classes (single-label: one of
    another class). Padding at the batch's end changes nothing.

    Args:
      label: [B, C], multi-hot.
      valid: [B], 0 for padding.
    """
    batch = label.shape[0]
    only_owner = jnp.einsum("ic,jc->ij", label, 1 - label) > 0
    suits = only_owner & (valid[:, None] > 0) & (valid[None, :] > 0)
    places_on = (jnp.arange(batch)[None, :] - jnp.arange(batch)[:, None]) % batch
    distance = jnp.where(suits, places_on, batch)
    return distance.argmin(axis=1).astype(jnp.int32), suits.any(axis=1)


def followed(decided: jax.Array, leader: jax.Array, other: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns how far a prediction follows `leader` and not `other`: (rate [B], bool [B]: the question has a meaning).

    The rate is the share, among the classes that the leader has and the other lacks, of those the prediction names;
    single-label: 1 where the prediction is the leader's class.

    Args:
      decided: [B, C] of 0 and 1, from `classification.decisions`.
      leader: [B, C], multi-hot.
      other: [B, C], multi-hot.
    """
    only_leader = leader * (1 - other)
    count = only_leader.sum(axis=1)
    return (decided * only_leader).sum(axis=1) / jnp.maximum(count, 1), count > 0


@functools.partial(jax.jit, static_argnames="suffix")
def swap_sums(
    decided: jax.Array,
    label: jax.Array,
    partner: jax.Array,
    exists: jax.Array,
    valid: jax.Array,
    suffix: str = "",
) -> dict[str, SumCount]:
    """Returns "swap_owner_rate" and "swap_pixel_rate": how far predictions follow the mask's owner, and the pixels.

    Args:
      decided: [B, C] of 0 and 1, the classes named for image partner[i] seen through mask i.
      label: [B, C], multi-hot, of the masks' owners.
      partner: int32 [B], from `swap_partners`.
      exists: bool [B], from `swap_partners`; owners without a partner are not counted.
      valid: [B], 0 for padding.
      suffix: added to the names.
    """
    owner_rate, owner_defined = followed(decided, label, label[partner])
    pixel_rate, pixel_defined = followed(decided, label[partner], label)
    return {
        f"swap_owner_rate{suffix}": sum_and_count(owner_rate, owner_defined & exists, valid),
        f"swap_pixel_rate{suffix}": sum_and_count(pixel_rate, pixel_defined & exists, valid),
    }


class SmallClassifier(nn.Module):
    """A small convolutional network for masks or images: [B, H, W, K] -> class scores [B, C].

    Attributes:
      num_classes: C.
      widths: channels of the levels; each after the first halves the resolution.
      cell: pixels per side that are folded into the channels of one input cell (space to depth).
    """

    num_classes: int
    widths: tuple[int, ...]
    cell: int

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Returns class scores [B, C] of inputs [B, H, W, K]."""
        height, width = (-(-size // self.cell) * self.cell for size in inputs.shape[1:3])
        padding = ((0, 0), (0, height - inputs.shape[1]), (0, width - inputs.shape[2]), (0, 0))
        hidden = space_to_depth(jnp.pad(inputs, padding), self.cell)
        for level, channels in enumerate(self.widths):
            for stride in (2, 1) if level else (1,):
                hidden = nn.Conv(channels, (3, 3), strides=stride, use_bias=False)(hidden)
                hidden = nn.relu(nn.GroupNorm(num_groups=8)(hidden))
        # The maximum beside the mean: a small object must not drown in the background.
        pooled = jnp.concatenate([hidden.mean(axis=(1, 2)), hidden.max(axis=(1, 2))], axis=1)  # [B, 2 * channels]
        return nn.Dense(self.num_classes)(pooled)


def cell_size(image_size: int) -> int:
    """Returns the pixels per input cell: about sixteen cells to a side, and at most 8 pixels."""
    return min(8, 2 ** round(math.log2(max(image_size, 16) / 16)))


def mask_classifier(info: DatasetInfo) -> nn.Module:
    """Returns the classifier that sees masks alone."""
    return SmallClassifier(info.num_classes, widths=(32, 64), cell=cell_size(min(info.image_size, MASK_SIZE)))


def image_classifier(info: DatasetInfo) -> nn.Module:
    """Returns the classifier that sees images through masks."""
    return SmallClassifier(info.num_classes, widths=(64, 128), cell=cell_size(info.image_size))


@functools.partial(jax.jit, static_argnums=0)
def classify(model: nn.Module, params: Any, inputs: jax.Array) -> jax.Array:
    """Returns class scores [B, C] of inputs [B, H, W, K]."""
    return model.apply({"params": params}, inputs)


@functools.partial(jax.jit, static_argnums=0)
def initial_parameters(model: nn.Module, inputs: jax.Array, seed: int) -> Any:
    """Returns parameters drawn for inputs [B, H, W, K]."""
    # XLA compiles the default generator's many draws for ten times as long as this one's.
    return model.init(jax.random.key(seed, impl="rbg"), inputs)["params"]


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def fit_step(model, optimizer, multilabel, params, opt_state, inputs, label):
    """Returns (params, opt_state) after one step of cross-entropy, or binary cross-entropy for multi-label data."""

    def loss(params):
        scores = model.apply({"params": params}, inputs)
        if multilabel:
            return optax.sigmoid_binary_cross_entropy(scores, label).mean()
        return optax.softmax_cross_entropy(scores, label).mean()

    updates, opt_state = optimizer.update(jax.grad(loss)(params), opt_state, params)
    return optax.apply_updates(params, updates), opt_state


def fit(model: nn.Module, examples: Iterable, *, steps: int, multilabel: bool, seed: int) -> Any:
    """Trains a classifier and returns its parameters.

    Args:
      model: a module from inputs [B, H, W, K] to class scores [B, C].
      examples: endless (inputs [B, H, W, K], label [B, C]) pairs.
      steps: how many of them to use.
      multilabel: whether several classes can be present.
      seed: of the initial parameters.
    """
    optimizer = audit_optimizer(steps)
    params = opt_state = None
    for _, (inputs, label) in zip(range(steps), examples, strict=False):
        if params is None:
            params = initial_parameters(model, inputs, seed)
            opt_state = optimizer.init(params)
        params, opt_state = fit_step(model, optimizer, multilabel, params, opt_state, inputs, label)
    return params


@functools.lru_cache  # One object per length: the classifiers and later audits share compiled steps.
def audit_optimizer(steps: int) -> optax.GradientTransformation:
    """Returns AdamW with a short warm-up and a cosine decay to 0 over `steps`."""
    warmup = max(1, min(30, steps // 10))
    schedule = optax.warmup_cosine_decay_schedule(0.0, LEARNING_RATE, warmup, max(steps, warmup + 1))
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, weight_decay=1e-3))


@functools.partial(jax.jit, static_argnames="size")
def shrink(masks: jax.Array, size: int = MASK_SIZE) -> jax.Array:
    """Returns masks [B, H, W] as float16 inputs [B, h, w, 1] with h, w <= size (bilinear, antialiased)."""
    batch, height, width = masks.shape
    if max(height, width) > size:
        masks = jax.image.resize(masks, (batch, min(height, size), min(width, size)), method="bilinear")
    return masks[..., None].astype(jnp.float16)


@dataclasses.dataclass(frozen=True)
class AuditClassifiers:
    """The trained classifiers: modules and their parameters; `on_ground_truth` is None for data without masks."""

    mask_model: nn.Module
    on_masks: Any
    on_ground_truth: Any
    image_model: nn.Module
    evaluator: Any


def train_audit(
    target_mask: Callable[[Batch], jax.Array], dataset: Dataset, config: ml_collections.ConfigDict
) -> AuditClassifiers:
    """Trains the classifiers of the audit on the training split.

    Args:
      target_mask: batch -> the audited target masks [B, H, W].
      dataset: its training split is read through the training pipeline.
      config: `config.evaluation.audit_steps` steps, `config.evaluation.infill`, `config.seed` and `config.data`.

    Raises:
      UserError: audit_steps is not positive.
    """
    steps, info = config.evaluation.audit_steps, dataset.info
    if steps < 1:
        raise UserError(f"config.evaluation.audit_steps={steps}: give at least 1, or evaluate with audit=False.")
    stream_config = ml_collections.ConfigDict(config).copy_and_resolve_references()
    stream_config.train.batch_size = BATCH_SIZE
    wanted = min(MASK_EXAMPLES, len(dataset.source(config.data.train_split)))
    masks, silhouettes, labels = collect_masks(target_mask, train_iterator(dataset, stream_config), info, wanted)

    mask_model, image_model = mask_classifier(info), image_classifier(info)
    train = functools.partial(fit, mask_model, steps=steps, multilabel=info.multilabel, seed=config.seed)
    on_masks = train(shuffled_batches(masks, labels, config.seed))
    on_ground_truth = train(shuffled_batches(silhouettes, labels, config.seed)) if info.has_masks else None

    examples = masked_examples(train_iterator(dataset, stream_config), config, info.has_masks)
    evaluator = fit(image_model, examples, steps=steps, multilabel=info.multilabel, seed=config.seed)
    return AuditClassifiers(mask_model, on_masks, on_ground_truth, image_model, evaluator)


def collect_masks(
    target_mask: Callable[[Batch], jax.Array], batches: Iterator[Batch], info: DatasetInfo, wanted: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns `wanted` target masks, ground-truth silhouettes (both float16 [N, h, w, 1]) and labels [N, C]."""
    masks, silhouettes, labels = [], [], []
    while sum(map(len, labels)) < wanted:
        batch = next(batches)
        masks.append(np.asarray(shrink(target_mask(batch))))
        labels.append(np.asarray(batch["label"]))
        if info.has_masks:
            silhouettes.append(np.asarray(shrink(segmentation.target_truth(batch["mask"], batch["label"]))))
    joined = [np.concatenate(arrays)[:wanted] if arrays else np.zeros(0) for arrays in (masks, silhouettes, labels)]
    return tuple(joined)


def shuffled_batches(inputs: np.ndarray, label: np.ndarray, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields endless batches of `BATCH_SIZE`, or of all where there are fewer, in a new order each time through."""
    random = np.random.default_rng([seed % 2**64, 1])
    size = min(BATCH_SIZE, len(inputs))
    while True:
        order = random.permutation(len(inputs))
        for start in range(0, len(order) - size + 1, size):
            chosen = order[start : start + size]
            yield inputs[chosen], label[chosen]


def masked_examples(
    batches: Iterable[Batch], config: ml_collections.ConfigDict, has_masks: bool
) -> Iterator[tuple[jax.Array, Any]]:
    """Yields what the evaluator learns from: (images [B, H, W, 3] under masks of `evaluator_masks`, label).

    From random masks alone a few hundred steps leave it at chance on small objects before busy backgrounds. So, where
    the data has masks, a falling share of the images shows the annotated object instead; the last steps are all random.
    No audited mask is ever used.
    """
    guided_steps = GUIDED_SHARE * config.evaluation.audit_steps
    for step, batch in enumerate(batches):
        guided = max(0.0, 1 - step / guided_steps) if has_masks else 0.0
        objects = segmentation.target_truth(batch["mask"], batch["label"])
        masks = evaluator_masks(objects, guided, config.seed, step)
        yield parts.shown(batch["image"], masks, objects, config.evaluation.infill, config.seed, step), batch["label"]


@jax.jit
def evaluator_masks(objects: jax.Array, guided: float, seed: int, step: int) -> jax.Array:
    """Returns masks [B, H, W]: each an object mask with probability `guided`, else a random blob or (1 in 8) all ones.

    The blobs stop short of the whole image, which the evaluator is asked about as well.
    """
    blob_key, whole_key, guided_key = jax.random.split(jax.random.fold_in(jax.random.key(seed + 1), step), 3)
    batch, size = objects.shape[:2]
    whole = jax.random.bernoulli(whole_key, 1 / 8, (batch, 1, 1))
    masks = jnp.where(whole, 1.0, masking.blob_masks(blob_key, batch, size))
    return jnp.where(jax.random.bernoulli(guided_key, guided, (batch, 1, 1)), objects, masks)


def audit_sums(
    classifiers: AuditClassifiers,
    label: jax.Array,
    valid: jax.Array,
    multilabel: bool,
    *,
    images: jax.Array,
    object_images: jax.Array,
    mask: jax.Array,
    truth: jax.Array | None,
    truth_images: jax.Array | None,
) -> dict[str, SumCount]:
    """Returns the accuracy of each classifier: {"mask_only_accuracy": (sum, count), ...}.

    Args:
      classifiers: from `train_audit`.
      label: [B, C], multi-hot.
      valid: [B], 0 for padding.
      multilabel: whether several classes can be present (then accuracy is exact match).
      images: [B, H, W, 3], normalised.
      object_images: images seen through the target mask, x|m.
      mask: [B, H, W], the target mask.
      truth: [B, H, W], its ground truth, or None.
      truth_images: images seen through the ground truth, or None.
    """
    seen = {
        "mask_only_accuracy": (classifiers.mask_model, classifiers.on_masks, shrink(mask)),
        "evaluator_accuracy": (classifiers.image_model, classifiers.evaluator, object_images),
        "evaluator_accuracy_full_image": (classifiers.image_model, classifiers.evaluator, images),
    }
    if truth is not None:
        seen["mask_only_accuracy_ground_truth"] = (
            classifiers.mask_model,
            classifiers.on_ground_truth,
            shrink(truth),
        )
        seen["evaluator_accuracy_ground_truth"] = (classifiers.image_model, classifiers.evaluator, truth_images)
    sums = {}
    for name, (model, params, inputs) in seen.items():
        scores = classify(model, params, inputs)
        decided = classification.decisions(scores, jax.nn.sigmoid(scores), multilabel)
        sums[name] = classification.accuracy_sums(decided, label, valid)
    return sums
