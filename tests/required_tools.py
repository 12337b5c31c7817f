"""Programs and packages that some tests need: without its own, a test is skipped on a desk, and fails in .ci/run."""

import importlib.util
import os

import pytest

VARIABLE = "SELFEXPLAIN_REQUIRE_TOOLS"
"""Set to "packages", what pip installs must be there; set to "1", as .ci/run does, programs of the system too."""


def missing(what, required=("1",)):
    """Ends a test, or the import of a file of tests, for want of what `what` says and how to install it.

    It fails where VARIABLE has a value in `required`, and is skipped elsewhere.
    """
    if os.environ.get(VARIABLE) in required:
        pytest.fail(f"{what} ({VARIABLE}={os.environ[VARIABLE]})", pytrace=False)
    pytest.skip(what, allow_module_level=True)


def need_package(name):
    """Ends a test without that package of requirements-test.txt; see `missing`."""
    if importlib.util.find_spec(name) is None:
        missing(f"{name} is not installed: pip install -r requirements-test.txt", ("1", "packages"))
