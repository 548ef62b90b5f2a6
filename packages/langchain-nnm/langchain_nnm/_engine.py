"""What the chat model and the LLM share: the engine, the options of an answer, and how a call overrides them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import ensure_config
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from nnm_core import InvalidInputError, Memory, Message

if TYPE_CHECKING:
    from nnm_core import Answering

SCOPE_KEY = "nnm_scope"
DEFAULT_MAX_TOKENS = 256
_SAMPLING = ("temperature", "top_p", "top_k", "seed", "max_tokens")
_ROUTING = ("policy", "composer", "order", "mode", "strict")
OPTIONS = (*_SAMPLING, *_ROUTING, "scope")
# Standard fields of chat models, which LangChain and its test suite set on any of them; they change nothing here.
_NOT_HERE = frozenset({"timeout", "max_retries", "api_key", "base_url", "streaming"})
# Passed on by LangChain itself in a call.
_IGNORED = frozenset({"stream", "stream_usage", "ls_structured_output_format"})


class EngineComponent(BaseModel):
    """What holds an open engine: anything else in its place, and fields that it does not have, are refused."""

    nnm: Any = Field(exclude=True, repr=False)

    _passed_over: ClassVar[frozenset[str]] = frozenset()

    @model_validator(mode="before")
    @classmethod
    def _fields(cls, values: Any) -> Any:
        return known_fields(cls, values, allowed=cls._passed_over)

    @field_validator("nnm")
    @classmethod
    def _is_engine(cls, value: Any) -> Any:
        return checked_engine(value)


class EngineOptions(EngineComponent):
    """The engine and the options of an answer.

    Every option but the engine can be overridden in a call: ``chat.invoke(prompt, max_tokens=20)``.

    Attributes:
        nnm: an open `nnm_core.NNM`; the same object that the retriever or the vector store has. It is not closed here.
        model: the engine's model; given only to make sure that it is the one expected.
        temperature: 0 or None decodes greedily.
        max_tokens: length of an answer at most; None for 256.
        top_p: sample from the smallest set of tokens that holds this share of the probability.
        top_k: sample from so many most likely tokens; 0 for all.
        seed: makes sampling repeatable.
        stop: strings that end the answer and are cut from it.
        policy: ``auto`` and ``exact`` inject what leaves the answer as if the text had been read, and read the rest
            once to inject it the next time; ``fast`` also places states side by side that were not computed together,
            and so does ``auto`` where that was measured to agree well enough with reading.
        composer: how they are placed side by side; None for the engine's default.
        order: ``canonical`` sorts memories that are given by reference by id, so that more of them are found exact.
        mode: ``inject``; ``read`` reads the very same tokens as text; ``bare`` looks for no memory.
        scope: whose leases count; a retriever of the same scope gives them.
        strict: raise `nnm_core.MemoryNotInjectedError` where recalled memories would be lost or read for good.
    """

    model_config = ConfigDict(populate_by_name=True)

    _passed_over: ClassVar[frozenset[str]] = _NOT_HERE

    model: str = Field(default="", alias="model_name")
    temperature: float | None = None
    max_tokens: int | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None
    stop: list[str] | None = Field(default=None, alias="stop_sequences")
    policy: Literal["exact", "auto", "fast"] = "auto"
    composer: str | None = None
    order: Literal["ranked", "canonical"] = "ranked"
    mode: Literal["inject", "read", "bare"] = "inject"
    scope: str = ""
    strict: bool = False

    @field_validator("stop", mode="before")
    @classmethod
    def _as_list(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @model_validator(mode="after")
    def _name_of_engine(self) -> EngineOptions:
        name = self.nnm.model.name
        if self.model not in ("", name):
            raise ValueError(f"The engine was opened with {name!r}, not with {self.model!r}.")
        self.__dict__["model"] = name  # plain assignment would validate again, without end
        return self

    def engine_params(self) -> dict[str, Any]:
        """All that an answer depends on beside the prompt, in plain values."""
        names = (*_SAMPLING, *_ROUTING)
        engine = {
            "model": self.model,
            "fingerprint": self.nnm.fingerprint,
            "namespace": self.nnm.namespace,
            "system": self.nnm.system,
            "stop_sequences": self.stop,  # LangChain puts the call's own in as "stop"
        }
        return engine | {name: getattr(self, name) for name in names}

    def engine_tokens(self, text: str) -> list[int]:
        """Token ids of `text` in the model's own vocabulary."""
        return list(self.nnm.model.tokenizer(text, add_special_tokens=False)["input_ids"])

    def engine_memories(self, memories: Sequence[Any]) -> list[Memory]:
        """The named memories (ids, memories or hits) as they are now.

        Raises:
            MemoryNotFoundError: one of them is not there.
        """
        ids = [item if isinstance(item, str) else getattr(item, "memory", item).id for item in memories]
        found: list[Memory] = self.nnm.get(ids)
        return found

    def engine_stream(
        self,
        prompt: Sequence[Message],
        *,
        stop: list[str] | None,
        references: Sequence[Memory] = (),
        metadata: dict[str, Any] | None = None,
        call: dict[str, Any],
    ) -> Answering:
        """Answer a prompt with these options, overridden by those of the call.

        Raises:
            InvalidInputError: the call has an option that means nothing here.
        """
        call = {name: value for name, value in call.items() if name not in _IGNORED}
        memories, grammar = call.pop("memories", None), call.pop("grammar", None)
        scope = self._scope(call.pop("scope", None), metadata)
        self._check_model(call.pop("model", None))
        unknown = sorted(set(call) - {*_SAMPLING, *_ROUTING})
        if unknown:
            raise InvalidInputError(
                f"{', '.join(unknown)}: not an option of {type(self).__name__}.",
                hint=f"It takes {', '.join((*OPTIONS, 'stop', 'memories'))}.",
            )
        options = {name: getattr(self, name) for name in (*_SAMPLING, *_ROUTING)} | call
        sampling = {name: options[name] for name in _SAMPLING if options[name] is not None}
        sampling.setdefault("max_tokens", DEFAULT_MAX_TOKENS)
        routing = {name: options[name] for name in _ROUTING}
        answering: Answering = self.nnm.stream(
            list(prompt),
            memories=memories,
            references=references,
            scope=scope,
            stop=tuple((stop if stop is not None else self.stop) or ()),
            **({} if grammar is None else {"grammar": grammar}),
            **sampling,
            **routing,
        )
        return answering

    def _scope(self, given: str | None, metadata: dict[str, Any] | None) -> str:
        return given if given is not None else scope_of(self.scope, metadata)

    def _check_model(self, wanted: str | None) -> None:
        if wanted not in (None, self.model):
            raise InvalidInputError(
                f"This model is {self.model!r}, not {wanted!r}.", hint="Open another engine for another model."
            )


def checked_engine(value: Any) -> Any:
    """`value`, if it is an open engine.

    Raises:
        InvalidInputError: it is something else; to pydantic that is a `ValueError`.
    """
    if not hasattr(value, "stream") or not hasattr(value, "leases"):
        raise InvalidInputError(
            f"nnm must be an open engine, not {value!r}.", hint="Pass what nnm_core.NNM.open(...) returns."
        )
    return value


def known_fields(component: type[BaseModel], values: Any, *, allowed: frozenset[str] = frozenset()) -> Any:
    """`values`, all of which the component has as fields: pydantic would pass over a misspelt one.

    Raises:
        InvalidInputError: there is no such field.
    """
    names = {name for key, field in component.model_fields.items() for name in (key, field.alias) if name}
    unknown = sorted(set(values) - names - allowed) if isinstance(values, dict) else []
    if unknown:
        raise InvalidInputError(
            f"{', '.join(unknown)}: not a field of {component.__name__}.", hint=f"It takes {', '.join(sorted(names))}."
        )
    return values


def scope_of(own: str, metadata: dict[str, Any] | None) -> str:
    """The scope of a call: ``nnm_scope`` in the call's config (metadata or configurable), else the object's own."""
    config = ensure_config()
    named = _named_scope(metadata, config.get("configurable"), config.get("metadata"))
    return own if named is None else named


def in_scope(config: RunnableConfig | None, options: dict[str, Any]) -> dict[str, Any]:
    """A call's options with the scope of its config: LangChain hands not all of a config on to what is called."""
    given = config or {}
    named = _named_scope(given.get("metadata"), given.get("configurable"))
    return options if named is None else {"scope": named, **options}


def _named_scope(*places: Mapping[str, Any] | None) -> str | None:
    """The first scope that one of these names."""
    return next((place[SCOPE_KEY] for place in places if place and isinstance(place.get(SCOPE_KEY), str)), None)
