"""Answers of a given form: what a call asks for, as a JSON schema, and what is made of the answer."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from operator import itemgetter
from typing import Any

from langchain_core.messages import BaseMessage, HumanMessage
from langchain_core.output_parsers import BaseOutputParser, JsonOutputParser, PydanticOutputParser
from langchain_core.runnables import Runnable, RunnableMap, RunnablePassthrough
from langchain_core.utils.function_calling import convert_to_json_schema
from langchain_core.utils.json_schema import dereference_refs
from langchain_core.utils.pydantic import is_basemodel_subclass

from langchain_nnm._tools import CallFormat
from nnm_core import InvalidInputError

INSTALL = "pip install 'langchain-nnm[structured]'"


def can_constrain() -> bool:
    """Whether llguidance is there, which keeps answers to a schema."""
    return find_spec("llguidance") is not None


def schema_of(response_format: Any) -> dict[str, Any]:
    """The JSON schema that OpenAI's ``response_format`` asks for.

    Raises:
        InvalidInputError: it is none.
    """
    if isinstance(response_format, dict):
        if response_format.get("type") == "json_object":
            return {"type": "object"}
        if response_format.get("type") == "json_schema" and isinstance(response_format.get("json_schema"), dict):
            schema = response_format["json_schema"].get("schema")
            if isinstance(schema, dict):
                return schema
    raise InvalidInputError(
        f"response_format is {response_format!r}.", hint="Use with_structured_output(schema), which makes it."
    )


def call_schema(tools: Sequence[dict[str, Any]], names: Sequence[str], style: CallFormat) -> dict[str, Any]:
    """The schema of one call of one of the named tools, as this kind of model writes it."""
    calls = [_call_schema(tool["function"], style) for tool in tools if tool["function"]["name"] in names]
    one = calls[0] if len(calls) == 1 else {"anyOf": calls}
    return {"type": "array", "items": one, "minItems": 1, "maxItems": 1} if style.listed else one


def _call_schema(function: dict[str, Any], style: CallFormat) -> dict[str, Any]:
    parameters = dereference_refs(function.get("parameters") or {"type": "object", "properties": {}})
    parameters = {name: part for name, part in parameters.items() if name not in ("$defs", "definitions")}
    return {
        "type": "object",
        "properties": {"name": {"const": function["name"]}, style.arguments: parameters},
        "required": ["name", style.arguments],
    }


def with_note(messages: Sequence[BaseMessage], schema: dict[str, Any]) -> list[BaseMessage]:
    """The messages with the schema told behind the user's last one, where no state of a memory depends on it."""
    told = list(messages)
    last = max((index for index, message in enumerate(told) if isinstance(message, HumanMessage)), default=None)
    note = f"\n\nAnswer with JSON of this schema: {schema}"
    if last is None:
        return [*told, HumanMessage(note.strip())]
    content = told[last].content
    more = content + note if isinstance(content, str) else [*content, note]
    told[last] = told[last].model_copy(update={"content": more})
    return told


def structured(model: Any, schema: Any, *, include_raw: bool, method: str, **options: Any) -> Runnable[Any, Any]:
    """The model bound to a schema, and the parser behind it."""
    wanted = {"type": "object"} if schema is None else convert_to_json_schema(schema)
    form = {"type": "json_schema", "json_schema": {"name": wanted.get("title", "answer"), "schema": wanted}}
    bound = model.bind(
        response_format=form,
        ls_structured_output_format={"kwargs": {"method": method}, "schema": schema},
        **options,
    )
    is_pydantic = isinstance(schema, type) and is_basemodel_subclass(schema)
    parser: BaseOutputParser[Any] = PydanticOutputParser(pydantic_object=schema) if is_pydantic else JsonOutputParser()
    if not include_raw:
        return bound | parser  # type: ignore[no-any-return]  # the engine-bound model is untyped here
    parsed = RunnablePassthrough.assign(parsed=itemgetter("raw") | parser, parsing_error=lambda _: None)
    failed = RunnablePassthrough.assign(parsed=lambda _: None)
    return RunnableMap(raw=bound) | parsed.with_fallbacks([failed], exception_key="parsing_error")
