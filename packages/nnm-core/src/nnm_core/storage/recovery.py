"""Bringing journal, index and states back into step after a kill, a crash or a lost folder."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from nnm_core.storage.blobs import BlobStore
from nnm_core.storage.index import VectorIndex
from nnm_core.storage.journal import Journal
from nnm_core.storage.journal_records import Removal

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Recovery:
    """What `recover` did and what is left to the engine.

    Attributes:
        removed_points: orphaned vectors that it deleted.
        removed_blobs: orphaned states that it deleted.
        missing_points: live memories without vectors: index them again from `Journal.iter_raw`.
        missing_states: keys that the journal knew and that are gone (evicted, lost); the journal has dropped them.
    """

    removed_points: frozenset[str]
    removed_blobs: frozenset[str]
    missing_points: frozenset[str]
    missing_states: frozenset[str]


def carry_out(removal: Removal, journal: Journal, index: VectorIndex, blobs: BlobStore) -> None:
    """Remove superseded or forgotten vectors and states, then tell the journal. Safe to repeat after a kill.

    Raises:
        StorageError: a removal failed; the journal keeps it for the next `recover`.
    """
    if not removal:
        return
    blobs.delete(removal.blobs)
    index.delete(removal.points)
    if removal.erase:
        index.purge()
    journal.removed(removal)


def recover(journal: Journal, index: VectorIndex, blobs: BlobStore) -> Recovery:
    """Remove everything that no live memory owns. To be called at opening, before anything is added.

    Raises:
        StorageError: something cannot be read or removed.
    """
    removal = journal.recover()
    live, known = journal.live_points(), journal.state_keys()
    indexed, stored = set(index.ids()), blobs.keys()
    orphans = Removal(
        points=tuple((indexed - live) | set(removal.points)),
        blobs=tuple((stored - known) | set(removal.blobs)),
        erase=removal.erase,
    )
    carry_out(orphans, journal, index, blobs)
    missing_states = known - stored
    if missing_states:
        journal.drop_states(missing_states)
    if orphans or live - indexed:
        logger.info("Recovered: %d orphans removed, %d memories to index.", len(orphans.points), len(live - indexed))
    return Recovery(
        removed_points=frozenset(indexed - live),
        removed_blobs=frozenset(stored - known),
        missing_points=frozenset(live - indexed),
        missing_states=frozenset(missing_states),
    )
