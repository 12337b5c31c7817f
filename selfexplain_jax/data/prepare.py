"""Prepares a dataset: `python -m selfexplain_jax.data.prepare --dataset=voc2012 --data_dir=DIR --manual_dir=ARCHIVES`.

Photo sets of this project (VOC, COCO, CUB) are written as array_record files from their official archives or unpacked
layout, without TensorFlow. TFDS's own (MNIST, CIFAR, ImageNet) need TensorFlow to be prepared, and to be read never:
this is the one file that imports it. A folder of your own photos is checked, and nothing is written.

All is written into folders `incomplete.*`, renamed when it is complete, so that an interrupted preparation leaves
nothing that would be read; the same command then starts again, with the finished downloads.
"""

from __future__ import annotations

import argparse
import functools
import pathlib
import sys
from collections.abc import Callable, Sequence

from selfexplain_jax.data import builders, coco, cub, voc
from selfexplain_jax.data.archives import Archive, download, unpacked
from selfexplain_jax.data.folder import check_folder
from selfexplain_jax.data.photo_set import VERSION, prepared_metadata
from selfexplain_jax.data.raw import RawSet
from selfexplain_jax.data.records import is_prepared, prepare_command, prepared_path, records_folder
from selfexplain_jax.types import UserError

OFFICIAL = {
    "mnist": "mnist:3.0.1",
    "cifar10": "cifar10:3.0.2",
    "cifar100": "cifar100:3.0.2",
    "imagenet2012": "imagenet2012:5.1.0",
}
"""Datasets of TFDS: name -> name and version there."""

_VOC = "http://host.robots.ox.ac.uk/pascal/VOC/"
_LISTS_2007 = "VOCdevkit/VOC2007/ImageSets/Segmentation"
_COCO = "http://images.cocodataset.org/"
_CALTECH = "https://data.caltech.edu/records/"


def _coco_archives(year: int) -> tuple[Archive, ...]:
    annotations = f"annotations_trainval{year}.zip"
    return (
        Archive(annotations, f"{_COCO}annotations/{annotations}", f"annotations/instances_val{year}.json"),
        Archive(f"train{year}.zip", f"{_COCO}zips/train{year}.zip", f"train{year}"),
        Archive(f"val{year}.zip", f"{_COCO}zips/val{year}.zip", f"val{year}"),
    )


PHOTO_SETS: dict[str, tuple[Callable[[pathlib.Path], RawSet], tuple[Archive, ...]]] = {
    "voc2007": (
        functools.partial(voc.read_voc, year=2007),
        (
            Archive(
                "VOCtrainval_06-Nov-2007.tar", f"{_VOC}voc2007/VOCtrainval_06-Nov-2007.tar", f"{_LISTS_2007}/train.txt"
            ),
            Archive(
                "VOCtest_06-Nov-2007.tar", f"{_VOC}voc2007/VOCtest_06-Nov-2007.tar", f"{_LISTS_2007}/test.txt", False
            ),
        ),
    ),
    "voc2012": (
        functools.partial(voc.read_voc, year=2012),
        (Archive("VOCtrainval_11-May-2012.tar", f"{_VOC}voc2012/VOCtrainval_11-May-2012.tar", "VOCdevkit/VOC2012"),),
    ),
    "coco2014": (functools.partial(coco.read_coco, year=2014), _coco_archives(2014)),
    "coco2017": (functools.partial(coco.read_coco, year=2017), _coco_archives(2017)),
    "cub200": (
        cub.read_cub,
        (
            Archive("CUB_200_2011.tgz", f"{_CALTECH}65de6-vp158/files/CUB_200_2011.tgz", "CUB_200_2011/images.txt"),
            Archive("segmentations.tgz", f"{_CALTECH}w9d68-gec53/files/segmentations.tgz", "segmentations", False),
        ),
    ),
}
"""Datasets of this project's builders: name -> (reader of the unpacked layout, official archives)."""

PREPARABLE = (*OFFICIAL, *PHOTO_SETS, "folder")


def prepare(name: str, data_dir: str = "", manual_dir: str = "", *, masks: str = "", skip_bad: bool = False) -> str:
    """Prepares a dataset, unless it is there already.

    Args:
      name: one of `PREPARABLE`.
      data_dir: where to; see `records.records_folder`. For "folder": the photos.
      manual_dir: folder with the official archives, or with what is in them; empty: they are downloaded.
      masks: for "folder": the folder in `data_dir` that holds the masks.
      skip_bad: bad photos are left out and listed; else the first one stops the preparation.

    Returns:
      A line that says what is ready and where.

    Raises:
      UserError: unknown dataset, no TensorFlow where it is needed, bad files, or the download or the writing fails.
    """
    if name not in PREPARABLE:
        raise UserError(f"--dataset={name!r} cannot be prepared. There are: {', '.join(sorted(PREPARABLE))}.")
    if name == "folder":
        return check_folder(data_dir, masks=masks, skip_bad=skip_bad)
    if name in OFFICIAL:
        return f"{name} is ready in {_prepare_official(name, data_dir, manual_dir)}"
    if not is_prepared(name, VERSION, data_dir):
        read, archives = PHOTO_SETS[name]
        if "://" in records_folder(data_dir):
            raise UserError(f"--data_dir={data_dir!r} is no local folder. Prepare in one and copy {name}/ from there.")
        folder = pathlib.Path(records_folder(data_dir))
        builders.remove_unfinished(name, data_dir)
        if not manual_dir:
            manual_dir = str(folder / "downloads" / name)
            download(archives, pathlib.Path(manual_dir))
        with unpacked(archives, pathlib.Path(manual_dir).expanduser(), folder / f"incomplete.{name}") as layout:
            builders.write_photo_set(name, read(layout), data_dir, skip_bad=skip_bad)
    return f"{name} is ready in {prepared_path(name, VERSION, data_dir)}: {_summary(prepared_metadata(name, data_dir))}"


def _summary(known: dict) -> str:
    sizes = ", ".join(f"{split} {len(positions)}" for split, positions in known["splits"].items())
    empty = sum(not class_ids for class_ids in known["labels"])
    text = f"{len(known['labels'])} photos ({sizes}); {empty} without any object, with an all-zero label"
    text += "".join(f"; {count} {what}" for what, count in known["notes"].items())
    if known["left_out"]:
        text += f". {len(known['left_out'])} bad photos were left out: " + " | ".join(known["left_out"])
    return text


def _prepare_official(name: str, data_dir: str, manual_dir: str) -> str:
    folder = records_folder(data_dir)
    import tensorflow_datasets as tfds

    builder = tfds.builder(OFFICIAL[name], data_dir=folder, file_format="array_record")
    if builder.is_prepared():
        return str(builder.data_path)
    try:
        import tensorflow  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"Preparing {name!r} needs TensorFlow (reading it does not), which is not installed here: {error}. "
            f"Run: pip install tensorflow-cpu, then again: {prepare_command(name, folder)}"
        ) from error
    try:
        settings = tfds.download.DownloadConfig(manual_dir=manual_dir or None)
        builder.download_and_prepare(download_config=settings)
    except Exception as error:  # Network, disk and checksum errors come as many types.
        raise UserError(
            f"Preparing {name!r} in {folder!r} failed: {type(error).__name__}: {error}. Nothing half-written will be "
            f"read. Check the network and the free disk space, then run again: {prepare_command(name, folder)}"
        ) from error
    return str(builder.data_path)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code: 0, or 1 with one message on standard error."""
    parser = argparse.ArgumentParser(description="Writes a dataset as array_record files, or checks your own photos.")
    parser.add_argument("--dataset", required=True, help=f"one of: {', '.join(sorted(PREPARABLE))}")
    parser.add_argument("--data_dir", default="", help="default: $TFDS_DATA_DIR, else ~/tensorflow_datasets")
    parser.add_argument("--manual_dir", default="", help="the official archives, or what is in them; default: download")
    parser.add_argument("--masks", default="", help="for --dataset=folder: the folder in --data_dir with the masks")
    parser.add_argument("--skip_bad", action="store_true", help="leave bad photos out and list them, do not stop")
    flags = parser.parse_args(arguments)
    try:
        print(prepare(flags.dataset, flags.data_dir, flags.manual_dir, masks=flags.masks, skip_bad=flags.skip_bad))
    except UserError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
