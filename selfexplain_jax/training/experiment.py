"""What a config names, built: dataset, network, optimizer, and the jitted functions that make and step the state.

Loop, compile check and benchmark all use these.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import ml_collections
import optax

from selfexplain_jax.data import balance, build_dataset
from selfexplain_jax.models import build_model
from selfexplain_jax.objectives.compose import validate_objective
from selfexplain_jax.training import mesh as mesh_lib
from selfexplain_jax.training import steps
from selfexplain_jax.training.checkpoint import shapes_of
from selfexplain_jax.training.frozen import FrozenClassifier, check_classifier, from_workdir
from selfexplain_jax.training.optimizer import build_optimizer
from selfexplain_jax.training.passes import check_method, validate_passes
from selfexplain_jax.training.state import TrainState, abstract_state, create_state, state_shardings
from selfexplain_jax.types import Dataset, UserError

_AT_LEAST = {
    1: "data.image_size train.batch_size train.steps train.log_every train.keep_checkpoints evaluation.batch_size",
    0: "train.warmup_steps train.weight_decay train.clip_norm train.picture_every train.checkpoint_every "
    "evaluation.max_examples evaluation.audit_steps evaluation.refine_rounds evaluation.pictures evaluation.examples",
}
_OPTIONS = ("config.data.options", "config.comparison")
"""Groups whose fields are other functions' arguments, where None may have a meaning."""


@dataclasses.dataclass(frozen=True)
class Experiment:
    """What a config names, built: all that the step needs beside state and batch.

    config: frozen, so that jitted functions may depend on it. schedule: update number -> learning rate.
    classifier: the frozen one, where the method is "explainer".
    """

    config: ml_collections.FrozenConfigDict
    dataset: Dataset
    model: Any
    optimizer: optax.GradientTransformation
    schedule: optax.Schedule
    classifier: FrozenClassifier | None = None

    @functools.cached_property
    def positive_weights(self) -> tuple[float, ...]:
        """Weights of the classes' positives, from the train split's labels; () without config.data.positive_weights."""
        if not self.config.data.positive_weights:
            return ()
        labels = balance.labels_of(self.dataset.source(self.config.data.train_split))
        return tuple(balance.positive_weights(labels).tolist())

    @functools.cached_property
    def state_shapes(self) -> TrainState:
        """Shapes and types of the training state; nothing is computed."""
        return abstract_state(self.config, self.model, self.optimizer, None)


def build(config: ml_collections.ConfigDict, classifier: FrozenClassifier | None = None) -> Experiment:
    """Builds dataset, model and optimizer, and checks the whole config, before anything compiles.

    Args:
      config: the whole configuration.
      classifier: the frozen one of an "explainer"; None: that of `config.explainer.classifier`.

    Raises:
      UserError: an unknown name, a number out of range, or parts that do not fit together.
    """
    _check_nothing_is_none(config)
    for least, names in _AT_LEAST.items():
        for group, field in (name.split(".") for name in names.split()):
            if not config[group][field] >= least:
                raise UserError(f"config.{group}.{field} = {config[group][field]} must be at least {least}.")
    if config.evaluation.audit and config.evaluation.audit_steps == 0:
        raise UserError(
            "config.evaluation.audit_steps = 0 trains no classifiers: set evaluation.audit = False instead."
        )
    if not 0 <= config.evaluation.refine_threshold < 1:
        raise UserError(
            f"config.evaluation.refine_threshold = {config.evaluation.refine_threshold} must be at least 0 and below 1."
        )
    validate_objective(config)
    validate_passes(config)
    optimizer, schedule = build_optimizer(config)
    dataset = build_dataset(config)
    model = build_model(config, dataset.info)
    check_method(config, model)
    if config.method != "explainer":
        classifier = None
    else:
        classifier = classifier or from_workdir(config)
        check_classifier(classifier, dataset.info)
    experiment = Experiment(ml_collections.FrozenConfigDict(config), dataset, model, optimizer, schedule, classifier)
    if config.explainer.start_from_classifier:
        _check_start(experiment)
    return experiment


def _check_start(experiment: Experiment) -> None:
    """Raises UserError unless an Explainer can start from the weights of its classifier."""
    what = "config.explainer.start_from_classifier starts an Explainer's network from its classifier's weights"
    if experiment.classifier is None:
        raise UserError(f"{what}; config.method is {experiment.config.method!r}.")
    if experiment.config.model.pretrained:
        raise UserError(f"{what}, and config.model.pretrained from those of a file: set one of them.")
    state = experiment.state_shapes
    ours = shapes_of({"params": state.params, "batch_stats": state.batch_stats})
    theirs = shapes_of(experiment.classifier.shapes)
    differing = sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))
    if differing:
        raise UserError(
            f"{what}, but the two are different networks: not in both with one shape are {', '.join(differing[:3])}"
            f"{', ...' if len(differing) > 3 else ''}. Give both the same config.model, or turn it off."
        )


def _check_nothing_is_none(config: ml_collections.ConfigDict, name: str = "config") -> None:
    """Raises UserError for a field that is None, which ConfigDict takes in the place of any value."""
    for field, value in config.items():
        if value is None:
            raise UserError(f"{name}.{field} is None: give it a value. config.py says what it may be.")
        if isinstance(value, ml_collections.ConfigDict) and f"{name}.{field}" not in _OPTIONS:
            _check_nothing_is_none(value, f"{name}.{field}")


def load_frozen(experiment: Experiment, mesh: jax.sharding.Mesh) -> tuple:
    """What the step takes behind state and batch: (variables of the frozen classifier,), or () where there is none.

    Raises:
      UserError: they cannot be read.
    """
    return () if experiment.classifier is None else (experiment.classifier.load(mesh),)


def make_step(experiment: Experiment, mesh: jax.sharding.Mesh, explain: bool = True):
    """The jitted step (state, batch, *frozen) -> (state, logs) over a mesh: the batch split, the state as configured.

    `frozen` is `load_frozen`'s, which only an Explainer has; it is whole on every device.
    The state that goes in is donated: its memory becomes the new state's. `explain`: see `steps.train_step`.
    """
    everywhere, classifier = mesh_lib.replicated(mesh), experiment.classifier
    places = state_shardings(experiment.config, experiment.state_shapes, mesh)
    step = functools.partial(
        steps.train_step,
        config=experiment.config,
        model=experiment.model,
        optimizer=experiment.optimizer,
        explain=explain,
        scores=None if classifier is None else classifier.scores,
        positive_weights=experiment.positive_weights,
        places=places if experiment.config.train.shard_parameters else None,
    )
    return jax.jit(
        step,
        donate_argnums=0,
        in_shardings=(places, mesh_lib.batch_sharding(mesh), *([] if classifier is None else [everywhere])),
        out_shardings=(places, everywhere),
    )


def state_creation(experiment: Experiment, mesh: jax.sharding.Mesh):
    """Returns the jitted rng -> state at step 0, and the state's shapes, types and shardings."""
    places = state_shardings(experiment.config, experiment.state_shapes, mesh)
    make = functools.partial(create_state, experiment.config, experiment.model, experiment.optimizer)
    shapes = jax.tree.map(mesh_lib.placed, experiment.state_shapes, places)
    return jax.jit(make, out_shardings=places), shapes
