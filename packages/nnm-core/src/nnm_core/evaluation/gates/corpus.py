"""Passages in an engine: remembered once, found again at the next run if the store is kept."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from nnm_core.evaluation.answers import contains_answer
from nnm_core.evaluation.gates.core import Tell, silent
from nnm_core.records import Memory

if TYPE_CHECKING:
    from nnm_core.engine import NNM

_PER_CALL = 64


def remember(
    engine: NNM,
    passages: Mapping[str, str],
    *,
    searchable: bool = True,
    metadata: Callable[[str], Mapping[str, Any]] = lambda name: {},
    tell: Tell = silent,
) -> dict[str, Memory]:
    """Add passages (id -> text) to the engine; those that are there already cost nothing.

    Args:
        engine: where they go.
        passages: id -> text.
        searchable: make vectors too. Without, only the state is made, in one reading; such a namespace can be asked
            with given memories, but not searched by meaning.
        metadata: of a passage, by its id.
        tell: told of the progress.

    Returns:
        id -> memory, in order.
    """
    names = list(passages)
    found: dict[str, Memory] = {}
    tell("Reading passages", 0, len(names))
    for start in range(0, len(names), _PER_CALL):
        some = names[start : start + _PER_CALL]
        texts = [passages[name] for name in some]
        given = None if searchable else np.ones((len(some), 1), dtype=np.float32)
        memories = engine.add(texts, some, [metadata(name) for name in some], vectors=given, foreign=not searchable)
        found.update(zip(some, memories, strict=True))
        tell("Reading passages", len(found), len(names))
    return found


def without_answer(memories: Sequence[Memory], golds: Sequence[str], count: int, chance: random.Random) -> list[Memory]:
    """`count` different memories drawn at random in which none of the answers stands; fewer if there are no more."""
    picked: list[Memory] = []
    for memory in chance.sample(memories, len(memories)):
        if len(picked) == count:
            break
        if not contains_answer(memory.text, golds):
            picked.append(memory)
    return picked
