"""The devices of a TPU slice that is not there, to compile for: JAX's compiler for TPUs needs no TPU."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import os
import re

import jax

from selfexplain_jax.types import UserError

_ALONE = {
    # The library may otherwise be loaded by one process of a machine, the one that owns its TPU.
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    # There is no metadata server to ask what kind of TPU this machine has: it has none.
    "TPU_SKIP_MDS_QUERY": "1",
}


def devices_of(topology: str) -> list[jax.Device]:
    """Returns the devices of a TPU slice, such as "v5e:2x4" or "v5p:2x2x2", for compiling alone.

    Args:
      topology: kind of chip, a colon, and the chips along each axis of the slice.

    Raises:
      UserError: libtpu is not installed, or there is no such slice.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            f"--topology={topology} needs the compiler for TPUs, the package libtpu in the version that JAX names: "
            f"pip install {libtpu_requirement()}. It is best kept in an environment of its own, see docs/scaling.md."
        )
    for name, value in _ALONE.items():
        os.environ.setdefault(name, value)
    from jax.experimental import topologies

    try:
        # What the library writes to stderr about the TPU that it does not find is of no use to anybody.
        with _quiet():
            return list(topologies.get_topology_desc(topology, platform="tpu").devices)
    except jax.errors.JaxRuntimeError as error:
        raise UserError(
            f"--topology={topology} is no TPU slice ({str(error).splitlines()[0]}). Examples: v5e:2x4, v5e:16x16, "
            "v5p:2x2x2."
        ) from error


def libtpu_requirement() -> str:
    """Returns what pip is to install for the JAX that is here, such as "libtpu==0.0.42.*"."""
    for requirement in importlib.metadata.requires("jax") or ():
        match = re.match(r"(libtpu[^;\s]*)", requirement)
        if match:
            return match.group(1)
    return f"jax[tpu]=={jax.__version__}"


@contextlib.contextmanager
def _quiet():
    """Sends what anything in this process writes to stderr, libraries in C among it, to nowhere."""
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
