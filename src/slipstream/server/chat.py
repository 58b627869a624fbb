"""POST /v1/chat/completions: from messages to work, and from the choices to OpenAI's chat shapes."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from msgspec import UNSET, UnsetType

from slipstream.api.openai import ChatRequest, refuse_unless_neutral
from slipstream.api.replies import (
    ChatChoice,
    ChatChunk,
    ChatCompletion,
    ChatLogprobs,
    ChunkChoice,
    ChunkDelta,
    ReplyMessage,
    Usage,
)
from slipstream.api.sampling import MAX_LOGPROBS
from slipstream.errors import RequestError
from slipstream.server.call import Call
from slipstream.server.front import Front, new_id
from slipstream.server.logprobs import TokenNames
from slipstream.server.prompts import encode_chat
from slipstream.server.sampling import check_shared, room, sampling_params
from slipstream.server.work import Work, make_work
from slipstream.text.choice import Choice, Delta


def count(request: ChatRequest) -> int:
    """Sequences that the request will run."""
    return max(1, request.n or 1)


async def prepare(front: Front, request: ChatRequest, call: Call) -> ChatReplies:
    """The request, ready to run. Raises RequestError for what it asks for in vain."""
    check_shared(request, policy=front.client.info.policy)
    refuse_unless_neutral("tool_choice", request.tool_choice, ("none", "auto"))
    top = _top(request)
    asked = _max_tokens(request)
    params = sampling_params(
        request, front.generation.sampling, logprobs=top, max_tokens=None if asked is None else asked[1]
    )
    prompt = await encode_chat(
        front,
        request.messages,
        tools=request.tools,
        add_generation_prompt=request.add_generation_prompt is not False,
        add_special=bool(request.add_special_tokens),
        variables=request.chat_template_kwargs,
        documents=request.documents,
        continue_final_message=bool(request.continue_final_message),
    )
    left = room(
        len(prompt.token_ids),
        max_model_len=front.client.info.max_model_len,
        max_prompt_tokens=front.config.max_prompt_tokens,
        param="messages",
        asked=asked,
    )
    work = make_work(
        front,
        request,
        call,
        id=new_id("chatcmpl"),
        params=params,
        prompts=[prompt],
        max_tokens=[left if asked is None else asked[1]],
        top=top,
    )
    return ChatReplies(work, TokenNames(front.tokenizer))


def _top(request: ChatRequest) -> int | None:
    """Alternatives at each position; None without logprobs."""
    top = request.top_logprobs
    if top is not None and not 0 <= top <= MAX_LOGPROBS:
        raise RequestError(f"top_logprobs must be between 0 and {MAX_LOGPROBS}, got {top}", param="top_logprobs")
    if top and not request.logprobs:
        raise RequestError("top_logprobs needs logprobs: true", param="top_logprobs", code="invalid_combination")
    return (top or 0) if request.logprobs else None


def _max_tokens(request: ChatRequest) -> tuple[str, int] | None:
    """The field that limits the reply, and its value."""
    if request.max_completion_tokens is None:
        return None if request.max_tokens is None else ("max_tokens", request.max_tokens)
    if request.max_tokens not in (None, request.max_completion_tokens):
        raise RequestError(
            "max_tokens and max_completion_tokens are two names of one limit and differ here: send one",
            param="max_tokens",
            code="invalid_combination",
        )
    if request.max_completion_tokens < 1:
        raise RequestError(
            f"max_completion_tokens must be at least 1, got {request.max_completion_tokens}",
            param="max_completion_tokens",
        )
    return "max_completion_tokens", request.max_completion_tokens


class ChatReplies:
    """Writes chat's answers; see `work.Replies`."""

    def __init__(self, work: Work, names: TokenNames) -> None:
        self.work = work
        self._names = names

    def whole(self, replies: Sequence[Delta]) -> msgspec.Struct:
        """A chat.completion."""
        work = self.work
        prompt_logprobs = replies[0].prompt_logprobs
        return ChatCompletion(
            id=work.id,
            created=work.created,
            model=work.model,
            choices=[self._choice(c, d) for c, d in zip(work.choices, replies, strict=True)],
            usage=work.usage(),
            prompt_logprobs=(
                UNSET
                if work.params.prompt_logprobs is None
                else self._names.prompt(prompt_logprobs or [], work.params.prompt_logprobs)
            ),
            prompt_token_ids=work.prompts[0].token_ids if work.return_token_ids else UNSET,
        )

    def _choice(self, choice: Choice, reply: Delta) -> ChatChoice:
        return ChatChoice(
            index=choice.index,
            message=ReplyMessage(content=reply.text),
            logprobs=self._logprobs(reply),
            finish_reason=reply.finish_reason or "stop",
            stop_reason=reply.stop_reason,
            token_ids=reply.token_ids if self.work.return_token_ids else UNSET,
        )

    def _logprobs(self, delta: Delta) -> ChatLogprobs | None:
        return None if self.work.top is None else self._names.chat(delta.positions, self.work.top)

    def opening(self) -> list[msgspec.Struct]:
        """A chunk with the role for each choice; the first also has the prompt's ids where they are wanted."""
        chunks = [
            self._chunk(ChunkChoice(index=choice.index, delta=ChunkDelta(role="assistant", content="")))
            for choice in self.work.choices
        ]
        if self.work.return_token_ids:
            chunks[0].prompt_token_ids = self.work.prompts[0].token_ids
        return list(chunks)

    def chunks(self, choice: Choice, delta: Delta) -> list[msgspec.Struct]:
        """A chunk with the text, if there is any, and one with the finish reason at the end."""
        chunks: list[msgspec.Struct] = []
        ids: list[int] | UnsetType = delta.token_ids if self.work.return_token_ids else UNSET
        if delta.text or delta.positions or (ids is not UNSET and ids):
            text = ChunkDelta(content=delta.text)
            part = ChunkChoice(index=choice.index, delta=text, logprobs=self._logprobs(delta), token_ids=ids)
            chunks.append(self._chunk(part))
        if delta.finish_reason is not None:
            end = ChunkChoice(
                index=choice.index,
                delta=ChunkDelta(),
                finish_reason=delta.finish_reason,
                stop_reason=delta.stop_reason,
            )
            chunks.append(self._chunk(end))
        return chunks

    def _chunk(self, choice: ChunkChoice) -> ChatChunk:
        work = self.work
        usage: Usage | UnsetType | None = UNSET
        if work.include_usage:
            usage = work.usage() if work.continuous_usage else None
        return ChatChunk(id=work.id, created=work.created, model=work.model, choices=[choice], usage=usage)

    def closing(self, usage: Usage) -> msgspec.Struct:
        """The chunk of the usage."""
        work = self.work
        return ChatChunk(id=work.id, created=work.created, model=work.model, choices=[], usage=usage)
