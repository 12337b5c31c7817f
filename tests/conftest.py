"""One strict setting for every test: two simulated CPU devices, no silent rank promotion, no display."""

import os
import pathlib

os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import matplotlib
import pytest

jax.config.update("jax_num_cpu_devices", 2)
# Arrays of different rank are broadcast explicitly: [B] * [B, H, W] is a bug far more often than an intention.
jax.config.update("jax_numpy_rank_promotion", "raise")
matplotlib.use("Agg")

ROOT = pathlib.Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared_data() -> pathlib.Path:
    """The folder of real images and weights: $SELFEXPLAIN_DATA, else `../shared/data` beside the repository."""
    folder = pathlib.Path(os.environ.get("SELFEXPLAIN_DATA") or ROOT.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"no real images: {folder} does not exist; set SELFEXPLAIN_DATA to a folder that holds them")
    return folder


@pytest.fixture(scope="module")
def quick_compilation():
    """XLA compiles fast and unoptimised, for a file whose tests compile much and compute little."""
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)
