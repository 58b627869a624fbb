"""Blocks of prompts out of an engine's prefix cache and into it: what one engine computed, another one finds.

Everything goes by the digests of blocks (`PrefixCache`), so nothing here knows requests. Given blocks are those of
steps that are dispatched; taken ones are as if an earlier prompt had left them. Whatever is missing in the end is
computed, as any prompt is: an exchange can fail at any point and only time is lost.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from slipstream.engine.page_io import Blocks, PageIO
from slipstream.engine.prefix import PrefixCache
from slipstream.engine.scheduler import Scheduler

STAGED = 4
"""Results of `give` that may be on their way to the host at once: the device's memory has room for so many."""

_MOST_HELD = 2  # a half of all pages


class Mover(Protocol):
    """What moves the pages: `Programs` with a `PageIO`."""

    page_io: PageIO | None

    def gather(self, pages: Sequence[int]) -> Blocks:
        """Start to copy pages out."""

    def scatter(self, pages: Sequence[int], blocks: Blocks) -> None:
        """Start to write pages."""


class Exchange:
    """One engine's side. Not thread safe: the engine's thread calls it, between steps.

    Pages that are to be given can be held under a name, so that they stay when their sequence ends: half of all pages
    at most, beyond which the hold that is oldest ends. Pages without a hold are found as long as nobody needed them.
    """

    def __init__(self, scheduler: Scheduler, mover: Mover) -> None:
        """Of a scheduler that caches prefixes."""
        assert scheduler.prefix is not None and mover.page_io is not None
        self.io: PageIO = mover.page_io
        self._prefix: PrefixCache = scheduler.prefix
        self._pages = scheduler.pages
        self._mover = mover
        self._held: dict[str, dict[bytes, int]] = {}

    @property
    def held(self) -> int:
        """Pages held, each as often as it is."""
        return sum(map(len, self._held.values()))

    def digests(self, tokens: Sequence[int]) -> list[bytes]:
        """The names of the full blocks of a prompt."""
        digests: list[bytes] = []
        self._prefix.extend(digests, tokens)
        return digests

    def missing(self, digests: Sequence[bytes]) -> list[int]:
        """Which blocks of a prompt are not here, by index. Those that are will be the last to be evicted."""
        self._refresh(digests)
        return [i for i, digest in enumerate(digests) if self._prefix.find(digest) is None]

    def ready(self, digests: Sequence[bytes]) -> int:
        """How many of these, from the first on, can be given now: they are computed, and not evicted yet."""
        return next((i for i, digest in enumerate(digests) if self._prefix.find(digest) is None), len(digests))

    def give(self, digests: Sequence[bytes]) -> Blocks:
        """Start to copy blocks that are `ready`, at most `io.most` of them."""
        found = [self._prefix.find(digest) for digest in digests]
        pages = [page for page in found if page is not None]
        assert len(pages) == len(found), "only what is ready can be given"
        return self._mover.gather(pages)

    def take(self, prompt: Sequence[bytes], indices: Sequence[int], blocks: Blocks) -> bool:
        """Write blocks of a prompt, by index, and make them findable. False if there are no pages for them.

        `blocks`: at most `io.most`, checked and with `io.width_for` room. Taken pages have no holder, so they are in
        nobody's way; of this prompt's, the last block will be evicted first.
        """
        own = [page for digest in prompt if (page := self._prefix.find(digest)) is not None]
        self._pages.retain(own)  # or they might be evicted for what follows them
        pages = self._pages.allocate(len(indices))
        if pages is None:
            self._pages.release(own)
            return False
        self._mover.scatter(pages, blocks)
        known = [page for i, page in zip(indices, pages, strict=True) if not self._prefix.register(page, prompt[i])]
        self._pages.release(known)  # computed here meanwhile
        everything = (self._prefix.find(digest) for digest in prompt)
        self._pages.release([page for page in everything if page is not None])
        return True

    def hold(self, name: str, digests: Sequence[bytes]) -> None:
        """Keep those of these blocks that are here until `let_go(name)`. May be called again as more are computed."""
        held = self._held.setdefault(name, {})
        for digest in digests:
            page = self._prefix.find(digest)
            if page is not None and digest not in held:
                self._pages.retain([page])
                held[digest] = page
        while self.held > self._pages.num_pages // _MOST_HELD:
            self.let_go(next(iter(self._held)))

    def let_go(self, name: str, digests: Sequence[bytes] | None = None) -> None:
        """End a hold, or its part on these blocks. Nothing happens where there is none."""
        held = self._held.get(name, {})
        gone = list(held) if digests is None else [digest for digest in digests if digest in held]
        self._pages.release([held.pop(digest) for digest in gone])
        if not held:
            self._held.pop(name, None)

    def let_all_go(self) -> bool:
        """End all holds. Whether there were any."""
        names = list(self._held)
        for name in names:
            self.let_go(name)
        return bool(names)

    def _refresh(self, digests: Sequence[bytes]) -> None:
        pages = [page for digest in digests if (page := self._prefix.find(digest)) is not None]
        self._pages.retain(pages)
        self._pages.release(pages)
