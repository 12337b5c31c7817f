"""Datasets by name. To add one: a file in this folder with a class like `Synthetic`, and a line in `DATASETS`."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable

import ml_collections

from selfexplain_jax.data.coco import COCO
from selfexplain_jax.data.cub import CUB
from selfexplain_jax.data.folder import Folder
from selfexplain_jax.data.mnist import MNIST
from selfexplain_jax.data.synthetic import Synthetic
from selfexplain_jax.data.tfds_images import CIFAR10, CIFAR100, ImageNet2012
from selfexplain_jax.data.voc import VOC
from selfexplain_jax.types import Dataset, UserError

DATASETS: dict[str, Callable[..., Dataset]] = {
    "cifar10": CIFAR10,
    "cifar100": CIFAR100,
    "coco2014": functools.partial(COCO, "coco2014"),
    "coco2017": functools.partial(COCO, "coco2017"),
    "cub200": CUB,
    "folder": Folder,
    "imagenet2012": ImageNet2012,
    "mnist": MNIST,
    "synthetic": Synthetic,
    "voc2007": functools.partial(VOC, "voc2007"),
    "voc2012": functools.partial(VOC, "voc2012"),
}
"""Name -> factory called with (image_size, seed, data_dir, **config.data.options)."""

_GIVEN = ("image_size", "seed", "data_dir")


def dataset_options(name: str) -> dict[str, object]:
    """Returns {option: default} of the dataset `name`: what may stand in `config.data.options`.

    Raises:
      UserError: there is no such dataset.
    """
    if name not in DATASETS:
        raise UserError(f"config.data.name={name!r} is no dataset. There are: {', '.join(sorted(DATASETS))}.")
    parameters = inspect.signature(DATASETS[name]).parameters.values()
    return {p.name: p.default for p in parameters if p.name not in _GIVEN and p.kind is not p.VAR_KEYWORD}


def build_dataset(config: ml_collections.ConfigDict) -> Dataset:
    """Builds the dataset that `config.data` names.

    Args:
      config: the whole configuration; `config.seed` and `config.data.{name, image_size, data_dir, options}` are read.

    Raises:
      UserError: unknown name or option (the message lists what exists), or the dataset itself refuses its options.
    """
    name, options = config.data.name, dict(config.data.options)
    known = dataset_options(name)
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise UserError(
            f"Dataset {name!r} has no option {', '.join(map(repr, unknown))} (config.data.options). "
            f"It has: {', '.join(f'{key}={value!r}' for key, value in known.items()) or 'none'}."
        )
    return DATASETS[name](image_size=config.data.image_size, seed=config.seed, data_dir=config.data.data_dir, **options)
