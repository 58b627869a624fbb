"""The entry point: finds the command, turns errors into messages and exit codes.

Commands are named by import path and imported when they run, so `slipstream --help` loads none of them, and no command
loads JAX before it needs a device.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from cyclopts import App, CycloptsError

from slipstream.cli.console import print_error
from slipstream.cli.sizes import expand_sizes
from slipstream.errors import ConfigError, SlipstreamError

COMMANDS = {
    "serve": "Serve a model over OpenAI's HTTP API.",
    "chat": "Talk with a model in the terminal.",
    "generate": "Answer a JSONL file of requests in OpenAI's batch format.",
    "embed": "Print vectors of texts.",
    "image": "Make images from a prompt.",
    "models": "List the models that are built in or cached.",
    "pull": "Fetch a model into the cache.",
    "quantize": "Write a model in 8 or 4 bits, and compare it with the original.",
    "compile": "Say whether a model fits a TPU, without having one.",
    "manifests": "Write Kubernetes manifests that serve a model.",
    "worker": "Run workers of a server on another host.",
    "env": "Show what was found: devices, memory, limits, versions.",
    "bench": "Measure a server.",
}
"""Every command is `slipstream.cli.NAME:NAME`."""

ALIASES = {
    "--tensor-parallel-size": "--tp",
    "--data-parallel-size": "--dp",
    "--enable-expert-parallel": "--ep",
}
"""vLLM's names of flags that have a shorter one here."""

FAILED, USAGE, INTERRUPTED = 1, 2, 130


def _version() -> str:
    from slipstream import __version__

    return f"slipstream {__version__}"


def build() -> App:
    """The application. Nothing is imported for a command until it is named."""
    app = App(
        name="slipstream",
        help="An inference stack on JAX: from a laptop to many hosts.",
        help_epilogue="With --debug (or SLIPSTREAM_DEBUG=1) errors come with their traceback.",
        version=_version,
        config=[expand_sizes],
        help_on_error=False,
        result_action="return_value",
        suppress_keyboard_interrupt=False,
    )
    for name, summary in COMMANDS.items():
        app.command(f"slipstream.cli.{name}:{name}", name=name, help=summary)
    return app


def run(tokens: Sequence[str]) -> int:
    """Run one command line and return its exit code: 0, 1 for a failure, 2 for wrong usage, 130 for Ctrl-C."""
    tokens, debug = _take_debug(_renamed(tokens))
    try:
        code = build()(tokens, print_error=False, exit_on_error=False)
    except CycloptsError as error:
        print_error(str(error))
        return USAGE
    except SlipstreamError as error:
        if debug:
            raise
        print_error(str(error))
        return USAGE if isinstance(error, ConfigError) else FAILED
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of our output left (`slipstream models | head`). Python would complain again when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    return code if isinstance(code, int) else 0


def _renamed(tokens: Sequence[str]) -> list[str]:
    """The tokens with the names of ALIASES in place, as `--flag value` and as `--flag=value`, up to a `--`."""
    end = tokens.index("--") if "--" in tokens else len(tokens)
    parts = [token.partition("=") for token in tokens[:end]]
    return ["".join((ALIASES.get(name, name), equals, value)) for name, equals, value in parts] + list(tokens[end:])


def _take_debug(tokens: Sequence[str]) -> tuple[list[str], bool]:
    """The tokens without `--debug`, and whether it (or SLIPSTREAM_DEBUG) asks for tracebacks."""
    end = tokens.index("--") if "--" in tokens else len(tokens)
    kept = [token for token in tokens[:end] if token != "--debug"]
    debug = len(kept) < end or os.environ.get("SLIPSTREAM_DEBUG", "") not in ("", "0")
    return [*kept, *tokens[end:]], debug


def main() -> None:
    """What the `slipstream` script calls."""
    sys.exit(run(sys.argv[1:]))
