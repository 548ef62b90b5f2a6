"""Every codec on every family: there and back within its stated error and size, and what is damaged is a miss."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tests.core.families import FAMILIES, loaded, random_ids
from tests.core.reading import inject_on, read_again

from nnm_core.errors import InvalidInputError
from nnm_core.model.load import LoadedModel
from nnm_core.states.capture import capture, place
from nnm_core.states.codecs import CODECS, Codec, Reader, make_codec, manifest_of
from nnm_core.states.codecs.quantise import Quantised, dequantise, quantise
from nnm_core.states.state import PlacedState, State

SPECS = ("int8", "int4", "residual-int8", "tokens")
LEFT, ROW = random_ids(6, seed=1), random_ids(43, seed=2)
# Layers that hand tuples to each other, or take other arguments than hidden states first.
REFUSED = {("bloom", "residual-int8"), ("mpt", "residual-int8")}
# Largest |error| over the largest |value|, of random states with long tails; the stated bound is tested on its own.
RELATIVE = {"native": 0.0, "int8": 0.01, "int4": 0.15, "residual-int8": 0.1, "tokens": 1e-5}


def left_of(model: LoadedModel) -> PlacedState:
    return place(model, capture(model, [LEFT])[0], 0)


def reader_of(model: LoadedModel) -> Reader:
    return Reader(model, lambda: left_of(model))


def stored(model: LoadedModel, codec: Codec, row: list[int] | None = None) -> tuple[State, dict[str, torch.Tensor]]:
    codec.check(model)
    state = capture(model, [row or ROW], left_of(model), residual_layer=codec.residual_layer)[0]
    return state, codec.encode(state)


def back(model: LoadedModel, codec: Codec, state: State, tensors: dict[str, torch.Tensor], folder: Path) -> State:
    """Through a file that is mapped into memory, as a store does it."""
    save_file(tensors, folder / "state", metadata=manifest_of(state, codec, "print"))
    with safe_open(folder / "state", framework="pt") as opened:
        read = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        decoded = codec.decode(read, opened.metadata(), reader_of(model))
    assert decoded is not None
    return decoded


def relative_error(a: State, b: State) -> float:
    return max(
        float((x - y).abs().max() / y.abs().max())
        for ours, own in zip(a.layers, b.layers, strict=True)
        for x, y in zip(ours, own, strict=True)
    )


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_comes_back_within_the_error_and_size_that_are_stated(
    name: str, spec: str, tmp_path: Path
) -> None:
    model, codec = loaded(name), make_codec(spec)
    if (name, spec) in REFUSED:
        with pytest.raises(InvalidInputError, match="residual stream"):
            codec.check(model)
        return
    state, tensors = stored(model, codec)
    decoded = back(model, codec, state, tensors, tmp_path)
    assert (decoded.token_ids, decoded.start, decoded.left) == (state.token_ids, state.start, state.left)
    assert [k.shape for k, _ in decoded.layers] == [k.shape for k, _ in state.layers]
    assert relative_error(decoded, state) <= RELATIVE[spec]
    assert (decoded.origin.codec, decoded.origin.lossless) == (spec, codec.lossless)
    used = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    assert used == pytest.approx(codec.bytes_per_token(model, len(ROW)) * len(ROW), abs=8)


@pytest.mark.parametrize("name", [name for name, (_, _, family) in FAMILIES.items() if family != "fixed"])
def test_eight_bits_change_an_answer_no_more_than_their_error(name: str, tmp_path: Path) -> None:
    """Injected behind its context and read on: the logits stay close to those of reading on every movable family."""
    model, codec = loaded(name), make_codec("int8")
    state, tensors = stored(model, codec)
    left, question = left_of(model), random_ids(5, seed=9)
    decoded = back(model, codec, state, tensors, tmp_path)
    exact_tokens, exact = inject_on(model, [left, place(model, state, left.length)], question, 1)
    _, lossy = inject_on(model, [left, place(model, decoded, left.length)], question, 1)
    _, read = read_again(model, [*LEFT, *ROW, *question], exact_tokens)
    spread = float(read.max() - read.min())
    assert float((lossy - exact).abs().mean()) <= 0.02 * spread
    assert not torch.equal(lossy, exact)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("offset", [0.0, 50.0])
def test_no_number_is_further_off_than_half_a_step(bits: int, dtype: torch.dtype, offset: float) -> None:
    generator = torch.Generator().manual_seed(bits)
    blocked = (torch.randn(3, 2, 5, 32, 8, generator=generator) * 3 + offset).to(dtype)
    found = quantise(blocked, 3, bits)
    out = torch.empty(blocked.shape, dtype=torch.float32)
    dequantise(found, out, 3, bits)
    assert float((out - blocked.float()).abs().sub(found.scale.float() / 2).max()) <= 1e-4 * (1 + offset)
    rounded = torch.empty_like(blocked)
    dequantise(found, rounded, 3, bits)
    assert torch.equal(rounded, out.to(dtype))


def test_a_constant_block_and_a_huge_one_survive() -> None:
    for value in (0.0, 2.5, 1e6, -1e6):
        found = quantise(torch.full((1, 4, 1), value), 1, 8)
        out = torch.empty(1, 4, 1)
        dequantise(found, out, 1, 8)
        assert torch.allclose(out, torch.full((1, 4, 1), value), rtol=1e-3, atol=1e-6)


def test_four_bits_lie_two_a_byte() -> None:
    found = quantise(torch.randn(2, 32), 1, 4)
    assert found.q.shape == (2, 16)
    assert isinstance(found, Quantised)
    assert found.q.dtype == torch.uint8


@pytest.mark.parametrize("spec", ["int8", "int4"])
def test_keys_are_blocked_by_channel_and_values_by_token(spec: str) -> None:
    """An outlying channel of the keys, or an outlying token of the values, costs its neighbours nothing."""
    codec = make_codec(spec)
    key, value = torch.randn(2, 40, 8), torch.randn(2, 40, 8)
    key[:, :, 3] *= 1000
    value[:, 20, :] *= 1000
    state = State(tuple(range(40)), 0, "", ((key, value),))
    decoded = codec.decode(codec.encode(state), manifest_of(state, codec, "x"))
    assert decoded is not None
    others = torch.ones(8, dtype=torch.bool)
    others[3] = False
    assert float((decoded.layers[0][0] - key)[..., others].abs().max()) < 0.5
    rows = torch.ones(40, dtype=torch.bool)
    rows[20] = False
    assert float((decoded.layers[0][1] - value)[:, rows].abs().max()) < 0.5


@pytest.mark.parametrize("spec", ["int8", "int4"])
@pytest.mark.parametrize("tokens", [1, 3, 4, 5, 36, 37, 68, 69, 130])
def test_any_number_of_tokens_comes_back_and_the_first_ones_bit_for_bit(spec: str, tokens: int, tmp_path: Path) -> None:
    model, codec = loaded("llama"), make_codec(spec)
    state, tensors = stored(model, codec, random_ids(tokens, seed=tokens))
    decoded = back(model, codec, state, tensors, tmp_path)
    for ours, own in zip(decoded.layers, state.layers, strict=True):
        for x, y in zip(ours, own, strict=True):
            assert x.shape == y.shape
            assert torch.equal(x[:, :4], y[:, :4])
    assert relative_error(decoded, state) <= RELATIVE[spec]


def test_the_lower_part_of_the_residual_codec_is_exact_and_the_upper_comes_from_the_stream(tmp_path: Path) -> None:
    model, codec = loaded("qwen3"), make_codec("residual-int8:layer=2")
    state, tensors = stored(model, codec)
    decoded = back(model, codec, state, tensors, tmp_path)
    below = [torch.allclose(x[0], y[0], atol=1e-5) for x, y in zip(decoded.layers[:2], state.layers[:2], strict=True)]
    assert below == [True, True]
    tensors["delta.zero"] = tensors["delta.zero"] + 1  # another stream: other keys above, the same ones below
    changed = back(model, codec, state, tensors, tmp_path)
    assert torch.equal(changed.layers[1][0], decoded.layers[1][0])
    assert not torch.allclose(changed.layers[2][0], decoded.layers[2][0], atol=1e-2)


def test_the_residual_stream_is_decoded_on_the_readers_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """From wherever its parts lie: tensors of another device can only be added to each other there."""
    model, codec = loaded("qwen3"), make_codec("residual-int8:layer=2")
    state, tensors = stored(model, codec)
    elsewhere = replace(model, device=torch.device("meta"))
    devices = []

    def read_above(model: LoadedModel, ids: object, delta: torch.Tensor, **_: object) -> State:
        devices.append(delta.device.type)
        return state

    monkeypatch.setattr("nnm_core.states.codecs.residual.read_above", read_above)
    left = left_of(model)
    for name in ("delta.q", "delta.scale", "delta.zero"):
        mixed = tensors | {name: tensors[name].to("meta")}
        assert codec.decode(mixed, manifest_of(state, codec, "print"), Reader(elsewhere, lambda: left)) is not None
    assert devices == ["meta"] * 3


@pytest.mark.parametrize("spec", ["residual-int8", "tokens"])
def test_what_must_be_computed_is_computed_behind_its_own_context_only(spec: str) -> None:
    model, codec = loaded("llama"), make_codec(spec)
    state, tensors = stored(model, codec)
    elsewhere = Reader(model, lambda: place(model, capture(model, [random_ids(6, seed=5)])[0], 0))
    manifest = manifest_of(state, codec, "x")
    assert codec.decode(tensors, manifest, elsewhere) is None
    assert codec.decode(tensors, manifest) is None
    again = codec.decode(tensors, manifest, reader_of(model))
    assert again is not None
    assert again.origin.recomputed == len(ROW)


def test_computing_the_upper_layers_leaves_the_model_as_it_was() -> None:
    model, codec = loaded("gpt2"), make_codec("residual-int8")
    before = {name: id(module) for name, module in model.hf.named_modules()}
    state, tensors = stored(model, codec)
    codec.decode(tensors, manifest_of(state, codec, "x"), reader_of(model))
    assert {name: id(module) for name, module in model.hf.named_modules()} == before


@pytest.mark.parametrize(
    "spec", ["int9", "int8:", "int8:x=1", "int8:x", "residual-int8:layer=-1", "residual-int8:lower=maybe", "", ":"]
)
def test_unknown_codecs_and_options_are_refused(spec: str) -> None:
    if spec == "int8:":  # nothing behind the colon
        assert make_codec(spec).lossless is False
        return
    with pytest.raises(InvalidInputError):
        make_codec(spec)


@pytest.mark.parametrize("layer", [0, 4, 99])
def test_a_residual_layer_that_is_not_there_is_refused(layer: int) -> None:
    with pytest.raises(InvalidInputError, match="4 layers"):
        make_codec(f"residual-int8:layer={layer}").check(loaded("llama"))


def test_all_codecs_are_in_the_registry_by_their_name() -> None:
    assert [make_codec(name).name for name in CODECS] == list(CODECS)
    assert {name for name in CODECS if make_codec(name).lossless} == {"native", "tokens"}
