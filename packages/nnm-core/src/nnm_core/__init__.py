"""Neural Native Memory: a memory for a language model made of the model's own states.

The engine is imported on first use, so that importing the records and errors (as the adapters and the command line do)
loads neither torch nor transformers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nnm_core._version import __version__
from nnm_core.errors import (
    ContextOverflowError,
    EngineClosedError,
    FilterError,
    InvalidInputError,
    MemoryNotFoundError,
    MemoryNotInjectedError,
    ModelError,
    ModelNotFoundError,
    NNMError,
    PositionError,
    StorageError,
    StoreLockedError,
    StoreMismatchError,
    UnsupportedModelError,
)
from nnm_core.injection.settings import InjectionSettings
from nnm_core.records import Answer, Chunk, Hit, Memory, MemoryUse, Message, Receipt

if TYPE_CHECKING:
    from nnm_core.engine import NNM
    from nnm_core.injection.json_schema import JsonSchema

__all__ = [
    "NNM",
    "Answer",
    "Chunk",
    "ContextOverflowError",
    "EngineClosedError",
    "FilterError",
    "Hit",
    "InjectionSettings",
    "InvalidInputError",
    "JsonSchema",
    "Memory",
    "MemoryNotFoundError",
    "MemoryNotInjectedError",
    "MemoryUse",
    "Message",
    "ModelError",
    "ModelNotFoundError",
    "NNMError",
    "PositionError",
    "Receipt",
    "StorageError",
    "StoreLockedError",
    "StoreMismatchError",
    "UnsupportedModelError",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name == "NNM":
        from nnm_core.engine import NNM

        return NNM
    if name == "JsonSchema":
        from nnm_core.injection.json_schema import JsonSchema

        return JsonSchema
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
