"""Flags are fields: each field of a command's settings is a flag, and each is read by something."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from cyclopts import App

import slipstream
from slipstream.bench.options import AccuracyOptions, PoolOptions, ReuseOptions
from slipstream.bench.options import ServeOptions as BenchServeOptions
from slipstream.bench.quantize import QuantizeOptions
from slipstream.cli.chat import ChatOptions
from slipstream.cli.compile import CompileOptions
from slipstream.cli.embed import EmbedOptions
from slipstream.cli.env import EnvOptions
from slipstream.cli.generate import GenerateOptions
from slipstream.cli.image import ImageOptions
from slipstream.cli.main import _renamed, build
from slipstream.cli.manifests import ManifestsConfig
from slipstream.cli.models import ModelsOptions
from slipstream.cli.worker import WorkerOptions
from slipstream.cluster.fleet import FleetConfig
from slipstream.cluster.hosts import HostsConfig
from slipstream.cluster.launch_config import LaunchConfig
from slipstream.diffusion.config import ImageEngineConfig
from slipstream.diffusion.target_options import PictureOptions
from slipstream.engine.config import EngineConfig
from slipstream.engine.target_options import TargetOptions
from slipstream.server.config import ServerConfig

SETTINGS: dict[str, tuple[type, ...]] = {
    "serve": (EngineConfig, ServerConfig, FleetConfig, LaunchConfig, HostsConfig, ImageEngineConfig),
    "image": (ImageOptions, ImageEngineConfig),
    "chat": (ChatOptions, EngineConfig),
    "generate": (GenerateOptions, EngineConfig),
    "embed": (EmbedOptions, EngineConfig),
    "compile": (TargetOptions, PictureOptions, CompileOptions),
    "env": (EnvOptions,),
    "worker": (WorkerOptions,),
    "manifests": (ManifestsConfig,),
    "models": (ModelsOptions,),
    "quantize": (QuantizeOptions,),
    "bench accuracy": (AccuracyOptions,),
    "bench serve": (BenchServeOptions,),
    "bench pool": (PoolOptions,),
    "bench reuse": (ReuseOptions,),
}
PREFIXES = {("serve", ImageEngineConfig): "image."}
"""Where a command has two kinds of settings with fields of one name, one kind's flags begin with a word."""
HOLDERS = {
    "self",
    "config",
    "_config",
    "options",
    "_options",
    "engine",
    "server",
    "fleet",
    "hosts",
    "settings",
    "engine_config",
}
"""Names under which code holds settings: `config.port` reads the field `port`."""


def _app(command: str) -> App:
    app = build()
    for word in command.split():
        app = app[word]
    return app


@pytest.mark.parametrize("command", SETTINGS)
def test_every_field_is_a_flag_with_a_description(command: str) -> None:
    arguments = _app(command).assemble_argument_collection(parse_docstring=True)
    described = {name: argument.parameter.help for argument in arguments for name in argument.names}
    for settings in SETTINGS[command]:
        for field in dataclasses.fields(settings):
            flag = "--" + PREFIXES.get((command, settings), "") + field.name.replace("_", "-")
            if flag not in described:
                flag = field.name.upper().replace("_", "-")
            assert flag in described, f"{settings.__name__}.{field.name}"
            assert described[flag], f"{flag} has no description"


@cache
def _package() -> dict[Path, ast.Module]:
    folder = Path(inspect.getfile(slipstream)).parent
    return {path: ast.parse(path.read_text()) for path in folder.rglob("*.py")}


def _reads(settings: type) -> Iterator[str]:
    """Names of attributes that are read from a holder of settings, outside the checks of the class itself."""
    home = Path(inspect.getfile(settings))
    for path, tree in _package().items():
        for node in tree.body:
            if path == home and isinstance(node, ast.ClassDef) and node.name == settings.__name__:
                node = ast.Module([n for n in node.body if getattr(n, "name", "") != "__post_init__"], [])
            for read in ast.walk(node):
                if (
                    isinstance(read, ast.Attribute)
                    and isinstance(read.ctx, ast.Load)
                    and _holder(read.value) in HOLDERS
                ):
                    yield read.attr


def _holder(node: ast.expr) -> str | None:
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
        case _:
            return None


@pytest.mark.parametrize("settings", sorted({s for row in SETTINGS.values() for s in row}, key=lambda s: s.__name__))
def test_every_field_is_read(settings: type) -> None:
    fields = {field.name for field in dataclasses.fields(settings)}
    assert fields - set(_reads(settings)) == set()


def test_the_reading_test_can_fail() -> None:
    @dataclasses.dataclass
    class Settings:
        nobody_reads_this: int = 0

    assert "nobody_reads_this" not in set(_reads(Settings))


def test_vllms_names_stand_for_ours() -> None:
    given = ["serve", "--tensor-parallel-size", "4", "--data-parallel-size=2", "--", "--enable-expert-parallel"]
    assert _renamed(given) == ["serve", "--tp", "4", "--dp=2", "--", "--enable-expert-parallel"]


def test_values_reach_the_dataclasses() -> None:
    code = """
import sys
from slipstream.cli import main, serve
from slipstream.engine.config import EngineConfig
from slipstream.server.config import ServerConfig
command, bound, _ = main.build().parse_args(
    ["serve", "some/model", "--kv-bytes", "2GiB", "--no-prefix-caching", "--port=0", "--max-body-bytes", "1MiB",
     "--cors-origins", "http://a", "--cors-origins", "http://b", "--max-seqs", "4"], exit_on_error=False)
assert bound.args == ("some/model",), bound
assert bound.kwargs["engine"] == EngineConfig(kv_bytes=2 << 30, prefix_caching=False, max_seqs=4), bound
assert bound.kwargs["server"] == ServerConfig(
    port=0, max_body_bytes=1 << 20, cors_origins=("http://a", "http://b")), bound
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
