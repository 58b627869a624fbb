"""The description of the API is true and complete."""

from __future__ import annotations

import re

from slipstream.api.openai import ChatRequest, CompletionRequest
from slipstream.server.docs import document

from .conftest import Start


def test_openapi(start: Start) -> None:
    live = start(config={"admin": True})
    api = live.get("/openapi.json").json()
    assert api["openapi"] == "3.1.0"
    served = {route.path.replace(":path", "") for route in live.server.config.app.routes}
    assert set(api["paths"]) == served - {"/", "/static", "/docs", "/openapi.json"}
    schemas = api["components"]["schemas"]
    for kind in (ChatRequest, CompletionRequest):
        assert set(schemas[kind.__name__]["properties"]) == set(kind.__struct_fields__)
    references = re.findall(r'"#/components/schemas/(\w+)"', live.get("/openapi.json").text)
    assert set(references) <= set(schemas)


def test_every_field_of_a_request_is_described() -> None:
    schemas = document()["components"]["schemas"]
    undescribed = [name for name, field in schemas["ChatRequest"]["properties"].items() if "description" not in field]
    assert undescribed == []
    own = set(CompletionRequest.__struct_fields__) - set(ChatRequest.__struct_fields__)
    fields = schemas["CompletionRequest"]["properties"]
    assert [name for name in sorted(own) if "description" not in fields[name]] == []


def test_the_page_loads_nothing_from_elsewhere(start: Start) -> None:
    page = start().get("/docs")
    assert page.headers["content-type"].startswith("text/html")
    assert not re.findall(r"(?:src|href)=.?https?:", page.text)
    assert "default-src 'none'" in page.headers["content-security-policy"]


def test_version_and_models(start: Start) -> None:
    live = start()
    assert re.fullmatch(r"\d+\.\d+\.\d+.*", live.get("/version").json()["version"])
    [model] = live.openai().models.list().data
    assert (model.id, model.owned_by) == ("toy", "slipstream")
    expected = {"root": "toy", "parent": None, "max_model_len": 512, "task": "generate"}
    assert live.openai().models.retrieve("toy").model_extra == expected
