"""Conversation turns as memories: chat history whose states are injected, and old turns that are recalled."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from llama_index.core.base.llms.types import ChatMessage, MessageRole
from llama_index.core.bridge.pydantic import Field, PrivateAttr
from llama_index.core.memory.types import BaseMemory

from llamaindex_nnm.engine_bound import EngineHandle, EngineOwner, known_fields
from llamaindex_nnm.messages import to_engine
from llamaindex_nnm.nodes import RESERVED, TURN

if TYPE_CHECKING:
    from nnm_core import NNM, Memory

EARLIER = "Earlier in this conversation:"
# Shorter turns ("Yes.") stand in all kinds of text; they are cheaper to read than to look for.
LEASED_FROM = 24


class NNMMemory(EngineOwner, BaseMemory):
    """Chat memory on the engine.

    Each turn is kept as a memory of its session, so a conversation goes on after a restart. `get` gives the latest
    turns as they were, leased, so that an `NNMLLM` of the same scope injects their states; and of the older turns
    those that fit the new message, in one system message before it. The window of latest turns moves in steps of
    half its size: in between, the history is the same prefix again and its states are exact.

    Turns without text are kept until the process ends only. Stores and retrievers on the same namespace leave turns
    out unless they are asked for.

    Args:
        nnm: the open engine; it is shared, not closed.
        **fields: see the fields below.
    """

    session: str = Field(default="chat", description="Name of the conversation; each has its own turns.")
    recent: int = Field(default=16, gt=1, description="How many latest turns are given word for word at most.")
    recalled: int = Field(default=2, ge=0, description="How many older turns are recalled for a new message.")
    token_limit: int | None = Field(default=None, description="Tokens of the latest turns; None: half the context.")
    scope: str = Field(default="", description="Scope of the LLM that may inject the turns.")

    _engine: EngineHandle = PrivateAttr()
    _turns: list[tuple[ChatMessage, Memory | None]] = PrivateAttr()
    _first: int = PrivateAttr(default=0)
    _lock: Any = PrivateAttr()

    def __init__(self, nnm: NNM, **fields: Any) -> None:
        engine = EngineHandle(nnm)
        super().__init__(**known_fields(type(self), fields))
        self._engine = engine
        self._lock = threading.RLock()
        kept = sorted(nnm.find(self._condition()), key=lambda memory: memory.metadata[RESERVED]["number"])
        self._turns = [(_message(memory), memory) for memory in kept]

    @classmethod
    def class_name(cls) -> str:
        """Stable name for serialisation."""
        return "NNMMemory"

    @classmethod
    def from_defaults(cls, **kwargs: Any) -> NNMMemory:
        """`NNMMemory(nnm=..., session=...)`, under the name that LlamaIndex calls."""
        return cls(**kwargs)

    def get(self, input: str | None = None, initial_token_count: int = 0, **kwargs: Any) -> list[ChatMessage]:
        """The history for the next prompt.

        Args:
            input: the new message, for which older turns are recalled.
            initial_token_count: tokens of what else stands in the prompt.
            **kwargs: ignored.
        """
        with self._lock:
            self._move_window(initial_token_count)
            window, older = self._turns[self._first :], self._turns[: self._first]
        self._lease([memory for _, memory in window])
        history = [message for message, _ in window]
        earlier = self._earlier(input, older)
        if earlier is None:
            return history
        at = len(history) - (bool(history) and history[-1].role == MessageRole.USER)
        return [*history[:at], earlier, *history[at:]]

    def get_all(self) -> list[ChatMessage]:
        """All turns of the session, oldest first."""
        with self._lock:
            return [message for message, _ in self._turns]

    def put(self, message: ChatMessage) -> None:
        """Keep a turn."""
        with self._lock:
            self._turns.append((message, self._keep(message, self._next_number())))

    def set(self, messages: list[ChatMessage]) -> None:
        """Make this the history; turns that are in place already are not read again."""
        with self._lock:
            same = 0
            for (mine, _), given in zip(self._turns, messages, strict=False):
                if (mine.role, mine.content) != (given.role, given.content):
                    break
                same += 1
            self._forget(self._turns[same:])
            del self._turns[same:]
            self._first = min(self._first, same)
            for message in messages[same:]:
                self.put(message)

    def reset(self) -> None:
        """Forget the session's turns, from RAM and from disk."""
        with self._lock:
            self._forget(self._turns)
            self._turns.clear()
            self._first = 0

    # -- turns as memories --------------------------------------------------------------------------------------

    def _condition(self) -> dict[str, Any]:
        return {f"{RESERVED}.kind": TURN, f"{RESERVED}.session": self.session}

    def _next_number(self) -> int:
        numbers = [memory.metadata[RESERVED]["number"] for _, memory in self._turns if memory is not None]
        return int(max(numbers, default=-1)) + 1

    def _keep(self, message: ChatMessage, number: int) -> Memory | None:
        text = to_engine([message])[0].content
        if not text.strip():
            return None
        kept = {"kind": TURN, "session": self.session, "number": number, "role": message.role.value}
        return self.nnm.add([text], [f"turn/{self.session}/{number}"], [{RESERVED: kept}])[0]

    def _forget(self, turns: Sequence[tuple[ChatMessage, Memory | None]]) -> None:
        self.nnm.forget([memory.id for _, memory in turns if memory is not None])

    def _lease(self, memories: Sequence[Memory | None]) -> None:
        long = [memory for memory in memories if memory is not None and len(memory.text) >= LEASED_FROM]
        self.nnm.leases.take(long, scope=self.scope)

    def _move_window(self, taken: int) -> None:
        """Drop the older half of the window when it has grown too large."""
        context = self.nnm.model.context_limit
        limit = min(self.token_limit or context // 2, max(context * 7 // 8 - taken, 0))
        while len(self._turns) - self._first > 1:
            window = self._turns[self._first :]
            if len(window) <= self.recent and sum(map(self._tokens, window)) <= limit:
                return
            self._first += (len(window) + 1) // 2

    def _tokens(self, turn: tuple[ChatMessage, Memory | None]) -> int:
        return len(self.nnm.model.tokenizer(turn[0].content or "", add_special_tokens=False)["input_ids"])

    def _earlier(self, input: str | None, older: Sequence[tuple[ChatMessage, Memory | None]]) -> ChatMessage | None:
        known = {memory.id: message for message, memory in older if memory is not None}
        if not known or not self.recalled or not (input or "").strip():
            return None
        last = max(int(memory.metadata[RESERVED]["number"]) for _, memory in older if memory is not None)
        condition = self._condition() | {f"{RESERVED}.number": {"$lte": last}}
        # A scope of its own: not every turn that is found is one to look for in prompts.
        hits = self.nnm.search(str(input), self.recalled, condition, scope=f"{self.scope}\x00turns")
        found = [hit.memory for hit in hits if hit.memory.id in known]
        if not found:
            return None
        self._lease(found)
        found.sort(key=lambda memory: memory.metadata[RESERVED]["number"])
        lines = [f"{known[memory.id].role.value}: {memory.text}" for memory in found]
        return ChatMessage(role=MessageRole.SYSTEM, content="\n".join([EARLIER, *lines]))


def _message(memory: Memory) -> ChatMessage:
    return ChatMessage(role=MessageRole(memory.metadata[RESERVED]["role"]), content=memory.text)
