"""What needs several devices."""

from __future__ import annotations

import pytest

from tests.parallel.eight_devices import run


@pytest.mark.parametrize(
    "file", ["check_families.py", "check_steps.py", "check_engine.py", "check_images.py", "check_image_pipelines.py"]
)
def test_on_eight_devices(file: str) -> None:
    run(file)
