from __future__ import annotations

import struct
from pathlib import Path

import gguf
import numpy as np
import pytest

from slipstream.checkpoint.gguf_file import HEADER_LIMIT, GgufFile
from slipstream.errors import CheckpointError
from tests.checkpoint.gguf_files import LLAMA, TOKENIZER, TOKENS, by_hand, entry, info, text, write_llama

ONE = info("w", [4], 0, 0)
DATA = np.arange(4, dtype="<f4").tobytes()


def opened(tmp_path: Path, content: bytes) -> GgufFile:
    path = tmp_path / "x.gguf"
    path.write_bytes(content)
    return GgufFile(path)


def test_reads_what_the_gguf_package_writes(tmp_path: Path) -> None:
    path = write_llama(tmp_path / "x.gguf", "Q4_0")
    file = GgufFile(path)
    assert file.metadata["tokenizer.ggml.tokens"] == tuple(TOKENS)
    assert file.metadata["llama.block_count"] == LLAMA["llama.block_count"]
    assert file.metadata["tokenizer.ggml.add_bos_token"] is False
    types = file.metadata["tokenizer.ggml.token_type"]
    assert isinstance(types, np.ndarray)
    assert types.tolist() == TOKENIZER["tokenizer.ggml.token_type"]
    theirs = gguf.GGUFReader(path)
    assert [tensor.name for tensor in theirs.tensors] == list(file.tensors)
    for tensor in theirs.tensors:
        mine = file.tensors[tensor.name]
        assert mine.kind.name == tensor.tensor_type.name
        assert mine.shape == tuple(reversed(tensor.shape.tolist()))
        assert mine.offset == tensor.data_offset
        assert file.bytes_of(tensor.name).tobytes() == tensor.data.tobytes()


@pytest.mark.parametrize("version", [2, 3])
def test_versions_and_alignment(tmp_path: Path, version: int) -> None:
    entries = [entry("general.alignment", 4, struct.pack("<I", 64)), entry("k", 10, struct.pack("<Q", 1 << 40))]
    head = by_hand(entries, [ONE, info("v", [2, 2], 1, 64)], version=version)
    file = opened(tmp_path, head + b"\0" * (-len(head) % 64) + DATA + b"\0" * 48 + b"\1" * 8)
    assert file.metadata["k"] == 1 << 40
    assert file.bytes_of("w").view("<f4").tolist() == [0, 1, 2, 3]
    assert file.tensors["v"].shape == (2, 2)
    assert file.bytes_of("v").shape == (2, 4)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be opened"),
        (b"GGU", "not a GGUF file"),
        (b"PK\3\4" + b"\0" * 60, "not a GGUF file"),
        (by_hand(version=1), "version 1"),
        (by_hand(version=4), "version 4"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
        (by_hand(counts=(1 << 60, 0)), "tensor count"),
        (by_hand(counts=(0, 1 << 63)), "metadata count"),
        (by_hand([struct.pack("<Q", 10 << 30) + b"key"]), "10,737,418,240"),
        (by_hand([entry("k", 8, struct.pack("<Q", (1 << 64) - 1))]), "length"),
        (by_hand([entry("k", 9, struct.pack("<IQ", 8, 1 << 40))]), "array"),
        (by_hand([entry("k", 9, struct.pack("<IQ", 0, 1 << 40))]), "array"),
        (by_hand([entry("k", 9, struct.pack("<IQ", 9, 1) + struct.pack("<IQ", 0, 0))]), "array of arrays"),
        (by_hand([entry("k", 9, struct.pack("<IQ", 99, 0))]), "unknown type 99"),
        (by_hand([entry("k", 13, b"\0" * 8)]), "unknown type 13"),
        (by_hand([entry("k", 9, struct.pack("<IQ", 8, 2) + text("a") + struct.pack("<Q", 1 << 62))]), "string 1"),
        (by_hand([text(b"\xff\xfe") + struct.pack("<I", 0) + b"\0"]), "UTF-8"),
        (by_hand([entry("k", 9, struct.pack("<IQ", 8, 1) + text(b"\xff"))]), "UTF-8"),
        (by_hand([entry("k", 0, b"\0")] * 2), "twice"),
        (by_hand([], [ONE, info("w", [4], 0, 32)], DATA * 4), "twice"),
        (by_hand([], [ONE, info("v", [4], 0, 0)], DATA * 4), "overlap"),
        (by_hand([], [info("w", [4], 0, 8)], DATA * 4), "not aligned"),
        (by_hand([], [info("w", [4], 0, 1 << 62)], DATA), "cut off"),
        (by_hand([], [info("w", [5], 0, 0)], DATA), "cut off"),
        (by_hand([], [info("w", [1 << 62, 1 << 62, 1 << 62, 1 << 62], 0, 0)], DATA), "cut off"),
        (by_hand([], [info("w", [], 0, 0)], DATA * 4), "axes"),
        (by_hand([], [text("w") + struct.pack("<I", 1 << 31) + b"\0" * 64], DATA), "axes"),
        (by_hand([], [info("w", [0], 0, 0)], DATA), "impossible shape"),
        (by_hand([], [info("w", [33], 2, 0)], DATA * 8), "impossible shape"),
        (by_hand([], [info("w", [32], 16, 0)], DATA * 8), "IQ2_XXS"),
        (by_hand([], [info("w", [32], 4242, 0)], DATA * 8), "4242"),
        (by_hand([entry("general.alignment", 4, struct.pack("<I", 0))]), "alignment"),
        (by_hand([entry("general.alignment", 4, struct.pack("<I", 48))]), "alignment"),
        (by_hand([entry("general.alignment", 4, struct.pack("<I", 1 << 30))]), "alignment"),
        (by_hand([entry("general.alignment", 8, text("32"))]), "alignment"),
    ],
)
def test_hostile_files_are_clear_errors(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        opened(tmp_path, content)


def test_a_header_beyond_the_limit_is_refused_although_the_file_has_the_bytes(tmp_path: Path) -> None:
    path = tmp_path / "sparse.gguf"
    path.write_bytes(by_hand([entry("k", 8, struct.pack("<Q", 10 << 30))]))
    with path.open("r+b") as file:
        file.truncate(12 << 30)  # sparse: it takes no room on the disk
    with pytest.raises(CheckpointError, match=f"limit of {HEADER_LIMIT >> 20} MiB"):
        GgufFile(path)


def test_a_folder_or_a_missing_file_is_a_clear_error(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none.gguf"):
        with pytest.raises(CheckpointError, match="cannot be opened"):
            GgufFile(path)
