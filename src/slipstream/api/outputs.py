"""What `LLM` returns, shaped as vLLM's outputs, so that code written for one reads the other."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Generic, Literal, TypeVar

FinishReason = Literal["stop", "length", "abort", "error"]


@dataclass(frozen=True)
class Logprob:
    """A token's log probability (natural log, after the model's softmax, before sampling), and its rank from 1."""

    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


@dataclass
class CompletionOutput:
    """One choice of a request. `stop_reason` is the stop string or token id that ended it, None for eos or length."""

    index: int
    text: str
    token_ids: list[int]
    cumulative_logprob: float | None = None
    logprobs: list[dict[int, Logprob]] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None

    def finished(self) -> bool:
        """Whether the choice has ended."""
        return self.finish_reason is not None


@dataclass
class RequestOutput:
    """All choices of one prompt. `prompt_logprobs[0]` is None: nothing predicts the first token."""

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    prompt_logprobs: list[dict[int, Logprob] | None] | None = None
    outputs: list[CompletionOutput] = field(default_factory=list)
    finished: bool = False
    num_cached_tokens: int = 0


@dataclass(frozen=True)
class EmbeddingOutput:
    """The vector of a text."""

    embedding: list[float]

    @property
    def hidden_size(self) -> int:
        """Numbers in the vector."""
        return len(self.embedding)


@dataclass(frozen=True)
class ScoringOutput:
    """The score of a pair of texts."""

    score: float


@dataclass(frozen=True)
class ClassificationOutput:
    """The share of each label, in their order."""

    probs: list[float]

    @property
    def num_classes(self) -> int:
        """Labels."""
        return len(self.probs)


Output = TypeVar("Output", EmbeddingOutput, ScoringOutput, ClassificationOutput)


@dataclass(frozen=True)
class PoolingRequestOutput(Generic[Output]):
    """What was made of one text, or of one pair."""

    request_id: str
    outputs: Output
    prompt_token_ids: list[int]
    finished: bool = True
