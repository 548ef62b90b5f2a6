"""On disk and back: bit for bit, in whatever the model computes with."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tests.core.families import FAMILIES, loaded, random_ids

from nnm_core.states.capture import capture, place
from nnm_core.states.codecs import NativeCodec, expectation, manifest_of
from nnm_core.states.state import State, chain


def roundtrip(state: State, path: Path) -> State:
    """Through a file that is mapped into memory, as a store does it."""
    codec = NativeCodec()
    save_file(codec.encode(state), path, metadata=manifest_of(state, codec, "f" * 64))
    with safe_open(path, framework="pt") as stored:
        return codec.decode({name: stored.get_tensor(name) for name in stored.keys()}, stored.metadata())  # noqa: SIM118


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_comes_back_bit_for_bit(name: str, tmp_path: Path) -> None:
    model = loaded(name)
    left = place(model, capture(model, [random_ids(6, seed=1)])[0], 0)
    state = capture(model, [random_ids(21, seed=2)], left)[0]
    back = roundtrip(state, tmp_path / "state.safetensors")
    assert (back.token_ids, back.start, back.left, back.chain) == (state.token_ids, 6, left.name, state.chain)
    for (key, value), (kept_key, kept_value) in zip(back.layers, state.layers, strict=True):
        assert torch.equal(key, kept_key)
        assert torch.equal(value, kept_value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_type_is_kept(dtype: torch.dtype, tmp_path: Path) -> None:
    layers = ((torch.randn(2, 5, 4).to(dtype), torch.randn(2, 5, 8).to(dtype)),)
    back = roundtrip(State((1, 2, 3, 4, 5), 0, "", layers), tmp_path / "state.safetensors")
    assert back.layers[0][0].dtype == dtype
    assert torch.equal(back.layers[0][1], layers[0][1])


def test_a_cut_state_can_be_stored(tmp_path: Path) -> None:
    state = capture(loaded("llama"), [random_ids(21, seed=2)])[0].head(8)
    back = roundtrip(state, tmp_path / "state.safetensors")
    assert torch.equal(back.layers[3][0], state.layers[3][0])
    assert back.layers[3][0].shape == (2, 8, 16)


def test_large_token_ids_survive(tmp_path: Path) -> None:
    ids = (0, 262_143, 2**31 - 1)
    state = State(ids, 0, "", ((torch.zeros(1, 3, 1), torch.zeros(1, 3, 1)),))
    assert roundtrip(state, tmp_path / "state.safetensors").token_ids == ids


def test_the_manifest_holds_what_a_state_must_match() -> None:
    codec = NativeCodec()
    state = capture(loaded("llama"), [random_ids(4, seed=2)])[0]
    manifest = manifest_of(state, codec, "print")
    assert expectation(codec, "print").items() <= manifest.items()
    assert not expectation(codec, "other").items() <= manifest.items()
    assert {key: manifest[key] for key in ("start", "layers", "tokens", "codec")} == {
        "start": "0",
        "layers": "4",
        "tokens": "4",
        "codec": "native",
    }


def test_chains_tell_contexts_apart() -> None:
    assert chain("", [1, 2]) != chain("", [2, 1])
    assert chain(chain("", [1]), [2]) != chain("", [1, 2])  # cut otherwise: a miss, never a wrong state
    assert chain("", [1]) != chain("", [1, 0])
    assert chain("", [256]) != chain("", [1, 0, 0])
    assert chain("a", [1]) == chain("a", (1,))
