"""A whole query engine in one line."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llama_index.core.query_engine import RetrieverQueryEngine

from llamaindex_nnm.filters import Filters
from llamaindex_nnm.llms import NNMLLM
from llamaindex_nnm.retrievers import NNMRetriever
from llamaindex_nnm.synthesizers import NNMSynthesizer

if TYPE_CHECKING:
    from nnm_core import NNM


class NNMQueryEngine(RetrieverQueryEngine):
    """`NNMRetriever` and `NNMSynthesizer` on one engine; see `from_nnm`."""

    @classmethod
    def from_nnm(
        cls,
        nnm: NNM,
        similarity_top_k: int = 4,
        *,
        llm: NNMLLM | None = None,
        filters: Filters = None,
        scope: str = "",
        streaming: bool = False,
        **kwargs: Any,
    ) -> NNMQueryEngine:
        """Ask the memories of an open engine.

        Args:
            nnm: the open engine.
            similarity_top_k: how many memories to recall.
            llm: of this engine; by default `NNMLLM(nnm)`.
            filters: metadata conditions.
            scope: conversation or request that may inject what is found (unused if `llm` brings its own).
            streaming: give responses piece by piece.
            **kwargs: of `RetrieverQueryEngine` (node_postprocessors, callback_manager).
        """
        llm = llm or NNMLLM(nnm, scope=scope)
        retriever = NNMRetriever(nnm, similarity_top_k, filters=filters, scope=llm.scope)
        return cls(retriever, response_synthesizer=NNMSynthesizer(llm, streaming=streaming), **kwargs)
