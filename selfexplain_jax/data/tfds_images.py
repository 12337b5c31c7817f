"""CIFAR-10, CIFAR-100 and ImageNet 2012 under the names and versions that TFDS gives them: one class per image."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import operator
import pathlib
from collections.abc import Sequence

import numpy as np

from selfexplain_jax.data import decode
from selfexplain_jax.data.classes import ClassSubset, keep_examples
from selfexplain_jax.data.photo_set import check_image_size, log_counts
from selfexplain_jax.data.records import Records
from selfexplain_jax.types import DatasetInfo, Example, UserError

CIFAR10_CLASSES = "airplane automobile bird cat deer dog frog horse ship truck".split()
CIFAR100_CLASSES = (
    "apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can "
    "castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin "
    "elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster "
    "man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck "
    "pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk "
    "skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger "
    "tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm"
).split()
_CHUNK = 2048


def imagenet_classes() -> list[str]:
    """Returns ImageNet's 1,000 WordNet ids in the official order (sorted), from the list that TFDS brings along."""
    # Found without importing it, which takes seconds.
    package = pathlib.Path(importlib.util.find_spec("tensorflow_datasets").origin).parent
    return (package / "datasets" / "imagenet2012" / "labels.txt").read_text().split()


@dataclasses.dataclass(frozen=True)
class TFDSImagesSource:
    """Random access to one split; see `types.Source`."""

    records: Records
    positions: np.ndarray | None
    subset: ClassSubset
    info: DatasetInfo
    split: str

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.records) if self.positions is None else len(self.positions)

    def labels(self) -> np.ndarray:
        """Every example's label, float32 [N, C]. The first call of a process reads all records of the split."""
        class_ids = _class_ids(self.info.name, self.split, self.records.folder)
        if self.positions is not None:
            class_ids = class_ids[self.positions]
        return np.eye(self.info.num_classes, dtype=np.float32)[self.subset.class_ids(class_ids)]

    def __getitem__(self, index: int) -> Example:
        """Returns example `index` at its own size; see `types.Example`.

        Raises:
          IndexError: outside 0 <= index < len(self).
          UserError: the record is damaged.
        """
        index = operator.index(index)
        if not 0 <= index < len(self):
            raise IndexError(f"Index {index} is outside the {self.split} split of {len(self)} examples.")
        record = self.records[index if self.positions is None else int(self.positions[index])]
        name = (record.get("id") or record["file_name"]).decode()  # CIFAR has the one, ImageNet the other.
        try:
            image, _ = decode.decode_photo(record["image"], self.info.image_size, turn=False)
        except UserError as error:
            raise UserError(f"Dataset {self.info.name!r}, image {name!r}: {error}. Prepare it again.") from error
        return {"image": image, "label": self.subset.label([record["label"]]), "id": name}


@functools.lru_cache(maxsize=8)
def _class_ids(name: str, split: str, folder: str) -> np.ndarray:
    """The class id of every record, int64 [N]."""
    records, found = Records(name, split, folder, encoded=("image",)), []
    for start in range(0, len(records), _CHUNK):
        items = records.read(range(start, min(start + _CHUNK, len(records))))
        found += [int(item["label"]) for item in items]
    return np.array(found, np.int64)


class TFDSImages:
    """Images with one class each, as prepared by TFDS; satisfies `types.Dataset`. No masks.

    Splits are TFDS's: train and test (CIFAR), train and validation (ImageNet), and slices such as "train[:90%]".

    Args:
      name: of the dataset in TFDS.
      class_names: in the order of its class ids.
      image_size: side of the square that the pipeline makes of an image.
      seed: not used; here because every dataset takes it.
      data_dir: where the prepared set lies; see `records.records_folder`.
      classes: names of the classes to train on (ImageNet: WordNet ids), in this order; empty = all. Images of others
        are left out, which needs one pass over the split: for all of ImageNet, as long as it takes to read it.

    Raises:
      UserError: an option is out of range; at `source`, the set is not prepared or has no such split.
    """

    def __init__(
        self,
        name: str,
        class_names: Sequence[str],
        image_size: int = 32,
        seed: int = 0,
        data_dir: str = "",
        *,
        classes=(),
    ):
        del seed
        self.data_dir = data_dir
        check_image_size(name, image_size)
        self.subset = ClassSubset(name, class_names, classes)
        self.all_classes = not classes
        self.info = DatasetInfo(
            name=name,
            num_classes=len(self.subset.names),
            class_names=tuple(self.subset.names),
            multilabel=False,
            image_size=int(image_size),
            has_masks=False,
            own_sizes=True,
        )

    def source(self, split: str) -> TFDSImagesSource:
        """Random access to a split. Raises UserError where the set is not prepared, is damaged or has no such split."""
        records = Records(self.info.name, split, self.data_dir, encoded=("image",))
        positions = None
        if not self.all_classes:
            class_ids = _class_ids(self.info.name, split, records.folder)
            labels = np.stack([self.subset.label([class_id]) for class_id in class_ids])
            positions, dropped = keep_examples(labels, "drop")
            log_counts(self.info.name, split, len(labels), dropped, dropped)
        return TFDSImagesSource(records, positions, self.subset, self.info, split)


class CIFAR10(TFDSImages):
    """CIFAR-10; see `TFDSImages`."""

    def __init__(self, image_size: int = 32, seed: int = 0, data_dir: str = "", *, classes=()):
        super().__init__("cifar10", CIFAR10_CLASSES, image_size, seed, data_dir, classes=classes)


class CIFAR100(TFDSImages):
    """CIFAR-100 with its 100 fine classes; see `TFDSImages`."""

    def __init__(self, image_size: int = 32, seed: int = 0, data_dir: str = "", *, classes=()):
        super().__init__("cifar100", CIFAR100_CLASSES, image_size, seed, data_dir, classes=classes)


class ImageNet2012(TFDSImages):
    """ImageNet 2012, classes named by their WordNet ids; see `TFDSImages`."""

    def __init__(self, image_size: int = 224, seed: int = 0, data_dir: str = "", *, classes=()):
        super().__init__("imagenet2012", imagenet_classes(), image_size, seed, data_dir, classes=classes)
