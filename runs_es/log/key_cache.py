"""Key pages that readers have met, kept within a limit of memory: a stream of deltas needs very few of them."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Collection, Mapping

from runs_es.log.pages import KeyPage


class KeyCache:
    """Key pages by thread and seq, the least recently used go first. A seq is never used again in one history, and
    `clear` is called at another, so none is ever stale.
    Safe between threads.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._size = 0
        self._pages: OrderedDict[tuple[str, int], KeyPage] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def size(self) -> int:
        """Bytes held in memory."""
        return self._size

    def clear(self) -> None:
        """Let go of all of them."""
        with self._lock:
            self._pages.clear()
            self._size = 0

    def get(self, thread_id: str, seqs: Collection[int]) -> dict[int, KeyPage]:
        """Those of a thread's key pages that are here."""
        found = {}
        with self._lock:
            for seq in seqs:
                page = self._pages.get((thread_id, seq))
                if page is not None:
                    found[seq] = page
                    self._pages.move_to_end((thread_id, seq))
        return found

    def put(self, thread_id: str, pages: Mapping[int, KeyPage]) -> None:
        """Keep these key pages of a thread for others."""
        with self._lock:
            for seq, page in pages.items():
                before = self._pages.pop((thread_id, seq), None)
                self._size += page.size - (before.size if before else 0)
                self._pages[thread_id, seq] = page
            while self._size > self._limit:
                self._size -= self._pages.popitem(last=False)[1].size
