"""Conversations to prompts, by the chat template that comes with a checkpoint."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, Literal

from jinja2 import Template, TemplateError, nodes

from slipstream.errors import NoChatTemplate, RequestError
from slipstream.text.sandbox import BUDGET, Budget, ChatEnvironment

ContentFormat = Literal["string", "openai"]

# Marks where the last message ends in the rendered chat. The space at its end tells whether the template trims.
_END_MARK = "\ue000end of the last message\ue001 "
# What a template can raise beside jinja2's own errors, when messages have another shape than it expects.
_FAILURES = (
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    RecursionError,
    TypeError,
    ValueError,
)
# Names under which clients and templates know a model's thoughts; the first is the common one.
_REASONING = ("reasoning_content", "thinking", "reasoning")


class ChatTemplates:
    """The named templates of one checkpoint. Compiled when first used; `bool` tells whether there are any."""

    def __init__(self, sources: Mapping[str, str], special: Mapping[str, str]) -> None:
        """`special`: role (bos, eos, ...) to token text, which templates see as `bos_token` and so on."""
        self._sources = dict(sources)
        self._special = {f"{role}_token": text for role, text in special.items()}
        self._compiled: dict[str, CompiledTemplate] = {}

    def __bool__(self) -> bool:
        return bool(self._sources)

    @property
    def names(self) -> tuple[str, ...]:
        """The templates' names."""
        return tuple(self._sources)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """The conversation as text, without bos added beyond what the template writes.

        Uses the template "tool_use" where tools are given and it exists, else "default" (or the only one); a
        `chat_template` among the `variables` names another. `continue_final_message` leaves the last message open, so
        that the model goes on with it. Contents given as OpenAI's lists of parts are joined to a string for templates
        that read strings; tool calls' arguments are handed over as objects.

        Raises NoChatTemplate where there is none, RequestError for messages that do not fit, and with the template's
        own words where it refuses them.
        """
        extra = dict(variables or {})
        template = self._pick(extra.pop("chat_template", None), bool(tools))
        if not messages:
            raise RequestError("messages must hold at least one message", param="messages")
        if continue_final_message and add_generation_prompt:
            raise RequestError(
                "continue_final_message needs add_generation_prompt to be false: the two exclude each other",
                param="continue_final_message",
            )
        chat = [_message(message, template) for message in messages]
        if continue_final_message:
            chat[-1] = _open_ended(chat[-1])
        text = template.render(
            {
                **self._special,
                **_plain(extra, "chat_template_kwargs"),
                "messages": chat,
                "tools": _plain(list(tools), "tools") if tools else None,
                "documents": _plain(list(documents), "documents") if documents else None,
                "add_generation_prompt": add_generation_prompt,
            }
        )
        return _cut_open(text) if continue_final_message else text

    def tells_apart(self, *roles: str) -> bool:
        """Whether a template speaks of messages of all these roles."""
        sources = self._sources.values()
        return any(all(f'"{role}"' in text or f"'{role}'" in text for role in roles) for text in sources)

    def content_format(self, name: str | None = None) -> ContentFormat:
        """Whether the template reads a message's content as a string or goes over it as a list of parts."""
        return self._pick(name, False).content_format

    def _pick(self, name: Any, with_tools: bool) -> CompiledTemplate:
        if not self._sources:
            raise NoChatTemplate(
                "this model has no chat template (it is a base model, or its checkpoint lacks one): "
                "/v1/completions takes a plain prompt",
                code="no_chat_template",
            )
        if name is None:
            wanted = ("tool_use", "default") if with_tools else ("default",)
            name = next((one for one in wanted if one in self._sources), None) or next(iter(self._sources))
        if name not in self._sources:
            raise RequestError(
                f"no chat template named {name!r}; there are: {', '.join(self._sources)}", param="messages"
            )
        if name not in self._compiled:
            self._compiled[name] = CompiledTemplate(name, self._sources[name])
        return self._compiled[name]


class CompiledTemplate:
    """One template, ready to render. Raises RequestError where its source is no valid Jinja."""

    def __init__(self, name: str, source: str) -> None:
        self._name = name
        self._source = source
        self._environment = ChatEnvironment()
        try:
            self._template: Template = self._environment.load(source)
        except (TemplateError, RecursionError) as error:
            raise RequestError(
                f"the model's chat template cannot be used: {error}", code="bad_chat_template"
            ) from error

    def render(self, variables: Mapping[str, Any]) -> str:
        """The template's text. Raises RequestError with its own message if it refuses, or if it breaks a bound."""
        try:
            return self._template.render({**variables, BUDGET: Budget()})
        except TemplateError as error:
            # What raise_exception says is meant for the client; so are undefined names and broken bounds.
            raise RequestError(str(error.message), param="messages", code="chat_template") from error
        except _FAILURES as error:
            raise RequestError(
                f"the model's chat template failed on these messages: {type(error).__name__}: {error}",
                param="messages",
                code="chat_template",
            ) from error

    @cached_property
    def content_format(self) -> ContentFormat:
        """`openai` where a loop goes over a message's content, directly or through a name it was set to."""
        tree = self._environment.parse(self._source)
        names = {"content"} if _loops_in_macros(tree) else set()
        names |= {
            node.target.name
            for node in tree.find_all(nodes.Assign)
            if isinstance(node.target, nodes.Name) and _is_content(node.node, frozenset())
        }
        loops = any(_is_content(loop.iter, frozenset(names)) for loop in tree.find_all(nodes.For))
        return "openai" if loops else "string"

    @cached_property
    def wants_parts(self) -> bool:
        """Whether contents must be lists of parts: it loops over them and never asks whether one is a string."""
        return self.content_format == "openai" and not _tests_for_string(self._environment.parse(self._source))


def _tests_for_string(tree: nodes.Template) -> bool:
    return any(test.name == "string" for test in tree.find_all(nodes.Test))


def _loops_in_macros(tree: nodes.Template) -> bool:
    """Whether a macro takes a parameter called content: what it loops over may be a message's."""
    return any(arg.name == "content" for macro in tree.find_all(nodes.Macro) for arg in macro.args)


def _is_content(node: nodes.Node | None, names: frozenset[str]) -> bool:
    """Whether it is `x.content`, `x['content']`, one of `names`, or one of these through filters or slices."""
    while isinstance(node, nodes.Filter) or (isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Slice)):
        node = node.node
    if isinstance(node, nodes.Name):
        return node.name in names
    if isinstance(node, nodes.Getattr):
        return node.attr == "content"
    return isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Const) and node.arg.value == "content"


def _message(message: Mapping[str, Any], template: CompiledTemplate) -> dict[str, Any]:
    """A message as templates read it: plain data, content in the template's format, arguments parsed."""
    plain: dict[str, Any] = _plain(dict(message), "messages")
    content = plain.get("content")
    if isinstance(content, list):
        parts = [_part(part) for part in content]
        joined = "\n".join(str(part["text"]) for part in parts if part["type"] == "text")
        plain["content"] = parts if template.content_format == "openai" else joined
    elif isinstance(content, str) and template.wants_parts:
        plain["content"] = [{"type": "text", "text": content}]
    reasoning = next((plain[name] for name in _REASONING if plain.get(name) is not None), None)
    if reasoning is not None:
        plain = {"thinking": reasoning, **plain, "reasoning_content": reasoning}
    if isinstance(plain.get("tool_calls"), list):
        plain["tool_calls"] = [_tool_call(call) for call in plain["tool_calls"]]
    return plain


def _part(part: Any) -> dict[str, Any]:
    """A part of a content list; only text can be served."""
    if isinstance(part, str):
        return {"type": "text", "text": part}
    if not isinstance(part, dict) or not isinstance(part.get("text"), str) or part.get("type", "text") != "text":
        kind = part.get("type") if isinstance(part, dict) else type(part).__name__
        raise RequestError(f"a content part of type {kind!r} is not supported: only text is", param="messages")
    return {**part, "type": "text"}


def _tool_call(call: Any) -> Any:
    """A tool call with its arguments as an object: OpenAI's clients send JSON text, templates write objects."""
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(arguments := function.get("arguments"), str):
        return call
    try:
        parsed = json.loads(arguments)
    except ValueError:
        return call
    return {**call, "function": {**function, "arguments": parsed}} if isinstance(parsed, dict) else call


def _open_ended(message: dict[str, Any]) -> dict[str, Any]:
    """The message with the end mark after its last text."""
    content = message.get("content")
    if isinstance(content, str):
        return {**message, "content": content + _END_MARK}
    if isinstance(content, list) and content:
        last = {**content[-1], "text": content[-1]["text"] + _END_MARK}
        return {**message, "content": [*content[:-1], last]}
    raise RequestError("continue_final_message needs a last message with text to go on from", param="messages")


def _cut_open(text: str) -> str:
    """The rendered chat up to the end mark."""
    end = text.rfind(_END_MARK.rstrip())
    if end < 0:
        raise RequestError(
            "continue_final_message does not work with these messages: the model's chat template leaves out or changes "
            "the last one",
            param="messages",
        )
    # A template that trims messages would have trimmed this one's end too.
    return text[:end] if text.startswith(_END_MARK, end) else text[:end].rstrip()


def _plain(value: Any, param: str) -> Any:
    """A copy made of JSON's types alone, so that a template finds no methods but theirs."""
    if value is None or isinstance(value, (bool, str, int, float)):
        return value if type(value) in (bool, str, int, float, type(None)) else _base(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item, param) for key, item in value.items()}
    if isinstance(value, Iterable) and not isinstance(value, (bytes, bytearray)):
        return [_plain(item, param) for item in value]
    raise RequestError(f"{param}: {type(value).__name__} is not JSON data", param=param)


def _base(value: Any) -> Any:
    """A str, int or float out of a subclass of it (an enum's member, say)."""
    if isinstance(value, str):
        return str.__str__(value)
    return int.__int__(value) if isinstance(value, int) else float.__float__(value)
