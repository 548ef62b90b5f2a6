"""Leases: which memories were just recalled, so that their text in a prompt may be replaced by their states.

Only leased memories are looked for, never the whole store: a prompt that happens to contain some memory's text must
not tell anybody that this memory exists.
"""

from __future__ import annotations

import bisect
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass

from nnm_core.model.prompt import Part
from nnm_core.records import Memory

TTL_SECONDS = 3600.0
LIMIT = 512
# start and end in a text, and the memory that stands there
Span = tuple[int, int, Memory]


@dataclass
class Lease:
    """A memory that may be looked for in prompts.

    Attributes:
        memory: the version that was recalled.
        pattern: finds its text, white space aside.
        expires: monotonic time in seconds.
        pending: no prompt has come since it was recalled.
    """

    memory: Memory
    pattern: re.Pattern[str]
    expires: float
    pending: bool = True


class LeaseBook:
    """The leases of one namespace: bounded, expiring, kept apart by `scope` (one conversation or request)."""

    def __init__(self, *, ttl: float = TTL_SECONDS, limit: int = LIMIT) -> None:
        """Args: ttl: seconds that a lease lives after its last use; limit: leases kept, oldest dropped first."""
        self._ttl = ttl
        self._limit = limit
        self._leases: OrderedDict[tuple[str, str], Lease] = OrderedDict()
        self._lock = threading.Lock()

    def take(self, memories: Iterable[Memory], *, scope: str = "") -> None:
        """Lease `memories` to `scope`, or renew their leases; a newer version replaces an older one."""
        now = time.monotonic()
        with self._lock:
            for memory in memories:
                if memory.text.split():
                    self._leases[scope, memory.id] = Lease(memory, _pattern(memory.text), now + self._ttl)
                    self._leases.move_to_end((scope, memory.id))
            while len(self._leases) > self._limit:
                self._leases.popitem(last=False)

    def drop(self, ids: Iterable[str]) -> None:
        """End every lease on these ids, in all scopes."""
        gone = set(ids)
        with self._lock:
            for key in [key for key in self._leases if key[1] in gone]:
                del self._leases[key]

    def settle(self, found: Iterable[Memory], *, scope: str = "") -> tuple[Memory, ...]:
        """A prompt of this scope has come, with `found` in it: which memories were recalled for it and are not there.

        Each lease is reported once; it stays valid for the prompts that follow.
        """
        there = {memory.id for memory in found}
        missed = []
        with self._lock:
            for (owner, _), lease in self._leases.items():
                if owner == scope and lease.pending:
                    lease.pending = False
                    if lease.memory.id not in there:
                        missed.append(lease.memory)
        return tuple(missed)

    def find(self, text: str, *, scope: str = "", also: Iterable[Memory] = ()) -> tuple[Part, ...]:
        """Cut `text` at the leased memories that stand in it, white space aside; longer memories win overlaps.

        Args:
            also: memories to look for beside the leased ones; they take no lease.
        """
        spans: list[Span] = []
        extra = [(memory, _pattern(memory.text)) for memory in also if memory.text.split()]
        for memory, pattern in (*extra, *self._live(scope)):
            spans += [(match.start(), match.end(), memory) for match in pattern.finditer(text)]
        parts: list[Part] = []
        position = 0
        for start, end, memory in _apart(spans):
            parts += [text[position:start], memory]
            position = end
        parts.append(text[position:])
        return tuple(part for part in parts if part != "")

    def _live(self, scope: str) -> list[tuple[Memory, re.Pattern[str]]]:
        now = time.monotonic()
        with self._lock:
            for key in [key for key, lease in self._leases.items() if lease.expires < now]:
                del self._leases[key]
            return [(lease.memory, lease.pattern) for (s, _), lease in self._leases.items() if s == scope]


def _pattern(text: str) -> re.Pattern[str]:
    """Finds `text` with any white space between its words, and never inside of other words.

    White space may also be written as JSON and Python write it in strings: some frameworks put whole lists into a
    prompt.
    """
    words = text.split()
    before = r"(?:(?<!\w)|(?<=\\[nrt]))" if re.match(r"\w", words[0]) else ""
    behind = r"(?!\w)" if re.search(r"\w$", words[-1]) else ""
    return re.compile(before + r"(?:\s|\\[nrt])+".join(re.escape(word) for word in words) + behind)


def _apart(spans: Iterable[Span]) -> list[Span]:
    """Spans that do not overlap, in order: the longest first, then of those that still fit the longest, and so on."""
    kept: list[Span] = []
    for span in sorted(spans, key=lambda span: (span[0] - span[1], span[0])):
        at = bisect.bisect(kept, span[0], key=lambda other: other[0])
        fits_behind = at == 0 or kept[at - 1][1] <= span[0]
        if fits_behind and (at == len(kept) or span[1] <= kept[at][0]):
            kept.insert(at, span)
    return kept
