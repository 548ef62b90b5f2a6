"""Memory for `create_agent`: what the user's last message recalls is handed to the model beside the prompt."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from langchain.agents.middleware import AgentMiddleware, ModelRequest, ModelResponse
from langchain_core.messages import HumanMessage, SystemMessage

from langchain_nnm._engine import checked_engine, scope_of
from langchain_nnm.chat_models import ChatNNM
from nnm_core import Memory


class NNMMiddleware(AgentMiddleware[Any, Any, Any]):
    """Recalls memories before each call of an agent's model.

    A `ChatNNM` of the same engine gets them by reference: no text of theirs is in the messages, their states stand
    before the user's last message. Any other model gets their text in the system message. Nothing is lost.

    Example:
        .. code-block:: python

            agent = create_agent(ChatNNM(nnm=nnm), middleware=[NNMMiddleware(nnm)])

    Args:
        nnm: an open `nnm_core.NNM`. It is not closed here.
        k: how many memories at most.
        filter: metadata conditions.
        scope: conversation or request that the leases belong to.
    """

    def __init__(self, nnm: Any, *, k: int = 4, filter: Any = None, scope: str = "") -> None:
        super().__init__()
        self.nnm = checked_engine(nnm)
        self.k = k
        self.filter = filter
        self.scope = scope

    def wrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], ModelResponse[Any]]
    ) -> ModelResponse[Any]:
        """Recall, then call the model."""
        query = _query(request)
        hits = self.nnm.search(query, **self._options()) if query else []
        return handler(self._with_memories(request, [hit.memory for hit in hits]))

    async def awrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], Awaitable[ModelResponse[Any]]]
    ) -> ModelResponse[Any]:
        """As `wrap_model_call`, off the event loop."""
        query = _query(request)
        hits = await self.nnm.asearch(query, **self._options()) if query else []
        return await handler(self._with_memories(request, [hit.memory for hit in hits]))

    def _options(self) -> dict[str, Any]:
        return {"k": self.k, "filter": self.filter, "scope": scope_of(self.scope, None)}

    def _with_memories(self, request: ModelRequest[Any], memories: list[Memory]) -> ModelRequest[Any]:
        if not memories:
            return request
        if isinstance(request.model, ChatNNM) and request.model.nnm is self.nnm:
            ids = [memory.id for memory in memories]
            return request.override(model_settings={**request.model_settings, "memories": ids})
        context = "Context:\n" + "\n\n".join(memory.text for memory in memories)
        before = request.system_message.text if request.system_message else ""
        return request.override(system_message=SystemMessage(f"{before}\n\n{context}".strip()))


def _query(request: ModelRequest[Any]) -> str:
    """The user's last message."""
    asked = [message for message in request.messages if isinstance(message, HumanMessage)]
    return str(asked[-1].text).strip() if asked else ""
