"""A browser for the page's tests: Chromium or Chrome, driven by Playwright. Without it these tests fail, not skip."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, Request, sync_playwright
from starlette.applications import Starlette

from .fake import Fake, build, serve

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
"""The commands that are looked for, the first that exists is taken; scripts/test looks for the same."""

MISSING = "The page's tests need a browser: sudo apt-get update && sudo apt-get install -y chromium"
QUIET = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


# Playwright's sync interface keeps an event loop in this thread, so it ends with this folder: other tests need theirs.
@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.fail(MISSING, pytrace=False)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=QUIET)
        yield browser
        browser.close()


@pytest.fixture(scope="package")
def app() -> Iterator[Starlette]:
    """The fake server, running at `app.state.url`."""
    app = build(Fake())
    app.state.url, stop = serve(app)
    yield app
    stop()


@pytest.fixture
def fake(app: Starlette) -> Fake:
    """A fresh set of switches and records for one test."""
    app.state.fake = Fake(url=app.state.url)
    return app.state.fake


@pytest.fixture(scope="module")
def modules(browser: Browser, app: Starlette) -> Iterator[Page]:
    """A page to import the page's own modules in; tests that share it must not change it."""
    page = browser.new_page()
    page.goto(app.state.url)
    yield page
    page.close()


@dataclass
class Watch:
    """What a well-behaved page never does."""

    origin: str
    console: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)

    def follow(self, page: Page) -> None:
        page.on("console", lambda message: message.type in ("error", "warning") and self.console.append(message.text))
        page.on("pageerror", lambda error: self.console.append(str(error)))
        page.on("request", self._request)

    def _request(self, request: Request) -> None:
        if not request.url.removeprefix("blob:").startswith(self.origin):
            self.foreign.append(request.url)


@pytest.fixture
def context(browser: Browser, fake: Fake) -> Iterator[BrowserContext]:
    context = browser.new_context(viewport={"width": 1440, "height": 900}, color_scheme="light")
    context.set_default_timeout(10_000)
    yield context
    context.close()


@pytest.fixture
def watch(fake: Fake) -> Watch:
    return Watch(fake.url)


@pytest.fixture
def page(context: BrowserContext, fake: Fake, watch: Watch) -> Page:
    page = context.new_page()
    watch.follow(page)
    page.goto(fake.url)
    page.get_by_text("smollm2-135m").first.wait_for()
    return page
