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
from torch.nn.functional import pad
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

Attend = Callable[..., tuple[Tensor, Tensor | None]]
_PREFIX = "nnm_"
# Shorter passes gain nothing from leaving the mask out.
_LONG = 256


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
            attention_mask: what the mask function of the base implementation made, or None for plain causal: the last
                query stands at the last key, and each sees its own key and all before it.
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
        masks = ALL_MASK_ATTENTION_FUNCTIONS[base]
        AttentionMaskInterface.register(name, _sparing(masks) if base == "sdpa" else masks)
    model.set_attn_implementation(name)
    return True


def _base_function(base: str, module: nn.Module) -> Attend:
    if base == "eager":  # eager attention differs between architectures (soft-capping, sinks): take the model's own
        own: Attend = sys.modules[type(module).__module__].eager_attention_forward
        return own
    registered: Attend = ALL_ATTENTION_FUNCTIONS[base]
    return _aligned(registered) if base == "sdpa" else registered


def _aligned(attend: Attend) -> Attend:
    """SDPA for which no mask means causal also behind keys that are there already.

    SDPA's own causal attention lets the first query stand at the first key. Queries of zeros are put where there are
    none, and their outputs thrown away; what is left is what a mask gives, and no score above the diagonal is computed.
    """

    def attention(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        queries, keys = query.shape[2], key.shape[2]
        before = keys - queries
        if mask is not None or before <= 0 or queries == 1 or kwargs.get("is_causal") is False:
            return attend(module, query, key, value, mask, **kwargs)
        if kwargs.get("position_bias") is not None:  # it has a row for every query
            seen = torch.ones(queries, keys, dtype=torch.bool, device=query.device).tril(before)
            return attend(module, query, key, value, seen[None, None], **kwargs)
        output, weights = attend(module, pad(query, (0, 0, before, 0)), key, value, None, **kwargs)
        return output[:, before:], weights

    return attention


def _sparing(make: Callable[..., Tensor | None]) -> Callable[..., Tensor | None]:
    """SDPA's mask function, which leaves the mask out where `_aligned` is faster without, and only there."""

    def mask(*args: Any, **kwargs: Any) -> Tensor | None:
        queries, keys = kwargs.get("q_length"), kwargs.get("kv_length")
        if not isinstance(queries, int) or not isinstance(keys, int):
            return make(*args, **{**kwargs, "allow_is_causal_skip": False})
        if _long_behind_little(queries, keys, kwargs):
            return None
        made = make(*args, **kwargs)
        if made is None and 1 < queries < keys:  # the keys behind the queries are those of tokens to come
            return make(*args, **{**kwargs, "allow_is_causal_skip": False})
        return made

    return mask


def _long_behind_little(queries: int, keys: int, kwargs: dict[str, Any]) -> bool:
    """Whether a plainly causal pass on a CPU has so many queries that those of zeros cost less than a mask."""
    before = keys - queries
    aligned = kwargs.get("q_offset", 0) - kwargs.get("kv_offset", 0) == before
    unrestricted = kwargs.get("attention_mask") is None and kwargs.get("local_size") is None
    plain = bool(kwargs.get("allow_is_causal_skip")) and unrestricted and aligned
    on_cpu = torch.device(kwargs.get("device", "cpu")).type == "cpu"
    return plain and on_cpu and queries >= _LONG and 0 < before <= queries // 2


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
