from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from slipstream.checkpoint.safetensors_source import HEADER_LIMIT, SafetensorsSource, open_folder
from slipstream.errors import CheckpointError

SOME = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def packed(header: Any, data: bytes = b"\0" * 8, *, length: int | None = None) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def opened(tmp_path: Path, content: bytes) -> SafetensorsSource:
    (tmp_path / "x.safetensors").write_bytes(content)
    return SafetensorsSource([tmp_path / "x.safetensors"])


@pytest.mark.parametrize("dtype", ["f8", "f4", "f2", "i8", "i4", "i2", "i1", "u8", "u4", "u2", "u1", "?"])
def test_reads_what_the_safetensors_package_writes(tmp_path: Path, dtype: str) -> None:
    rng = np.random.default_rng(0)
    tensors = {
        "a": rng.integers(0, 2, (3, 5)).astype(dtype),
        "b": rng.integers(0, 100, (2, 2, 2)).astype(dtype),
        "scalar": np.array(1, dtype),
        "nothing": np.zeros((0, 4), dtype),
    }
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    source = open_folder(tmp_path)
    assert set(source.names()) == set(tensors)
    for name, value in tensors.items():
        assert source.shape(name) == value.shape
        found = source.read(name)
        assert found.dtype == value.dtype
        np.testing.assert_array_equal(found, value)


@pytest.mark.parametrize(("kind", "dtype"), [("F32", np.float32), ("F16", np.float16), ("BF16", ml_dtypes.bfloat16)])
def test_floats_are_offered_as_they_are_stored(tmp_path: Path, kind: str, dtype: Any) -> None:
    value = np.random.default_rng(0).normal(size=(3, 5)).astype(dtype)
    save_file({"odd": np.zeros(1, np.int8), "w": value, "none": value[:0]}, tmp_path / "model.safetensors")
    source = open_folder(tmp_path)
    blocks, none = source.blocks("w"), source.blocks("none")
    assert blocks is not None and none is not None and source.blocks("odd") is None
    assert (blocks.kind, blocks.shape) == (kind, (3, 5))
    np.testing.assert_array_equal(blocks.read(), value.view(np.uint8))
    assert none.read().size == 0


def test_bfloat16_keeps_its_bits(tmp_path: Path) -> None:
    value = np.array([1.0, -2.5, 3.0e38, 1e-30], ml_dtypes.bfloat16)
    save_file({"w": value}, tmp_path / "model.safetensors")
    found = open_folder(tmp_path).read("w")
    assert found.dtype == ml_dtypes.bfloat16
    assert found.view(np.uint16).tolist() == value.view(np.uint16).tolist()


def test_data_that_is_not_aligned_is_read(tmp_path: Path) -> None:
    value = np.array([1.5, -2.5], "<f4")
    header = {"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}, "b": SOME | {"data_offsets": [1, 9]}}
    assert opened(tmp_path, packed(header, b"\7" + value.tobytes())).read("b").tolist() == [1.5, -2.5]


def indexed(folder: Path, weights: dict[str, Any]) -> None:
    save_file({"a": np.arange(3, dtype=np.float32)}, folder / "model-00001-of-00002.safetensors")
    save_file({"b": np.arange(4, dtype=np.float32)}, folder / "model-00002-of-00002.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weights}))


def test_indexed(tmp_path: Path) -> None:
    indexed(tmp_path, {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"})
    source = open_folder(tmp_path)
    assert set(source.names()) == {"a", "b"}
    assert source.read("b").tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"a": "../model.safetensors"}, "not a file of this folder"),
        ({"a": "/etc/model.safetensors"}, "not a file of this folder"),
        ({"a": "sub\\model.safetensors"}, "not a file of this folder"),
        ({"a": "model.bin"}, "not a file of this folder"),
        ({"a": 3}, "not a file of this folder"),
        ({"a": "model\0.safetensors"}, "not a file of this folder"),
        ({"a": "model-00009-of-00002.safetensors"}, "cannot be opened"),
        ({"c": "model-00001-of-00002.safetensors"}, "'c'"),
        ({}, "no weight_map"),
        ([], "no weight_map"),
    ],
)
def test_an_index_stays_in_its_folder_and_tells_the_truth(tmp_path: Path, weights: Any, message: str) -> None:
    indexed(tmp_path, weights)
    with pytest.raises(CheckpointError, match=message):
        open_folder(tmp_path)


def test_a_tensor_in_two_files_is_an_error(tmp_path: Path) -> None:
    for name in ("x", "y"):
        save_file({"a": np.zeros(2, np.float32)}, tmp_path / f"{name}.safetensors")
    with pytest.raises(CheckpointError, match="another file"):
        SafetensorsSource([tmp_path / "x.safetensors", tmp_path / "y.safetensors"])


@pytest.mark.parametrize("content", [b"{", b"[]", b"[" * 5000, b"\xff"])
def test_a_damaged_index_is_a_clear_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.safetensors.index.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"index\.json"):
        open_folder(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be opened"),
        (b"\1\2\3", "cut off"),
        (packed({"a": SOME}, length=10 << 30), "10,737,418,240"),
        (packed({"a": SOME}, length=(1 << 64) - 1), "header of"),
        (packed(b"[]"), "not a JSON object"),
        (packed(b"{"), "not valid JSON"),
        (packed(b"[" * 100_000), "not valid JSON"),
        (packed(b'{"a": ' + b"9" * 5000 + b"}"), "not valid JSON"),
        (packed(b'{"a":' + json.dumps(SOME).encode() + b',"a":' + json.dumps(SOME).encode() + b"}"), "twice"),
        (packed({"a": 3}), "not described"),
        (packed({"a": SOME | {"extra": 1}}), "not described"),
        (packed({"a": SOME | {"dtype": "F12"}}), "dtype 'F12'"),
        (packed({"a": SOME | {"dtype": ["F32"]}}), "dtype"),
        (packed({"a": SOME | {"shape": [2.0]}}), "shape"),
        (packed({"a": SOME | {"shape": [-2]}}), "shape"),
        (packed({"a": SOME | {"shape": [True, 2]}}), "shape"),
        (packed({"a": SOME | {"shape": "2"}}), "shape"),
        (packed({"a": SOME | {"shape": [1] * 40}}), "shape"),
        (packed({"a": SOME | {"shape": [1 << 61] * 16}}), "in 8 bytes"),
        (packed({"a": SOME | {"shape": [3]}}), "in 8 bytes"),
        (packed({"a": SOME | {"data_offsets": [8, 0]}}), "data_offsets"),
        (packed({"a": SOME | {"data_offsets": [0]}}), "data_offsets"),
        (packed({"a": SOME | {"data_offsets": [1, 9]}}), "cut off"),
        (packed({"a": SOME, "b": SOME}), "overlap"),
    ],
)
def test_hostile_files_are_clear_errors(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        opened(tmp_path, content)


def test_a_header_beyond_the_limit_is_refused_although_the_file_has_the_bytes(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(packed(b"{", length=HEADER_LIMIT + 1))
    with path.open("r+b") as file:
        file.truncate(12 << 30)  # sparse: it takes no room on the disk
    with pytest.raises(CheckpointError, match="100,000,001"):
        SafetensorsSource([path])
