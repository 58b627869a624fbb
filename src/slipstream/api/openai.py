"""The HTTP API's requests, under OpenAI's names with vLLM's extra sampling fields, and how a field is refused.

A field that would change the answer and that nothing here acts on is a 400, never dropped: `NEUTRAL` lists the known
ones with the values that ask for nothing, `WITHOUT_EFFECT` those that cannot change an answer, and any other name is
unknown. Null is the same as absent everywhere.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

import msgspec

from slipstream.errors import RequestError, UnsupportedField

Role = Literal["system", "developer", "user", "assistant", "tool", "function"]


class StreamOptions(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What a stream carries beside text.

    Parameters
    ----------
    include_usage
        Send a last chunk with the usage of the whole request.
    continuous_usage_stats
        With include_usage: every chunk carries the usage so far.
    include_obfuscation
        Padding against traffic analysis; only false is accepted.
    """

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    include_obfuscation: Literal[False] | None = None


class SamplingFields(msgspec.Struct, kw_only=True):
    """The fields that chat and text completions share. Abstract: requests are one of its two children."""

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    typical_p: float | None = None
    repetition_penalty: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logit_bias: dict[int, float] | None = None
    seed: int | None = None
    max_tokens: int | None = None
    min_tokens: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    bad_words: list[str] | None = None
    prompt_logprobs: int | None = None
    skip_special_tokens: bool | None = None
    add_special_tokens: bool | None = None
    return_token_ids: bool | None = None
    priority: int | None = None


class Message(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """One turn of a conversation. `content` is text or a list of text parts; the other fields go to the template.

    The last three are there because clients send back the messages that they got; only their empty values are taken.
    """

    role: Role
    content: str | list[dict[str, Any]] | None = None
    name: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    refusal: str | None = None
    annotations: tuple[()] | None = None
    audio: None = None
    function_call: None = None


class ChatRequest(SamplingFields, kw_only=True):
    """POST /v1/chat/completions.

    Parameters
    ----------
    messages
        The conversation so far.
    model
        The served model's name; absent: the served model.
    stream
        Send the reply as server-sent events while it is made.
    stream_options
        What a stream carries beside text.
    n
        Number of replies.
    temperature
        0 takes the most likely token each time; higher is more random.
    top_p
        Keep the most likely tokens that together reach this probability.
    top_k
        Keep this many of the most likely tokens; 0 or -1 keeps all.
    min_p
        Drop tokens less likely than this share of the most likely one.
    typical_p
        Keep the tokens whose surprise is nearest to the expected one, up to this probability.
    repetition_penalty
        Over 1: tokens of the prompt and the reply become less likely.
    frequency_penalty
        Subtracted from a token's logit for each time the reply has it.
    presence_penalty
        Subtracted once from the logit of each token that the reply has.
    logit_bias
        Added to the logits of these token ids, -100 to 100.
    seed
        The same seed and request give the same reply. Absent: drawn.
    max_tokens
        Most tokens of a reply. Absent: what the model's context leaves.
    max_completion_tokens
        OpenAI's newer name of max_tokens.
    min_tokens
        No stop token before this many tokens.
    stop
        Texts that end the reply; they are not part of it.
    stop_token_ids
        Token ids that end the reply.
    include_stop_str_in_output
        Keep the stop text or token in the reply.
    ignore_eos
        Go on after the model's own end of text.
    bad_words
        Words that the reply must not contain.
    logprobs
        Send the log probability of each token of the reply.
    top_logprobs
        With logprobs: also those of this many most likely tokens at each position, 0 to 20.
    prompt_logprobs
        Send the log probabilities of the prompt's tokens with this many alternatives (not with stream).
    skip_special_tokens
        Leave special tokens out of the text (default true).
    add_special_tokens
        Let the tokenizer add its special tokens around the rendered template (default false: templates write them).
    return_token_ids
        Send the prompt's and the reply's token ids.
    priority
        Lower is served sooner, where the engine's policy is priority.
    tools
        Functions described to the model through the chat template. Calls in the reply are not parsed.
    tool_choice
        none or auto.
    add_generation_prompt
        End the rendered prompt with the start of a reply (default true).
    continue_final_message
        Go on with the last message in place of a new one; needs add_generation_prompt: false.
    documents
        Documents handed to the chat template, for those that know what to do with them.
    chat_template_kwargs
        More variables for the chat template.
    """

    messages: list[Message]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: Any = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    documents: list[dict[str, Any]] | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class CompletionRequest(SamplingFields, kw_only=True):
    """POST /v1/completions. Fields that are not listed are those of a chat request.

    Parameters
    ----------
    prompt
        A text, a list of texts, a list of token ids, or a list of such lists.
    max_tokens
        Most tokens of a reply (default 16). 0 is allowed with echo: it scores the prompt.
    echo
        Start the text with the prompt; with logprobs, also those of the prompt's tokens.
    logprobs
        Send log probabilities, with this many alternatives at each position, 0 to 20.
    best_of
        Only the same number as n.
    suffix
        Not supported: text is continued at its end only.
    add_special_tokens
        Let the tokenizer add its special tokens, such as the begin-of-text token (default true).
    """

    prompt: str | list[Any]
    echo: bool | None = None
    logprobs: int | None = None
    best_of: int | None = None
    suffix: str | None = None


class TokenizeRequest(msgspec.Struct, kw_only=True):
    """POST /tokenize: the token ids of a text, or of a conversation through the chat template.

    Parameters
    ----------
    prompt
        The text. Exactly one of prompt and messages must be there.
    messages
        A conversation.
    add_special_tokens
        Let the tokenizer add its special tokens (default: true for a prompt, false for messages).
    return_token_strs
        Send each token's text too.
    add_generation_prompt
        End a conversation with the start of a reply (default true).
    """

    model: str | None = None
    prompt: str | None = None
    messages: list[Message] | None = None
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None
    add_generation_prompt: bool | None = None
    tools: list[dict[str, Any]] | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class DetokenizeRequest(msgspec.Struct, kw_only=True):
    """POST /detokenize: the text of token ids, special tokens included."""

    tokens: list[int]
    model: str | None = None


# Fields of OpenAI's and vLLM's requests that are not acted on, with the values that ask for nothing.
NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "allowed_token_ids": (),
    "audio": (),
    "cache_salt": (),
    "chat_template": (),
    "echo": (False,),
    "function_call": ("none",),
    "functions": ([],),
    "guided_choice": (),
    "guided_grammar": (),
    "guided_json": (),
    "guided_regex": (),
    "include_reasoning": (True,),
    "kv_transfer_params": (),
    "length_penalty": (1.0,),
    "logits_processors": ([],),
    "mm_processor_kwargs": ({},),
    "modalities": (["text"],),
    "moderation": (),
    "prediction": (),
    "prompt_embeds": (),
    "reasoning_effort": (),
    "request_id": (),
    "response_format": ({"type": "text"},),
    "return_tokens_as_token_ids": (False,),
    "service_tier": ("auto", "default"),
    "spaces_between_special_tokens": (True,),
    "store": (False,),
    "structured_outputs": (),
    "truncate_prompt_tokens": (),
    "use_beam_search": (False,),
    "verbosity": (),
    "web_search_options": (),
}

# Labels for the caller's own books, hints to a cache, and options of tool-call parsing, which there is none of.
WITHOUT_EFFECT = frozenset(
    {
        "metadata",
        "parallel_tool_calls",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "safety_identifier",
        "user",
    }
)

Body = TypeVar("Body", bound=msgspec.Struct)


def parse(body: Any, kind: type[Body], *, strict: bool = True) -> Body:
    """A decoded JSON value as a request. Not `strict`: text that reads as a number or a truth value is one.

    Raises RequestError naming the field and its path for a wrong type, UnsupportedField for a known field that is not
    acted on, RequestError `unknown_field` with the nearest name for any other.
    """
    if not isinstance(body, dict):
        raise RequestError(f"the body must be a JSON object, not {_json_name(body)}", code="invalid_type")
    fields = kind.__struct_fields__
    known = {}
    for name, value in body.items():
        if name in fields:
            known[name] = value
        elif name in NEUTRAL:
            refuse_unless_neutral(name, value, NEUTRAL[name])
        elif name not in WITHOUT_EFFECT:
            raise _unknown(name, fields)
    try:
        return msgspec.convert(known, kind, str_keys=True, strict=strict)
    except msgspec.ValidationError as error:
        raise _invalid(error) from None


def refuse_unless_neutral(name: str, value: Any, neutral: tuple[Any, ...]) -> None:
    """Accept null and the values in `neutral`. Raises UnsupportedField for others. True is not 1 here."""
    if value is None or any(type(value) is type(v) and value == v for v in neutral):
        return
    allowed = ", ".join(["null", *(msgspec.json.encode(v).decode() for v in neutral)])
    raise UnsupportedField(
        f"{name} is not supported: leave it out (accepted: {allowed})", param=name, code="unsupported_field"
    )


def _unknown(name: str, fields: tuple[str, ...]) -> RequestError:
    shown = name if len(name) <= 64 else name[:61] + "..."
    near = difflib.get_close_matches(shown, [*fields, *NEUTRAL, *WITHOUT_EFFECT], n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    return RequestError(f"unknown field {shown!r}{hint}", param=shown, code="unknown_field")


def _invalid(error: msgspec.ValidationError) -> RequestError:
    """msgspec says `Expected X, got Y - at `$.a[0].b``; the path becomes the param."""
    text, _, place = str(error).partition(" - at ")
    path = place.rpartition("`$")[2].rstrip("`").lstrip(".")
    if text.startswith("Object missing required field "):
        missing = text.rpartition(" ")[2].strip("`")
        path = f"{path}.{missing}" if path else missing
        return RequestError(f"{path} is required", param=path, code="missing_field")
    if text.startswith("Object contains unknown field "):
        unknown = text.rpartition(" ")[2].strip("`")
        path = f"{path}.{unknown}" if path else unknown
        return RequestError(f"unknown field {path!r}", param=path, code="unknown_field")
    return RequestError(f"{path}: {text[:1].lower()}{text[1:]}", param=path or None, code="invalid_type")


def _json_name(value: Any) -> str:
    names = {list: "an array", str: "a string", bool: "a boolean", int: "a number", float: "a number"}
    return names.get(type(value), "null")
