"""The values that go in and out of the engine: plain, immutable, free of tensors."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Mode = Literal["inject", "read", "bare"]
Policy = Literal["exact", "auto", "fast"]
Order = Literal["ranked", "canonical"]
Overflow = Literal["raise", "drop"]
Missing = Literal["raise", "skip"]
Tier = Literal["exact", "composed", "compressed", "text"]
UseAction = Literal["exact", "composed", "read"]
# ``prompt``: a whole prompt, formatted for the model already; it stands alone and no chat template is applied.
Role = Literal["system", "user", "assistant", "tool", "prompt"]


def text_digest(text: str) -> str:
    """SHA-256 of the UTF-8 text, hexadecimal."""
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


@dataclass(frozen=True, slots=True)
class Memory:
    """One record: the text is the truth, everything else that NNM keeps is derived from it.

    Attributes:
        id: the caller's own id, any non-empty string.
        text: the text exactly as it was given.
        metadata: JSON-like mapping, returned as it was given.
        namespace: the compartment that it lives in; nothing crosses namespaces.
        version: 1 for the first text under this id, counted up at each change.
        created: Unix time in seconds at which this version was added.
        supersedes: the version that this one replaced, or None.
        digest: SHA-256 of the text.
    """

    id: str
    text: str
    metadata: Mapping[str, Any] = field(default_factory=dict)
    namespace: str = "default"
    version: int = 1
    created: float = field(default_factory=time.time)
    supersedes: int | None = None
    digest: str = ""

    def __post_init__(self) -> None:
        if not self.digest:
            object.__setattr__(self, "digest", text_digest(self.text))


@dataclass(frozen=True, slots=True)
class Hit:
    """A memory that a search found.

    Attributes:
        memory: the record.
        score: the fused score, higher is better; comparable within one search only.
        parts: what went into it by name, e.g. ``{"dense": 0.41, "dense_rank": 3, "sparse": 7.2, "sparse_rank": 1}``.
            After re-ranking ``likelihood`` is how much the memory explains the question, in nats a token: near or below
            0 it does not, and no answer should be taken from it.
        span: characters [start, stop) of the memory's text that the question looks at most, for a citation; None
            unless the hit was re-ranked with attention heads (`NNM.tune`).
    """

    memory: Memory
    score: float
    parts: Mapping[str, float] = field(default_factory=dict)
    span: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a chat prompt."""

    role: Role
    content: str


@dataclass(frozen=True, slots=True)
class MemoryUse:
    """What was done with one memory of a prompt.

    Attributes:
        id: the memory.
        action: ``exact``: its state was loaded behind the context that it was computed behind; ``composed``: it was
            moved there from another context; ``read``: its text was read.
        tier: what that guarantees; ``text`` for one that was read.
        codec: how its state was kept (`nnm_core.states.codecs`), or empty if it was read.
        tokens: its tokens in the prompt.
        recomputed: how many of them were computed again, to repair a composition or because their codec keeps less
            than the state.
        expected_agreement: share of greedy tokens that are those of reading, as measured for this tier on this model;
            1.0 where it is exact by construction, None where nobody has measured it (``nnm doctor --calibrate``).
        nbytes: bytes that were loaded: as stored, or keys and values where they were in RAM already.
        seconds: finding, decoding and placing its state; 0 for one that was read together with the rest of the prompt.
        reason: why it was read; empty if it was not.
        fused: the state that was moved there had been computed behind the memory's neighbours (`NNM.fuse`).
    """

    id: str
    action: UseAction
    tier: Tier
    codec: str = ""
    tokens: int = 0
    recomputed: int = 0
    expected_agreement: float | None = None
    nbytes: int = 0
    seconds: float = 0.0
    reason: str = ""
    fused: bool = False


@dataclass(frozen=True, slots=True)
class Receipt:
    """What was done to produce an answer.

    Attributes:
        tier: the weakest guarantee among the parts of the prompt. ``exact``: the same greedy tokens as reading the
            text; ``composed``: states were placed side by side; ``compressed``: a lossy codec; ``text``: nothing
            was injected.
        tokens_injected: prompt tokens whose states were loaded and not computed.
        tokens_read: prompt tokens that the model read in this call.
        tokens_recomputed: tokens that were injected and computed again, wholly or in part: to repair a composition, or
            by a codec that keeps less than the state.
        tokens_generated: tokens that were decoded, the end-of-turn token included.
        seconds_to_first_token: from the call to the first decoded token, recall and loading included.
        fingerprint: identifies model, tokenizer, template and codec.
        fallbacks: for each memory that was not injected, why it was read instead.
        seconds_total: from the call to the last token.
        memories: for each memory of the prompt, by id, ``injected`` or ``read``.
        parts: for each memory of the prompt, in its order, what was done.
        composer: which composer laid the memories side by side; empty if none had to.
    """

    tier: Tier
    tokens_injected: int
    tokens_read: int
    tokens_recomputed: int
    tokens_generated: int
    seconds_to_first_token: float
    fingerprint: str
    fallbacks: tuple[str, ...] = ()
    seconds_total: float = 0.0
    memories: Mapping[str, str] = field(default_factory=dict)
    parts: tuple[MemoryUse, ...] = ()
    composer: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """A finished answer: text, its token ids, the memories that it was given, and the receipt."""

    text: str
    token_ids: tuple[int, ...]
    hits: tuple[Hit, ...]
    receipt: Receipt
    finish_reason: Literal["stop", "length"] = "stop"


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a streamed answer. The last one has an empty or final `text` and carries the whole `answer`."""

    text: str
    token_ids: tuple[int, ...] = ()
    answer: Answer | None = None
