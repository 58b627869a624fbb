"""The files that participants read: the built-in GGUF file, and what is made of it: all have the same weights."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from slipstream.bench.peers.environments import DRIVERS, Unavailable, python_of
from slipstream.bench.peers.participants import Model
from slipstream.bench.peers.process import last_line
from slipstream.checkpoint import Progress, open_checkpoint, resolve
from slipstream.checkpoint.write import save_checkpoint
from slipstream.hardware.disk import cache_folder


def _floats(source: Path, target: Path) -> None:
    checkpoint = open_checkpoint(source)
    save_checkpoint(checkpoint.source, target, checkpoint.config)


def _quantized(kind: str) -> Callable[[Path, Path], None]:
    def make(source: Path, target: Path) -> None:
        command = [python_of("llamacpp"), "-P", DRIVERS / "quantize.py", source, target, kind]
        done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
        if done.returncode:
            raise Unavailable(f"llama.cpp cannot write {kind}: {last_line(done.stderr)}")

    return make


FORMS: dict[str, Callable[[Path, Path], None]] = {
    "floats": _floats,
    "q4_0": _quantized("Q4_0"),
    "q8_0": _quantized("Q8_0"),
}
"""How each form is made. floats: a folder of float32 safetensors; q4_0, q8_0: by llama.cpp's own quantizer."""


def path_of(model: Model, form: str, progress: Progress) -> Path:
    """The file or folder of `model` in `form`, made at the first call. gguf is the built-in file itself.

    Raises ModelNotFound (from fetching it) or Unavailable.
    """
    source = resolve(model.name, progress=progress)
    if form == "gguf":
        return source
    folder = cache_folder() / "peers" / "models"
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{model.name}-{form}{'' if form == 'floats' else '.gguf'}"
    if not target.exists():
        # Made beside it and then moved: what has its name is whole.
        scratch = folder / f"making-{os.getpid()}-{target.name}"
        try:
            FORMS[form](source, scratch)
            scratch.rename(target)
        finally:
            if scratch.is_dir():
                shutil.rmtree(scratch)
            else:
                scratch.unlink(missing_ok=True)
    return target
