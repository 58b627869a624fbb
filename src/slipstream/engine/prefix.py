"""The prefix cache: finds the pages that already hold a prompt's beginning.

A full page of tokens is named by a digest of its tokens and of the digest of the page before it, so that equal names
mean equal tokens from the first on (the chain of vLLM's automatic prefix caching). The digests are cryptographic,
because a collision would show one user's prompt to another.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

from slipstream.engine.pages import PagePool

_DIGEST_BYTES = 32


@dataclass(frozen=True)
class PrefixMatch:
    """Pages that hold a prompt's first `tokens` tokens, in order."""

    pages: tuple[int, ...]
    tokens: int


class PrefixCache:
    """Which page holds which block. It takes the pool's eviction hook: there is one cache to a pool."""

    def __init__(self, pages: PagePool, page_size: int) -> None:
        """An empty cache over `pages`, each of `page_size` tokens."""
        self.page_size = page_size
        self._pool = pages
        self._block = struct.Struct(f"<{page_size}I")
        self._pages: dict[bytes, int] = {}
        self._digests: dict[int, bytes] = {}
        pages.call_when_evicted(self._forget)

    def __len__(self) -> int:
        """Blocks that can be found."""
        return len(self._pages)

    def extend(self, hashes: list[bytes], tokens: Sequence[int], *, salt: bytes = b"") -> None:
        """Append to `hashes` the digests of `tokens`' full blocks that it lacks: O(new tokens).

        `hashes` must be a result of the same tokens' beginning and the same salt. Sequences with different salts (an
        adapter's name, a tenant's secret) never share a page. Token ids are below 2**32.
        """
        size = self.page_size
        for block in range(len(hashes), len(tokens) // size):
            parent = hashes[-1] if hashes else blake2b(salt, digest_size=_DIGEST_BYTES).digest()
            data = self._block.pack(*tokens[block * size : (block + 1) * size])
            hashes.append(blake2b(parent + data, digest_size=_DIGEST_BYTES).digest())

    def match(self, hashes: Sequence[bytes], num_tokens: int) -> PrefixMatch | None:
        """The longest cached beginning of a prompt of `num_tokens` tokens, or None.

        Never the whole prompt: its last token must be computed for the logits that the first sample needs. The pages
        are not held yet: retain them before anything is allocated.
        """
        pages: list[int] = []
        for digest in hashes[: max(num_tokens - 1, 0) // self.page_size]:
            page = self._pages.get(digest)
            if page is None:
                break
            pages.append(page)
        return PrefixMatch(tuple(pages), len(pages) * self.page_size) if pages else None

    def find(self, digest: bytes) -> int | None:
        """The page that holds a block, None if there is none. It is not held yet, as of `match`."""
        return self._pages.get(digest)

    def register(self, page: int, digest: bytes) -> bool:
        """Make a used page's block findable. False if the block is known already: the first page keeps the entry."""
        if digest in self._pages:
            return False
        if page in self._digests:
            raise ValueError(f"page {page} holds another block already")
        self._pages[digest] = page
        self._digests[page] = digest
        self._pool.keep(page)
        return True

    def _forget(self, page: int) -> None:
        del self._pages[self._digests.pop(page)]
