"""One attention function through which the engine can intervene in any layer, without patching modules.

The fast view runs with an attention implementation registered under ``nnm_<base>``. While no intervention is
active it calls the base implementation and nothing else. An intervention is bound to the running context
(`contextvars`), so concurrent threads with and without one do not disturb each other.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

Attend = Callable[..., tuple[Tensor, Tensor | None]]
_PREFIX = "nnm_"


class AttentionIntervention(Protocol):
    """Called in place of the base attention function of every layer."""

    def __call__(
        self,
        attend: Attend,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Return what ``attend(module, query, key, value, attention_mask, **kwargs)`` would.

        Args:
            attend: the base implementation (SDPA, flash or eager).
            module: the attention module; ``module.layer_idx`` names the layer.
            query: [batch, heads, queries, head_dim], rotated.
            key: [batch, kv_heads, keys, head_dim], rotated, cached keys first.
            value: [batch, kv_heads, keys, head_dim].
            attention_mask: what the mask function of the base implementation made, or None for plain causal.
        """
        ...


_ACTIVE: ContextVar[AttentionIntervention | None] = ContextVar("nnm_attention_intervention", default=None)


@contextmanager
def intervene(intervention: AttentionIntervention) -> Iterator[None]:
    """Let `intervention` stand in for the attention of every layer inside the block, in this context only."""
    token = _ACTIVE.set(intervention)
    try:
        yield
    finally:
        _ACTIVE.reset(token)


def intervened() -> bool:
    """Whether an intervention is active in this context."""
    return _ACTIVE.get() is not None


def install(model: PreTrainedModel, base: str = "sdpa") -> bool:
    """Switch `model` to the interceptable version of the `base` attention implementation.

    Returns:
        False when the architecture does not dispatch its attention through `AttentionInterface`; such a model is
        left as it is and interventions never run in it.
    """
    if not getattr(type(model), "_supports_attention_backend", False):
        return False
    name = base if base.startswith(_PREFIX) else f"{_PREFIX}{base}"
    if name not in ALL_ATTENTION_FUNCTIONS.valid_keys():
        AttentionInterface.register(name, _interceptable(base))
        AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS[base])
    model.set_attn_implementation(name)
    return True


def _base_function(base: str, module: nn.Module) -> Attend:
    if base == "eager":  # eager attention differs between architectures (soft-capping, sinks): take the model's own
        own: Attend = sys.modules[type(module).__module__].eager_attention_forward
        return own
    registered: Attend = ALL_ATTENTION_FUNCTIONS[base]
    return registered


def _interceptable(base: str) -> Attend:
    def attention(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        attend = _base_function(base, module)
        intervention = _ACTIVE.get()
        if intervention is None:
            return attend(module, query, key, value, attention_mask, **kwargs)
        return intervention(attend, module, query, key, value, attention_mask, **kwargs)

    return attention
