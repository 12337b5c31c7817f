"""What made a file of results: commit, versions and configuration, so that it can be made again."""

from __future__ import annotations

import importlib.metadata
import math
import pathlib
import platform
import subprocess
from collections.abc import Mapping
from typing import Any

import ml_collections

import selfexplain_jax

PACKAGES = ("jax", "jaxlib", "flax", "optax", "grain", "orbax-checkpoint", "numpy", "scikit-learn")
"""Packages whose versions are told."""


def provenance(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """Returns {"seed", "commit", "dirty": whether files differ from the commit, "versions": {package: version},
    "config"}, all of it JSON; what is not known, as the commit of an installed package, is None."""
    commit, dirty = _commit()
    return {
        "seed": int(config.seed),
        "commit": commit,
        "dirty": dirty,
        "versions": _versions(),
        # A config may hold numbers that JSON cannot say.
        "config": _with_text_for_infinity(config.to_dict()),
    }


def _with_text_for_infinity(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _with_text_for_infinity(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_with_text_for_infinity(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _versions() -> dict[str, str | None]:
    versions = {"python": platform.python_version(), "selfexplain_jax": selfexplain_jax.__version__}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return versions


def _commit() -> tuple[str | None, bool | None]:
    """Returns (commit, whether files differ from it) of the repository this file is tracked in, else (None, None)."""
    file = pathlib.Path(__file__).resolve()

    def git(*arguments):
        return subprocess.run(["git", *arguments], cwd=file.parent, capture_output=True, text=True, check=True).stdout

    try:
        # An installed copy may lie in somebody else's repository, whose commit would say nothing about this code.
        git("ls-files", "--error-unmatch", file.name)
        return git("rev-parse", "HEAD").strip(), bool(git("status", "--porcelain").strip())
    except (OSError, subprocess.CalledProcessError):
        return None, None
