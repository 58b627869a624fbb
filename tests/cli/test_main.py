"""The entry point: what is imported, what is suggested, how errors look, exit codes."""

from __future__ import annotations

import errno
import os
import pty
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from slipstream.cli import main
from slipstream.errors import ConfigError, SlipstreamError

RED = "\x1b[1;31m"


def slipstream(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "slipstream", *arguments],
        capture_output=True,
        text=True,
        env=os.environ | {"COLUMNS": "120", "NO_COLOR": ""} | environment,
        timeout=60,
    )


@pytest.mark.parametrize(
    "arguments", [["--help"], ["serve", "--help"], ["generate", "--help"], ["models"], ["bench", "--help"]]
)
def test_jax_is_not_imported_for(arguments: list[str]) -> None:
    code = f"""
import sys
from slipstream.cli.main import run
code = run({arguments!r})
heavy = [name for name in ("jax", "torch", "transformers", "matplotlib") if name in sys.modules]
sys.exit(f"imported {{heavy}}" if heavy else code)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_help_names_every_command_and_loads_none() -> None:
    code = """
import sys
from slipstream.cli.main import COMMANDS, run
run(["--help"])
sys.exit(any(f"slipstream.cli.{name}" in sys.modules for name in COMMANDS))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert all(f" {name} " in done.stdout for name in main.COMMANDS)


def test_version() -> None:
    from slipstream import __version__

    assert slipstream("--version").stdout.strip() == f"slipstream {__version__}"


@pytest.mark.parametrize(
    ("arguments", "suggestion"),
    [
        (["srve"], 'Did you mean "serve"?'),
        (["serve", "--max-seq", "4"], "Did you mean --max-seqs?"),
        (["serve", "--ports", "4"], "Did you mean --port?"),
        (["chat", "--temprature", "0"], "Did you mean --temperature?"),
        (["generate", "a", "b", "--concurency", "2"], "Did you mean --concurrency?"),
    ],
)
def test_the_nearest_name_is_suggested(arguments: list[str], suggestion: str) -> None:
    done = slipstream(*arguments)
    assert done.returncode == 2
    assert suggestion in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["serve", "--max-seqs", "0"], "max_seqs must be at least 1, got 0"),
        (["serve", "--kv-bytes", "2GBit"], "'2GBit' is not a size"),
        (["serve", "--dtype", "int3"], "int3"),
        (["generate"], "requires"),
        (["chat", "--url", "ftp://a"], "not the address of a server"),
    ],
)
def test_wrong_usage_is_2_and_plain_in_a_pipe(arguments: list[str], message: str) -> None:
    done = slipstream(*arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert "\x1b" not in done.stderr
    assert "Traceback" not in done.stderr


def test_a_failure_is_1_and_has_a_traceback_on_demand(tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text("")
    arguments = ["pull", str(tmp_path / "absent.gguf")]
    plain = slipstream(*arguments)
    assert (plain.returncode, "Traceback" in plain.stderr) == (1, False)
    for done in (slipstream(*arguments, "--debug"), slipstream(*arguments, SLIPSTREAM_DEBUG="1")):
        assert done.returncode == 1
        assert "Traceback" in done.stderr
        assert "ModelNotFound" in done.stderr


def test_an_error_is_red_on_a_terminal() -> None:
    parent, child = pty.openpty()
    environment = {key: value for key, value in os.environ.items() if key != "NO_COLOR"} | {"TERM": "xterm"}
    done = subprocess.run(
        [sys.executable, "-m", "slipstream", "serve", "--max-seqs", "0"],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=child, env=environment, timeout=60,
    )  # fmt: skip
    os.close(child)
    shown = b""
    try:
        while chunk := os.read(parent, 4096):
            shown += chunk
    except OSError as error:
        # Linux ends a pseudo-terminal whose other side is closed with EIO.
        assert error.errno == errno.EIO
    os.close(parent)
    assert done.returncode == 2
    assert shown.decode().startswith(RED + "error: max_seqs must be at least 1")


@pytest.mark.parametrize(
    ("error", "code"), [(SlipstreamError("no"), 1), (ConfigError("no"), 2), (KeyboardInterrupt(), 130), (None, 0)]
)
def test_exit_codes(error: BaseException | None, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def command() -> None:
        if error is not None:
            raise error

    monkeypatch.setattr("slipstream.cli.env.env", command)
    assert main.run(["env"]) == code


def test_a_command_returns_its_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("slipstream.cli.env.env", lambda: 3)
    assert main.run(["env"]) == 3


def test_debug_behind_two_dashes_is_an_argument() -> None:
    assert main._take_debug(["a", "--debug", "b"]) == (["a", "b"], True)
    assert main._take_debug(["a", "--", "--debug"]) == (["a", "--", "--debug"], False)


def test_a_port_that_is_taken_is_said_before_anything_is_loaded() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = slipstream("serve", "./no-such-model.gguf", "--port", str(port))
    assert done.returncode == 2
    assert str(port) in done.stderr
    assert "--port" in done.stderr
    assert "no-such-model" not in done.stderr
