"""scripts/rules.py finds what it is there to find."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
HEADER = "from __future__ import annotations\n"


@pytest.fixture(scope="module")
def rules() -> ModuleType:
    spec = importlib.util.spec_from_file_location("rules", ROOT / "scripts/rules.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("a.py", HEADER + "x = 1\n" * 450, "451 lines"),
        ("utils.py", HEADER, "a name that says nothing"),
        ("a.py", HEADER + "# TO" + "DO: later\n", "a note to self"),
        ("a.py", "def f():\n    return 1\n", "lacks `from __future__"),
    ],
)
def test_broken(rules: ModuleType, name: str, text: str, problem: str) -> None:
    [found] = rules.problems(Path(name), text)
    assert problem in found


def test_kept(rules: ModuleType) -> None:
    text = HEADER + "def f():\n    return 'METHODS TO DO'\n" + "x = 1\n" * 440
    assert list(rules.problems(Path("pages.py"), text)) == []
    assert list(rules.problems(Path("__init__.py"), '"""A package."""\n')) == []


def test_this_repository(rules: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert rules.main() == 0
