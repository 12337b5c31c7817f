#!/usr/bin/env bash
# Style and tests, as continuous integration runs them. Arguments go to pytest: bash launch/test.sh tests/test_explain.py -x
# Slow tests are left out; `bash launch/test.sh -m slow` runs those. Two processes share the tests; -n 0 is one process.
# SELFEXPLAIN_REQUIRE_TOOLS=1: a test whose program is not installed (a browser, shellcheck) fails and is not skipped;
# =packages: so do those that want what pip installs, and the system's programs may be missing.
set -euo pipefail
# shellcheck source=launch/setup.sh
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
install "$root/requirements-test.txt"

cd "$root"
"$python" -m ruff check .
"$python" -m pytest -n 2 --dist worksteal "$@"
