"""LangChain's own suites for chat models."""

from __future__ import annotations

from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_tests.integration_tests import ChatModelIntegrationTests
from langchain_tests.unit_tests import ChatModelUnitTests
from tests.langchain.engines import shared_tiny

from langchain_nnm import ChatNNM


class TestUnit(ChatModelUnitTests):
    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatNNM

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"nnm": shared_tiny()}


class TestIntegration(ChatModelIntegrationTests):
    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatNNM

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"nnm": shared_tiny(), "max_tokens": 8}
