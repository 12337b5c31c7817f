"""Anybody's model as a `Predictor`: pure functions in, checked without computing anything."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp

from selfexplain_jax.attribution.inputs import traceable
from selfexplain_jax.types import Predictor, UserError

LINKS: dict[str, Callable[[jax.Array], jax.Array]] = {"softmax": jax.nn.softmax, "sigmoid": jax.nn.sigmoid}


def build_predictor(
    scores: Callable | None = None,
    *,
    class_names: Sequence[str] | int,
    image_size: int,
    features: Callable | None = None,
    head: Callable | None = None,
    layers: Mapping[str, tuple[Callable, Callable]] | None = None,
    attention: Callable | None = None,
    masks: Callable | None = None,
    link: str = "softmax",
    image_range: tuple[float, float] | None = None,
) -> Predictor:
    """A predictor of pure JAX functions, from whatever library they come.

    A scores function is enough for the gradient and perturbation methods; the CAM family needs features and a head,
    from which the scores then follow:

        def features(images): return jax.nn.relu(convolve(images, weights["conv"]))       # [B, h, w, K]
        def head(features): return features.mean(axis=(1, 2)) @ weights["linear"]         # [B, C]
        predictor = attribution.build_predictor(features=features, head=head, class_names=["cat", "dog"], image_size=64)
        method = attribution.build_method("grad_cam")
        maps = method(predictor, images, class_ids)          # images [B, 64, 64, 3], class_ids [B, k] -> [B, k, 64, 64]

    Large weights are better handed over as `jax.tree_util.Partial(function, weights)`, called as function(weights,
    images): compiled code then takes them as arguments and has no copy of them.

    Args:
      scores: images [B, H, W, 3] -> class scores (logits) [B, C]; None: head(features(images)).
      class_names: names, or the number of classes, which are then "0", "1", ...
      image_size: H = W.
      features, head, layers, attention, masks, image_range: see `Predictor`.
      link: "softmax", or "sigmoid" for a multi-label model: from scores to probabilities.

    Raises:
      UserError: functions are missing, fail, or return something of another shape; what is wrong is named.
    """
    if scores is None and (features is None or head is None):
        raise UserError("A predictor needs scores, or both features and head.")
    if (features is None) != (head is None):
        raise UserError("A predictor's features and head go together: give both, or scores alone.")
    if link not in LINKS:
        raise UserError(f"Option link = {link!r} is unknown. Choose one of {', '.join(LINKS)}.")
    names = tuple(map(str, range(class_names) if isinstance(class_names, int) else class_names))
    images = jax.ShapeDtypeStruct((2, image_size, image_size, 3), jnp.float32)
    expected = (2, len(names))
    if features is not None:
        layer = _check_features("features", _shape_of("features", features, images))
        _check_shape("head(features(images))", _shape_of("head", head, layer), expected)
    if scores is None:
        scores = jax.tree_util.Partial(_head_of_features, traceable(head), traceable(features))
    _check_shape("scores(images)", _shape_of("scores", scores, images), expected)
    for name, (layer_features, layer_head) in (layers or {}).items():
        layer = _check_features(f"layer {name!r}", _shape_of(f"layer {name!r}", layer_features, images))
        found = _shape_of(f"the head of layer {name!r}", layer_head, layer, images)
        _check_shape(f"head(features, images) of layer {name!r}", found, expected)
    return Predictor(
        scores, LINKS[link], names, image_size, features, head, masks, dict(layers or {}), attention, image_range
    )


def _head_of_features(head, features, images):
    return head(features(images))


def _shape_of(name: str, function: Callable, *inputs):
    """Shape and type of what the function returns, traced and not computed."""
    function = traceable(function)
    try:
        return jax.eval_shape(function, *inputs)
    except UserError:
        raise
    except Exception as error:
        shapes = ", ".join(str(list(value.shape)) for value in inputs)
        raise UserError(
            f"A predictor's functions must be pure JAX; {name} fails on float32 {shapes}:"
            f" {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        ) from error


def _check_shape(name: str, found, expected: tuple[int, ...]) -> None:
    shape = getattr(found, "shape", None)
    if shape != expected or not jnp.issubdtype(found.dtype, jnp.floating):
        what = f"{found.dtype} {list(shape)}" if shape is not None else type(found).__name__
        raise UserError(f"{name} must be floats {list(expected)} for {expected[1]} classes and 2 images; it is {what}.")


def _check_features(name: str, found):
    shape = getattr(found, "shape", ())
    if len(shape) != 4 or shape[0] != 2:
        raise UserError(f"The {name} of 2 images must be [2, h, w, K], in the plane of the image; got {list(shape)}.")
    return found
