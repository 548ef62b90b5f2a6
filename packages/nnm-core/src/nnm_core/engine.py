"""NNM, the whole path: open, add, search, answer, forget.

ingest   text -> one reading behind the canonical left context -> state;  compression pass -> vector
recall   query -> vectors -> fused hits, each leased
answer   prompt -> segments -> plan -> load or read -> decode -> receipt
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any

from numpy.typing import ArrayLike

from nnm_core.answering import Answerer, Request, in_order
from nnm_core.asynchronous import AsyncFace
from nnm_core.collection import Collection, StoreSettings
from nnm_core.errors import EngineClosedError, InvalidInputError, MemoryNotFoundError
from nnm_core.fusing import FuseFace
from nnm_core.ingest import Ingest, new_memories
from nnm_core.injection.compose import Composer
from nnm_core.injection.compose import composer as pick
from nnm_core.injection.compose.parallel import Parallel
from nnm_core.injection.generate import DecodeSettings
from nnm_core.injection.guide import Grammar
from nnm_core.injection.prefill import memory_point
from nnm_core.injection.selftest import SelfTest, self_test
from nnm_core.injection.settings import AS_READ, InjectionSettings
from nnm_core.injection.tree import DEFAULT_BUDGET, Node, StateTree
from nnm_core.model.fingerprint import digest
from nnm_core.model.load import MINI, LoadedModel, ModelSettings, load_model
from nnm_core.model.prompt import DEFAULT_SYSTEM, PromptFormat, PromptMessage, question_prompt
from nnm_core.planning import PlanFace, open_planner
from nnm_core.recall.dialogue import Asking, answer_now
from nnm_core.recall.leases import LeaseBook
from nnm_core.recalling import Recall, describe
from nnm_core.records import Answer, Hit, Memory, Message, Missing, Mode, Order, Overflow, Policy
from nnm_core.scoring import ScoreFace
from nnm_core.states.capture import capture, place
from nnm_core.states.state import PlacedState
from nnm_core.storage.filters import parse_filter
from nnm_core.together import Answering, BatchFace
from nnm_core.vectors import VectorFace, Vectors, given_vectors, one_vector

Question = str | Sequence[Message]


class NNM(VectorFace, ScoreFace, AsyncFace, PlanFace, BatchFace, FuseFace):
    """A model and one namespace of memories. Use as a context manager, or call `close()`."""

    def __init__(
        self,
        model: LoadedModel,
        store: StoreSettings,
        *,
        system: str | None = DEFAULT_SYSTEM,
        thinking: bool = False,
        state_cache: int = DEFAULT_BUDGET,
        rebuild: bool = False,
    ) -> None:
        """Most callers use `NNM.open`; this takes a model that is loaded already, and may be shared."""
        self.model = model
        self.namespace = store.namespace
        self.system = system
        self.leases = LeaseBook()
        self._format = PromptFormat(model.tokenizer, thinking=thinking)
        self._tree = StateTree(state_cache)
        self._writing = threading.RLock()
        self._closed = False
        self._collection = Collection(model, store, left=self._left_state, rebuild=rebuild)
        self._ingest = Ingest(model, self._format, self._collection, self._left_state)
        self._recall = Recall(model, self._format, self._collection, self._left_state)
        self._answerer = Answerer(
            model,
            self._format,
            self._tree,
            self._collection.find_state,
            fingerprint=digest(model.fingerprint, self._collection.codec.name),
            refusal=self.selftest.refusal,
            whole=self._collection.codec.whole,
            planner=open_planner(model, self._collection),
            find_fused=self._collection.find_fused,
        )
        if self._collection.needs_rereading:
            self._reread()

    @classmethod
    def open(
        cls,
        model: str | LoadedModel = MINI,
        path: str | Path | None = None,
        *,
        namespace: str = "default",
        system: str | None = DEFAULT_SYSTEM,
        thinking: bool = False,
        url: str | None = None,
        api_key: str | None = None,
        state_quota: int | None = None,
        state_cache: int = DEFAULT_BUDGET,
        codec: str | None = None,
        int8: bool | None = None,
        tokens: bool | None = None,
        rebuild: bool = False,
        **model_settings: Any,
    ) -> NNM:
        """Open a namespace with a model, creating the store if there is none.

        Args:
            model: ``nnm-mini``, a folder or hub name of a decoder, or a model that is loaded already.
            path: the store's folder; None keeps everything in RAM.
            namespace: nothing crosses namespaces: texts, vectors, states, counts.
            system: the system prompt of `answer`; part of the left context that memories are read behind.
            thinking: let models with a thinking switch think.
            url: a Qdrant server for the vectors, in place of the embedded index.
            api_key: of that server; None takes QDRANT_API_KEY from the environment. It is sent, and kept nowhere.
            state_quota: bytes of states to keep on disk; None for no limit.
            state_cache: bytes of placed states to keep in RAM.
            codec: how states are stored, ``native``, ``int8``, ``int4``, ``residual-int8`` or ``tokens``; kept with the
                namespace. None leaves it as it is. States in another form are converted when they are used.
            int8: keep vectors in a byte a number; tokens: keep token vectors and score candidates anew with them. Both
                are off in a new namespace and kept with it; another wish than before makes the index anew.
            rebuild: read all texts again if another model made the store.
            **model_settings: fields of `ModelSettings`: device, dtype, quantize, revision, attention,
                trust_remote_code.

        Raises:
            ModelNotFoundError, UnsupportedModelError: the model cannot be had or cannot be used.
            StoreLockedError: another process has the namespace open.
            StoreMismatchError: another model made the store and `rebuild` is off.
            StorageError: the store cannot be read or written.
        """
        try:
            settings = ModelSettings(**model_settings)
        except TypeError as error:
            raise InvalidInputError(f"NNM.open: {error}.", hint=f"It takes {', '.join(_MODEL_FIELDS)}.") from error
        loaded = model if isinstance(model, LoadedModel) else load_model(model, settings)
        folder = None if path is None else Path(path)
        store = StoreSettings(folder, namespace, url, api_key, state_quota, codec, int8, tokens)
        return cls(loaded, store, system=system, thinking=thinking, state_cache=state_cache, rebuild=rebuild)

    # -- ingest -------------------------------------------------------------------------------------------------

    def add(
        self,
        texts: str | Sequence[str],
        ids: str | Sequence[str | None] | None = None,
        metadatas: Mapping[str, Any] | Sequence[Mapping[str, Any] | None] | None = None,
        *,
        vectors: ArrayLike | None = None,
        foreign: bool = False,
        progress: bool | Callable[[int, int], None] = False,
    ) -> list[Memory]:
        """Read texts once and keep text, state and vectors. One text is accepted in place of a list.

        Adding is idempotent: what is already there unchanged costs nothing; a known id with another text becomes
        its next version. What is returned is durable.

        Args:
            texts: non-empty strings, each at most as long as the model's context allows.
            ids: your own ids; without one a text gets an id made of its digest.
            metadatas: JSON-like mappings.
            vectors: [n, dim] raw vectors from `embed`, which are not made again then.
            foreign: the vectors are another embedder's, of any length; a namespace holds one kind only.
            progress: True draws a progress bar; a function is called with (done, total).

        Returns:
            the live records, in the order of `texts`.

        Raises:
            InvalidInputError: nothing of this call was stored then.
            StoreMismatchError: the namespace holds vectors of another kind.
            StorageError: the disk is full or cannot be written; what was stored before is not harmed.
        """
        self._check_open()
        if isinstance(texts, str):
            texts = [texts]
            ids = [ids] if isinstance(ids, str) else ids
            metadatas = [metadatas] if isinstance(metadatas, Mapping) else metadatas
        if isinstance(ids, str) or isinstance(metadatas, Mapping):
            raise InvalidInputError("Several texts need a list of ids and a list of metadatas.")
        memories = new_memories(texts, ids, metadatas, self.namespace)
        rows = given_vectors(vectors, len(memories))
        with self._writing:
            if memories:
                self._collection.settle_vectors(len(rows[0]) if foreign and rows[0] is not None else None)
            if progress is True:
                from nnm_core.progress import bar

                with bar("Reading", len(memories)) as update:
                    return self._add(memories, rows, update)
            return self._add(memories, rows, progress or None)

    def _add(
        self,
        memories: Sequence[Memory],
        vectors: Sequence[Vectors | None],
        progress: Callable[[int, int], None] | None,
    ) -> list[Memory]:
        changed = [memory.id for memory in memories]
        added = self._ingest.add(memories, progress, vectors)
        versions = {memory.id: memory.version for memory in added}
        self._tree.forget(memory_point(self.namespace, i, v) for i in changed for v in range(1, versions[i]))
        return added

    def _left_state(self) -> PlacedState:
        """State of the canonical left context, computed on first use and pinned."""
        return self._canonical_left

    @cached_property
    def _canonical_left(self) -> PlacedState:
        ids = self._format.left_context(self.system)
        state = place(self.model, capture(self.model, [ids])[0], 0)
        self._tree.put(Node(state, frozenset()), pin=True)
        return state

    def _reread(self) -> None:
        with self._writing:
            self._ingest.reread()

    # -- recall -------------------------------------------------------------------------------------------------

    def search(
        self,
        query: str = "",
        k: int = 4,
        filter: Any = None,
        *,
        scope: str = "",
        vector: ArrayLike | None = None,
        alpha: float | None = None,
        rerank: bool = False,
    ) -> list[Hit]:
        """The `k` memories that fit `query` best, best first; each hit takes a lease in `scope`.

        Args:
            query: a question or any text.
            k: how many at most.
            filter: metadata conditions, e.g. ``{"year": {"$gte": 2020}, "lang": "de"}``; never fails open.
            scope: conversation or request that may inject these memories into its prompts.
            vector: the query's raw vector [dim] from `embed`, or from the foreign embedder; the text may be empty.
            alpha: 1 ranks by vectors alone, 0 by words alone, between them both count; None leaves it to the
                collection (by the vector alone if there is no text, or if it is a foreign one).
            rerank: read the query once over the candidates' stored states and rank by what they say (see `tune`).

        Raises:
            FilterError: a malformed or unsupported filter.
        """
        asking = self._searching(query, k, filter, scope=scope, vector=vector, alpha=alpha, rerank=rerank)
        return answer_now(asking, self._collection.index)

    def _searching(
        self, query: str = "", k: int = 4, filter: Any = None, *, scope: str = "", vector: Any = None, **how: Any
    ) -> Asking[list[Hit]]:
        self._check_open()
        asked = one_vector(vector)
        if not query.strip() and (asked is None or how.get("alpha") not in (None, 1)):
            raise InvalidInputError("The query is empty.", hint="Ask something.")
        if k < 1:
            raise InvalidInputError(f"k is {k}.", hint="Ask for at least one memory.")
        hits = yield from self._recall.searching(query, k, parse_filter(filter), vector=asked, **how)
        self.leases.take((hit.memory for hit in hits), scope=scope)
        return hits

    def tune(self, count: int = 64) -> dict[str, Any]:
        """Choose retrieval heads and weights for `search(rerank=True)` on own sentences; stored with the namespace.

        Args:
            count: documents that are read again, each without the sentence that has to find it.
        """
        self._check_open()
        with self._writing:
            return describe(self._recall.tune(count))

    def get(self, ids: str | Sequence[str], *, missing: Missing = "raise") -> list[Memory]:
        """The memories with these ids, in order.

        Args:
            missing: ``raise``, or ``skip`` ids that do not exist in this namespace.

        Raises:
            MemoryNotFoundError: one of them does not exist in this namespace.
        """
        self._check_open()
        _check_choice("missing", missing, ("raise", "skip"))
        wanted = [ids] if isinstance(ids, str) else list(ids)
        entries = self._collection.entries(wanted)
        for memory_id, entry in zip(wanted, entries, strict=True):
            if entry is None and missing == "raise":
                raise MemoryNotFoundError(f"No memory {memory_id!r} in namespace {self.namespace!r}.")
        return [entry.memory for entry in entries if entry is not None]

    def history(self, id: str) -> list[Memory]:
        """All versions under an id, oldest first. A deleted memory keeps its history until it is forgotten."""
        self._check_open()
        return [entry.memory for entry in self._collection.journal.history(id) if not entry.tombstone]

    # -- answer -------------------------------------------------------------------------------------------------

    def answer(
        self,
        question: Question,
        k: int = 4,
        max_tokens: int = 64,
        **options: Any,
    ) -> Answer:
        """Answer from memory; `stream` has the same arguments and explains them."""
        for chunk in self.stream(question, k, max_tokens, **options):
            if chunk.answer is not None:
                return chunk.answer
        raise RuntimeError("the stream ended without an answer")  # decode always ends with a final chunk

    def stream(
        self,
        question: Question,
        k: int = 4,
        max_tokens: int = 64,
        *,
        memories: Sequence[str | Memory | Hit] | None = None,
        references: Sequence[Memory] = (),
        policy: Policy = "auto",
        composer: str | Composer | None = None,
        fused: bool = False,
        order: Order = "ranked",
        injection: InjectionSettings = AS_READ,
        budget: int | None = None,
        mode: Mode = "inject",
        filter: Any = None,
        rerank: bool = False,
        overflow: Overflow = "raise",
        scope: str = "",
        strict: bool = False,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
        stop: str | Sequence[str] = (),
        seed: int | None = None,
        grammar: Grammar | None = None,
    ) -> Answering:
        """Answer from memory, piece by piece; the last chunk carries the finished `Answer`.

        Args:
            question: a question, for which memories are recalled; or a chat prompt (`Message`s), in which the
                text of memories leased to `scope` is replaced by their states and the rest is read.
            k: how many memories to recall.
            max_tokens: length of the answer at most.
            memories: use these, in this order, in place of a search: ids, memories or hits. In a chat prompt those
                whose text does not stand in it are put before the last user turn.
            references: memories to look for in a chat prompt, beside the leased ones.
            policy: ``exact`` injects only states that make the answer equal to reading, and reads the rest; ``fast``
                also composes: it places states side by side that were not computed together; ``auto`` does so where
                the composer's measured agreement with reading is high enough (``nnm doctor --calibrate``).
            composer: how states are placed side by side (`nnm_core.injection.compose.names`).
            fused: compose from the states that `fuse` has made, where there are any; with ``policy="fast"`` only.
            order: ``ranked`` puts the best memory first; ``canonical`` sorts the memories by id, so that the same
                memories stand in the same order whatever was asked, and more of them are found exact. It has no say
                over memories whose text stands in a chat prompt already.
            injection: how strongly, and in which layers, the memories are felt; by default as if they were read.
            budget: most tokens of the prompt; the lowest ranked memories of a question are dropped until it fits.
            mode: ``inject``; ``read`` reads the very same tokens; ``bare`` asks without any memory.
            filter: metadata conditions for the search.
            rerank: as in `search`.
            overflow: what to do when the memories do not fit the context: ``raise``, or ``drop`` the lowest ranked.
            scope: whose leases count.
            strict: raise where a memory would be read as text, unless it is read once to be kept.
            temperature, top_p, top_k, seed: sampling; greedy by default.
            stop: strings that end the answer.
            grammar: the only form that the answer may have, such as `JsonSchema({...})`.

        Raises:
            ContextOverflowError: the prompt is too long; nothing is ever cut silently.
            MemoryNotInjectedError: `strict` forbids what would have to be done.
        """
        started = time.perf_counter()
        self._check_open()
        _check_choice("mode", mode, ("inject", "read", "bare"))
        _check_choice("policy", policy, ("exact", "auto", "fast"))
        _check_choice("order", order, ("ranked", "canonical"))
        _check_choice("overflow", overflow, ("raise", "drop"))
        stops = (stop,) if isinstance(stop, str) else tuple(stop)
        decoding = DecodeSettings(max_tokens, temperature, top_p, top_k, stops, seed, grammar)
        if isinstance(question, str):
            hits = self._hits(question, memories, mode, k=k, filter=filter, scope=scope, rerank=rerank)
            placed = in_order([hit.memory for hit in hits], order)
            messages: list[PromptMessage] = question_prompt(question, placed, self.system)
        else:
            hits, messages = self._chat(question, memories, references, mode, scope, order, strict=strict)
        automatic = self.planner.automatic if policy == "auto" and injection == AS_READ else None
        way = pick(composer or automatic, self.model, plain=injection != AS_READ)
        _check_fused(fused, policy, way)
        how: dict[str, Any] = {"composer": way, "order": order, "injection": injection, "budget": budget}
        request = Request(messages, hits, mode, policy, decoding, started, strict=strict, fused=fused, **how)
        if (overflow == "drop" or budget is not None) and isinstance(question, str):
            request = self._answerer.drop_until_fit(request, question, self.system)
        self._left_state()
        return Answering(self._answerer, request)

    def _hits(
        self, question: str, memories: Sequence[str | Memory | Hit] | None, mode: Mode, **recall: Any
    ) -> tuple[Hit, ...]:
        if not question.strip():
            raise InvalidInputError("The question is empty.", hint="Ask something.")
        if mode == "bare":
            return ()
        if memories is None:
            return tuple(self.search(question, **recall))
        return self._given(memories)

    # -- removal and upkeep -------------------------------------------------------------------------------------

    def delete(self, ids: str | Iterable[str]) -> int:
        """Take memories out of recall, with their states and vectors; their history stays. Unknown ids are ignored.

        Returns:
            how many were there.
        """
        return self._remove(ids, forget=False)

    def forget(self, ids: str | Iterable[str]) -> int:
        """Erase memories and everything derived from them, history included, from RAM and from disk.

        Returns:
            how many ids were known, deleted ones included.
        """
        return self._remove(ids, forget=True)

    def _remove(self, ids: str | Iterable[str], *, forget: bool) -> int:
        self._check_open()
        gone = [ids] if isinstance(ids, str) else list(dict.fromkeys(ids))
        journal = self._collection.journal
        with self._writing:
            histories = {memory_id: journal.history(memory_id) for memory_id in gone}
            live = sum(entry is not None for entry in self._collection.entries(gone))
            removal = journal.forget(gone) if forget else journal.delete(gone)
            self._collection.remove(removal)
            self.leases.drop(gone)
            versions = (entry.memory for entries in histories.values() for entry in entries)
            self._tree.forget(memory_point(self.namespace, memory.id, memory.version) for memory in versions)
        return sum(bool(entries) for entries in histories.values()) if forget else live

    @cached_property
    def selftest(self) -> SelfTest:
        """What the model's self-test found (cached per fingerprint)."""
        return self_test(self.model)

    def stats(self) -> dict[str, Any]:
        """Counts and sizes of this namespace, and what it was opened with."""
        self._check_open()
        return {
            "namespace": self.namespace,
            "memories": self._collection.journal.live_count(),
            "tokens": self._collection.journal.token_count(),
            "bytes_states": self._collection.blobs.nbytes(),
            **self._tree.stats(),
            "whitening_fitted_on": self._collection.transforms.fitted_on,
            "model": self.model.name,
            "device": str(self.model.device),
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "context_limit": self.model.context_limit,
            "positions": self.model.positions.family,
            "codec": self._collection.codec.name,
            "fingerprint": self._answerer.fingerprint,
            "selftest": {**asdict(self.selftest), "passed": self.selftest.passed},
            "planner": self.planner.report(),
            "batches": asdict(self._batch_use),
        }

    def close(self) -> None:
        """Give back files and the lock; a second call does nothing."""
        if not self._closed:
            self._closed = True
            self._end_writer()
            self._tree.clear()
            self._collection.close()

    def _check_open(self) -> None:
        if self._closed:
            raise EngineClosedError("This NNM is closed.", hint="Open it again with NNM.open.")

    def __enter__(self) -> NNM:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


_MODEL_FIELDS = tuple(ModelSettings.__dataclass_fields__)


def _check_fused(fused: bool, policy: Policy, composer: Composer) -> None:
    if fused and policy != "fast":
        raise InvalidInputError(
            f"fused=True goes with policy='fast', not with {policy!r}: such states are never those of reading, and how "
            "near they come has not been measured."
        )
    if fused and isinstance(composer, Parallel):
        raise InvalidInputError("fused=True does not go with the composer 'parallel', which moves every memory.")


def _check_choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise InvalidInputError(f"{name} is {value!r}.", hint=f"Use one of {', '.join(allowed)}.")
