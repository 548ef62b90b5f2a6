"""The chat model: any chain's prompt in, memories recalled for it injected, everything else read."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import BaseMessage
from langchain_core.outputs import ChatGenerationChunk, ChatResult

from langchain_nnm._engine import EngineOptions
from langchain_nnm._messages import referenced, to_engine
from langchain_nnm._results import chat_chunk, chat_result
from langchain_nnm._version import __version__
from nnm_core import Chunk
from nnm_core.aio import iterate


class ChatNNM(EngineOptions, BaseChatModel):
    """Chat with the model of an NNM engine, whose memories are injected and not read.

    Put it in place of a chain's model. Where a retriever or vector store of the same engine has found documents and
    their text stands in the prompt, however it was formatted, the text is replaced by the model's own states; the rest
    is read. What could not be injected is read as text: the worst case is ordinary RAG. See `EngineOptions` for the
    fields.

    Example:
        .. code-block:: python

            nnm = NNM.open("nnm-mini")
            nnm.add("The bins are collected on Tuesday.")
            chat = ChatNNM(nnm=nnm)
            chat.invoke("When are the bins collected?", memories=[hit.memory.id for hit in nnm.search("bins")])

    What was done stands in ``message.response_metadata["nnm"]``, and injected tokens count as ``cache_read`` in
    ``message.usage_metadata``.
    """

    def model_post_init(self, context: Any, /) -> None:
        """Say in traces which version of this package was used."""
        super().model_post_init(context)
        self._add_version("langchain-nnm", __version__)

    @property
    def _llm_type(self) -> str:
        return "chat-nnm"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return self.engine_params()

    def _get_invocation_params(self, stop: list[str] | None = None, **kwargs: Any) -> dict[str, Any]:
        # The key of LangChain's cache is made of this: memories are named by what they say, not by id alone.
        params = super()._get_invocation_params(stop=stop, **kwargs)
        memories = self.engine_memories(kwargs.get("memories") or ())
        return params | {"memory_versions": [(m.id, m.version, m.digest) for m in memories]}

    def get_token_ids(self, text: str) -> list[int]:
        """Token ids of `text` in the model's own vocabulary."""
        return self.engine_tokens(text)

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        chunk = Chunk("")
        for chunk in self._run(messages, stop, run_manager, kwargs):  # noqa: B007  # the last one has the answer
            pass
        return self._finished(chunk)

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        for piece in self._run(messages, stop, run_manager, kwargs):
            chunk = chat_chunk(self.model, piece)
            if run_manager:
                run_manager.on_llm_new_token(chunk.text, chunk=chunk)
            yield chunk

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        # Token by token, so that a cancelled task stops the decoding.
        chunk = Chunk("")
        async with aclosing(iterate(lambda: self._run(messages, stop, run_manager, kwargs))) as pieces:
            async for chunk in pieces:  # noqa: B007
                pass
        return self._finished(chunk)

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        async with aclosing(iterate(lambda: self._run(messages, stop, run_manager, kwargs))) as pieces:
            async for piece in pieces:
                chunk = chat_chunk(self.model, piece)
                if run_manager:
                    await run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                yield chunk

    def _run(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None,
        run_manager: CallbackManagerForLLMRun | AsyncCallbackManagerForLLMRun | None,
        kwargs: dict[str, Any],
    ) -> Iterator[Chunk]:
        return self.engine_stream(
            to_engine(messages),
            stop=stop,
            references=referenced(self.nnm, messages),
            metadata=run_manager.metadata if run_manager else None,
            call=dict(kwargs),
        )

    def _finished(self, chunk: Chunk) -> ChatResult:
        if chunk.answer is None:
            raise RuntimeError("the stream ended without an answer")  # the engine always ends with one
        return chat_result(self.model, chunk.answer)
