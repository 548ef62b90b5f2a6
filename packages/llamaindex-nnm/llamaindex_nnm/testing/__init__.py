"""A conformance suite for LlamaIndex's vector stores and LLMs. Needs pytest and pytest-asyncio.

Subclass, say how to make the thing, and let pytest collect it::

    class TestMyStore(VectorStoreConformance):
        def make_store(self):
            return MyVectorStore(...)          # empty; will be given vectors of three numbers

    class TestMyLLM(LLMConformance):
        def make_llm(self):
            return MyLLM(...)                  # deterministic

What an implementation does not claim to do is switched off by name (``lacks = {"sparse"}``) and shows up as a skip.
What it does wrong is listed with its reason (``known_failures = {"test_name": "why"}``, without the parameters in
brackets for all of a test's cases) and shows up as an expected failure; one that passes after all is an error.
"""

from __future__ import annotations

from llamaindex_nnm.testing.filters import FilterCases
from llamaindex_nnm.testing.llms import LLMConformance
from llamaindex_nnm.testing.queries import QueryCases
from llamaindex_nnm.testing.stores import StoreCases


class VectorStoreConformance(StoreCases, QueryCases, FilterCases):
    """Everything that is asked of a vector store; see the module for how to use it."""


__all__ = ["FilterCases", "LLMConformance", "QueryCases", "StoreCases", "VectorStoreConformance"]
