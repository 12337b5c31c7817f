"""Less work for the same map, and memory that only the chunk decides: what holds on any machine.

python -m selfexplain_jax.main --mode=benchmark --what=curves --config=configs/imagenet.py:classifier --images=PHOTOS
python -m selfexplain_jax.main --mode=benchmark --what=memory --config=configs/imagenet.py:classifier --images=PHOTOS
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np

from selfexplain_jax import attribution, costs
from selfexplain_jax.attribution.rise import SAMPLINGS, agreement, agreement_curve
from selfexplain_jax.benchmark_attribution import Subject
from selfexplain_jax.types import UserError

MASKS = (1, 8, 64)
"""Chunks of masks, or of channels, whose memory is compared."""


def rise_curves(subject: Subject, settings: ml_collections.ConfigDict) -> dict[str, Any]:
    """How many masks each sampling needs for the map of many independent ones.

    Returns:
      {"reference_masks", "agreement": {sampling: {masks: mean correlation with the reference, over its likeliest class
      of each image}}, "masks_needed": {sampling: {n: masks that agree as n independent ones do, see `masks_needed`}}}.
    """
    images, class_ids = subject.images[: settings.curve_images], subject.class_ids[: settings.curve_images, :1]
    options = {"chunk_size": settings.chunk_size}
    reference = attribution.rise(
        subject.classifier, images, class_ids, rng=jax.random.key(1), num_masks=settings.reference_masks, **options
    )
    curves: dict[str, dict[int, float]] = {}
    for sampling in SAMPLINGS:
        curves[sampling] = {}
        for count in settings.curve_masks:
            curves[sampling] |= agreement_curve(
                subject.classifier,
                images,
                class_ids,
                reference,
                rng=jax.random.key(0),
                counts=(count,),
                repetitions=settings.curve_repetitions,
                sampling=sampling,
                **options,
            )
            print(f"RISE, {sampling}, {count} masks: agreement {curves[sampling][count]:.4f}", flush=True)
    needed = {
        sampling: {count: masks_needed(curve, value) for count, value in curves["independent"].items()}
        for sampling, curve in curves.items()
        if sampling != "independent"
    }
    for sampling, counts in needed.items():
        for count, masks in counts.items():
            said = "more than were tried" if masks is None else f"{masks:,.0f}, {masks / count:.0%}"
            print(f"As {count} independent masks: {sampling} {said}")
    return {"reference_masks": settings.reference_masks, "agreement": curves, "masks_needed": needed}


def masks_needed(curve: Mapping[int, float], value: float) -> float | None:
    """The least number of masks at which a curve reaches a value; between two points linear in the logarithm.

    None where it does not reach it, and the smallest number tried where it is above it from the start.

    Args:
      curve: {masks: agreement}.
      value: to reach.
    """
    counts = sorted(curve)
    for count, before in zip(counts, [None, *counts], strict=False):
        if curve[count] >= value:
            if before is None:
                return float(count)
            share = (value - curve[before]) / (curve[count] - curve[before])
            return float(before * (count / before) ** share)
    return None


def score_cam_curve(subject: Subject, settings: ml_collections.ConfigDict) -> dict[str, Any]:
    """How near Score-CAM on clustered channels comes to that on all.

    Returns:
      {"channels": passes of the network per image without clusters, "agreement": {clusters: mean correlation with the
      map without clusters}}.
    """
    images, class_ids = subject.images[: settings.curve_images], subject.class_ids[: settings.curve_images, :1]
    method = functools.partial(attribution.score_cam, subject.classifier, images, class_ids)
    whole = method(chunk_size=settings.chunk_size)
    channels = jax.eval_shape(subject.classifier.features, images).shape[-1]
    curve = {}
    for clusters in settings.curve_clusters:
        if clusters < channels:
            curve[clusters] = float(agreement(method(clusters=clusters, chunk_size=settings.chunk_size), whole).mean())
            print(f"Score-CAM, {clusters} of {channels} passes: agreement {curve[clusters]:.4f}", flush=True)
    return {"channels": channels, "agreement": curve}


def curves(subject: Subject, settings: ml_collections.ConfigDict) -> dict[str, Any]:
    """Both curves; see `rise_curves` and `score_cam_curve`.

    Raises:
      UserError: an agreement is not a number, as of a map that is the same everywhere.
    """
    result = {"rise": rise_curves(subject, settings), "score_cam": score_cam_curve(subject, settings)}
    found = [*result["rise"]["agreement"].values(), result["score_cam"]["agreement"]]
    if not all(np.isfinite(value) for curve in found for value in curve.values()):
        raise UserError("A map is the same everywhere, or not finite, and agrees with nothing: use other photos.")
    return result


def memory(subject: Subject, settings: ml_collections.ConfigDict) -> dict[str, Any]:
    """Bytes beside arguments and result, as compiled and not run: of RISE by masks and by chunk, Score-CAM by channels.

    Returns:
      {"rise": {masks: bytes}, "rise_by_chunk": {chunk_size: bytes}, "score_cam": {layer: {"channels", "bytes"}}}; a
      layer named "" is the one that the head reads.
    """
    classifier, chunk = subject.classifier, settings.chunk_size
    arguments = subject.images[:1], subject.class_ids[:1]

    def rise(masks, chunk_size):
        method = functools.partial(
            attribution.rise, classifier, rng=jax.random.key(0), num_masks=masks, chunk_size=chunk_size
        )
        found = costs.temporary_bytes(method, *arguments)
        print(f"RISE, {masks} masks, {chunk_size} at a time: {found / 1e6:,.1f} MB", flush=True)
        return found

    by_masks = {chunk * times: rise(chunk * times, chunk) for times in MASKS}
    by_chunk = {size: rise(chunk * MASKS[-1], size) for size in _chunks(chunk)}
    by_layer = {}
    features = {name: functions[0] for name, functions in classifier.layers.items()} | {"": classifier.features}
    for layer, function in features.items():
        channels = jax.eval_shape(function, arguments[0]).shape[-1]
        method = functools.partial(attribution.score_cam, classifier, layer=layer, chunk_size=chunk)
        found = costs.temporary_bytes(method, *arguments)
        print(f"Score-CAM, {channels} channels ({layer or 'features'}), {chunk} at a time: {found / 1e6:,.1f} MB")
        by_layer[layer] = {"channels": channels, "bytes": found}
    return {"rise": by_masks, "rise_by_chunk": by_chunk, "score_cam": by_layer}


def _chunks(largest: int) -> Sequence[int]:
    return sorted({max(largest // 4, 1), max(largest // 2, 1), largest})
