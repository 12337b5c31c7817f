"""Tiny stand-ins of the datasets, on disk and in official layouts: for tests, and to try a config without its data."""

from __future__ import annotations

import dataclasses
import functools
import io
import json
import pathlib
from collections.abc import Callable, Iterator

import cv2
import numpy as np
from PIL import Image

from selfexplain_jax.data import builders, coco, cub, voc
from selfexplain_jax.data.raw import RawSet
from selfexplain_jax.data.tfds_images import CIFAR10_CLASSES, CIFAR100_CLASSES, imagenet_classes

PHOTOS = 6
"""Photos of each fake; of different sizes."""


@dataclasses.dataclass(frozen=True)
class Fake:
    """What to put into `config.data` to use a fake, and where its original layout lies, if it has one."""

    data_dir: str = ""
    options: dict = dataclasses.field(default_factory=dict)
    train_split: str = "train"
    eval_split: str = "test"
    manual_dir: str = ""


def draw_photo(index: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns (photo uint8 [h, w, 3]; bool [h, w], where its one object is): a disc on a gradient."""
    height, width = 40 + 4 * (index % 3), 56 - 4 * (index % 2)
    rows, columns = np.mgrid[:height, :width]
    inside = (rows - height // 2) ** 2 + (columns - width // 3) ** 2 < 10**2
    photo = np.stack([rows * 4, columns * 4, np.full_like(rows, 90)], axis=-1).astype(np.uint8)
    photo[inside] = (250 - 30 * index, 40 * index, 128)
    return photo, inside


def write_jpeg(file: pathlib.Path, photo: np.ndarray) -> None:
    """Writes a photo uint8 [h, w, 3], with the folders above it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(photo).save(file, quality=95)


def write_palette_mask(file: pathlib.Path, mask: np.ndarray) -> None:
    """Writes a mask uint8 [h, w] as a palette PNG, as VOC has them."""
    file.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(mask)
    image.putpalette([(37 * value) % 256 for value in range(768)])
    image.save(file)


def write_voc(folder: pathlib.Path, year: int) -> None:
    """Writes VOCdevkit/VOC{year}: train 0-3 (photo 3 shows nothing), val 4-5; main_train has photo 6 without a mask."""
    root = folder / "VOCdevkit" / f"VOC{year}"
    names = [f"{year}_{index:06d}" for index in range(PHOTOS + 1)]
    lists = {
        "Segmentation/train": names[:4],
        "Segmentation/val": names[4:6],
        "Segmentation/trainval": names[:6],
        "Main/train": [*names[:4], names[6]],
    }
    if year == 2007:
        lists["Segmentation/test"] = names[4:6]
    for part, listed in lists.items():
        file = root / "ImageSets" / f"{part}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("\n".join(listed) + "\n")
    (root / "Annotations").mkdir()
    for index, name in enumerate(names):
        photo, inside = draw_photo(index)
        write_jpeg(root / "JPEGImages" / f"{name}.jpg", photo)
        class_name = "cat" if index % 2 else "dog"
        box = _box(inside)
        item = (
            ""
            if index == 3
            else (
                f"<object><name>{class_name}</name><difficult>{index % 2}</difficult><bndbox><xmin>{box[0] + 1}</xmin>"
                f"<ymin>{box[1] + 1}</ymin><xmax>{box[2]}</xmax><ymax>{box[3]}</ymax></bndbox></object>"
            )
        )
        (root / "Annotations" / f"{name}.xml").write_text(f"<annotation>{item}</annotation>")
        if index < PHOTOS:
            mask = np.where(inside & (index != 3), np.uint8(voc.CLASSES.index(class_name) + 1), np.uint8(0))
            mask[cv2.dilate(inside.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool) & ~inside] = 255
            write_palette_mask(root / "SegmentationClass" / f"{name}.png", mask)


def write_coco(folder: pathlib.Path, year: int) -> None:
    """Writes annotations/ and photos of train (4) and val (2): polygons, run lengths, a crowd, one with nothing."""
    for split, indices in (("train", range(4)), ("val", range(4, PHOTOS))):
        images, annotations = [], []
        for index in indices:
            photo, inside = draw_photo(index)
            height, width = inside.shape
            file_name = f"{index + 1:012d}.jpg"
            write_jpeg(folder / f"{split}{year}" / file_name, photo)
            images.append({"id": index + 1, "file_name": file_name, "height": height, "width": width})
            if index == 3:
                continue
            left, top, right, bottom = _box(inside)
            polygon = [left, top, right, top, right, bottom, left, bottom]
            shapes = ([polygon], run_lengths(inside), run_lengths(~inside))
            for category, crowd, shape in ((17, 0, shapes[0]), (18, 0, shapes[1]), (1, 1, shapes[2])):
                annotations.append({
                    "id": 10 * index + category, "image_id": index + 1, "category_id": category, "iscrowd": crowd,
                    "segmentation": shape, "bbox": [left, top, right - left, bottom - top],
                })  # fmt: skip
        categories = [{"id": 1, "name": "person"}, {"id": 17, "name": "cat"}, {"id": 18, "name": "dog"}]
        file = folder / "annotations" / f"instances_{split}{year}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))


def run_lengths(covered: np.ndarray) -> dict:
    """Returns a mask bool [h, w] as COCO's uncompressed run lengths: column by column, beginning with background."""
    flat = covered.T.ravel().astype(np.int8)
    changes = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff([0, *changes.tolist(), flat.size]).tolist()
    return {"size": list(covered.shape), "counts": [0, *counts] if flat[0] else counts}


def write_cub(folder: pathlib.Path, masks: bool = True) -> None:
    """Writes CUB_200_2011 with two classes, and segmentations/ beside it."""
    root = folder / "CUB_200_2011"
    root.mkdir(parents=True)
    lines: dict[str, list[str]] = {name: [] for name in (
        "images", "image_class_labels", "train_test_split", "bounding_boxes"
    )}  # fmt: skip
    names = ("001.Red_Bird", "002.Blue_Bird")
    for index in range(PHOTOS):
        photo, inside = draw_photo(index)
        path = f"{names[index % 2]}/bird_{index}"
        write_jpeg(root / "images" / f"{path}.jpg", photo)
        left, top, right, bottom = _box(inside)
        lines["images"].append(f"{index + 1} {path}.jpg")
        lines["image_class_labels"].append(f"{index + 1} {index % 2 + 1}")
        lines["train_test_split"].append(f"{index + 1} {int(index < 4)}")
        lines["bounding_boxes"].append(f"{index + 1} {left}.0 {top}.0 {right - left}.0 {bottom - top}.0")
        if masks:
            file = folder / "segmentations" / f"{path}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.where(inside, np.uint8(255), np.uint8(0))).save(file)
    for name, content in lines.items():
        (root / f"{name}.txt").write_text("\n".join(content) + "\n")
    (root / "classes.txt").write_text(f"1 {names[0]}\n2 {names[1]}\n")


def write_folder(folder: pathlib.Path) -> None:
    """Writes cat/ and dog/ with four photos each, and masks/ with a mask of the first of each."""
    for index in range(8):
        photo, inside = draw_photo(index % PHOTOS)
        path = f"{('cat', 'dog')[index % 2]}/{index}"
        write_jpeg(folder / f"{path}.jpg", photo)
        if index < 2:
            write_palette_mask(folder / "masks" / f"{path}.png", np.where(inside, np.uint8(index + 1), np.uint8(0)))


def write_tfds_images(folder: pathlib.Path, name: str, version: str, num_classes: int, last_split: str) -> None:
    """Writes array_record files as TFDS's builder `name` would: a few images of the first two classes."""
    import tensorflow_datasets as tfds

    name_key = "file_name" if name == "imagenet2012" else "id"

    class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        """The fake."""

        VERSION = tfds.core.Version(version)

        def _info(self):
            features = {
                name_key: tfds.features.Text(),
                "image": tfds.features.Image(shape=(None, None, 3), encoding_format="png"),
                "label": tfds.features.ClassLabel(num_classes=num_classes),
            }
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            del dl_manager
            return {split: self._generate_examples(split) for split in ("train", last_split)}

        def _generate_examples(self, split) -> Iterator:
            for index in range(PHOTOS):
                stored = io.BytesIO()
                Image.fromarray(draw_photo(index)[0]).resize((32, 32)).save(stored, "PNG")
                stored.seek(0)
                yield index, {name_key: f"{split}_{index}", "image": stored, "label": index % 2}

    Builder.name = name
    Builder(data_dir=str(folder), file_format="array_record").download_and_prepare()


def _box(inside: np.ndarray) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _prepared(
    folder: pathlib.Path, *, name: str, write: Callable[[pathlib.Path], None], read: Callable, eval_split: str
) -> Fake:
    write(folder / "raw")
    raw_set: RawSet = read(folder / "raw")
    builders.write_photo_set(name, raw_set, str(folder / "data"))
    return Fake(str(folder / "data"), eval_split=eval_split, manual_dir=str(folder / "raw"))


def _photo_set(name: str, module, kind: str, year: int) -> Callable[[pathlib.Path], Fake]:
    write = functools.partial({"voc": write_voc, "coco": write_coco}[kind], year=year)
    read = functools.partial(getattr(module, f"read_{kind}"), year=year)
    return functools.partial(_prepared, name=name, write=write, read=read, eval_split="val")


def _tfds(folder: pathlib.Path, *, name: str, version: str, num_classes: int, last_split: str = "test") -> Fake:
    write_tfds_images(folder, name, version, num_classes, last_split)
    return Fake(str(folder), eval_split=last_split)


def _folder(folder: pathlib.Path) -> Fake:
    write_folder(folder)
    return Fake(str(folder), {"masks": "masks", "test_fraction": 0.25})


def _synthetic(folder: pathlib.Path) -> Fake:
    del folder
    return Fake(options={"train_size": PHOTOS, "test_size": PHOTOS})


FAKES: dict[str, Callable[[pathlib.Path], Fake]] = {
    "cifar10": functools.partial(_tfds, name="cifar10", version="3.0.2", num_classes=len(CIFAR10_CLASSES)),
    "cifar100": functools.partial(_tfds, name="cifar100", version="3.0.2", num_classes=len(CIFAR100_CLASSES)),
    "coco2014": _photo_set("coco2014", coco, "coco", 2014),
    "coco2017": _photo_set("coco2017", coco, "coco", 2017),
    "cub200": functools.partial(_prepared, name="cub200", write=write_cub, read=cub.read_cub, eval_split="test"),
    "folder": _folder,
    "imagenet2012": functools.partial(
        _tfds, name="imagenet2012", version="5.1.0", num_classes=len(imagenet_classes()), last_split="validation"
    ),
    "synthetic": _synthetic,
    "voc2007": _photo_set("voc2007", voc, "voc", 2007),
    "voc2012": _photo_set("voc2012", voc, "voc", 2012),
}
"""Name of a dataset -> function that writes its fake into an empty folder. MNIST has none: its counts are fixed."""
