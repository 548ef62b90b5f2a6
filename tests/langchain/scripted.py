"""An engine whose prompts, memories and receipts are real and whose answers are written by rules.

It stands for a model that was trained to call tools: a tiny random one cannot show whether the adapter renders tools,
forces calls and parses them. Everything but the words of the answer comes from the engine.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

from tests.core.families import tiny
from tests.core.tiny import byte_tokenizer

from nnm_core import NNM, Answer, Chunk, Message
from nnm_core.model.load import LoadedModel, wrap_model

# The way Qwen's template does it, shortened.
TOOL_TEMPLATE = (
    "{% if tools %}{{ '<|im_start|>system\n' }}{% if messages[0]['role'] == 'system' %}"
    "{{ messages[0]['content'] + '\n\n' }}{% endif %}{{ '<tools>' }}{% for tool in tools %}{{ '\n' + (tool | tojson) }}"
    "{% endfor %}{{ '\n</tools>\nAnswer with <tool_call> where a tool helps.<|im_end|>\n' }}{% endif %}"
    "{% for message in messages %}{% if not (tools and loop.first and message['role'] == 'system') %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] }}{% for call in message['tool_calls'] or [] %}"
    "{{ '\n<tool_call>\n' + (call['function'] | tojson) + '\n</tool_call>' }}{% endfor %}{{ '<|im_end|>\n' }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_TURN = re.compile(r"<\|im_start\|>(\w+)\n(.*?)(?:<\|im_end\|>\n|\Z)", re.DOTALL)


@cache
def tool_reader() -> LoadedModel:
    """A tiny random reader whose template has a place for tools, with room for long prompts."""
    model = wrap_model(tiny("qwen3"), byte_tokenizer(TOOL_TEMPLATE), name="tiny-tools")
    return replace(model, context_limit=8192)


class ScriptedNNM(NNM):
    """See the module."""

    def stream(self, question: Any, k: int = 4, max_tokens: int = 64, **options: Any) -> Iterator[Chunk]:
        """The real stream with one token, its text exchanged; the real stream where the answer is to fit a schema."""
        prompt = "".join(f"<|im_start|>{m.role}\n{m.content}" for m in _messages(question))
        grammar = options.pop("grammar", None)
        if grammar is not None and "<tools>" not in prompt:
            yield from super().stream(question, k, max_tokens, grammar=grammar, **options)
            return
        last = list(super().stream(question, k, 1, **options))[-1]
        assert last.answer is not None
        text = reply(prompt, grammar)
        if grammar is not None:
            follow(grammar.guide(self.model, max_tokens), self.model, text)
        stop = options.get("stop") or ()
        cut = min((text.index(s) for s in stop if s in text), default=len(text))
        pieces = [text[:cut][at : at + 7] for at in range(0, max(cut, 1), 7)]
        yield from _chunks(pieces, replace(last.answer, text=text[:cut]))

    def finish(self, answers: Sequence[Any], **_: Any) -> list[Answer]:
        """The end of each stream, one after the other."""
        return [list(chunks)[-1].answer for chunks in answers]


def _messages(question: Any) -> Sequence[Message]:
    if isinstance(question, str):
        return [Message("user", question)]
    # A rendered prompt has its own turns; messages get theirs.
    return [Message("prompt", m.content) if m.role == "prompt" else m for m in question]


def _chunks(pieces: list[str], answer: Any) -> Iterator[Chunk]:
    for piece in pieces:
        yield Chunk(piece)
    yield Chunk("", (), answer)


def open_scripted(**options: Any) -> NNM:
    """An empty scripted engine in RAM."""
    return ScriptedNNM.open(tool_reader(), **{"system": None, **options})


# -- the rules ----------------------------------------------------------------------------------------------------


def follow(guide: Any, model: LoadedModel, text: str) -> None:
    """Fail unless the grammar lets a model write this, and holds it to be whole."""
    tokens = model.tokenizer(text, add_special_tokens=False)["input_ids"]
    for token in tokens:
        assert guide.allowed(len(model.tokenizer))[token], text
        assert guide.accept(token, 10_000) == token
    assert guide.finished, text


def reply(prompt: str, grammar: Any = None) -> str:
    """Answer from tool results if there are any behind the question, else call a tool if one is offered."""
    offered = re.search(r"<tools>\n(.*?)\n</tools>", prompt, re.DOTALL)
    tools = [json.loads(line)["function"] for line in offered[1].splitlines()] if offered else []
    turns = _TURN.findall(prompt)
    asked = max((i for i, (role, _) in enumerate(turns) if role == "user"), default=0)
    question = turns[asked][1] if turns else prompt
    begun = turns[-1][1] if turns and turns[-1][0] == "assistant" else ""
    results = [content for role, content in turns[asked:] if role == "tool"]
    if grammar is not None:
        tool = next(tool for tool in tools if json.dumps(tool["name"]) in grammar.source)
        return f'{{"name": "{tool["name"]}", "arguments": {_arguments(tool, question)}}}'
    if results and not begun:
        return f"The tool says: {results[-1]}"
    if not tools:
        return "I answer without tools."
    if not begun:
        call = f'{{"name": "{tools[0]["name"]}", "arguments": {_arguments(tools[0], question)}}}'
        return f"Let me see.\n<tool_call>\n{call}\n</tool_call>"
    named = re.search(r'"name": "(\w+)", ', begun)
    tool = next((t for t in tools if named and t["name"] == named[1]), tools[0])
    name = "" if named else f'{tool["name"]}", '
    return f'{name}"arguments": {_arguments(tool, question)}}}\n</tool_call>'


def _arguments(tool: dict[str, Any], question: str) -> str:
    properties = tool.get("parameters", {}).get("properties", {})
    return json.dumps({name: _value(schema, question) for name, schema in properties.items()}, ensure_ascii=False)


def _value(schema: dict[str, Any], question: str) -> Any:
    numbers = re.findall(r"-?\d+", question)
    if schema.get("type") in ("integer", "number"):
        return int(numbers[0]) if numbers else 1
    quoted = re.search(r"'([^']+)'", question)
    return quoted[1] if quoted else question.strip()
