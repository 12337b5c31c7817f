"""The numbers that a network computes with: float32, or bfloat16 between float32 parameters and float32 scores.

Parameters, statistics of normalisations, pools, class scores, masks and losses are float32 in either case; what goes
into a convolution or a matrix product is rounded.
"""

from __future__ import annotations

import jax.numpy as jnp

from selfexplain_jax.types import UserError

COMPUTE_DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def compute_dtype(options) -> jnp.dtype:
    """The type that `config.model.compute_dtype` names.

    Raises:
      UserError: an unknown name.
    """
    if options.compute_dtype not in COMPUTE_DTYPES:
        raise UserError(
            f"config.model.compute_dtype = {options.compute_dtype!r} is unknown. Choose one of {tuple(COMPUTE_DTYPES)}."
        )
    return COMPUTE_DTYPES[options.compute_dtype]
