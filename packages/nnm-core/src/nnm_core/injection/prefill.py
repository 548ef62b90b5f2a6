"""Carry out a plan: copy what is loaded into one cache, let the model read the rest."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from itertools import groupby

import torch
from torch import Tensor

from nnm_core.injection.plan import Plan, Step
from nnm_core.injection.static import keeps_logits, new_cache
from nnm_core.injection.tree import Node, StateTree
from nnm_core.model.attention import intervene
from nnm_core.model.load import LoadedModel
from nnm_core.states.cache import PlacedCache
from nnm_core.states.state import NATIVE, Origin, PlacedState


@torch.inference_mode()
def prefill(model: LoadedModel, plan: Plan, *, room: int) -> tuple[PlacedCache, Tensor]:
    """A cache that holds the whole prompt, and the logits [vocabulary] that follow it.

    Args:
        room: tokens that will be decoded behind the prompt; the cache is allocated for them too.
    """
    placed = new_cache(model, plan.length + room)
    logits: Tensor | None = None
    for loaded, group in groupby(plan.steps, key=lambda step: step.state is not None):
        steps = list(group)
        if loaded:
            for step in steps:
                load(placed, step.state)
        else:
            logits = forward(model, placed, [token for step in steps for token in step.segment.ids])
    if logits is None:
        raise ValueError("a plan must end with a segment that is read")
    return placed, logits


def load(cache: PlacedCache, state: PlacedState | None) -> None:
    """Copy a placed state behind what the cache holds."""
    if state is not None:
        state.copy_into(cache)


def forward(model: LoadedModel, cache: PlacedCache, token_ids: list[int]) -> Tensor:
    """Let the model read `token_ids` behind the cache; returns the last position's logits [vocabulary]."""
    with looking(cache):
        return _forward(model, cache, token_ids)


def looking(cache: PlacedCache) -> AbstractContextManager[None]:
    """While active, passes look at the states of `cache` in the way that it asks for."""
    return nullcontext() if cache.intervention is None else intervene(cache.intervention)


def _forward(model: LoadedModel, cache: PlacedCache, token_ids: list[int]) -> Tensor:
    if cache.forward is not None and (fast := cache.forward.run(cache, token_ids)) is not None:
        return fast
    ids = torch.tensor([token_ids], device=model.device)
    only_last = {"logits_to_keep": 1} if keeps_logits(model.hf) else {}
    output = model.hf(input_ids=ids, past_key_values=cache, use_cache=True, **only_last)
    logits: Tensor = output.logits[0, -1]
    return logits


def keep_read(tree: StateTree, plan: Plan, cache: PlacedCache, *, pin: bool = False) -> None:
    """Put into the tree what a prompt without composed parts has read or loaded, its last segment excepted.

    A composed part makes everything behind it approximate; nothing from there on is kept. What was read behind a state
    of a lossy codec is kept as such.

    Args:
        pin: keep it there whatever else is used.
    """
    points: frozenset[str] = frozenset()
    behind, before = NATIVE, 0
    for step in plan.steps[:-1]:
        if step.action == "composed":
            return
        if step.segment.memory is not None:
            points |= {point_of(step)}
        origin = behind
        if step.state is not None and not step.state.origin.lossless:
            origin = replace(step.state.origin, nbytes=0, recomputed=0)
            behind = replace(origin, first_layer=0)
        if not tree.holds(step.name, lossless=origin.lossless):
            tree.put(Node(_slice(cache, step, origin, before), points), pin=pin)
        elif pin:
            tree.pin([step.name])
        before += 0 if step.state is None else step.state.skipped


def point_of(step: Step) -> str:
    """What identifies the memory of a step in the tree: namespace, id and version."""
    memory = step.segment.memory
    return "" if memory is None else memory_point(memory.namespace, memory.id, memory.version)


def memory_point(namespace: str, memory_id: str, version: int) -> str:
    """Name of one version of one memory among the nodes of a tree."""
    return f"{namespace}\x00{memory_id}\x00{version}"


def _slice(cache: PlacedCache, step: Step, origin: Origin, before: int) -> PlacedState:
    """Args: before: tokens left out before this step."""
    length = len(step.segment.ids)
    skipped = 0 if step.state is None else step.state.skipped
    start = step.start - before
    end = start + length - skipped
    return PlacedState(step.name, length, cache.copy(start, end), origin, skipped)
