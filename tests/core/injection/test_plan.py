"""Plans: exact as far as the left context is known, then what the policy allows; and carried out, on every family."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tests.core.families import FAMILIES, loaded, random_ids
from tests.core.reading import distance, read_again, read_logits

from nnm_core.errors import PositionError
from nnm_core.injection.generate import DecodeSettings, decode
from nnm_core.injection.plan import FindExact, Plan, make_plan, read_plan
from nnm_core.injection.prefill import keep_read, memory_point, prefill
from nnm_core.injection.tree import StateTree
from nnm_core.model.load import LoadedModel
from nnm_core.model.prompt import Segment
from nnm_core.records import Memory, Policy
from nnm_core.states.capture import capture, place
from nnm_core.states.state import ROOT, PlacedState, State, chain

ONE, TWO, THREE = (Memory(name, name) for name in ("one", "two", "three"))
LEFT = Segment((1, 2))
PROMPT = [LEFT, Segment((3, 4, 5), ONE), Segment((6,), TWO), Segment((7, 8), THREE), Segment((9,))]


def placed(name: str, length: int) -> PlacedState:
    return PlacedState(name, length, ())


def knows(*depths: int) -> FindExact:
    """Finds exact states of the segments with these numbers, behind just the left context that PROMPT has there."""
    found = {}
    name, start = ROOT, 0
    for depth, segment in enumerate(PROMPT):
        after = chain(name, segment.ids)
        if depth in depths:
            found[name, segment.ids, start] = placed(after, len(segment.ids))
        name, start = after, start + len(segment.ids)
    return lambda segment, left, at: found.get((left, segment.ids, at))


def none(segment: Segment, start: int) -> None:
    return None


def anything(segment: Segment, start: int) -> PlacedState:
    return placed("elsewhere", len(segment.ids))


def actions(plan: Plan) -> str:
    return "".join(step.action[0] for step in plan.steps)


@pytest.mark.parametrize(
    ("known", "policy", "expected", "tier"),
    [
        ((), "exact", "rrrrr", "text"),
        ((0,), "exact", "errrr", "text"),
        ((0, 1), "exact", "eerrr", "exact"),
        ((0, 1, 2, 3), "auto", "eeeer", "exact"),
        ((0, 1, 3), "exact", "eerrr", "exact"),
        ((1, 2), "exact", "rrrrr", "text"),
        ((0, 1, 2, 3, 4), "exact", "eeeer", "exact"),
        ((0, 1), "auto", "eerrr", "exact"),
        ((0, 1), "fast", "eeccr", "composed"),
        ((), "fast", "rcccr", "composed"),
        ((0, 1, 2, 3), "fast", "eeeer", "exact"),
    ],
)
def test_the_walk(known: tuple[int, ...], policy: Policy, expected: str, tier: str) -> None:
    plan = make_plan(PROMPT, policy, knows(*known), anything)
    assert actions(plan) == expected
    assert plan.tier == tier
    assert plan.length == 9
    assert plan.tokens_injected + plan.tokens_read == 9
    assert plan.tokens_injected == sum(len(s.ids) for s, action in zip(PROMPT, expected, strict=True) if action in "ec")
    assert [step.start for step in plan.steps] == [0, 2, 5, 6, 8]


def test_names_are_chained() -> None:
    plan = read_plan(PROMPT)
    assert plan.steps[1].name == chain(chain(ROOT, (1, 2)), (3, 4, 5))
    assert len({step.name for step in plan.steps}) == 5


def test_reasons_are_given_for_memories_that_are_read() -> None:
    plan = make_plan(PROMPT, "exact", knows(0, 1), none, reason="not there yet")
    assert [step.reason for step in plan.steps] == ["", "", "not there yet", "not there yet", ""]
    assert [step.reason for step in read_plan(PROMPT, "asked for").steps] == ["", *["asked for"] * 3, ""]


@pytest.mark.parametrize("policy", ["exact", "auto", "fast"])
def test_a_memory_at_the_end_is_read(policy: Policy) -> None:
    plan = make_plan(PROMPT[:4], policy, knows(0, 1, 2, 3), anything)
    assert actions(plan) == "eeer"
    assert plan.steps[-1].reason == "the prompt ends with it"


def test_a_state_that_cannot_move_is_read_with_that_reason() -> None:
    def fixed(segment: Segment, start: int) -> PlacedState:
        if segment.memory == TWO:
            raise PositionError("cannot stand there", hint="read it")
        return anything(segment, start)

    plan = make_plan(PROMPT, "fast", knows(0, 1), fixed)
    assert actions(plan) == "eercr"
    assert plan.steps[2].reason.startswith("cannot stand there")
    assert plan.tier == "composed"


def test_memories_without_a_state_are_read_by_the_fast_policy_too() -> None:
    plan = make_plan(PROMPT, "fast", knows(0), none, reason="no state")
    assert actions(plan) == "errrr"
    assert plan.steps[1].reason == "no state"


def test_behind_a_composed_part_nothing_is_exact() -> None:
    asked = []

    def find(segment: Segment, left: str, start: int) -> None:
        asked.append(segment)

    make_plan(PROMPT, "fast", find, anything)
    assert asked == [LEFT]


# --- carried out ------------------------------------------------------------------------------------------------

CONTEXT = Segment(tuple(random_ids(10, seed=1)))
FIRST = Segment(tuple(random_ids(33, seed=2)), ONE)
SECOND = Segment(tuple(random_ids(21, seed=3)), TWO)
QUESTION = Segment(tuple(random_ids(7, seed=4)))
CHAINED = [CONTEXT, FIRST, SECOND, QUESTION]
IDS = [token for segment in CHAINED for token in segment.ids]


def stored(model: LoadedModel) -> dict[str, State]:
    """What ingest keeps: each memory's state behind the canonical left context."""
    left = place(model, capture(model, [CONTEXT.ids])[0], 0)
    return dict(zip(("one", "two"), capture(model, [FIRST.ids, SECOND.ids], left), strict=True))


def finder(model: LoadedModel, tree: StateTree, states: dict[str, State]) -> FindExact:
    def find(segment: Segment, left: str, start: int) -> PlacedState | None:
        node = tree.get(chain(left, segment.ids))
        if node is not None:
            return node.state
        state = states.get(segment.memory.id) if segment.memory else None
        return place(model, state, start) if state is not None and state.left == left else None

    return find


def mover(model: LoadedModel, states: dict[str, State]) -> Callable[[Segment, int], PlacedState | None]:
    return lambda segment, start: place(model, states[segment.memory.id], start) if segment.memory else None


@pytest.mark.parametrize("name", FAMILIES)
def test_a_chain_of_memories_is_exact_at_second_use(name: str) -> None:
    """The second memory was stored behind the left context alone; behind the first one it is read once, then kept."""
    model, tree = loaded(name), StateTree()
    find = finder(model, tree, stored(model))
    for expected in ("rrrr", "eeer", "eeer"):  # at first not even the left context is in the tree
        plan = make_plan(CHAINED, "exact", find, lambda *_: None)
        assert actions(plan) == expected
        assert plan.tier == ("text" if expected == "rrrr" else "exact")
        cache, logits = prefill(model, plan, room=12)
        assert distance(logits, read_logits(model, IDS)[-1]) <= 1e-4
        keep_read(tree, plan, cache)
        tokens = [step.token_id for step in decode(model, cache, logits, DecodeSettings(max_tokens=12))]
        assert tokens == read_again(model, IDS, tokens)[0]


@pytest.mark.parametrize("name", FAMILIES)
def test_composed_runs_and_says_so(name: str) -> None:
    model, tree = loaded(name), StateTree()
    states = stored(model)
    left = read_plan([CONTEXT, QUESTION])
    keep_read(tree, left, prefill(model, left, room=1)[0])
    plan = make_plan(CHAINED, "fast", finder(model, tree, states), mover(model, states))
    if model.positions.family == "fixed":
        assert actions(plan) == "eerr"
        assert "positions are part of its states" in plan.steps[2].reason
    else:
        assert actions(plan) == "eecr"
        assert plan.tier == "composed"
    cache, logits = prefill(model, plan, room=4)
    assert bool(torch.isfinite(logits).all())
    assert cache.length == len(IDS)
    before = len(tree)
    keep_read(tree, plan, cache)
    kept = len(tree) - before
    assert kept == (2 if model.positions.family == "fixed" else 1), "nothing from a composed part on is kept"


def test_what_the_tree_keeps_knows_its_memories() -> None:
    model, tree = loaded("llama"), StateTree()
    plan = read_plan(CHAINED)
    keep_read(tree, plan, prefill(model, plan, room=1)[0])
    seen = [sorted(node.points) for node in tree._nodes.values()]
    one, two = (memory_point(memory.namespace, memory.id, memory.version) for memory in (ONE, TWO))
    assert seen == [[], [one], sorted([one, two])]
    tree.forget([one])
    assert len(tree) == 1


def test_read_between_loaded_ones() -> None:
    """A text between two memories is read behind the first and in front of the second."""
    model = loaded("qwen3")
    ids = [random_ids(n, seed=n) for n in (8, 12, 5)]
    whole = capture(model, [[*ids[0], *ids[1], *ids[2]]])[0]
    parts, start = [], 0
    for row in ids:
        layers = tuple((k[:, start : start + len(row)], v[:, start : start + len(row)]) for k, v in whole.layers)
        parts.append(State(tuple(row), start, str(start), layers))
        start += len(row)
    segments = [Segment(tuple(ids[0]), ONE), Segment(tuple(ids[1])), Segment(tuple(ids[2]), TWO), QUESTION]
    states = {"one": parts[0], "two": parts[2]}
    plan = make_plan(segments, "fast", lambda *_: None, mover(model, states))
    assert actions(plan) == "crcr"
    logits = prefill(model, plan, room=0)[1]
    assert distance(logits, read_logits(model, [*ids[0], *ids[1], *ids[2], *QUESTION.ids])[-1]) <= 1e-4


def test_the_cache_has_room_for_the_answer() -> None:
    model = loaded("llama")
    cache, _ = prefill(model, read_plan(CHAINED), room=30)
    assert cache.placed[0].capacity == len(IDS) + 30


def test_a_plan_must_end_with_something_to_read() -> None:
    model = loaded("llama")
    left = place(model, capture(model, [CONTEXT.ids])[0], 0)
    plan = make_plan([CONTEXT, QUESTION], "exact", lambda s, *_: left if s == CONTEXT else None, none)
    with pytest.raises(ValueError, match="end with a segment that is read"):
        prefill(model, Plan(plan.steps[:1]), room=1)
