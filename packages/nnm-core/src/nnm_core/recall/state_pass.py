"""One short query read over the stored states of many memories at once: the pass that re-ranking is made of.

Every row of the batch is ``left context | one memory | cue | query``, of which only cue and query are read; the rest
are stored keys and values. Memories differ in length, so rows are padded on the left: distances between tokens stay
true (sliding windows, ALiBi) and only the positions are given by hand.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol, cast

import torch
from torch import Tensor
from transformers import DynamicCache

from nnm_core.embedding.kv_embedding import EncoderModel
from nnm_core.model.attention import AttentionIntervention, intervene

LayerStates = tuple[Tensor, Tensor]


class StateView(Protocol):
    """Keys and values as the attention reads them; `nnm_core.states.state.PlacedState` is one."""

    @property
    def length(self) -> int:
        """Number of tokens."""
        ...

    @property
    def layers(self) -> Sequence[LayerStates]:
        """Per layer rotated keys and values, [kv_heads, tokens, head_dim]."""
        ...


@dataclass(frozen=True)
class Rows:
    """Where things lie in the padded rows of one batch.

    Attributes:
        starts: per row the first column of the memory, [rows].
        stop: one past the memory's last column, the same in all rows.
        cue: number of tokens read before the query.
        query: number of query tokens.
    """

    starts: Tensor
    stop: int
    cue: int
    query: int


Probe = Callable[[Rows], AttentionIntervention]


@torch.inference_mode()
def read_over(
    model: EncoderModel,
    left: StateView,
    memories: Sequence[StateView],
    *,
    cue: Sequence[int],
    query: Sequence[int],
    probe: Probe | None = None,
) -> Tensor:
    """Log-probabilities, float32 [memories, len(query)], of the query's tokens behind each memory and the cue.

    Args:
        model: its attention must be interceptable if a probe is given.
        left: the state of the left context that all memories were computed behind.
        memories: their placed states, each directly behind `left`.
        cue: at least one token id before the query.
        query: token ids, at least one.
        probe: makes an attention intervention that looks on.
    """
    longest = max(memory.length for memory in memories)
    width = left.length + longest
    starts = torch.tensor([width - memory.length for memory in memories], device=model.device)
    ids = torch.tensor([[*cue, *query]], device=model.device).expand(len(memories), -1)
    places = torch.arange(ids.shape[1], device=model.device)[None, :]
    real = torch.arange(width + ids.shape[1], device=model.device)[None, :] >= (starts - left.length)[:, None]
    looking = nullcontext() if probe is None else intervene(probe(Rows(starts, width, len(cue), len(query))))
    with cast("AbstractContextManager[None]", looking):
        logits = model.hf(
            input_ids=ids,
            attention_mask=real.long(),
            position_ids=width - starts[:, None] + left.length + places,
            past_key_values=_padded_cache(left, memories, width),
            use_cache=True,
        ).logits
    behind = logits[:, len(cue) - 1 : -1].float()
    return cast(Tensor, behind.log_softmax(-1).gather(2, ids[:, len(cue) :, None])[..., 0])


def _padded_cache(left: StateView, memories: Sequence[StateView], width: int) -> DynamicCache:
    cache = DynamicCache()
    for index in range(len(memories[0].layers)):
        first_key, first_value = memories[0].layers[index]
        key = first_key.new_zeros((len(memories), first_key.shape[0], width, first_key.shape[2]))
        value = first_value.new_zeros((len(memories), first_value.shape[0], width, first_value.shape[2]))
        for row, memory in enumerate(memories):
            start = width - memory.length
            key[row, :, start:], value[row, :, start:] = memory.layers[index]
            if left.length:
                before = slice(start - left.length, start)
                key[row, :, before], value[row, :, before] = left.layers[index]
        cache.update(key, value, index)
    return cache


class Nothing:
    """The state of no tokens: for models and layouts without a left context, and as the memory of the null reading."""

    length = 0

    def __init__(self, like: StateView) -> None:
        self.layers = tuple((key[:, :0], value[:, :0]) for key, value in like.layers)
