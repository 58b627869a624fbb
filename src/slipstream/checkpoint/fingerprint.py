"""Which content a checkpoint has, without reading all of it: for what is derived from it and kept."""

from __future__ import annotations

import json
from hashlib import blake2b
from pathlib import Path
from typing import Any

from slipstream.checkpoint.gguf_source import GgufSource
from slipstream.checkpoint.safetensors_source import SafetensorsSource
from slipstream.spec.source import Checkpoint

_WEIGHTS = (".gguf", ".safetensors")
_SAMPLES, _SAMPLE = 64, 4096


def fingerprint(checkpoint: Checkpoint) -> list[list[Any]] | None:
    """Path, size, time of change and a hash of samples of each file of weights; None where there are no files.

    The samples are the first and last bytes and others spread evenly: they tell apart files that were given the same
    time. A file that is rewritten with its size and its time kept, and differs only between samples, is not noticed.
    """
    if not isinstance(checkpoint.source, GgufSource | SafetensorsSource):
        return None
    path = checkpoint.path.resolve()
    found = [path] if path.is_file() else sorted(one for one in path.iterdir() if one.suffix.lower() in _WEIGHTS)
    return [_of(one) for one in found]


def identity(checkpoint: Checkpoint) -> str:
    """A hash of a checkpoint's config and of samples of its files, the same for copies on different machines."""
    files = [[Path(path).name, size, digest] for path, size, _, digest in fingerprint(checkpoint) or ()]
    text = json.dumps([checkpoint.config, files], sort_keys=True, default=str)
    return blake2b(text.encode(), digest_size=16).hexdigest()


def _of(path: Path) -> list[Any]:
    now = path.stat()
    digest = blake2b(digest_size=16)
    with path.open("rb") as file:
        for i in range(_SAMPLES + 1):
            file.seek(max(0, now.st_size - _SAMPLE) * i // _SAMPLES)
            digest.update(file.read(_SAMPLE))
    return [str(path), now.st_size, now.st_mtime_ns, digest.hexdigest()]
