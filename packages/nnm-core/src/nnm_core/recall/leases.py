"""Leases: which memories were just recalled, so that their text in a prompt may be replaced by their states.

Only leased memories are looked for, never the whole store: a prompt that happens to contain some memory's text must
not tell anybody that this memory exists.
"""

from __future__ import annotations

import re
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable

from nnm_core.model.prompt import Part
from nnm_core.records import Memory

TTL_SECONDS = 3600.0
LIMIT = 512


class LeaseBook:
    """The leases of one namespace: bounded, expiring, kept apart by `scope` (one conversation or request)."""

    def __init__(self, *, ttl: float = TTL_SECONDS, limit: int = LIMIT) -> None:
        """Args: ttl: seconds that a lease lives after its last use; limit: leases kept, oldest dropped first."""
        self._ttl = ttl
        self._limit = limit
        self._leases: OrderedDict[tuple[str, str], tuple[Memory, re.Pattern[str], float]] = OrderedDict()
        self._lock = threading.Lock()

    def take(self, memories: Iterable[Memory], *, scope: str = "") -> None:
        """Lease `memories` to `scope`, or renew their leases; a newer version replaces an older one."""
        now = time.monotonic()
        with self._lock:
            for memory in memories:
                if memory.text.split():
                    self._leases[scope, memory.id] = (memory, _pattern(memory.text), now + self._ttl)
                    self._leases.move_to_end((scope, memory.id))
            while len(self._leases) > self._limit:
                self._leases.popitem(last=False)

    def drop(self, ids: Iterable[str]) -> None:
        """End every lease on these ids, in all scopes."""
        gone = set(ids)
        with self._lock:
            for key in [key for key in self._leases if key[1] in gone]:
                del self._leases[key]

    def find(self, text: str, *, scope: str = "") -> tuple[Part, ...]:
        """Cut `text` at the leased memories that stand in it, white space aside; longer memories win overlaps."""
        spans = []
        for memory, pattern in self._live(scope):
            spans += [(match.start(), match.end(), memory) for match in pattern.finditer(text)]
        spans.sort(key=lambda span: (span[0], -span[1]))
        parts: list[Part] = []
        position = 0
        for start, end, memory in spans:
            if start >= position:
                parts += [text[position:start], memory]
                position = end
        parts.append(text[position:])
        return tuple(part for part in parts if part != "")

    def _live(self, scope: str) -> list[tuple[Memory, re.Pattern[str]]]:
        now = time.monotonic()
        with self._lock:
            for key in [key for key, (_, _, expires) in self._leases.items() if expires < now]:
                del self._leases[key]
            return [(memory, pattern) for (s, _), (memory, pattern, _) in self._leases.items() if s == scope]


def _pattern(text: str) -> re.Pattern[str]:
    return re.compile(r"\s+".join(re.escape(word) for word in text.split()))
