"""The prefix tree of states: what has been read once behind some context is there for the next prompt.

Contexts are named by chained hashes (`nnm_core.states.state.chain`), so the tree is a dictionary: a prompt walks it
from the root, segment by segment, as far as names are found. Nodes hold placed states: reuse is a copy.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass

from nnm_core.states.state import PlacedState

DEFAULT_BUDGET = 512 * 2**20


@dataclass(frozen=True)
class Node:
    """A placed state and the memories (points) that it has seen, itself and its left context."""

    state: PlacedState
    points: frozenset[str]


class StateTree:
    """Nodes in RAM within a byte budget, least recently used first out; pinned ones stay."""

    def __init__(self, budget: int = DEFAULT_BUDGET) -> None:
        """Args: budget: bytes of keys and values to keep."""
        self.budget = budget
        self._nodes: OrderedDict[str, Node] = OrderedDict()
        self._pinned: set[str] = set()
        self._bytes = 0
        self._hits = self._misses = 0
        self._lock = threading.Lock()

    @property
    def nbytes(self) -> int:
        """Bytes of all nodes."""
        return self._bytes

    def stats(self) -> dict[str, int]:
        """Bytes in use, pinned and allowed, nodes, and how often a looked-up context was there or not."""
        with self._lock:
            return {
                "bytes_state_cache": self._bytes,
                "bytes_state_cache_pinned": sum(self._nodes[name].state.nbytes for name in self._pinned),
                "bytes_state_cache_budget": self.budget,
                "state_cache_nodes": len(self._nodes),
                "state_cache_hits": self._hits,
                "state_cache_misses": self._misses,
            }

    def __len__(self) -> int:
        return len(self._nodes)

    def get(self, name: str) -> Node | None:
        """The node of that context, now the most recently used, or None."""
        with self._lock:
            node = self._nodes.get(name)
            if node is None:
                self._misses += 1
                return None
            self._hits += 1
            self._nodes.move_to_end(name)
            return node

    def __contains__(self, name: object) -> bool:
        """Whether that context is known; no use of it."""
        return name in self._nodes

    def holds(self, name: str, *, lossless: bool) -> bool:
        """Whether that context is known, and as read if it has to be `lossless`; no use of it."""
        node = self._nodes.get(name)
        return node is not None and (node.state.origin.lossless or not lossless)

    def pin(self, names: Iterable[str]) -> None:
        """Never drop these contexts to make room, as far as they are there."""
        with self._lock:
            self._pinned.update(name for name in names if name in self._nodes)

    @property
    def pinned(self) -> frozenset[str]:
        """Names of the pinned contexts."""
        with self._lock:
            return frozenset(self._pinned)

    def nbytes_of(self, names: Iterable[str]) -> int:
        """Bytes of those of these contexts that are there."""
        with self._lock:
            return sum(self._nodes[name].state.nbytes for name in names if name in self._nodes)

    def unpin(self, names: Iterable[str]) -> None:
        """Let these contexts be dropped again when room is needed."""
        with self._lock:
            self._pinned.difference_update(names)
            self._make_room()

    def put(self, node: Node, *, pin: bool = False) -> None:
        """Keep `node`; a pinned one is never dropped to make room. One larger than the budget is not kept."""
        with self._lock:
            if pin:
                self._pinned.add(node.state.name)
            elif node.state.nbytes > self.budget:
                return
            self._remove(node.state.name)
            self._nodes[node.state.name] = node
            self._bytes += node.state.nbytes
            self._make_room()

    def forget(self, points: Iterable[str]) -> None:
        """Drop every node that has seen one of these memories."""
        gone = frozenset(points)
        with self._lock:
            for name in [name for name, node in self._nodes.items() if node.points & gone]:
                self._remove(name)
                self._pinned.discard(name)

    def clear(self) -> None:
        """Drop everything, pins included."""
        with self._lock:
            self._nodes.clear()
            self._pinned.clear()
            self._bytes = 0

    def _remove(self, name: str) -> None:
        node = self._nodes.pop(name, None)
        if node is not None:
            self._bytes -= node.state.nbytes

    def _make_room(self) -> None:
        for name in list(self._nodes):
            if self._bytes <= self.budget:
                return
            if name not in self._pinned:
                self._remove(name)
