"""Both readers on damaged and hostile bytes: only CheckpointError escapes, and memory stays bounded."""

from __future__ import annotations

import struct
import tempfile
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from slipstream.checkpoint import open_checkpoint
from slipstream.errors import CheckpointError
from tests.checkpoint.gguf_files import write_llama

# What reading may allocate beyond a few times the file's own size.
SLACK = 4 << 20


def gguf_bytes() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        return write_llama(Path(folder) / "x.gguf", "Q4_1").read_bytes()


def safetensors_bytes() -> bytes:
    return save(
        {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b.weight": np.ones(4, np.float16)}, {"format": "pt"}
    )


GGUF, SAFETENSORS = gguf_bytes(), safetensors_bytes()
GGUF_HEADER = GGUF.index(b"blk.1.ffn_down.weight") + 200

# Values that have broken readers: zero, types, powers of two and one less, sizes whose products overflow.
NASTY = st.sampled_from(
    [0, 1, 3, 8, 9, 13, 255, 1 << 16, 1 << 31, (1 << 32) - 1, 1 << 33, 1 << 62, 1 << 63, (1 << 64) - 1]
)


@pytest.fixture(scope="module")
def read() -> Iterator[Callable[[str, bytes], None]]:
    """Opens the bytes as a checkpoint and reads every tensor; fails if anything but CheckpointError comes out."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "config.json").write_text("{}")

        def run(kind: str, content: bytes) -> None:
            path = folder / f"model.{kind}"
            path.write_bytes(content)
            tracemalloc.start()
            try:
                source = open_checkpoint(path if kind == "gguf" else folder).source
                for tensor in source.names():
                    assert source.read(tensor).shape == source.shape(tensor)
            except CheckpointError as error:
                assert str(path.parent) in str(error)
            finally:
                _, peak = tracemalloc.get_traced_memory()
                tracemalloc.stop()
                path.unlink()
            # The densest type is 4 bits a number, read as 32: eight times; strings and the rest as much again.
            assert peak < 16 * len(content) + SLACK

        yield run


@st.composite
def damaged(draw: st.DrawFn, content: bytes, header: int) -> bytes:
    """`content` with a few bytes or numbers changed, pieces taken out or put in, or its end cut off."""
    raw = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, min(header, len(raw) - 1)))
        match draw(st.sampled_from(["byte", "u32", "u64", "cut", "insert", "end"])):
            case "byte":
                raw[at] = draw(st.integers(0, 255))
            case "u32":
                raw[at : at + 4] = struct.pack("<I", draw(NASTY) & 0xFFFFFFFF)
            case "u64":
                raw[at : at + 8] = struct.pack("<Q", draw(NASTY))
            case "cut":
                del raw[at : at + draw(st.integers(1, 64))]
            case "insert":
                raw[at:at] = draw(st.binary(min_size=1, max_size=32))
            case "end":
                del raw[max(at, 1) :]
        if not raw:
            return b""
    return bytes(raw)


@settings(max_examples=400, deadline=None)
@given(content=damaged(GGUF, GGUF_HEADER))
def test_damaged_gguf(read: Callable[[str, bytes], None], content: bytes) -> None:
    read("gguf", content)


@settings(max_examples=400, deadline=None)
@given(content=damaged(SAFETENSORS, len(SAFETENSORS)))
def test_damaged_safetensors(read: Callable[[str, bytes], None], content: bytes) -> None:
    read("safetensors", content)


@settings(max_examples=150, deadline=None)
@given(kind=st.sampled_from(["gguf", "safetensors"]), start=st.booleans(), content=st.binary(max_size=300))
def test_random_bytes(read: Callable[[str, bytes], None], kind: str, start: bool, content: bytes) -> None:
    magic = b"GGUF\3\0\0\0" if kind == "gguf" else struct.pack("<Q", len(content))
    read(kind, magic * start + content)


def test_gguf_cut_off_anywhere_in_its_header(read: Callable[[str, bytes], None], tmp_path: Path) -> None:
    for end in range(0, GGUF_HEADER, 3):
        path = tmp_path / "x.gguf"
        path.write_bytes(GGUF[:end])
        with pytest.raises(CheckpointError):
            open_checkpoint(path)
    for end in range(len(GGUF) - 1, GGUF_HEADER, -len(GGUF) // 40):
        read("gguf", GGUF[:end])


def test_safetensors_cut_off_anywhere(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    for end in range(len(SAFETENSORS)):
        (tmp_path / "model.safetensors").write_bytes(SAFETENSORS[:end])
        with pytest.raises(CheckpointError):
            open_checkpoint(tmp_path)


def test_every_number_of_a_gguf_header_made_nasty(read: Callable[[str, bytes], None]) -> None:
    for at in range(4, GGUF_HEADER, 11):
        for value in (0xFFFFFFFFFFFFFFFF, 1 << 40):
            read("gguf", GGUF[:at] + struct.pack("<Q", value) + GGUF[at + 8 :])


def test_the_whole_files_are_read(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(GGUF)
    assert len(open_checkpoint(tmp_path / "x.gguf").source.names()) == 20
    (tmp_path / "model.safetensors").write_bytes(SAFETENSORS)
    (tmp_path / "config.json").write_text("{}")
    assert open_checkpoint(tmp_path).source.read("a").tolist() == [[0, 1, 2], [3, 4, 5]]
