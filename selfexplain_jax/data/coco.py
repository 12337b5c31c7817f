"""COCO 2014 and 2017: instance masks merged per class, multi-label; read from the official layout, then prepared."""

from __future__ import annotations

import collections
import functools
import json
import pathlib
import warnings
from collections.abc import Mapping, Sequence

import numpy as np

from selfexplain_jax.data import raw
from selfexplain_jax.data.photo_set import PhotoSet
from selfexplain_jax.types import VOID, UserError

CLASSES = tuple(
    "person,bicycle,car,motorcycle,airplane,bus,train,truck,boat,traffic light,fire hydrant,stop sign,parking meter,"
    "bench,bird,cat,dog,horse,sheep,cow,elephant,bear,zebra,giraffe,backpack,umbrella,handbag,tie,suitcase,frisbee,skis,"
    "snowboard,sports ball,kite,baseball bat,baseball glove,skateboard,surfboard,tennis racket,bottle,wine glass,cup,"
    "fork,knife,spoon,bowl,banana,apple,sandwich,orange,broccoli,carrot,hot dog,pizza,donut,cake,chair,couch,"
    "potted plant,bed,dining table,toilet,tv,laptop,mouse,remote,keyboard,cell phone,microwave,oven,toaster,sink,"
    "refrigerator,book,clock,vase,scissors,teddy bear,hair drier,toothbrush".split(",")
)
"""In the order of the official category ids, 1 to 90 with gaps; class ids here have none."""
OUTSIDE = 2.0
"""Pixels by which a corner of a polygon may lie outside of its image: rescaled files are off by rounding."""


class COCO(PhotoSet):
    """COCO, multi-label, 80 classes; satisfies `types.Dataset`. Prepare it first: `data/prepare.py`.

    Splits: train, val. A pixel has the class of the smallest instance that covers it, so that small things in front of
    large ones are seen; crowds are void (255) where no single instance is. The label names every class that is
    annotated, crowds included. Images without any annotation have an all-zero label and an all-background mask.

    Args: see `PhotoSet`.
    """

    def __init__(
        self, name: str, image_size: int = 224, seed: int = 0, data_dir: str = "", *, classes=(), empty="keep"
    ):
        super().__init__(
            name, CLASSES, image_size, data_dir, multilabel=True, has_masks=True, classes=classes, empty=empty
        )


def read_coco(folder: pathlib.Path, year: int) -> raw.RawSet:
    """Opens the official layout: annotations/instances_{train,val}{year}.json beside train{year}/ and val{year}/.

    A split whose annotation file is not there is left out; one of the two must be.

    Raises:
      UserError: the layout is not there, or an annotation file is damaged; on reading a photo: what is wrong with it.
    """
    root = folder / "coco" if (folder / "coco" / "annotations").is_dir() else folder
    splits, entries = {}, {}
    for split in ("train", "val"):
        file = root / "annotations" / f"instances_{split}{year}.json"
        if not file.is_file():
            continue
        images = root / f"{split}{year}"
        if not images.is_dir():
            raise UserError(f"{file} is there, but not the folder {str(images)!r} with its photos.")
        found = read_annotations(file, images)
        splits[split] = list(found)
        double = sorted(set(found) & set(entries))
        if double:
            raise UserError(f"{file}: {len(double)} photos are in the other split too, the first is {double[0]!r}.")
        entries |= found
    if not splits:
        raise UserError(f"There is no annotations/instances_train{year}.json or instances_val{year}.json in {root}.")
    notes: collections.Counter = collections.Counter()
    return raw.RawSet(CLASSES, splits, functools.partial(_read, entries, notes), has_masks=True, notes=notes)


def read_annotations(file: pathlib.Path, images: pathlib.Path) -> dict[str, tuple[pathlib.Path, dict, list[dict]]]:
    """Reads an annotation file of COCO's format.

    Args:
      file: the JSON file.
      images: folder of its photos.

    Returns:
      {stem of the photo's name: (the photo, its entry in "images", its annotations with "class_id" added)}, in the
      file's order.

    Raises:
      UserError: the file is cut off, is no annotation file, knows other categories, or has an id twice.
    """
    try:
        content = json.loads(raw.read_bytes(file))
        category_ids = {category["id"]: category["name"] for category in content["categories"]}
        unknown = sorted(set(category_ids.values()) - set(CLASSES))
        if unknown:
            raise UserError(
                f"{file}: {unknown[0]!r} is no category of COCO; is this the annotation file of another set?"
            )
        raw.unique([str(image["id"]) for image in content["images"]], file)
        raw.unique([str(annotation["id"]) for annotation in content["annotations"]], file)
        raw.unique([image["file_name"] for image in content["images"]], file)
        per_image: dict[int, list[dict]] = {image["id"]: [] for image in content["images"]}
        for annotation in content["annotations"]:
            if annotation["image_id"] not in per_image or annotation["category_id"] not in category_ids:
                raise UserError(
                    f"{file}: annotation {annotation['id']} names an image or a category that is not there."
                )
            class_id = CLASSES.index(category_ids[annotation["category_id"]])
            per_image[annotation["image_id"]].append({**annotation, "class_id": class_id})
        return {
            pathlib.PurePosixPath(image["file_name"]).stem: (
                images / pathlib.PurePosixPath(image["file_name"]).name,
                image,
                per_image[image["id"]],
            )
            for image in content["images"]
        }
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: the annotation file is cut off or damaged ({error}).") from error
    except (KeyError, TypeError) as error:
        raise UserError(f"{file}: is no annotation file of COCO: {type(error).__name__} {error}.") from error


def instance_mask(annotation: Mapping, height: int, width: int) -> np.ndarray:
    """Draws one instance.

    Args:
      annotation: "segmentation" is a list of polygons [x0, y0, x1, y1, ...] or run lengths {"size", "counts"}, column
        by column, compressed or not.
      height: of the image, in pixels.
      width: of the image, in pixels.

    Returns:
      bool [height, width]; all False where every polygon has fewer than three corners.

    Raises:
      UserError: run lengths of another size, numbers that are none, or a polygon that reaches outside of the image.
    """
    import pycocotools.mask as run_lengths  # Preparing alone needs it.

    shape = annotation["segmentation"]
    try:
        if isinstance(shape, Mapping):
            if list(shape["size"]) != [height, width]:
                raise UserError(f"its run lengths are for {shape['size'][1]} x {shape['size'][0]} px")
            if isinstance(shape["counts"], list):
                if sum(shape["counts"]) != height * width or min(shape["counts"]) < 0:
                    raise UserError(f"its run lengths add up to {sum(shape['counts'])} of {height * width} pixels")
                shape = run_lengths.frPyObjects(shape, height, width)
            return _decoded(shape)
        polygons = [np.asarray(polygon, np.float64) for polygon in shape if len(polygon) >= 6]
        for polygon in polygons:
            if polygon.ndim != 1 or polygon.size % 2 or not np.isfinite(polygon).all():
                raise UserError("its polygon is no list of pairs of numbers")
            points = polygon.reshape(-1, 2)  # [N, 2]
            if points.min() < -OUTSIDE or (points.max(axis=0) > (width + OUTSIDE, height + OUTSIDE)).any():
                raise UserError(f"its polygon reaches outside of the image of {width} x {height} px")
        if not polygons:
            return np.zeros((height, width), bool)
        drawn = run_lengths.frPyObjects([polygon.tolist() for polygon in polygons], height, width)
        return _decoded(run_lengths.merge(drawn))
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"its segmentation is damaged ({error})") from error


def _decoded(compressed: Mapping) -> np.ndarray:
    import pycocotools.mask as run_lengths

    with warnings.catch_warnings():
        # What it returns says "copy" in the manner of NumPy 1; the values are right.
        warnings.filterwarnings("ignore", "__array__ implementation doesn't accept a copy", DeprecationWarning)
        return run_lengths.decode(compressed).astype(bool)


def merge_instances(instances: Sequence[tuple[np.ndarray, int, bool]], height: int, width: int) -> np.ndarray:
    """Merges instances to one mask per image.

    Args:
      instances: (bool [height, width], class id, whether it is a crowd) of each.
      height: in pixels.
      width: in pixels.

    Returns:
      uint8 [height, width]: crowds first, as void; then instances from the largest to the smallest, as class id + 1;
      among equally large ones the later lies on top.
    """
    mask = np.zeros((height, width), np.uint8)
    for covered, _, is_crowd in instances:
        if is_crowd:
            mask[covered] = VOID
    single = [(covered, class_id) for covered, class_id, is_crowd in instances if not is_crowd]
    for covered, class_id in sorted(single, key=lambda instance: -int(instance[0].sum())):
        mask[covered] = class_id + 1
    return mask


def _read(entries: Mapping, notes: collections.Counter, name: str) -> raw.RawPhoto:
    file, image, annotations = entries[name]
    photo, height, width = raw.read_photo(file)
    if (image.get("height"), image.get("width")) != (height, width):
        raise UserError(
            f"{file}: the photo is {width} x {height} px, its annotations are for {image.get('width')} x "
            f"{image.get('height')}."
        )
    instances, corners, class_ids, ignored = [], [], [], []
    for annotation in annotations:
        try:
            covered = instance_mask(annotation, height, width)
            left, top, box_width, box_height = map(float, annotation["bbox"])
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{file}: annotation {annotation['id']}: {error}.") from error
        if not covered.any():
            notes["instances that cover no pixel: in the label, not in the mask"] += 1
        is_crowd = bool(annotation.get("iscrowd", 0))
        instances.append((covered, annotation["class_id"], is_crowd))
        class_ids.append(annotation["class_id"])
        ignored.append(is_crowd)
        corners.append((left / width, top / height, (left + box_width) / width, (top + box_height) / height))
    mask = merge_instances(instances, height, width)
    return raw.RawPhoto(photo, mask, sorted(set(class_ids)), **raw.boxes(corners, class_ids, ignored))
