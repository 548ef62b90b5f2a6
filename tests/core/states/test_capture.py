"""Capture is an ordinary reading that leaves something behind: same numbers, any batch, one pass."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.core.families import FAMILIES, loaded, random_ids
from tests.core.reading import distance, read_states

from nnm_core.model.batching import padded_batches
from nnm_core.model.load import LoadedModel
from nnm_core.states.cache import RecordingLayer
from nnm_core.states.capture import EMPTY, capture, place
from nnm_core.states.state import ROOT, State, chain

ROTARY = [name for name, (_, _, family) in FAMILIES.items() if family == "rotary"]
ROWS = [random_ids(length, seed=length) for length in (23, 5, 1, 40)]


def same(a: State, b: State, tolerance: float) -> bool:
    assert (a.token_ids, a.start, a.left) == (b.token_ids, b.start, b.left)
    return all(
        x.shape == y.shape and distance(x, y) <= tolerance * max(1.0, float(y.abs().max()))
        for first, second in zip(a.layers, b.layers, strict=True)
        for x, y in zip(first, second, strict=True)
    )


@pytest.mark.parametrize("name", FAMILIES)
def test_captured_is_bit_for_bit_what_an_ordinary_pass_computes(name: str) -> None:
    """Deferred rotation repeats the model's own arithmetic: not nearly, but exactly the same keys and values."""
    model = loaded(name)
    placed = place(model, capture(model, [ROWS[3]])[0], 0)
    for (key, value), (plain_key, plain_value) in zip(placed.layers, read_states(model, ROWS[3]), strict=True):
        assert torch.equal(key, plain_key)
        assert torch.equal(value, plain_value)


@pytest.mark.parametrize("name", FAMILIES)
def test_rows_of_different_length_in_one_pass_equal_single_ones(name: str) -> None:
    model = loaded(name)
    left = place(model, capture(model, [random_ids(10, seed=1)])[0], 0)
    together = capture(model, ROWS, left)
    for row, state in zip(ROWS, together, strict=True):
        single = capture(model, [row], left)[0]
        assert state.token_ids == tuple(row)
        assert state.start == 10
        assert state.left == left.name
        assert same(state, single, 5e-5)


@pytest.mark.parametrize("name", ROTARY)
def test_keys_are_kept_unrotated(name: str) -> None:
    """A token's first-layer key is the same wherever it stands; rotated keys would differ."""
    model = loaded(name)
    state = capture(model, [[7, 8, 9, 7, 8, 9]])[0]
    key = state.layers[0][0]
    assert distance(key[:, 0], key[:, 3]) <= 1e-5
    rotated = read_states(model, [7, 8, 9, 7, 8, 9])[0][0]
    assert distance(rotated[:, 0], rotated[:, 3]) > 1e-2


def test_layers_without_positions_are_left_alone() -> None:
    """SmolLM3 has no rotation in every other layer; that is measured, not configured."""
    assert [rotary is not None for rotary in loaded("smollm3").positions.rotary] == [True, False, True, False]


def test_layers_with_different_tables_each_use_their_own() -> None:
    """Gemma 3 rotates local and global layers with different bases."""
    rotary = loaded("gemma3").positions.rotary
    assert {str(layer.arguments) for layer in rotary if layer is not None} == {
        "{'layer_type': 'sliding_attention'}",
        "{'layer_type': 'full_attention'}",
    }


def test_a_state_owns_its_memory() -> None:
    """Else one short memory would keep its whole padded batch alive."""
    state = capture(loaded("llama"), ROWS)[2]
    for tensor in (tensor for layer in state.layers for tensor in layer):
        assert tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()


def test_one_pass_whatever_the_number_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    model = loaded("llama")
    calls: list[Any] = []
    forward = type(model.hf.base_model).forward

    def count(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(kwargs["input_ids"].shape)
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(type(model.hf.base_model), "forward", count)
    capture(model, ROWS)
    assert calls == [(4, 40)]


def test_a_capture_that_fails_leaves_the_model_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    model = loaded("llama")
    plain = read_states(model, ROWS[0])
    monkeypatch.setattr(RecordingLayer, "update", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        capture(model, ROWS)
    assert all(torch.equal(a[0], b[0]) for a, b in zip(plain, read_states(model, ROWS[0]), strict=True))


def test_names_say_what_was_read() -> None:
    model = loaded("llama")
    left = place(model, capture(model, [ROWS[0]])[0], 0)
    state = capture(model, [ROWS[1]], left)[0]
    assert left.name == chain(ROOT, ROWS[0])
    assert state.chain == chain(chain(ROOT, ROWS[0]), ROWS[1])
    assert place(model, state, state.start).name == state.chain
    assert capture(model, [ROWS[1]], EMPTY)[0].left == ROOT


def test_the_head_of_a_state_is_the_state_of_its_first_tokens() -> None:
    model = loaded("qwen3")
    whole, head = (capture(model, [row])[0] for row in (ROWS[3], ROWS[3][:17]))
    assert same(whole.head(17), head, 5e-5)
    assert whole.head(40) is whole


def test_bytes_are_counted() -> None:
    state = capture(loaded("llama"), [ROWS[3]])[0]
    assert state.nbytes == 2 * 4 * 2 * 40 * 16 * 4  # keys and values, layers, heads, tokens, head size, float32
    assert place(loaded("llama"), state, 0).nbytes == state.nbytes


def test_placing_does_not_change_the_state() -> None:
    model = loaded("llama")
    state = capture(model, [ROWS[3]])[0]
    before = [key.clone() for key, _ in state.layers]
    place(model, state, 9)
    assert all(torch.equal(key, kept) for (key, _), kept in zip(state.layers, before, strict=True))


@pytest.mark.parametrize("budget", [1, 64, 100, 10_000])
def test_batches_hold_every_row_once_within_the_budget(budget: int) -> None:
    lengths = [5, 90, 3, 3, 64, 10, 1]
    groups = list(padded_batches(lengths, budget))
    assert sorted(index for group in groups for index in group) == list(range(7))
    for group in groups:
        assert len(group) == 1 or len(group) * max(lengths[index] for index in group) <= budget


def test_batches_of_nothing() -> None:
    assert list(padded_batches([], 10)) == []


def test_threads_capture_and_read_at_the_same_time() -> None:
    """Deferred rotation is bound to its own context: another thread's ordinary passes see ordinary tables."""
    from concurrent.futures import ThreadPoolExecutor

    model: LoadedModel = loaded("llama")
    expected = read_states(model, ROWS[3])
    alone = capture(model, ROWS)
    with ThreadPoolExecutor(4) as pool:
        reading = [pool.submit(read_states, model, ROWS[3]) for _ in range(20)]
        capturing = [pool.submit(capture, model, ROWS) for _ in range(20)]
        for done in reading:
            assert all(torch.equal(a[0], b[0]) for a, b in zip(done.result(), expected, strict=True))
        for states in capturing:
            assert all(same(a, b, 0.0) for a, b in zip(states.result(), alone, strict=True))


@pytest.mark.parametrize("residual_layer", [None, 2])
def test_the_last_layer_computes_only_what_is_kept(residual_layer: int | None) -> None:
    model, calls = loaded("llama"), []
    hooks = [
        layer.mlp.register_forward_hook(lambda *_, index=index: calls.append(index))
        for index, layer in enumerate(model.hf.model.layers)
    ]
    try:
        state = capture(model, [ROWS[0]], residual_layer=residual_layer)[0]
    finally:
        for hook in hooks:
            hook.remove()
    assert calls == ([0, 1, 2] if residual_layer is None else [0, 1, 2, 3])
    assert (state.residual is None) == (residual_layer is None)
