"""The page as a person uses it, in a real browser against a server that can misbehave."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from playwright.sync_api import Browser, BrowserContext, Locator, Page, expect

from .conftest import Watch
from .fake import XSS, Fake

PHONE = {"width": 390, "height": 844}


def message(page: Page) -> Locator:
    return page.get_by_label("Message", exact=True)


def ask(page: Page, text: str) -> None:
    message(page).fill(text)
    message(page).press("Enter")


def until(condition: Callable[[], bool], page: Page) -> None:
    for _ in range(200):
        if condition():
            return
        page.wait_for_timeout(50)
    pytest.fail("the condition did not come true in 10 s")


def test_an_answer_streams_with_its_numbers(page: Page, fake: Fake, watch: Watch) -> None:
    fake.delay = 0.15
    ask(page, "What is the capital of France?")
    prose = page.locator(".prose")
    expect(prose).to_contain_text("Paris")
    expect(prose).not_to_contain_text("France.")  # It was on screen before it was complete.
    expect(prose).to_have_text("Paris is the capital of France.")
    expect(page.locator(".stats")).to_have_text(re.compile(r"^8 tokens\d+\.\d tok/sfirst token \d+ ms$"))
    expect(page.locator("#announcer")).to_have_text("Answer: Paris is the capital of France.")
    assert fake.bodies[0]["stream"] is True
    assert fake.bodies[0]["stream_options"] == {"include_usage": True}
    assert fake.bodies[0]["model"] == "smollm2-135m"
    assert watch.console == [] and watch.foreign == []


def test_the_conversation_is_sent_along_and_can_be_cleared(page: Page, fake: Fake) -> None:
    page.get_by_label("System prompt").fill("Be brief.")
    ask(page, "one")
    expect(page.locator("#stop")).to_be_hidden()
    ask(page, "two")
    expect(page.locator(".stats")).to_have_count(2)
    expect(page.locator("#stop")).to_be_hidden()
    assert [(m["role"], m["content"]) for m in fake.bodies[1]["messages"]] == [
        ("system", "Be brief."),
        ("user", "one"),
        ("assistant", "Paris is the capital of France."),
        ("user", "two"),
    ]
    page.get_by_role("button", name="Regenerate").click()
    until(lambda: len(fake.bodies) == 3, page)
    assert fake.bodies[2]["messages"] == fake.bodies[1]["messages"]
    expect(page.locator(".exchange")).to_have_count(2)
    page.get_by_role("button", name="New chat").click()
    expect(page.locator(".exchange")).to_have_count(0)
    expect(page.get_by_role("heading", name="What shall the model answer?")).to_be_visible()
    ask(page, "three")
    until(lambda: len(fake.bodies) == 4, page)
    assert [m["role"] for m in fake.bodies[3]["messages"]] == ["system", "user"]


@pytest.mark.parametrize("how", ["button", "escape"])
def test_stop_reaches_the_server(page: Page, fake: Fake, how: str) -> None:
    ask(page, "endless")
    expect(page.locator(".prose")).to_contain_text("on and on and")
    if how == "button":
        page.get_by_role("button", name="Stop").click()
    else:
        page.keyboard.press("Escape")
    expect(page.locator(".stats")).to_contain_text("stopped")
    expect(page.locator(".stats")).to_contain_text(re.compile(r"about \d+ tokens"))
    expect(page.get_by_role("button", name="Send")).to_be_visible()
    until(lambda: fake.disconnects == 1, page)


def test_controls_reach_the_request(page: Page, fake: Fake) -> None:
    values = {
        "Temperature": "0",
        "Max tokens": "33",
        "Top p": "0.9",
        "Top k": "40",
        "Min p": "0.05",
        "Seed": "7",
        "Repetition": "1.1",
        "Frequency": "-0.5",
        "Presence": "0.25",
    }
    for label, value in values.items():
        page.get_by_label(label, exact=True).fill(value)
    ask(page, "hello")
    until(lambda: len(fake.bodies) == 1, page)
    names = ["temperature", "max_tokens", "top_p", "top_k", "min_p", "seed"]
    names += ["repetition_penalty", "frequency_penalty", "presence_penalty"]
    assert {name: fake.bodies[0].get(name) for name in names} == {
        name: float(value) for name, value in zip(names, values.values(), strict=True)
    }
    page.get_by_role("button", name="Reset to defaults").click()
    expect(page.locator("#stop")).to_be_hidden()
    ask(page, "again")
    until(lambda: len(fake.bodies) == 2, page)
    assert fake.bodies[1]["temperature"] == 0.7
    assert "top_p" not in fake.bodies[1] and "seed" not in fake.bodies[1]


def test_a_wrong_setting_is_shown_and_nothing_is_sent(page: Page, fake: Fake) -> None:
    field = page.get_by_label("Top p", exact=True)
    field.fill("3")
    expect(field).to_have_attribute("aria-invalid", "true")
    ask(page, "hello")
    expect(page.get_by_role("alert").filter(has_text="Top p must be at most 1.")).to_be_visible()
    expect(field).to_be_focused()
    assert fake.bodies == []
    assert message(page).input_value() == "hello"
    field.fill("0.5")
    expect(field).to_have_attribute("aria-invalid", "false")
    field.press("ArrowUp")
    expect(field).to_have_value("0.55")


def test_settings_live_as_long_as_the_tab(page: Page, context: BrowserContext, fake: Fake) -> None:
    page.get_by_label("API key").fill("sk-secret")
    page.get_by_label("Temperature").fill("0.3")
    page.reload()
    expect(page.get_by_label("API key")).to_have_value("sk-secret")
    expect(page.get_by_label("Temperature")).to_have_value("0.3")
    assert "sk-secret" not in page.evaluate("JSON.stringify(localStorage) + document.cookie")
    ask(page, "hello")
    until(lambda: fake.keys == ["Bearer sk-secret"], page)
    other = context.new_page()
    other.goto(fake.url)
    expect(other.get_by_label("API key")).to_have_value("")


def test_a_key_that_is_needed_is_asked_for(context: BrowserContext, fake: Fake) -> None:
    fake.require_key = "sk-1"
    page = context.new_page()
    page.goto(fake.url)
    expect(page.locator("#model-name")).to_have_text("API key needed")
    ask(page, "hello")
    expect(page.locator(".problem")).to_contain_text("No API key was given.")
    page.get_by_role("button", name="Enter API key").click()
    expect(page.get_by_label("API key")).to_be_focused()
    page.keyboard.type("sk-1")
    page.keyboard.press("Tab")
    expect(page.locator("#model-name")).to_have_text("smollm2-135m")
    page.get_by_role("button", name="Retry").click()
    expect(page.locator(".prose")).to_have_text("Paris is the capital of France.")
    expect(page.locator(".problem")).to_be_hidden()


def test_model_text_stays_text(page: Page, watch: Watch) -> None:
    ask(page, "xss")
    expect(page.locator(".stats")).to_contain_text("tok/s")
    expect(page.locator("#stop")).to_be_hidden()
    prose = page.locator(".prose")
    expect(prose).to_contain_text('<img src=x onerror="window.hacked = 1">')
    expect(prose.locator("pre")).to_have_text("<svg onload='window.hacked = 3'></svg>")
    assert prose.locator("img, script, svg, a, b, iframe").count() == 0
    assert page.evaluate("window.hacked") is None
    ask(page, XSS)
    expect(page.locator(".bubble").nth(1)).to_contain_text("<script>")
    assert page.evaluate("window.hacked") is None
    assert watch.console == [] and watch.foreign == []


def test_markdown_and_characters_across_chunks(page: Page) -> None:
    ask(page, "markdown")
    prose = page.locator(".prose").first
    expect(prose.locator("h4")).to_have_text("Title")
    expect(prose.locator("em")).to_have_text("slanted")
    expect(prose.locator("li li")).to_have_text("inner")
    expect(prose.locator("pre")).to_have_text("print('<hi>')")
    expect(page.locator("#stop")).to_be_hidden()
    ask(page, "unicode")
    expect(page.locator(".prose").nth(1)).to_have_text("Grüße, 世界 🌍.")


def test_a_full_queue_is_waited_for(page: Page, fake: Fake) -> None:
    fake.busy_for = 1
    ask(page, "hello")
    expect(page.locator(".problem")).to_contain_text("The queue is full.")
    again = page.get_by_role("button", name=re.compile("Trying again in"))
    expect(again).to_be_disabled()
    assert len(fake.bodies) == 1
    expect(page.locator(".prose")).to_have_text("Paris is the capital of France.")
    expect(page.locator(".problem")).to_be_hidden()
    assert len(fake.bodies) == 2


def test_a_wait_can_be_stopped(page: Page, fake: Fake) -> None:
    fake.busy_for, fake.retry_after = 1, "60"
    ask(page, "hello")
    expect(page.get_by_role("button", name=re.compile(r"Trying again in (60|59) s"))).to_be_disabled()
    page.keyboard.press("Escape")
    expect(page.get_by_role("button", name=re.compile(r"Retry in \d+ s"))).to_be_disabled()
    expect(page.get_by_role("button", name="Send")).to_be_visible()
    assert len(fake.bodies) == 1


@pytest.mark.parametrize(
    ("prompt", "text", "kept"),
    [
        ("broken", "The worker died twice.", True),
        ("cut", "The connection ended before", True),
        ("refuse", "max_tokens is", False),
    ],
)
def test_failures_are_readable(page: Page, prompt: str, text: str, kept: bool) -> None:
    ask(page, prompt)
    expect(page.locator(".problem")).to_contain_text(text)
    expect(page.get_by_role("button", name="Retry")).to_be_enabled()
    expect(page.locator(".prose")).to_have_text("Paris is the" if kept else "")
    if prompt == "refuse":
        expect(page.get_by_label("Max tokens")).to_have_attribute("aria-invalid", "true")


def test_a_server_that_is_gone(page: Page, context: BrowserContext) -> None:
    context.set_offline(True)
    ask(page, "hello")
    expect(page.locator(".problem")).to_contain_text("The server cannot be reached.")
    expect(page.locator("#metrics-state")).to_have_text("Not reachable")
    context.set_offline(False)
    page.get_by_role("button", name="Retry").click()
    expect(page.locator(".prose")).to_have_text("Paris is the capital of France.")


def test_a_base_model_continues_text(page: Page, fake: Fake) -> None:
    fake.chat_template = False
    ask(page, "The capital of France is")
    expect(page.locator(".verbatim")).to_have_text("The capital of France isParis is the capital of France.")
    expect(page.get_by_label("Complete")).to_be_checked()
    expect(page.locator("#notice")).to_contain_text("no chat template")
    assert fake.paths == ["/v1/chat/completions", "/v1/completions"]
    assert fake.bodies[1]["prompt"] == "The capital of France is"
    expect(page.locator("#stop")).to_be_hidden()
    ask(page, "again")
    until(lambda: len(fake.paths) == 3, page)
    assert fake.paths[2] == "/v1/completions"


def test_plots_move(page: Page, fake: Fake, watch: Watch) -> None:
    line = page.locator(".plot").first.locator(".line.s0")
    until(lambda: fake.metrics_polls >= 3, page)
    expect(line).to_have_attribute("d", re.compile("L"))
    before = line.get_attribute("d")
    until(lambda: line.get_attribute("d") != before, page)
    expect(page.get_by_role("img", name=re.compile(r"Tokens.s: generated \d+"))).to_be_visible()
    expect(page.get_by_role("img", name=re.compile(r"KV cache: in use \d+ %"))).to_be_visible()
    expect(page.get_by_role("img", name=re.compile(r"Time to first token: p50 \d+ ms"))).to_be_visible()
    page.get_by_text("As a table").click()
    row = page.get_by_role("row", name=re.compile("Inter-token latency, p95"))
    expect(row.get_by_role("cell").first).to_have_text(re.compile(r"\d ms$"))
    assert watch.console == []


def test_metrics_are_polled_only_while_visible(page: Page, fake: Fake) -> None:
    until(lambda: fake.metrics_polls >= 1, page)
    show = "(state) => { Object.defineProperty(document, 'visibilityState', {value: state, configurable: true});"
    page.evaluate(show + "document.dispatchEvent(new Event('visibilitychange')); }", "hidden")
    page.wait_for_timeout(300)
    hidden = fake.metrics_polls
    page.wait_for_timeout(2500)
    assert fake.metrics_polls == hidden
    page.evaluate(show + "document.dispatchEvent(new Event('visibilitychange')); }", "visible")
    until(lambda: fake.metrics_polls > hidden, page)


def test_chat_works_without_metrics(context: BrowserContext, fake: Fake) -> None:
    fake.metrics_up = False
    page = context.new_page()
    page.goto(fake.url)
    expect(page.locator("#metrics-state")).to_have_text("Not reachable")
    ask(page, "hello")
    expect(page.locator(".prose")).to_have_text("Paris is the capital of France.")


def test_dark_and_light(page: Page, browser: Browser, fake: Fake) -> None:
    def ground(page: Page) -> str:
        return page.evaluate("getComputedStyle(document.body).backgroundColor")

    light = ground(page)
    page.emulate_media(color_scheme="dark")
    dark = ground(page)
    assert light != dark
    button = page.get_by_role("button", name=re.compile("^Theme:"))
    button.click()
    expect(button).to_have_accessible_name("Theme: light. Switch to dark.")
    assert ground(page) == light
    button.click()
    assert ground(page) == dark
    page.emulate_media(color_scheme="light")
    page.reload()
    assert ground(page) == dark


def test_phone(browser: Browser, fake: Fake, watch: Watch) -> None:
    page = browser.new_page(viewport=PHONE, has_touch=True, is_mobile=True)
    watch.follow(page)
    page.goto(fake.url)
    expect(page.locator("#model-name")).to_have_text("smollm2-135m")
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
    page.get_by_role("button", name="Settings", exact=True).tap()
    page.get_by_label("Seed").fill("5")
    page.get_by_role("button", name="Close settings").tap()
    message(page).fill("hello")
    page.get_by_role("button", name="Send").tap()
    expect(page.locator(".prose")).to_have_text("Paris is the capital of France.")
    assert fake.bodies[0]["seed"] == 5
    page.get_by_role("button", name="Metrics", exact=True).tap()
    expect(page.locator("#metrics")).to_be_visible()
    expect(page.locator("#settings")).to_be_hidden()
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
    assert watch.console == [] and watch.foreign == []
    page.close()


def test_by_keyboard_alone(page: Page, fake: Fake) -> None:
    page.set_viewport_size({"width": 1000, "height": 900})
    page.reload()  # Only a wide page puts the focus into the message box by itself.
    page.set_viewport_size({"width": 1440, "height": 900})
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the message box")).to_be_focused()
    page.keyboard.press("Enter")
    expect(message(page)).to_be_focused()
    page.keyboard.type("one")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("two")
    page.keyboard.press("Enter")
    until(lambda: len(fake.bodies) == 1, page)
    assert fake.bodies[0]["messages"][-1]["content"] == "one\ntwo"
    expect(message(page)).to_be_focused()
    expect(page.locator("#stop")).to_be_hidden()
    seen: list[str] = []
    for _ in range(60):
        page.keyboard.press("Tab")
        seen.append(page.evaluate("document.activeElement.innerText || document.activeElement.id"))
        shown = "getComputedStyle(document.activeElement).outlineStyle"
        if seen[-1] in ("Copy", "Regenerate", "Settings", "New chat"):
            assert page.evaluate(shown) == "solid", f"no visible focus on {seen[-1]}"
    assert {"Copy", "Regenerate", "Settings", "Metrics", "New chat", "field-top_p", "api-key", "theme"} <= set(seen)


def test_every_control_has_a_name(page: Page) -> None:
    ask(page, "markdown")
    expect(page.locator(".stats")).to_contain_text("tok/s")
    expect(page.locator("#stop")).to_be_hidden()
    snapshot = page.locator("body").aria_snapshot()
    for role in ("button", "textbox", "spinbutton", "radio", "img", "link", "region", "complementary"):
        nameless = [line for line in snapshot.splitlines() if re.match(rf"\s*- {role}(?!\w)(?! \")", line)]
        assert nameless == [], f"{role} without a name: {nameless}"
    assert '- log "Conversation"' in snapshot
    assert page.locator("#log").get_attribute("aria-live") == "off"
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map((e) => e.id)")
    assert len(ids) == len(set(ids))
    dangling = page.evaluate(
        "[...document.querySelectorAll('[aria-describedby],[aria-labelledby],[aria-controls],[for]')].flatMap((e) =>"
        " ['aria-describedby','aria-labelledby','aria-controls','for'].flatMap((n) => (e.getAttribute(n) ?? '')"
        ".split(' ').filter((i) => i && !document.getElementById(i))))"
    )
    assert dangling == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_contrast(page: Page, scheme: str) -> None:
    """WCAG 2.2 AA: 4.5 for text on each ground that it stands on, 3 for lines and control borders."""
    page.emulate_media(color_scheme=scheme)
    pairs = [
        *((text, ground, 4.5) for text in ("ink", "soft", "bad") for ground in ("ground", "surface")),
        ("ink", "raised", 4.5),
        ("soft", "raised", 4.5),
        ("ink", "accent-wash", 4.5),
        ("ink", "bad-wash", 4.5),
        ("on-accent", "accent", 4.5),
        ("accent", "surface", 4.5),
        ("second", "surface", 3),
        ("edge", "surface", 3),
        ("edge", "ground", 3),
        ("good", "surface", 3),
    ]
    colour = """(name) => { const e = document.createElement('i'); document.body.append(e);
        e.style.color = `var(--${name})`; const c = getComputedStyle(e).color; e.remove();
        return c.match(/[\\d.]+/g).slice(0, 3).map(Number); }"""

    def luminance(name: str) -> float:
        parts = [c / 255 for c in page.evaluate(colour, name)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    for text, ground, least in pairs:
        high, low = sorted((luminance(text), luminance(ground)), reverse=True)
        assert (high + 0.05) / (low + 0.05) >= least, f"{text} on {ground} in {scheme}"


def test_reduced_motion(page: Page, fake: Fake) -> None:
    page.emulate_media(reduced_motion="reduce")
    ask(page, "endless")
    expect(page.locator(".prose")).to_contain_text("on and")
    running = "document.getAnimations().filter((a) => a.playState === 'running').length"
    assert page.evaluate(running) == 0
    page.keyboard.press("Escape")
