"""The files that image URLs name: in a folder of this process's own, bounded in bytes and in time."""

from __future__ import annotations

import re
import secrets
import shutil
import tempfile
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from starlette.requests import Request
from starlette.responses import FileResponse, Response

from slipstream.api.images import OutputFormat
from slipstream.errors import NotFound
from slipstream.server.image_coding import MEDIA_TYPES

PATH = "/files/"

_NAME = re.compile(r"[\w-]{32}\.(png|jpeg|webp)", re.ASCII)
_HEADERS = {
    "content-security-policy": "default-src 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}


@dataclass(frozen=True)
class _Kept:
    size: int
    expires: float


class ImageFiles:
    """Keeps files under names of 24 random bytes: who has the name may read the file, so no key is asked for.

    The oldest go when `max_bytes` would be passed, each after `seconds`. The folder is made with the first file, for
    this user alone, and removed by `close`. Any thread may save.
    """

    def __init__(self, max_bytes: int, seconds: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.max_bytes = max_bytes
        self.seconds = seconds
        self._clock = clock
        self._folder: Path | None = None
        self._kept: OrderedDict[str, _Kept] = OrderedDict()
        self._lock = threading.Lock()

    def save(self, data: bytes, kind: OutputFormat) -> str:
        """Keep a file; gives its name."""
        name = f"{secrets.token_urlsafe(24)}.{kind}"
        with self._lock:
            if self._folder is None:
                self._folder = Path(tempfile.mkdtemp(prefix="slipstream-images-"))
            self._evict(self.max_bytes - len(data))
            (self._folder / name).write_bytes(data)
            self._kept[name] = _Kept(len(data), self._clock() + self.seconds)
        return name

    def find(self, name: str) -> Path | None:
        """The file of that name, if it is still kept."""
        with self._lock:
            self._evict(self.max_bytes)
            return self._folder / name if self._folder is not None and name in self._kept else None

    def close(self) -> None:
        """Remove all of them."""
        with self._lock:
            self._kept.clear()
            if self._folder is not None:
                shutil.rmtree(self._folder, ignore_errors=True)
                self._folder = None

    def _evict(self, room: int) -> None:
        """Remove what has expired, and then the oldest, until at most `room` bytes are kept."""
        assert self._folder is not None or not self._kept
        now, total = self._clock(), sum(kept.size for kept in self._kept.values())
        for name, kept in list(self._kept.items()):
            if kept.expires > now and total <= room:
                # They are in the order of their coming, and so of their end.
                return
            del self._kept[name]
            total -= kept.size
            if self._folder is not None:
                (self._folder / name).unlink(missing_ok=True)

    async def serve(self, request: Request) -> Response:
        """The file of that name. Raises NotFound."""
        name = request.path_params["name"]
        path = self.find(name) if _NAME.fullmatch(name) else None
        if path is None:
            raise NotFound("no such file, or its time is over", code="file_not_found")
        kind = name.rpartition(".")[2]
        seconds = max(0, int(self.seconds))
        return FileResponse(
            path,
            media_type=MEDIA_TYPES[kind],
            headers={**_HEADERS, "cache-control": f"private, max-age={seconds}, immutable"},
        )
