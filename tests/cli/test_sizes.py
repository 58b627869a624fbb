"""Sizes with suffixes."""

from __future__ import annotations

import pytest

from slipstream.cli.sizes import format_bytes, parse_bytes
from slipstream.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("4096", 4096),
        ("0", 0),
        ("2GiB", 2 << 30),
        ("2G", 2 << 30),
        ("2gib", 2 << 30),
        ("1.5 GiB", 3 << 29),
        (".5KiB", 512),
        ("3MB", 3_000_000),
        ("1TB", 10**12),
        ("7B", 7),
    ],
)
def test_parse(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "GiB", "2 GiB extra", "-1GiB", "1e9", "2PiB", "nanGiB", "1..5G"])
def test_refuse(text: str) -> None:
    with pytest.raises(ConfigError, match="is not a size"):
        parse_bytes(text)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (3 << 29, "1.5 GiB"),
        (5000 << 30, "4.88 TiB"),
        (123 << 20, "123.0 MiB"),
    ],
)
def test_format(size: int, text: str) -> None:
    assert format_bytes(size) == text
