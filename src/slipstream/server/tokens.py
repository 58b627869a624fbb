"""POST /tokenize and /detokenize, in vLLM's shapes."""

from __future__ import annotations

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from slipstream.api.openai import DetokenizeRequest, TokenizeRequest
from slipstream.api.replies import Detokenized, Tokenized
from slipstream.errors import RequestError
from slipstream.server.body import read_request
from slipstream.server.call import call_of, deadline
from slipstream.server.front import Front
from slipstream.server.logprobs import TokenNames
from slipstream.server.prompts import encode_chat, encode_text, need_tokenizer


class TokenEndpoints:
    """The two endpoints of one server."""

    def __init__(self, front: Front) -> None:
        self.front = front

    async def tokenize(self, request: Request) -> Response:
        """The ids of a text or of a conversation."""
        front = self.front
        front.check_open()
        async with deadline(front.config.request_timeout, call_of(request.scope)):
            body = await read_request(request, TokenizeRequest, front.config.max_body_bytes)
            front.check_model(body.model)
            ids = await self._ids(body)
        names = TokenNames(front.tokenizer)
        return _json(
            Tokenized(
                count=len(ids),
                max_model_len=front.client.info.max_model_len,
                tokens=ids,
                token_strs=[names.text(token) for token in ids] if body.return_token_strs else None,
            )
        )

    async def _ids(self, body: TokenizeRequest) -> list[int]:
        if (body.prompt is None) == (body.messages is None):
            raise RequestError("send exactly one of prompt and messages", param="prompt", code="invalid_combination")
        if body.messages is not None:
            prompt = await encode_chat(
                self.front,
                body.messages,
                tools=body.tools,
                add_generation_prompt=body.add_generation_prompt is not False,
                add_special=bool(body.add_special_tokens),
                variables=body.chat_template_kwargs,
                bounded=False,
            )
            return prompt.token_ids
        text = body.prompt or ""
        add_special = body.add_special_tokens is not False
        return await encode_text(self.front, text, "prompt", add_special=add_special, bounded=False)

    async def detokenize(self, request: Request) -> Response:
        """The text of ids."""
        front = self.front
        front.check_open()
        async with deadline(front.config.request_timeout, call_of(request.scope)):
            body = await read_request(request, DetokenizeRequest, front.config.max_body_bytes)
            front.check_model(body.model)
            tokenizer = need_tokenizer(front, "tokens")
            vocab = tokenizer.vocab_size
            wrong = next((i for i, token in enumerate(body.tokens) if not 0 <= token < vocab), None)
            if wrong is not None:
                raise RequestError(
                    f"tokens[{wrong}]: token id {body.tokens[wrong]} is outside the vocabulary of {vocab}",
                    param=f"tokens[{wrong}]",
                    code="invalid_token_id",
                )
            text = await front.in_thread(lambda: tokenizer.decode(body.tokens, skip_special=False))
        return _json(Detokenized(prompt=text))


def _json(reply: msgspec.Struct) -> Response:
    return Response(msgspec.json.encode(reply), media_type="application/json")
