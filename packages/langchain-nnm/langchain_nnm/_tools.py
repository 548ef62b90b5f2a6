"""Tool calling through the chat template of models that have it.

The template renders the tools and the calls so far; what the model answers is parsed back. Three ways of writing a
call are known, and the template tells which one its model was trained on:

* ``<tool_call>{"name": ..., "arguments": {...}}</tool_call>`` (Hermes, Qwen, SmolLM)
* ``[TOOL_CALLS][{"name": ..., "arguments": {...}}]`` (Mistral)
* ``{"name": ..., "parameters": {...}}`` as the whole answer (Llama)
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, InvalidToolCall, ToolCall, ToolMessage
from langchain_core.messages.tool import invalid_tool_call, tool_call

from langchain_nnm._messages import role_of, text_of
from nnm_core import InvalidInputError, Memory, Message

_HINT = (
    "Use a model whose chat template takes tools, such as Qwen's, or let the chain call the retriever itself. A call "
    "can be forced (tool_choice='any') with: pip install 'langchain-nnm[structured]'."
)


@dataclass(frozen=True)
class CallFormat:
    """How a model writes a call.

    Attributes:
        opening: what stands before it.
        lead: what the answer is begun with where a call is forced and the rest is kept to a schema.
        forced: the same where nothing keeps it: up to the name.
        alone: the call is the whole answer.
        listed: calls are in a list.
        arguments: the key of the arguments.
    """

    opening: str
    lead: str
    forced: str
    alone: bool = False
    listed: bool = False
    arguments: str = "arguments"

    def safe_end(self, text: str) -> int:
        """How much of a growing answer is certainly no call."""
        if self.alone:
            return 0 if text.lstrip()[:1] in ("", self.opening) else len(text)
        at = text.find(self.opening)
        if at >= 0:
            return at
        sizes = range(min(len(self.opening), len(text)), 0, -1)
        return len(text) - next((size for size in sizes if self.opening.startswith(text[-size:])), 0)


_FORMATS = (
    ("<tool_call>", CallFormat("<tool_call>", "<tool_call>\n", '<tool_call>\n{"name": "')),
    ("[TOOL_CALLS]", CallFormat("[TOOL_CALLS]", "[TOOL_CALLS]", '[TOOL_CALLS][{"name": "', listed=True)),
)
_PLAIN = CallFormat("{", "", '{"name": "', alone=True, arguments="parameters")


@dataclass(frozen=True)
class Reply:
    """What a model has answered where tools were offered."""

    text: str
    calls: tuple[ToolCall, ...] = ()
    invalid: tuple[InvalidToolCall, ...] = ()


def takes_tools(tokenizer: Any) -> bool:
    """Whether the chat template of this tokenizer has a place for tools."""
    return "tools" in (tokenizer.chat_template or "")


def knows_tools(nnm: Any) -> bool:
    """Whether the model knows turns of tools, as far as its chat template tells."""
    return "tool" in (nnm.model.tokenizer.chat_template or "")


def check_tools(nnm: Any) -> None:
    """Raise `InvalidInputError` unless the engine's model can be offered tools."""
    if not takes_tools(nnm.model.tokenizer):
        raise InvalidInputError(
            f"The chat template of {nnm.model.name} has no place for tools, so it cannot choose one.", hint=_HINT
        )


def call_format(tokenizer: Any) -> CallFormat:
    """How the model of this tokenizer writes a call."""
    template = tokenizer.chat_template or ""
    return next((known for sign, known in _FORMATS if sign in template), _PLAIN)


def tool_prompt(
    nnm: Any, messages: Sequence[BaseMessage], tools: Sequence[dict[str, Any]], begun: str, memories: Sequence[Memory]
) -> Message:
    """The whole prompt, rendered, with the beginning of the answer.

    Memories are put in front of the last user turn as text, where the engine finds them.
    """
    tokenizer = nnm.model.tokenizer
    control = _control_tokens(tokenizer)
    turns = [_turn(message, control) for message in messages]
    if memories:
        context = "Context:\n" + "".join(f"{memory.text}\n\n" for memory in memories)
        last = max((i for i, turn in enumerate(turns) if turn["role"] == "user"), default=None)
        if last is None:
            turns.append({"role": "user", "content": context})
        else:
            turns[last]["content"] = f"{context}Question: {turns[last]['content']}"
    rendered = tokenizer.apply_chat_template(
        turns,
        tools=list(tools),
        tokenize=False,
        add_generation_prompt=True,
        enable_thinking=False,
        date_string="26 Jul 2024",  # templates that print today's date would change every state every day
    )
    return Message("prompt", str(rendered) + begun)


def chosen(choice: Any, tools: Sequence[dict[str, Any]]) -> list[str]:
    """The names of the tools of which one must be called; empty if none must.

    Raises:
        InvalidInputError: a choice that is not understood.
    """
    names = [tool["function"]["name"] for tool in tools]
    if isinstance(choice, dict):
        choice = choice.get("function", {}).get("name") or choice.get("name")
    if choice in (None, False, "auto", "none"):
        return []
    if choice in (True, "any", "required"):
        return names
    if choice in names:
        return [choice]
    raise InvalidInputError(f"tool_choice is {choice!r}.", hint=f"Use auto, any, none or one of {', '.join(names)}.")


def _turn(message: BaseMessage, control: Sequence[str]) -> dict[str, Any]:
    turn: dict[str, Any] = {"role": role_of(message), "content": _harmless(text_of(message), control)}
    if isinstance(message, AIMessage) and message.tool_calls:
        turn["tool_calls"] = [
            {"type": "function", "function": {"name": call["name"], "arguments": call["args"]}}
            for call in message.tool_calls
        ]
    if isinstance(message, ToolMessage):
        turn["tool_call_id"] = message.tool_call_id
        turn["name"] = message.name or ""
    return turn


def _control_tokens(tokenizer: Any) -> list[str]:
    added = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    return sorted({*added, *tokenizer.all_special_tokens}, key=len, reverse=True)


def _harmless(text: str, control: Sequence[str]) -> str:
    """In a rendered prompt control tokens count: those that stand in somebody's text are broken up."""
    for token in control:
        text = text.replace(token, f"{token[:1]} {token[1:]}")
    return text


# -- the answer -----------------------------------------------------------------------------------------------------


def parse_reply(text: str, style: CallFormat) -> Reply:
    """Text and calls of an answer; a call that is no JSON is kept as invalid."""
    if style.alone:
        calls, _ = _calls(text) if text.lstrip().startswith(style.opening) else ([], [])
        return Reply("" if calls else text, tuple(calls))
    before, opening, rest = text.partition(style.opening)
    if not opening:
        return Reply(text)
    found = [_calls(piece) for piece in rest.split(style.opening)]
    calls = [call for good, _ in found for call in good]
    return Reply(before, tuple(calls), tuple(call for _, bad in found for call in bad))


def _calls(text: str) -> tuple[list[ToolCall], list[InvalidToolCall]]:
    written = text.split("</tool_call>")[0].strip()
    try:
        parsed, _ = json.JSONDecoder().raw_decode(written)
        items = parsed if isinstance(parsed, list) else [parsed]
        return [_call(item) for item in items], []
    except (ValueError, TypeError, KeyError) as error:
        return [], [invalid_tool_call(name=None, args=written, id=_new_id(), error=str(error))]


def _call(item: Any) -> ToolCall:
    arguments = item.get("arguments", item.get("parameters", {})) if isinstance(item, dict) else None
    if isinstance(arguments, str):
        arguments = json.loads(arguments)
    if not isinstance(arguments, dict):
        raise TypeError("a call is an object with name and arguments")
    return tool_call(name=str(item["name"]), args=arguments, id=_new_id())


def _new_id() -> str:
    return f"call_{uuid.uuid4().hex[:24]}"
