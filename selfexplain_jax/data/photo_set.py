"""Photo sets that this project's builders have prepared: reading them, on all of their classes or on some."""

from __future__ import annotations

import dataclasses
import functools
import json
import operator
from collections.abc import Sequence

import numpy as np
from absl import logging

from selfexplain_jax.data import decode
from selfexplain_jax.data.classes import ClassSubset, check_empty, keep_examples
from selfexplain_jax.data.records import Records, is_prepared, prepare_command, prepared_path, records_folder
from selfexplain_jax.types import VOID, Boxes, DatasetInfo, Example, UserError, is_whole_number

VERSION = "1.0.0"
"""Of what the builders write; a change in it means preparing again."""
RECORDS_SPLIT = "photos"
"""The one split in the files: every photo is stored once, and the metadata say which belong to which split."""


def prepared_metadata(name: str, data_dir: str) -> dict:
    """Returns what the builder wrote down about a prepared set; an empty dict where it is not prepared.

    Keys: class_names, has_masks; splits {name: positions in the records}; labels, a list of class ids per record;
    left_out, names of bad photos; notes {what: count}.

    Raises:
      UserError: the file is damaged.
    """
    if not is_prepared(name, VERSION, data_dir):
        return {}
    from etils import epath

    file = epath.Path(prepared_path(name, VERSION, data_dir)) / "metadata.json"
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError) as error:
        command = prepare_command(name, records_folder(data_dir))
        raise UserError(f"{file} is damaged ({error}). Delete its folder and prepare it again: {command}") from error


@dataclasses.dataclass(frozen=True)
class PhotoSource:
    """Random access to one split; see `types.Source`.

    num_empty:   examples of the split with none of the classes, whether they were kept or dropped.
    num_dropped: those that were dropped.
    """

    records: Records
    positions: np.ndarray
    all_labels: np.ndarray
    subset: ClassSubset
    info: DatasetInfo
    num_empty: int
    num_dropped: int

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.positions)

    def labels(self) -> np.ndarray:
        """Every example's label, float32 [N, C], without reading the photos."""
        return self.all_labels

    def _record(self, index: int) -> dict:
        index = operator.index(index)
        if not 0 <= index < len(self):
            raise IndexError(f"Index {index} is outside the split of {len(self)} examples.")
        return self.records[int(self.positions[index])]

    def __getitem__(self, index: int) -> Example:
        """Returns example `index` at its photo's own size; see `types.Example`.

        Raises:
          IndexError: outside 0 <= index < len(self).
          UserError: the record is damaged.
        """
        record = self._record(index)
        name = record["id"].decode()
        try:
            image, size = decode.decode_photo(record["image"], self.info.image_size, turn=False)
            example: Example = {"image": image, "label": self.all_labels[index], "id": name}
            if self.info.has_masks:
                mask = self.subset.mask(decode.decode_mask(record["mask"])) if record["mask"] else _void(image)
                example["mask"] = shrink_mask(mask, size, image.shape[:2])
        except UserError as error:
            raise UserError(f"Dataset {self.info.name!r}, photo {name!r}: {error}. Prepare it again.") from error
        return example

    def boxes(self, index: int) -> Boxes:
        """The boxes of example `index`, those of the chosen classes; see `types.Boxes`. The photo is not decoded."""
        record = self._record(index)
        class_ids = self.subset.class_ids(record["box_class_ids"])
        keep = class_ids >= 0
        size = (int(record["height"]), int(record["width"]))
        return Boxes(record["boxes"].reshape(-1, 4)[keep], class_ids[keep], record["box_ignored"][keep], size)

    def photo_mask(self, index: int) -> np.ndarray:
        """The mask of example `index` at its photo's own size, uint8 [h, w]; the photo is not decoded.

        Raises:
          UserError: the record is damaged.
        """
        record = self._record(index)
        if not record["mask"]:
            return np.full((int(record["height"]), int(record["width"])), VOID, np.uint8)
        try:
            return self.subset.mask(decode.decode_mask(record["mask"]))
        except UserError as error:
            name = record["id"].decode()
            raise UserError(f"Dataset {self.info.name!r}, photo {name!r}: {error}. Prepare it again.") from error


class PhotoSet:
    """A prepared set of photos; satisfies `types.Dataset`.

    Args:
      name: of the prepared set.
      class_names: all of its classes.
      image_size: side of the square that the pipeline makes of a photo.
      data_dir: where the prepared set lies; see `records.records_folder`.
      multilabel: a photo may show several classes, or none.
      has_masks: whether there are masks; a photo without one has it all void.
      classes: names of the classes to train on, in this order; empty = all. Pixels of the others become background.
      empty: photos that show none of the classes: "keep" (with an all-zero label) or "drop"; they are counted either
        way, in the log and as `PhotoSource.num_empty`.

    Raises:
      UserError: an option is out of range; at `source`, the set is not prepared or has no such split.
    """

    def __init__(
        self,
        name: str,
        class_names: Sequence[str],
        image_size: int,
        data_dir: str,
        *,
        multilabel: bool,
        has_masks: bool,
        classes: Sequence[str] = (),
        empty: str = "keep",
    ):
        check_image_size(name, image_size)
        check_empty(name, empty)
        self.subset = ClassSubset(name, class_names, classes)
        self.all_class_names, self.data_dir, self.empty = tuple(class_names), data_dir, empty
        self.info = DatasetInfo(
            name=name,
            num_classes=len(self.subset.names),
            class_names=self.subset.names,
            multilabel=multilabel,
            image_size=int(image_size),
            has_masks=has_masks,
            own_sizes=True,
            has_boxes=True,
        )

    @functools.cached_property
    def _records(self) -> Records:
        return Records(self.info.name, RECORDS_SPLIT, self.data_dir, version=VERSION, encoded=("image", "mask"))

    def source(self, split: str) -> PhotoSource:
        """Random access to one of the prepared splits.

        Raises:
          UserError: the set is not prepared, was prepared with other classes, or has no such split (the message lists
            those there are).
        """
        name, records = self.info.name, self._records
        known = prepared_metadata(name, self.data_dir)
        if split not in known["splits"]:
            raise UserError(f"Dataset {name!r} has no split {split!r}; it has {', '.join(known['splits'])}.")
        if tuple(known["class_names"]) != self.all_class_names:
            raise UserError(
                f"Dataset {name!r} was prepared with other classes. Delete its folder and prepare it again."
            )
        positions = np.array(known["splits"][split], np.int64)
        labels = np.array([self.subset.label(known["labels"][position]) for position in positions.tolist()])
        labels = labels.reshape(len(positions), self.info.num_classes).astype(np.float32)  # [N, C], also for N = 0
        stay, num_empty = keep_examples(labels, self.empty)
        labels = labels[stay]
        labels.flags.writeable = False
        log_counts(name, split, len(positions), num_empty, len(positions) - len(stay))
        dropped = len(positions) - len(stay)
        return PhotoSource(records, positions[stay], labels, self.subset, self.info, num_empty, dropped)


def log_counts(name: str, split: str, count: int, num_empty: int, num_dropped: int) -> None:
    """Logs how many examples a split has, and how many of them show none of the classes."""
    fate = "dropped" if num_dropped else "kept, with an all-zero label"
    what = "Dataset %r, split %r: %d photos; %d show none of the classes (%s)."
    (logging.warning if num_dropped else logging.info)(what, name, split, count, num_empty, fate)


def shrink_mask(mask: np.ndarray, photo_size: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
    """Brings a mask to the size to which its photo was shrunk while it was decoded; nearest pixel, uint8.

    Args:
      mask: uint8 [h, w], of the photo's full size.
      photo_size: (height, width) of the photo in full.
      size: (height, width) as decoded.

    Raises:
      UserError: the mask has not the photo's size.
    """
    if mask.shape == size:
        return mask
    if mask.shape != photo_size:
        raise UserError(
            f"the mask is {mask.shape[1]} x {mask.shape[0]} px, its photo {photo_size[1]} x {photo_size[0]}"
        )
    rows = ((np.arange(size[0]) + 0.5) * photo_size[0] / size[0]).astype(np.intp)
    columns = ((np.arange(size[1]) + 0.5) * photo_size[1] / size[1]).astype(np.intp)
    return mask[rows][:, columns]


def check_image_size(name: str, image_size: int) -> None:
    """Raises UserError unless image_size is a whole number from 8 to 2048."""
    if not is_whole_number(image_size) or not 8 <= image_size <= 2048:
        raise UserError(f"Dataset {name!r}: image_size={image_size!r} must be a whole number, 8 to 2048.")


def _void(image: np.ndarray) -> np.ndarray:
    return np.full(image.shape[:2], VOID, np.uint8)
