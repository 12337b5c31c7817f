"""The U-Net of the Self-Explainer: an image in, one logit map per class out, and nothing else that classifies."""

from __future__ import annotations

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp

from selfexplain_jax.models import masking, pooling
from selfexplain_jax.models.map_head import depth_to_space, head_of
from selfexplain_jax.models.precision import compute_dtype
from selfexplain_jax.types import DatasetInfo, UserError, is_whole_number

NORMS = ("group", "batch", "none")
STRIDES = (1, 2, 4, 8)


def space_to_depth(x: jax.Array, factor: int) -> jax.Array:
    """[B, H, W, K] to [B, H / factor, W / factor, K factor^2]: each cell holds its block of pixels, row by row."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // factor, factor, width // factor, factor, channels)
    x = x.transpose(0, 1, 3, 2, 4, 5)  # [B, H / f, W / f, f, f, K]
    return x.reshape(batch, height // factor, width // factor, factor * factor * channels)


def upsample_nearest(x: jax.Array) -> jax.Array:
    """[B, h, w, K] to [B, 2 h, 2 w, K] by repetition: a broadcast, which is far faster on CPU than a resize."""
    batch, height, width, channels = x.shape
    x = jnp.broadcast_to(x[:, :, None, :, None, :], (batch, height, 2, width, 2, channels))
    return x.reshape(batch, 2 * height, 2 * width, channels)  # [B, 2 h, 2 w, K]


def local_contrast(images: jax.Array, sigma: float = 4.0, floor: float = 0.1) -> jax.Array:
    """(x - mean) / (std + floor), mean and standard deviation (over space and colour) in a Gaussian window.

    What is left of [B, H, W, 3] is texture and edges at unit contrast, whatever the colours: a network that must name
    textures whose colours are random sits at chance for thousands of steps where the colours' share of the input drowns
    them. (Jarrett et al., ICCV 2009, section 2.)
    """
    centred = images - masking.blur(images, sigma)
    variance = masking.blur(jnp.square(centred).mean(axis=-1, keepdims=True), sigma)
    return centred / (jnp.sqrt(variance + 1e-6) + floor)


class Norm(nn.Module):
    """Group normalisation (8 channels a group), batch normalisation over the global batch, or none."""

    kind: str
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x, train: bool):
        """Normalises [B, h, w, K]; `train` matters to batch normalisation alone."""
        if self.kind == "group":
            return nn.GroupNorm(num_groups=None, group_size=min(8, x.shape[-1]), dtype=self.dtype)(x)
        if self.kind == "batch":
            return nn.BatchNorm(use_running_average=not train, momentum=0.95, dtype=self.dtype)(x)
        return x


class ResidualConv(nn.Module):
    """x + conv3x3(relu(norm(x)))."""

    norm: str
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x, train: bool):
        """[B, h, w, K] to [B, h, w, K]."""
        h = nn.relu(Norm(self.norm, self.dtype)(x, train))
        return x + nn.Conv(x.shape[-1], (3, 3), dtype=self.dtype)(h)


class UNet(nn.Module):
    """Residual U-Net; returns `(scores [B, C], endpoints)` with endpoints["logit_maps"] [B, H / stride, W / stride, C]
    and, of the encoder, "level0" [B, H / stem, W / stem, widths[0]], "level1" at half of that, and so on; "features" is
    what the last linear layer sees.

    Images enter by space-to-depth with the stem stride, and the logit maps leave by depth-to-space to the mask stride:
    every layer works at a low resolution with many channels, which costs a fraction of a full-resolution level.
    Down: space-to-depth and a 1x1 convolution (a 2x2 convolution with stride 2). Up: a 1x1 convolution, repetition, and
    the sum with the encoder's features of that level. Both have gradients that are matrix products, fast everywhere.

    Attributes:
      num_classes: C.
      widths: channels per level, the first at the stem stride.
      encoder_depth, decoder_depth: 3x3 convolutions per level.
      stem_stride: pixels per cell of the first level; a multiple of the mask stride.
      mask_stride: pixels per cell of the logit maps.
      refine_width: channels of a last level at the mask stride, which sees the image again; 0 leaves it out.
      map_blur: standard deviation, in cells, of a Gaussian that smooths the logit maps: neighbouring cells share their
        evidence and, in the gradient, what a pass asks of them.
      edge_distances, edge_scale: the filter that lets the maps end at edges of the image, see `models/edges.py`; () is
        none.
      norm: one of NORMS.
      local_contrast: the network sees `local_contrast(images)` in place of the images.
      pooling, pooling_temperature: see `models/pooling.py`.
      bias: initial logit of every cell.
      dtype: see precision.py.
    """

    num_classes: int
    widths: tuple[int, ...]
    encoder_depth: int = 2
    decoder_depth: int = 1
    stem_stride: int = 4
    mask_stride: int = 2
    refine_width: int = 0
    map_blur: float = 0.0
    edge_distances: tuple[int, ...] = ()
    edge_scale: float = 0.2
    norm: str = "group"
    local_contrast: bool = True
    pooling: str = "softmax"
    pooling_temperature: float = 1.0
    bias: float = -2.0
    dtype: jnp.dtype = jnp.float32

    draws_maps = True
    takes_label = True

    @property
    def layers(self) -> tuple[str, ...]:
        # The last one behind a ReLU first: where none is named, methods find activations that are not negative.
        return ("features", *(f"level{level}" for level in reversed(range(len(self.widths)))))

    @nn.compact
    def __call__(
        self,
        images: jax.Array,
        train: bool = False,
        temperature: jax.Array | None = None,
        given: Mapping[str, jax.Array] | None = None,
        label: jax.Array | None = None,
    ):
        """Images [B, H, W, 3], H and W divisible by `size_divisor`; `temperature` stands in for that of the pool.

        `given` holds features by the names of `layers`, in the place of those that the images give. With a `label`
        [B, C] the endpoints have "target_logits" and "non_target_logits" too, see `MapHead`.
        """
        given, dtype = given or {}, self.dtype
        entry = local_contrast(images) if self.local_contrast else images
        x = space_to_depth(entry, self.stem_stride)  # [B, H / stem, W / stem, 3 stem^2]
        x = nn.Conv(self.widths[0], (3, 3), dtype=dtype, name="stem")(x)
        skips = []
        for level, width in enumerate(self.widths):
            if level > 0:
                x = nn.Dense(width, dtype=dtype, name=f"down{level}")(space_to_depth(x, 2))
            for i in range(self.encoder_depth):
                x = ResidualConv(self.norm, dtype, name=f"encoder{level}_{i}")(x, train)
            x = given.get(f"level{level}", x)
            skips.append(x)
        for level in reversed(range(len(self.widths) - 1)):
            x = nn.relu(Norm(self.norm, dtype, name=f"up_norm{level}")(x, train))
            x = nn.Dense(self.widths[level], dtype=dtype, name=f"up{level}")(x)
            x = skips[level] + upsample_nearest(x)
            for i in range(self.decoder_depth):
                x = ResidualConv(self.norm, dtype, name=f"decoder{level}_{i}")(x, train)
        x = nn.relu(Norm(self.norm, dtype, name="head_norm")(x, train))
        factor = self.stem_stride // self.mask_stride
        if self.refine_width:
            fine = space_to_depth(entry, self.mask_stride)
            fine = nn.Conv(self.refine_width, (3, 3), dtype=dtype, name="refine_stem")(fine)
            coarse = nn.Dense(self.refine_width * factor**2, dtype=dtype, name="refine_up")(x)
            x = fine + depth_to_space(coarse, factor)
            x = ResidualConv(self.norm, dtype, name="refine")(x, train)  # [B, H / stride, W / stride, refine_width]
            x = nn.relu(Norm(self.norm, dtype, name="refine_norm")(x, train))
            factor = 1
        x = given.get("features", x)
        temperature = self.pooling_temperature if temperature is None else temperature
        scores, drawn = head_of(self, factor)(x, images, temperature, label=label)
        levels = {f"level{level}": skip for level, skip in enumerate(skips)}
        return scores, levels | drawn | {"features": x}


def size_divisor(stem_stride: int, widths: tuple[int, ...]) -> int:
    """What the image size must be divisible by: the stem stride, doubled once per level after the first."""
    return stem_stride * 2 ** (len(widths) - 1)


def check_maps(options) -> None:
    """Checks what every network that draws maps takes from `config.model`: norm, pooling, depth, blur, edge filter.

    Raises:
      UserError: an unknown choice or a number out of range.
    """
    if options.norm not in NORMS:
        raise UserError(f"config.model.norm = {options.norm!r} is unknown. Choose one of {NORMS}.")
    pooling.check_pool(options.pooling, options.pooling_temperature)
    if options.decoder_depth < 0 or not options.map_blur >= 0:
        raise UserError(
            f"config.model.decoder_depth = {options.decoder_depth} and map_blur = {options.map_blur} must be 0 or more."
        )
    if not whole_numbers(options.edge_distances) or not options.edge_scale > 0:
        raise UserError(
            f"config.model.edge_distances = {options.edge_distances!r} must be whole numbers of cells, 1 or more, and "
            f"edge_scale = {options.edge_scale} above 0."
        )


def whole_numbers(values) -> bool:
    """Whether all are integers, 1 or more; true of none."""
    return all(is_whole_number(value) and value >= 1 for value in values)


def build_unet(config, info: DatasetInfo) -> UNet:
    """The U-Net that `config.model` describes, for that dataset.

    Raises:
      UserError: unknown norm, pooling or stride, a width or depth that makes no layer, or an image size that the
        levels cannot halve.
    """
    options = config.model
    check_maps(options)
    if not options.widths or not whole_numbers(options.widths):
        raise UserError(f"config.model.widths = {options.widths!r} must be one or more whole numbers of channels.")
    if options.norm == "group" and any(width % min(8, width) for width in options.widths):
        raise UserError(f'config.model.widths = {options.widths!r} must be multiples of 8 for norm = "group".')
    if options.encoder_depth < 0 or options.refine_width < 0:
        raise UserError(
            f"config.model.encoder_depth = {options.encoder_depth} and refine_width = {options.refine_width} must be 0 "
            "or more."
        )
    stem, stride = options.stem_stride, options.mask_stride
    if stride not in STRIDES or stem not in STRIDES or stem < stride:
        raise UserError(
            f"config.model.stem_stride = {stem} with mask_stride = {stride} is not possible: both are of {STRIDES}, "
            "and the stem's is not the smaller."
        )
    divisor = size_divisor(stem, options.widths)
    if info.image_size % divisor:
        raise UserError(
            f"Image size {info.image_size} is not divisible by {divisor}, as stem_stride {stem} and "
            f"{len(options.widths)} levels need. Set config.data.image_size to a multiple of {divisor}, or shorten "
            "config.model.widths."
        )
    return UNet(
        num_classes=info.num_classes,
        widths=tuple(options.widths),
        encoder_depth=options.encoder_depth,
        decoder_depth=options.decoder_depth,
        stem_stride=stem,
        mask_stride=stride,
        refine_width=options.refine_width,
        map_blur=float(options.map_blur),
        edge_distances=tuple(options.edge_distances),
        edge_scale=float(options.edge_scale),
        norm=options.norm,
        local_contrast=options.local_contrast,
        pooling=options.pooling,
        pooling_temperature=float(options.pooling_temperature),
        dtype=compute_dtype(options),
    )
