"""What the documents name exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from slipstream.cli.main import COMMANDS
from tests.web.conftest import BROWSERS

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")] + sorted(
    ROOT.glob("docs/**/*.md")
)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_and_paths_exist(document: Path) -> None:
    text = document.read_text()
    links = [target for target in re.findall(r"\]\(([^)#\s]+)", text) if "://" not in target]
    assert [target for target in links if not (document.parent / target).exists()] == []
    scripts = set(re.findall(r"(?<![\w/])scripts/[a-z0-9_.-]*[a-z0-9]", text))
    assert {name for name in scripts if not (ROOT / name).exists()} == set()
    pages = set(re.findall(r"(?<![\w/])docs/[\w/-]+\.md", text))
    assert {name for name in pages if not (ROOT / name).exists()} == set()


def test_the_readme_names_every_command() -> None:
    text = (ROOT / "README.md").read_text()
    assert {name for name in COMMANDS if f"slipstream {name}" not in text} == set()


def test_scripts_look_for_the_browsers_that_the_tests_take() -> None:
    assert f"command -v {' '.join(BROWSERS)} >/dev/null" in (ROOT / "scripts/test").read_text()
    assert ", ".join(f'"{name}"' for name in BROWSERS) in (ROOT / "scripts/screenshot").read_text()
