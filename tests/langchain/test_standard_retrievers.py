"""LangChain's own suite for retrievers."""

from __future__ import annotations

from functools import cache
from typing import Any

from langchain_tests.integration_tests import RetrieversIntegrationTests
from tests.langchain.engines import open_tiny

from langchain_nnm import NNMRetriever
from nnm_core import NNM


@cache
def _rooms() -> NNM:
    nnm = open_tiny()
    nnm.add([f"Room {number} belongs to the project." for number in range(5)])
    return nnm


class TestRetriever(RetrieversIntegrationTests):
    @property
    def retriever_constructor(self) -> type[NNMRetriever]:
        return NNMRetriever

    @property
    def retriever_constructor_params(self) -> dict[str, Any]:
        return {"nnm": _rooms()}

    @property
    def retriever_query_example(self) -> str:
        return "Which room belongs to the project?"
