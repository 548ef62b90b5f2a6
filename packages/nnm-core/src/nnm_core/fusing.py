"""Neighbour-fused ingest: a second state of a memory, computed behind its title and its nearest memories.

A memory that was read alone has seen nothing of what usually stands beside it in a prompt. Its second state has: it is
computed behind the memories that are nearest to it (FusionRAG's offline step, SIGMOD 2026). Like every state it is
exact behind just the context that it was computed behind; anywhere else it is a composition, so it is used for
composing only, and only where that was asked for. It holds what its neighbours say, so the journal notes them as its
sources: it is erased with the first of them that goes.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

from nnm_core.collection import Collection
from nnm_core.errors import InvalidInputError
from nnm_core.model.batching import padded_batches, tokens_per_pass
from nnm_core.model.load import LoadedModel
from nnm_core.model.prompt import PromptFormat
from nnm_core.records import Memory
from nnm_core.states.codecs import EvictingCodec, TokensCodec
from nnm_core.states.fused import capture_behind
from nnm_core.states.state import PlacedState
from nnm_core.storage.journal_records import Entry

TITLE = "title"
# Memories whose neighbours are looked up and read together.
_AT_ONCE = 64


@dataclass(frozen=True)
class _Row:
    """A memory with the texts that are read before it.

    Attributes:
        entry: the memory.
        texts: token ids: neighbours, title, and last the memory itself.
        sources: points of the neighbours.
    """

    entry: Entry
    texts: tuple[tuple[int, ...], ...]
    sources: tuple[str, ...]

    def __len__(self) -> int:
        return sum(map(len, self.texts))


@dataclass(frozen=True)
class Fusing:
    """Makes fused states of one collection. See `NNM.fuse`."""

    model: LoadedModel
    format: PromptFormat
    collection: Collection
    left: Callable[[], PlacedState]

    def fuse(
        self, memories: Sequence[Memory] | None, neighbours: int, progress: Callable[[int, int], None] | None = None
    ) -> int:
        """Make and store them, replacing former ones; how many are there now.

        Args:
            memories: which; None for all live ones.
        """
        self._check(neighbours)
        total = self.collection.journal.live_count() if memories is None else len(memories)
        kept = done = 0
        for entries in self._entries(memories):
            rows = [row for entry in entries if (row := self._row(entry, neighbours)) is not None]
            for batch in padded_batches([len(row) for row in rows], tokens_per_pass(self.model.device)):
                kept += self._keep([rows[index] for index in batch])
            done += len(entries)
            if progress is not None:
                progress(done, total)
        return kept

    def _check(self, neighbours: int) -> None:
        if neighbours < 1:
            raise InvalidInputError(f"neighbours is {neighbours}.", hint="Read at least one other memory before each.")
        if self.model.positions.family == "fixed":
            raise InvalidInputError(f"States of {self.model.name} cannot be moved, so there is no use for others.")
        codec = self.collection.codec
        if codec.residual_layer is not None or isinstance(codec, TokensCodec | EvictingCodec):
            raise InvalidInputError(
                f"The codec {codec.name!r} computes states behind the canonical left context only.",
                hint="Use native, int8 or int4.",
            )

    def _entries(self, memories: Sequence[Memory] | None) -> Iterator[list[Entry]]:
        if memories is None:
            yield from self.collection.journal.iter_live(_AT_ONCE)
            return
        ids = [memory.id for memory in memories]
        for start in range(0, len(ids), _AT_ONCE):
            found = self.collection.entries(ids[start : start + _AT_ONCE])
            yield [entry for entry in found if entry is not None]

    def _row(self, entry: Entry, neighbours: int) -> _Row | None:
        """What is read for one memory; None if nothing stands before it, or if it does not fit by itself."""
        own = [self.format.memory_ids(entry.memory.text)]
        title = entry.memory.metadata.get(TITLE)
        if isinstance(title, str) and title.strip():
            own.insert(0, self.format.memory_ids(title))
        limits = (self.model.context_limit, self.model.positions.length_limit)
        room = min(limit for limit in limits if limit is not None) - self.left().length - sum(map(len, own))
        before: list[tuple[int, ...]] = []
        sources: list[str] = []
        for other in self._nearest(entry, neighbours):
            ids = self.format.memory_ids(other.memory.text)
            if len(ids) <= room:
                before.insert(0, ids)  # the nearest stands next to it
                sources.append(other.point)
                room -= len(ids)
        texts = (*before, *own)
        return _Row(entry, texts, tuple(sources)) if len(texts) > 1 and room >= 0 else None

    def _nearest(self, entry: Entry, count: int) -> list[Entry]:
        """The nearest other memories, best first: by its own vector, or by its words if it has none."""
        raw = self.collection.journal.vectors([entry.memory.id])[0]
        if raw is None:
            hits = self.collection.search(entry.memory.text, count + 1, None, alpha=0.0)
        else:
            hits = self.collection.search("", count + 1, None, vector=raw, alpha=1.0)
        others = [hit.memory.id for hit in hits if hit.memory.id != entry.memory.id][:count]
        return [found for found in self.collection.entries(others) if found is not None]

    def _keep(self, rows: Sequence[_Row]) -> int:
        states = capture_behind(self.model, [row.texts for row in rows], self.left())
        kept = [self.collection.keep_fused(row.entry, s, row.sources) for row, s in zip(rows, states, strict=True)]
        return sum(kept)


class FuseFace:
    """What an open engine can do to prepare memories for composing."""

    model: LoadedModel
    get: Callable[..., list[Memory]]
    _collection: Collection
    _format: PromptFormat
    _writing: AbstractContextManager[bool]

    @abstractmethod
    def _check_open(self) -> None:
        """Raise `EngineClosedError` after `close`."""

    @abstractmethod
    def _left_state(self) -> PlacedState:
        """State of the canonical left context."""

    def fuse(
        self,
        ids: str | Sequence[str] | None = None,
        *,
        neighbours: int = 2,
        progress: Callable[[int, int], None] | None = None,
    ) -> int:
        """Give memories a second state, computed behind their title and nearest memories, for composing only.

        Prompts that hold several memories of one subject are then composed from states that have seen such text.
        ``answer(policy="fast", fused=True)`` uses them; nothing else does. Each costs another reading of the memory
        and its neighbours, and as many bytes as the first state. It goes with the memory, and with any of those
        neighbours; a second call makes it anew from the neighbours of then.

        Args:
            ids: which memories; None for all.
            neighbours: how many nearest memories to read before each, the nearest last. Those that do not fit the
                model's context are left out. The title is ``metadata["title"]``, where there is one.
            progress: called with (done, total).

        Returns:
            how many memories have such a state now.

        Raises:
            InvalidInputError: states of this model cannot be moved, or the namespace's codec cannot keep them.
            MemoryNotFoundError: one of `ids` does not exist.
        """
        self._check_open()
        memories = None if ids is None else self.get(ids)
        with self._writing:
            fusing = Fusing(self.model, self._format, self._collection, self._left_state)
            return fusing.fuse(memories, neighbours, progress)
