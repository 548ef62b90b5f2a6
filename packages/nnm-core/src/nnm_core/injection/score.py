"""How likely given continuations are behind a prompt: forced choice without decoding."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import torch
from torch import Tensor

from nnm_core.model.attention import intervene
from nnm_core.model.load import LoadedModel
from nnm_core.states.cache import PlacedCache


@torch.inference_mode()
def log_probabilities(
    model: LoadedModel, cache: PlacedCache, logits: Tensor, continuations: Sequence[Sequence[int]]
) -> list[float]:
    """log p(c | prompt) = sum over i of log p(c_i | prompt, c_1 .. c_(i-1)), in nats, for each continuation c.

    The prompt is read or loaded once; each continuation is read behind it and taken back, so the cache holds what it
    held before.

    Args:
        cache: the prompt.
        logits: [vocabulary], those that follow the prompt.
        continuations: non-empty lists of token ids.
    """
    first = logits.float().log_softmax(-1)
    found = []
    for ids in continuations:
        total = float(first[ids[0]])
        if len(ids) > 1:
            total += _rest(model, cache, ids)
        found.append(total)
    return found


def _rest(model: LoadedModel, cache: PlacedCache, ids: Sequence[int]) -> float:
    """log p of all tokens but the first, given the prompt and those before them."""
    given = torch.tensor([list(ids[:-1])], device=model.device)
    with nullcontext() if cache.intervention is None else intervene(cache.intervention):
        output = model.hf(input_ids=given, past_key_values=cache, use_cache=True)
    rows = output.logits[0].float().log_softmax(-1)
    for layer in cache.placed:
        layer.crop(len(ids) - 1)
    wanted = torch.tensor(list(ids[1:]), device=rows.device)
    return float(rows.gather(1, wanted[:, None]).sum())
