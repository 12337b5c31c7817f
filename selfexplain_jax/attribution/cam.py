"""Class activation maps: a weighted sum of a layer's channels, in which the methods differ by the weights alone."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from selfexplain_jax.attribution.gradient import class_gradients
from selfexplain_jax.attribution.inputs import check_inputs, traceable
from selfexplain_jax.types import Predictor, UserError

SPREAD = 1e-3
"""Largest relative difference between the gradients of two cells that CAM takes for rounding."""


def layer_of(predictor: Predictor, layer: str, method: str) -> tuple[jax.tree_util.Partial, jax.tree_util.Partial]:
    """The layer as two functions for jitted code: features(images) [B, h, w, K], and head(features, images) [B, C].

    Args:
      predictor: one with features and a head, or with layers.
      layer: a name in `predictor.layers`; "" is the predictor's features and head or, where it has none, the first of
        its layers.
      method: who asks, for the message.

    Raises:
      UserError: the layer does not exist (those that do are listed), or the predictor has no layer at all.
    """
    if not layer and predictor.features is not None and predictor.head is not None:
        head = jax.tree_util.Partial(_head_alone, traceable(predictor.head))
        return traceable(predictor.features), head
    if not predictor.layers:
        if layer:
            raise UserError(
                f"Method {method!r}: no layer {layer!r}; this predictor names no layers: leave layer empty."
            )
        raise UserError(
            f"Method {method!r} needs a layer in the plane of the image: a predictor with features and head, or with"
            " layers; this one has neither."
        )
    layer = layer or next(iter(predictor.layers))
    if layer not in predictor.layers:
        raise UserError(f"Method {method!r}: no layer {layer!r}; this predictor has {', '.join(predictor.layers)}.")
    features, head = predictor.layers[layer]
    return traceable(features), traceable(head)


def activations_of(features: Callable, images: jax.Array) -> jax.Array:
    """The layer's activations of images, float32 [B, h, w, K].

    Raises:
      UserError: they do not lie in the plane of the image.
    """
    activations = features(images)
    if activations.ndim != 4 or activations.shape[0] != images.shape[0]:
        raise UserError(
            f"A class activation map needs features [B, h, w, K]; those of {images.shape[0]} images here have shape"
            f" {tuple(activations.shape)}."
        )
    return activations.astype(jnp.float32)


def weighted_sum(activations: jax.Array, weights: jax.Array) -> jax.Array:
    """M(u) = sum_c w_c A_c(u): activations [B, h, w, K] and weights [B, k, K] to maps [B, k, h, w]."""
    return jnp.einsum("bhwc,bkc->bkhw", activations, weights)


def resize_to_image(maps: jax.Array, size: int) -> jax.Array:
    """Bilinear resize of maps [B, k, h, w] to [B, k, size, size]; cells are areas, so corners are not aligned."""
    return jax.image.resize(maps, (*maps.shape[:2], size, size), "bilinear")


def cam(
    predictor: Predictor,
    images: jax.Array,
    class_ids: jax.Array,
    *,
    rng: jax.Array | None = None,
    layer: str = "",
    relu: bool = False,
) -> jax.Array:
    """CAM (Zhou et al. 2016, equation 2): the channels weighted as the classifier weights their means.

    M_c(u) = sum_k w_k^c A_k(u), where z_c = sum_k w_k^c mean_u A_k(u) + b_c; the weights are read from the head as
    gradients summed over space. Raw values, resized bilinearly to image size; negative ones stay, as in the paper.

    Args:
      predictor: one whose head is a linear layer on the mean over space. That is checked, but not inside of `jax.jit`.
      images: [B, H, W, 3], normalised.
      class_ids: int32 [B, k].
      rng: not used.
      layer: see `layer_of`.
      relu: negative values become 0, before the resize.

    Returns:
      float32 [B, k, H, W], in units of the score.

    Raises:
      UserError: bad images, class ids or layer, or a head of another form.
    """
    del rng
    images, class_ids = check_inputs(predictor, images, class_ids)
    features, head = layer_of(predictor, layer, "cam")
    maps, spread = _cam_maps(features, head, images, class_ids, size=predictor.image_size, relu=relu)
    if not isinstance(spread, jax.core.Tracer) and spread > SPREAD:
        raise UserError(
            "Method 'cam' needs a head that is a linear layer on the mean over space, and this one's gradient is not"
            " the same everywhere: use 'grad_cam', which is CAM for any head."
        )
    return maps


def grad_cam(
    predictor: Predictor,
    images: jax.Array,
    class_ids: jax.Array,
    *,
    rng: jax.Array | None = None,
    layer: str = "",
    relu: bool = True,
) -> jax.Array:
    """Grad-CAM (Selvaraju et al. 2017): the channels weighted by their gradients' mean over space.

    M_c = relu(sum_k w_k^c A_k) with w_k^c = mean_u dz_c/dA_k(u) (equations 1 and 2). Raw values, not normalised by
    their range; the ReLU comes before the bilinear resize to image size. One forward pass serves all classes, and what
    is differentiated is the head alone.

    Args:
      predictor: one with features and a head, or with layers.
      images: [B, H, W, 3], normalised.
      class_ids: int32 [B, k].
      rng: not used.
      layer: see `layer_of`.
      relu: as in the paper; False keeps negative values.

    Returns:
      float32 [B, k, H, W], in units of the score over the number of cells; 0 and more with `relu`.

    Raises:
      UserError: bad images, class ids or layer.
    """
    del rng
    images, class_ids = check_inputs(predictor, images, class_ids)
    features, head = layer_of(predictor, layer, "grad_cam")
    return _maps(features, head, images, class_ids, weights=mean_gradients, size=predictor.image_size, relu=relu)


def grad_cam_plus_plus(
    predictor: Predictor,
    images: jax.Array,
    class_ids: jax.Array,
    *,
    rng: jax.Array | None = None,
    layer: str = "",
    relu: bool = True,
) -> jax.Array:
    """Grad-CAM++ (Chattopadhay et al. 2018): positive gradients, weighted where few cells carry the class.

    M_c = relu(sum_k w_k^c A_k) with the weights of `positive_gradients`. Raw values; the ReLU comes before the bilinear
    resize to image size. The activations should not be negative (a layer behind a ReLU), as in the paper.

    Args:
      predictor: one with features and a head, or with layers.
      images: [B, H, W, 3], normalised.
      class_ids: int32 [B, k].
      rng: not used.
      layer: see `layer_of`.
      relu: as in the paper; False keeps negative values.

    Returns:
      float32 [B, k, H, W], 0 and more with `relu`.

    Raises:
      UserError: bad images, class ids or layer.
    """
    del rng
    images, class_ids = check_inputs(predictor, images, class_ids)
    features, head = layer_of(predictor, layer, "grad_cam_plus_plus")
    return _maps(features, head, images, class_ids, weights=positive_gradients, size=predictor.image_size, relu=relu)


def mean_gradients(activations: jax.Array, gradients: jax.Array) -> jax.Array:
    """w = mean_u g(u), Grad-CAM's equation 1: gradients [B, k, h, w, K] to weights [B, k, K]."""
    del activations
    return gradients.mean(axis=(2, 3))


def summed_gradients(activations: jax.Array, gradients: jax.Array) -> jax.Array:
    """w = sum_u g(u): the weights of a linear layer on the mean over space; [B, k, h, w, K] to [B, k, K]."""
    del activations
    return gradients.sum(axis=(2, 3))


def positive_gradients(activations: jax.Array, gradients: jax.Array) -> jax.Array:
    """w = sum_u alpha(u) relu(g(u)), Grad-CAM++'s equations 5 and 19: [B, k, h, w, K] to weights [B, k, K].

    alpha = g^2 / (2 g^2 + S g^3) with S = sum_u A(u), which is 1 / (2 + S g) wherever relu(g) is not 0: written so,
    nothing is divided by 0, and no small number needs to be added (the published code adds 1e-6 to a denominator that,
    for a head on the mean over space, may be smaller than that). The paper differentiates Y = exp(z), which multiplies
    every weight of an image and class by exp(z_c); that factor is left out, as in the published code: it changes no
    map's form, and overflows.
    """
    total = activations.sum(axis=(1, 2))[:, None, None, None]  # [B, 1, 1, 1, K]
    positive = jnp.maximum(gradients, 0.0)
    return (positive / (2.0 + total * positive)).sum(axis=(2, 3))


def _head_alone(head, features, images):
    del images
    return head(features)


@functools.partial(jax.jit, static_argnames=("weights", "size", "relu"))
def _maps(features, head, images, class_ids, *, weights, size, relu):
    activations = activations_of(features, images)
    gradients = class_gradients(lambda a: head(a, images), activations, class_ids)  # [B, k, h, w, K]
    return _finish(activations, weights(activations, gradients), size, relu)


@functools.partial(jax.jit, static_argnames=("size", "relu"))
def _cam_maps(features, head, images, class_ids, *, size, relu):
    """The maps, and how far the head's gradient is from one that is the same in every cell and for every input."""
    activations = activations_of(features, images)
    gradients, elsewhere = (
        class_gradients(lambda a: head(a, images), at, class_ids) for at in (activations, jnp.zeros_like(activations))
    )
    difference = jnp.abs(gradients - elsewhere.mean(axis=(2, 3), keepdims=True)).max()
    spread = difference / jnp.maximum(jnp.abs(gradients).max(), jnp.finfo(jnp.float32).tiny)
    return _finish(activations, summed_gradients(activations, gradients), size, relu), spread


def _finish(activations, weights, size, relu):
    maps = weighted_sum(activations, weights)
    return resize_to_image(jnp.maximum(maps, 0.0) if relu else maps, size)
