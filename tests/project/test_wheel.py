"""What is in the wheel that users install where there is no compiler: everything but the native library."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    target = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "--quiet",
            "--no-deps",
            "--no-build-isolation",
            "-C",  # a folder of its own: the clone's may hold a library that was built before
            f"build-dir={target}/build",
            "-w",
            target,
            ROOT,
        ],
        check=True,
        capture_output=True,
        timeout=120,
        env=os.environ | {"CXX": "/bin/false", "CC": "/bin/false"},  # a compiler that fails, as a missing one does
    )
    [file] = target.glob("*.whl")
    return zipfile.ZipFile(file)


def test_every_file_of_the_package_is_in_it(wheel: zipfile.ZipFile) -> None:
    listed = subprocess.run(
        ["git", "ls-files", "src/slipstream"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.split()
    tracked = {path.removeprefix("src/") for path in listed}
    assert "slipstream/py.typed" in tracked
    assert any(name.startswith("slipstream/server/static/") and name.endswith(".html") for name in tracked)
    assert tracked - set(wheel.namelist()) == set()


def test_nothing_else_is_in_it(wheel: zipfile.ZipFile) -> None:
    tops = {name.split("/")[0] for name in wheel.namelist()}
    assert len(tops) == 2
    assert "slipstream" in tops
    assert not [name for name in wheel.namelist() if name.endswith((".pyc", ".so", ".gguf", ".safetensors"))]


def test_licence_and_entry_point(wheel: zipfile.ZipFile) -> None:
    [info] = {name.split("/")[0] for name in wheel.namelist() if ".dist-info/" in name}
    assert "Apache License" in wheel.read(f"{info}/licenses/LICENSE").decode()
    assert "slipstream = slipstream.cli.main:main" in wheel.read(f"{info}/entry_points.txt").decode()
    assert "License-Expression: Apache-2.0" in wheel.read(f"{info}/METADATA").decode()
