"""The configuration in a checkpoint: written as JSON, read again, and held against that of the run that goes on."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections

from selfexplain_jax.config import base_config
from selfexplain_jax.types import UserError

MAY_CHANGE = (
    "benchmark",
    "comparison",
    "data.data_dir",
    "data.eval_split",
    "data.num_threads",
    "data.prefetch",
    "evaluation",
    "explainer.classifier",
    "explainer.classifier_config",
    "model.rematerialise",
    "passes.evaluate_ema",
    "train.checkpoint_every",
    "train.evaluate",
    "train.keep_checkpoints",
    "train.log_every",
    "train.picture_every",
    "train.shard_parameters",
)
"""Fields (or groups of fields) that may differ between a checkpoint and the run that goes on from it.

Where an Explainer's classifier lies is one of them: its fingerprint says whether it is the same.
"""

FREE_GROUPS = ("data.options", "objective")
"""Groups whose fields are the config's own: one that is not there is off, and has no default."""

_ABSENT = "absent"


def jsonable(config: Mapping | ml_collections.ConfigDict) -> dict:
    """The configuration as JSON gives it back: plain dicts, lists for tuples."""
    plain = config.to_dict() if hasattr(config, "to_dict") else dict(config)
    return json.loads(json.dumps(plain))


def from_json(saved: Mapping) -> ml_collections.ConfigDict:
    """A configuration as `jsonable` gave it: tuples for lists, and the default of every field that is not there."""

    def read(value):
        if isinstance(value, Mapping):
            return {name: read(part) for name, part in value.items()}
        return tuple(map(read, value)) if isinstance(value, list) else value

    config = base_config().unlock()
    for name, value in read(saved).items():
        if not isinstance(value, dict) or name == "objective":
            config[name] = ml_collections.ConfigDict(value) if isinstance(value, dict) else value
            continue
        for field, part in value.items():
            if f"{name}.{field}" in FREE_GROUPS:
                part = ml_collections.config_dict.ConfigDict(part, allow_dotted_keys=True)
            config[name][field] = part
    return config.lock()


def check_same_config(saved: Mapping, present: Mapping, where: str) -> None:
    """Holds the configuration of a checkpoint against that of this run; `MAY_CHANGE` lists what may differ.

    A field that is younger than the checkpoint counts as having had its default there.

    Args:
      saved: the checkpoint's, as from `jsonable`.
      present: this run's, as from `jsonable`.
      where: names the checkpoint in the message.

    Raises:
      UserError: lists each field that differs, with both values, and the flags that make this one the checkpoint's.
    """
    differing = _differing(saved, present, MAY_CHANGE)
    if differing:
        flags = "the configuration that it was made with"
        if all(_ABSENT not in values for values in differing.values()):
            flags = " ".join(shlex.quote(f"--config.{name}={_value(there)}") for name, (there, _) in differing.items())
        raise UserError(
            f"{where} was made with another configuration:\n"
            + "\n".join(f"  {line}" for line in _lines(differing))
            + f"\nUse another --workdir for this configuration, or, for what the checkpoint holds, {flags}"
        )


def differing_fields(saved: Mapping, present: Mapping, may_change: Sequence[str]) -> list[str]:
    """Returns "FIELD: VALUE there, VALUE now" for each field that differs and that `may_change` does not name.

    A field of `saved` that is missing, because it is younger, counts as having had its default.

    Args:
      saved, present: configurations, as from `jsonable`.
      may_change: fields, or groups of fields, that are not looked at.
    """
    return _lines(_differing(saved, present, may_change))


def _value(value: Any) -> str:
    """A field's value as it is given on the command line: a tuple for JSON's list."""
    return str(tuple(value)) if isinstance(value, list) else str(value)


def _lines(differing: Mapping[str, tuple[Any, Any]]) -> list[str]:
    return [f"{name}: {there!r} there, {now!r} now" for name, (there, now) in differing.items()]


def _differing(saved: Mapping, present: Mapping, may_change: Sequence[str]) -> dict[str, tuple[Any, Any]]:
    """{field: (value in `saved`, value in `present`)} of those that `differing_fields` lists."""
    younger = {
        name: value
        for name, value in _flat(jsonable(base_config())).items()
        if not any(name.startswith(group + ".") for group in FREE_GROUPS)
    }
    saved, present = younger | _flat(saved), _flat(present)
    return {
        name: (saved.get(name, _ABSENT), present.get(name, _ABSENT))
        for name in sorted(saved.keys() | present.keys())
        if saved.get(name, _ABSENT) != present.get(name, _ABSENT)
        and not any(name == free or name.startswith(free + ".") for free in may_change)
    }


def _flat(tree: Mapping, prefix: str = "") -> dict[str, Any]:
    """{"a.b": value} of nested dicts; an empty dict leaves nothing."""
    result = {}
    for key, value in tree.items():
        result.update(_flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value})
    return result
