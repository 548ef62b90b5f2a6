"""The cache that is written in place must look to the model like transformers' own."""

from __future__ import annotations

import pytest
import torch
from tests.core.families import loaded, random_ids
from tests.core.reading import distance, read_logits

from nnm_core.states.cache import PlacedCache, PlacedLayer, RecordingCache


def states(tokens: int, *, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, 1, 3, tokens, 8, generator=generator).unbind(0)


@pytest.mark.parametrize("capacity", [0, 4, 100])
def test_appended_states_are_read_back_in_order(capacity: int) -> None:
    layer = PlacedLayer(capacity)
    pieces = [states(n, seed=n) for n in (3, 1, 6, 1)]
    for key, value in pieces:
        seen = layer.update(key, value)
    assert torch.equal(seen[0], torch.cat([key for key, _ in pieces], dim=-2))
    assert torch.equal(seen[1], torch.cat([value for _, value in pieces], dim=-2))
    assert layer.get_seq_length() == layer.length == 11


def test_decoding_does_not_copy_what_is_there() -> None:
    layer = PlacedLayer(64)
    first = layer.update(*states(10))[0]
    for _ in range(20):
        seen = layer.update(*states(1))[0]
    assert seen.data_ptr() == first.data_ptr()


def test_growing_doubles() -> None:
    layer = PlacedLayer()
    for _ in range(100):
        layer.update(*states(1))
    assert layer.length == 100
    assert layer.capacity == 128


def test_crop_and_reset() -> None:
    layer = PlacedLayer()
    key, value = states(10)
    layer.update(key, value)
    layer.crop(-4)
    assert torch.equal(layer.view()[0], key[..., :6, :])
    layer.update(*states(1, seed=3))
    assert layer.length == 7
    layer.reset()
    assert layer.get_seq_length() == 0
    assert torch.equal(layer.update(*states(2, seed=5))[0], states(2, seed=5)[0])


def test_an_empty_cache_has_length_zero() -> None:
    cache = PlacedCache(3, capacity=5)
    assert cache.length == cache.get_seq_length() == 0
    assert cache.nbytes() == 0


def test_bytes_are_those_of_the_buffers() -> None:
    cache = PlacedCache(2, capacity=32)
    for index in range(2):
        cache.update(*states(5), index)
    assert cache.nbytes() == 2 * 2 * 3 * 32 * 8 * 4


@pytest.mark.parametrize("name", ["llama", "gemma2", "gemma3", "mistral-window", "gpt2", "bloom", "phi"])
@torch.inference_mode()
def test_reading_in_pieces_equals_reading_at_once(name: str) -> None:
    model, ids = loaded(name), random_ids(50, seed=3)
    cache, logits = PlacedCache(model.layers), []
    for start, end in ((0, 20), (20, 21), (21, 49), (49, 50)):
        logits.append(
            model.hf(input_ids=torch.tensor([ids[start:end]]), past_key_values=cache, use_cache=True).logits[0]
        )
    assert distance(torch.cat(logits), read_logits(model, ids)) <= 1e-4


def test_recording_without_rotation_keeps_and_places_the_same() -> None:
    cache = RecordingCache(1, None)
    first, second = states(3), states(2, seed=1)
    cache.update(*first, 0)
    cache.update(*second, 0)
    (key, value) = cache.recorded()[0]
    assert torch.equal(key, torch.cat([first[0], second[0]], dim=-2))
    assert torch.equal(value, torch.cat([first[1], second[1]], dim=-2))
    assert torch.equal(cache.placed[0].view()[0], key)
