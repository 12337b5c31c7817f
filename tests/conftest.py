"""One setting for every test: two simulated CPU devices, no silent rank promotion, quick compilation, no display."""

import os
import pathlib
import shutil

os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import matplotlib
import pytest

jax.config.update("jax_num_cpu_devices", 2)
# Arrays of different rank are broadcast explicitly: [B] * [B, H, W] is a bug far more often than an intention.
jax.config.update("jax_numpy_rank_promotion", "raise")
matplotlib.use("Agg")

ROOT = pathlib.Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session", autouse=True)
def compiled_programs(tmp_path_factory):
    """Programs are compiled quickly and kept on the disk while the tests run, for the processes that they start too.

    Tests compile much and compute little, and many of them the same step.
    """
    folder = tmp_path_factory.mktemp("compiled_programs")
    options = {
        "jax_compilation_cache_dir": str(folder),
        "jax_persistent_cache_min_compile_time_secs": 0.05,
        "jax_disable_most_optimizations": True,
    }
    for name, value in options.items():
        jax.config.update(name, value)
        os.environ[name.upper()] = str(value)
    yield
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def shared_data() -> pathlib.Path:
    """The folder of real images and weights: $SELFEXPLAIN_DATA, else `../shared/data` beside the repository."""
    folder = pathlib.Path(os.environ.get("SELFEXPLAIN_DATA") or ROOT.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"no real images: {folder} does not exist; set SELFEXPLAIN_DATA to a folder that holds them")
    return folder
