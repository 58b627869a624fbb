"""Log lines for people and for machines."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest

from slipstream.telemetry import logs


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    found = logging.getLogger("slipstream.tests.logs")
    found.propagate = False
    yield found
    found.handlers.clear()
    found.propagate = True


def test_json_has_the_values(logger: logging.Logger) -> None:
    stream = io.StringIO()
    logs.configure(format="auto", level="info", stream=stream, logger=logger.name)  # no terminal: JSON
    token = logs.REQUEST_ID.set("r-1")
    try:
        logger.info("done %d", 3, extra={"tokens": 5, "missing": None, "odd": object})
    finally:
        logs.REQUEST_ID.reset(token)
    logger.debug("not at this level")
    [line] = stream.getvalue().splitlines()
    entry = json.loads(line)
    assert entry.pop("time").endswith("Z")
    assert entry == {
        "level": "info",
        "logger": "slipstream.tests.logs",
        "message": "done 3",
        "tokens": 5,
        "odd": "<class 'object'>",
        "request_id": "r-1",
    }


def test_text_is_one_line_that_cannot_be_forged(logger: logging.Logger) -> None:
    stream = io.StringIO()
    logs.configure(format="text", stream=stream, logger=logger.name)
    logger.warning("GET /a\n12:00:00 ERROR forged", extra={"path": "a b", "ms": 1.23456})
    [line] = stream.getvalue().splitlines()
    assert line.endswith(r"WARNING  GET /a\n12:00:00 ERROR forged path='a b' ms=1.235")


def test_a_terminal_gets_colour_and_tracebacks(logger: logging.Logger) -> None:
    stream = Terminal()
    logs.configure(format="auto", stream=stream, logger=logger.name)
    try:
        raise ValueError("seen")
    except ValueError:
        logger.exception("failed")
    text = stream.getvalue()
    assert "\x1b[31mERROR" in text
    assert "ValueError: seen" in text


def test_configuring_twice_writes_once(logger: logging.Logger) -> None:
    first, second = io.StringIO(), io.StringIO()
    logs.configure(format="json", stream=first, logger=logger.name)
    logs.configure(format="json", stream=second, logger=logger.name)
    logger.info("x")
    assert first.getvalue() == ""
    assert len(second.getvalue().splitlines()) == 1


def test_json_carries_tracebacks(logger: logging.Logger) -> None:
    stream = io.StringIO()
    logs.configure(format="json", stream=stream, logger=logger.name)
    try:
        raise ValueError("seen")
    except ValueError:
        logger.exception("failed")
    assert "ValueError: seen" in json.loads(stream.getvalue())["traceback"]
