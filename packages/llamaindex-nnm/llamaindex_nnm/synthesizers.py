"""The synthesizer: memories by reference, no text of theirs in the prompt that LlamaIndex sees."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator, Sequence
from typing import Any, Literal

from llama_index.core.base.llms.types import ChatMessage, MessageRole
from llama_index.core.base.response.schema import RESPONSE_TYPE
from llama_index.core.indices.prompt_helper import PromptHelper
from llama_index.core.prompts.mixin import PromptDictType
from llama_index.core.response_synthesizers import BaseSynthesizer
from llama_index.core.schema import BaseNode, MetadataMode, NodeWithScore, QueryBundle
from llama_index.core.types import RESPONSE_TEXT_TYPE

from llamaindex_nnm.engine_bound import EngineBound
from llamaindex_nnm.llms import NNMLLM
from llamaindex_nnm.nodes import text_of
from nnm_core import Memory
from nnm_core.records import text_digest


class NNMSynthesizer(EngineBound, BaseSynthesizer):
    """Answers from nodes with one call of the LLM, in the engine's own layout.

    A node that is a memory with unchanged text is passed by its id, and the first one is injected from its first use
    on. A node that is not (of another store, or edited by a postprocessor) is passed as text and read. None is lost.

    Args:
        llm: its engine holds the memories.
        metadata_mode: which of a node's metadata the model is to see beside the text. With visible metadata the
            node's own template is used and stands in the prompt; the text is still injected.
        overflow: ``raise`` if the memories do not fit the context, or ``drop`` the lowest ranked of them (only where
            no metadata are visible).
        streaming: give responses piece by piece.
        **kwargs: of `BaseSynthesizer` (callback_manager, empty_response).
    """

    _llm: NNMLLM

    def __init__(
        self,
        llm: NNMLLM,
        *,
        metadata_mode: MetadataMode = MetadataMode.NONE,
        overflow: Literal["raise", "drop"] = "raise",
        streaming: bool = False,
        **kwargs: Any,
    ) -> None:
        helper = PromptHelper.from_llm_metadata(llm.metadata, tokenizer=llm.tokenize)
        super().__init__(llm=llm, streaming=streaming, prompt_helper=helper, **kwargs)
        self._metadata_mode = metadata_mode
        self._overflow = overflow

    def _get_prompts(self) -> PromptDictType:
        return {}

    def _update_prompts(self, prompts: PromptDictType) -> None:
        """There are no templates: the layout is the engine's."""

    def synthesize(
        self,
        query: str | QueryBundle,
        nodes: list[NodeWithScore],
        additional_source_nodes: Sequence[NodeWithScore] | None = None,
        **response_kwargs: Any,
    ) -> RESPONSE_TYPE:
        """Answer `query` from `nodes`, most relevant first."""
        return super().synthesize(query, nodes, additional_source_nodes, sources=_bare(nodes), **response_kwargs)

    async def asynthesize(
        self,
        query: str | QueryBundle,
        nodes: list[NodeWithScore],
        additional_source_nodes: Sequence[NodeWithScore] | None = None,
        **response_kwargs: Any,
    ) -> RESPONSE_TYPE:
        """As `synthesize`, off the event loop."""
        return await super().asynthesize(query, nodes, additional_source_nodes, sources=_bare(nodes), **response_kwargs)

    def get_response(self, query_str: str, text_chunks: Sequence[str], **response_kwargs: Any) -> RESPONSE_TEXT_TYPE:
        """The answer, or a generator of its pieces. Chunks alone (without `sources`) are put into the prompt."""
        messages, options = self._call(query_str, text_chunks, **response_kwargs)
        if self._streaming:
            return self._pieces(messages, options)
        return self._llm.chat(messages, **options).message.content or ""

    async def aget_response(
        self, query_str: str, text_chunks: Sequence[str], **response_kwargs: Any
    ) -> RESPONSE_TEXT_TYPE:
        """As `get_response`, off the event loop."""
        messages, options = self._call(query_str, text_chunks, **response_kwargs)
        if self._streaming:
            return self._apieces(messages, options)
        return (await self._llm.achat(messages, **options)).message.content or ""

    def _pieces(self, messages: list[ChatMessage], options: dict[str, Any]) -> Generator[str, None, None]:
        for response in self._llm.stream_chat(messages, **options):
            yield response.delta or ""

    async def _apieces(self, messages: list[ChatMessage], options: dict[str, Any]) -> AsyncGenerator[str, None]:
        async for response in await self._llm.astream_chat(messages, **options):
            yield response.delta or ""

    def _call(
        self, query: str, chunks: Sequence[str], sources: Sequence[BaseNode] | None = None, **options: Any
    ) -> tuple[list[ChatMessage], dict[str, Any]]:
        if sources is not None:
            known = self._known(sources)
            chunks = [node.get_content(metadata_mode=self._metadata_mode) for node in sources]
            if all(chunk == text_of(node) for chunk, node in zip(chunks, sources, strict=True)):
                options = options | {"memories": self._by_id(sources, known), "overflow": self._overflow}
                return [ChatMessage(role=MessageRole.USER, content=query)], options
            options = options | {"references": list(known.values())}
        prompt = "Context:\n" + "".join(f"{chunk}\n\n" for chunk in chunks) + f"Question: {query}"
        system = self._llm.nnm.system
        start = [ChatMessage(role=MessageRole.SYSTEM, content=system)] if system else []
        return [*start, ChatMessage(role=MessageRole.USER, content=prompt)], options

    def _known(self, nodes: Sequence[BaseNode]) -> dict[str, Memory]:
        """By id, the memories whose text is the node's."""
        memories = self._llm.nnm.get([node.node_id for node in nodes], missing="skip")
        digests = {node.node_id: text_digest(text_of(node)) for node in nodes}
        return {memory.id: memory for memory in memories if memory.digest == digests[memory.id]}

    def _by_id(self, nodes: Sequence[BaseNode], known: dict[str, Memory]) -> list[str | Memory]:
        """Ids of memories, and the text itself of all others."""
        namespace = self._llm.nnm.namespace
        return [
            node.node_id if node.node_id in known else Memory(id=node.node_id, text=text_of(node), namespace=namespace)
            for node in nodes
        ]


def _bare(nodes: Sequence[NodeWithScore]) -> list[BaseNode]:
    """Each node once, in order: a memory has one place in a prompt."""
    return list({scored.node.node_id: scored.node for scored in nodes}.values())
