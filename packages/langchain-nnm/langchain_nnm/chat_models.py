"""The chat model: any chain's prompt in, memories recalled for it injected, everything else read."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel, LanguageModelInput, ModelProfile
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.runnables.config import ContextThreadPoolExecutor, get_config_list
from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_openai_tool

from langchain_nnm._batch import Meeting, parts, take_seat
from langchain_nnm._engine import EngineOptions, in_scope
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
from nnm_core import Answer, Chunk, InvalidInputError, JsonSchema, Memory, Message
from nnm_core.aio import iterate

if TYPE_CHECKING:
    from nnm_core import Answering

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

    def invoke(self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any) -> AIMessage:
        """As in the base class, in the scope that the config names."""
        return super().invoke(input, config, **in_scope(config, kwargs))

    async def ainvoke(
        self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any
    ) -> AIMessage:
        """As `invoke`, off the event loop."""
        return await super().ainvoke(input, config, **in_scope(config, kwargs))

    def stream(
        self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any
    ) -> Iterator[AIMessageChunk]:
        """As `invoke`, piece by piece."""
        return super().stream(input, config, **in_scope(config, kwargs))

    def astream(
        self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any
    ) -> AsyncIterator[AIMessageChunk]:
        """As `stream`, off the event loop."""
        return super().astream(input, config, **in_scope(config, kwargs))

    def batch(
        self,
        inputs: list[LanguageModelInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[AIMessage]:
        """Answer several prompts; they decode together, and each answer is what it would be alone.

        Args:
            inputs: the prompts.
            config: one for all, or one each; `max_concurrency` says how many decode together (32).
            return_exceptions: put an error in the place of its answer.
            **kwargs: options of the calls.
        """
        if not inputs:
            return []
        configs = get_config_list(config, len(inputs))

        def call(meeting: Meeting, number: int, value: LanguageModelInput, its: RunnableConfig) -> Any:
            with meeting.seat(number):
                try:
                    return self.invoke(value, its, **kwargs)
                except Exception as error:
                    if return_exceptions:
                        return error
                    raise

        answers: list[AIMessage] = []
        for part in parts(len(inputs), configs[0].get("max_concurrency")):
            calls = list(zip(inputs[part], configs[part], strict=True))
            meeting = Meeting(self.nnm, len(calls), lambda work: work())
            with ContextThreadPoolExecutor(max_workers=len(calls)) as threads:
                waiting = [threads.submit(call, meeting, number, *one) for number, one in enumerate(calls)]
                try:
                    answers += [one.result() for one in waiting]
                except KeyboardInterrupt:
                    meeting.give_up()
                    raise
        return answers

    async def abatch(
        self,
        inputs: list[LanguageModelInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[AIMessage]:
        """As `batch`, off the event loop; cancelling the task ends the decoding."""
        if not inputs:
            return []
        configs = get_config_list(config, len(inputs))

        async def call(meeting: Meeting, number: int, value: LanguageModelInput, its: RunnableConfig) -> AIMessage:
            with meeting.seat(number):
                return await self.ainvoke(value, its, **kwargs)

        answers: list[Any] = []
        loop = asyncio.get_running_loop()
        for part in parts(len(inputs), configs[0].get("max_concurrency")):
            calls = list(zip(inputs[part], configs[part], strict=True))
            meeting = Meeting(self.nnm, len(calls), lambda work: loop.run_in_executor(None, work))
            tasks = (call(meeting, number, *one) for number, one in enumerate(calls))
            answers += await asyncio.gather(*tasks, return_exceptions=return_exceptions)
        return answers

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        prompt, seat = self._prompt(messages, kwargs), take_seat(self.nnm)
        answering = self._run(prompt, stop, run_manager)
        if seat is not None:
            return self._finished(prompt, seat.ask(answering).result())
        chunk = Chunk("")
        for chunk in answering:  # noqa: B007  # the last one has the answer
            pass
        return self._finished(prompt, chunk.answer)

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        _leave_seat(self.nnm)
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
        prompt, seat = await asyncio.to_thread(self._prompt, messages, kwargs), take_seat(self.nnm)
        if seat is not None:
            answering = await asyncio.to_thread(self._run, prompt, stop, run_manager)
            answer: Answer = await asyncio.wrap_future(seat.ask(answering))
            return self._finished(prompt, answer)
        chunk = Chunk("")
        # Token by token, so that a cancelled task stops the decoding.
        async with aclosing(iterate(lambda: self._run(prompt, stop, run_manager))) as pieces:
            async for chunk in pieces:  # noqa: B007
                pass
        return self._finished(prompt, chunk.answer)

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        _leave_seat(self.nnm)
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

    def _run(self, prompt: _Prompt, stop: list[str] | None, run_manager: _Runs) -> Answering:
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

    def _finished(self, prompt: _Prompt, answer: Answer | None) -> ChatResult:
        if answer is None:
            raise RuntimeError("the stream ended without an answer")  # the engine always ends with one
        reply = parse_reply(prompt.forced + answer.text, prompt.style) if prompt.style else None
        return chat_result(self.model, answer, reply)


def _leave_seat(nnm: Any) -> None:
    """Nobody waits for a call that is streamed."""
    seat = take_seat(nnm)
    if seat is not None:
        seat.leave()


def _begun(style: CallFormat, must: Sequence[str], *, kept: bool) -> str:
    """What a forced call is begun with; `kept` says that a grammar does the rest."""
    if not must or kept:
        return style.lead if must else ""
    return style.forced + (f'{must[0]}", ' if len(must) == 1 else "")
