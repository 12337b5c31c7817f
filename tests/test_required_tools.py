"""What is missing is told with what to install, and is a failure where the tests must run."""

import pathlib

import pytest
import required_tools

ROOT = pathlib.Path(__file__).resolve().parents[1]
SKIPPED, FAILED = pytest.skip.Exception, pytest.fail.Exception


@pytest.mark.parametrize("value, outcome", [(None, SKIPPED), ("0", SKIPPED), ("packages", FAILED), ("1", FAILED)])
def test_missing_tool_is_a_failure_where_all_are_required(monkeypatch, value, outcome):
    monkeypatch.delenv(required_tools.VARIABLE, raising=False)
    if value is not None:
        monkeypatch.setenv(required_tools.VARIABLE, value)
    with pytest.raises(outcome, match="no_such_package is not installed: pip install"):
        required_tools.need_package("no_such_package")
    required_tools.need_package("pytest")


@pytest.mark.parametrize("value, outcome", [("packages", SKIPPED), ("1", FAILED)])
def test_programs_of_the_system_are_required_apart(monkeypatch, value, outcome):
    monkeypatch.setenv(required_tools.VARIABLE, value)
    with pytest.raises(outcome, match="no browser: apt install one"):
        required_tools.missing("no browser: apt install one")


def test_continuous_integration_requires_them():
    assert f"export {required_tools.VARIABLE}=1\n" in (ROOT / ".ci" / "run").read_text()
