"""From a dataset to batches, with Grain: check, shuffle, crop, augment, share out over hosts, normalise, pad.

The training stream is a function of `config.seed` and a position: example number p of the stream is the same whatever
the number of hosts, and the state of the iterator is the number of steps taken. A run therefore resumes exactly.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence

import grain
import ml_collections
import numpy as np
from absl import logging

from selfexplain_jax.data import augment, balance
from selfexplain_jax.types import VOID, Batch, Dataset, Example, UserError


def train_iterator(
    dataset: Dataset, config: ml_collections.ConfigDict, *, host: int = 0, hosts: int = 1
) -> grain.DatasetIterator:
    """Returns the endless iterator of this host's training batches.

    The split `config.data.train_split` is reshuffled every epoch; epochs follow each other without a gap, so a
    batch may hold the end of one and the start of the next and nothing is dropped. With `config.data.balance` above
    0 every example is drawn anew, with replacement, by its weight (`balance.sampling_weights`), and there are no
    epochs. Step t of all hosts together takes the examples t * batch_size ... (t + 1) * batch_size - 1 of the
    stream; host h of n takes the h-th of n parts, so that the hosts' parts in order are the batch that one host
    would take. With `config.data.shuffle_labels` each example bears the label of another one, the same in every
    epoch, and all labels are used once; masks stay with their images.

    Args:
      dataset: what to train on.
      config: `config.seed`, `config.train.batch_size` (over all hosts) and `config.data` are read.
      host: number of this host, 0 ... hosts - 1.
      hosts: how many hosts share the batch.

    Returns:
      A Grain iterator of numpy `Batch` with batch_size / hosts examples each, all valid. `get_state()` is a small
      JSON dict; after `set_state(state)` the stream continues bit for bit where it was.

    Raises:
      UserError: the batch does not divide over the hosts, the split is empty, or (at `next`) an example is malformed.
    """
    batch_size = config.train.batch_size
    _check_hosts(host, hosts)
    if batch_size < 1 or batch_size % hosts:
        raise UserError(
            f"config.train.batch_size={batch_size} does not divide over {hosts} hosts. "
            f"Choose a positive multiple of {hosts}."
        )
    source = _CheckedSource(dataset, config, config.data.train_split, shuffle_labels=config.data.shuffle_labels)
    stream = _ordered(source, config)
    # Before the hosts' slice, so that the random numbers depend on the position in the stream alone.
    steps = augment.augmentations(config, dataset.info)
    change = augment.compose(steps)
    if steps:
        stream = stream.random_map(change, seed=_derived_seed(config.seed, "augment"))
    if config.data.mixup:
        mix = augment.MixUp(source, change, config.data.mixup)
        stream = stream.random_map(mix, seed=_derived_seed(config.seed, "mixup"))
    collate = functools.partial(_collate, mean=config.data.mean, std=config.data.std)
    share = batch_size // hosts
    if hosts > 1:
        whole = stream
        stream = grain.MapDataset.range(len(whole) // hosts).map(lambda i: whole[_place(i, share, host, hosts)])
    return iter(_read_ahead(stream.batch(share, batch_fn=collate), config, share))


def _place(index: int, size: int, host: int, hosts: int) -> int:
    """Which of all hosts' examples is number `index` of this one, where hosts take turns at pieces of that size."""
    turn, within = divmod(int(index), size)
    return (turn * hosts + host) * size + within


def _ordered(source: _CheckedSource, config: ml_collections.ConfigDict) -> grain.MapDataset:
    """The endless stream of examples: shuffled epochs, or draws by weight."""
    seed = _derived_seed(config.seed, "shuffle")
    # Positions are shuffled, and examples read behind: a source that Grain reads itself has every item measured.
    positions = grain.MapDataset.range(len(source))
    if not config.data.balance:
        return positions.shuffle(seed).repeat().map(source.__getitem__)
    cumulative = np.cumsum(balance.sampling_weights(source.labels(), config.data.balance))

    def draw(_, rng: np.random.Generator) -> int:
        # Rounding may leave the last sum below 1.
        return min(int(np.searchsorted(cumulative, rng.random(), side="right")), len(cumulative) - 1)

    return positions.repeat().random_map(draw, seed=seed).map(source.__getitem__)


def evaluation_batches(
    dataset: Dataset,
    split: str,
    config: ml_collections.ConfigDict,
    *,
    batch_size: int,
    max_examples: int = 0,
    host: int = 0,
    hosts: int = 1,
) -> EvaluationBatches:
    """Returns this host's share of a split in order, as batches that can be gone through again and again.

    Host h of n takes whole batches, those with the numbers h, h + n, ..., so that a batch is the same however many
    hosts there are; some hosts may have one batch less than others, or none. All batches have the same size: what is
    missing in the last one is padded with zeros (mask: void) and marked valid = 0, index = -1. Examples of an all-zero
    label, which a dataset may keep for training, have nothing to be explained: they are left out and counted in a
    warning.

    Args:
      dataset: what to evaluate on.
      split: one of the dataset's splits.
      config: `config.data` is read.
      batch_size: examples per batch of this host.
      max_examples: so many examples (over all hosts), evenly spaced because splits may be sorted by class; 0 = all.
      host: number of this host, 0 ... hosts - 1.
      hosts: how many hosts share the split.

    Raises:
      UserError: a number that makes no sense, an empty split, or (while iterating) a malformed example.
    """
    _check_hosts(host, hosts)
    if batch_size < 1:
        raise UserError(f"batch_size={batch_size} for split {split!r} must be at least 1.")
    if max_examples < 0:
        raise UserError(f"max_examples={max_examples} for split {split!r} must be positive, or 0 for all.")
    return EvaluationBatches(_CheckedSource(dataset, config, split), config, batch_size, max_examples, host, hosts)


class EvaluationBatches:
    """Re-iterable sequence of batches over a split; see `evaluation_batches`.

    Attributes:
      num_examples: over all hosts.
      positions: int64 [num_examples], where in the split they are.
      numbers: of this host's batches, among those of all hosts.
    """

    def __init__(self, source, config, batch_size, max_examples, host, hosts):
        labelled = source.labelled()
        self.num_examples = min(len(labelled), max_examples or len(labelled))
        self.positions = labelled[np.arange(self.num_examples) * len(labelled) // self.num_examples]
        self.numbers = range(host, math.ceil(self.num_examples / batch_size), hosts)
        collate = functools.partial(_collate, mean=config.data.mean, std=config.data.std)
        examples = grain.MapDataset.range(len(self.numbers) * batch_size).map(
            lambda index: _or_padding(source, self.positions, _place(index, batch_size, host, hosts))
        )
        if source.info.own_sizes:
            examples = examples.map(augment.fitting(config))
        batches = examples.batch(batch_size, batch_fn=collate)
        self._batches = _read_ahead(batches, config, batch_size)

    def __len__(self) -> int:
        return len(self.numbers)

    def __iter__(self) -> Iterator[Batch]:
        return iter(self._batches)


def normalise(images: np.ndarray, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """Returns (images - mean) / std per channel.

    Args:
      images: uint8 (or float on the scale 0..255) [..., H, W, 3].
      mean: of each channel, on the scale 0..255.
      std: of each channel, on the same scale; positive.

    Returns:
      float32, same shape.

    Raises:
      UserError: mean or std has not three entries, or a std is not positive.
    """
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
        raise UserError(
            f"config.data.mean={tuple(mean)} and config.data.std={tuple(std)} must have three entries each, "
            "one per channel, and every std must be positive."
        )
    # One row of pixels at a time: broadcasting over the last axis of 3 alone is several times slower in numpy.
    *leading, width, channels = images.shape
    rows = images.reshape(*leading, width * channels)  # [..., H, W * 3]
    result = rows - np.tile(np.asarray(mean, np.float32), width)
    result /= np.tile(np.asarray(std, np.float32), width)
    return result.reshape(images.shape)


class _CheckedSource:
    """A split as Grain reads it: items with `position` added and `id` dropped, each held against the contract."""

    def __init__(
        self, dataset: Dataset, config: ml_collections.ConfigDict, split: str, *, shuffle_labels: bool = False
    ):
        self.info = dataset.info
        if config.data.image_size != self.info.image_size:
            raise UserError(
                f"Dataset {self.info.name!r} gives images of {self.info.image_size} px, "
                f"but config.data.image_size={config.data.image_size}."
            )
        self._split = split
        self._source = dataset.source(split)
        if len(self._source) == 0:
            raise UserError(f"Split {split!r} of dataset {self.info.name!r} is empty: there is nothing to read.")
        # Whose label each example bears; None: its own.
        self._label_from = None
        if shuffle_labels:
            lot = np.random.default_rng(_derived_seed(config.seed, "shuffle_labels"))
            self._label_from = lot.permutation(len(self._source))

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, position: int) -> dict[str, np.ndarray]:
        position = int(position)
        example = self._source[position]
        self._check(example)
        bearer = example if self._label_from is None else self._source[int(self._label_from[position])]
        item = {"image": example["image"], "label": bearer["label"], "valid": 1.0, "index": position}
        return {**item, "mask": example["mask"]} if self.info.has_masks else item

    def labels(self) -> np.ndarray:
        """Returns the label of every example, float32 [N, C]."""
        labels = balance.labels_of(self._source)
        return labels if self._label_from is None else labels[self._label_from]

    def labelled(self) -> np.ndarray:
        """Returns the positions of the examples that show a class, int64; of all where only reading them would tell."""
        if not callable(getattr(self._source, "labels", None)):
            return np.arange(len(self))
        positions = np.flatnonzero(self.labels().any(axis=1))
        name, left_out = f"dataset {self.info.name!r}, split {self._split!r}", len(self) - len(positions)
        if not len(positions):
            raise UserError(f"No example of {name} shows one of the classes: there is nothing to evaluate.")
        if left_out:
            _warn_once(f"{name}: {left_out} examples show none of the classes and are not evaluated.")
        return positions

    def padding(self) -> dict[str, np.ndarray]:
        """Returns an item that stands for no example."""
        size = self.info.image_size
        item = {
            "image": np.zeros((size, size, 3), np.uint8),
            "label": np.zeros(self.info.num_classes, np.float32),
            "valid": 0.0,
            "index": -1,
        }
        return {**item, "mask": np.full((size, size), VOID, np.uint8)} if self.info.has_masks else item

    def _check(self, example: Example) -> None:
        info, image, label = self.info, example["image"], np.asarray(example["label"])
        size = image.shape[:2] if info.own_sizes and image.ndim == 3 else (info.image_size, info.image_size)
        if image.dtype != np.uint8 or image.shape != (*size, 3):
            self._refuse(example, f"image is {image.dtype} {image.shape}, expected uint8 {(*size, 3)}")
        if label.shape != (info.num_classes,):
            self._refuse(example, f"label has shape {label.shape}, expected ({info.num_classes},) for its classes")
        if not info.has_masks:
            return
        if "mask" not in example:
            self._refuse(example, "there is no mask although the dataset says has_masks=True")
        mask = example["mask"]
        if mask.dtype != np.uint8 or mask.shape != size:
            self._refuse(example, f"mask is {mask.dtype} {mask.shape}, expected uint8 {size}")
        # Most masks have no void, and pass at the first look; in the others void wraps around to 0.
        most = info.num_classes
        if int(mask.max(initial=0)) > most and int((mask + np.uint8(1)).max()) > most + 1:
            self._refuse(example, f"mask holds {int(mask[mask != VOID].max())}, above num_classes={info.num_classes}")

    def _refuse(self, example: Example, what: str) -> None:
        where = f"Dataset {self.info.name!r}, split {self._split!r}, example {example.get('id', '?')!r}"
        raise UserError(f"{where}: {what}. Correct the file or the dataset's code.")


def _or_padding(source: _CheckedSource, positions: np.ndarray, place: int) -> dict[str, np.ndarray]:
    """The example at positions[place], or padding behind the last one."""
    return source[positions[place]] if place < len(positions) else source.padding()


def _collate(items: Sequence[dict], mean: Sequence[float], std: Sequence[float]) -> Batch:
    """Stacks items to a batch and normalises the images all at once, which is cheaper than one by one."""
    valid = np.array([item["valid"] for item in items], np.float32)  # [B]
    images = normalise(np.stack([item["image"] for item in items]), mean, std)  # [B, H, W, 3]
    images[valid == 0] = 0
    masked = "mask" in items[0]
    masks = np.stack([item["mask"] for item in items]) if masked else np.full(images.shape[:3], VOID, np.uint8)
    return {
        "image": images,
        "label": np.stack([item["label"] for item in items]).astype(np.float32, copy=False),  # [B, C]
        "mask": masks,  # [B, H, W]
        "valid": valid,
        "index": np.array([item["index"] for item in items], np.int32),  # [B]
    }


def _read_ahead(batches: grain.MapDataset, config: ml_collections.ConfigDict, batch_size: int) -> grain.IterDataset:
    """Lets `config.data.num_threads` threads make whole batches, holding about `config.data.prefetch` examples."""
    threads, prefetch = config.data.num_threads, config.data.prefetch
    if threads < 0 or prefetch < 0:
        raise UserError(f"config.data.num_threads={threads} and config.data.prefetch={prefetch} must not be negative.")
    # A thread works on one batch: fewer batches in the buffer than threads would leave threads idle.
    buffered = max(math.ceil(prefetch / batch_size), threads) if threads and prefetch else 0
    return batches.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=buffered))


def _check_hosts(host: int, hosts: int) -> None:
    if not 0 <= host < hosts:
        raise UserError(f"host={host} of hosts={hosts}: hosts are counted from 0 to hosts - 1.")


def _derived_seed(seed: int, purpose: str) -> int:
    """Returns a 32-bit seed of its own for `purpose`: Grain adds the epoch to it, so neighbours would share epochs."""
    return int(np.random.SeedSequence([seed % 2**64, *purpose.encode()]).generate_state(1)[0])


@functools.cache
def _warn_once(message: str) -> None:
    """Logs a warning that this process has not logged before: a comparison opens its data for every column again."""
    logging.warning("%s", message)
