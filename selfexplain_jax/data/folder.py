"""Folder: your own photos, one folder per class or with an index file, read as they lie there."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import operator
import pathlib
from collections.abc import Callable, Sequence

import numpy as np
from absl import logging

from selfexplain_jax.data import decode
from selfexplain_jax.data.classes import ClassSubset, check_empty, keep_examples
from selfexplain_jax.data.folder_index import PHOTO_ENDINGS, SPLITS, Entry, draw_splits, read_layout
from selfexplain_jax.data.photo_set import check_image_size, log_counts, shrink_mask
from selfexplain_jax.types import VOID, DatasetInfo, Example, UserError

MASK_VALUES = ("classes", "object")
_SKIP = "Correct or remove it, or leave bad photos out with the option skip_bad=True."


@dataclasses.dataclass(frozen=True)
class FolderSource:
    """Random access to one split; see `types.Source`.

    num_empty:   photos of the split with none of the classes, whether they were kept or dropped.
    num_dropped: those that were dropped.
    left_out:    what was wrong with each photo that `skip_bad` left out.
    """

    dataset: Folder
    entries: Sequence[Entry]
    all_labels: np.ndarray
    num_empty: int
    num_dropped: int
    left_out: Sequence[str]

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.entries)

    def labels(self) -> np.ndarray:
        """Every example's label, float32 [N, C], without reading the photos."""
        return self.all_labels

    def __getitem__(self, index: int) -> Example:
        """Returns example `index` at its photo's own size; see `types.Example`.

        Raises:
          IndexError: outside 0 <= index < len(self).
          UserError: photo or mask is broken; the message names the file.
        """
        index = operator.index(index)
        if not 0 <= index < len(self):
            raise IndexError(f"Index {index} is outside the split of {len(self)} examples.")
        image, mask = self.dataset.read(self.entries[index])
        example: Example = {"image": image, "label": self.all_labels[index], "id": self.entries[index].path}
        if mask is not None:
            example["mask"] = mask
        return example

    def photo_mask(self, index: int) -> np.ndarray:
        """The mask of example `index` at its photo's own size, uint8 [h, w]; the photo is not decoded.

        Raises:
          UserError: photo or mask is broken; the message names the file.
        """
        return self.dataset.photo_mask(self.entries[index])


class Folder:
    """Your own photos; satisfies `types.Dataset`. Splits: train, validation, test. Nothing is prepared or copied.

    Either one folder per class (`cat/1.jpg`), or the same below train/, validation/ and test/, or an index file
    index.csv or index.jsonl with the columns `file`, `labels` and, as you like, `split` and `mask`
    (`folder_index.read_index`). Photos that name no split are shared out by lot, the same way each time.

    A mask is an image of its photo's size. mask_values="classes": its pixels are class numbers, counted from 1 in the
    order of the folder's class names (all of them, in alphabetical order), 0 is background and 255 void.
    mask_values="object": whatever is not 0 is the photo's one class. Photos without a mask have it all void.

    Args:
      image_size: side of the square that the pipeline makes of a photo.
      seed: not used: the splits of a folder do not depend on the seed of a run, see split_seed.
      data_dir: the folder.
      index: name of the index file, where it is not index.csv or index.jsonl.
      multilabel: photos may show several classes, or none; needs an index file.
      masks: folder in `data_dir` with the masks of photos whose index row names none: PHOTO.png where the photo is
        PHOTO.jpg, with the same folders below it. Empty: the index alone says which have masks.
      mask_values: "classes" or "object".
      classes: names of the classes to train on, in this order; empty = all, in alphabetical order. Given, they are
        known before the folder is read.
      empty: with multilabel, photos that show none of the classes: "keep" (all-zero label) or "drop"; else they are
        dropped. They are counted either way.
      validation_fraction: share of the photos without a split that goes to validation.
      test_fraction: share that goes to test.
      split_seed: another one gives another division.
      skip_bad: photos are all decoded once, at `source`, and those that cannot be are left out and logged; else the
        first one that is met stops the run.

    Raises:
      UserError: an option is out of range, or the folder is not as described; the message names the file.
    """

    def __init__(
        self,
        image_size: int = 224,
        seed: int = 0,
        data_dir: str = "",
        *,
        index: str = "",
        multilabel: bool = False,
        masks: str = "",
        mask_values: str = "classes",
        classes: Sequence[str] = (),
        empty: str = "keep",
        validation_fraction: float = 0.1,
        test_fraction: float = 0.1,
        split_seed: int = 0,
        skip_bad: bool = False,
    ):
        del seed
        check_image_size("folder", image_size)
        check_empty("folder", empty)
        if mask_values not in MASK_VALUES or (mask_values == "object" and multilabel):
            raise UserError(
                f"Dataset 'folder': mask_values={mask_values!r} must be 'classes', or 'object' where each photo "
                "has one class."
            )
        fractions = (validation_fraction, test_fraction)
        if min(fractions) < 0 or sum(fractions) >= 1:
            raise UserError(
                f"Dataset 'folder': validation_fraction and test_fraction {fractions} must leave some to train."
            )
        if not data_dir and not classes:
            raise UserError("Dataset 'folder' needs config.data.data_dir: the folder with your photos.")
        self.folder, self._index, self._masks = pathlib.Path(data_dir).expanduser(), index, masks
        self._mask_values, self._empty = mask_values, empty if multilabel else "drop"
        self._fractions, self._split_seed, self._skip_bad = fractions, split_seed, skip_bad
        self._multilabel, self._data_dir = multilabel, data_dir
        # Without a folder, its classes are taken for granted: a model can be built before the photos are there.
        self.all_class_names = self._class_names() if data_dir else list(classes)
        self.subset = ClassSubset("folder", self.all_class_names, classes)
        has_masks = bool(masks) or (bool(data_dir) and any(entry.mask for entry in self._entries))
        self.info = DatasetInfo(
            name="folder",
            num_classes=len(self.subset.names),
            class_names=tuple(self.subset.names),
            multilabel=multilabel,
            image_size=int(image_size),
            has_masks=has_masks,
            own_sizes=True,
        )

    @functools.cached_property
    def _entries(self) -> list[Entry]:
        if not self._data_dir:
            raise UserError("Dataset 'folder' needs config.data.data_dir: the folder with your photos.")
        entries = read_layout(self.folder, self._index, self._masks)
        odd = [entry.path for entry in entries if pathlib.PurePosixPath(entry.path).suffix.lower() not in PHOTO_ENDINGS]
        if odd and not self._skip_bad:
            raise UserError(
                f"{self.folder}: {len(odd)} files are no photos by their ending, the first is {odd[0]}. {_SKIP}"
            )
        several = [entry for entry in entries if len(entry.labels) != 1]
        if several and not self._multilabel:
            raise UserError(
                f"{self.folder}: {several[0].path} has {len(several[0].labels)} labels. Where photos may show several "
                "classes, or none, set the option multilabel=True."
            )
        if self._masks and not any(self._mask_file(entry) for entry in entries):
            raise UserError(
                f"No photo in {self.folder} has a mask in {self.folder / self._masks} (option masks). The mask of "
                f"{entries[0].path} would be {self._beside(entries[0])}."
            )
        return entries

    def _beside(self, entry: Entry) -> pathlib.Path:
        return self.folder / self._masks / pathlib.PurePosixPath(entry.path).with_suffix(".png")

    def _mask_file(self, entry: Entry) -> pathlib.Path | None:
        if entry.mask:
            return self.folder / entry.mask
        return self._beside(entry) if self._masks and self._beside(entry).is_file() else None

    def _class_names(self) -> list[str]:
        names = sorted({label for entry in self._entries for label in entry.labels})
        if len(names) < 2:
            raise UserError(f"{self.folder} has {len(names)} classes ({', '.join(names)}); a classifier needs two.")
        return names

    def source(self, split: str) -> FolderSource:
        """Random access to "train", "validation" or "test".

        Raises:
          UserError: any other name, or the folder is not as described.
        """
        if split not in SPLITS:
            raise UserError(f"Dataset 'folder' has no split {split!r}; it has {', '.join(SPLITS)}.")
        entries = draw_splits(self._entries, self._split_seed, *self._fractions)[split]
        left_out: list[str] = []
        if self._skip_bad:
            entries, left_out = self.check(entries)
            if left_out:
                logging.warning("%d bad photos are left out of %r: %s", len(left_out), split, " | ".join(left_out))
        old_ids = {name: class_id for class_id, name in enumerate(self.all_class_names)}
        labels = np.array(
            [self.subset.label(old_ids[label] for label in entry.labels) for entry in entries], np.float32
        )
        labels = labels.reshape(len(entries), self.info.num_classes)  # [N, C], also for N = 0
        stay, num_empty = keep_examples(labels, self._empty)
        num_dropped = len(entries) - len(stay)
        log_counts("folder", split, len(entries), num_empty, num_dropped)
        labels = labels[stay]
        labels.flags.writeable = False
        return FolderSource(self, [entries[i] for i in stay.tolist()], labels, num_empty, num_dropped, left_out)

    def read(self, entry: Entry) -> tuple[np.ndarray, np.ndarray | None]:
        """Reads photo and mask of an entry: (uint8 [h, w, 3], uint8 [h, w] or None where the folder has no masks).

        Raises:
          UserError: one of them is broken, or the mask has another size or an unknown class; the file is named.
        """
        photo = self.folder / entry.path
        image, size = _decoded(photo, lambda data: decode.decode_photo(data, self.info.image_size))
        if not self.info.has_masks:
            return image, None
        named = self._mask_file(entry)
        if named is None:
            return image, np.full(image.shape[:2], VOID, np.uint8)
        return image, _decoded(named, lambda data: self._mask(data, entry, size, image.shape[:2]))

    def photo_mask(self, entry: Entry) -> np.ndarray:
        """Reads an entry's mask at its photo's own size, uint8 [h, w], void where there is none. Raises as `read`."""
        size = _decoded(self.folder / entry.path, lambda data: decode.photo_size(data, turn=True))
        named = self._mask_file(entry)
        if named is None:
            return np.full(size, VOID, np.uint8)
        return _decoded(named, lambda data: self._mask(data, entry, size, size))

    def _mask(self, data: bytes, entry: Entry, photo_size: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
        if self._mask_values == "object":
            mask = np.where(decode.decode_grey(data) > 0, np.uint8(self.all_class_names.index(entry.labels[0]) + 1), 0)
            mask = mask.astype(np.uint8)
        else:
            mask = decode.decode_mask(data)
            largest = int(mask[mask != VOID].max(initial=0))
            if largest > len(self.all_class_names):
                raise UserError(f"the mask holds class {largest}; there are {len(self.all_class_names)}")
        return self.subset.mask(shrink_mask(mask, photo_size, size))

    def check(self, entries: Sequence[Entry]) -> tuple[list[Entry], list[str]]:
        """Decodes every photo and mask; returns the good entries and, for each bad one, what is wrong and where."""
        with concurrent.futures.ThreadPoolExecutor() as pool:
            wrong = list(pool.map(self._wrong, entries))
        return (
            [entry for entry, what in zip(entries, wrong, strict=True) if not what],
            [what for what in wrong if what],
        )

    def _wrong(self, entry: Entry) -> str:
        try:
            _decoded(self.folder / entry.path, decode.check_photo)
            self.read(entry)
        except UserError as error:
            return str(error).removesuffix(_SKIP).strip()
        return ""


def _decoded(file: pathlib.Path, decoder: Callable):
    try:
        return decoder(file.read_bytes())
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror or error}). {_SKIP}") from error
    except UserError as error:
        raise UserError(f"{file}: {error}. {_SKIP}") from error


def check_folder(data_dir: str, *, masks: str = "", skip_bad: bool = False) -> str:
    """Decodes every photo and mask of a folder, once, before hours of training.

    Args:
      data_dir: the folder.
      masks: as in `Folder`.
      skip_bad: bad photos are listed, and are no error.

    Returns:
      A summary in words: photos per split, classes, and each bad photo.

    Raises:
      UserError: the folder is not as `Folder` describes, or has bad photos and skip_bad is False.
    """
    layout = read_layout(pathlib.Path(data_dir).expanduser(), leave_out=masks)
    several = any(len(entry.labels) != 1 for entry in layout)
    dataset = Folder(data_dir=data_dir, multilabel=several, masks=masks, skip_bad=skip_bad)
    entries = dataset._entries
    good, wrong = dataset.check(entries)
    if wrong and not skip_bad:
        raise UserError(f"{len(wrong)} of {len(entries)} photos in {data_dir} are bad: {' | '.join(wrong)} {_SKIP}")
    splits = draw_splits(good, dataset._split_seed, *dataset._fractions)
    sizes = ", ".join(f"{split} {len(photos)}" for split, photos in splits.items())
    text = (
        f"{data_dir} can be read as it is: {len(good)} photos ({sizes}), classes {', '.join(dataset.all_class_names)}"
    )
    if several:
        text += "; photos show several classes or none: set the option multilabel=True"
    if wrong:
        text += f". {len(wrong)} bad photos, which the option skip_bad=True leaves out: {' | '.join(wrong)}"
    return text
