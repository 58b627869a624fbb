"""The choice among engines: by what each would have to compute before the request's first token, in tokens.

One unit for all reasons makes them comparable: a prefix that is cached saves its tokens, a queue costs the tokens
before it, a running sequence costs what its steps take from a prompt's, and pages that are not free cost what those who
lose them compute again. It does not depend on chance, the time, or the order of earlier calls.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """What is known of one engine when a request comes.

    `cached_tokens`: of the request's prompt, those that it has in its prefix cache, or probably has. `queued_tokens`:
    prompt tokens of others that it has yet to compute. `sequences`: requests that it has, waiting and running.
    `free_tokens`: tokens that its KV cache has room for, with what is cached for nobody counted as room; None where
    nobody knows.
    """

    cached_tokens: int = 0
    queued_tokens: int = 0
    sequences: int = 0
    free_tokens: int | None = None


@dataclass(frozen=True, kw_only=True)
class Weights:
    """What things cost, in prompt tokens.

    `sequence`: a sequence that decodes beside the request. Small prompts spread by load; a prefix of some hundred
    tokens is worth a few sequences more. `eviction`: a token of KV cache that is taken from another sequence.
    """

    sequence: float = 64.0
    eviction: float = 1.0


DEFAULT = Weights()


def cost(candidate: Candidate, prompt_tokens: int, weights: Weights = DEFAULT) -> float:
    """Tokens' worth of work that a request of `prompt_tokens` waits for, or causes, there."""
    uncached = max(prompt_tokens - candidate.cached_tokens, 0)
    evicted = 0 if candidate.free_tokens is None else max(uncached - max(candidate.free_tokens, 0), 0)
    return uncached + candidate.queued_tokens + weights.sequence * candidate.sequences + weights.eviction * evicted


def choose(candidates: Sequence[Candidate], prompt_tokens: int, weights: Weights = DEFAULT) -> int:
    """The index of the cheapest candidate; of equals the one with the fewest sequences, then the first.

    Raises ValueError if there is none.
    """
    if not candidates:
        raise ValueError("nobody to choose from")
    return min(
        range(len(candidates)),
        key=lambda index: (cost(candidates[index], prompt_tokens, weights), candidates[index].sequences, index),
    )
