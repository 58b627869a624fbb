"""Every family on 2, 4 and 8 devices."""

from __future__ import annotations

from tests.parallel.eight_devices import run


def test_every_family_on_several_devices() -> None:
    run("check_every_size.py")
