"""The cache folder of built-in models: where it is, how a file gets into it whole, and how it is known to be sound."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

from slipstream.checkpoint.progress import Progress

_CHUNK = 4 << 20


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One process at a time fetches into `folder`: the others wait, and find the file there."""
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        yield


def hash_of(path: Path, stage: str, progress: Progress) -> str:
    """The file's sha256, in hexadecimal."""
    digest = hashlib.sha256()
    total, done = path.stat().st_size, 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            done += len(chunk)
            progress(stage, done, total)
    return digest.hexdigest()


def is_sound(path: Path, sha256: str) -> bool:
    """Whether the file is the one that `mark` recorded with this hash: same size, same time of change."""
    try:
        state = json.loads(_marker(path).read_text(encoding="utf-8"))
        now = path.stat()
    except (OSError, ValueError):
        return False
    return bool(state == {"sha256": sha256, "size": now.st_size, "mtime_ns": now.st_mtime_ns})


def mark(path: Path, sha256: str) -> None:
    """Record that the file was found to have this hash, so that later starts need not read it again."""
    now = path.stat()
    marker = _marker(path)
    fresh = marker.with_suffix(f".{os.getpid()}.new")
    state = {"sha256": sha256, "size": now.st_size, "mtime_ns": now.st_mtime_ns}
    fresh.write_text(json.dumps(state), encoding="utf-8")
    fresh.replace(marker)


def _marker(path: Path) -> Path:
    return path.with_name(f".{path.name}.checked.json")
