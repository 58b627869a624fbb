"""The engine's border: requests in, token outputs and statistics out. The same structs cross the worker's socket."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec

from slipstream.api.outputs import FinishReason
from slipstream.api.sampling import TokenSampling


class EngineRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One sequence to continue. `output_token_ids` holds tokens that were generated before (a replay after a crash):
    they count as output for penalties, `min_tokens` and `max_tokens`, and are not sent again.

    `priority`: lower is sooner (vLLM's sense). `arrival`: seconds of the front's monotonic clock, for ordering.

    An engine that pools (`EngineInfo.pooling`) makes one vector of the prompt; `sampling` must be POOLED.
    `second_from`: the first token of the second text, where the prompt is a pair of texts that the model tells apart.
    """

    id: str
    prompt_token_ids: list[int]
    sampling: TokenSampling
    output_token_ids: list[int] = []
    priority: int = 0
    arrival: float = 0.0
    second_from: int | None = None


class TokenLogprobs(msgspec.Struct, frozen=True, array_like=True):
    """Log probabilities at one position: the chosen token's, its rank from 1, and the most likely alternatives."""

    token_id: int
    logprob: float
    rank: int
    top_ids: list[int]
    top_logprobs: list[float]


class TokenOutput(msgspec.Struct, frozen=True, kw_only=True):
    """What one step produced for one request. `finish_reason` is set in its last output.

    `token_ids` includes a stop token if one was sampled (`stop_reason` then names it; None for `length`).
    `prompt_logprobs` comes once, with the first output: one entry for each prompt token from the second on.
    The first output alone has `cached_tokens` (prompt tokens served from the prefix cache) and two times in seconds:
    `queue_seconds`, from the engine's taking the request to its first step, and `prefill_seconds`, from there to this
    output.
    `pooled`: the prompt's vector, float32 in little-endian order; the only output of a request for one.
    `handed`: this worker is done with the request, which has not ended: another one goes on with it.
    """

    id: str
    token_ids: list[int]
    logprobs: list[TokenLogprobs] | None = None
    prompt_logprobs: list[TokenLogprobs] | None = None
    cached_tokens: int | None = None
    queue_seconds: float | None = None
    prefill_seconds: float | None = None
    finish_reason: FinishReason | None = None
    stop_reason: int | None = None
    error: str | None = None
    pooled: bytes | None = None
    handed: bool = False


POOLED = TokenSampling(max_tokens=1)
"""The sampling of a request for a vector: to the scheduler it is a reply of one token."""


class PoolingInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What an engine makes of a text: a vector (embed), the shares of its labels (classify), or a score of a pair of
    texts.

    `size`: numbers in a vector. `normalize`: vectors are to have length 1. `dimensions`: the sizes that a vector may be
    cut to; empty: any; None: its own alone. Both are left to the reader: the engine's vectors are whole.
    `labels`: a classifier's, in the order of its vectors. `prompted`: a pair is put into a prompt, with an
    `instruction` that says what is wanted; None: the prompt's own.
    """

    task: Literal["embed", "score", "classify"]
    size: int
    normalize: bool = True
    dimensions: tuple[int, ...] | None = None
    labels: tuple[str, ...] | None = None
    prompted: bool = False
    instruction: str | None = None


class EngineInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What a ready engine is: sent once by a worker when it can take requests.

    `policy`: the order of waiting requests; a request's priority means something under `priority` only.
    `memory_fraction`: the share of the device's memory that the engine was given. `pooling`: set where it makes vectors
    or scores of texts; it generates nothing then. Bytes are
    those of one device, pages and sequences those of all replicas.
    """

    model: str
    vocab_size: int
    max_model_len: int
    max_seqs: int
    max_batched_tokens: int
    page_size: int
    num_pages: int
    kv_bytes: int
    weight_bytes: int
    temporary_bytes: int
    dtype: str
    kv_dtype: str
    platform: str
    device: str
    num_devices: int
    compile_seconds: float
    num_shapes: int
    policy: str = "fcfs"
    prefix_caching: bool = True
    memory_fraction: float = 0.9
    pooling: PoolingInfo | None = None


def joined(infos: Sequence[EngineInfo]) -> EngineInfo:
    """Engines of one model as one: what is said of a device stays, what is said of all is added up."""
    return msgspec.structs.replace(
        infos[0],
        max_model_len=min(info.max_model_len for info in infos),
        max_seqs=sum(info.max_seqs for info in infos),
        num_pages=sum(info.num_pages for info in infos),
        num_devices=sum(info.num_devices for info in infos),
        compile_seconds=sum(info.compile_seconds for info in infos),
    )


TransferFailure = Literal[
    "unknown",  # the other side does not have the ticket: used, dropped, expired, or never made
    "mismatch",  # it has another model, layout or version
    "unreachable",  # no connection, or one that broke
    "late",  # the deadline passed
    "corrupt",  # a message that is not what was promised, or whose checksum is wrong
    "forged",  # a request for pages that was not made with the secret
    "incomplete",  # the other side lost or never computed some of the pages
    "no_room",  # the KV cache had no pages to put them in
    "expired",  # offered, and nobody came
]
"""Why KV pages did not move. Whoever needed them computes them."""


class TransferStats(msgspec.Struct, frozen=True, kw_only=True):
    """KV pages moved since the worker's start. `offers` and `fetches` count tickets; `seconds` sums fetches' times."""

    offers: int = 0
    fetches: int = 0
    pages_sent: int = 0
    pages_received: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0
    seconds: float = 0.0
    failures: dict[TransferFailure, int] = {}

    def __add__(self, other: TransferStats) -> TransferStats:
        """The sum of each."""
        reasons = {**self.failures, **other.failures}
        failures = {reason: self.failures.get(reason, 0) + other.failures.get(reason, 0) for reason in reasons}
        own = (name for name in self.__struct_fields__ if name != "failures")
        return TransferStats(**{name: getattr(self, name) + getattr(other, name) for name in own}, failures=failures)


class EngineStats(msgspec.Struct, frozen=True, kw_only=True):
    """Gauges as of now and counters since the worker's start. Times in seconds.

    `padded_tokens` counts token rows that steps computed for nothing; `step_seconds` holds the wall times of the steps
    since the last report, `step_tokens` their real token counts. `transfer`: counters too.
    """

    running: int = 0
    waiting: int = 0
    pages_used: int = 0
    pages_total: int = 0
    prefix_queries: int = 0
    prefix_hits: int = 0
    preemptions: int = 0
    prompt_tokens: int = 0
    generation_tokens: int = 0
    steps: int = 0
    padded_tokens: int = 0
    scheduled_tokens: int = 0
    compiles: int = 0
    compiles_after_ready: int = 0
    step_seconds: list[float] = []
    step_tokens: list[int] = []
    transfer: TransferStats = TransferStats()

    @property
    def kv_usage(self) -> float:
        """Share of KV pages in use by live requests, 0..1 (cached pages that nobody holds are free)."""
        return self.pages_used / self.pages_total if self.pages_total else 0.0
