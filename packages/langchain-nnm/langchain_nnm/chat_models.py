"""The chat model: any chain's prompt in, memories recalled for it injected, everything else read."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Literal

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel, LanguageModelInput, ModelProfile
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable
from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_openai_tool

from langchain_nnm._engine import EngineOptions
from langchain_nnm._messages import referenced, to_engine
from langchain_nnm._results import chat_chunks, chat_result
from langchain_nnm._structured import INSTALL, call_schema, can_constrain, schema_of, structured, with_note
from langchain_nnm._tools import (
    CallFormat,
    call_format,
    check_tools,
    chosen,
    knows_tools,
    parse_reply,
    takes_tools,
    tool_prompt,
)
from langchain_nnm._version import __version__
from nnm_core import Chunk, InvalidInputError, JsonSchema, Memory, Message
from nnm_core.aio import iterate

_Runs = CallbackManagerForLLMRun | AsyncCallbackManagerForLLMRun | None


@dataclass(frozen=True)
class _Prompt:
    messages: list[Message]
    references: list[Memory]
    options: dict[str, Any]
    style: CallFormat | None = None
    forced: str = ""


class ChatNNM(EngineOptions, BaseChatModel):
    """Chat with the model of an NNM engine, whose memories are injected and not read.

    Put it in place of a chain's model. Where a retriever or vector store of the same engine has found documents and
    their text stands in the prompt, however it was formatted, the text is replaced by the model's own states; the rest
    is read. What could not be injected is read as text: the worst case is ordinary RAG. See `EngineOptions` for the
    fields.

    Example:
        .. code-block:: python

            nnm = NNM.open("nnm-mini")
            nnm.add("The bins are collected on Tuesday.")
            chat = ChatNNM(nnm=nnm)
            chat.invoke("When are the bins collected?", memories=[hit.memory.id for hit in nnm.search("bins")])

    What was done stands in ``message.response_metadata["nnm"]``, and injected tokens count as ``cache_read`` in
    ``message.usage_metadata``.
    """

    def model_post_init(self, context: Any, /) -> None:
        """Say in traces which version of this package was used, and what the model can do."""
        super().model_post_init(context)
        if hasattr(self, "_add_version"):  # langchain-core 1.4 has no place for it
            self._add_version("langchain-nnm", __version__)
        if self.profile is None:
            tools = takes_tools(self.nnm.model.tokenizer)
            self.profile = ModelProfile(
                max_input_tokens=self.nnm.model.context_limit,
                text_inputs=True,
                text_outputs=True,
                image_inputs=False,
                audio_inputs=False,
                tool_calling=tools,
                tool_choice=tools or can_constrain(),
                # Through `with_structured_output`. Agents look here and take the way through tools, where calls and
                # the final answer are of one grammar.
                structured_output=False,
                open_weights=True,
            )

    @property
    def _llm_type(self) -> str:
        return "chat-nnm"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return self.engine_params()

    def _get_invocation_params(self, stop: list[str] | None = None, **kwargs: Any) -> dict[str, Any]:
        # The key of LangChain's cache is made of this: memories are named by what they say, not by id alone.
        params = super()._get_invocation_params(stop=stop, **kwargs)
        memories = self.engine_memories(kwargs.get("memories") or ())
        return params | {"memory_versions": [(m.id, m.version, m.digest) for m in memories]}

    def get_token_ids(self, text: str) -> list[int]:
        """Token ids of `text` in the model's own vocabulary."""
        return self.engine_tokens(text)

    def bind_tools(
        self,
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool],
        *,
        tool_choice: dict[str, Any] | str | bool | None = None,
        strict: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """Offer tools to a model whose chat template takes them, or make any model call one.

        Args:
            tools: functions, classes, tools or JSON schemas.
            tool_choice: ``auto``, ``any`` or ``required``, ``none``, or a name. A forced call is kept to the tool's
                schema with the extra ``structured``; without it, it is begun for the model.
            strict: accepted for other models' sake.
            **kwargs: options of the calls.

        Raises:
            InvalidInputError: the model is to choose, and its template has no place for tools.
        """
        schemas = [convert_to_openai_tool(tool) for tool in tools]
        if schemas and tool_choice not in ("none", False) and not (chosen(tool_choice, schemas) and can_constrain()):
            check_tools(self.nnm)
        return self.bind(tools=schemas, tool_choice=tool_choice, **kwargs)

    def with_structured_output(
        self,
        schema: dict[str, Any] | type | None = None,
        *,
        include_raw: bool = False,
        method: Literal["json_schema", "json_mode", "function_calling"] = "json_schema",
        strict: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, Any]:
        """Answers in the form of a schema, on any model (with the extra ``structured``).

        The form is certain: tokens that would break it are not to be had. The content is as good as the model.

        Args:
            schema: a pydantic class, a `TypedDict` or a JSON schema.
            include_raw: a dict with ``raw``, ``parsed`` and ``parsing_error`` in place of the parsed answer.
            method: ``json_schema``; ``json_mode`` is the same here, any JSON object without a schema;
                ``function_calling`` goes through a forced call of a tool.
            strict: accepted for other models' sake; the schema is always kept to.
            **kwargs: options of the calls.

        Raises:
            InvalidInputError: the extra is not installed and the model's template has no place for tools.
        """
        if method == "function_calling" or not can_constrain():
            if schema is None:
                raise InvalidInputError(f"method={method!r} needs a schema.", hint="Pass one, or " + INSTALL)
            return super().with_structured_output(schema, include_raw=include_raw, **kwargs)
        return structured(self, schema, include_raw=include_raw, method=method, **kwargs)

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        prompt = self._prompt(messages, kwargs)
        chunk = Chunk("")
        for chunk in self._run(prompt, stop, run_manager):  # noqa: B007  # the last one has the answer
            pass
        return self._finished(prompt, chunk)

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        for chunk in self._chunks(messages, stop, run_manager, kwargs):
            if run_manager:
                run_manager.on_llm_new_token(chunk.text, chunk=chunk)
            yield chunk

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        prompt = await asyncio.to_thread(self._prompt, messages, kwargs)
        chunk = Chunk("")
        # Token by token, so that a cancelled task stops the decoding.
        async with aclosing(iterate(lambda: self._run(prompt, stop, run_manager))) as pieces:
            async for chunk in pieces:  # noqa: B007
                pass
        return self._finished(prompt, chunk)

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        async with aclosing(iterate(lambda: self._chunks(messages, stop, run_manager, kwargs))) as chunks:
            async for chunk in chunks:
                if run_manager:
                    await run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                yield chunk

    # -- the engine ---------------------------------------------------------------------------------------------

    def _prompt(self, messages: list[BaseMessage], kwargs: dict[str, Any]) -> _Prompt:
        """What the engine is asked, and how its answer is to be understood."""
        options = dict(kwargs)
        tools, choice = options.pop("tools", None) or [], options.pop("tool_choice", None)
        form = options.pop("response_format", None)
        references = referenced(self.nnm, messages)
        able, must = takes_tools(self.nnm.model.tokenizer), chosen(choice, tools)
        style = call_format(self.nnm.model.tokenizer)
        if form is not None:
            if tools:
                raise InvalidInputError("Tools and response_format do not go together.", hint="Make the form a tool.")
            schema = schema_of(form)
            messages = with_note(messages, schema) if able else messages
            options["grammar"] = JsonSchema(schema)
        elif must and can_constrain():
            options["grammar"] = JsonSchema(call_schema(tools, must, style))
        if tools and not able and not must and choice not in ("none", False):
            check_tools(self.nnm)
        if not tools or not able:
            prompt = to_engine(messages, knows_tools=knows_tools(self.nnm))
            return _Prompt(prompt, references, options, style if must else None)
        memories = self.engine_memories(options.pop("memories", None) or ())
        begun = _begun(style, must, kept="grammar" in options)
        message = tool_prompt(self.nnm, messages, tools, begun, memories)
        return _Prompt([message], [*references, *memories], options, style, begun)

    def _run(self, prompt: _Prompt, stop: list[str] | None, run_manager: _Runs) -> Iterator[Chunk]:
        return self.engine_stream(
            prompt.messages,
            stop=stop,
            references=prompt.references,
            metadata=run_manager.metadata if run_manager else None,
            call=prompt.options,
        )

    def _chunks(
        self, messages: list[BaseMessage], stop: list[str] | None, run_manager: _Runs, kwargs: dict[str, Any]
    ) -> Iterator[ChatGenerationChunk]:
        prompt = self._prompt(messages, kwargs)
        return chat_chunks(self.model, self._run(prompt, stop, run_manager), prompt.style, prompt.forced)

    def _finished(self, prompt: _Prompt, chunk: Chunk) -> ChatResult:
        if chunk.answer is None:
            raise RuntimeError("the stream ended without an answer")  # the engine always ends with one
        reply = parse_reply(prompt.forced + chunk.answer.text, prompt.style) if prompt.style else None
        return chat_result(self.model, chunk.answer, reply)


def _begun(style: CallFormat, must: Sequence[str], *, kept: bool) -> str:
    """What a forced call is begun with; `kept` says that a grammar does the rest."""
    if not must or kept:
        return style.lead if must else ""
    return style.forced + (f'{must[0]}", ' if len(must) == 1 else "")
