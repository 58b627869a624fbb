"""Making images on the page, from the real server over an image engine in memory."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, expect

from ..server import conftest as real
from ..server.image_client import INFO, ImageMemory
from .conftest import Watch

start = real.start


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    page = browser.new_page(viewport={"width": 1440, "height": 900})
    page.set_default_timeout(10_000)
    yield page
    page.close()


def draw(page: Page, text: str) -> None:
    page.get_by_label("Message", exact=True).fill(text)
    page.keyboard.press("Enter")


def loaded(page: Page, selector: str) -> list[list[int]]:
    """The natural sizes of the images that the selector finds, once all are loaded."""
    page.wait_for_function(
        "s => [...document.querySelectorAll(s)].every((i) => i.complete && i.naturalWidth)", arg=selector
    )
    return page.eval_on_selector_all(selector, "all => all.map((i) => [i.naturalWidth, i.naturalHeight])")


def test_images_alone_with_progress_and_a_gallery(page: Page, start: real.Start) -> None:
    gate = asyncio.Event()
    images = ImageMemory(gate=gate)
    live = start(images=images, text=False)
    watch = Watch(live.url)
    watch.follow(page)
    page.goto(live.url)
    expect(page.locator("#model-name")).to_have_text("toy-images")
    expect(page.get_by_role("heading", name="What shall the model draw?")).to_be_visible()
    expect(page.get_by_label("Chat", exact=True)).to_be_hidden()
    expect(page.get_by_label("Temperature")).to_be_hidden()
    expect(page.locator("#curl")).to_contain_text("v1/images/generations")
    page.get_by_label("Images", exact=True).fill("2")
    page.get_by_label("Image seed").fill("7")
    page.get_by_label("Steps").fill("6")
    draw(page, "a red apple")
    expect(page.locator("progress")).to_have_count(2)
    live.until(lambda: len(images.requests) == 2)
    assert [(r.prompt, r.seed, r.steps, r.previews, r.width) for r in images.requests] == [
        ("a red apple", seed, 6, 3, INFO.width) for seed in (7, 8)
    ]
    live.call(gate.set)
    expect(page.locator(".frame[data-state=done]")).to_have_count(2)
    assert loaded(page, ".frame img") == [[64, 48]] * 2
    expect(page.locator(".frame").first).to_contain_text("64x48 · seed 7")
    expect(page.locator(".stats")).to_have_text(re.compile(r"s[\d.]+ steps/s$"))
    expect(page.locator("#announcer")).to_have_text("The images are done.")
    expect(page.locator("#gallery .thumb")).to_have_count(2)
    with page.expect_download() as saved:
        page.get_by_role("link", name="Save").first.click()
    assert saved.value.suggested_filename == "slipstream-7.png"
    # The gallery outlives the conversation; a picture in it can be looked at, and begun with.
    page.get_by_role("button", name="New chat").click()
    expect(page.locator(".exchange")).to_have_count(0)
    page.locator("#gallery .thumb").first.click()
    expect(page.get_by_role("dialog")).to_contain_text("a red apple")
    assert loaded(page, "#viewer-image") == [[64, 48]]
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_be_hidden()
    assert watch.console == [] and watch.foreign == []


def test_a_preview_is_shown_while_it_is_made(page: Page, start: real.Start) -> None:
    images = ImageMemory(gate=asyncio.Event(), info=INFO)
    live = start(images=images, text=False)
    page.goto(live.url)
    draw(page, "slow")
    live.until(lambda: len(images.requests) == 1)
    for _ in range(3):
        live.call(lambda: _once(images))
    expect(page.locator("progress")).to_have_attribute("value", re.compile("[1-3]"))
    expect(page.locator(".count")).to_have_text(re.compile(r"step [1-3] of 4"))
    assert loaded(page, ".frame img") == [[8, 6]]
    page.keyboard.press("Escape")
    expect(page.locator(".count")).to_have_text("stopped")
    expect(page.get_by_role("button", name="Send")).to_be_visible()
    live.until(lambda: list(images.ends.values()) == ["closed"])


async def _once(images: ImageMemory) -> None:
    """Let one step through."""
    assert images.gate is not None
    images.gate.set()
    await asyncio.sleep(0)
    images.gate.clear()
    await asyncio.sleep(0.02)


def test_an_image_can_be_edited(page: Page, start: real.Start) -> None:
    images = ImageMemory()
    live = start(images=images)
    watch = Watch(live.url)
    watch.follow(page)
    page.goto(live.url)
    expect(page.locator("#model-name")).to_have_text("toy + toy-images")
    expect(page.get_by_label("Chat", exact=True)).to_be_checked()
    page.get_by_label("Image", exact=True).check()
    draw(page, "a cat")
    expect(page.locator(".frame[data-state=done]")).to_have_count(1)
    page.get_by_role("button", name="Edit").click()
    expect(page.locator("#starting")).to_be_visible()
    page.get_by_label("Strength").fill("0.4")
    draw(page, "with a hat")
    expect(page.locator(".frame[data-state=done]")).to_have_count(2)
    edit = images.requests[1]
    assert edit.image is not None and (edit.width, edit.height, edit.strength) == (64, 48, 0.4)
    assert (edit.image.array[0, 0] == loaded_colour(images)).all()
    expect(page.locator("#starting")).to_be_hidden()
    page.get_by_label("Chat", exact=True).check()
    expect(page.get_by_label("Temperature")).to_be_visible()
    expect(page.locator("#gallery")).to_be_hidden()
    draw(page, "hello")
    expect(page.locator(".prose")).to_have_text("Hello, world")
    assert watch.console == [] and watch.foreign == []


def loaded_colour(images: ImageMemory) -> tuple[int, int, int]:
    from ..server.image_client import colour_of

    return colour_of(images.requests[0])


def test_what_is_wrong_is_said_where_it_is(page: Page, start: real.Start) -> None:
    live = start(images=ImageMemory(), text=False)
    page.goto(live.url)
    page.get_by_label("Width").fill("65")
    draw(page, "x")
    expect(page.locator(".problem")).to_contain_text("multiples of 16")
    expect(page.get_by_label("Width")).to_have_attribute("aria-invalid", "true")
    page.get_by_label("Width").fill("96")
    page.get_by_role("button", name="Again").click()
    expect(page.locator(".frame[data-state=done]")).to_have_count(1)
    assert loaded(page, ".frame img") == [[96, 48]]


def test_no_image_mode_without_an_image_model(page: Page, start: real.Start) -> None:
    live = start("Yes.")
    page.goto(live.url)
    expect(page.locator("#model-name")).to_have_text("toy")
    expect(page.get_by_text("Image", exact=True)).to_be_hidden()
    expect(page.get_by_label("Image seed")).to_have_count(0)
