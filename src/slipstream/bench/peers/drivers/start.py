"""Runs one driver: `python -P start.py DRIVER SETTINGS`, in the participant's own environment.

This folder is loaded under a name of its own: the rest of Slipstream need not be there, and since the folder is not on
the path, `vllm` means vLLM, not our driver of that name.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

_NAME = "peer_drivers"


def main() -> int:
    """Load the driver that the command line names, and let it answer until standard input ends."""
    folder = Path(__file__).parent
    spec = importlib.util.spec_from_file_location(
        _NAME, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    if spec is None or spec.loader is None:
        raise SystemExit(f"{folder} cannot be loaded")
    package = importlib.util.module_from_spec(spec)
    sys.modules[_NAME] = package
    spec.loader.exec_module(package)
    protocol = importlib.import_module(f"{_NAME}.protocol")
    protocol.end_with_parent()
    driver = importlib.import_module(f"{_NAME}.{sys.argv[1]}")
    return int(protocol.serve(driver.load, json.loads(sys.argv[2])))


if __name__ == "__main__":
    sys.exit(main())
