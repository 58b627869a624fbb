"""What an engine probably still has in its prefix cache: a router's guess, from what it sent there."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from slipstream.routing.blocks import BLOCK_TOKENS


class Memory:
    """Digests of the blocks that one engine was sent, the least lately sent forgotten first, as its cache would.

    A guess that is wrong costs time, never a token: the engine looks for itself.
    """

    def __init__(self, capacity_tokens: int) -> None:
        """`capacity_tokens`: tokens that the engine's KV cache holds; the memory holds as many blocks;
        0 for one that caches no prefix."""
        self.capacity = capacity_tokens // BLOCK_TOKENS
        self._blocks: OrderedDict[bytes, None] = OrderedDict()

    def __len__(self) -> int:
        """Blocks that it holds."""
        return len(self._blocks)

    def match(self, blocks: Sequence[bytes]) -> int:
        """Tokens of the longest beginning that is known; `blocks`: a text's `digests`."""
        known = 0
        for digest in blocks:
            if digest not in self._blocks:
                break
            known += 1
        return known * BLOCK_TOKENS

    def add(self, blocks: Sequence[bytes]) -> None:
        """Note that a text with these `digests` was sent."""
        # Backwards, so that a text's end is forgotten before its beginning, without which it is worth nothing.
        for digest in reversed(blocks):
            self._blocks[digest] = None
            self._blocks.move_to_end(digest)
        while len(self._blocks) > self.capacity:
            self._blocks.popitem(last=False)

    def clear(self) -> None:
        """Forget all: the engine's process is a new one."""
        self._blocks.clear()
