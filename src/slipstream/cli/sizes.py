"""Sizes in bytes, as people write them: `2GiB`, `512MB`, `1.5 GiB`, `4096`."""

from __future__ import annotations

import re
from typing import Any

from slipstream.errors import ConfigError

_UNITS = {"": 1, "B": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_UNITS |= {f"{letter}iB": 1 << power for letter, power in (("K", 10), ("M", 20), ("G", 30), ("T", 40))}
_UNITS |= {f"{letter}B": 1000**power for power, letter in enumerate("KMGT", 1)}
_BY_LOWER = {unit.lower(): size for unit, size in _UNITS.items()}
_SIZE = re.compile(r"\s*([0-9]*\.?[0-9]+)\s*([A-Za-z]*)\s*")


def parse_bytes(text: str) -> int:
    """The size that `text` names. `G` and `GiB` are 2^30, `GB` is 10^9; case does not matter. Raises ConfigError."""
    match = _SIZE.fullmatch(text)
    unit = _BY_LOWER.get(match[2].lower()) if match else None
    if match is None or unit is None:
        raise ConfigError(f"{text!r} is not a size: write a number with B, KiB, MiB, GiB, TiB, KB, MB, GB or TB")
    return int(float(match[1]) * unit)


def format_bytes(size: int) -> str:
    """`size` with three digits and a binary unit: 2147483648 is `2.00 GiB`."""
    value, unit = float(size), "B"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if value < 1024 or unit == "TiB":
            break
        value /= 1024
    return f"{size} B" if unit == "B" else f"{value:.3g} {unit}" if value < 10 else f"{value:.1f} {unit}"


def expand_sizes(_app: Any, _commands: Any, arguments: Any) -> None:
    """A cyclopts `config` step: let every field whose name ends in `_bytes` be written with a suffix.

    The settings are plain dataclasses with `int` fields, so that no layer below knows of the command line. A value
    without a suffix stays as it is.
    """
    for argument in arguments:
        if argument.keys and argument.keys[-1].endswith("_bytes"):
            argument.tokens = [
                token.evolve(value=str(parse_bytes(token.value))) if token.value.strip()[-1:].isalpha() else token
                for token in argument.tokens
            ]
