"""Runs tests where a CPU is eight devices: XLA reads how many once, so another process does it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

# The code runs for milliseconds, and is compiled for seconds.
FLAGS = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
FOLDER = Path(__file__).parent / "eight"


def run(file: str) -> None:
    """Run one file of tests/parallel/eight, and show what it printed if a test of it failed."""
    environment = os.environ | {"XLA_FLAGS": FLAGS, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "pytest", "-q", "--durations=5", "-p", "no:cacheprovider", str(FOLDER / file)]
    root = FOLDER.parents[2]
    done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
