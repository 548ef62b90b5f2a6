"""The question side of the engine's public face: which memories a prompt gets, and which stay in RAM for it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

from nnm_core.answering import Answerer, in_order
from nnm_core.chat import bare_prompt, chat_prompt
from nnm_core.errors import InvalidInputError, MemoryNotFoundError, MemoryNotInjectedError
from nnm_core.model.prompt import PromptMessage, question_prompt
from nnm_core.recall.leases import LeaseBook
from nnm_core.records import Hit, Memory, Message, Mode, Order
from nnm_core.states.state import PlacedState


class AskFace:
    """What an open engine does before it answers."""

    namespace: str
    system: str | None
    leases: LeaseBook
    _answerer: Answerer

    @abstractmethod
    def get(self, ids: str | Sequence[str]) -> list[Memory]:
        """See `NNM.get`."""

    @abstractmethod
    def _left_state(self) -> PlacedState:
        """See `NNM._left_state`."""

    @abstractmethod
    def _check_open(self) -> None:
        """Raise `EngineClosedError` after `close`."""

    @property
    def fingerprint(self) -> str:
        """Model, tokenizer, template and codec, hashed: what receipts carry. Another one means other answers."""
        return self._answerer.fingerprint

    def pin(self, memories: str | Sequence[str | Memory | Hit], *, order: Order = "ranked") -> int:
        """Keep these memories ready, in this order, at the beginning of prompts: exact, and never dropped from RAM.

        They are read once behind the canonical left context and behind each other (as far as that has not been done),
        so that questions about just these memories, or about these and more behind them, find them injected at first
        use. Forgetting a memory forgets its pinned states.

        Args:
            memories: ids, memories or hits; one id is accepted in place of a list.
            order: as in `stream`.

        Returns:
            bytes that are pinned for them.

        Raises:
            MemoryNotFoundError: one of them does not exist in this namespace.
            ContextOverflowError: together they do not fit the model's context.
            InvalidInputError: they do not fit `state_cache`, or this model's states are not injected.
        """
        return self._answerer.pin(self._chain(memories, order))

    def unpin(self, memories: str | Sequence[str | Memory | Hit], *, order: Order = "ranked") -> None:
        """Take back a `pin` of the same memories in the same order; what stays in RAM is decided by use again."""
        self._answerer.unpin(self._chain(memories, order))

    def _chain(self, memories: str | Sequence[str | Memory | Hit], order: Order) -> list[PromptMessage]:
        self._check_open()
        hits = self._given([memories] if isinstance(memories, str) else memories)
        if not hits:
            raise InvalidInputError("There are no memories to pin.", hint="Name at least one.")
        self._left_state()
        return question_prompt("?", in_order([hit.memory for hit in hits], order), self.system)

    def _given(self, memories: Sequence[str | Memory | Hit]) -> tuple[Hit, ...]:
        named = [item for item in memories if isinstance(item, str)]
        found = dict(zip(named, self.get(named), strict=True))
        hits = []
        for rank, item in enumerate(memories):
            if isinstance(item, Hit):
                hits.append(item)
                continue
            memory = found[item] if isinstance(item, str) else item
            if memory.namespace != self.namespace:
                raise MemoryNotFoundError(f"No memory {memory.id!r} in namespace {self.namespace!r}.")
            hits.append(Hit(memory, 1.0 / (rank + 1)))
        return tuple(hits)

    def _chat(
        self,
        messages: Sequence[Message],
        memories: Sequence[str | Memory | Hit] | None,
        references: Sequence[Memory],
        mode: Mode,
        scope: str,
        order: Order,
        *,
        strict: bool,
    ) -> tuple[tuple[Hit, ...], list[PromptMessage]]:
        if mode == "bare":
            return (), bare_prompt(messages).messages
        given = {hit.memory.id: hit for hit in self._given(memories or ())}
        known = in_order([hit.memory for hit in given.values()], order)
        also = [memory for memory in references if memory.namespace == self.namespace]
        prompt = chat_prompt(messages, self.leases, scope=scope, given=known, references=also, system=self.system)
        if strict and prompt.missed:
            raise MemoryNotInjectedError(
                f"None of the recalled memories stands in the prompt: {', '.join(m.id for m in prompt.missed)}.",
                hint="Something between retriever and model has changed their text; see `memories=` for another way.",
            )
        return tuple(given.get(memory.id) or Hit(memory, 1.0) for memory in prompt.memories), prompt.messages
