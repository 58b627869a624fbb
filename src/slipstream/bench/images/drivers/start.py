"""One participant's measurement: `python -P start.py DRIVER SETTINGS`, in its own environment, on a quiet machine.

Prints one JSON object: {"seconds": [...] of the steps after the first, "load": seconds until the model was there,
"first": seconds of the first step, "versions": {...}}, or {"error": reason}. The output goes to `settings["output"]`.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

_NAME = "image_drivers"


def main() -> int:
    """Load the driver that the command line names, run its step, and print what was measured."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print goes to standard error
    try:
        answer = measured(sys.argv[1], json.loads(sys.argv[2]))
    except Exception as error:
        answer = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"}
    answers.write(json.dumps(answer) + "\n")
    answers.flush()
    # Not by the interpreter's way out: some libraries wait there for threads that never end.
    os._exit("error" in answer)


def measured(driver: str, settings: dict[str, Any]) -> dict[str, Any]:
    """See the module."""
    load = _package(driver)
    began = time.perf_counter()
    step, versions = load(settings)
    loaded = time.perf_counter() - began
    seconds = []
    for _ in range(settings["steps"] + 1):
        start = time.perf_counter()
        found = step()
        seconds.append(time.perf_counter() - start)
    np.save(settings["output"], found)
    return {"load": loaded, "first": seconds[0], "seconds": seconds[1:], "versions": versions}


def _package(driver: str) -> Any:
    """`load` of a module of this folder, which is a package of another name here."""
    folder = Path(__file__).parent
    spec = importlib.util.spec_from_file_location(
        _NAME, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None and spec.loader is not None
    package = importlib.util.module_from_spec(spec)
    sys.modules[_NAME] = package
    spec.loader.exec_module(package)
    return importlib.import_module(f"{_NAME}.{driver}").load


if __name__ == "__main__":
    sys.exit(main())
