"""What states are compared with: the same tokens read by transformers alone, without any of our code."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import DynamicCache

from nnm_core.injection.prefill import forward, load
from nnm_core.model.load import LoadedModel
from nnm_core.states.cache import PlacedCache
from nnm_core.states.state import PlacedState


@torch.inference_mode()
def read_logits(model: LoadedModel, ids: Sequence[int]) -> Tensor:
    """Logits [tokens, vocabulary] of one plain forward pass."""
    logits: Tensor = model.hf(input_ids=torch.tensor([list(ids)]), use_cache=False).logits[0]
    return logits


@torch.inference_mode()
def read_states(model: LoadedModel, ids: Sequence[int], *, start: int = 0) -> list[tuple[Tensor, Tensor]]:
    """Rotated keys and values of every layer [kv_heads, tokens, head_dim], from transformers' own cache.

    A cache without a configuration keeps all tokens of sliding-window layers too.
    """
    cache = DynamicCache()
    positions = {"position_ids": torch.arange(start, start + len(ids))[None]} if start else {}
    model.hf(input_ids=torch.tensor([list(ids)]), past_key_values=cache, use_cache=True, **positions)
    return [(layer.keys[0], layer.values[0]) for layer in cache.layers]


def read_again(model: LoadedModel, ids: Sequence[int], tokens: Sequence[int]) -> tuple[list[int], Tensor]:
    """What reading says where `tokens` were decoded behind `ids`: (most likely tokens, logits [tokens, vocabulary]).

    If these are `tokens` themselves, greedy decoding by reading gives just them.
    """
    logits = read_logits(model, [*ids, *tokens])[len(ids) - 1 : -1]
    return logits.argmax(-1).tolist(), logits


@torch.inference_mode()
def inject_on(
    model: LoadedModel, states: Sequence[PlacedState], question: Sequence[int], tokens: int
) -> tuple[list[int], Tensor]:
    """Greedy continuation behind injected states and a question that is read: (token ids, their logits)."""
    cache = PlacedCache(model.layers, capacity=8)  # too small on purpose: it must grow
    for state in states:
        load(cache, state)
    logits = [forward(model, cache, list(question))]
    chosen = [int(logits[-1].argmax())]
    while len(chosen) < tokens:
        logits.append(forward(model, cache, [chosen[-1]]))
        chosen.append(int(logits[-1].argmax()))
    return chosen, torch.stack(logits)


def distance(a: Tensor, b: Tensor) -> float:
    """Largest |difference|."""
    return float((a.float() - b.float()).abs().max())
