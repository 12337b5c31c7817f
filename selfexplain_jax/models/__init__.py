"""Networks: each returns `(scores [B, C], endpoints)`. A new one is a file here and a line in MODELS."""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn

from selfexplain_jax.models.backbones import BACKBONES, build_classifier, build_vit
from selfexplain_jax.models.encoder_unet import build_encoder_unet
from selfexplain_jax.models.unet import build_unet
from selfexplain_jax.types import DatasetInfo, UserError

MODELS: dict[str, Callable[..., nn.Module]] = {
    "unet": build_unet,
    "encoder_unet": build_encoder_unet,
    "vit": build_vit,
    **dict.fromkeys(BACKBONES, build_classifier),
}


def build_model(config, info: DatasetInfo) -> nn.Module:
    """The network that `config.model` names, for that dataset.

    Raises:
      UserError: unknown name, or options that the network refuses.
    """
    if config.model.name not in MODELS:
        raise UserError(f"config.model.name = {config.model.name!r} is unknown. Choose one of {sorted(MODELS)}.")
    return MODELS[config.model.name](config, info)
