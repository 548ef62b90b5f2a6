"""Structured output on any model: the form is certain, memories are injected all the same."""

from __future__ import annotations

from typing import Any, Literal

import pytest
from langchain.agents import create_agent
from langchain.agents.structured_output import ToolStrategy
from langchain_core.caches import InMemoryCache
from langchain_core.messages import HumanMessage, SystemMessage
from langchain_core.tools import tool
from pydantic import BaseModel, Field
from tests.langchain.engines import FALCON
from tests.langchain.scripted import open_scripted

from langchain_nnm import ChatNNM, NNMRetriever
from langchain_nnm._structured import call_schema, schema_of, with_note
from langchain_nnm._tools import call_format
from nnm_core import NNM, InvalidInputError, JsonSchema


class Lead(BaseModel):
    """Who leads what."""

    name: str = Field(description="of the person")
    project: Literal["Falcon", "Heron"]
    since: int | None = None


def test_memories_are_injected_under_a_schema(nnm: NNM) -> None:
    NNMRetriever(nnm=nnm).invoke("Falcon")
    chain = ChatNNM(nnm=nnm, policy="fast", max_tokens=128).with_structured_output(Lead, include_raw=True)
    made = chain.invoke(f"{FALCON} Who?")
    assert isinstance(made["parsed"], Lead)
    assert made["parsing_error"] is None
    assert made["raw"].response_metadata["nnm"]["memories"] == {"falcon": "injected"}
    assert made["raw"].response_metadata["finish_reason"] == "stop"


@pytest.mark.parametrize("method", ["json_schema", "json_mode", "function_calling"])
async def test_every_method_and_every_way_of_running(nnm: NNM, method: Any) -> None:
    chain = ChatNNM(nnm=nnm, max_tokens=200).with_structured_output(Lead, method=method)
    expected = chain.invoke("Who?")
    assert isinstance(expected, Lead)
    assert list(chain.stream("Who?"))[-1] == expected
    assert await chain.ainvoke("Who?") == expected
    assert [piece async for piece in chain.astream("Who?")][-1] == expected
    assert chain.batch(["Who?", "Who?"]) == [expected, expected]


def test_any_json_without_a_schema(nnm: NNM) -> None:
    assert isinstance(ChatNNM(nnm=nnm, max_tokens=40).with_structured_output(method="json_mode").invoke("Who?"), dict)


def test_a_cut_answer_is_closed_and_one_that_cannot_fit_is_refused(nnm: NNM) -> None:
    chat = ChatNNM(nnm=nnm)
    need = len(JsonSchema(Lead.model_json_schema()).guide(nnm.model, 1000).way_out or ())
    assert isinstance(chat.with_structured_output(Lead).invoke("Who?", max_tokens=need), Lead)
    with pytest.raises(InvalidInputError, match=f"at least {need}"):
        chat.with_structured_output(Lead).invoke("Who?", max_tokens=need - 1)


def test_a_reader_can_be_made_to_call(nnm: NNM) -> None:
    @tool
    def look_up(query: str, pages: int) -> str:
        """Look something up."""
        return query * pages

    chat = ChatNNM(nnm=nnm, max_tokens=100)
    for choice in ("look_up", "any", True):
        (call,) = chat.bind_tools([look_up], tool_choice=choice).invoke("Who?").tool_calls
        assert call["name"] == "look_up"
        assert set(call["args"]) == {"query", "pages"}
        assert isinstance(call["args"]["pages"], int)
    assert chat.bind_tools([look_up], tool_choice="none").invoke("Who?").tool_calls == []


@pytest.mark.parametrize("form", [Lead, ToolStrategy(Lead)])
def test_an_agent_answers_in_a_form(nnm: NNM, form: Any) -> None:
    agent = create_agent(ChatNNM(nnm=nnm, max_tokens=200), response_format=form)
    assert isinstance(agent.invoke({"messages": [("human", "Who?")]})["structured_response"], Lead)


def test_the_schema_is_told_to_models_that_take_tools(monkeypatch: pytest.MonkeyPatch) -> None:
    with open_scripted() as nnm:
        seen: list[Any] = []
        stream = nnm.stream
        monkeypatch.setattr(nnm, "stream", lambda p, *a, **k: (seen.extend(p), stream(p, *a, **k))[1])
        assert isinstance(ChatNNM(nnm=nnm).with_structured_output(Lead).invoke("Who?"), Lead)
    assert seen[-1].content.startswith("Who?\n\nAnswer with JSON of this schema: {")
    assert with_note([SystemMessage("s")], {})[-1] == HumanMessage("Answer with JSON of this schema: {}")


def test_forms_of_calls() -> None:
    class Template:
        def __init__(self, chat_template: str) -> None:
            self.chat_template = chat_template

    item = {"$ref": "#/$defs/item"}
    tools = [
        {"function": {"name": "f", "parameters": {"type": "object", "properties": {"x": item}, "$defs": {"item": {}}}}},
        {"function": {"name": "g"}},
    ]
    hermes, mistral, llama = (call_format(Template(text)) for text in ("<tool_call>", "[TOOL_CALLS]", "tools"))
    one = call_schema(tools, ["f"], hermes)
    assert one["properties"]["name"] == {"const": "f"}
    assert one["properties"]["arguments"] == {"type": "object", "properties": {"x": {}}}
    assert len(call_schema(tools, ["f", "g"], hermes)["anyOf"]) == 2
    assert call_schema(tools, ["g"], mistral)["type"] == "array"
    assert "parameters" in call_schema(tools, ["g"], llama)["properties"]


def test_forms_that_are_not_understood_raise(nnm: NNM) -> None:
    chat = ChatNNM(nnm=nnm)
    for form in ("json", {"type": "xml"}, {"type": "json_schema", "json_schema": {}}):
        with pytest.raises(InvalidInputError, match="response_format"):
            chat.invoke("Who?", response_format=form)
    assert schema_of({"type": "json_object"}) == {"type": "object"}
    form = {"type": "json_object"}
    with pytest.raises(InvalidInputError, match="do not go together"):
        chat.bind_tools([Lead], tool_choice="any", response_format=form).invoke("Who?")
    with pytest.raises(InvalidInputError, match="needs a schema"):
        chat.with_structured_output(method="function_calling")


def test_caches_know_the_form(nnm: NNM) -> None:
    cache = InMemoryCache()
    chat = ChatNNM(nnm=nnm, cache=cache, max_tokens=150)
    chat.invoke("Who?")
    chat.with_structured_output(Lead).invoke("Who?")
    chat.with_structured_output({"title": "A", "type": "object", "properties": {}}).invoke("Who?")
    assert len(cache._cache) == 3
