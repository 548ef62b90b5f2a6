"""The LLM: LlamaIndex's prompts in, the engine's answers out, leased memories injected in place of their text."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    ChatResponseAsyncGen,
    ChatResponseGen,
    CompletionResponse,
    CompletionResponseAsyncGen,
    CompletionResponseGen,
    LLMMetadata,
)
from llama_index.core.bridge.pydantic import Field, PrivateAttr
from llama_index.core.instrumentation.span import active_span_id
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback
from llama_index.core.llms.llm import LLM
from llama_index_instrumentation import get_dispatcher

from llamaindex_nnm.engine_bound import EngineHandle, EngineOwner, known_fields
from llamaindex_nnm.events import NNMReceiptEvent, current_receipts
from llamaindex_nnm.messages import to_engine
from llamaindex_nnm.responses import chat_response, completion_response
from nnm_core import Chunk, InvalidInputError, Message
from nnm_core.aio import iterate

if TYPE_CHECKING:
    from nnm_core import NNM

dispatcher = get_dispatcher(__name__)

Cumulative = tuple[str, Chunk]
_SAMPLING = ("max_tokens", "temperature", "top_p", "top_k", "stop", "seed")
_OPTIONS = (*_SAMPLING, "policy", "composer", "order", "mode", "scope", "strict")
_PER_CALL = ("memories", "references", "overflow")
# Offered by callers that treat every LLM alike; they mean nothing here.
_IGNORED = ("formatted", "stream")


class NNMLLM(EngineOwner, LLM):
    """A chat LLM on an open engine.

    Text of memories that a retriever, vector store or memory of the same engine and scope has just recalled is not
    read again but replaced by its state; everything else in the prompt is read. Each response says in
    ``raw["nnm"]`` what was done (tier, counts, which memory was injected or read and why), and in ``raw["usage"]``
    and ``additional_kwargs`` how many tokens there were.

    Every field can be given anew per call (``llm.chat(messages, max_tokens=8)``). ``memories=[ids]`` in a call
    answers from these memories without their text in the prompt (``overflow="drop"`` leaves out what does not fit, if
    the prompt is one question); ``references=[memories]`` looks for these in the prompt beside the recalled ones.

    Args:
        nnm: the open engine; it is shared, not closed.
        **fields: see the fields below.
    """

    max_tokens: int = Field(default=256, gt=0, description="Length of an answer at most.")
    temperature: float = Field(default=0.0, ge=0, description="0 decodes greedily.")
    top_p: float = Field(default=1.0, gt=0, le=1, description="Nucleus sampling.")
    top_k: int = Field(default=0, ge=0, description="Sample from so many tokens; 0 for all.")
    stop: list[str] = Field(default_factory=list, description="Strings that end the answer and are cut from it.")
    seed: int | None = Field(default=None, description="Makes sampling repeatable.")
    policy: Literal["exact", "auto", "fast"] = Field(
        default="auto",
        description="exact and auto give the answers of reading; fast also composes states, which is approximate.",
    )
    composer: str | None = Field(
        default=None, description="How they are placed side by side; None: as the engine does."
    )
    order: Literal["ranked", "canonical"] = Field(
        default="ranked",
        description="canonical sorts memories given by reference by id, so that more of them are found exact.",
    )
    mode: Literal["inject", "read", "bare"] = Field(default="inject", description="read is the control: same tokens.")
    scope: str = Field(default="", description="Conversation or request whose recalled memories may be injected.")
    strict: bool = Field(default=False, description="Raise where a recalled memory would be lost or read for good.")

    _engine: EngineHandle = PrivateAttr()

    def __init__(self, nnm: NNM, **fields: Any) -> None:
        engine = EngineHandle(nnm)
        super().__init__(**known_fields(type(self), fields))
        self._engine = engine

    @classmethod
    def class_name(cls) -> str:
        """Stable name for serialisation."""
        return "NNMLLM"

    @property
    def metadata(self) -> LLMMetadata:
        """The model's context window and name."""
        model = self.nnm.model
        return LLMMetadata(
            context_window=model.context_limit,
            num_output=self.max_tokens,
            is_chat_model=True,
            is_function_calling_model=False,
            model_name=model.name,
        )

    def tokenize(self, text: str) -> list[int]:
        """Token ids of `text`, for splitters, token counters and prompt helpers (``tokenizer=llm.tokenize``)."""
        return list(self.nnm.model.tokenizer(text, add_special_tokens=False)["input_ids"])

    # -- chat ---------------------------------------------------------------------------------------------------

    @llm_chat_callback()
    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """Answer a chat prompt; see the class for `kwargs`."""
        return chat_response(*_last(self._run(to_engine(messages), kwargs)))

    @llm_chat_callback()
    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:
        """As `chat`, piece by piece: each response holds the text so far and its new part."""
        pieces = self._run(to_engine(messages), kwargs)
        return (chat_response(text, chunk, streaming=True) for text, chunk in pieces)

    @llm_chat_callback()
    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """As `chat`, off the event loop; cancelling the task ends the decoding."""
        prompt = to_engine(messages)
        return chat_response(*await _alast(iterate(lambda: self._run(prompt, kwargs))))

    @llm_chat_callback()
    async def astream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseAsyncGen:
        """As `stream_chat`, off the event loop."""
        prompt = to_engine(messages)

        async def responses() -> ChatResponseAsyncGen:
            async for text, chunk in iterate(lambda: self._run(prompt, kwargs)):
                yield chat_response(text, chunk, streaming=True)

        return responses()

    # -- completion ---------------------------------------------------------------------------------------------

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """Answer one prompt: as a user message, or as it stands if it is `formatted` for the model already."""
        return completion_response(*_last(self._complete(prompt, formatted, kwargs)))

    @llm_completion_callback()
    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseGen:
        """As `complete`, piece by piece."""
        pieces = self._complete(prompt, formatted, kwargs)
        return (completion_response(text, chunk, streaming=True) for text, chunk in pieces)

    @llm_completion_callback()
    async def acomplete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """As `complete`, off the event loop; cancelling the task ends the decoding."""
        return completion_response(*await _alast(iterate(lambda: self._complete(prompt, formatted, kwargs))))

    @llm_completion_callback()
    async def astream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseAsyncGen:
        """As `stream_complete`, off the event loop."""

        async def responses() -> CompletionResponseAsyncGen:
            async for text, chunk in iterate(lambda: self._complete(prompt, formatted, kwargs)):
                yield completion_response(text, chunk, streaming=True)

        return responses()

    # -- the engine ---------------------------------------------------------------------------------------------

    def _complete(self, prompt: str, formatted: bool, kwargs: dict[str, Any]) -> Generator[Cumulative, None, None]:
        return self._run([Message("prompt" if formatted else "user", prompt)], kwargs)

    def _run(self, prompt: Sequence[Message], kwargs: dict[str, Any]) -> Generator[Cumulative, None, None]:
        """The text so far with each chunk; nothing is decoded ahead of the consumer."""
        options = self._options(kwargs)
        question: str | Sequence[Message] = prompt
        if options.get("memories"):
            question = self._with_own_system(prompt)
        return _cumulative(self.nnm.stream(question, **options), active_span_id.get(), current_receipts())

    def _with_own_system(self, prompt: Sequence[Message]) -> str | Sequence[Message]:
        """Behind the engine's own system prompt the first memory's state is exact from the first time on."""
        if any(message.role in ("system", "prompt") for message in prompt):
            return prompt
        if len(prompt) == 1:
            return prompt[0].content
        return [Message("system", self.nnm.system), *prompt] if self.nnm.system else prompt

    def _options(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        unknown = set(kwargs) - {*_OPTIONS, *_PER_CALL, *_IGNORED}
        if unknown:
            raise InvalidInputError(
                f"{', '.join(sorted(unknown))}: not an option of {self.class_name()}.",
                hint=f"It takes {', '.join((*_OPTIONS, *_PER_CALL))}.",
            )
        options = {name: getattr(self, name) for name in _OPTIONS}
        given = {name: value for name, value in kwargs.items() if value is not None and name not in _IGNORED}
        return options | given


def _cumulative(
    chunks: Iterator[Chunk], span: str | None, taken: list[NNMReceiptEvent] | None
) -> Generator[Cumulative, None, None]:
    text = ""
    for chunk in chunks:
        text += chunk.text
        if chunk.answer is not None:
            event = NNMReceiptEvent.of(chunk.answer.receipt, span_id=span)
            dispatcher.event(event)
            if taken is not None:
                taken.append(event)
        yield text, chunk


def _last(pieces: Generator[Cumulative, None, None]) -> Cumulative:
    result: Cumulative = ("", Chunk(""))
    for result in pieces:  # noqa: B007  # the last one is the result
        pass
    return result


async def _alast(pieces: AsyncGenerator[Cumulative, None]) -> Cumulative:
    result: Cumulative = ("", Chunk(""))
    try:
        async for result in pieces:  # noqa: B007
            pass
    finally:
        await pieces.aclose()
    return result
