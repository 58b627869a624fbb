"""The page's own answer; tests/web has the page in a browser."""

from __future__ import annotations

from .conftest import Start


def test_the_page_may_use_this_server_alone(start: Start) -> None:
    reply = start().get("/")
    assert reply.status_code == 200
    policy = dict(part.strip().split(" ", 1) for part in reply.headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'self'"
    assert policy["frame-ancestors"] == "'none'"
    assert "unsafe" not in reply.headers["content-security-policy"]
    assert reply.headers["x-content-type-options"] == "nosniff"
    assert "<script>" not in reply.text
