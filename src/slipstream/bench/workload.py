"""What is sent and when: decided before the first request, from the seed alone."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from slipstream.bench.options import ServeOptions, Span
from slipstream.errors import ConfigError

FIRST_ID = 100
"""Below it, vocabularies keep their special tokens."""

_TEXT = (
    "time year people way day man thing woman life child world school state family student group country problem hand "
    "part place case week company system program question work government number night point home water room mother "
    "area money story fact month lot right study book eye job word business issue side kind head house service friend "
    "father power hour game line end member law car city community name president team minute idea body information "
    "back parent face others level office door health person art war history party result change morning reason "
    "research girl guy moment air teacher force education river summer stone green blue light dark small large"
)
WORDS = tuple(_TEXT.split())
"""Common words that the usual tokenizers hold as one token after a space."""


@dataclass(frozen=True)
class Planned:
    """One request of the load. `at`: seconds after the clock starts; `body`: its JSON, complete but for the model."""

    index: int
    at: float
    body: Mapping[str, Any]


def arrivals(count: int, rate: float, kind: str, rng: random.Random) -> list[float]:
    """`count` arrival times in seconds, the first at 0.

    poisson: exponential gaps with mean 1/rate; constant: gaps of 1/rate; an infinite rate puts all at 0.
    """
    if math.isinf(rate):
        return [0.0] * count
    gaps = [rng.expovariate(rate) if kind == "poisson" else 1.0 / rate for _ in range(count - 1)]
    return list(accumulate(gaps, initial=0.0))


def plan(options: ServeOptions) -> tuple[list[Planned], list[Planned]]:
    """The warm-up and the load.

    Arrivals, lengths and contents each have a generator of their own, so that changing one leaves the others alone.
    Raises ConfigError for a prompts file that cannot be read or used.
    """
    rngs = {name: random.Random(f"{options.seed}/{name}") for name in ("arrivals", "lengths", "prompts", "warm-up")}
    times = arrivals(options.requests, options.rate, options.arrivals, rngs["arrivals"])
    if options.prompts is not None:
        lines = read_prompts(options.prompts, options.endpoint)
        sources = [lines[i % len(lines)] for i in range(options.requests)]
        warm_sources = [lines[i % len(lines)] for i in range(options.warmup)]
    else:
        sources = [_random(options, rngs["lengths"], rngs["prompts"]) for _ in range(options.requests)]
        warm_sources = [_random(options, rngs["warm-up"], rngs["warm-up"]) for _ in range(options.warmup)]
    outputs = [_draw(options.output_span, rngs["lengths"]) for _ in sources]
    shared: dict[str, Any] = {
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": options.temperature,
        **({"ignore_eos": True} if options.ignore_eos else {}),
    }
    load = [
        Planned(i, at, {"max_tokens": tokens, **shared, **source})
        for i, (at, tokens, source) in enumerate(zip(times, outputs, sources, strict=True))
    ]
    warm_tokens = options.output_span.low
    warm = [Planned(i, 0.0, {"max_tokens": warm_tokens, **shared, **s}) for i, s in enumerate(warm_sources)]
    return warm, load


def _draw(span: Span, rng: random.Random) -> int:
    return rng.randint(span.low, span.high)


def _random(options: ServeOptions, lengths: random.Random, contents: random.Random) -> dict[str, Any]:
    length = _draw(options.prompt_span, lengths)
    form = options.prompt_form
    if form == "ids" or (form == "auto" and options.endpoint == "completions"):
        return {"prompt": [contents.randrange(FIRST_ID, options.vocab_size) for _ in range(length)]}
    text = " ".join(contents.choice(WORDS) for _ in range(length))
    return {"prompt": text} if options.endpoint == "completions" else {"messages": [{"role": "user", "content": text}]}


def read_prompts(path: Path, endpoint: str) -> list[dict[str, Any]]:
    """The bodies' prompt parts from a JSONL file. Raises ConfigError with the line at fault."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--prompts {path} cannot be read: {error}") from None
    bodies = [_line(f"{path}:{n}", line, endpoint) for n, line in enumerate(lines, 1) if line.strip()]
    if not bodies:
        raise ConfigError(f"--prompts {path} has no lines")
    return bodies


def _line(where: str, line: str, endpoint: str) -> dict[str, Any]:
    try:
        entry = json.loads(line)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{where} is not JSON: {error}") from None
    if not isinstance(entry, dict) or ("prompt" in entry) == ("messages" in entry):
        raise ConfigError(f'{where} needs an object with either "prompt" or "messages"')
    unknown = sorted(set(entry) - {"prompt", "messages", "max_tokens"})
    if unknown:
        raise ConfigError(f"{where}: nothing reads {', '.join(unknown)}; known are prompt, messages, max_tokens")
    limit = entry.get("max_tokens", 1)
    if not isinstance(limit, int) or limit < 1:
        raise ConfigError(f"{where}: max_tokens must be a whole number of at least 1, got {limit!r}")
    if endpoint == "chat" and "prompt" in entry:
        if not isinstance(entry["prompt"], str):
            raise ConfigError(f"{where} has token ids, which chat does not take: use --endpoint completions")
        entry["messages"] = [{"role": "user", "content": entry.pop("prompt")}]
    elif endpoint == "completions" and "messages" in entry:
        raise ConfigError(f"{where} has messages: use --endpoint chat")
    return entry
