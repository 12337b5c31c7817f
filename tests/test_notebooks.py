"""The notebooks of launch/colab: what may stand in them; and, among the slow tests, that every cell runs."""

import ast
import json
import os
import pathlib
import subprocess
import sys

import pytest
from required_tools import need_package

ROOT = pathlib.Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "launch" / "colab").glob("*.ipynb"))


def cells_of(path, kind="code"):
    return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == kind]


def code_of(path):
    return ["".join(cell["source"]) for cell in cells_of(path)]


def test_there_are_three():
    assert [path.stem for path in NOTEBOOKS] == ["compare_methods", "explain_photos", "quickstart"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_outputs_are_stripped(path):
    for cell in cells_of(path):
        assert cell["outputs"] == [] and cell["execution_count"] is None and cell["metadata"] == {}
    metadata = json.loads(path.read_text())["metadata"]
    assert set(metadata) == {"accelerator", "kernelspec", "language_info"} and metadata["accelerator"] == "GPU"
    assert metadata["kernelspec"]["name"] == "python3", "the kernel of the environment, whatever it is called"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_imports_the_package_and_defines_nothing(path):
    nodes = [node for code in code_of(path) for node in ast.walk(ast.parse(code))]
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
    assert not [ast.unparse(node) for node in nodes if isinstance(node, kinds)]
    assert any(isinstance(node, ast.ImportFrom) and node.module.startswith("selfexplain_jax") for node in nodes)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_all_install_in_the_same_way(path):
    assert code_of(path)[0] == code_of(NOTEBOOKS[0])[0]


PIP = """
import importlib.metadata, importlib.util, subprocess
calls, versions = [], {versions}
importlib.metadata.version = lambda name: versions[name]
importlib.util.find_spec = lambda name: {found}
def run(command, check):
    calls.append(command)
    versions["jax"] = {after!r}
subprocess.run = run
"""


@pytest.mark.parametrize(("found", "after"), [(None, "0.7.2"), ("there", "0.7.2"), (None, "0.9.0")])
def test_installing_keeps_the_jax_of_the_machine(found, after):
    versions = {"jax": "0.7.2", "jaxlib": "0.7.2", "numpy": "2.1.0"}
    code = PIP.format(versions=versions, found=repr(found), after=after) + code_of(NOTEBOOKS[0])[0] + "\nprint(calls)"
    own = os.environ | {"SELFEXPLAIN_REPOSITORY": "git+https://example.org/selfexplain_jax"}
    done = subprocess.run([sys.executable, "-c", code], env=own, capture_output=True, text=True, timeout=60)
    if after != "0.7.2":
        assert "AssertionError" in done.stderr, "another version is not passed over"
        return
    calls = ast.literal_eval(done.stdout)
    assert len(calls) == (found is None)
    for command in calls:
        assert command[1:4] == ["-m", "pip", "install"]
        assert command[-3:] == ["jax==0.7.2", "jaxlib==0.7.2", "numpy==2.1.0"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_an_address_that_is_still_to_be_written_is_asked_for(path):
    versions = {"jax": "0.7.2", "jaxlib": "0.7.2", "numpy": "2.1.0"}
    code = PIP.format(versions=versions, found="None", after="0.7.2") + code_of(path)[0]
    own = {name: value for name, value in os.environ.items() if name != "SELFEXPLAIN_REPOSITORY"}
    done = subprocess.run([sys.executable, "-c", code], env=own, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and done.stderr == (
        "Write in the line above where you have the repository from: git+https://...\n"
    )


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_cell_runs(path, tmp_path):
    need_package("nbmake")
    # In a folder of its own: notebooks write beside themselves.
    copy = tmp_path / path.name
    copy.write_bytes(path.read_bytes())
    settings = {
        "SELFEXPLAIN_TINY": "1",
        "PYTHONPATH": str(ROOT),
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        # The kernel of this environment before one of the user's folder.
        "JUPYTER_PREFER_ENV_PATH": "1",
    }
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--nbmake", "--nbmake-timeout=900", "-p", "no:cacheprovider", str(copy)],
        cwd=tmp_path,
        env=os.environ | settings,
        capture_output=True,
        text=True,
        timeout=1000,
    )
    assert done.returncode == 0, done.stdout[-4000:]
