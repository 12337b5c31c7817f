"""The Self-Explainer's network for photographs: the levels of a backbone, and a decoder that draws logit maps."""

from __future__ import annotations

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp

from selfexplain_jax.models.backbones import InputChange, input_change, named_backbone
from selfexplain_jax.models.map_head import head_of
from selfexplain_jax.models.precision import compute_dtype
from selfexplain_jax.models.unet import Norm, ResidualConv, check_maps, upsample_nearest
from selfexplain_jax.types import DatasetInfo, UserError

DECODERS = ("unet", "aspp")
ATROUS_RATES = (12, 24, 36)
"""Of DeepLab's head at output stride 8; halved at 16, quartered at 32 (Chen et al. 2017, section 4.1)."""


class AtrousHead(nn.Module):
    """DeepLab v3's head (Chen et al. 2017, section 3.3): dilated convolutions side by side and the image's mean.

    Attributes:
      width: channels of each branch and of the output.
      rates: dilation of each 3x3 branch, in cells.
      dtype: see precision.py.
    """

    width: int
    rates: tuple[int, ...]
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[B, h, w, K] to [B, h, w, width]."""

        dtype = self.dtype

        def after(y, name):
            # PyTorch's momentum and epsilon, as of the networks whose weights it takes.
            return nn.relu(nn.BatchNorm(not train, momentum=0.9, epsilon=1e-5, dtype=dtype, name=f"{name}_norm")(y))

        def point(name):
            return nn.Dense(self.width, use_bias=False, dtype=dtype, name=name)

        def conv(name, rate=1):
            rates = (rate, rate)
            return nn.Conv(self.width, (3, 3), kernel_dilation=rates, use_bias=False, dtype=dtype, name=name)

        branches = [after(point("point_conv")(x), "point")]
        branches += [after(conv(f"atrous{i}_conv", rate)(x), f"atrous{i}") for i, rate in enumerate(self.rates)]
        mean = point("image_conv")(x.mean(axis=(1, 2), keepdims=True))
        branches.append(jnp.broadcast_to(after(mean, "image"), branches[0].shape))
        x = after(point("project_conv")(jnp.concatenate(branches, axis=-1)), "project")
        return after(conv("last_conv")(x), "last")


class EncoderUNet(nn.Module):
    """Backbone and decoder; called and answering as `UNet`: `(scores, {"logit_maps", "features", "stride2", ...})`.

    From the encoder's last level up to the mask stride: a 1x1 convolution to `width` channels, repetition, the sum with
    the encoder's features of that level (through a 1x1 convolution), and residual 3x3 convolutions.

    Attributes:
      backbone: a module of backbones.py; its parameters lie under "backbone".
      input_change: from the pipeline's images to the backbone's.
      num_classes: C.
      width: channels of the decoder.
      decoder: one of DECODERS; "aspp" puts `AtrousHead` on the encoder's last level and takes no other.
      decoder_depth: 3x3 convolutions per level of the U-Net's decoder.
      coarse_maps: the maps are a sum of the decoder's and of a linear layer's on the backbone's last features.
      mask_stride: pixels per cell of the logit maps; a stride of the encoder.
      map_blur, edge_distances, edge_scale, norm, pooling, pooling_temperature, bias, dtype: as in `UNet`; `norm` is
        that of the U-Net's decoder.
    """

    backbone: nn.Module
    input_change: InputChange
    num_classes: int
    width: int = 64
    decoder: str = "unet"
    decoder_depth: int = 1
    coarse_maps: bool = False
    mask_stride: int = 4
    map_blur: float = 0.0
    edge_distances: tuple[int, ...] = ()
    edge_scale: float = 0.2
    norm: str = "batch"
    pooling: str = "softmax"
    pooling_temperature: float = 1.0
    bias: float = -2.0
    dtype: jnp.dtype = jnp.float32

    draws_maps = True
    takes_label = True

    @property
    def layers(self) -> tuple[str, ...]:
        return tuple(f"stride{stride}" for stride in reversed(self.backbone.strides))

    @nn.compact
    def __call__(
        self,
        images: jax.Array,
        train: bool = False,
        temperature: jax.Array | None = None,
        given: Mapping[str, jax.Array] | None = None,
        label: jax.Array | None = None,
    ):
        """Images [B, H, W, 3] of the pipeline; `temperature` stands in for that of the pool.

        `given` holds features by the names of `layers`, in the place of those that the images give. With a `label`
        [B, C] the endpoints have "target_logits" and "non_target_logits" too, see `MapHead`.
        """
        endpoints = self.backbone.encode(self.input_change(images), train, given)
        decode = self._decode if self.decoder == "unet" else self._atrous
        x = decode(endpoints, train)  # [B, H / stride, W / stride, width]
        coarse = self.backbone.last(endpoints, train) if self.coarse_maps else None
        temperature = self.pooling_temperature if temperature is None else temperature
        scores, drawn = head_of(self)(x, images, temperature, coarse, label)
        return scores, endpoints | drawn | {"features": x}

    def _decode(self, endpoints, train):
        def dense(name):
            return nn.Dense(self.width, dtype=self.dtype, name=name)

        strides = sorted((s for s in self.backbone.strides if s >= self.mask_stride), reverse=True)
        x = dense(f"lateral{strides[0]}")(endpoints[f"stride{strides[0]}"])
        for stride in strides[1:]:
            x = nn.relu(Norm(self.norm, self.dtype, name=f"up_norm{stride}")(x, train))
            x = upsample_nearest(dense(f"up{stride}")(x))
            x = x + dense(f"lateral{stride}")(endpoints[f"stride{stride}"])
            for i in range(self.decoder_depth):
                x = ResidualConv(self.norm, self.dtype, name=f"decoder{stride}_{i}")(x, train)
        return nn.relu(Norm(self.norm, self.dtype, name="head_norm")(x, train))

    def _atrous(self, endpoints, train):
        stride = self.backbone.strides[-1]
        rates = tuple(rate * 8 // stride for rate in ATROUS_RATES)
        return AtrousHead(self.width, rates, self.dtype, name="atrous_head")(endpoints[f"stride{stride}"], train)


def build_encoder_unet(config, info: DatasetInfo) -> EncoderUNet:
    """The U-Net over the backbone that `config.model.encoder` names, for that dataset.

    Raises:
      UserError: an encoder without levels, or a stride, width or image size that does not fit it.
    """
    options = config.model
    check_maps(options)
    backbone = named_backbone(options.encoder, "encoder")
    module = backbone.make(info.num_classes, options)
    strides = module.strides
    if not strides:
        raise UserError(
            f"config.model.encoder = {options.encoder!r} has one resolution alone: it is a classifier and no encoder."
        )
    if options.decoder not in DECODERS:
        raise UserError(f"config.model.decoder = {options.decoder!r} is unknown. Choose one of {DECODERS}.")
    if options.mask_stride not in strides:
        raise UserError(
            f"config.model.mask_stride = {options.mask_stride} is no stride "
            f"of {options.encoder!r}: take one of {strides}."
        )
    if options.decoder_width < 1:
        raise UserError(f"config.model.decoder_width = {options.decoder_width} must be 1 or more.")
    if info.image_size % strides[-1]:
        raise UserError(
            f"Image size {info.image_size} is not divisible by {strides[-1]}, the last stride of {options.encoder!r}. "
            f"Set config.data.image_size to a multiple of {strides[-1]}."
        )
    return EncoderUNet(
        backbone=module,
        input_change=input_change(config.data, backbone),
        num_classes=info.num_classes,
        width=options.decoder_width,
        decoder=options.decoder,
        decoder_depth=options.decoder_depth,
        coarse_maps=options.coarse_maps,
        mask_stride=options.mask_stride,
        map_blur=float(options.map_blur),
        edge_distances=tuple(options.edge_distances),
        edge_scale=float(options.edge_scale),
        norm=options.norm,
        pooling=options.pooling,
        pooling_temperature=float(options.pooling_temperature),
        dtype=compute_dtype(options),
    )
