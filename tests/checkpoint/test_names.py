from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from slipstream.checkpoint import hub, resolve
from slipstream.errors import ModelNotFound
from tests.checkpoint.gguf_files import write_llama


def test_local_paths_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "name").mkdir(parents=True)
    file = write_llama(tmp_path / "x.gguf")
    assert resolve("org/name") == Path("org/name")
    assert resolve("x.gguf") == Path("x.gguf")
    assert resolve(str(file)) == file
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve("~/x.gguf") == file


@pytest.mark.parametrize(
    "name", ["smolm2-135", "SmolLM2-135M", "./nothing", "/no/where.gguf", "", "a" * 5000, "~nobody/x"]
)
def test_a_name_that_cannot_be_a_repository_asks_nobody(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "fetch", None)
    with pytest.raises(ModelNotFound, match="does not exist in"):
        resolve(name)


@pytest.mark.parametrize(
    ("name", "near"), [("smolm2-135", "smollm2-135m"), ("SmolLM2-135M", "smollm2-135m"), ("gemma-270m", "gemma3-270m")]
)
def test_the_nearest_built_in_name_is_suggested(name: str, near: str) -> None:
    with pytest.raises(ModelNotFound, match=f"did you mean {near}"):
        resolve(name)


def test_nothing_is_suggested_where_nothing_is_near() -> None:
    with pytest.raises(ModelNotFound) as caught:
        resolve("whisper")
    assert "did you mean" not in str(caught.value)


def test_opening_a_checkpoint_imports_neither_jax_nor_the_network(tmp_path: Path) -> None:
    write_llama(tmp_path / "x.gguf")
    script = (
        "import sys, pathlib; from slipstream.checkpoint import open_checkpoint; "
        f"open_checkpoint(pathlib.Path({str(tmp_path / 'x.gguf')!r})); "
        "print([name for name in ('jax', 'torch', 'gguf', 'huggingface_hub', 'httpx') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
