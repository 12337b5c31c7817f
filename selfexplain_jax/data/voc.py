"""PASCAL VOC 2007 and 2012 with class segmentation masks, multi-label; read from the official layout, then prepared."""

from __future__ import annotations

import collections
import functools
import pathlib
import xml.etree.ElementTree as ElementTree

import numpy as np

from selfexplain_jax.data import raw
from selfexplain_jax.data.photo_set import PhotoSet
from selfexplain_jax.types import VOID, UserError

CLASSES = (
    "aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person pottedplant sheep "
    "sofa train tvmonitor"
).split()
SPLIT_FILES = {
    "train": ("Segmentation/train.txt",),
    "val": ("Segmentation/val.txt",),
    "trainval": ("Segmentation/trainval.txt",),
    "test": ("Segmentation/test.txt",),
    "train_aug": ("Segmentation/train_aug.txt", "Segmentation/trainaug.txt"),
    "main_train": ("Main/train.txt",),
    "main_val": ("Main/val.txt",),
    "main_trainval": ("Main/trainval.txt",),
    "main_test": ("Main/test.txt",),
}
"""Split -> its list in ImageSets/, under any of these names."""
MASK_FOLDERS = ("SegmentationClass", "SegmentationClassAug")


class VOC(PhotoSet):
    """PASCAL VOC, multi-label, 20 classes; satisfies `types.Dataset`. Prepare it first: `data/prepare.py`.

    Splits: train, val, trainval, and train_aug where its list was there: those of the segmentation task, whose images
    all have masks. main_train, main_val, main_trainval (2007 also test and main_test): those of the classification
    task; images without a mask have it all void. Labels are the classes in the mask where there is one, else those
    of the boxes, difficult ones included. Borders of objects are void (255).

    Args: see `PhotoSet`.
    """

    def __init__(
        self, name: str, image_size: int = 224, seed: int = 0, data_dir: str = "", *, classes=(), empty="keep"
    ):
        super().__init__(
            name, CLASSES, image_size, data_dir, multilabel=True, has_masks=True, classes=classes, empty=empty
        )


def read_voc(folder: pathlib.Path, year: int) -> raw.RawSet:
    """Opens the official layout, `folder`/VOCdevkit/VOC{year}: JPEGImages, SegmentationClass, Annotations, ImageSets.

    Raises:
      UserError: the layout is not there, or a list is damaged; on reading a photo: what is wrong with which file.
    """
    places = (folder / "VOCdevkit" / f"VOC{year}", folder / f"VOC{year}")
    root = next((place for place in places if place.is_dir()), None)
    if root is None:
        raise UserError(
            f"There is no VOCdevkit/VOC{year} in {str(folder)!r}. Name the folder or archive that holds it."
        )
    splits = {}
    for split, names in SPLIT_FILES.items():
        file = next((root / "ImageSets" / name for name in names if (root / "ImageSets" / name).is_file()), None)
        # The lists of the test set of 2012 name photos that are not public.
        if file is not None and not (year == 2012 and split.endswith("test")):
            splits[split] = raw.unique(raw.read_lines(file), file)
    if "train" not in splits:
        raise UserError(f"{root}: there is no list ImageSets/Segmentation/train.txt.")
    notes: collections.Counter = collections.Counter()
    read = functools.partial(_read, root, notes)
    return raw.RawSet(CLASSES, splits, read, has_masks=True, notes=notes)


def _read(root: pathlib.Path, notes: collections.Counter, name: str) -> raw.RawPhoto:
    photo, height, width = raw.read_photo(root / "JPEGImages" / f"{name}.jpg")
    annotation = root / "Annotations" / f"{name}.xml"
    file = next((file for part in MASK_FOLDERS if (file := root / part / f"{name}.png").is_file()), None)
    if not annotation.is_file() and file is None:
        raise UserError(f"{root}: photo {name!r} has neither a mask nor an annotation.")
    if annotation.is_file():
        boxes = _read_boxes(annotation, height, width)
    else:
        notes["photos without an annotation file: no boxes"] += 1
        boxes = raw.no_boxes()
    if file is None:
        notes["photos without a mask: all void, labels from the boxes"] += 1
        class_ids = sorted(set(boxes["box_class_ids"].tolist()))
        return raw.RawPhoto(photo, None, class_ids, **boxes)
    mask = raw.read_mask(file, height, width)
    values = np.unique(mask)
    values = values[(values > 0) & (values < VOID)]
    if values.size and values.max() > len(CLASSES):
        raise UserError(f"{file}: the mask holds class {values.max()}; there are {len(CLASSES)}.")
    class_ids = (values.astype(int) - 1).tolist()
    if set(class_ids) != set(boxes["box_class_ids"].tolist()) and annotation.is_file():
        notes["photos whose boxes name other classes than their mask: the mask counts"] += 1
    return raw.RawPhoto(photo, mask, class_ids, **boxes)


def _read_boxes(file: pathlib.Path, height: int, width: int) -> dict[str, np.ndarray]:
    """Boxes in VOC are pixels counted from 1, both ends included."""
    corners, class_ids, ignored = [], [], []
    try:
        for item in ElementTree.fromstring(raw.read_bytes(file)).findall("object"):
            name = item.findtext("name", "").strip()
            if name not in CLASSES:
                raise UserError(f"{file}: {name!r} is no class of VOC.")
            sides = ("xmin", "ymin", "xmax", "ymax")
            left, top, right, bottom = (float(item.findtext(f"bndbox/{side}")) for side in sides)
            corners.append(((left - 1) / width, (top - 1) / height, right / width, bottom / height))
            class_ids.append(CLASSES.index(name))
            ignored.append(item.findtext("difficult", "0").strip() == "1")
    except (ElementTree.ParseError, TypeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{file}: the annotation is cut off or damaged ({error}).") from error
    return raw.boxes(corners, class_ids, ignored)
