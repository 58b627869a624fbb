"""What users get who have no compiler: a wheel of everything but the native library, which runs on XLA alone."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NO_COMPILER = {"CC": "/nonexistent/cc", "CXX": "/nonexistent/c++"}  # CMake would find one beside PATH as well

# Runs an engine from the installed package, not from the clone, which an editable install would put before all else.
PROGRAM = """
import sys
sys.meta_path[:] = [finder for finder in sys.meta_path if "_editable" not in type(finder).__module__]
import slipstream
from slipstream.kernels.native.library import library
from tests.engine import tiny

engine = tiny.engine(kernels="auto")
assert tiny.run(engine, [tiny.request("a", [1, 2, 3])])["a"]
print(slipstream.__file__, library())
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel as pip builds it from the source distribution where there is no compiler."""
    target = tmp_path_factory.mktemp("wheel")
    make = "import sys; from scikit_build_core.build import build_sdist; build_sdist(sys.argv[1])"
    subprocess.run([sys.executable, "-c", make, str(target)], cwd=ROOT, check=True, capture_output=True, timeout=120)
    [source] = target.glob("*.tar.gz")
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", target, source],
        check=True,
        capture_output=True,
        timeout=120,
        env=os.environ | NO_COMPILER,
    )
    [built] = target.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def wheel(file: Path) -> zipfile.ZipFile:
    return zipfile.ZipFile(file)


def test_it_runs_on_xla_alone_and_says_so_once_with_the_remedy(file: Path, tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", tmp_path, file],
        check=True,
        capture_output=True,
        timeout=120,
    )
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(tmp_path / "slipstream" / "__init__.py"), "None"]
    assert done.stderr.count("the native CPU kernels were not built") == 1, done.stderr
    assert done.stderr.count("apt-get install g++") == 1


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
    heavy = [name for name in wheel.namelist() if name.endswith((".pyc", ".so", ".gguf", ".safetensors"))]
    assert all(name.startswith("slipstream/checkpoint/embedded/") for name in heavy)


def test_licence_and_entry_point(wheel: zipfile.ZipFile) -> None:
    [info] = {name.split("/")[0] for name in wheel.namelist() if ".dist-info/" in name}
    assert "Apache License" in wheel.read(f"{info}/licenses/LICENSE").decode()
    assert "slipstream = slipstream.cli.main:main" in wheel.read(f"{info}/entry_points.txt").decode()
    assert "License-Expression: Apache-2.0" in wheel.read(f"{info}/METADATA").decode()
