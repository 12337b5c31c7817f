"""The models that a comparison names: found or named as missing, restored, and told apart by their scores."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping

import jax
import ml_collections

from selfexplain_jax import evaluate
from selfexplain_jax.config import load_config
from selfexplain_jax.training import loop
from selfexplain_jax.training.checkpoint import fingerprint, saved_config
from selfexplain_jax.training.state import make_predictor
from selfexplain_jax.types import DatasetInfo, Predictor, UserError


def model_settings(config: ml_collections.ConfigDict) -> dict[str, tuple[str, ml_collections.ConfigDict]]:
    """Returns {name: (source, its configuration)} of `config.comparison.models`; nothing is restored yet.

    A source is the folder of a run, whose checkpoint knows its config; or a config file with pretrained weights,
    PATH.py or PATH.py:VARIANT.

    Raises:
      UserError: no such run or file. All that are missing are named, each with the command that trains it.
    """
    found, missing = {}, []
    for name, source in config.comparison.models.items():
        try:
            found[name] = (source, load_config(_found(source)) if _is_config(source) else saved_config(source))
        except UserError as error:
            missing.append(f"config.comparison.models.{name}: {error} {_how_to_train(name, source, config)}")
    if missing:
        raise UserError("\n".join(missing))
    return found


def open_model(
    name: str, found: tuple[str, ml_collections.ConfigDict], config: ml_collections.ConfigDict, info: DatasetInfo
) -> tuple[Predictor, list]:
    """Returns the predictor of a trained run, or of a config's pretrained weights, and what tells it from another one.

    The latter is [source, steps trained, fingerprint of the parameters]. An Explainer's masks come with the scores of
    its frozen classifier, which lies where `config.explainer.classifier` says, else where its training found it.

    Args:
      name: of the model in the comparison, for messages.
      found: from `model_settings`.
      config: the comparison's.
      info: the data set's.

    Raises:
      UserError: a config without pretrained weights, a checkpoint that cannot be restored, or a model of other classes,
        another size or another normalisation.
    """
    source, settings = found
    settings.data.data_dir = config.data.data_dir
    settings.explainer.classifier = config.explainer.classifier or settings.explainer.classifier
    if _is_config(source) and not settings.model.pretrained:
        raise UserError(f"config.comparison.models.{name}: {source} names no pretrained weights; name a trained run.")
    try:
        result = loop.untrained(settings) if _is_config(source) else loop.restore(settings, source)
    except UserError as error:
        raise UserError(f"config.comparison.models.{name}: {error}") from error
    predictor = make_predictor(settings, result.dataset.info, result.model, result.state, result.classifier)
    evaluate.check_predictor(predictor, info, f"Model {name!r}")
    if (*settings.data.mean, *settings.data.std) != (*config.data.mean, *config.data.std):
        raise UserError(f"Model {name!r} was trained with another config.data.mean or std than the comparison's.")
    state = result.state
    weights = fingerprint((state.params, state.ema_params, state.batch_stats, state.ema_batch_stats))
    return predictor, [source, result.step, weights]


def asked_models(models: Mapping[str, tuple[Predictor, list]]) -> dict[str, str]:
    """Returns for each model the first one that has the same scores: an Explainer is asked by its classifier's."""
    known, asked = {}, {}
    for name, (predictor, _) in models.items():
        bound = isinstance(predictor.scores, jax.tree_util.Partial)
        asked[name] = known.setdefault(fingerprint(predictor.scores) if bound else id(predictor.scores), name)
    return asked


def _how_to_train(name: str, source: str, config: ml_collections.ConfigDict) -> str:
    experiment = config.comparison.model_configs.get(name, "")
    if not experiment:
        return "Train it first, or name its folder."
    data_dir = f" --config.data.data_dir={config.data.data_dir}" if config.data.data_dir else ""
    command = f"python -m selfexplain_jax.main --config={experiment} --workdir={source}{data_dir}"
    return f"This command trains it: {command}. If it lies elsewhere: --config.comparison.models.{name}=FOLDER."


def _is_config(source: str) -> bool:
    return pathlib.Path(source.partition(":")[0]).suffix == ".py"


def _found(spec: str) -> str:
    """A config that is not below the present folder is looked for in the repository."""
    repository = pathlib.Path(__file__).resolve().parents[1]
    return spec if pathlib.Path(spec.partition(":")[0]).is_file() else str(repository / spec)
