"""The page from the real server, over an engine in memory."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from ..server import conftest as real
from ..server.toys import toy_tokenizer
from .conftest import Watch

start = real.start
ROOT = Path(__file__).parents[2]


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    page = browser.new_page(viewport={"width": 1440, "height": 900})
    page.set_default_timeout(10_000)
    yield page
    page.close()


def ask(page: Page, text: str) -> None:
    page.get_by_label("Message", exact=True).fill(text)
    page.keyboard.press("Enter")


def test_an_answer_and_its_metrics(page: Page, start: real.Start) -> None:
    live = start("Grüße aus **Paris** 🌍", delay=0.03)
    watch = Watch(live.url)
    watch.follow(page)
    response = page.goto(live.url)
    assert response is not None and response.status == 200
    expect(page.locator("#model-name")).to_have_text("toy")
    ask(page, "What is the capital of France?")
    expect(page.locator(".prose")).to_have_text("Grüße aus Paris 🌍")
    expect(page.locator(".stats")).to_have_text(re.compile(r"^\d+ tokens[\d.]+ tok/sfirst token \d+ ms$"))
    usage = page.locator(".stats span").first.inner_text()
    request = live.client.requests[0]
    said = len("Grüße aus **Paris** 🌍".encode())
    assert usage in (f"{said} tokens", f"{said + 1} tokens")
    assert request.sampling.temperature == pytest.approx(0.7)
    page.get_by_text("As a table").click()
    cells = page.get_by_role("row", name=re.compile("Generated tokens per second")).get_by_role("cell")
    expect(cells.nth(2)).to_have_text(re.compile(r"^[1-9]|^0\.\d*[1-9]"))
    ttft = page.get_by_role("row", name=re.compile("Time to first token, p50")).get_by_role("cell")
    expect(ttft.nth(2)).to_have_text(re.compile(r"\d ms$"))
    assert watch.console == [] and watch.foreign == []


def test_stop_frees_the_request(page: Page, start: real.Start) -> None:
    live = start("a" * 400, delay=0.03)
    page.goto(live.url)
    ask(page, "go on")
    expect(page.locator(".prose")).to_contain_text("aaa")
    page.keyboard.press("Escape")
    expect(page.locator(".stats")).to_contain_text("stopped")
    live.until(lambda: list(live.client.ends.values()) == ["closed"])


def test_a_base_model(page: Page, start: real.Start) -> None:
    live = start(" Paris.", tokenizer=toy_tokenizer(template=None))
    page.goto(live.url)
    ask(page, "The capital of France is")
    expect(page.locator(".verbatim")).to_have_text("The capital of France is Paris.")
    expect(page.get_by_label("Complete")).to_be_checked()


def test_a_key(page: Page, start: real.Start, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("sk-right\n")
    live = start("Yes.", config={"api_key_file": keys})
    page.goto(live.url)
    expect(page.locator("#model-name")).to_have_text("API key needed")
    page.get_by_label("API key").fill("sk-right")
    page.keyboard.press("Tab")
    expect(page.locator("#model-name")).to_have_text("toy")
    ask(page, "hello")
    expect(page.locator(".prose")).to_have_text("Yes.")


def test_a_refused_field_is_shown_where_it_is(page: Page, start: real.Start) -> None:
    live = start("Yes.")
    page.goto(live.url)
    page.get_by_label("Max tokens").fill("100000")
    ask(page, "hello")
    expect(page.locator(".problem")).to_contain_text("100000")
    expect(page.get_by_role("button", name="Retry")).to_be_enabled()


def test_the_wheel_has_the_page(tmp_path: Path) -> None:
    """Every file that the page loads lies in the package's folder, which the wheel takes whole."""
    folder = ROOT / "src/slipstream/server/static"
    present = {path.name for path in folder.iterdir()}
    used = set()
    for path in folder.iterdir():
        text = path.read_text(encoding="utf-8")
        used |= set(re.findall(r"static/([\w.-]+\.(?:js|css|svg))", text))
        used |= set(re.findall(r'from "\./([\w.-]+\.js)"', text))
    assert used <= present
    assert present - used == {"index.html"}, "a file that nothing loads"
