"""A setting that nothing reads is a lie."""

from __future__ import annotations

import ast
import inspect
from dataclasses import fields
from pathlib import Path

import slipstream
from slipstream.server.config import ServerConfig


def test_every_field_is_read() -> None:
    server = Path(slipstream.__file__).parent / "server"
    trees = [ast.parse(path.read_text()) for path in server.glob("*.py")]
    read = {
        node.attr
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and ast.unparse(node.value).endswith("config")
    }
    assert {field.name for field in fields(ServerConfig)} - read == set()


def test_every_field_is_described() -> None:
    described = {line for line in inspect.cleandoc(ServerConfig.__doc__ or "").splitlines() if line.isidentifier()}
    assert {field.name for field in fields(ServerConfig)} <= described
