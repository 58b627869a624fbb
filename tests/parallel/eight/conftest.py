"""These files run in a process of their own, in which a CPU is eight devices: see ../test_eight_devices.py."""

from __future__ import annotations

import jax
import pytest


@pytest.fixture(autouse=True, scope="session")
def eight_devices() -> None:
    assert jax.device_count() == 8
