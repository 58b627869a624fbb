"""Names of a text's beginnings, by which a router tells who has seen them."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from hashlib import blake2b

BLOCK_TOKENS = 64
"""Tokens in a block of a router's. It need not be an engine's page: it says how fine a router's guess is."""

_DIGEST_BYTES = 16


def digests(tokens: Sequence[int]) -> list[bytes]:
    """A digest for each full block of `tokens`, of all tokens up to its end: equal digests mean equal beginnings.

    Token ids fit 64 bits. About 2 microseconds a block.
    """
    data = array("q", tokens)
    running = blake2b(digest_size=_DIGEST_BYTES)
    found = []
    for end in range(BLOCK_TOKENS, len(data) + 1, BLOCK_TOKENS):
        running.update(data[end - BLOCK_TOKENS : end])
        found.append(running.copy().digest())
    return found
