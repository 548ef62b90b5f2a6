"""A text-in, text-out model for chains that were written before chat models. New code takes `ChatNNM`."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import LLM, LanguageModelInput
from langchain_core.outputs import Generation, GenerationChunk, LLMResult
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.runnables.config import get_config_list

from langchain_nnm._engine import OPTIONS, EngineOptions, in_scope
from langchain_nnm._results import response_metadata
from nnm_core import Answer, Chunk, Message
from nnm_core.aio import iterate

if TYPE_CHECKING:
    from nnm_core import Answering

_Runs = CallbackManagerForLLMRun | AsyncCallbackManagerForLLMRun | None


class NNMLLM(EngineOptions, LLM):
    """Completes a prompt string, which is put into the model's chat template as one user turn.

    Memories in the prompt are injected as by `ChatNNM`; see `EngineOptions` for the fields.
    """

    @property
    def _llm_type(self) -> str:
        return "nnm"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return self.engine_params()

    def get_token_ids(self, text: str) -> list[int]:
        """Token ids of `text` in the model's own vocabulary."""
        return self.engine_tokens(text)

    def generate(self, prompts: list[str], stop: list[str] | None = None, *args: Any, **kwargs: Any) -> LLMResult:
        """As in the base class, whose cache knows a model's fields but not the options of a call."""
        model, rest = self._for_call(kwargs)
        return super(NNMLLM, model).generate(prompts, stop, *args, **rest)

    async def agenerate(
        self, prompts: list[str], stop: list[str] | None = None, *args: Any, **kwargs: Any
    ) -> LLMResult:
        """As `generate`, off the event loop."""
        model, rest = self._for_call(kwargs)
        return await super(NNMLLM, model).agenerate(prompts, stop, *args, **rest)

    def invoke(self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any) -> str:
        """As in the base class, in the scope that the config names."""
        return super().invoke(input, config, **in_scope(config, kwargs))

    async def ainvoke(self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any) -> str:
        """As `invoke`, off the event loop."""
        return await super().ainvoke(input, config, **in_scope(config, kwargs))

    def stream(self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any) -> Iterator[str]:
        """As `invoke`, piece by piece."""
        return super().stream(input, config, **in_scope(config, kwargs))

    def astream(
        self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any
    ) -> AsyncIterator[str]:
        """As `stream`, off the event loop."""
        return super().astream(input, config, **in_scope(config, kwargs))

    def batch(
        self,
        inputs: list[LanguageModelInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        **kwargs: Any,
    ) -> list[str]:
        """As in the base class: the prompts decode together, and each answer is what it would be alone."""
        calls = _calls(config, len(inputs), kwargs)
        if len(calls) == 1:
            return super().batch(inputs, config, **calls[0])
        return Runnable.batch(self, inputs, config, **kwargs)

    async def abatch(
        self,
        inputs: list[LanguageModelInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        **kwargs: Any,
    ) -> list[str]:
        """As `batch`, off the event loop; cancelling the task ends the decoding."""
        calls = _calls(config, len(inputs), kwargs)
        if len(calls) == 1:
            return await super().abatch(inputs, config, **calls[0])
        return await Runnable.abatch(self, inputs, config, **kwargs)

    def _generate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        if len(prompts) == 1:
            return super()._generate(prompts, stop, run_manager, **kwargs)
        answers = self.nnm.finish([self._run(prompt, stop, run_manager, kwargs) for prompt in prompts])
        return _texts(answers)

    async def _agenerate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        if len(prompts) == 1:
            return await super()._agenerate(prompts, stop, run_manager, **kwargs)
        gone = threading.Event()

        def finish() -> LLMResult:
            begun = [self._run(prompt, stop, run_manager, kwargs) for prompt in prompts]
            return _texts(self.nnm.finish(begun, wanted=lambda: not gone.is_set()))

        try:
            return await asyncio.to_thread(finish)
        finally:
            gone.set()

    def _for_call(self, kwargs: dict[str, Any]) -> tuple[NNMLLM, dict[str, Any]]:
        """A copy whose fields are the call's options, and the other arguments. Named memories are not cached."""
        fields = {name: kwargs[name] for name in OPTIONS if name in kwargs}
        uncached = {"cache": False} if kwargs.get("memories") else {}
        rest = {name: value for name, value in kwargs.items() if name not in fields}
        return self.model_copy(update=fields | uncached), rest

    def _call(
        self,
        prompt: str,
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> str:
        return "".join(chunk.text for chunk in self._run(prompt, stop, run_manager, kwargs))

    def _stream(
        self,
        prompt: str,
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[GenerationChunk]:
        for piece in self._run(prompt, stop, run_manager, kwargs):
            chunk = self._chunk(piece)
            if run_manager:
                run_manager.on_llm_new_token(chunk.text, chunk=chunk)
            yield chunk

    async def _acall(
        self,
        prompt: str,
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> str:
        async with aclosing(iterate(lambda: self._run(prompt, stop, run_manager, kwargs))) as pieces:
            return "".join([piece.text async for piece in pieces])

    async def _astream(
        self,
        prompt: str,
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[GenerationChunk]:
        async with aclosing(iterate(lambda: self._run(prompt, stop, run_manager, kwargs))) as pieces:
            async for piece in pieces:
                chunk = self._chunk(piece)
                if run_manager:
                    await run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                yield chunk

    def _run(self, prompt: str, stop: list[str] | None, run_manager: _Runs, kwargs: dict[str, Any]) -> Answering:
        metadata = run_manager.metadata if run_manager else None
        return self.engine_stream([Message("user", prompt)], stop=stop, metadata=metadata, call=dict(kwargs))

    def _chunk(self, piece: Chunk) -> GenerationChunk:
        info = None if piece.answer is None else response_metadata(self.model, piece.answer)
        return GenerationChunk(text=piece.text, generation_info=info)


def _texts(answers: list[Answer]) -> LLMResult:
    return LLMResult(generations=[[Generation(text=answer.text)] for answer in answers])


def _calls(
    config: RunnableConfig | list[RunnableConfig] | None, count: int, options: dict[str, Any]
) -> list[dict[str, Any]]:
    """The different options that the calls of a batch have; the base class answers all with one."""
    found: list[dict[str, Any]] = []
    for one in get_config_list(config, count):
        its = in_scope(one, options)
        found += [] if its in found else [its]
    return found
