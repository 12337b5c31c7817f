"""The encoding audit: does the mask point at evidence, or does its shape tell the class?

Three questions. Swap: with image i's mask on image j, does the prediction follow the pixels or the mask's owner?
Mask-only: how well does a classifier do that sees masks and nothing else, beside the same one on ground-truth
silhouettes? Evaluator: does a separate classifier, trained with image labels and random masks alone, recognise what
these masks show (EVAL-X, Jethani et al., arXiv 2103.01890)? An honest mask comes near the ground truth's numbers; one
that encodes the class exceeds them in the second and stays at chance in the third.
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
from absl import logging

from selfexplain_jax import progress
from selfexplain_jax.data.pipeline import train_iterator
from selfexplain_jax.metrics import classification, parts, segmentation
from selfexplain_jax.models import masking, pooling
from selfexplain_jax.models.unet import Norm, ResidualConv, local_contrast, space_to_depth
from selfexplain_jax.types import Batch, Dataset, DatasetInfo, SumCount, UserError

MASK_BATCH_SIZE = 64
"""Masks per step of the mask-only classifiers."""
IMAGE_BATCH_SIZE = 32
"""Images per step of the evaluator."""
MASK_EXAMPLES = 4000
"""Masks of the training split that the mask-only classifiers learn from, at most."""
MASK_SIZE = 64
"""Larger masks are shrunk to this many pixels a side for the mask-only classifiers."""
MASK_STEP_SHARE = 0.5
"""Steps of the mask-only classifiers, as a share of `config.evaluation.audit_steps`: masks are learnt sooner."""
WHOLE_SHARE = 0.5
"""Share of unmasked images in the evaluator's later half; it falls to this from 1 (the full image is one of EVAL-X's
masks, and the easiest to learn from)."""
LEARNING_RATE = 4e-3


def cells(inputs: jax.Array, cell: int) -> jax.Array:
    """Returns [B, H, W, K] as cells of `cell` pixels a side, [B, h, w, K cell^2]; zeros fill the last ones up."""
    below, right = (-size % cell for size in inputs.shape[1:3])
    return space_to_depth(jnp.pad(inputs, ((0, 0), (0, below), (0, right), (0, 0))), cell)


class MaskClassifier(nn.Module):
    """A small convolutional network for masks: [B, H, W, 1] -> class scores [B, C].

    Attributes:
      num_classes: C.
      widths: channels of the levels, multiples of 8; each after the first halves the resolution.
      cell: pixels per side of a cell of the first level.
    """

    num_classes: int
    widths: tuple[int, ...]
    cell: int

    @nn.compact
    def __call__(self, inputs: jax.Array, train: bool = False) -> jax.Array:
        """Returns class scores [B, C] of inputs [B, H, W, 1]; `train` makes no difference."""
        hidden = cells(inputs, self.cell)
        for level, channels in enumerate(self.widths):
            for stride in (2, 1) if level else (1,):
                hidden = nn.Conv(channels, (3, 3), strides=stride, use_bias=False)(hidden)
                hidden = nn.relu(nn.GroupNorm(num_groups=8)(hidden))
        # The maximum beside the mean: a small object must not drown in the background. As a pool: the gradient of max()
        # divides by how many values equal it, which are none where XLA computes them once more and rounds otherwise.
        pooled = [hidden.mean(axis=(1, 2)), nn.max_pool(hidden, hidden.shape[1:3])[:, 0, 0]]  # [B, channels] each
        return nn.Dense(self.num_classes)(jnp.concatenate(pooled, axis=1))


class ImageClassifier(nn.Module):
    """A residual network that names each cell by what is around it: [B, H, W, 3] -> class scores [B, C].

    Local contrast, batch normalisation and a softmax pool of the logits of cells that see 2 depth + 3 cells a side are
    what lets it leave chance within some hundred steps where small objects stand before busy backgrounds: cells that
    see the whole image, or a mean of their features, see mostly background.

    Attributes:
      num_classes: C.
      width: channels.
      depth: residual convolutions.
      cell: pixels per side of a cell.
      temperature: of the softmax pool.
    """

    num_classes: int
    width: int
    depth: int
    cell: int
    temperature: float = 1.0

    @nn.compact
    def __call__(self, inputs: jax.Array, train: bool = False) -> jax.Array:
        """Returns class scores [B, C] of images [B, H, W, 3]; `train`: normalise by the batch's own statistics."""
        hidden = nn.Conv(self.width, (3, 3))(cells(local_contrast(inputs), self.cell))
        for _ in range(self.depth):
            hidden = ResidualConv("batch")(hidden, train)
        logit_maps = nn.Dense(self.num_classes)(nn.relu(Norm("batch")(hidden, train)))  # [B, h, w, C]
        return pooling.softmax_pool(logit_maps, self.temperature)


def cell_size(image_size: int) -> int:
    """Returns the pixels per input cell: about sixteen cells to a side, and at most 8 pixels."""
    return min(8, 2 ** round(math.log2(max(image_size, 16) / 16)))


def mask_classifier(info: DatasetInfo) -> nn.Module:
    """Returns the classifier that sees masks alone."""
    return MaskClassifier(info.num_classes, widths=(32, 64), cell=cell_size(min(info.image_size, MASK_SIZE)))


def image_classifier(info: DatasetInfo) -> nn.Module:
    """Returns the classifier that sees images through masks."""
    return ImageClassifier(info.num_classes, width=64, depth=3, cell=cell_size(info.image_size))


@functools.partial(jax.jit, static_argnums=0)
def classify(model: nn.Module, variables: Any, inputs: jax.Array) -> jax.Array:
    """Returns class scores [B, C] of inputs [B, H, W, K], normalised by the running averages."""
    return model.apply(variables, inputs)


@functools.partial(jax.jit, static_argnums=0)
def initial_variables(model: nn.Module, inputs: jax.Array, seed: int) -> Any:
    """Returns {"params": ..., and "batch_stats": ... if the model has them} for inputs [B, H, W, K]."""
    # XLA compiles the default generator's many draws for ten times as long as this one's.
    return model.init(jax.random.key(seed, impl="rbg"), inputs)


def audit_loss(scores: jax.Array, label: jax.Array, multilabel: bool) -> jax.Array:
    """Returns the mean cross-entropy of softmax scores [B, C] with the label [B, C] shared out over its classes, y/|y|.

    Multi-label: the binary cross-entropy is added. Alone it rests long on the classes' frequencies; the ranking of
    present classes above absent ones gets it off.
    """
    shares = label / jnp.maximum(label.sum(axis=1, keepdims=True), 1)
    loss = optax.softmax_cross_entropy(scores, shares).mean()
    return loss + optax.sigmoid_binary_cross_entropy(scores, label).mean() if multilabel else loss


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def fit_step(model, optimizer, multilabel, variables, opt_state, inputs, label):
    """Returns (variables, opt_state) after one step on `audit_loss`."""

    def loss(params):
        scores, running = model.apply(variables | {"params": params}, inputs, train=True, mutable=["batch_stats"])
        return audit_loss(scores, label, multilabel), running

    gradient, running = jax.grad(loss, has_aux=True)(variables["params"])
    updates, opt_state = optimizer.update(gradient, opt_state, variables["params"])
    return variables | running | {"params": optax.apply_updates(variables["params"], updates)}, opt_state


def fit(model: nn.Module, examples: Iterable, *, steps: int, multilabel: bool, seed: int, text: str = "audit") -> Any:
    """Trains a classifier and returns its variables.

    Args:
      model: a module from inputs [B, H, W, K] to class scores [B, C], called with `train`.
      examples: endless (inputs [B, H, W, K], label [B, C]) pairs.
      steps: how many of them to use.
      multilabel: whether several classes can be present.
      seed, text: of the initial parameters; what the line of progress begins with.
    """
    optimizer = audit_optimizer(steps)
    variables = opt_state = None
    for inputs, label in progress.counted(examples, text, steps, unit="steps"):
        if variables is None:
            variables = initial_variables(model, inputs, seed)
            opt_state = optimizer.init(variables["params"])
        variables, opt_state = fit_step(model, optimizer, multilabel, variables, opt_state, inputs, label)
    return variables


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
    """The trained classifiers: modules and their variables; `on_ground_truth` is None for data without masks."""

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
      config: `config.evaluation.audit_steps` steps of the evaluator (the mask-only classifiers take
        `MASK_STEP_SHARE` of them), `config.evaluation.infill`, `config.seed` and `config.data`.

    Raises:
      UserError: audit_steps is not positive.
    """
    steps, info = config.evaluation.audit_steps, dataset.info
    if steps < 1:
        raise UserError(f"config.evaluation.audit_steps={steps}: give at least 1, or evaluate with audit=False.")
    wanted = min(MASK_EXAMPLES, len(dataset.source(config.data.train_split)))
    batches = training_batches(dataset, config, MASK_BATCH_SIZE)
    masks, silhouettes, labels = collect_masks(target_mask, batches, info, wanted)
    drawn = silhouettes.any(axis=(1, 2, 3)) if info.has_masks else None

    mask_model, image_model = mask_classifier(info), image_classifier(info)
    train = functools.partial(fit, multilabel=info.multilabel, seed=config.seed)
    train_on = functools.partial(train, mask_model, steps=math.ceil(MASK_STEP_SHARE * steps))
    on_masks = train_on(shuffled_batches(masks, labels, config.seed), text="audit: masks")
    on_ground_truth = None
    if info.has_masks and drawn.any():
        outlines = shuffled_batches(silhouettes[drawn], labels[drawn], config.seed)
        on_ground_truth = train_on(outlines, text="audit: outlines")
    elif info.has_masks:
        logging.warning(
            "None of %d training images of %r is annotated: no accuracy of their outlines.", wanted, info.name
        )

    examples = masked_examples(training_batches(dataset, config, IMAGE_BATCH_SIZE), config)
    evaluator = train(image_model, examples, steps=steps, text="audit: evaluator")
    return AuditClassifiers(mask_model, on_masks, on_ground_truth, image_model, evaluator)


def training_batches(dataset: Dataset, config: ml_collections.ConfigDict, batch_size: int) -> Iterator[Batch]:
    """Returns the training pipeline's endless batches, `batch_size` examples each."""
    config = ml_collections.ConfigDict(config).copy_and_resolve_references()
    config.train.batch_size = batch_size
    return train_iterator(dataset, config)


def collect_masks(
    target_mask: Callable[[Batch], jax.Array], batches: Iterator[Batch], info: DatasetInfo, wanted: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns `wanted` target masks, ground-truth silhouettes (both float16 [N, h, w, 1]) and labels [N, C]."""
    masks, silhouettes, labels = [], [], []
    for batch in progress.counted(batches, "audit: masks are drawn", math.ceil(wanted / MASK_BATCH_SIZE)):
        masks.append(np.asarray(shrink(target_mask(batch))))
        labels.append(np.asarray(batch["label"]))
        if info.has_masks:
            silhouettes.append(np.asarray(shrink(segmentation.target_truth(batch["mask"], batch["label"]))))
    return tuple(np.concatenate(kept)[:wanted] if kept else np.zeros(0) for kept in (masks, silhouettes, labels))


def shuffled_batches(inputs: np.ndarray, label: np.ndarray, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields endless batches of `MASK_BATCH_SIZE`, or of all where there are fewer, in a new order each pass."""
    random = np.random.default_rng([seed % 2**64, 1])
    size = min(MASK_BATCH_SIZE, len(inputs))
    while True:
        order = random.permutation(len(inputs))
        for start in range(0, len(order) - size + 1, size):
            chosen = order[start : start + size]
            yield inputs[chosen], label[chosen]


def masked_examples(batches: Iterable[Batch], config: ml_collections.ConfigDict) -> Iterator[tuple]:
    """Yields what the evaluator learns from: (images [B, H, W, 3] under masks of `evaluator_masks`, label [B, C]).

    Neither audited nor annotated masks are used. The infill is the one of the evaluation.
    """
    falling_steps = config.evaluation.audit_steps / 2
    for step, batch in enumerate(batches):
        whole = max(WHOLE_SHARE, 1 - (1 - WHOLE_SHARE) * step / falling_steps)
        masks = evaluator_masks(len(batch["image"]), batch["image"].shape[1], whole, config.seed, step)
        yield parts.shown(batch["image"], masks, masks, config.evaluation.infill, config.seed, step), batch["label"]


@functools.partial(jax.jit, static_argnums=(0, 1))
def evaluator_masks(batch: int, size: int, whole: float, seed: int, step: int) -> jax.Array:
    """Returns masks [batch, size, size]: each all ones with probability `whole`, else a random blob."""
    blob_key, whole_key = jax.random.split(jax.random.fold_in(jax.random.key(seed + 1), step))
    is_whole = jax.random.bernoulli(whole_key, whole, (batch, 1, 1))
    return jnp.where(is_whole, 1.0, masking.blob_masks(blob_key, batch, size))


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
    annotated: jax.Array | None = None,
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
      annotated: [B], the images that have a ground truth; None: all that are valid. Masks alone are asked about on
        these, like true masks; the evaluator on all.
    """
    annotated = valid if annotated is None else annotated
    seen = {
        "mask_only_accuracy": (classifiers.mask_model, classifiers.on_masks, shrink(mask)),
        "evaluator_accuracy": (classifiers.image_model, classifiers.evaluator, object_images),
        "evaluator_accuracy_full_image": (classifiers.image_model, classifiers.evaluator, images),
    }
    if truth is not None:
        if classifiers.on_ground_truth is not None:
            outlines = (classifiers.mask_model, classifiers.on_ground_truth, shrink(truth))
            seen["mask_only_accuracy_ground_truth"] = outlines
        seen["evaluator_accuracy_ground_truth"] = (classifiers.image_model, classifiers.evaluator, truth_images)
    sums = {}
    for name, (model, variables, inputs) in seen.items():
        scores = classify(model, variables, inputs)
        decided = classification.decisions(scores, jax.nn.sigmoid(scores), multilabel)
        with_truth = "mask_only" in name or name.endswith("ground_truth")
        sums[name] = classification.accuracy_sums(decided, label, annotated if with_truth else valid)
    return sums
