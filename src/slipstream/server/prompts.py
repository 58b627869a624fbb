"""Prompts: what a request sends, as token ids. The heavy part runs in the front's threads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from slipstream.api.openai import Message
from slipstream.errors import NoChatTemplate, NoTokenizer, PromptTooLong, RequestError, UnsupportedField
from slipstream.server.front import Front
from slipstream.text import Tokenizer

_RESERVED_VARIABLES = frozenset(
    {"self", "messages", "tools", "documents", "add_generation_prompt", "continue_final_message"}
)


@dataclass(frozen=True)
class Prompt:
    """Token ids, and the text that they were made of (None where ids were sent)."""

    token_ids: list[int]
    text: str | None


def need_tokenizer(front: Front, param: str) -> Tokenizer:
    """The tokenizer. Raises NoTokenizer where the checkpoint has none."""
    if front.tokenizer is None:
        raise NoTokenizer(
            f"{param} needs a tokenizer, and this model has none: send token ids to /v1/completions",
            param=param,
            code="no_tokenizer",
        )
    return front.tokenizer


def split(prompt: str | list[Any], param: str = "prompt") -> list[str | list[int]]:
    """The prompts in a request's field `param`: one text, several, one list of ids, or several such lists.

    Raises RequestError with the path of an entry of another type.
    """
    if isinstance(prompt, str):
        return [prompt]
    if not prompt:
        raise RequestError(f"{param} is an empty list", param=param, code="empty_prompt")
    if all(_is_id(entry) for entry in prompt):
        return [prompt]
    if all(isinstance(entry, str) for entry in prompt):
        return list(prompt)
    if not all(isinstance(entry, list) for entry in prompt):
        raise RequestError(
            f"{param} must be a text, a list of texts, a list of token ids, or a list of lists of token ids",
            param=param,
            code="invalid_type",
        )
    for i, ids in enumerate(prompt):
        wrong = next((j for j, entry in enumerate(ids) if not _is_id(entry)), None)
        if wrong is not None:
            path = f"{param}[{i}][{wrong}]"
            raise RequestError(f"{path}: expected a token id", param=path, code="invalid_type")
    return list(prompt)


def _is_id(entry: Any) -> bool:
    return isinstance(entry, int) and not isinstance(entry, bool)


async def encode(front: Front, prompts: Sequence[str | list[int]], *, add_special: bool) -> list[Prompt]:
    """The prompts as token ids. Raises RequestError for an empty one and for ids outside the vocabulary."""
    made = []
    for i, prompt in enumerate(prompts):
        param = "prompt" if len(prompts) == 1 else f"prompt[{i}]"
        if isinstance(prompt, str):
            made.append(Prompt(await encode_text(front, prompt, param, add_special=add_special), prompt))
        else:
            made.append(Prompt(prompt, None))
        check_ids(made[-1].token_ids, front.client.info.vocab_size, param)
    return made


async def encode_text(front: Front, text: str, param: str, *, add_special: bool, bounded: bool = True) -> list[int]:
    """A text's ids. Raises NoTokenizer, and where it is `bounded` PromptTooLong for one that is sure not to fit."""
    tokenizer = need_tokenizer(front, param)
    if bounded:
        check_extent(front, tokenizer, text, param)
    return await front.in_thread(lambda: tokenizer.encode(text, add_special=add_special))


async def encode_chat(
    front: Front,
    messages: Sequence[Message],
    *,
    tools: list[dict[str, Any]] | None,
    add_generation_prompt: bool,
    add_special: bool,
    variables: dict[str, Any] | None,
    documents: list[dict[str, Any]] | None = None,
    continue_final_message: bool = False,
    bounded: bool = True,
) -> Prompt:
    """A conversation through the chat template. Raises NoTokenizer, NoChatTemplate, RequestError.

    `bounded`: as for `encode_text`.
    """
    tokenizer = need_tokenizer(front, "messages")
    if not tokenizer.has_chat_template:
        raise NoChatTemplate(
            "this model has no chat template (it is a base model): use /v1/completions, "
            "or start the server with --chat-template FILE",
            param="messages",
            code="no_chat_template",
        )
    if not messages:
        raise RequestError("messages is empty: send at least one", param="messages", code="empty_prompt")
    reserved = sorted(_RESERVED_VARIABLES.intersection(variables or {}))
    if reserved:
        raise RequestError(
            f"chat_template_kwargs must not set {reserved[0]}: it has a field of its own",
            param=f"chat_template_kwargs.{reserved[0]}",
            code="reserved_variable",
        )
    turns = [_turn(message, f"messages[{i}]") for i, message in enumerate(messages)]

    def render() -> Prompt:
        try:
            text = tokenizer.apply_chat_template(
                turns,
                tools=tools,
                documents=documents,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                **(variables or {}),
            )
        except RecursionError:
            raise RequestError("the request is nested too deeply for the chat template", param="messages") from None
        if bounded:
            check_extent(front, tokenizer, text, "messages")
        return Prompt(tokenizer.encode(text, add_special=add_special), text)

    prompt = await front.in_thread(render)
    check_ids(prompt.token_ids, front.client.info.vocab_size, "messages")
    return prompt


def check_extent(front: Front, tokenizer: Tokenizer, text: str, param: str) -> None:
    """Raises PromptTooLong for a text that cannot fit, however it is cut: encoding megabytes takes many seconds."""
    most, given = tokenizer.most_characters, front.config.max_prompt_tokens
    longest = front.client.info.max_model_len - 1
    longest = longest if given is None else min(given, longest)
    if most is not None and len(text) > most * longest:
        raise PromptTooLong(
            f"the prompt has {len(text)} characters, at least {-(-len(text) // most)} tokens, and this server takes "
            f"at most {longest}: shorten the prompt",
            param=param,
            code="context_length_exceeded",
        )


def check_ids(ids: Sequence[int], vocab_size: int, param: str) -> None:
    """Raises RequestError for no ids and for ids outside the vocabulary."""
    if not ids:
        raise RequestError(f"{param} is empty: send at least one token", param=param, code="empty_prompt")
    if not (min(ids) >= 0 and max(ids) < vocab_size):
        at = next(i for i, token in enumerate(ids) if not 0 <= token < vocab_size)
        raise RequestError(
            f"{param}[{at}]: token id {ids[at]} is outside the vocabulary of {vocab_size}",
            param=f"{param}[{at}]",
            code="invalid_token_id",
        )


def _turn(message: Message, path: str) -> dict[str, Any]:
    """A message as templates know it: empty fields left out, developer called system."""
    fields = {name: getattr(message, name) for name in ("name", "tool_calls", "tool_call_id", "reasoning_content")}
    return {
        "role": "system" if message.role == "developer" else message.role,
        "content": _content(message.content, f"{path}.content"),
        **{name: value for name, value in fields.items() if value is not None},
    }


def _content(content: str | list[dict[str, Any]] | None, path: str) -> str | list[dict[str, Any]]:
    """The text, or its parts, checked: templates read the one or the other."""
    if not isinstance(content, list):
        return content or ""
    for i, part in enumerate(content):
        if part.get("type") != "text":
            raise UnsupportedField(
                f"{path}[{i}]: only parts of type text are supported",
                param=f"{path}[{i}].type",
                code="unsupported_field",
            )
        if not isinstance(part.get("text"), str):
            raise RequestError(f"{path}[{i}].text: expected a text", param=f"{path}[{i}].text", code="invalid_type")
    return content
