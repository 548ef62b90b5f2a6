"""Neural Native Memory: a memory for a language model made of the model's own states.

The engine is imported on first use, so that importing the records and errors (as the adapters and the command line do)
loads neither torch nor transformers.
"""

from __future__ import annotations

from importlib import import_module
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
from nnm_core.records import (
    Answer,
    Chunk,
    Hit,
    Memory,
    MemoryUse,
    Message,
    Missing,
    Mode,
    Order,
    Overflow,
    Policy,
    Receipt,
    Role,
    Tier,
    UseAction,
)

if TYPE_CHECKING:
    from nnm_core.collection import StoreSettings
    from nnm_core.embedding.layers import LayerProfile
    from nnm_core.engine import NNM
    from nnm_core.injection.compose import Composer
    from nnm_core.injection.costs import Costs
    from nnm_core.injection.guide import Grammar
    from nnm_core.injection.json_schema import JsonSchema
    from nnm_core.injection.planner import Planner, Quality
    from nnm_core.injection.selftest import SelfTest
    from nnm_core.model.load import LoadedModel
    from nnm_core.scoring import Scores
    from nnm_core.together import Answering

__all__ = [
    "NNM",
    "Answer",
    "Answering",
    "Chunk",
    "Composer",
    "ContextOverflowError",
    "Costs",
    "EngineClosedError",
    "FilterError",
    "Grammar",
    "Hit",
    "InjectionSettings",
    "InvalidInputError",
    "JsonSchema",
    "LayerProfile",
    "LoadedModel",
    "Memory",
    "MemoryNotFoundError",
    "MemoryNotInjectedError",
    "MemoryUse",
    "Message",
    "Missing",
    "Mode",
    "ModelError",
    "ModelNotFoundError",
    "NNMError",
    "Order",
    "Overflow",
    "Planner",
    "Policy",
    "PositionError",
    "Quality",
    "Receipt",
    "Role",
    "Scores",
    "SelfTest",
    "StorageError",
    "StoreLockedError",
    "StoreMismatchError",
    "StoreSettings",
    "Tier",
    "UnsupportedModelError",
    "UseAction",
    "__version__",
]

_ON_FIRST_USE = {
    "Answering": "together",
    "Composer": "injection.compose",
    "Costs": "injection.costs",
    "Grammar": "injection.guide",
    "JsonSchema": "injection.json_schema",
    "LayerProfile": "embedding.layers",
    "LoadedModel": "model.load",
    "NNM": "engine",
    "Planner": "injection.planner",
    "Quality": "injection.planner",
    "Scores": "scoring",
    "SelfTest": "injection.selftest",
    "StoreSettings": "collection",
}


def __getattr__(name: str) -> Any:
    if name not in _ON_FIRST_USE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"nnm_core.{_ON_FIRST_USE[name]}"), name)
