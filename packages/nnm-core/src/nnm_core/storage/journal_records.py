"""What goes in and out of the journal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from nnm_core.records import Memory


@dataclass(frozen=True, slots=True)
class StateRef:
    """A stored state.

    Attributes:
        key: of its blob.
        left_context: hash of the tokens before it when it was computed.
        sources: points of other versions that it derives from (memories to its left): it goes when they go.
    """

    key: str
    left_context: str
    sources: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Entry:
    """One version of a memory and where its derivatives are.

    Attributes:
        memory: the record.
        point: id of its vectors in the index, a UUID.
        tokens: how many tokens the text has.
        tombstone: this version is a deletion.
        states: its own states (`sources` are not filled in).
    """

    memory: Memory
    point: str
    tokens: int = 0
    tombstone: bool = False
    states: tuple[StateRef, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Write:
    """What a pending version becomes live with.

    Attributes:
        point: from `Journal.begin`.
        vector: the raw embedding, float16 or float32, any shape; None if there is none.
        tokens: how many tokens the text has.
        states: states that were stored for it.
    """

    point: str
    vector: np.ndarray[Any, Any] | None = None
    tokens: int = 0
    states: tuple[StateRef, ...] = ()


@dataclass(frozen=True, slots=True)
class Removal:
    """Points and blob keys that have no memory any more.

    Attributes:
        points: to delete from the index.
        blobs: to delete from the states.
        erase: their bytes must leave the disk (`VectorIndex.purge` after `delete`).
    """

    points: tuple[str, ...] = ()
    blobs: tuple[str, ...] = ()
    erase: bool = False

    def __bool__(self) -> bool:
        return bool(self.points or self.blobs)
