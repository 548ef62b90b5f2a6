"""Passes of a fixed shape over lent buffers give what ordinary passes give; here without CUDA graphs, on the CPU."""

from __future__ import annotations

import copy
import gc
from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.core.families import FAMILIES, loaded, random_ids
from tests.core.reading import distance, read_again, read_logits
from torch import Tensor, nn

from nnm_core.errors import StorageError
from nnm_core.injection.norms import fused_norms, same_as_fused
from nnm_core.injection.prefill import forward, load
from nnm_core.injection.prefix_attention import PrefixAttention
from nnm_core.injection.split_attention import SplitAttention, visible
from nnm_core.injection.static import StaticForward, bucket, unfit
from nnm_core.model.attention import intervene
from nnm_core.model.load import LoadedModel
from nnm_core.model.positions import Turn
from nnm_core.states import transfer
from nnm_core.states.cache import PlacedCache
from nnm_core.states.capture import EMPTY, capture, place
from nnm_core.states.codecs import Codec, Reader, make_codec, manifest_of
from nnm_core.states.packed import PackedState
from nnm_core.states.state import State, one_block
from nnm_core.states.transfer import HostState, Plain, _group_bytes, uniform

LEFT, MEMORY, QUESTION = (random_ids(n, seed=n) for n in (10, 40, 9))
PROMPT = [*LEFT, *MEMORY, *QUESTION]
REFUSED = {
    "mistral-window", "gemma2", "gemma3", "cohere2", "exaone4", "gpt-oss", "stablelm", "llama4", "deepseek-v3",
    "gpt2", "opt", "bloom", "mpt",
}  # fmt: skip


def states_of(model: LoadedModel) -> tuple[State, State]:
    left = capture(model, [LEFT])[0]
    return left, capture(model, [MEMORY], place(model, left, 0))[0]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_fixed_pass_equals_an_ordinary_one(name: str) -> None:
    model = loaded(name)
    static = StaticForward(model, graphs=False)
    assert bool(static.refusal) == (name in REFUSED), static.refusal
    cache = static.lend(len(PROMPT) + 8)
    if name in REFUSED:
        assert cache is None
        return
    assert cache is not None
    left, memory = states_of(model)
    for state, start in ((left, 0), (memory, len(LEFT))):
        HostState(model, state, start).copy_into(cache)
    logits = forward(model, cache, QUESTION)
    tokens = []
    for _ in range(6):
        tokens.append(int(logits.argmax()))
        logits = forward(model, cache, tokens[-1:])
    assert static.replays == 7  # the question and six tokens, none in the ordinary way
    expected_tokens, expected = read_again(model, PROMPT, [*tokens, 0])
    assert tokens == expected_tokens[:-1]
    assert distance(logits, read_logits(model, [*PROMPT, *tokens])[-1]) <= 1e-4
    del expected


def test_one_answer_at_a_time_has_the_buffers() -> None:
    static = StaticForward(loaded("llama"), graphs=False)
    first = static.lend(100)
    assert first is not None and static.lend(100) is None
    del first
    gc.collect()
    assert static.lend(100) is not None


def test_larger_needs_get_larger_buffers() -> None:
    model = loaded("llama")
    static = StaticForward(model, graphs=False)
    with torch.inference_mode():
        for length in (30, 900):
            cache = static.lend(length + 60)
            assert cache is not None
            ids = random_ids(length, seed=length)
            forward(model, cache, ids)  # longer than any fixed pass, or not: the same logits
            found = forward(model, cache, QUESTION)
            assert cache.block is not None and cache.length == length + len(QUESTION)
            assert distance(found, read_logits(model, [*ids, *QUESTION])[-1]) <= 1e-4
            del cache
            gc.collect()


def test_an_intervention_takes_the_ordinary_way() -> None:
    model = loaded("qwen3")
    static = StaticForward(model, graphs=False)
    cache = static.lend(80)
    assert cache is not None
    seen: list[int] = []

    def watch(attend, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kwargs):  # type: ignore[no-untyped-def]
        seen.append(key.shape[-2])
        return attend(module, query, key, value, mask, **kwargs)

    with torch.inference_mode():
        forward(model, cache, LEFT)
        with intervene(watch):
            found = forward(model, cache, QUESTION)
    assert static.replays == 1
    assert seen == [len(LEFT) + len(QUESTION)] * model.layers  # no padding to be seen by an intervention
    assert distance(found, read_logits(model, [*LEFT, *QUESTION])[-1]) <= 1e-4


def test_an_outgrown_buffer_is_given_up() -> None:
    model = loaded("llama")
    static = StaticForward(model, graphs=False)
    cache = static.lend(40)
    assert cache is not None and cache.block is not None
    places = cache.block.shape[-2]
    ids = random_ids(places + 5, seed=1)
    with torch.inference_mode():
        forward(model, cache, ids[:300])
        forward(model, cache, ids[300:])
        found = forward(model, cache, QUESTION)
    assert cache.block is None
    assert distance(found, read_logits(model, [*ids, *QUESTION])[-1]) <= 1e-4


@pytest.mark.parametrize("parts", [1, 2, 8])
@pytest.mark.parametrize("heads", [2, 6])
def test_split_attention_is_attention(parts: int, heads: int) -> None:
    torch.manual_seed(0)
    query, key, value = torch.randn(1, heads, 5, 16), torch.randn(1, 2, 64, 16), torch.randn(1, 2, 64, 16)
    positions = torch.arange(20, 25)
    mask = visible(positions, 64, torch.float32)
    attend = SplitAttention(mask, parts)
    found, _ = attend(lambda *_: (query, None), nn.Module(), query, key, value, None, scaling=0.3)
    group = heads // 2
    expected = torch.nn.functional.scaled_dot_product_attention(
        query, key.repeat_interleave(group, 1), value.repeat_interleave(group, 1), mask, scale=0.3
    ).transpose(1, 2)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("parts", [1, 3, 8])
@pytest.mark.parametrize("heads", [2, 6])
@pytest.mark.parametrize("start", [8, 41, 59])
def test_prefix_attention_is_attention(parts: int, heads: int, start: int) -> None:
    torch.manual_seed(0)
    query, key, value = torch.randn(1, heads, 5, 16), torch.randn(1, 2, 64, 16), torch.randn(1, 2, 64, 16)
    key[:, :, start + 5 :], value[:, :, start + 5 :] = torch.nan, torch.nan  # what stands behind is not read
    positions = torch.arange(start, start + 5)
    attend = PrefixAttention(positions, 64, parts)
    found, _ = attend(lambda *_: (query, None), nn.Module(), query, key, value, None, scaling=0.3)
    group, seen = heads // 2, slice(start + 5)
    expected = torch.nn.functional.scaled_dot_product_attention(
        query,
        key[:, :, seen].repeat_interleave(group, 1),
        value[:, :, seen].repeat_interleave(group, 1),
        visible(positions, start + 5, torch.float32),
        scale=0.3,
    ).transpose(1, 2)
    torch.testing.assert_close(found, expected)


def test_a_long_prefix_is_attended_to_without_a_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole pass, as where FlashAttention is there: its logits, with a prefix that ends anywhere in the bucket."""
    monkeypatch.setattr("nnm_core.injection.static.has_flash", lambda *_: True)
    monkeypatch.setattr("nnm_core.injection.static.SHORTEST_PREFIX", 600)
    made: list[int] = []
    monkeypatch.setattr(
        "nnm_core.injection.static.PrefixAttention", lambda *given: made.append(given[1]) or PrefixAttention(*given)
    )
    model = loaded("qwen3")
    fixed = StaticForward(model, graphs=False)
    with torch.inference_mode():
        for length in (520, 650, 700):
            cache = fixed.lend(length + 80)
            assert cache is not None
            ids = random_ids(length, seed=length)
            forward(model, cache, ids)
            found = forward(model, cache, QUESTION)
            assert distance(found, read_logits(model, [*ids, *QUESTION])[-1]) <= 1e-4
            del cache
            gc.collect()
    assert made == [768, 768, 768]


def test_buckets_grow_by_parts_of_an_octave() -> None:
    places = (1, 512, 513, 769, 1024, 1025, 1537, 4097, 32800, 33000)
    assert [bucket(n) for n in places] == [512, 512, 768, 1024, 1024, 1536, 2048, 5120, 40960, 40960]


def test_refusals_say_why() -> None:
    assert "sliding" in unfit(loaded("gemma3"))
    assert "not rotary" in unfit(loaded("gpt2"))
    assert not unfit(loaded("llama-yarn"))


def test_layers_in_one_storage_are_not_copied() -> None:
    whole = torch.randn(3 * 2 * 2 * 10 * 4)
    parts = whole.view(6, 2, 10, 4)
    layers = tuple((parts[2 * i], parts[2 * i + 1]) for i in range(3))
    block = one_block(layers)
    assert block is not None and block.shape == (3, 2, 2, 10, 4) and block.data_ptr() == whole.data_ptr()
    cut = one_block(tuple((key[:, :7], value[:, :7]) for key, value in layers))
    assert cut is not None and cut.shape == (3, 2, 2, 10, 4) and cut.data_ptr() == whole.data_ptr()
    apart = tuple((key.clone(), value.clone()) for key, value in layers)
    assert one_block(apart) is None
    assert one_block((layers[0], layers[2])) is None  # not one behind the other
    assert one_block((*layers[:2], (parts[4], parts[5].double()))) is None
    plain = [Plain(State((), 0, "", found)).part(1, 3)[0] for found in (layers, apart)]
    for found in plain:
        torch.testing.assert_close(found, block[1:], rtol=0, atol=0)


def test_neighbouring_storages_are_not_one_block() -> None:
    """Whatever their addresses: a view of the first would reach beyond what it owns."""
    memory = np.zeros((2, 2, 5, 4), dtype=np.float32)
    key, value = torch.from_numpy(memory[0]), torch.from_numpy(memory[1])
    assert value.data_ptr() == key.data_ptr() + key.nbytes
    assert one_block(((key, value),)) is None


@pytest.mark.parametrize("name", FAMILIES)
def test_keys_turned_into_their_place_are_the_models_own(name: str) -> None:
    """Where halves are rotated by four plain operations, and everywhere else, in the last bit."""
    model = loaded(name)
    keys = [key for key, _ in states_of(model)[1].layers]
    for first, last in ((0, len(keys)), (0, 1), (len(keys) - 1, len(keys))):
        if len({key.shape for key in keys[first:last]}) > 1:
            continue
        turn = Turn(model.positions, 13, keys[0].shape[-2])
        stacked = torch.stack(keys[first:last])
        room = torch.full((*stacked.shape[:2], stacked.shape[2] + 3, stacked.shape[3]), 7.0)
        turn.into(first, stacked, room[:, :, 2:-1])
        torch.testing.assert_close(room[:, :, 2:-1], turn(first, stacked), rtol=0, atol=0)
        assert bool((room[:, :, :2] == 7).all() and (room[:, :, -1:] == 7).all())


def test_llamas_rotate_halves_and_others_are_left_to_their_own_function() -> None:
    rotates = {name: [r.halves for r in loaded(name).positions.rotary if r] for name in ("llama", "qwen3", "cohere2")}
    assert all(rotates["llama"]) and all(rotates["qwen3"]) and not any(rotates["cohere2"])


def test_a_table_is_kept_and_grows() -> None:
    model = loaded("llama")
    positions, rotary = replace(model.positions, known={}), model.positions.rotary[0]
    assert rotary is not None
    like = torch.zeros(1, 1, 1, rotary.width)
    for start, length in ((5, 10), (1000, 100), (3, 4)):
        own = rotary.tables(torch.arange(start, start + length)[None], like)
        for found, expected in zip(positions.tables(rotary, start, length, like), own, strict=True):
            torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert [cos.shape[1] for cos, _ in positions.known.values()] == [2048]
    limited = replace(positions, known={}, length_limit=64)
    limited.tables(rotary, 0, 8, like)
    assert not limited.known  # a longer table would be another one


@pytest.mark.parametrize("name", ["llama", "smollm3", "gpt-neox", "gemma3", "bloom"])
def test_a_host_state_is_the_placed_state(name: str) -> None:
    model = loaded(name)
    left, memory = states_of(model)
    memory = memory.head(33)
    expected, found = PlacedCache(model.layers), PlacedCache(model.layers)
    for state, start in ((left, 0), (memory, len(LEFT))):
        load(expected, place(model, state, start))
        load(found, HostState(model, state, start))
    assert found.length == expected.length == len(LEFT) + 33
    for one, other in zip(found.placed, expected.placed, strict=True):
        torch.testing.assert_close(one.view(), other.view(), rtol=0, atol=0)


def brought(monkeypatch: pytest.MonkeyPatch, name: str) -> tuple[LoadedModel, StaticForward, list[int]]:
    """A model, its fixed passes, and the layers that have been brought so far; groups have one layer each."""
    model, put = loaded(name), transfer._put
    seen: list[int] = []

    def note(room: Tensor, turn: Turn, first: int, keys: Tensor, values: Tensor) -> None:
        seen.append(first)
        put(room, turn, first, keys, values)

    monkeypatch.setattr(transfer, "_put", note)
    monkeypatch.setattr(transfer, "_group_bytes", lambda nbytes, pinned: 1)
    model.workspace.pop("staging", None)
    staging = transfer.staging_of(model)
    monkeypatch.setattr(staging, "_device", torch.device("meta"))  # as if they had to cross a bus
    monkeypatch.setattr(staging, "_send", lambda part: (part, None))
    return model, StaticForward(model, graphs=False), seen


def test_layers_come_when_they_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    model, fixed, seen = brought(monkeypatch, "qwen3")
    left, memory = states_of(model)
    cache = fixed.lend(len(PROMPT) + 8)
    assert cache is not None
    for state, start in ((left, 0), (memory, len(LEFT))):
        load(cache, HostState(model, state, start))
    assert cache.length == len(LEFT) + len(MEMORY) and not seen
    cache.placed[0].view()
    assert seen == [0, 0]  # of both states
    cache.arrive(2)
    cache.arrive(1)
    assert seen == [0, 0, 1, 1]
    found = forward(model, cache, QUESTION)
    assert len(seen) == 2 * model.layers and fixed.replays == 1
    assert distance(found, read_logits(model, PROMPT)[-1]) <= 1e-4


def test_the_ordinary_way_brings_them_too(monkeypatch: pytest.MonkeyPatch) -> None:
    model, fixed, seen = brought(monkeypatch, "llama")
    left, memory = states_of(model)
    cache = fixed.lend(len(PROMPT) + 8)
    assert cache is not None
    for state, start in ((left, 0), (memory, len(LEFT))):
        load(cache, HostState(model, state, start))
    cache.forward = None
    with torch.inference_mode():
        found = forward(model, cache, QUESTION)
    assert len(seen) == 2 * model.layers
    assert distance(found, read_logits(model, PROMPT)[-1]) <= 1e-4


def test_an_answer_that_is_given_up_frees_the_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without waiting for the collector of cycles; and what cannot be read ends the answer with the store's error."""
    model, fixed, _ = brought(monkeypatch, "llama")
    left, _ = states_of(model)
    gc.disable()
    try:
        cache = fixed.lend(80)
        assert cache is not None
        load(cache, HostState(model, left, 0))
        del cache
        cache = fixed.lend(80)
        assert cache is not None

        def fails(*_: object) -> None:
            raise StorageError("the disk is gone")

        monkeypatch.setattr(transfer, "_put", fails)
        load(cache, HostState(model, left, 0))
        with pytest.raises(StorageError, match="gone"):
            forward(model, cache, QUESTION)
        del cache
        assert fixed.lend(80) is not None
    finally:
        gc.enable()


@pytest.mark.parametrize("spec", ["int8", "int4"])
@pytest.mark.parametrize("name", ["qwen3", "gemma3", "gpt-neox", "deepseek-v3", "gpt2"])
def test_packed_states_come_as_if_they_had_been_decoded(name: str, spec: str) -> None:
    """Brought in their stored form, whole, cut, or shorter than what stays native: the same bits in the cache."""
    model, codec = loaded(name), make_codec(spec)
    left, memory = states_of(model)
    packed = packed_by(model, codec, memory)
    decoded = codec.decode(codec.encode(memory), manifest_of(memory, codec, "print"))
    assert decoded is not None
    for length in (len(MEMORY), 33, 3):
        expected, found = PlacedCache(model.layers), PlacedCache(model.layers)
        for cache, state in ((expected, decoded), (found, packed)):
            load(cache, place(model, left, 0))
            load(
                cache,
                HostState(model, state.head(length), len(LEFT))
                if state is packed
                else place(model, state.head(length), len(LEFT)),
            )
        assert found.length == len(LEFT) + length
        for one, other in zip(found.placed, expected.placed, strict=True):
            torch.testing.assert_close(one.view(), other.view(), rtol=0, atol=0)
    kept = torch.tensor([0, 5, 6])
    for one, other in zip(packed.only(kept).layers, decoded.only(kept).layers, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_any_run_of_packed_layers_is_that_run_of_all_layers() -> None:
    model, codec = loaded("qwen3"), make_codec("int4")
    packed = packed_by(model, codec, states_of(model)[1]).packed
    whole = packed.unpack(packed.part(0, packed.layers), 37)
    for first in range(packed.layers):
        one = packed.unpack(packed.part(first, first + 1), 37)
        for ours, all_ in zip(one, whole, strict=True):
            torch.testing.assert_close(ours, all_[first : first + 1], rtol=0, atol=0)
    assert sum(t.nbytes for first in range(packed.layers) for t in packed.part(first, first + 1)) == packed.nbytes


def test_an_accelerator_is_given_the_stored_form() -> None:
    """Decoding for another device computes nothing and keeps the store's own tensors."""
    model, codec = loaded("qwen3"), make_codec("int8")
    memory = states_of(model)[1]
    tensors = codec.encode(memory)
    elsewhere = replace(model, device=torch.device("meta"))
    state = codec.decode(tensors, manifest_of(memory, codec, "print"), Reader(elsewhere, lambda: EMPTY))
    assert isinstance(state, PackedState)
    assert state.packed.part(0, model.layers)[1].data_ptr() == tensors["key.q"].data_ptr()
    assert uniform(state) and not state.origin.lossless


def packed_by(model: LoadedModel, codec: Codec, state: State) -> PackedState:
    """A state as it is decoded for an accelerator, wanted on the CPU."""
    elsewhere = replace(model, device=torch.device("meta"))
    manifest = manifest_of(state, codec, "print")
    found = codec.decode(codec.encode(state), manifest, Reader(elsewhere, lambda: EMPTY))
    assert isinstance(found, PackedState)
    return PackedState(found.token_ids, found.start, found.left, found.packed, torch.device("cpu"), found.origin)


def test_a_norm_is_fused_only_if_it_is_the_same() -> None:
    norm = loaded("llama").hf.get_submodule("model.norm")
    assert same_as_fused(norm)
    shifted = copy.deepcopy(norm)
    shifted.forward = lambda x: norm(x) + x * 0.1  # e.g. a weight that is counted from one
    assert not same_as_fused(shifted)
    before = norm.forward
    with fused_norms(loaded("llama").hf):
        assert norm.forward == before  # not on a GPU


def test_states_at_the_same_positions_stand_one_behind_the_other() -> None:
    """As memories do that a composer places side by side."""
    model = loaded("llama")
    left, memory = states_of(model)
    expected, found = PlacedCache(model.layers), PlacedCache(model.layers)
    for state, start in ((left, 0), (memory, 30), (memory.head(33), 30)):
        load(expected, place(model, state, start))
        load(found, HostState(model, state, start))
    assert found.length == expected.length == len(LEFT) + len(MEMORY) + 33
    for one, other in zip(found.placed, expected.placed, strict=True):
        torch.testing.assert_close(one.view(), other.view(), rtol=0, atol=0)


def test_the_first_group_is_short_and_others_are_neither_small_nor_large() -> None:
    mib = 2**20
    sizes = (10 * mib, 400 * mib, 2000 * mib)
    assert [_group_bytes(size, pinned=True) for size in sizes] == [16 * mib, 40 * mib, 64 * mib]
    assert [_group_bytes(size, pinned=False) for size in sizes] == [32 * mib] * 3
    key = torch.empty(2, 64 * 1024, 64)  # 32 MiB
    source = Plain(State((), 0, "", ((key, key),) * 7))
    assert transfer._groups(source, pinned=True) == [(index, index + 1) for index in range(7)]
    small = Plain(State((), 0, "", ((key[:, :6400], key[:, :6400]),) * 7))
    assert transfer._groups(small, pinned=True) == [(0, 2), (2, 4), (4, 6), (6, 7)]
    assert transfer._groups(small, pinned=False) == [(0, 2), (2, 7)]
