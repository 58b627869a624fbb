"""Merges of large SentencePiece vocabularies, kept between runs: finding Gemma's 515 thousand takes over a second.

A cache that is absent, damaged or cannot be written costs time only. Files hold little-endian int32 pairs of positions
in the vocabulary, after a digest of the vocabulary, of this format and of the pairs.
"""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from slipstream.hardware.disk import cache_folder
from slipstream.text.merges import Merge, merges_from_scores

SMALLEST_CACHED = 65536
_FORMAT = b"slipstream merges 1\n"


def cached_merges(pieces: Sequence[tuple[str, float]], folder: Path | None = None) -> list[Merge]:
    """`merges_from_scores(pieces)`, from the cache if it is there. `folder` None: under the user's cache folder."""
    if len(pieces) < SMALLEST_CACHED:
        return merges_from_scores(pieces)
    key = _key(pieces)
    path = (folder or cache_folder() / "merges") / f"{key.hex()[:32]}.merges"
    pairs = _read(path, key, len(pieces))
    if pairs is not None:
        # Column by column: a list for each pair would double the time.
        left, right = (map(pieces.__getitem__, column) for column in pairs.T.tolist())
        return [(one[0], other[0]) for one, other in zip(left, right, strict=True)]
    merges = merges_from_scores(pieces)
    position = {piece: i for i, (piece, _) in enumerate(pieces)}
    _write(path, key, np.array([(position[left], position[right]) for left, right in merges], "<i4"))
    return merges


def _key(pieces: Sequence[tuple[str, float]]) -> bytes:
    digest = hashlib.sha256(_FORMAT)
    digest.update("\0".join(piece for piece, _ in pieces).encode("utf-8", "surrogatepass"))
    digest.update(np.array([score for _, score in pieces], "<f8").tobytes())
    return digest.digest()


def _read(path: Path, key: bytes, count: int) -> np.ndarray | None:
    try:
        data = path.read_bytes()
    except OSError:
        return None
    head, body = data[:64], data[64:]
    if head != key + hashlib.sha256(body).digest() or len(body) % 8:
        return None
    pairs = np.frombuffer(body, "<i4").reshape(-1, 2)
    return pairs if not pairs.size or (pairs.min() >= 0 and pairs.max() < count) else None


def _write(path: Path, key: bytes, pairs: np.ndarray) -> None:
    """Put the file in place whole or not at all; a folder that cannot be written is no error."""
    body = pairs.tobytes()
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False) as file:
            part = Path(file.name)
            file.write(key + hashlib.sha256(body).digest() + body)
        try:
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
