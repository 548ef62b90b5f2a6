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
        self._lock = threading.Lock()

    @property
    def nbytes(self) -> int:
        """Bytes of all nodes."""
        return self._bytes

    def __len__(self) -> int:
        return len(self._nodes)

    def get(self, name: str) -> Node | None:
        """The node of that context, now the most recently used, or None."""
        with self._lock:
            node = self._nodes.get(name)
            if node is not None:
                self._nodes.move_to_end(name)
            return node

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
