"""What every attribution method checks before it computes, and how it hands functions to compiled code."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from selfexplain_jax.types import Predictor, UserError


def check_inputs(predictor: Predictor, images: jax.Array, class_ids: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the images as float32 and the class ids as int32, or says what is wrong with them.

    Args:
      predictor: gives the image size and the number of classes.
      images: [B, H, W, 3], normalised.
      class_ids: integers [B, k] in 0..C-1. Their values are checked when they are known, that is, outside of `jax.jit`.

    Raises:
      UserError: wrong rank, channels, image size, batch size, type or range, or a class that does not exist.
    """
    size = predictor.image_size
    if images.ndim != 4 or images.shape[-1] != 3:
        raise UserError(f"Attribution needs images [B, H, W, 3] (one: image[None]); got shape {tuple(images.shape)}.")
    if images.shape[1:3] != (size, size):
        raise UserError(
            f"This predictor takes images of {size} x {size} px, not {images.shape[1]} x {images.shape[2]}: resize."
        )
    check_range(predictor, images)
    if not isinstance(class_ids, jax.Array):
        class_ids = np.asarray(class_ids)
    if class_ids.ndim != 2 or class_ids.shape[0] != images.shape[0]:
        raise UserError(
            f"Attribution needs class ids [B, k], the classes to explain in each of the {images.shape[0]} images;"
            f" got shape {tuple(class_ids.shape)}."
        )
    check_class_ids(class_ids, predictor.num_classes, predictor.class_names)
    return jnp.asarray(images, jnp.float32), jnp.asarray(class_ids, jnp.int32)


def check_class_ids(class_ids: jax.Array, num_classes: int, class_names: Sequence[str] = ()) -> None:
    """Refuses classes that do not exist; outside of `jax.jit`, where the values are known.

    Args:
      class_ids: [B, k].
      num_classes: C.
      class_names: named in the message, the first of them.

    Raises:
      UserError: no integers, or one outside of 0..C-1.
    """
    if not isinstance(class_ids, jax.Array):
        class_ids = np.asarray(class_ids)
    if not jnp.issubdtype(class_ids.dtype, jnp.integer):
        raise UserError(f"Class ids must be integers; got {class_ids.dtype}.")
    if isinstance(class_ids, jax.core.Tracer) or not class_ids.size:
        return
    low, high = int(class_ids.min()), int(class_ids.max())
    if low < 0 or high >= num_classes:
        named = f" The classes are {', '.join(class_names[:20])}{' ...' if num_classes > 20 else ''}."
        raise UserError(
            f"Class ids must lie in 0..{num_classes - 1}; got {low if low < 0 else high}.{named if class_names else ''}"
        )


def check_range(predictor: Predictor, images: jax.Array) -> None:
    """Refuses values that a predictor says it was not made for; outside of `jax.jit`, where they are known.

    Raises:
      UserError: a value outside of `predictor.image_range`; integers, where it says nothing.
    """
    if isinstance(images, jax.core.Tracer) or not images.size:
        return
    if predictor.image_range is None:
        if jnp.issubdtype(images.dtype, jnp.integer):
            raise UserError(
                f"The images are {images.dtype}, and a predictor takes them normalised: scale them as in its training,"
                " or say with image_range=(0, 255) that it takes photos as they are."
            )
        return
    low, high = predictor.image_range
    slack = 1e-3 * (high - low)
    # Where the images are: one answer leaves the device, and not they. NaN is neither: it comes out in the map, and is
    # named there.
    if bool(((images < low - slack) | (images > high + slack)).any()):
        found = np.asarray(images, np.float32)
        raise UserError(
            f"This predictor takes images in {low:.4g}..{high:.4g}, and these have {np.nanmin(found):.4g}.."
            f"{np.nanmax(found):.4g}: scale them as in its training, for a network of this project with"
            " data.pipeline.normalise(images, config.data.mean, config.data.std)."
        )


def nan_where_scores_are(maps: jax.Array, scores: jax.Array, class_ids: jax.Array) -> jax.Array:
    """The maps [B, k, ...], NaN where the class's score is no finite number: of methods whose maps would hide that.

    Args:
      maps: by gradients or attention alone, which may be finite all the same.
      scores: [B, C] of the images.
      class_ids: int32 [B, k].
    """
    asked = jnp.take_along_axis(scores, class_ids, axis=1)  # [B, k]
    fine = jnp.isfinite(asked).reshape(*asked.shape, *[1] * (maps.ndim - 2))
    return jnp.where(fine, maps, jnp.nan)


def traceable(function: Callable) -> jax.tree_util.Partial:
    """The function as a pytree, which a jitted function takes as an ordinary argument.

    A `jax.tree_util.Partial` stays what it is: the arrays in it are arguments of the compiled program. Anything else is
    told apart by its hash, so the same function never compiles twice.

    Raises:
      UserError: a function that has no hash.
    """
    if isinstance(function, jax.tree_util.Partial):
        return function
    try:
        hash(function)
    except TypeError:
        raise UserError(
            f"A predictor's functions must be hashable, and {type(function).__name__} is not: give"
            " jax.tree_util.Partial(function, arrays), or a plain function that calls it."
        ) from None
    return jax.tree_util.Partial(function)
