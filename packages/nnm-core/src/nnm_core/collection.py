"""One namespace: its journal (the truth) and what is derived from it (vectors, whitening, states), kept in step."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnm_core.embedding.kv_embedding import KVEmbedder
from nnm_core.embedding.settings import EmbeddingSettings
from nnm_core.errors import IndexDamagedError, InvalidInputError, StoreMismatchError
from nnm_core.model.load import LoadedModel
from nnm_core.recall.by_vector import searching_parts
from nnm_core.recall.choose import choose_search
from nnm_core.recall.dialogue import Asking, answer_now
from nnm_core.recall.fusion import FusedHit
from nnm_core.recall.search import Searcher, SearchSettings
from nnm_core.records import Hit, Memory
from nnm_core.state_store import StateStore
from nnm_core.states.codecs import DEFAULT, Codec, Reader, make_codec
from nnm_core.states.state import PlacedState, State
from nnm_core.storage.blobs import BlobStore, open_blobs
from nnm_core.storage.index import VectorIndex, open_index
from nnm_core.storage.journal import Journal
from nnm_core.storage.journal_records import Entry, Removal, StateRef, Write
from nnm_core.storage.lock import NamespaceLock
from nnm_core.storage.paths import make_private_directory, namespace_directory
from nnm_core.storage.recovery import carry_out, recover
from nnm_core.token_level import TokenLevel
from nnm_core.transforms import Transforms, Vectors

logger = logging.getLogger(__name__)

_BATCH = 512
_FIRST_FIT = 16
# The choice of search weights embeds 64 documents again: from here on that is a small part of what they cost anyway.
# A smaller collection ranks by words, and by meaning where words find nothing.
_CHOOSE_FROM = 256
# Documents among which the own sentences have to find theirs when the search weights are chosen.
_CHOICE_SAMPLE = 2000
# Behind a version's point: the key of its second state, computed behind its neighbours.
_FUSED = "+fused"
# What the token level has to say beside the fused rankings' 1.
_TOKEN_WEIGHT = 0.3


@dataclass(frozen=True)
class StoreSettings:
    """Where and how a namespace is kept.

    Attributes:
        path: the store's root folder; None keeps everything in RAM.
        namespace: the compartment.
        url: address of a Qdrant server for the vectors; None uses the embedded index.
        api_key: of that server; None takes QDRANT_API_KEY from the environment. Never stored, and not in the repr.
        state_quota: bytes of states to keep on disk, least recently used out first; None for no limit.
        codec: how states are kept (`nnm_core.states.codecs`); None for as they are, ``native`` in a new namespace.
        int8: keep vectors in a byte a number; None for as they are, 32 bits in a new namespace.
        tokens: keep token vectors and score candidates anew with them; None for as it is, without in a new namespace.
    """

    path: Path | None = None
    namespace: str = "default"
    url: str | None = None
    api_key: str | None = field(default=None, repr=False)
    state_quota: int | None = None
    codec: str | None = None
    int8: bool | None = None
    tokens: bool | None = None


@dataclass(frozen=True)
class StoredState:
    """Where a state was stored, and of how many tokens it is."""

    ref: StateRef
    tokens: int


class Collection:
    """The memories of one namespace as one model sees them. One object a namespace and process."""

    def __init__(
        self,
        model: LoadedModel,
        settings: StoreSettings,
        *,
        left: Callable[[], PlacedState],
        rebuild: bool = False,
    ) -> None:
        """Open or create; see `NNM.open` for the errors.

        Args:
            left: the state of the canonical left context, made on demand.
        """
        self.model = model
        self.settings = settings
        self._left = left
        self._folder = None if settings.path is None else namespace_directory(settings.path, settings.namespace)
        self._lock = None if self._folder is None else NamespaceLock(make_private_directory(self._folder)).acquire()
        self._open: list[Callable[[], None]] = [] if self._lock is None else [self._lock.release]
        try:
            self._open_parts(rebuild=rebuild)
        except BaseException:
            self.close()
            raise

    def _open_parts(self, *, rebuild: bool) -> None:
        folder = self._folder
        self.journal = Journal(None if folder is None else folder / "journal.db", namespace=self.settings.namespace)
        self._open.append(self.journal.close)
        # Length of the vectors if another embedder makes them; None if the engine's own does.
        self.foreign_dim: int | None = self.journal.get_setting("foreign_dim")
        self.embedder = KVEmbedder(self.model, self._embedding_settings())
        self.needs_rereading = self._check_model(rebuild=rebuild)
        self._load_index_options()
        states = None if folder is None else folder / "states"
        self.blobs: BlobStore = open_blobs(states, quota=self.settings.state_quota)
        self._open.append(self.blobs.close)
        self.states = StateStore(self.blobs, self._choose_codec(), Reader(self.model, self._left))
        self.index, damaged = self._open_index()
        self._open.append(lambda: self.index.close())
        self._load_transforms(fresh=self.needs_rereading)
        recovery = recover(self.journal, self.index, self.blobs)
        torn = damaged or recovery.missing_points or self.journal.get_setting("reindexing", default=False)
        if torn and not self.needs_rereading:
            self.reindex()

    def _embedding_settings(self) -> EmbeddingSettings:
        """The namespace's own where this model made it, else the defaults."""
        known = self.journal.get_setting("model")
        if known is not None and known["identity"] == self.model.identity and self.journal.live_count() > 0:
            return EmbeddingSettings.from_json(self.journal.get_setting("embedding") or known["embedding"])
        # Without the attention seam there is no slot to re-route through; the vectors are then plain pooled states.
        return EmbeddingSettings() if self.model.intervenes else EmbeddingSettings(route="off")

    def choose_embedding(self, settings: EmbeddingSettings) -> None:
        """From now on embed in another way; all texts have to be read again (`needs_rereading`)."""
        self.journal.set_setting("embedding", settings.to_json())
        self.embedder = KVEmbedder(self.model, settings)
        self.needs_rereading = True
        self._begin_anew()

    def _begin_anew(self) -> None:
        """An empty index for vectors of another kind, and nothing that was fitted to the old ones."""
        self._load_index_options()
        self.index.close()
        folder, options = self._index_place()
        self.index = open_index(folder, **options, fresh=True)
        self._load_transforms(fresh=True)

    def _choose_codec(self) -> Codec:
        """The codec asked for, else the namespace's own. States in another form are converted when they are used."""
        known = self.journal.get_setting("codec")
        codec = make_codec(self.settings.codec or known or DEFAULT)
        codec.check(self.model)
        if codec.name != known:
            self.journal.set_setting("codec", codec.name)
        return codec

    @property
    def codec(self) -> Codec:
        """How states are kept."""
        return self.states.codec

    def _check_model(self, *, rebuild: bool) -> bool:
        """Whether another model made this namespace and all its texts must be read again.

        Raises:
            StoreMismatchError: it did, and `rebuild` is off.
        """
        known = self.journal.get_setting("model")
        current = self._model_note()
        if known is None or self.journal.live_count() == 0:
            self.journal.set_setting("model", current)
        elif known["identity"] == current["identity"]:
            return bool(known["embedding"] != current["embedding"])  # `choose_embedding` was interrupted
        else:
            if rebuild:
                return True
            raise StoreMismatchError(
                f"The namespace {self.settings.namespace!r} was made with the model {known['name']!r}, not with "
                f"{self.model.name!r}: its vectors and states mean nothing to this model.",
                hint="Open it with that model, or with rebuild=True (nnm: --rebuild) to read all its texts again.",
            )
        return False

    def _model_note(self) -> dict[str, str]:
        settings = self.embedder.settings.to_json()
        return {"identity": self.model.identity, "name": self.model.name, "embedding": settings}

    def _index_place(self) -> tuple[Path | None, dict[str, Any]]:
        folder = None if self._folder is None or self.settings.url is not None else self._folder / "index"
        options: dict[str, Any] = {
            "namespace": self.settings.namespace,
            "dim": self.dim,
            "url": self.settings.url,
            "api_key": self.settings.api_key,
            "token_dim": None if self.token_level is None else self.token_level.dim,
            "eight_bits": self._int8,
        }
        return folder, options

    def _load_index_options(self) -> None:
        """What the index keeps: what is asked for, else what was; another wish makes the index anew."""
        known = self.journal.get_setting("index", default={"int8": False, "tokens": False})
        asked = {"int8": self.settings.int8, "tokens": self.settings.tokens}
        wanted = {name: bool(known[name] if asked[name] is None else asked[name]) for name in known}
        self._int8 = wanted["int8"]
        if wanted != known:
            self.journal.set_setting("reindexing", self.journal.live_count() > 0)
            self.journal.set_setting("index", wanted)
        self.token_level: TokenLevel | None = None
        if wanted["tokens"] and self.foreign_dim is None:
            fresh = self.needs_rereading
            self.token_level = TokenLevel(self.model, self.journal, self.embedder.settings, fresh=fresh)

    def _open_index(self) -> tuple[VectorIndex, bool]:
        """The index, and whether it has to be filled from the journal."""
        folder, options = self._index_place()
        if self.needs_rereading:
            return open_index(folder, **options, fresh=True), False
        missing = folder is not None and not folder.exists() and self.journal.live_count() > 0
        try:
            return open_index(folder, **options), missing
        except (IndexDamagedError, StoreMismatchError) as error:
            if isinstance(error, StoreMismatchError) and not self.journal.get_setting("reindexing", default=False):
                raise
            logger.warning("%s It is built again from the journal.", error)
            return open_index(folder, **options, fresh=True), True

    @property
    def dim(self) -> int:
        """Length of the vectors that are compared here."""
        return self.embedder.dim if self.foreign_dim is None else self.foreign_dim

    def settle_vectors(self, dim: int | None) -> None:
        """Say whose vectors come next: the engine's own (None) or another embedder's, of `dim` numbers.

        An empty namespace takes either; after that it keeps to what it has.

        Raises:
            StoreMismatchError: there are memories with vectors of the other kind.
        """
        if dim == self.foreign_dim or (dim is None and self.journal.live_count() > 0):
            return  # texts without vectors may join foreign ones: words find them
        if self.journal.live_count() > 0:
            kind = "its own model" if self.foreign_dim is None else f"another embedder ({self.foreign_dim} numbers)"
            raise StoreMismatchError(
                f"The namespace {self.settings.namespace!r} holds vectors made by {kind}; these are different ones.",
                hint="Use another namespace for other vectors, or delete the memories first.",
            )
        self.journal.set_setting("foreign_dim", dim)
        self.journal.set_setting("whitening", None)
        self.foreign_dim = dim
        self._begin_anew()

    def close(self) -> None:
        """Release files and the lock, in the reverse order of opening."""
        while self._open:
            self._open.pop()()

    # -- transforms ---------------------------------------------------------------------------------------------

    def _load_transforms(self, *, fresh: bool = False) -> None:
        self.transforms = Transforms(
            self.journal,
            self.model.tokenizer,
            dim=self.dim,
            foreign=self.foreign_dim is not None,
            token_level=self.token_level,
            fresh=fresh,
        )
        search = self.journal.get_setting("search")
        self.searcher = Searcher(
            self.index,
            dense=self.dense_query if self.foreign_dim is None else None,
            sparse=self.transforms.words,
            tokens=None if self.token_level is None else self.token_level.query,
            settings=self._search_settings(search),
        )

    def _search_settings(self, saved: Any) -> SearchSettings:
        settings = SearchSettings(**saved) if saved else SearchSettings()
        if self.token_level is None or "tokens" in settings.weights:
            return settings
        return settings.with_weights(tokens=_TOKEN_WEIGHT)

    def dense_query(self, text: str) -> Vectors:
        """The query side of the engine's own vectors."""
        return self.transforms.dense(self.embedder.encode([text], "query")[0])

    def refit_if_grown(self) -> None:
        """Fit whitening and mean length anew when the collection has doubled; amortised linear in its size."""
        count = self.journal.live_count()
        if count >= max(_FIRST_FIT, 2 * self.transforms.fitted_on):
            self.reindex(refit=True)

    def reindex(self, *, refit: bool = False) -> None:
        """Write every point of the index anew from the journal's texts and raw vectors; no text is read by the model,
        but for token vectors that the index does not have.

        A kill in between is noticed at the next open, and the work is done again.
        """
        self.journal.set_setting("reindexing", True)
        if refit:
            self.transforms.refit(self.journal.iter_raw(_BATCH))
        remake = False
        for batch in self.journal.iter_raw(_BATCH):
            entries = [entry for entry, _ in batch]
            remake = remake or (refit and self.transforms.scale_tokens(entries))
            raw = [vector for _, vector in batch]
            self.index.upsert(self.transforms.points(entries, raw, self.index, remake_tokens=remake))
        if refit and self.foreign_dim is None and self.journal.live_count() >= _CHOOSE_FROM:
            self._choose_weights()
        self.journal.set_setting("reindexing", False)

    def _choose_weights(self) -> None:
        """Let the collection's own sentences decide what the dense ranking is worth beside the words."""
        batch = next(self.journal.iter_raw(_CHOICE_SAMPLE), [])
        known = [(entry.memory.text, vector) for entry, vector in batch if vector is not None]
        settings, _ = choose_search(
            [text for text, _ in known],
            np.stack([vector for _, vector in known]).astype(np.float32),
            embedder=self.embedder,
            whitening=self.transforms.whitening,
            sparse=self.transforms.sparse,
            base=self.searcher.settings,
        )
        self.searcher.settings = settings
        self.journal.set_setting("search", settings.to_dict())

    # -- writing ------------------------------------------------------------------------------------------------

    def keep_state(self, point: str, state: State) -> StoredState:
        """Store the state of a version that is not live yet."""
        self.states.put(point, state)
        return StoredState(StateRef(point, state.chain), len(state.token_ids))

    def keep_fused(self, entry: Entry, state: State, sources: Sequence[str]) -> bool:
        """Store a second state of a live version, computed behind other versions; it goes when one of them goes.

        Args:
            sources: the points of those versions.

        Returns:
            False if one of them, or the version itself, is not live any more; nothing is kept then.
        """
        key = entry.point + _FUSED
        self.states.put(key, state)
        if self.journal.add_state(entry.point, StateRef(key, state.left, tuple(sources))):
            return True
        self.blobs.delete([key])
        return False

    def write(self, entries: Sequence[Entry], raw: Sequence[Vectors | None], states: Sequence[StoredState]) -> None:
        """Make pending `entries` live, after their states: first the vectors, then the journal's commit."""
        if self.journal.live_count() == 0:
            self.transforms.scale_tokens(entries)
        self.remove(self.journal.commit(self._indexed(entries, raw, states)))

    def rewrite(
        self, entries: Sequence[Entry], raw: Sequence[Vectors | None], states: Sequence[StoredState | None]
    ) -> None:
        """Replace what another model derived from live `entries`."""
        self.remove(self.journal.rederive(self._indexed(entries, raw, states)))

    def _indexed(
        self, entries: Sequence[Entry], raw: Sequence[Vectors | None], states: Sequence[StoredState | None]
    ) -> list[Write]:
        """What the journal keeps; the index has its points already, made of what is kept and so the same again."""
        # Half precision is plenty for our own vectors; those of others are given back as they came.
        kind = np.float16 if self.foreign_dim is None else np.float32
        kept = [None if row is None else row.astype(kind) for row in raw]
        self.index.upsert(self.transforms.points(entries, kept, self.index))
        return [_write(entry, row, state) for entry, row, state in zip(entries, kept, states, strict=True)]

    def finish_rereading(self) -> None:
        """From now on the namespace belongs to this model."""
        self.needs_rereading = False
        self.journal.set_setting("model", self._model_note())
        self.journal.set_setting("embedding", None)
        self.refit_if_grown()

    def abandon(self, entries: Sequence[Entry]) -> None:
        """Give up pending `entries`, with the states and vectors that were already stored for them."""
        points = [entry.point for entry in entries]
        self.remove(self.journal.abort(points))
        # The journal learns of states at the commit only; until then a state is known by its version's point alone.
        self.blobs.delete(points)

    def remove(self, removal: Removal) -> None:
        """Take from index and states what has no memory any more."""
        carry_out(removal, self.journal, self.index, self.blobs)

    # -- reading ------------------------------------------------------------------------------------------------

    def find_state(self, memory: Memory) -> State | None:
        """The stored state of this version of the memory, or None: not there, another model's, damaged, evicted."""
        return self._find_state(memory, fused=False)

    def find_fused(self, memory: Memory) -> State | None:
        """Its second state, computed behind its neighbours; None as in `find_state`."""
        state = self._find_state(memory, fused=True)
        return None if state is None else state.as_fused()

    def _find_state(self, memory: Memory, *, fused: bool) -> State | None:
        for ref in self._states_of(memory):
            if ref.key.endswith(_FUSED) == fused:
                state = self.states.get(ref.key, lambda ref=ref: ref in self._states_of(memory))  # type: ignore[misc]
                if state is not None:
                    return state
        return None

    def _states_of(self, memory: Memory) -> tuple[StateRef, ...]:
        entry = self.journal.get([memory.id])[0]
        if entry is None or entry.memory.version != memory.version or entry.memory.digest != memory.digest:
            return ()
        return entry.states

    def search(
        self, query: str, k: int, filter: Any, *, vector: Vectors | None = None, alpha: float | None = None
    ) -> list[Hit]:
        """`searching`, on an index that answers at once."""
        return answer_now(self.searching(query, k, filter, vector=vector, alpha=alpha), self.index)

    def searching(
        self, query: str, k: int, filter: Any, *, vector: Vectors | None = None, alpha: float | None = None
    ) -> Asking[list[Hit]]:
        """The `k` best live memories; points without one (a removal was interrupted) are passed over.

        Without an `alpha` it is searched in the way that suits the collection, or by the vector if there is no text
        or the vector is another embedder's.
        """
        if alpha is None and query.strip() and (vector is None or self.foreign_dim is None):
            asked = None if vector is None else self.transforms.dense(vector)
            found = yield from self.searcher.searching(query, k, filter=filter, vector=asked)
        else:
            found = yield from self._searching_parts(query, k, filter, vector, 1.0 if alpha is None else alpha)
        entries = self.journal.by_points([hit.id for hit in found])
        pairs = zip(found, entries, strict=True)
        return [Hit(entry.memory, hit.score, hit.parts) for hit, entry in pairs if entry is not None]

    def _searching_parts(
        self, query: str, k: int, filter: Any, vector: Vectors | None, alpha: float
    ) -> Asking[list[FusedHit]]:
        dense = None
        if vector is not None:
            if len(vector) != self.dim and self.journal.live_count() == 0:
                return []  # nothing has said yet how long vectors are here
            dense = self.transforms.dense(vector)
        elif alpha > 0 and self.foreign_dim is not None:
            raise InvalidInputError(
                "This namespace has vectors of another embedder; a text alone cannot be compared with them.",
                hint="Pass the query's vector too, or alpha=0 to search by words.",
            )
        elif alpha > 0:
            dense = self.dense_query(query)
        words = self.transforms.words(query) if alpha < 1 else None
        hits = yield from searching_parts(dense=dense, sparse=words, alpha=alpha, limit=k, filter=filter)
        return hits

    def entries(self, ids: Iterable[str]) -> list[Entry | None]:
        """The live versions of `ids`, in order."""
        return self.journal.get(list(ids))


def _write(entry: Entry, vector: NDArray[Any] | None, state: StoredState | None) -> Write:
    refs, tokens = ((), 0) if state is None else ((state.ref,), state.tokens)
    return Write(entry.point, vector, tokens, refs)
