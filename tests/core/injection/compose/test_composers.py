"""Every composer on every family: repaired whole it is reading, not at all it is concatenation, always causal."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from tests.core.families import FAMILIES, byte_tokenizer, loaded, make, random_ids
from tests.core.reading import distance, read_again, read_logits
from tests.core.tiny import tiny_reader
from torch import Tensor

from nnm_core import NNM
from nnm_core.answering import Request
from nnm_core.errors import InvalidInputError
from nnm_core.injection.compose import Composition, composer, names
from nnm_core.injection.compose.attention import question_attention
from nnm_core.injection.compose.board import Board
from nnm_core.injection.compose.guided import Guided
from nnm_core.injection.compose.link import Link
from nnm_core.injection.compose.offset import LocalOffset, MeanOffset
from nnm_core.injection.compose.parallel import Parallel
from nnm_core.injection.compose.repair import Repair, best, evenly
from nnm_core.injection.generate import DecodeSettings, decode
from nnm_core.injection.plan import Plan, make_plan
from nnm_core.injection.prefill import forward, prefill
from nnm_core.injection.score import log_probabilities
from nnm_core.injection.static import StaticForward
from nnm_core.model.load import LoadedModel, wrap_model
from nnm_core.model.prompt import Segment, question_prompt
from nnm_core.records import Memory
from nnm_core.states.cache import PlacedCache
from nnm_core.states.capture import capture, place
from nnm_core.states.state import State
from nnm_core.states.transfer import HostState

ROTARY = [name for name, (_, _, family) in FAMILIES.items() if family == "rotary"]
REPAIRS = [name for name in names() if isinstance(composer(name), Repair)]
LEFT = Segment(tuple(random_ids(10, seed=1)))
MEMORIES = [Segment(tuple(random_ids(n, seed=n)), Memory(str(n), str(n))) for n in (33, 21, 40)]
BETWEEN = Segment(tuple(random_ids(5, seed=5)))
QUESTION = Segment(tuple(random_ids(7, seed=4)))
PROMPT = [LEFT, *MEMORIES, QUESTION]
IDS = [token for segment in PROMPT for token in segment.ids]


def states(model: LoadedModel) -> dict[tuple[int, ...], State]:
    """What is stored: each memory behind the left context."""
    left = place(model, capture(model, [LEFT.ids])[0], 0)
    return dict(zip([m.ids for m in MEMORIES], capture(model, [m.ids for m in MEMORIES], left), strict=True))


def work_for(model: LoadedModel, prompt: list[Segment] = PROMPT, *, room: int = 8) -> Composition:
    """A composition whose first memory is exact."""
    known = states(model)
    left = place(model, capture(model, [LEFT.ids])[0], 0)

    def exact(segment: Segment, name: str, start: int) -> object:
        state = known.get(segment.ids)
        if segment == LEFT:
            return left
        return place(model, state, start) if state is not None and state.left == name else None

    def anywhere(segment: Segment, start: int) -> object:
        return place(model, known[segment.ids], start)

    plan = make_plan(prompt, "fast", exact, anywhere)  # type: ignore[arg-type]
    return Composition(model, plan, room, lambda segment: known.get(segment.ids))


def repair(name: str, ratio: float) -> Repair:
    found = composer(name)
    assert isinstance(found, Repair)
    return replace(found, ratio=ratio)


@pytest.mark.parametrize("family", ROTARY)
@pytest.mark.parametrize("name", REPAIRS)
def test_everything_computed_again_is_reading(family: str, name: str) -> None:
    model = loaded(family)
    made = repair(name, 1.0).prefill(work_for(model))
    assert distance(made.logits, read_logits(model, IDS)[-1]) <= 1e-4
    assert sum(made.recomputed.values()) == len(MEMORIES[1].ids) + len(MEMORIES[2].ids), "the first memory is exact"
    tokens = [step.token_id for step in decode(model, made.cache, made.logits, DecodeSettings(max_tokens=6))]
    assert tokens == read_again(model, IDS, tokens)[0]


@pytest.mark.parametrize("family", ROTARY)
@pytest.mark.parametrize("name", REPAIRS)
def test_nothing_computed_again_is_concatenation(family: str, name: str) -> None:
    model = loaded(family)
    work = work_for(model)
    made = repair(name, 0.0).prefill(work)
    plain = composer("concatenate").prefill(work)
    assert distance(made.logits, plain.logits) <= 1e-4
    assert made.recomputed == {2: 0, 3: 0}
    if family != "mistral-window":  # the question does not see past the last memory there
        assert distance(made.logits, read_logits(model, IDS)[-1]) > 1e-3, "the two ends are not the same thing"


@pytest.mark.parametrize("name", REPAIRS)
def test_a_part_is_within_the_budget_and_counted(name: str) -> None:
    work = work_for(loaded("qwen3"))
    made = repair(name, 0.15).prefill(work)
    budget = int(0.15 * sum(len(m.ids) for m in MEMORIES))
    assert 0 < sum(made.recomputed.values()) <= budget
    assert set(made.recomputed) == {2, 3}


@pytest.mark.parametrize("name", REPAIRS)
def test_repair_brings_the_states_nearer_to_those_of_reading(name: str) -> None:
    model = loaded("llama")
    read = prefill(model, make_plan(PROMPT, "exact", lambda *_: None, lambda *_: None), room=8)[0]
    errors = [state_error(repair(name, ratio).prefill(work_for(model)).cache, read) for ratio in (0.0, 0.5, 1.0)]
    assert errors[2] < 1e-4 < errors[1] < errors[0]


def state_error(cache: object, read: object) -> float:
    pairs = zip(cache.placed, read.placed, strict=True)  # type: ignore[attr-defined]
    return sum(float((a.view()[1] - b.view()[1]).square().mean()) for a, b in pairs)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt-oss", "mistral-window", "phi"])
def test_later_text_never_influences_earlier(family: str) -> None:
    """Scattered tokens of the second memory are computed again: what stands behind them must not matter."""
    model = loaded(family)
    other = [LEFT, MEMORIES[0], MEMORIES[1], Segment(MEMORIES[2].ids[::-1], MEMORIES[2].memory), QUESTION]
    wanted = torch.zeros(1, len(IDS), dtype=torch.bool)
    start = len(LEFT.ids) + len(MEMORIES[0].ids)
    wanted[0, start + 2 : start + 20 : 5] = True
    found = []
    for prompt in (PROMPT, other):
        board = Board.of_plan(model, without_last(work_for(model).plan, prompt), room=0)
        board.compute(wanted)
        found.append([layer.view()[1][0, :, : start + 21].clone() for layer in board.cache.placed])
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b)


def without_last(plan: Plan, prompt: list[Segment]) -> Plan:
    """The plan for another prompt of the same lengths, its last memory to be read."""
    steps = [replace(step, segment=segment) for step, segment in zip(plan.steps, prompt, strict=True)]
    steps[3] = replace(steps[3], action="read", state=None)
    return Plan(tuple(steps))


@pytest.mark.parametrize("family", ["llama", "gemma3", "cohere2", "exaone4", "smollm3"])
def test_scattered_tokens_are_those_of_a_pass_with_the_same_states(family: str) -> None:
    """Against the definition: one token computed alone behind exactly the states that stand before it."""
    model = loaded(family)
    board = Board.of_plan(model, work_for(model).plan, room=0)
    before = [(key.clone(), value.clone()) for key, value in (layer.view() for layer in board.cache.placed)]
    place_ = len(LEFT.ids) + len(MEMORIES[0].ids) + 9
    wanted = torch.zeros(1, len(IDS), dtype=torch.bool)
    wanted[0, place_] = True
    board.compute(wanted)
    alone = recomputed_alone(model, before, place_)
    for layer, (_, value) in zip(board.cache.placed, alone, strict=True):
        assert distance(layer.view()[1][0, :, place_], value) <= 1e-4


@torch.inference_mode()
def recomputed_alone(model: LoadedModel, states: list[tuple[Tensor, Tensor]], at: int) -> list[tuple[Tensor, Tensor]]:
    from transformers import DynamicCache

    cache = DynamicCache()
    for index, (key, value) in enumerate(states):
        cache.update(key[:, :, :at], value[:, :, :at], index)
    model.hf(input_ids=torch.tensor([[IDS[at]]]), past_key_values=cache, use_cache=True)
    return [(layer.keys[0, :, -1], layer.values[0, :, -1]) for layer in cache.layers]


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt-neox"])
@pytest.mark.parametrize("name", REPAIRS)
def test_text_between_memories_is_read_with_the_repaired_ones(family: str, name: str) -> None:
    model = loaded(family)
    prompt = [LEFT, MEMORIES[0], BETWEEN, MEMORIES[1], BETWEEN, MEMORIES[2], QUESTION]
    made = repair(name, 1.0).prefill(work_for(model, prompt))
    ids = [token for segment in prompt for token in segment.ids]
    assert distance(made.logits, read_logits(model, ids)[-1]) <= 1e-4
    assert sum(made.recomputed.values()) == 61


def test_rows_of_a_board_do_not_disturb_each_other() -> None:
    """Two prompts of different lengths on one board give the logits that each gives alone."""
    model = loaded("qwen3")
    plans = [work_for(model).plan, work_for(model, [LEFT, *MEMORIES[:2], QUESTION]).plan]
    boards = [Board.of_plan(model, plan, room=0) for plan in plans]
    alone = [Link(ratio=0.3).arrange(board)[0] for board in (Board.of_plan(model, plan, room=0) for plan in plans)]
    together = Link(ratio=0.3).arrange(Board.stack(boards))[0]
    for row, logits in zip(together, alone, strict=True):
        assert distance(row, logits[0]) <= 1e-4


def test_boards_with_and_without_states_stand_together() -> None:
    """A prompt that is read whole beside a composed one, and two that are read: what lies behind a row is a number."""
    model = loaded("qwen3")
    read = make_plan([LEFT, MEMORIES[1], QUESTION], "exact", lambda *_: None, lambda *_: None)
    ids = [token for step in read.steps for token in step.segment.ids]
    for other in (work_for(model).plan, make_plan(PROMPT, "exact", lambda *_: None, lambda *_: None)):
        board = Board.stack([Board.of_plan(model, plan, room=3) for plan in (read, other)])
        logits = board.compute(board.unread)[0]
        assert distance(logits, read_logits(model, ids)[-1]) <= 1e-4
        tokens = [int(logits.argmax())]
        places = board.lengths.clone()
        for _ in range(2):
            tokens.append(int(board.extend(torch.tensor([tokens[-1], 7]), places)[0]))
            places += 1
        assert tokens == read_again(model, ids, tokens)[0]


# --- offsets -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "llama-yarn", "phi", "cohere", "glm4", "smollm3", "gpt-neox", "gemma3"])
@pytest.mark.parametrize("kind", [MeanOffset, LocalOffset])
def test_a_shift_that_all_tokens_share_is_found_from_a_few(family: str, kind: type) -> None:
    """Stored states that are wrong by a constant, before rotation, are put right everywhere, whatever the rotation."""
    model = loaded(family)
    right = Board.of_plan(model, make_plan(PROMPT, "exact", lambda *_: None, lambda *_: None), room=0)
    right.compute(right.unread)
    wrong = Board.of_plan(model, work_for(model).plan, room=0)
    start, end = wrong.spans[1].start, wrong.spans[1].end
    torch.manual_seed(0)
    for layer, good, rotary in zip(wrong.cache.placed, right.cache.placed, model.positions.rotary, strict=True):
        for side, (buffer, truth) in enumerate(zip(layer.view(), good.view(), strict=True)):
            buffer.copy_(truth[:, :, : buffer.shape[2]])
            shift = torch.randn(1, buffer.shape[1], 1, buffer.shape[3]).expand(-1, -1, end - start, -1)
            if side == 0 and rotary is not None:
                shift = rotary.rotate(shift, rotary.tables(torch.arange(start, end)[None], shift))
            buffer[:, :, start:end] += shift
    chosen = torch.zeros_like(wrong.unread)
    chosen[0, [start, start + 5, start + 11, end - 1]] = True
    wrong.compute(chosen, correct=kind(wrong, chosen))
    for layer, good in zip(wrong.cache.placed, right.cache.placed, strict=True):
        for buffer, truth in zip(layer.view(), good.view(), strict=True):
            assert distance(buffer[:, :, :end], truth[:, :, :end]) <= 2e-3 * float(truth.abs().max().clamp_min(1))


def test_the_local_offset_is_interpolated_between_neighbours_of_the_same_memory() -> None:
    model = loaded("llama")
    board = Board.of_plan(model, work_for(model).plan, room=0)
    second, third = board.spans[1:]
    chosen = torch.zeros_like(board.unread)
    chosen[0, [second.start + 2, second.start + 6, third.start]] = True
    offset = LocalOffset(board, chosen)
    moved = torch.zeros(1, 2, offset.positions.shape[1], 16)
    moved[:, :, :3] = torch.tensor([1.0, 3.0, 10.0])[:, None]
    found = offset.spread(moved)[0, 0, :, 0]
    assert found[second.start : second.start + 8].tolist() == [1, 1, 0, 1.5, 2, 2.5, 0, 3], "0 where computed again"
    assert found[second.end - 1] == 3
    assert found[third.start + 1] == found[third.end - 1] == 10
    exact = board.spans[0]
    assert not found[: exact.end].any()
    assert not found[third.end :].any()


def test_offsets_are_trusted_as_far_as_they_foretell_each_other() -> None:
    """The weight is the least squares fit of each recomputed token by its neighbours in its memory, head by head."""
    model = loaded("llama")
    board = Board.of_plan(model, work_for(model).plan, room=0)
    second, third = board.spans[1:]
    chosen = torch.zeros_like(board.unread)
    at = [second.start + 2, second.start + 4, second.start + 8, third.start + 1]
    chosen[0, at] = True
    offset = LocalOffset(board, chosen)
    moved = torch.zeros(1, 2, offset.positions.shape[1], 16)
    moved[0, 0, :4, 0] = torch.tensor([1.0, 1.0, 1.0, 50.0])  # alike, and one alone, which says nothing
    moved[0, 1, :4, 0] = torch.tensor([2.0, 5.0, 8.0, 50.0])
    # In the second head: 2 from 5, 5 from 2 x 4/6 + 8 x 2/6 = 4, 8 from 5.
    expected = (2 * 5 + 5 * 4 + 8 * 5) / (5 * 5 + 4 * 4 + 5 * 5)
    assert offset.trust(moved)[0].tolist() == pytest.approx([1.0, min(1.0, expected)])
    moved[0, 1, :4, 0] = torch.tensor([4.0, -4.0, 4.0, 50.0])
    assert offset.trust(moved)[0].tolist() == pytest.approx([1.0, 0.0]), "they contradict each other"
    moved[0, 1, :4, 0] = torch.tensor([3.0, 1.0, 1.0, 0.0])
    small = (3 * 1 + 1 * (3 * 4 / 6 + 1 * 2 / 6) + 1 * 1) / (1 + (14 / 6) ** 2 + 1)
    assert offset.trust(moved)[0, 1] == pytest.approx(small)
    torch.testing.assert_close(offset.shift(moved)[:, 1], offset.trust(moved)[0, 1] * offset.spread(moved)[:, 1])
    alone = torch.zeros_like(chosen)
    alone[0, at[0]] = True
    single = LocalOffset(board, alone)
    assert not single.shift(torch.ones(1, 2, single.positions.shape[1], 16)).any()


@pytest.mark.parametrize("kind", [MeanOffset, LocalOffset])
def test_a_memory_without_a_recomputed_token_stays_as_it_is(kind: type) -> None:
    model = loaded("llama")
    board = Board.of_plan(model, work_for(model).plan, room=0)
    span = board.spans[1]
    before = [layer.view()[1][:, :, span.start : span.end].clone() for layer in board.cache.placed]
    chosen = torch.zeros_like(board.unread)
    chosen[0, board.spans[2].start] = True
    board.compute(chosen, correct=kind(board, chosen))
    for layer, old in zip(board.cache.placed, before, strict=True):
        assert torch.equal(layer.view()[1][:, :, span.start : span.end], old)


def test_the_attention_of_the_question_is_that_of_eager_attention() -> None:
    model = loaded("llama")
    board = Board.of_plan(model, make_plan(PROMPT, "exact", lambda *_: None, lambda *_: None), room=0)
    found = question_attention(board, 0.5)[0]
    eager = make("llama")
    eager.set_attn_implementation("eager")
    with torch.inference_mode():
        maps = eager(input_ids=torch.tensor([IDS]), output_attentions=True, use_cache=False).attentions
    start = len(IDS) - len(QUESTION.ids)
    expected = torch.stack([layer[0, :, start:].sum(1).mean(0) for layer in maps[2:]]).mean(0)
    assert distance(found, expected) <= 1e-5


def test_the_question_guides_the_repair() -> None:
    """Tokens with the most attention are taken; the spread share stands at even distances."""
    model = loaded("llama")
    board = Board.of_plan(model, work_for(model).plan, room=0)
    allowed = board.mask_of(board.composed())
    scores = question_attention(Board.of_plan(model, work_for(model).plan, room=0), 0.0)
    guided = Guided(spread=0.0, first_share=0.0).choose(board)
    assert bool(guided.any())
    assert scores[guided].min() >= scores[allowed & ~guided].max()
    assert torch.equal(Guided(spread=1.0).choose(board), evenly(allowed, Guided().budget(board)))


def test_even_distances() -> None:
    allowed = torch.tensor([[0, 1, 1, 1, 0, 1, 1, 1, 0]], dtype=torch.bool)
    assert evenly(allowed, torch.tensor([3])).nonzero()[:, 1].tolist() == [1, 3, 6]
    assert evenly(allowed, torch.tensor([0])).sum() == 0
    assert evenly(allowed, torch.tensor([99])).sum() == 6


# --- parallel positions ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ROTARY)
def test_one_memory_with_neutral_scales_is_concatenation(family: str) -> None:
    model = loaded(family)
    work = work_for(model, [LEFT, MEMORIES[1], QUESTION])
    made = Parallel(1.0, 1.0).prefill(work)
    assert distance(made.logits, composer("concatenate").prefill(work).logits) <= 1e-4


@pytest.mark.parametrize("family", ["llama", "qwen3", "phi"])
def test_memories_at_the_same_positions_can_be_swapped(family: str) -> None:
    """No memory is first: with the same length and positions the order must not matter."""
    model = loaded(family)
    pair = [MEMORIES[0], MEMORIES[2]]
    swapped = [Parallel().prefill(work_for(model, [LEFT, *order, QUESTION])).logits for order in (pair, pair[::-1])]
    assert distance(*swapped) <= 1e-3
    plain = [composer("concatenate").prefill(work_for(model, [LEFT, *o, QUESTION])).logits for o in (pair, pair[::-1])]
    assert distance(*plain) > 1e-2


def test_temperature_and_scale_follow_the_papers_formula() -> None:
    """Attention to memories and to the rest merged by their log-sum-exps, computed here the long way."""
    torch.manual_seed(0)
    query, key, value = torch.randn(1, 4, 3, 16), torch.randn(1, 2, 9, 16), torch.randn(1, 2, 9, 16)
    columns = torch.zeros(1, 9, dtype=torch.bool)
    columns[0, 2:6] = True
    from torch.nn.functional import scaled_dot_product_attention

    from nnm_core.injection.compose.parallel import Sharpened

    def attend(module: object, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, **_: object) -> tuple[Tensor, None]:
        return scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True), None

    found = Sharpened(columns, 0.8, 0.7)(attend, torch.nn.Identity(), query, key, value, None)[0]
    key, value = key.repeat_interleave(2, 1), value.repeat_interleave(2, 1)
    logits = query @ key.transpose(2, 3) / 4
    logits = logits.masked_fill(torch.ones(3, 9).triu(7).bool(), float("-inf"))
    inside, outside = logits[..., 2:6] / 0.8, torch.cat([logits[..., :2], logits[..., 6:]], -1)
    parts = [
        inside.softmax(-1) @ value[:, :, 2:6],
        outside.softmax(-1) @ torch.cat([value[:, :, :2], value[:, :, 6:]], 2),
    ]
    masses = torch.stack([0.7 * 0.8 * inside.logsumexp(-1), outside.logsumexp(-1)], -1).softmax(-1)
    expected = parts[0] * masses[..., :1] + parts[1] * masses[..., 1:]
    assert distance(found, expected) <= 1e-5


def test_decoding_goes_on_with_the_same_look() -> None:
    model = loaded("llama")
    made = Parallel(0.5, 0.5).prefill(work_for(model))
    tokens = [step.token_id for step in decode(model, made.cache, made.logits, DecodeSettings(max_tokens=6))]
    made = Parallel(0.5, 0.5).prefill(work_for(model))
    made.cache.intervention = None
    other = [step.token_id for step in decode(model, made.cache, made.logits, DecodeSettings(max_tokens=6))]
    assert tokens[0] == other[0]
    assert tokens != other


# --- as on an accelerator ----------------------------------------------------------------------------------------


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From its call on states are rotated on their way into a cache, which lies in lent buffers, as on a GPU."""

    def lent(model: LoadedModel, capacity: int) -> PlacedCache:
        cache = StaticForward(model, graphs=False).lend(capacity)
        return PlacedCache(model.layers, capacity=capacity) if cache is None else cache

    def begin() -> None:
        monkeypatch.setattr("nnm_core.states.capture.comes_late", lambda model: True)
        for user in ("prefill", "compose.board"):
            monkeypatch.setattr(f"nnm_core.injection.{user}.new_cache", lent)

    return begin


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt-neox", "gemma3"])
@pytest.mark.parametrize("name", names())
def test_states_that_come_late_are_composed_alike(family: str, name: str, late: Callable[[], None]) -> None:
    model = loaded(family)
    expected = composer(name).prefill(work_for(model))
    late()
    work = work_for(model)
    assert all(isinstance(step.state, HostState) for step in work.plan.steps[:-1])
    found = composer(name).prefill(work)
    assert found.recomputed == expected.recomputed
    assert distance(found.logits, expected.logits) <= 1e-4
    settings = DecodeSettings(max_tokens=4)
    tokens = [[step.token_id for step in decode(model, m.cache, m.logits, settings)] for m in (found, expected)]
    assert tokens[0] == tokens[1]


def test_a_state_that_comes_late_may_stand_behind_left_out_tokens(late: Callable[[], None]) -> None:
    """Its place in the buffers is then not its position."""
    model = loaded("llama")
    first, second = (states(model)[memory.ids] for memory in MEMORIES[:2])
    kept = first.only(torch.arange(0, len(first.token_ids), 2))
    logits = []
    for begin in (lambda: None, late):
        begin()
        cache = PlacedCache(model.layers)
        for state, start in ((kept, 0), (second, len(first.token_ids))):
            place(model, state, start).copy_into(cache)
        assert cache.length == len(kept.layers[0][0][0]) + len(second.token_ids)
        with torch.inference_mode():
            logits.append(forward(model, cache, list(QUESTION.ids)))
    assert distance(*logits) <= 1e-5


# --- refusals ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in ROTARY])
@pytest.mark.parametrize("name", [name for name in names() if name != "concatenate"])
def test_models_that_cannot_be_repaired_are_refused_with_a_reason(family: str, name: str) -> None:
    reason = composer(name).refusal(loaded(family))
    assert f"its positions are {FAMILIES[family][2]}" in reason


def test_an_attention_without_masks_is_refused() -> None:
    model = loaded("llama")
    assert composer("link").refusal(model) == ""
    assert "given a mask" in composer("link").refusal(replace(model, intervenes=False))
    flash = wrap_model(make("llama"), byte_tokenizer(), name="llama")
    flash.hf.config._attn_implementation_internal = "nnm_flash_attention_2"
    assert "flash_attention_2 attention takes no mask" in composer("link").refusal(flash)


@pytest.mark.parametrize("ratio", [-0.1, 1.1])
def test_a_ratio_is_a_share(ratio: float) -> None:
    with pytest.raises(InvalidInputError, match="ratio is"):
        Link(ratio=ratio)
    with pytest.raises(InvalidInputError, match="spread"):
        Guided(spread=1.5)
    with pytest.raises(InvalidInputError, match="temperature"):
        Parallel(temperature=0.0)


def test_the_best_places_of_each_row() -> None:
    scores = torch.tensor([[1.0, 5.0, 3.0, 4.0], [2.0, 2.0, 2.0, 2.0]])
    allowed = torch.tensor([[True, False, True, True], [True, True, True, True]])
    found = best(scores, allowed, torch.tensor([2, 1]))
    assert found.tolist() == [[False, False, True, True], [True, False, False, False]]
    assert best(scores, allowed, torch.tensor([9, 0])).sum().item() == 3


def test_without_a_name_the_best_composer_that_works_with_the_model_is_taken() -> None:
    assert composer().name == composer(None, loaded("llama")).name == "guided-offset"
    assert composer(None, loaded("bloom")).name == "concatenate"
    assert composer(None, loaded("llama"), plain=True).name == "concatenate"
    link = Link(ratio=0.5)
    assert composer(link, loaded("bloom")) is link, "what was asked for is not changed silently"


def test_continuations_are_scored_with_the_look_of_the_composer() -> None:
    model = loaded("llama")
    made = Parallel(0.5, 0.5).prefill(work_for(model))
    tokens = [step.token_id for step in decode(model, made.cache, made.logits, DecodeSettings(max_tokens=4))]
    again = Parallel(0.5, 0.5).prefill(work_for(model))
    expected = float(again.logits.log_softmax(-1)[tokens[0]])
    logits = forward(model, again.cache, tokens[:1])
    expected += float(logits.log_softmax(-1)[tokens[1]])
    fresh = Parallel(0.5, 0.5).prefill(work_for(model))
    assert log_probabilities(model, fresh.cache, fresh.logits, [tokens[:2]])[0] == pytest.approx(expected, abs=1e-4)
    fresh.cache.intervention = None
    assert log_probabilities(model, fresh.cache, fresh.logits, [tokens[:2]])[0] != pytest.approx(expected, abs=1e-3)


def test_beside_memories_with_gaps_nothing_is_repaired() -> None:
    """A memory that has lost tokens keeps its state; those behind it are read, and the receipt says why."""
    with NNM.open(tiny_reader(), system=None) as nnm:
        nnm.add(["The bins go on Tuesday.", "Glass is on Monday."], ids=["a", "b"])
        found = nnm._answerer._find_exact

        def gappy(segment: Segment, left: str, start: int) -> object:
            state = found(segment, left, start)
            return state if state is None or segment.memory is None else replace(state, skipped=1)

        nnm._answerer._find_exact = gappy  # type: ignore[method-assign,assignment]
        messages = question_prompt("When?", nnm.get(["a", "b"]), None)
        nnm._left_state()
        for chosen, action in ((composer("link"), "read"), (composer("concatenate"), "composed")):
            request = Request(messages, (), "inject", "fast", DecodeSettings(), 0.0, composer=chosen)
            plan = nnm._answerer.plan(nnm._format.segments(messages), request)
            uses = [step for step in plan.steps if step.segment.memory is not None]
            assert [step.action for step in uses] == ["exact", action]
