"""Every family: injected equals read, states survive their file, and move only where that is right."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from tests.core.families import FAMILIES, byte_tokenizer, loaded, make, random_ids
from tests.core.reading import distance, inject_on, read_again, read_logits, read_states
from torch import Tensor

from nnm_core.errors import PositionError
from nnm_core.model.load import LoadedModel, wrap_model
from nnm_core.states.capture import capture, place
from nnm_core.states.codecs import NativeCodec, manifest_of
from nnm_core.states.state import State

EXACT = 1e-4
STEPS = 12
LEFT, MEMORY, SECOND, QUESTION = (random_ids(n, seed=n) for n in (10, 40, 27, 9))
ROTARY = [name for name, (_, _, family) in FAMILIES.items() if family == "rotary"]
FIXED = [name for name, (_, _, family) in FAMILIES.items() if family == "fixed"]
HALF = ["llama", "qwen3", "gemma2", "gemma3", "mistral-window", "gpt-neox", "smollm3", "gpt2"]
# Windows apply besides the mask that a test hands over, so block masks cannot stand for composition there.
WINDOWED = {"mistral-window", "gemma2", "gemma3", "cohere2", "exaone4", "gpt-oss"}
# Angles at other places round otherwise, and random layers pass the differences on enlarged.
MOVED = 1e-4


def captured(model: LoadedModel) -> tuple[State, State]:
    """The left context and the memory behind it."""
    left = capture(model, [LEFT])[0]
    return left, capture(model, [MEMORY], place(model, left, 0))[0]


def through_file(state: State) -> State:
    codec = NativeCodec()
    manifest = manifest_of(state, codec, "fingerprint")
    return codec.decode(load_tensors(save_tensors(codec.encode(state), metadata=manifest)), manifest)


@pytest.mark.parametrize("name", FAMILIES)
def test_injected_equals_read(name: str) -> None:
    model = loaded(name)
    left, memory = captured(model)
    states = [place(model, left, 0), place(model, through_file(memory), len(LEFT))]
    tokens, logits = inject_on(model, states, QUESTION, STEPS)
    expected_tokens, expected = read_again(model, [*LEFT, *MEMORY, *QUESTION], tokens)
    assert tokens == expected_tokens
    assert distance(logits, expected) <= EXACT


@pytest.mark.parametrize("name", FAMILIES)
def test_a_wrong_state_would_be_noticed(name: str) -> None:
    """The comparison above has teeth: another memory's state gives logits that are far off."""
    model = loaded(name)
    left, _ = captured(model)
    root = place(model, left, 0)
    other = capture(model, [random_ids(40, seed=99)], root)[0]
    _, logits = inject_on(model, [root, place(model, other, len(LEFT))], QUESTION, 1)
    assert distance(logits[0], read_logits(model, [*LEFT, *MEMORY, *QUESTION])[-1]) > 10 * EXACT


@pytest.mark.parametrize("name", ROTARY)
@pytest.mark.parametrize("start", [1, 17, 300])
def test_relocated_equals_freshly_computed_there(name: str, start: int) -> None:
    model = loaded(name)
    moved = place(model, capture(model, [MEMORY])[0], start)
    for (key, value), (fresh_key, fresh_value) in zip(
        moved.layers, read_states(model, MEMORY, start=start), strict=True
    ):
        assert distance(key, fresh_key) <= MOVED * max(1.0, float(fresh_key.abs().max()))
        assert distance(value, fresh_value) <= MOVED * max(1.0, float(fresh_value.abs().max()))


@pytest.mark.parametrize("name", ROTARY)
def test_relocated_with_its_left_context(name: str) -> None:
    """A state from behind a left context, moved by 15, equals both computed 15 places further on."""
    model = loaded(name)
    _, memory = captured(model)
    moved = place(model, memory, len(LEFT) + 15)
    fresh = read_states(model, [*LEFT, *MEMORY], start=15)
    for (key, value), (fresh_key, fresh_value) in zip(moved.layers, fresh, strict=True):
        assert distance(key, fresh_key[:, len(LEFT) :]) <= MOVED * max(1.0, float(fresh_key.abs().max()))
        assert distance(value, fresh_value[:, len(LEFT) :]) <= MOVED * max(1.0, float(fresh_value.abs().max()))


def test_without_rotation_nothing_changes_on_the_way() -> None:
    model = loaded("bloom")
    state = capture(model, [MEMORY])[0]
    here, there = place(model, state, 0), place(model, state, 33)
    for here_layer, there_layer in zip(here.layers, there.layers, strict=True):
        assert torch.equal(here_layer[0], there_layer[0])
        assert torch.equal(here_layer[1], there_layer[1])
    # ALiBi: behind any text a token's key in the first layer is the same
    behind = read_states(model, [*SECOND, *MEMORY])[0][0][:, len(SECOND) :]
    assert distance(there.layers[0][0], behind) <= 1e-6


@pytest.mark.parametrize("name", FIXED)
def test_fixed_positions_refuse_to_move(name: str) -> None:
    model = loaded(name)
    _, memory = captured(model)
    with pytest.raises(PositionError, match="computed at 10, wanted at 11") as caught:
        place(model, memory, len(LEFT) + 1)
    assert caught.value.hint


@pytest.mark.parametrize("name", [name for name in ROTARY if name not in WINDOWED])
def test_composed_equals_one_pass_with_a_block_mask(name: str) -> None:
    """Two memories read apart and put side by side: the model sees what a mask between them would let it see."""
    model = loaded(name)
    first, second = capture(model, [MEMORY, SECOND])
    states = [place(model, first, 0), place(model, second, len(MEMORY))]
    _, logits = inject_on(model, states, QUESTION, 1)
    assert distance(logits[0], block_logits(model, [MEMORY, SECOND], QUESTION)) <= EXACT
    plain = read_logits(model, [*MEMORY, *SECOND, *QUESTION])[-1]
    assert distance(logits[0], plain) > EXACT, "composition is not reading; the receipt must not say exact"


@torch.inference_mode()
def block_logits(model: LoadedModel, memories: list[list[int]], question: list[int]) -> Tensor:
    ids = [token for row in (*memories, question) for token in row]
    blocks = torch.cat([torch.full((len(row),), index) for index, row in enumerate((*memories, question))])
    allowed = torch.ones(len(ids), len(ids)).tril().bool()
    allowed &= (blocks[:, None] == blocks[None, :]) | (blocks[:, None] == len(memories))
    mask = torch.zeros(len(ids), len(ids)).masked_fill(~allowed, torch.finfo(torch.float32).min)
    output = model.hf(input_ids=torch.tensor([ids]), attention_mask=mask[None, None], use_cache=False)
    logits: Tensor = output.logits[0, -1]
    return logits


@pytest.mark.parametrize("name", sorted(WINDOWED))
def test_windows_slide_over_injected_memories_and_answers(name: str) -> None:
    """Left context, memory and answer are each longer than the window of 12."""
    model = loaded(name)
    left, memory, question = random_ids(30, seed=5), random_ids(61, seed=6), random_ids(3, seed=7)
    root = place(model, capture(model, [left])[0], 0)
    state = place(model, capture(model, [memory], root)[0], len(left))
    assert state.layers[0][0].shape[-2] == len(memory), "all tokens are kept, not the window's"
    tokens, logits = inject_on(model, [root, state], question, 16)
    expected_tokens, expected = read_again(model, [*left, *memory, *question], tokens)
    assert tokens == expected_tokens
    assert distance(logits, expected) <= EXACT


@pytest.mark.parametrize("name", HALF)
def test_bfloat16(name: str) -> None:
    """Eight bits of precision: logits within 2 % of their range, each chosen token among the best by as much."""
    model = wrap_model(make(name).to(torch.bfloat16), byte_tokenizer(), name=name)
    left, memory = captured(model)
    assert memory.layers[0][0].dtype == torch.bfloat16
    states = [place(model, left, 0), place(model, through_file(memory), len(LEFT))]
    tokens, logits = inject_on(model, states, QUESTION, STEPS)
    _, expected = read_again(model, [*LEFT, *MEMORY, *QUESTION], tokens)
    tolerance = 2e-2 * float(expected.max() - expected.min())
    assert distance(logits, expected) <= tolerance
    chosen = expected.gather(-1, torch.tensor(tokens)[:, None])[:, 0]
    assert distance(chosen, expected.max(-1).values) <= 2 * tolerance
