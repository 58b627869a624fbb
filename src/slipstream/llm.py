"""`LLM`: the engine in this process, for scripts and notebooks, with vLLM's calls and outputs."""

from __future__ import annotations

import itertools
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast, get_args, get_origin, get_type_hints

import msgspec
import numpy as np
from tqdm import tqdm

from slipstream.api.engine import POOLED, EngineRequest, PoolingInfo, TokenLogprobs, TokenOutput
from slipstream.api.outputs import (
    ClassificationOutput,
    CompletionOutput,
    EmbeddingOutput,
    FinishReason,
    Logprob,
    PoolingRequestOutput,
    RequestOutput,
    ScoringOutput,
)
from slipstream.api.sampling import SamplingParams, draw_seed
from slipstream.checkpoint import Progress, open_checkpoint, resolve
from slipstream.checkpoint.progress import silent
from slipstream.engine.config import EngineConfig
from slipstream.engine.start import start
from slipstream.errors import ConfigError, NoTokenizer, RequestError, RequestFailed
from slipstream.text import Tokenizer, load_tokenizer
from slipstream.text.choice import Choice
from slipstream.text.pairs import Pooled
from slipstream.text.pooling import check_dimensions, check_length, finished, limit_of, pairs, scoring
from slipstream.text.prompts import Prompt, TokensPrompt, prompts_of, text_or_ids

Message: TypeAlias = Mapping[str, Any]


class LLM:
    """A model that answers in this process. Not thread safe.

    >>> from slipstream import LLM, SamplingParams
    >>> llm = LLM("smollm2-135m")
    >>> llm.generate("The capital of France is", SamplingParams(temperature=0, max_tokens=2))[0].outputs[0].text
    ' Paris.'
    """

    def __init__(self, model: str | Path = "smollm2-135m", *, progress: Progress = silent, **settings: Any) -> None:
        """Load `model` (a name, folder or GGUF file, see `slipstream serve`) and compile it.

        `settings` are `EngineConfig`'s fields: dtype, max_seqs, max_model_len, kv_bytes, ... `progress` gets the stages
        of the download and the start. Raises SlipstreamError's subclasses, with what to do about it.
        """
        config = _engine_config(settings)
        self.checkpoint = open_checkpoint(resolve(str(model), progress=progress))
        self.tokenizer: Tokenizer | None = (
            None if self.checkpoint.tokenizer is None else load_tokenizer(self.checkpoint.tokenizer)
        )
        self.engine = start(self.checkpoint, config, progress)
        self._ids = itertools.count()

    def default_sampling_params(self) -> SamplingParams:
        """`SamplingParams()` with the values that the checkpoint suggests."""
        known = {name: value for name, value in self.checkpoint.generation.sampling.items() if name in _FIELDS}
        return msgspec.convert(known, SamplingParams, strict=False)

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
    ) -> list[RequestOutput]:
        """Continue each prompt; outputs in the prompts' order. All run together, batched as they fit.

        A prompt is text, token ids, or a dict with `prompt` or `prompt_token_ids`. `params`: one for all, one for each,
        or None for the checkpoint's own. Raises RequestError for a prompt or parameter that cannot be served, before
        anything runs.
        """
        each = prompts_of(prompts)
        runs = [self._run(prompt, p) for prompt, p in zip(each, self._params(params, len(each)), strict=True)]
        with self._submitted(runs), tqdm(total=len(runs), desc="prompts", disable=not use_tqdm) as bar:
            tokens = 0
            for run, output in self._outputs(runs):
                tokens += len(output.token_ids)
                if run.output.finished:
                    bar.update()
                    bar.set_postfix_str(f"{tokens / max(bar.format_dict['elapsed'], 1e-9):.1f} tok/s")
        return [run.output for run in runs]

    def embed(
        self,
        prompts: Prompt | Sequence[Prompt],
        *,
        dimensions: int | None = None,
        normalize: bool | None = None,
        truncate_prompt_tokens: int | None = None,
        use_tqdm: bool = True,
    ) -> list[PoolingRequestOutput[EmbeddingOutput]]:
        """A vector of each prompt, in the prompts' order, from an embedding model or with `runner="pooling"`.

        `dimensions`, `normalize`, `truncate_prompt_tokens`: as in the API's /v1/embeddings.
        """
        info = self._pools("embed")
        check_dimensions(dimensions, info)
        texts = self._encoded(prompts, truncate_prompt_tokens)
        unit = info.normalize if normalize is None else normalize
        made = [finished(one, dimensions=dimensions, normalize=unit).tolist() for one in self._vectors(texts, use_tqdm)]
        return [
            PoolingRequestOutput(str(next(self._ids)), EmbeddingOutput(vector), text.token_ids)
            for vector, text in zip(made, texts, strict=True)
        ]

    def score(
        self,
        text_1: str | Sequence[str],
        text_2: str | Sequence[str],
        *,
        instruction: str | None = None,
        truncate_prompt_tokens: int | None = None,
        use_tqdm: bool = True,
    ) -> list[PoolingRequestOutput[ScoringOutput]]:
        """How well texts go together: one with each of the others, or two lists side by side.

        A reranker reads both texts of a pair at once; of an embedding model it is the cosine of their vectors.
        `instruction`: what makes them go together, for a model that is asked in words (Qwen3-Reranker).
        """
        info, longest, given = self._pools("embed", "score"), self.engine.info.max_model_len, pairs(text_1, text_2)
        most = limit_of(truncate_prompt_tokens, longest)
        made = scoring(self._tokenizer("text"), info, longest, given, most=most, instruction=instruction)
        scores = made.scores(self._vectors(made.inputs, use_tqdm))
        ids = [one.token_ids for one in made.inputs] if info.task == "score" else [[]] * len(scores)
        return [
            PoolingRequestOutput(str(next(self._ids)), ScoringOutput(score), tokens)
            for score, tokens in zip(scores, ids, strict=True)
        ]

    def classify(
        self,
        prompts: Prompt | Sequence[Prompt],
        *,
        truncate_prompt_tokens: int | None = None,
        use_tqdm: bool = True,
    ) -> list[PoolingRequestOutput[ClassificationOutput]]:
        """The share of each of a classifier's labels, for each prompt; `engine.info.pooling.labels` names them."""
        self._pools("classify")
        texts = self._encoded(prompts, truncate_prompt_tokens)
        return [
            PoolingRequestOutput(str(next(self._ids)), ClassificationOutput(shares.tolist()), text.token_ids)
            for shares, text in zip(self._vectors(texts, use_tqdm), texts, strict=True)
        ]

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> list[RequestOutput]:
        """Answer one conversation, or several. Raises NoChatTemplate for a base model."""
        given: object = messages
        if not isinstance(given, Sequence) or isinstance(given, str):
            raise RequestError(
                'messages must be a list such as [{"role": "user", "content": "Hello"}], '
                f"got {type(messages).__name__}",
                param="messages",
            )
        several = bool(messages) and not isinstance(messages[0], Mapping)
        conversations = cast(Sequence[Sequence[Message]], messages if several else [messages])
        options = {"tools": tools, "add_generation_prompt": add_generation_prompt, **(chat_template_kwargs or {})}
        prompts = [self._chat_prompt(conversation, options) for conversation in conversations]
        return self.generate(prompts, params, use_tqdm=use_tqdm)

    def stream_chat(
        self,
        messages: Sequence[Message],
        params: SamplingParams | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> Generator[RequestOutput, None, None]:
        """Answer one conversation as it is made: the same `RequestOutput`, grown by each step.

        Closing the iterator stops the reply.
        """
        prompt = self._chat_prompt(messages, {"tools": tools, **(chat_template_kwargs or {})})
        run = self._run(prompt, params or self.default_sampling_params())
        with self._submitted([run]):
            for _ in self._outputs([run]):
                yield run.output

    def _chat_prompt(self, messages: Sequence[Message], options: Mapping[str, Any]) -> TokensPrompt:
        tokenizer = self._tokenizer("a conversation")
        return {"prompt_token_ids": tokenizer.encode_chat(tokenizer.apply_chat_template(messages, **options))}

    def _tokenizer(self, what: str) -> Tokenizer:
        if self.tokenizer is None:
            raise NoTokenizer(
                f"{self.checkpoint.path} has no tokenizer: send token ids in place of {what}", param="prompt"
            )
        return self.tokenizer

    def _params(self, params: SamplingParams | Sequence[SamplingParams] | None, count: int) -> list[SamplingParams]:
        if params is None or isinstance(params, SamplingParams):
            return [params or self.default_sampling_params()] * count
        if not isinstance(params, Sequence):
            raise RequestError(f"params must be SamplingParams, got {type(params).__name__}", param="params")
        if len(params) != count:
            raise RequestError(
                f"{count} prompts and {len(params)} SamplingParams: send one for each, or one", param="params"
            )
        return list(params)

    def _pools(self, *tasks: str) -> PoolingInfo:
        """What the engine makes of texts. Raises RequestError where it is none of `tasks`."""
        info = self.engine.info.pooling
        if info is None or info.task not in tasks:
            what = "generates text" if info is None else f"makes vectors to {info.task} texts"
            hint = '; LLM(..., runner="pooling") makes vectors with it' if info is None else ""
            raise RequestError(f"this model {what}{hint}", code="wrong_task")
        return info

    def _encoded(self, prompts: Prompt | Sequence[Prompt], truncate: int | None) -> list[Pooled]:
        """Token ids of prompts to be pooled. Raises RequestError for one that is too long."""
        longest = self.engine.info.max_model_len
        most = limit_of(truncate, longest)
        texts = []
        for prompt in prompts_of(prompts):
            given = text_or_ids(prompt)
            ids = self._tokenizer("text").encode_cut(given, most=most) if isinstance(given, str) else given[:most]
            check_length(len(ids), longest, "the prompt")
            texts.append(Pooled(ids))
        return texts

    def _vectors(self, texts: Sequence[Pooled], use_tqdm: bool) -> list[np.ndarray]:
        """The engine's vectors of texts, all run together."""
        requests = [
            EngineRequest(
                id=str(next(self._ids)), prompt_token_ids=text.token_ids, sampling=POOLED, second_from=text.second_from
            )
            for text in texts
        ]
        found: dict[str, np.ndarray] = {}
        with tqdm(total=len(texts), desc="texts", disable=not use_tqdm) as bar:
            try:
                for request in requests:
                    self.engine.add(request)
                while self.engine.has_work:
                    for output in self.engine.step():
                        if output.pooled is not None:
                            found[output.id] = np.frombuffer(output.pooled, "<f4")
                            bar.update()
            finally:
                for request in requests:
                    self.engine.abort(request.id)
        if len(found) < len(requests):
            raise RequestFailed(f"the engine stopped with {len(requests) - len(found)} texts left")
        return [found[request.id] for request in requests]

    def _run(self, prompt: Prompt, params: SamplingParams) -> _Run:
        """Everything about one prompt: its requests to the engine and the output that they fill."""
        if self.engine.info.pooling is not None:
            raise RequestError("this model makes vectors and generates nothing: use embed or score", code="wrong_task")
        if not isinstance(params, SamplingParams):
            raise RequestError(f"params must be SamplingParams, got {type(params).__name__}", param="params")
        given = text_or_ids(prompt)
        text = given if isinstance(given, str) else None
        ids = self._tokenizer("text").encode(given) if isinstance(given, str) else given
        vocab_size = self.engine.info.vocab_size
        for token in ids:
            if not 0 <= token < vocab_size:
                raise RequestError(
                    f"token id {token} is outside the model's vocabulary of {vocab_size}", param="prompt"
                )
        left = max(1, self.engine.info.max_model_len - len(ids))
        seed = draw_seed() if params.seed is None else params.seed
        name = str(next(self._ids))
        tokenizer = self.tokenizer if params.detokenize else None
        if params.stop_strings and tokenizer is None:
            why = "set detokenize" if self.tokenizer else "this model has no tokenizer: use stop_token_ids"
            raise RequestError(f"stop strings are found in text; {why}", param="stop")
        choices = []
        for child in range(params.n):
            sampling = params.for_tokens(
                child=child,
                seed=seed,
                max_tokens=min(params.max_tokens or left, left),
                eos_token_ids=self.checkpoint.generation.eos_token_ids,
                vocab_size=vocab_size,
                encode_bad_word=None if self.tokenizer is None else self.tokenizer.bad_word_ids,
            )
            choices.append(
                Choice(
                    child,
                    EngineRequest(id=f"{name}-{child}", prompt_token_ids=ids, sampling=sampling),
                    tokenizer,
                    stop=params.stop_strings,
                    skip_special=params.skip_special_tokens,
                    include_stop=params.include_stop_str_in_output,
                    min_tokens=params.min_tokens,
                    eos_token_ids=self.checkpoint.generation.eos_token_ids,
                )
            )
        outputs = [
            CompletionOutput(
                index=choice.index,
                text="",
                token_ids=[],
                cumulative_logprob=None if params.logprobs is None else 0.0,
                logprobs=None if params.logprobs is None else [],
            )
            for choice in choices
        ]
        return _Run(RequestOutput(name, text, ids, outputs=outputs), choices, self.tokenizer)

    @contextmanager
    def _submitted(self, runs: Sequence[_Run]) -> Iterator[None]:
        """Requests are in the engine inside the block; whatever ends it, none is left there."""
        requests = [choice.request for run in runs for choice in run.choices]
        try:
            for request in requests:
                self.engine.add(request)
            yield
        finally:
            for request in requests:
                self.engine.abort(request.id)

    def _outputs(self, runs: Sequence[_Run]) -> Iterator[tuple[_Run, TokenOutput]]:
        """Step until all runs have finished; each output is in its run's `RequestOutput` when it comes out here."""
        owners = {choice.request.id: (run, choice) for run in runs for choice in run.choices}
        while owners:
            if not self.engine.has_work:
                raise RequestFailed(f"the engine stopped with {len(owners)} requests unanswered")
            for output in self.engine.step():
                if output.id not in owners:
                    continue
                run, choice = owners[output.id]
                if run.take(choice, output):
                    del owners[output.id]
                    if output.finish_reason is None:  # a stop string ended it, of which the engine knows nothing
                        self.engine.abort(output.id)
                yield run, output


@dataclass
class _Run:
    """One prompt's way through the engine."""

    output: RequestOutput
    choices: list[Choice]
    tokenizer: Tokenizer | None

    def take(self, choice: Choice, output: TokenOutput) -> bool:
        """Add what a step gave to one of the choices; True when that choice has ended."""
        delta = choice.feed(output, 0.0)
        out = self.output.outputs[choice.index]
        out.text += delta.text
        out.token_ids += delta.token_ids
        if out.logprobs is not None and output.logprobs is not None:
            for at in output.logprobs[: len(delta.token_ids)]:
                out.logprobs.append(self._entry(at))
                out.cumulative_logprob = (out.cumulative_logprob or 0.0) + at.logprob
        if delta.prompt_logprobs is not None:
            self.output.prompt_logprobs = [None, *(self._entry(at) for at in delta.prompt_logprobs)]
        if output.cached_tokens is not None:
            self.output.num_cached_tokens = max(self.output.num_cached_tokens, output.cached_tokens)
        if delta.finish_reason is None:
            return False
        out.finish_reason = cast(FinishReason, delta.finish_reason)
        out.stop_reason = delta.stop_reason
        self.output.finished = all(o.finished() for o in self.output.outputs)
        return True

    def _entry(self, at: TokenLogprobs) -> dict[int, Logprob]:
        """vLLM's form of one position: the best tokens by id, and the chosen one."""
        best = zip(at.top_ids, at.top_logprobs, itertools.count(1), strict=False)
        entry = {token: Logprob(logprob, rank, self._text(token)) for token, logprob, rank in best}
        return {at.token_id: Logprob(at.logprob, at.rank, self._text(at.token_id))} | entry

    def _text(self, token: int) -> str | None:
        known = self.tokenizer is not None and token < self.tokenizer.vocab_size
        return self.tokenizer.token_text(token) if known and self.tokenizer is not None else None


_FIELDS = frozenset(SamplingParams.__struct_fields__)


def _engine_config(settings: Mapping[str, Any]) -> EngineConfig:
    """`EngineConfig(**settings)`, types checked. Raises ConfigError naming the setting."""
    known = [field.name for field in fields(EngineConfig)]
    for name in settings:
        if name not in known:
            near = get_close_matches(name, known, 1)
            raise ConfigError(f"LLM has no setting {name}" + (f"; did you mean {near[0]}?" if near else ""))
    try:
        return msgspec.convert(dict(settings), EngineConfig)
    except msgspec.ValidationError as error:
        hints = get_type_hints(EngineConfig)
        wrong = next((name for name in settings if f"$.{name}`" in str(error)), "")
        choices = get_args(hints.get(wrong)) if get_origin(hints.get(wrong)) is Literal else ()
        wanted = f"{wrong} must be one of {', '.join(choices)}, got {settings[wrong]!r}" if choices else str(error)
        raise ConfigError(f"LLM: {wanted}") from error
