"""The frozen classifier that an Explainer explains: from the folder of a run, or any pure function.

Its variables are an argument of the step. Gradient, optimizer and checkpoint never see them; a checkpoint of the
Explainer holds their fingerprint alone, so that a run does not go on with another classifier.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import ml_collections

from selfexplain_jax.data import build_dataset
from selfexplain_jax.models import build_model
from selfexplain_jax.training import mesh as mesh_lib
from selfexplain_jax.training.checkpoint import CheckpointStore, saved_config
from selfexplain_jax.training.optimizer import build_optimizer
from selfexplain_jax.training.state import abstract_state, evaluated_variables, network_predictor
from selfexplain_jax.types import DatasetInfo, Predictor, UserError

CLASSIFYING = ("classifier", "self_explainer")
"""Values of config.method whose networks have scores of their own."""


@dataclasses.dataclass(frozen=True)
class FrozenClassifier:
    """A classifier and where its variables come from.

    class_names, image_size: what it knows and takes.
    scores: (variables, images [B, H, W, 3]) -> class scores [B, C]; pure.
    shapes: its variables as a tree of `jax.ShapeDtypeStruct`.
    load: mesh -> its variables, whole on every device.
    predictor: variables on one device -> the classifier for evaluation.
    """

    class_names: tuple[str, ...]
    image_size: int
    scores: Callable[[Any, jax.Array], jax.Array]
    shapes: Any
    load: Callable[[jax.sharding.Mesh], Any]
    predictor: Callable[[Any], Predictor]


def from_predictor(predictor: Predictor) -> FrozenClassifier:
    """Any pure function as the frozen classifier: `loop.train(config, workdir, from_predictor(predictor))`.

    Arrays that `predictor.scores` holds become constants of the compiled step; `config.model.link` must say what
    `predictor.probabilities` does. Nothing tells one such function from another, so a run that goes on must be given
    the same one.
    """
    return FrozenClassifier(
        class_names=tuple(predictor.class_names),
        image_size=predictor.image_size,
        scores=lambda variables, images: predictor.scores(images),
        shapes={},
        load=lambda mesh: {},
        predictor=lambda variables: predictor,
    )


def from_config(config: ml_collections.ConfigDict, workdir: str = "") -> FrozenClassifier:
    """The network of a classifier's config; its variables are read from the run in `workdir` when they are asked for.

    Raises:
      UserError: a bad config; on loading, no readable checkpoint.
    """
    optimizer, _ = build_optimizer(config)
    info = build_dataset(config).info
    model = build_model(config, info)
    shapes = evaluated_variables(config, abstract_state(config, model, optimizer, None))
    return FrozenClassifier(
        class_names=info.class_names,
        image_size=info.image_size,
        scores=functools.partial(_apply, model),
        shapes=shapes,
        load=functools.partial(_load, config, model, optimizer, workdir),
        predictor=functools.partial(network_predictor, config, info, model),
    )


def from_workdir(config: ml_collections.ConfigDict) -> FrozenClassifier:
    """The classifier of the run in `config.explainer.classifier`. Its configuration is read here, its weights later.

    A Self-Explainer is one too: its scores are explained, and its own masks are not looked at.

    Args:
      config: the Explainer's.

    Raises:
      UserError: none is named, the folder holds no checkpoint (the message says which command makes it), the run was
        an Explainer, or its images or scores are not those of this config.
    """
    workdir, made_by = config.explainer.classifier, config.explainer.classifier_config or "CONFIG"
    if not workdir:
        raise UserError(
            "config.method = 'explainer' explains a frozen classifier: set config.explainer.classifier to the "
            "--workdir of a classifier's or a Self-Explainer's run."
        )
    try:
        saved = saved_config(workdir)
    except UserError as error:
        raise UserError(
            f"config.explainer.classifier = {workdir!r}: there is no trained classifier ({error}) This command makes "
            f"it: python -m selfexplain_jax.main --config={made_by} --workdir={workdir}"
        ) from error
    where = f"The run in config.explainer.classifier = {workdir!r}"
    if saved.method not in CLASSIFYING:
        raise UserError(
            f"{where} has config.method = {saved.method!r}; an Explainer takes one with {' or '.join(CLASSIFYING)}. In "
            "Python, frozen.from_predictor takes any."
        )
    pairs = [("data.image_size", saved.data.image_size, config.data.image_size)]
    pairs += [(f"data.{name}", tuple(saved.data[name]), tuple(config.data[name])) for name in ("mean", "std")]
    pairs += [("model.link", saved.model.link, config.model.link)]
    differing = [f"config.{name}: {theirs!r} there, {ours!r} here" for name, theirs, ours in pairs if theirs != ours]
    if differing:
        raise UserError(f"{where} does not fit. {'; '.join(differing)}.")
    if saved.data.name == config.data.name:
        # Where data lie is no property of a network; they may have been moved since.
        saved.data.data_dir = config.data.data_dir
    return from_config(saved, workdir)


def check_classifier(classifier: FrozenClassifier, info: DatasetInfo) -> None:
    """Holds a classifier against the dataset whose images it is to explain.

    Raises:
      UserError: other classes, another order of them, or another image size.
    """
    if classifier.image_size != info.image_size:
        raise UserError(
            f"The frozen classifier takes images of {classifier.image_size} px, but dataset {info.name!r} has "
            f"{info.image_size} px. Set config.data.image_size = {classifier.image_size}."
        )
    if tuple(classifier.class_names) != tuple(info.class_names):
        theirs, ours = (", ".join(names[:8]) for names in (classifier.class_names, info.class_names))
        raise UserError(
            f"The frozen classifier knows other classes, or in another order, than dataset {info.name!r}: "
            f"{len(classifier.class_names)} ({theirs}) there, {info.num_classes} ({ours}) here."
        )


def _load(config, model, optimizer, workdir: str, mesh: jax.sharding.Mesh) -> Any:
    """Variables of the newest readable checkpoint, whole on every device."""
    store = CheckpointStore(workdir, config, read_only=True)
    try:
        restored = store.restore(abstract_state(config, model, optimizer, mesh_lib.replicated(mesh)))
    finally:
        store.close()
    if restored is None:
        raise UserError(f"{workdir} holds no checkpoint yet.")
    return evaluated_variables(config, restored.state)


def _apply(model, variables: dict, images: jax.Array) -> jax.Array:
    """Class scores [B, C] of images [B, H, W, 3], with running statistics."""
    return model.apply(variables, images, train=False)[0]
