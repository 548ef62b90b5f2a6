"""Answers of a given form: whatever the model would like to say, what comes out is JSON that fits the schema."""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.core.tiny import tiny_reader

from nnm_core import NNM, InvalidInputError, JsonSchema

TEXT = {"type": "string"}
PERSON = {
    "type": "object",
    "properties": {
        "name": TEXT,
        "age": {"type": "integer"},
        "tags": {"type": "array", "items": TEXT},
        "boss": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/boss"}]},
        "role": {"enum": ["cook", "clerk"]},
        "since": {"type": "string", "pattern": "^[0-9]+y$"},
    },
    "required": ["name", "age", "tags", "boss", "role", "since"],
    "$defs": {
        "boss": {"type": "object", "properties": {"name": TEXT, "tall": {"type": "boolean"}}, "required": ["name"]}
    },
}
SCHEMAS: dict[str, dict[str, Any]] = {
    "person": PERSON,
    "people": {
        "type": "object",
        "properties": {"people": {"type": "array", "items": PERSON, "minItems": 1}},
        "required": ["people"],
        "$defs": PERSON["$defs"],
    },
    "text": TEXT,
    "number": {"type": "number"},
    "anything": {"type": "object"},
}


def fits(value: Any, schema: dict[str, Any]) -> bool:
    """The part of JSON schema that is used above."""
    if "$ref" in schema:
        return fits(value, PERSON["$defs"]["boss"])
    if "anyOf" in schema:
        return any(fits(value, part) for part in schema["anyOf"])
    if "enum" in schema:
        return value in schema["enum"]
    kinds: dict[str, Any] = {
        "string": str, "integer": int, "number": (int, float), "array": list, "object": dict, "boolean": bool,
        "null": type(None),
    }  # fmt: skip
    if not isinstance(value, kinds[schema["type"]]):
        return False
    if schema["type"] == "array":
        return len(value) >= schema.get("minItems", 0) and all(fits(item, schema["items"]) for item in value)
    if schema["type"] == "object" and "properties" in schema:
        known = all(
            name in schema["properties"] and fits(part, schema["properties"][name]) for name, part in value.items()
        )
        return known and set(schema["required"]) <= set(value)
    return True


@settings(max_examples=60, deadline=None)
@example(name="number", seed=1_378_691_066, more=2, wild=1.0)
@given(st.sampled_from(sorted(SCHEMAS)), st.integers(0, 2**32), st.integers(0, 200), st.floats(0, 1))
def test_any_choice_of_tokens_ends_as_json_of_the_schema(name: str, seed: int, more: int, wild: float) -> None:
    model, rng = tiny_reader(), np.random.default_rng(seed)
    need = len(JsonSchema(SCHEMAS[name]).guide(model, 1000).way_out or ())
    room = need + more  # from the very least on
    guide = JsonSchema(SCHEMAS[name]).guide(model, room)
    tokens: list[int] = []
    for index in range(room):
        choices = np.flatnonzero(guide.allowed(len(model.tokenizer) + 3))
        # Wild models choose anything, tame ones what goes on longest: a letter rather than a closing mark.
        chosen = int(rng.choice(choices)) if rng.random() < wild else int(choices[len(choices) // 2])
        if chosen in model.eos_token_ids:
            break
        tokens.append(guide.accept(chosen, room - index - 1))
        if tokens[-1] in model.eos_token_ids:
            tokens.pop()
            break
        if guide.finished:
            break
    value = json.loads(model.tokenizer.decode(tokens))
    assert fits(value, SCHEMAS[name])


def test_answers_of_the_engine() -> None:
    with NNM.open(tiny_reader(), system=None) as nnm:
        nnm.add(["Maria leads the Falcon project."], ids=["falcon"])
        grammar = JsonSchema(SCHEMAS["person"])
        for options in ({}, {"temperature": 1.5, "seed": 3}, {"mode": "read"}, {"policy": "fast"}):
            answer = nnm.answer("Who leads the Falcon project?", max_tokens=150, grammar=grammar, **options)
            assert fits(json.loads(answer.text), PERSON)
            assert answer.finish_reason == "stop"
        assert answer.receipt.memories == {"falcon": "injected"}
        chunks = list(nnm.stream("Who leads the Falcon project?", max_tokens=150, grammar=grammar, policy="fast"))
        assert "".join(chunk.text for chunk in chunks) == answer.text
        with pytest.raises(InvalidInputError, match="max_tokens is 5, but an answer of this schema needs at least"):
            nnm.answer("Who?", max_tokens=5, grammar=grammar)


def test_what_cannot_be_followed_is_named() -> None:
    with pytest.raises(InvalidInputError, match="JSON-like"):
        JsonSchema({"type": object})
    for schema in (
        {"type": "nothing"},
        {"type": "object", "propertyNames": {"pattern": "a"}},
        {"$ref": "#/$defs/none"},
    ):
        with pytest.raises(InvalidInputError, match="cannot be followed"):
            JsonSchema(schema).guide(tiny_reader(), 100)


def test_without_the_library_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    from nnm_core.injection import json_schema

    monkeypatch.setitem(sys.modules, "llguidance.hf", None)
    json_schema._vocabulary.cache_clear()
    with pytest.raises(InvalidInputError, match=r"nnm-core\[structured\]"):
        JsonSchema(TEXT).guide(tiny_reader(), 100)


def test_schemas_are_values() -> None:
    assert JsonSchema(PERSON) == JsonSchema(json.loads(json.dumps(PERSON)))
    assert hash(JsonSchema(TEXT)) == hash(JsonSchema(TEXT))
    assert '"additionalProperties": false' in JsonSchema(PERSON).source
    assert "additionalProperties" not in JsonSchema({"type": "object"}).source
    named = {"type": "object", "properties": {"properties": {"const": {"type": "object", "properties": {}}}}}
    assert JsonSchema(named).source.count("additionalProperties") == 1
