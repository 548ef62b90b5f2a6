"""Ingest: reading a text once gives its state, a second pass its vector; stored in steps that a kill cannot break."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nnm_core.collection import Collection, StoredState
from nnm_core.errors import InvalidInputError
from nnm_core.model.batching import padded_batches, tokens_per_pass
from nnm_core.model.load import LoadedModel
from nnm_core.model.prompt import PromptFormat
from nnm_core.records import Memory, text_digest
from nnm_core.states.capture import capture
from nnm_core.states.state import PlacedState
from nnm_core.storage.journal_records import Entry
from nnm_core.transforms import Vectors

Progress = Callable[[int, int], None]

# Tokens that are made durable together: what a killed `add` has to do again at most.
TOKENS_PER_COMMIT = 32768
# Room that must be left in the context behind a memory for a question and an answer.
_ROOM = 128
_REREAD_BATCH = 64
# Our own vectors are kept in half precision.
_SAME = 1e-3


@dataclass(frozen=True)
class Draft:
    """A text that is to be stored, with its tokens, and its vector if somebody has embedded it already."""

    memory: Memory
    token_ids: tuple[int, ...]
    vector: Vectors | None = None


def new_memories(
    texts: Sequence[str],
    ids: Sequence[str | None] | None,
    metadatas: Sequence[Mapping[str, Any] | None] | None,
    namespace: str,
) -> list[Memory]:
    """Check the caller's input and make records of it; nothing is stored if any of it is wrong.

    A text without an id gets one from its digest, so adding it again changes nothing.

    Raises:
        InvalidInputError: an empty text, a wrong type, lists of different length, one id with two texts.
    """
    for name, given in (("ids", ids), ("metadatas", metadatas)):
        if given is not None and len(given) != len(texts):
            raise InvalidInputError(f"{len(texts)} texts but {len(given)} {name}.", hint="Pass one for each text.")
    now = time.time()
    memories = []
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise InvalidInputError(f"Text {index} is a {type(text).__name__}, not a string.")
        if not text.strip():
            raise InvalidInputError(f"Text {index} is empty.", hint="Leave empty texts out; nothing was stored.")
        memory_id = _id_of(text, None if ids is None else ids[index], index)
        metadata = (None if metadatas is None else metadatas[index]) or {}
        memories.append(Memory(id=memory_id, text=text, metadata=metadata, namespace=namespace, created=now))
    _refuse_conflicts(memories)
    return memories


def _id_of(text: str, given: str | None, index: int) -> str:
    if given is None:
        try:
            return str(uuid.UUID(text_digest(text)[:32]))
        except UnicodeEncodeError as error:
            raise InvalidInputError(f"Text {index} is not valid Unicode: {error.reason}.") from error
    if type(given) is not str or not given:  # callers without a type checker pass numbers
        raise InvalidInputError(f"Id {index} is {given!r}.", hint="An id is any non-empty string, or None.")
    return given


def _refuse_conflicts(memories: Sequence[Memory]) -> None:
    seen: dict[str, Memory] = {}
    for memory in memories:
        first = seen.setdefault(memory.id, memory)
        if first.text != memory.text or first.metadata != memory.metadata:
            raise InvalidInputError(
                f"The id {memory.id!r} is given to two different texts in one call.", hint="Use distinct ids."
            )


@dataclass
class Ingest:
    """Adds memories to one collection."""

    model: LoadedModel
    format: PromptFormat
    collection: Collection
    left: Callable[[], PlacedState]

    def add(
        self,
        memories: Sequence[Memory],
        progress: Progress | None = None,
        vectors: Sequence[Vectors | None] | None = None,
    ) -> list[Memory]:
        """Store what is new or changed and return the records of all, in order.

        Unchanged memories (same id, text, metadata and given vector) cost nothing, so a killed `add` is resumed by
        calling it again.

        Args:
            memories: checked by `new_memories`.
            progress: called with (done, total).
            vectors: for each memory its raw vector, or None to embed it here.

        Raises:
            InvalidInputError: a text is too long for the model's context. Nothing is stored then.
        """
        drafts = self._drafts(memories, [None] * len(memories) if vectors is None else vectors)
        total = len(drafts)
        done = 0
        for group in _commits(drafts):
            self._store(group)
            done += len(group)
            if progress is not None:
                progress(done, total)
        if drafts:
            self.collection.refit_if_grown()
        stored = self.collection.entries([memory.id for memory in memories])
        return [_live(entry, memory) for entry, memory in zip(stored, memories, strict=True)]

    def reread(self, progress: Progress | None = None) -> None:
        """Read every live text again, for a model that did not make this store. Histories stay as they are.

        A text that is too long for this model keeps no state; it is still found, and refused when it is to be read.
        """
        limit = self._limit()
        total, done = self.collection.journal.live_count(), 0
        for entries in self.collection.journal.iter_live(_REREAD_BATCH):
            rows = [self.format.memory_ids(entry.memory.text) for entry in entries]
            short = [index for index, row in enumerate(rows) if len(row) <= limit]
            kept = self._keep_states([entries[i] for i in short], [rows[i] for i in short])
            states = dict(zip(short, kept, strict=True))
            raw = self._raw([entry.memory.text for entry in entries], self._given(entries))
            self.collection.rewrite(entries, raw, [states.get(index) for index in range(len(entries))])
            done += len(entries)
            if progress is not None:
                progress(done, total)
        self.collection.finish_rereading()

    def _limit(self) -> int:
        return self.model.context_limit - self.left().length - _ROOM

    def _given(self, entries: Sequence[Entry]) -> list[Vectors | None]:
        """Vectors that another embedder made do not depend on the model: they are kept."""
        if self.collection.foreign_dim is None:
            return [None] * len(entries)
        return self.collection.journal.vectors([entry.memory.id for entry in entries])

    def _raw(self, texts: Sequence[str], given: Sequence[Vectors | None]) -> list[Vectors | None]:
        """The given vectors, and this model's where there is none (never beside those of another embedder)."""
        if self.collection.foreign_dim is not None:
            return list(given)
        waiting = [text for text, vector in zip(texts, given, strict=True) if vector is None]
        made = iter(self.collection.embedder.encode(waiting, "context") if waiting else ())
        return [next(made) if vector is None else vector for vector in given]

    def _drafts(self, memories: Sequence[Memory], vectors: Sequence[Vectors | None]) -> list[Draft]:
        known = self.collection.entries([memory.id for memory in memories])
        fresh = {
            memory.id: (memory, vector)
            for memory, vector, entry in zip(memories, vectors, known, strict=True)
            if entry is None or self._differs(entry, memory, vector)
        }
        limit = self._limit()
        return [self._draft(memory, limit, vector) for memory, vector in fresh.values()]

    def _differs(self, entry: Entry, memory: Memory, vector: Vectors | None) -> bool:
        if entry.memory.digest != memory.digest or entry.memory.metadata != memory.metadata:
            return True
        if vector is None:
            return False
        kept = self.collection.journal.vectors([memory.id])[0]
        return kept is None or kept.shape != vector.shape or not np.allclose(kept, vector, atol=_SAME)

    def _draft(self, memory: Memory, limit: int, vector: Vectors | None) -> Draft:
        ids = self.format.memory_ids(memory.text)
        if len(ids) > limit:
            raise InvalidInputError(
                f"The text of {memory.id!r} has {len(ids)} tokens; {self.model.name} can keep {limit} in one memory.",
                hint="Split it into passages (nnm add does it by itself); nothing of this call was stored.",
            )
        return Draft(memory, ids, vector)

    def _store(self, drafts: Sequence[Draft]) -> None:
        entries = self.collection.journal.begin([draft.memory for draft in drafts])
        try:
            states = self._keep_states(entries, [draft.token_ids for draft in drafts])
            raw = self._raw([draft.memory.text for draft in drafts], [draft.vector for draft in drafts])
            self.collection.write(entries, raw, states)
        except BaseException:
            self.collection.abandon(entries)
            raise

    def _keep_states(self, entries: Sequence[Entry], rows: Sequence[tuple[int, ...]]) -> list[StoredState]:
        """Read the rows and store their states pass by pass, so that only one pass's states are ever in memory."""
        stored: dict[int, StoredState] = {}
        for batch in padded_batches([len(row) for row in rows], tokens_per_pass(self.model.device)):
            states = capture(
                self.model,
                [rows[i] for i in batch],
                self.left(),
                residual_layer=self.collection.codec.residual_layer,
            )
            for index, state in zip(batch, states, strict=True):
                stored[index] = self.collection.keep_state(entries[index].point, state)
        return [stored[index] for index in range(len(rows))]


def _commits(drafts: Sequence[Draft]) -> Iterator[list[Draft]]:
    group: list[Draft] = []
    tokens = 0
    for draft in drafts:
        if group and tokens + len(draft.token_ids) > TOKENS_PER_COMMIT:
            yield group
            group, tokens = [], 0
        group.append(draft)
        tokens += len(draft.token_ids)
    if group:
        yield group


def _live(entry: Entry | None, memory: Memory) -> Memory:
    # None only if another thread has deleted it since.
    return memory if entry is None else entry.memory
