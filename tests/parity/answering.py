"""How a script of this folder answers the process that started it: a line of JSON for each line of JSON.

The first line written says what runs here. Then for each line read, {"task": name, "settings": {...}}, a line is
written: the answer, or {"error": why not}. Nothing else goes to standard output. An empty line, or the end of the
input, ends it.
"""

from __future__ import annotations

import importlib.metadata
import json
import pathlib
import sys
import warnings
from collections.abc import Callable


def version_of(package: str) -> str | None:
    """Of an installed package; None where there is none."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def serve(begin: Callable[[pathlib.Path], tuple[dict, Callable[[str, dict], dict]]]) -> None:
    """Reads tasks and writes answers until there are no more.

    Args:
      begin: from the folder that the script was given to what is said first, and the function (task, settings) ->
        answer.
    """
    # What packages print goes to standard error.
    answers, sys.stdout = sys.stdout, sys.stderr
    warnings.simplefilter("ignore")

    def answer(what: dict):
        print(json.dumps(what), file=answers, flush=True)

    about, do = begin(pathlib.Path(sys.argv[1]))
    answer(about)
    for line in iter(sys.stdin.readline, ""):
        if not line.strip():
            return
        asked = json.loads(line)
        try:
            answer(do(asked["task"], asked["settings"]))
        except Exception as error:  # Whatever goes wrong, in somebody's package too, is this task's answer.
            answer({"error": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"})
