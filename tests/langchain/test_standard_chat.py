"""LangChain's own suites for chat models: with a tiny reader as it is, and with one that can call tools."""

from __future__ import annotations

import os
from functools import cache
from typing import Any

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage
from langchain_tests.integration_tests import ChatModelIntegrationTests
from langchain_tests.unit_tests import ChatModelUnitTests
from tests.langchain.engines import shared_tiny
from tests.langchain.scripted import open_scripted

from langchain_nnm import ChatNNM, NNMRetriever
from nnm_core import NNM
from nnm_core.model.load import LoadedModel

FACT = "The Falcon project is led by Maria."


@cache
def shared_scripted() -> NNM:
    nnm = open_scripted()
    nnm.add([FACT])
    return nnm


@cache
def shared_bundled() -> NNM:
    return NNM.open(os.environ.get("NNM_TEST_MODEL", "nnm-mini"))


class TestUnit(ChatModelUnitTests):
    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatNNM

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"nnm": shared_scripted()}


class TestReader(ChatModelIntegrationTests):
    """A model whose template has no tools, as the bundled one: it cannot choose a tool, which is skipped and says so.

    Structured output it has: its answers are kept to the schema.
    """

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatNNM

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"nnm": shared_tiny(), "max_tokens": 64}

    @property
    def model_override_value(self) -> str:
        return "tiny-qwen3"

    @property
    def has_tool_calling(self) -> bool:
        return False

    @property
    def has_structured_output(self) -> bool:
        return True

    @property
    def supports_json_mode(self) -> bool:
        return True


@pytest.mark.slow
class TestBundledReader(TestReader):
    """The same with nnm-mini: real words of a real, small model."""

    @pytest.fixture(autouse=True)
    def _bundled(self, reader: LoadedModel) -> None:
        """Skip where there are no weights."""

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"nnm": shared_bundled(), "max_tokens": 64}

    @property
    def model_override_value(self) -> str:
        return shared_bundled().model.name


class TestToolReader(ChatModelIntegrationTests):
    """A model whose template has tools: skipped is what no local text model can do."""

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatNNM

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"nnm": shared_scripted(), "policy": "fast"}

    @property
    def has_tool_choice(self) -> bool:
        return True

    @property
    def supports_json_mode(self) -> bool:
        return True

    @property
    def model_override_value(self) -> str:
        return "tiny-tools"  # its own name; an engine cannot become another model, and says so when asked to

    @property
    def supported_usage_metadata_details(self) -> dict[Any, Any]:
        return {"invoke": ["cache_read_input"], "stream": ["cache_read_input"]}

    def invoke_with_cache_read_input(self, *, stream: bool = False) -> AIMessage:
        nnm = shared_scripted()
        NNMRetriever(nnm=nnm).invoke("Falcon")
        chat = ChatNNM(nnm=nnm, policy="fast")
        if not stream:
            return chat.invoke(f"{FACT} Who?")
        chunks = list(chat.stream(f"{FACT} Who?"))
        message: Any = chunks[0]
        for chunk in chunks[1:]:
            message += chunk
        return message  # type: ignore[no-any-return]
