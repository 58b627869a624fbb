"""The settings of the measurements. The command line's flags are these fields."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from slipstream.engine.config import CpuKVDType
from slipstream.errors import ConfigError

SLO_METRICS = ("ttft", "tpot", "itl", "e2e")
PLOT_FORMATS = (".png", ".svg", ".pdf")


@dataclass(frozen=True)
class Span:
    """A length in tokens: every value from `low` to `high` is equally likely; equal ends fix it."""

    low: int
    high: int

    @classmethod
    def parse(cls, text: str, *, flag: str) -> Span:
        """Reads "128" or "32:512". Raises ConfigError naming the flag."""
        match = re.fullmatch(r"\s*(\d+)\s*(?::\s*(\d+)\s*)?", text)
        if match is None:
            raise ConfigError(f"{flag} takes a length such as 128 or a range such as 32:512, got {text!r}")
        low, high = int(match[1]), int(match[2] or match[1])
        if not 1 <= low <= high:
            raise ConfigError(f"{flag} must be at least 1 and in rising order, got {text!r}")
        return cls(low, high)


def parse_slos(items: tuple[str, ...]) -> dict[str, float]:
    """Limits in ms by metric, from ("ttft:200", "tpot:50"); one item may hold several. Raises ConfigError."""
    limits: dict[str, float] = {}
    for item in re.split(r"[\s,]+", " ".join(items).strip()):
        if not item:
            continue
        name, colon, limit = item.partition(":")
        if name not in SLO_METRICS or not colon or not re.fullmatch(r"\d+(\.\d+)?", limit):
            raise ConfigError(f"--slo takes {', '.join(SLO_METRICS)} with milliseconds, such as ttft:200; got {item!r}")
        limits[name] = float(limit)
    return limits


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """Settings of `slipstream bench serve`.

    Parameters
    ----------
    base_url
        Where the server is; a trailing /v1 may be there or not.
    endpoint
        Which of the two OpenAI endpoints to load.
    model
        The model to name in requests. None: the first that the server lists.
    api_key_variable
        Environment variable that holds the API key; it may be unset. The key itself is never a flag.
    requests
        How many requests to send after the warm-up.
    rate
        Requests per second, on average; inf sends all at once.
    arrivals
        poisson: independent arrivals, as from many users. constant: evenly spaced.
    concurrency
        Most requests in flight. One that has to wait for its turn still counts its latency from its scheduled arrival.
    prompt_tokens
        Length of random prompts: one number, or low:high for a uniform range.
    output_tokens
        Tokens to ask for: one number, or low:high for a uniform range.
    prompts
        JSONL file of prompts instead of random ones. A line has "prompt" (text or token ids) or "messages", and may
        have "max_tokens". It is read from the start again when it is shorter than `requests`.
    prompt_form
        ids: random token ids (completions only). words: random English words, for endpoints that take text only.
        auto: ids for completions, words for chat.
    vocab_size
        Random ids are drawn from 100 up to this. It must not be over the model's vocabulary.
    ignore_eos
        Ask the server to run to the full output length. An endpoint that does not know the field may refuse it:
        --no-ignore-eos.
    temperature
        Sampling temperature of every request.
    warmup
        Requests sent one after another and not counted, before the clock starts.
    seed
        Seed of arrivals, lengths and prompts. Equal seeds send equal loads.
    timeout
        Seconds after its start at which a request is given up and counted as an error.
    slo
        Limits for goodput in milliseconds, such as ttft:200 tpot:50, of ttft, tpot, itl (its mean) and e2e.
    output
        JSON report to write. None: bench-serve-DATE-TIME.json in the current folder.
    plot
        Plot to write (.png, .svg or .pdf). None: next to the report, as .png.
    """

    base_url: str = "http://127.0.0.1:8000"
    endpoint: Literal["completions", "chat"] = "completions"
    model: str | None = None
    api_key_variable: str = "OPENAI_API_KEY"
    requests: int = 100
    rate: float = math.inf
    arrivals: Literal["poisson", "constant"] = "poisson"
    concurrency: int | None = None
    prompt_tokens: str = "128"
    output_tokens: str = "64"
    prompts: Path | None = None
    prompt_form: Literal["auto", "ids", "words"] = "auto"
    vocab_size: int = 10_000
    ignore_eos: bool = True
    temperature: float = 0.0
    warmup: int = 2
    seed: int = 0
    timeout: float = 600.0
    slo: tuple[str, ...] = ()
    output: Path | None = None
    plot: Path | None = None

    def __post_init__(self) -> None:
        """Refuse settings that cannot work. Raises ConfigError."""
        least: Mapping[str, float] = {"requests": 1, "warmup": 0, "temperature": 0, "vocab_size": 101}
        for name, low in least.items():
            if getattr(self, name) < low:
                raise ConfigError(f"--{name.replace('_', '-')} must be at least {low}, got {getattr(self, name)}")
        if math.isnan(self.rate) or self.rate <= 0:
            raise ConfigError(f"--rate must be over 0 requests per second, or inf; got {self.rate}")
        if not self.timeout > 0:
            raise ConfigError(f"--timeout must be over 0 seconds, got {self.timeout}")
        if self.concurrency is not None and self.concurrency < 1:
            raise ConfigError(f"--concurrency must be at least 1, got {self.concurrency}")
        if self.endpoint == "chat" and self.prompt_form == "ids":
            raise ConfigError("--prompt-form ids works with --endpoint completions only: chat takes text")
        if not re.match(r"https?://[^/]", self.base_url):
            raise ConfigError(f"--base-url must start with http:// or https://, got {self.base_url!r}")
        if self.plot is not None and self.plot.suffix not in PLOT_FORMATS:
            raise ConfigError(f"--plot must end in {', '.join(PLOT_FORMATS)}, got {self.plot}")
        _ = self.prompt_span, self.output_span, self.limits

    @property
    def prompt_span(self) -> Span:
        """`prompt_tokens`, read."""
        return Span.parse(self.prompt_tokens, flag="--prompt-tokens")

    @property
    def output_span(self) -> Span:
        """`output_tokens`, read."""
        return Span.parse(self.output_tokens, flag="--output-tokens")

    @property
    def limits(self) -> dict[str, float]:
        """`slo` as limits in ms by metric."""
        return parse_slos(self.slo)

    @property
    def api_url(self) -> str:
        """The URL that ends in /v1."""
        return self.base_url.rstrip("/").removesuffix("/v1") + "/v1"


@dataclass(frozen=True, kw_only=True)
class AccuracyOptions:
    """Settings of `slipstream bench accuracy`.

    Parameters
    ----------
    precision
        Which roundings of the native kernels to measure.
    kv_dtype
        Types of the KV cache to measure each of them with. auto: the engine's choice.
    text
        A file of your own text to measure on, in contexts of 1,024 tokens. None: prose and a chat that come with
        Slipstream.
    json
        A file to write the numbers to.
    """

    precision: tuple[Literal["exact", "fast"], ...] = ("exact", "fast")
    kv_dtype: tuple[CpuKVDType, ...] = ("auto",)
    text: Path | None = None
    json: Path | None = None


@dataclass(frozen=True, kw_only=True)
class ReuseOptions:
    """Settings of `slipstream bench reuse`.

    Parameters
    ----------
    prompt
        A picture is made of each.
    size
        WIDTHxHEIGHT in pixels. None: the model's own.
    steps
        Denoising steps. None: as the model was made for.
    seed
        Of the first picture; the others have those that follow.
    every
        Step reuse to measure: the model runs in each so-manieth step.
    threshold
        Limits of first-block caching to measure (Flux).
    json
        A file to write the numbers to.
    """

    prompt: tuple[str, ...] = ("a red apple", "a smiling face", "a green tree", "a blue car")
    size: str | None = None
    steps: int | None = None
    seed: int = 0
    every: tuple[int, ...] = (2, 3)
    threshold: tuple[float, ...] = (0.05, 0.1, 0.2, 0.3)
    json: Path | None = None


@dataclass(frozen=True, kw_only=True)
class PoolOptions:
    """Settings of `slipstream bench pool`.

    Parameters
    ----------
    threads
        Threads to compare with one alone. None: as many as the process may use.
    rounds
        How often each setting is measured; the median counts.
    seconds
        How long each of these measurements takes.
    """

    threads: int | None = None
    rounds: int = 7
    seconds: float = 0.5

    def __post_init__(self) -> None:
        """Refuse settings that cannot work. Raises ConfigError."""
        if self.threads is not None and self.threads < 1:
            raise ConfigError(f"threads must be at least 1, got {self.threads}")
        if self.rounds < 1 or self.seconds <= 0:
            raise ConfigError(f"rounds and seconds must be over 0, got {self.rounds} and {self.seconds}")


@dataclass(frozen=True, kw_only=True)
class StepOptions:
    """Settings of `slipstream bench step`.

    Parameters
    ----------
    streams
        Numbers of sequences that decode together; each is a table.
    context
        Tokens that each of them has in the cache at first.
    prompt
        Length of the prompt whose prefill is a table; 0 for none.
    steps
        Decoding steps to measure.
    precision
        How the native kernels round activations.
    json
        Where to write the report.
    """

    streams: tuple[int, ...] = (1, 8, 32)
    context: int = 128
    prompt: int = 512
    steps: int = 200
    precision: Literal["exact", "fast"] = "exact"
    json: Path | None = None

    def __post_init__(self) -> None:
        """Refuse settings that cannot work. Raises ConfigError."""
        for name in ("context", "steps"):
            if getattr(self, name) < 1:
                raise ConfigError(f"--{name} must be at least 1, got {getattr(self, name)}")
        if not self.streams or min(self.streams) < 1:
            raise ConfigError("--streams takes numbers of at least 1, such as 1 8 32")
        if self.prompt < 0:
            raise ConfigError(f"--prompt must be at least 0, got {self.prompt}")
