"""Derived data that is kept on disk between runs: whole, checked, of this user, and trusted no further than that.

An entry is a file: MAGIC, the header's length and CRC-32 (little endian, 8 and 4 bytes), the header in JSON, and then
the parts, each at a multiple of ALIGNMENT. The header holds each part's name, place, size and CRC-32. CRC-32 finds what
a disk or a crash breaks. Against other users there are the folder's permissions: its files must be ours, and writable
by nobody else, since a compiled step is code.
"""

from __future__ import annotations

import contextlib
import json
import logging
import mmap
import os
import shutil
import stat
import struct
import tempfile
import time
import zlib
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from types import MappingProxyType
from typing import Any

logger = logging.getLogger(__name__)

MAGIC = b"SLIPKEPT"
VERSION = 1
ALIGNMENT = 4096  # a page: parts can be mapped, and begin where XLA adopts memory without a copy
_HEADER_LIMIT = 64 << 20
_PREFIX = struct.Struct("<8sQI")
_SUFFIX, _UNFINISHED = ".kept", ".part"
_ABANDONED_SECONDS = 3600.0
_CHECK_THREADS = 2  # CRC-32 runs without Python's lock


@dataclass(frozen=True)
class Entry:
    """What was kept under a name: `facts`, JSON values, and `parts`, read-only views of the mapped file."""

    facts: Mapping[str, Any]
    parts: Mapping[str, memoryview]


def name_of(kind: str, facts: Mapping[str, Any]) -> str:
    """A name for what follows from `facts` (JSON values) alone: other facts, another name."""
    text = json.dumps(facts, sort_keys=True, separators=(",", ":"), default=str)
    return f"{kind}-{blake2b(text.encode(), digest_size=16).hexdigest()}"


class Store:
    """Entries in a folder: at most `most_bytes` in all, each at most half of what the disk has free.

    Processes may share it. Nothing here raises for what is wrong with the disk or its content: an entry that cannot be
    used is as good as absent (a broken one is removed), one that cannot be written is not kept. The first reason is
    logged, once.
    """

    def __init__(self, folder: Path, most_bytes: int) -> None:
        self.folder = folder
        self.most_bytes = most_bytes
        self._warned = False

    def read(self, name: str) -> Entry | None:
        """The entry of this name, checked; None where there is none that can be used."""
        path = self.folder / (name + _SUFFIX)
        try:
            data = self._open(path)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            self._warn(f"{path} cannot be read", error)
            return None
        try:
            entry = _parse(data, name)
        except (ValueError, KeyError, TypeError, struct.error) as error:
            logger.warning("%s is damaged (%s) and is made again", path, error)
            _remove(path)
            return None
        with contextlib.suppress(OSError):  # a folder that may only be read still serves
            os.utime(path)  # what was used last is removed last
        return entry

    def write(self, name: str, facts: Mapping[str, Any], parts: Mapping[str, bytes | memoryview]) -> bool:
        """Keep an entry in place of any other of this name; views are of bytes. False if that was not possible."""
        try:
            return self._write(name, facts, {part: memoryview(data) for part, data in parts.items()})
        except OSError as error:
            self._warn(f"nothing can be kept in {self.folder}", error)
            return False

    def remove_others(self, prefix: str, name: str) -> None:
        """Remove the entries whose names begin with `prefix`, but for the one of this name."""
        for path in self.folder.glob(f"{prefix}*{_SUFFIX}"):
            if path.name != name + _SUFFIX:
                _remove(path)

    def _open(self, path: Path) -> memoryview:
        """The mapped file. Raises OSError, and ValueError for one that is empty; PermissionError for one not ours."""
        _own(self.folder.stat(), self.folder)
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            _own(os.fstat(descriptor), path)
            return memoryview(mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ))
        finally:
            os.close(descriptor)

    def _write(self, name: str, facts: Mapping[str, Any], parts: Mapping[str, memoryview]) -> bool:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _own(self.folder.stat(), self.folder)
        header, starts = _header(name, facts, parts)
        size = starts[-1] if starts else _PREFIX.size + len(header)
        if size > self.most_bytes or size > shutil.disk_usage(self.folder).free // 2:
            logger.info("%s is not kept: its %d bytes are more than %s should hold", name, size, self.folder)
            return False
        descriptor, unfinished = tempfile.mkstemp(suffix=_UNFINISHED, dir=self.folder)  # for this user alone
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(_PREFIX.pack(MAGIC, len(header), zlib.crc32(header)))
                file.write(header)
                for start, data in zip(starts, parts.values(), strict=False):
                    file.seek(start)
                    file.write(data)
                file.truncate(size)
            Path(unfinished).replace(self.folder / (name + _SUFFIX))
        except BaseException:
            _remove(Path(unfinished))
            raise
        self._prune()
        return True

    def _prune(self) -> None:
        """Remove what others began and left, and the entries used longest ago, down to the limit."""
        found = []
        for path in self.folder.iterdir():
            try:
                now = path.stat()
            except FileNotFoundError:
                continue
            if path.suffix == _UNFINISHED and time.time() - now.st_mtime > _ABANDONED_SECONDS:
                _remove(path)
            elif path.suffix == _SUFFIX:
                found.append((now.st_mtime_ns, now.st_size, path))
        left = self.most_bytes
        for _, size, path in sorted(found, reverse=True):
            left -= size
            if left < 0:
                _remove(path)

    def _warn(self, what: str, error: Exception) -> None:
        if not self._warned:
            self._warned = True
            logger.warning("%s (%s): starts are slower without it", what, error)


def _header(name: str, facts: Mapping[str, Any], parts: Mapping[str, memoryview]) -> tuple[bytes, list[int]]:
    """The header's bytes, and where each part starts, then where the last one ends."""
    sums = list(_sums(parts.values()))
    relative, at = [], 0
    for data in parts.values():
        relative.append(at)
        at += _up(data.nbytes)
    described = [
        [part, offset, data.nbytes, crc]
        for (part, data), offset, crc in zip(parts.items(), relative, sums, strict=True)
    ]
    text = json.dumps({"version": VERSION, "name": name, "facts": facts, "parts": described}).encode()
    first = _up(_PREFIX.size + len(text))
    ends = [first + relative[-1] + list(parts.values())[-1].nbytes] if parts else []
    return text, [*(first + offset for offset in relative), *ends]


def _parse(data: memoryview, name: str) -> Entry:
    """The entry in a file's bytes. Raises ValueError, KeyError, TypeError or struct.error for anything out of place."""
    magic, length, crc = _PREFIX.unpack_from(data)
    if magic != MAGIC or length > min(_HEADER_LIMIT, data.nbytes - _PREFIX.size):
        raise ValueError("not an entry")
    text = data[_PREFIX.size : _PREFIX.size + length]
    if zlib.crc32(text) != crc:
        raise ValueError("the header's checksum is wrong")
    header = json.loads(bytes(text))
    if header["version"] != VERSION or header["name"] != name:
        raise ValueError("an entry of another version or name")
    first = _up(_PREFIX.size + length)
    parts: dict[str, memoryview] = {}
    expected = []
    for part, offset, size, part_crc in header["parts"]:
        view = data[first + offset : first + offset + size]
        if view.nbytes != size:
            raise ValueError("cut off")
        parts[part] = view
        expected.append(part_crc)
    if list(_sums(parts.values())) != expected:
        raise ValueError("a part's checksum is wrong")
    return Entry(header["facts"], MappingProxyType(parts))


def _sums(parts: Iterable[memoryview]) -> Iterable[int]:
    with ThreadPoolExecutor(_CHECK_THREADS) as pool:
        return list(pool.map(zlib.crc32, parts))


def _own(found: os.stat_result, path: Path) -> None:
    """Raises PermissionError unless the file or folder is this user's and nobody else may write to it."""
    if found.st_uid != os.geteuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise PermissionError(f"{path} belongs to another user, or others may write to it")
    if not (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)):
        raise PermissionError(f"{path} is no file")


def _up(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):  # gone already, or a folder that may only be read
        path.unlink()
