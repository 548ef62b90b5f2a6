"""What every component here shares: one engine, held so that copies share it and pickles are refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

from llama_index.core.bridge.pydantic import BaseModel

from nnm_core import InvalidInputError, NNMError

if TYPE_CHECKING:
    from nnm_core import NNM


class NotPicklableError(NNMError, TypeError):
    """A component that holds a loaded model and an open store was to be pickled."""


class EngineHandle:
    """Holds the engine: copies of a component, deep ones too, share it."""

    __slots__ = ("nnm",)

    def __init__(self, nnm: NNM) -> None:
        if not hasattr(nnm, "leases"):
            raise InvalidInputError(
                f"nnm must be an open engine, not {nnm!r}.", hint="Pass what nnm_core.NNM.open(...) returns."
            )
        self.nnm = nnm

    def __copy__(self) -> EngineHandle:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> EngineHandle:
        return self

    def __reduce__(self) -> NoReturn:
        raise _refusal("The engine")


class EngineBound:
    """Mixin that refuses pickling with a hint, where LlamaIndex would drop the engine and go on without it."""

    def __getstate__(self) -> NoReturn:
        raise _refusal(type(self).__name__)


class EngineOwner(EngineBound):
    """Mixin of the components that are made with an engine; they keep it in `_engine`."""

    _engine: EngineHandle

    @property
    def nnm(self) -> NNM:
        """The engine."""
        return self._engine.nnm


def known_fields(component: type[BaseModel], fields: dict[str, Any]) -> dict[str, Any]:
    """`fields`, all of which the component has: pydantic would pass over a misspelt one.

    Raises:
        InvalidInputError: there is no such field.
    """
    unknown = sorted(set(fields) - set(component.model_fields))
    if unknown:
        raise InvalidInputError(
            f"{', '.join(unknown)}: not a field of {component.__name__}.",
            hint=f"It takes nnm, {', '.join(sorted(component.model_fields))}.",
        )
    return fields


def _refusal(name: str) -> NotPicklableError:
    return NotPicklableError(
        f"{name} holds a loaded model and an open store and cannot be pickled.",
        hint="Open the store and make the component again where it is needed; with pipelines, use num_workers=None.",
    )
