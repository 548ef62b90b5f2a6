"""LangChain's own suites for vector stores and embeddings."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from langchain_core.embeddings import Embeddings
from langchain_core.vectorstores import VectorStore
from langchain_tests.integration_tests import EmbeddingsIntegrationTests, VectorStoreIntegrationTests
from langchain_tests.unit_tests import EmbeddingsUnitTests
from tests.langchain.engines import open_tiny, shared_tiny

from langchain_nnm import NNMEmbeddings, NNMVectorStore
from nnm_core import NNM


@pytest.fixture
def empty() -> Iterator[NNM]:
    with open_tiny() as nnm:
        yield nnm


class TestForeignEmbedder(VectorStoreIntegrationTests):
    @pytest.fixture
    def vectorstore(self, empty: NNM) -> VectorStore:
        return NNMVectorStore(empty, self.get_embeddings())


class TestForeignEmbedderMadeAsynchronously(VectorStoreIntegrationTests):
    @pytest.fixture
    def vectorstore(self, empty: NNM) -> VectorStore:
        return asyncio.run(NNMVectorStore.afrom_texts([], self.get_embeddings(), nnm=empty))


class TestOwnEmbedder(VectorStoreIntegrationTests):
    @pytest.fixture
    def vectorstore(self, empty: NNM) -> VectorStore:
        return NNMVectorStore(empty)


class TestOwnEmbedderMadeAsynchronously(VectorStoreIntegrationTests):
    @pytest.fixture
    def vectorstore(self, empty: NNM) -> VectorStore:
        return asyncio.run(NNMVectorStore.afrom_texts([], NNMEmbeddings(nnm=empty)))


class TestEmbeddingsUnit(EmbeddingsUnitTests):
    @property
    def embeddings_class(self) -> type[Embeddings]:
        return NNMEmbeddings

    @property
    def embedding_model_params(self) -> dict[str, Any]:
        return {"nnm": shared_tiny()}


class TestEmbeddingsIntegration(EmbeddingsIntegrationTests):
    @property
    def embeddings_class(self) -> type[Embeddings]:
        return NNMEmbeddings

    @property
    def embedding_model_params(self) -> dict[str, Any]:
        return {"nnm": shared_tiny()}
