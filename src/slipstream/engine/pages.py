"""Reference-counted KV pages. Ids only: what a page holds lives on the device."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable


class PagePool:
    """Pages 0..num_pages-1, each in one of three states.

    - used: held by at least one sequence;
    - cached: held by nobody, but its content is worth keeping (`keep`), so that a later prompt can retain it;
    - free: neither.

    A page that is needed comes from the free ones, then from the cached ones, the one released longest ago first.
    The order of everything is a function of the calls alone.
    """

    def __init__(self, num_pages: int) -> None:
        """All pages free. Raises ValueError if there is none."""
        if num_pages < 1:
            raise ValueError(f"a pool needs at least one page, got {num_pages}")
        self.num_pages = num_pages
        self._references = [0] * num_pages
        self._free = list(range(num_pages - 1, -1, -1))
        self._cached: OrderedDict[int, None] = OrderedDict()
        self._kept: set[int] = set()
        self._evicted: Callable[[int], None] = lambda page: None

    @property
    def used(self) -> int:
        """Pages that sequences hold."""
        return self.num_pages - self.available

    @property
    def cached(self) -> int:
        """Pages that nobody holds and whose content is kept."""
        return len(self._cached)

    @property
    def free(self) -> int:
        """Pages without content."""
        return len(self._free)

    @property
    def available(self) -> int:
        """Pages that `allocate` can give: free and cached."""
        return len(self._free) + len(self._cached)

    def references(self, page: int) -> int:
        """How many holders a page has."""
        return self._references[page]

    def call_when_evicted(self, hook: Callable[[int], None]) -> None:
        """Call `hook(page)` whenever a cached page loses its content to a new holder."""
        self._evicted = hook

    def allocate(self, count: int) -> list[int] | None:
        """`count` pages with one holder each, or None (and no change) if fewer are available."""
        if count > self.available:
            return None
        pages = [self._take() for _ in range(count)]
        for page in pages:
            self._references[page] = 1
        return pages

    def retain(self, pages: Iterable[int]) -> None:
        """Add a holder to used or cached pages. Raises ValueError for a free page: its content is gone."""
        for page in pages:
            if self._references[page] == 0:
                if page not in self._cached:
                    raise ValueError(f"page {page} is free: it cannot be shared")
                del self._cached[page]
            self._references[page] += 1

    def release(self, pages: Iterable[int]) -> None:
        """Take a holder from each page. Raises ValueError for a page that nobody holds.

        Pages are given in the sequence's order and let go from its end, so that the end of a prefix is evicted before
        its beginning, without which it could not be found.
        """
        for page in reversed(list(pages)):
            if self._references[page] == 0:
                raise ValueError(f"page {page} is not held")
            self._references[page] -= 1
            if self._references[page] == 0:
                if page in self._kept:
                    self._cached[page] = None
                else:
                    self._free.append(page)

    def keep(self, page: int) -> None:
        """Cache a used page, rather than free it, once nobody holds it. Raises ValueError if it is not used."""
        if self._references[page] == 0:
            raise ValueError(f"page {page} is not held")
        self._kept.add(page)

    def _take(self) -> int:
        if self._free:
            return self._free.pop()
        page, _ = self._cached.popitem(last=False)
        self._kept.remove(page)
        self._evicted(page)
        return page
