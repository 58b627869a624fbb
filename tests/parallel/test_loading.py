"""Loading onto a mesh: how much the host holds meanwhile."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.parallel.eight_devices import FLAGS

ROOT = Path(__file__).parents[2]


def test_the_host_holds_less_than_a_third_more_than_the_largest_tensor(tmp_path: Path) -> None:
    """Of 2 GB, where the largest tensor is a quarter of that; the limit is for all of the process, mapped pages too."""
    environment = os.environ | {"XLA_FLAGS": FLAGS, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "tests.parallel.measure_loading", str(tmp_path)]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["bytes"] > 1.9e9
    assert found["largest"] > 5e8
    assert max(found["held"].values()) < 1.3, found["held"]
