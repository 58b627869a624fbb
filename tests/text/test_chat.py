"""Chat templates: rendered as transformers does, with OpenAI's shapes made to fit, and clear errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from slipstream.errors import NoChatTemplate, RequestError
from slipstream.text.chat import ChatTemplates
from tests.text.conftest import loaded

FOLDER = Path(__file__).parent.parent / "golden" / "chat"
CASES: list[dict[str, Any]] = json.loads((FOLDER / "rendered.json").read_text())["cases"]
SPECIAL = {"bos": "<s>", "eos": "</s>"}
USER = [{"role": "user", "content": "hi"}]


def templates(**sources: str) -> ChatTemplates:
    return ChatTemplates(sources, SPECIAL)


def stored(name: str) -> ChatTemplates:
    return templates(default=(FOLDER / f"{name}.jinja").read_text(encoding="utf-8"))


@pytest.mark.parametrize("case", CASES, ids=[f"{i}-{case['template']}" for i, case in enumerate(CASES)])
def test_rendered_as_transformers_does(case: dict[str, Any]) -> None:
    given = dict(case["given"])
    named = {name: given.pop(name) for name in ("tools", "documents", "continue_final_message") if name in given}
    messages, prompt = given.pop("messages"), given.pop("add_generation_prompt", False)
    text = stored(case["template"]).render(messages, add_generation_prompt=prompt, variables=given, **named)
    assert text == case["text"]


def test_the_built_in_model_chats() -> None:
    tokenizer = loaded("smollm2")
    assert tokenizer.has_chat_template
    text = tokenizer.apply_chat_template(USER)
    assert text.endswith("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n")
    ids = tokenizer.encode_chat(text)
    assert ids[0] == tokenizer.token_id("<|im_start|>")
    assert tokenizer.decode(ids, skip_special=False) == text


def test_bos_is_not_added_twice() -> None:
    tokenizer = loaded("tiny_llama")
    rendered = templates(default="{{ bos_token }}{{ messages[0].content }}").render(USER)
    assert tokenizer.encode_chat(rendered).count(1) == 1
    assert tokenizer.encode(rendered).count(1) == 2


def test_a_base_model_says_what_works() -> None:
    tokenizer = loaded("gemma3")
    assert not tokenizer.has_chat_template
    with pytest.raises(NoChatTemplate, match="/v1/completions"):
        tokenizer.apply_chat_template(USER)


def test_a_template_s_own_refusal_reaches_the_client() -> None:
    with pytest.raises(
        RequestError, match="Roles must alternate user/assistant/user/assistant, but turn 2 is user"
    ) as e:
        stored("alternating").render([*USER, *USER])
    assert (e.value.status, e.value.param) == (400, "messages")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{% if %}", "cannot be used"),
        ("{{ messages[0].nothing.more }}", "nothing"),
        ("{{ messages[9].content + 'x' }}", "messages|list object|undefined"),
        ("{{ 1 // 0 }}", "division"),
        ("{{ 'a' + 1 }}", "TypeError"),
    ],
)
def test_a_broken_template_is_a_clear_error(source: str, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        templates(default=source).render(USER)


def test_tool_use_is_taken_with_tools_only() -> None:
    both = templates(default="plain", tool_use="{{ tools | length }} tools", rag="rag")
    tools = [{"type": "function", "function": {"name": "f"}}]
    assert both.render(USER) == "plain"
    assert both.render(USER, tools=[]) == "plain"
    assert both.render(USER, tools=tools) == "1 tools"
    assert both.render(USER, variables={"chat_template": "rag"}) == "rag"
    assert templates(only="one").render(USER, tools=tools) == "one"
    with pytest.raises(RequestError, match="there are: default, tool_use, rag"):
        both.render(USER, variables={"chat_template": "{{ messages }}"})


@pytest.mark.parametrize(
    ("source", "content_format"),
    [
        ("{{ messages[0]['content'] }}", "string"),
        ("{% for m in messages %}{{ m.content | trim }}{% endfor %}", "string"),
        ("{% for m in messages %}{% for p in m.content %}{{ p.text }}{% endfor %}{% endfor %}", "openai"),
        ("{% for m in messages %}{% for p in m['content'] | list %}{{ p.text }}{% endfor %}{% endfor %}", "openai"),
        (
            "{% for m in messages %}{% set c = m.content %}{% for p in c %}{{ p.text }}{% endfor %}{% endfor %}",
            "openai",
        ),
        (
            "{% macro show(content) %}{% for p in content %}{{ p.text }}{% endfor %}{% endmacro %}"
            "{% for m in messages %}{{ show(m.content) }}{% endfor %}",
            "openai",
        ),
    ],
)
def test_content_parts_fit_the_template(source: str, content_format: str) -> None:
    chat = templates(default=source)
    assert chat.content_format() == content_format
    parts = [{"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]}]
    assert chat.render(parts) == ("one\ntwo" if content_format == "string" else "onetwo")
    assert chat.render(USER) == "hi"


def test_parts_that_are_no_text_are_refused() -> None:
    image = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]
    with pytest.raises(RequestError, match="'image_url' is not supported"):
        stored("parts").render(image)


def test_json_arguments_of_tool_calls_become_objects() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"city": "Oslo"}'}}
    messages = [*USER, {"role": "assistant", "content": None, "tool_calls": [call]}]
    assert '"arguments": {"city": "Oslo"}' in stored("tools").render(messages)
    call["function"]["arguments"] = "no json"  # type: ignore[index]
    assert '"arguments": "no json"' in stored("tools").render(messages)


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([*USER, {"role": "assistant", "content": None}], "needs a last message with text"),
        ([], "at least one message"),
    ],
)
def test_a_message_that_cannot_be_continued(messages: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        stored("smollm2").render(messages, add_generation_prompt=False, continue_final_message=True)


def test_continuing_excludes_a_new_turn_and_a_template_that_drops_the_message() -> None:
    with pytest.raises(RequestError, match="exclude"):
        stored("smollm2").render(USER, continue_final_message=True)
    with pytest.raises(RequestError, match="leaves out or changes"):
        templates(default="nothing").render(USER, continue_final_message=True, add_generation_prompt=False)


def test_messages_are_not_changed_and_hold_plain_data_only() -> None:
    messages = [{"role": "user", "content": [{"type": "text", "text": "x"}]}]
    before = json.dumps(messages)
    stored("smollm2").render(messages)
    assert json.dumps(messages) == before
    with pytest.raises(RequestError, match="object is not JSON data"):
        stored("smollm2").render([{"role": "user", "content": object()}])


def test_strftime_now_and_json_without_html_escapes() -> None:
    assert len(templates(default="{{ strftime_now('%d %b %Y') }}").render(USER)) == 11
    assert templates(default="{{ {'a': '<é>'} | tojson }}").render(USER) == '{"a": "<é>"}'
