"""Every dependency is used, declared, and has its reason in docs/adr/0002-dependencies.md."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
MODULES = {
    "pillow": "PIL",
    "pyzmq": "zmq",
    "pyyaml": "yaml",
    "opentelemetry-sdk": "opentelemetry",
    "opentelemetry-exporter-otlp-proto-http": "opentelemetry",
}
"""Where a package's module has another name than the package (with - as _)."""

LOADED_BY_OTHERS = {"httptools", "uvloop", "python-multipart", "ml-dtypes", "libtpu", "nvidia-cuda-nvcc-cu12"}
"""uvicorn loads the first two by name, Starlette the third; numpy finds bfloat16 through the next, JAX compilers in the
others."""


DRIVERS = {ROOT / "src/slipstream/bench" / kind / "drivers" for kind in ("peers", "images")}
"""They run in environments of their own, each with the engine that it drives."""


def names(requirements: list[str]) -> set[str]:
    return {re.split(r"[^A-Za-z0-9_.-]", requirement)[0] for requirement in requirements}


def module(package: str) -> str:
    return MODULES.get(package, package.replace("-", "_"))


def imported() -> set[str]:
    found: set[str] = set()
    for path in (ROOT / "src").rglob("*.py"):
        if DRIVERS & set(path.parents):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
                found.add(node.module.split(".")[0])
    return found - set(sys.stdlib_module_names) - {"slipstream"}


REQUIRED = names(PROJECT["dependencies"])
OPTIONAL = names([line for extra in PROJECT["optional-dependencies"].values() for line in extra])


def test_what_is_declared_is_used() -> None:
    used = imported()
    assert {package for package in REQUIRED - LOADED_BY_OTHERS if module(package) not in used} == set()
    assert {package for package in OPTIONAL - LOADED_BY_OTHERS if module(package) not in used} == set()


def test_what_is_imported_is_declared() -> None:
    assert imported() - {module(package) for package in REQUIRED | OPTIONAL} - {"jaxlib"} == set()


def test_each_has_its_reason() -> None:
    text = (ROOT / "docs/adr/0002-dependencies.md").read_text()
    reasons = {
        word for line in text.splitlines() if line.startswith("| ") for word in re.split(r"[ ,|]+", line.split("|")[1])
    }
    known = reasons | {"opentelemetry-exporter-otlp-proto-http"} if "-exporter-otlp-proto-http" in reasons else reasons
    assert {package for package in REQUIRED | OPTIONAL if package not in known} == set()
