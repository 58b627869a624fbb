"""Which of several engines takes a request: pure Python over numbers, for replicas, for workers, and for a gateway."""

from slipstream.routing.blocks import BLOCK_TOKENS, digests
from slipstream.routing.choice import Candidate, Weights, choose, cost
from slipstream.routing.memory import Memory

__all__ = ["BLOCK_TOKENS", "Candidate", "Memory", "Weights", "choose", "cost", "digests"]
