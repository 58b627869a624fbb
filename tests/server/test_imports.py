"""The HTTP process stays light."""

from __future__ import annotations

import subprocess
import sys


def test_the_server_never_loads_jax() -> None:
    code = "import sys, slipstream.server; print([m for m in ('jax', 'torch', 'opentelemetry') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
