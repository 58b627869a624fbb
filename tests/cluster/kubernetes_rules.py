"""What an API server would say to a manifest: Kubernetes' own schemas, and those of custom resources with CEL rules."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import cache, reduce
from pathlib import Path
from typing import Any

import celpy
import jsonschema
import kubernetes_validate
import yaml
from referencing import Registry, Resource

CUSTOM = Path(__file__).parents[1] / "golden" / "kubernetes"
SCHEMAS = Path(kubernetes_validate.__file__).parent / "kubernetes-json-schema" / "v1.37.0-local-strict"


def problems(manifest: dict[str, Any]) -> list[str]:
    """Why it would be refused."""
    custom = CUSTOM / f"{manifest['kind']}.yaml"
    return list(_custom(manifest, _contract(custom)) if custom.exists() else _core(manifest))


@cache
def _contract(path: Path) -> dict[str, Any]:
    contract: dict[str, Any] = yaml.safe_load(path.read_text())
    return contract


def _core(manifest: dict[str, Any]) -> Iterator[str]:
    try:
        validator = _validator(manifest["kind"].lower(), manifest["apiVersion"])
    except FileNotFoundError:
        yield f"no {manifest['kind']} in {manifest['apiVersion']}"
    else:
        yield from (error.message for error in validator.iter_errors(manifest))


@cache
def _program(rule: str) -> celpy.Runner:
    environment = celpy.Environment()
    return environment.program(environment.compile(rule))


@cache
def _validator(kind: str, version: str) -> jsonschema.Draft202012Validator:
    """Kubernetes' schema, in which an unknown field is an error."""
    group, slash, number = version.rpartition("/")
    schema = _schema(f"{kind}-{group.partition('.')[0]}{'-' * len(slash)}{number}.json")
    registry = Resource.from_contents(_definitions()) @ (Resource.from_contents(schema) @ Registry())
    return jsonschema.Draft202012Validator(schema, registry=registry)


@cache
def _definitions() -> dict[str, Any]:
    return _schema("_definitions.json")


def _schema(name: str) -> dict[str, Any]:
    schema: dict[str, Any] = json.loads((SCHEMAS / name).read_bytes())
    return schema


def _custom(manifest: dict[str, Any], contract: dict[str, Any]) -> Iterator[str]:
    spec = manifest["spec"]
    if manifest["apiVersion"] != contract["apiVersion"]:
        yield f"apiVersion is {contract['apiVersion']}"
    if not re.fullmatch(contract.get("name", "[a-z0-9][-a-z0-9.]*"), manifest["metadata"]["name"]):
        yield "metadata.name has another form"
    wrong = list(jsonschema.Draft202012Validator(contract["schema"]).iter_errors(spec))
    yield from (error.message for error in wrong)
    for path in contract.get("templates", ()):
        template = reduce(lambda at, key: at[key], path.split("."), spec)
        yield from _core({"apiVersion": "v1", "kind": "PodTemplate", "template": template})
    for one in contract.get("rules", ()) if not wrong else ():
        if not _program(one["rule"]).evaluate({"self": celpy.json_to_cel(spec)}):
            yield one["message"]
