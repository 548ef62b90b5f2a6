"""A text's state computed together with others: read behind its title and its neighbours (FusionRAG, SIGMOD 2026)."""

from __future__ import annotations

from collections.abc import Sequence

from nnm_core.model.load import LoadedModel
from nnm_core.states.capture import EMPTY, capture
from nnm_core.states.state import PlacedState, State, chain

Rows = Sequence[Sequence[int]]


def capture_behind(model: LoadedModel, prompts: Sequence[Rows], left: PlacedState = EMPTY) -> list[State]:
    """The states of the last text of each prompt, computed behind the texts before it, in one forward pass.

    Args:
        prompts: for each prompt the token ids of its texts, in order; each has at least one, and none is empty.
        left: the placed state of everything before them.

    Returns:
        for each prompt the state of its last text alone: `State.left` names the whole context before that text, so
        it is exact behind just these texts and nowhere else.
    """
    whole = capture(model, [[token for text in prompt for token in text] for prompt in prompts], left)
    return [_last(state, prompt, left) for state, prompt in zip(whole, prompts, strict=True)]


def _last(state: State, prompt: Rows, left: PlacedState) -> State:
    name = left.name
    for text in prompt[:-1]:
        name = chain(name, text)
    first = len(state.token_ids) - len(prompt[-1])
    # In memory of their own: a view would keep the neighbours' states.
    layers = tuple((key[:, first:].clone(), value[:, first:].clone()) for key, value in state.layers)
    return State(tuple(prompt[-1]), state.start + first, name, layers)
