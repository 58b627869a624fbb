"""Tests of the native kernels are skipped where these were not built. This one makes sure of where they can be."""

from __future__ import annotations

import shutil

from slipstream.kernels.native import library


def test_where_there_is_a_compiler_they_were_built() -> None:
    reason = library.reason()
    assert (reason is None) == (shutil.which("c++") is not None), f"{reason}; with a compiler: scripts/install"
