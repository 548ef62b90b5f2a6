"""Fewer tokens: those that remain stand where they stood, and what is read behind them counts all."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.core.families import FAMILIES, loaded, random_ids
from tests.core.tiny import tiny_reader

from nnm_core import NNM, InjectionSettings, InvalidInputError
from nnm_core.evaluation.behind import Prompt, answers_behind
from nnm_core.injection.prefill import forward
from nnm_core.model.load import LoadedModel
from nnm_core.states.cache import PlacedCache
from nnm_core.states.capture import capture, place
from nnm_core.states.codecs import EvictingCodec, Reader, make_codec, manifest_of
from nnm_core.states.codecs.evict import importance
from nnm_core.states.state import PlacedState, State

# Refused: gaps would move windows, or positions cannot be given.
WINDOWED = {"mistral-window", "gemma2", "gemma3", "cohere2", "exaone4", "gpt-oss"}
FITTING = [name for name, (_, _, family) in FAMILIES.items() if family == "rotary" and name not in WINDOWED]
LEFT, ROW, QUESTION = random_ids(6, seed=1), random_ids(30, seed=2), random_ids(7, seed=3)
TEXT = "The spare key hangs behind the green door of the old boat house, and nobody but Maria knows about it."


def left_of(model: LoadedModel) -> PlacedState:
    return place(model, capture(model, [LEFT])[0], 0)


def captured(model: LoadedModel) -> State:
    return capture(model, [ROW], left_of(model))[0]


def behind(model: LoadedModel, state: State) -> torch.Tensor:
    """Logits behind left context, state and question, and of one token more."""
    cache = PlacedCache(model.layers)
    left = left_of(model)
    left.copy_into(cache)
    place(model, state, left.length).copy_into(cache)
    with torch.inference_mode():
        return torch.stack([forward(model, cache, QUESTION), forward(model, cache, QUESTION[:1])])


@pytest.mark.parametrize("name", FITTING)
def test_gaps_are_what_a_mask_would_make_of_them(name: str) -> None:
    """The oracle: transformers itself, all tokens in the cache, a 2-D mask over those left out, positions by hand."""
    model = loaded(name)
    state, left = captured(model), left_of(model)
    kept = torch.tensor([0, 1, 2, 5, 8, 9, 17, 28])
    ours = behind(model, state.only(kept))
    cache = PlacedCache(model.layers)
    left.copy_into(cache)
    place(model, state, left.length).copy_into(cache)
    seen = torch.zeros(len(LEFT) + len(ROW) + len(QUESTION) + 1, dtype=torch.long)
    seen[: len(LEFT)] = 1
    seen[len(LEFT) + kept] = 1
    seen[len(LEFT) + len(ROW) :] = 1
    start, theirs = len(LEFT) + len(ROW), []
    with torch.inference_mode():
        for ids in (QUESTION, QUESTION[:1]):
            at = torch.arange(start, start + len(ids))[None]
            mask = seen[None, : start + len(ids)]
            row = torch.tensor([ids])
            output = model.hf(
                input_ids=row, attention_mask=mask, position_ids=at, past_key_values=cache, use_cache=True
            )
            theirs.append(output.logits[0, -1])
            start += len(ids)
    assert float((ours - torch.stack(theirs)).abs().max()) <= 1e-3
    assert float((ours - behind(model, state)).abs().max()) > 1e-2


@pytest.mark.parametrize("name", FAMILIES)
def test_models_that_cannot_have_gaps_are_refused(name: str) -> None:
    codec = make_codec("int8:keep=0.5")
    if name in FITTING:
        codec.check(loaded(name))
    else:
        with pytest.raises(InvalidInputError, match="cannot be left out"):
            codec.check(loaded(name))


@pytest.mark.parametrize("spec", ["native:keep=0.4", "int8:keep=0.4", "int4:keep=0.4"])
@pytest.mark.parametrize("name", ["llama", "smollm3", "phi"])
def test_there_and_back_with_every_inner_codec(name: str, spec: str) -> None:
    model, codec = loaded(name), make_codec(spec)
    assert isinstance(codec, EvictingCodec)
    state, reader = captured(model), Reader(model, lambda: left_of(model))
    chosen = codec.choose(state, reader)
    tensors = codec.encode(chosen)
    decoded = codec.decode(tensors, manifest_of(state, codec, "x"), reader)
    assert decoded is not None
    assert decoded.token_ids == state.token_ids
    assert decoded.kept is not None
    assert chosen.kept is not None
    assert torch.equal(decoded.kept, chosen.kept)
    assert len(decoded.kept) == codec.count(len(ROW)) == 12
    assert (decoded.origin.codec, decoded.origin.lossless) == (spec, False)
    for (key, _), (own, _) in zip(decoded.layers, state.layers, strict=True):
        near = own[:, decoded.kept]
        assert key.shape == near.shape
        assert float((key - near).abs().max()) <= 0.15 * float(own.abs().max())
    used = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    assert used == pytest.approx(codec.bytes_per_token(model, len(ROW)) * len(ROW), abs=1)


def test_importance_is_the_attention_of_the_repetition() -> None:
    """Recomputed by eager attention, which gives its weights away."""
    from tests.core.families import make
    from tests.core.tiny import byte_tokenizer

    from nnm_core.model.load import wrap_model

    model = wrap_model(make("llama"), byte_tokenizer(), name="llama")
    state, reader = captured(model), Reader(model, lambda: left_of(model))
    found = importance(model, state, reader)
    cue = model.tokenizer("Repeat the previous context exactly:\n\n", add_special_tokens=False)["input_ids"]
    eager = make("llama")
    eager.set_attn_implementation("eager")
    ids = [*LEFT, *ROW, *cue, *ROW]
    with torch.inference_mode():
        weights = eager(input_ids=torch.tensor([ids]), output_attentions=True).attentions
    memory = slice(len(LEFT), len(LEFT) + len(ROW))
    wanted = sum(layer[0, :, -len(ROW) :, memory].amax((0, 1)) for layer in weights)
    assert torch.allclose(found, wanted, atol=1e-4)


def test_the_head_of_an_evicted_state_keeps_its_places() -> None:
    state = captured(loaded("llama")).only(torch.tensor([0, 3, 7, 20]))
    head = state.head(8)
    assert head.kept is not None
    assert head.kept.tolist() == [0, 3, 7]
    assert head.layers[0][0].shape[1] == 3
    assert len(head.token_ids) == 8


def test_a_batch_counts_gaps_as_positions() -> None:
    model = loaded("llama")
    left = left_of(model)
    rows = [captured(model).only(torch.tensor(kept)) for kept in ([1, 4, 9], [0, 1, 2, 3, 4, 25])]
    prompts = [Prompt((left, place(model, row, left.length)), tuple(QUESTION)) for row in rows]
    together = answers_behind(model, prompts, max_tokens=2)
    for index, row in enumerate(rows):
        assert float((together.logits[index] - behind(model, row)[0]).abs().max()) <= 1e-3


@pytest.mark.parametrize("spec", ["int9:keep=0.5", "tokens:keep=0.5", "int8:keep=0", "int8:keep=1", "int8:keep=x"])
def test_what_cannot_be_kept_is_refused(spec: str) -> None:
    with pytest.raises(InvalidInputError):
        make_codec(spec)


# --- through the engine -----------------------------------------------------------------------------------------


def opened(path: Path, codec: str | None = "int8:keep=0.5") -> NNM:
    return NNM.open(tiny_reader(), path, system="Be brief.", codec=codec)


def test_receipts_count_all_tokens_and_the_bytes_of_the_kept_ones(tmp_path: Path) -> None:
    with opened(tmp_path / "a") as nnm, opened(tmp_path / "b", "int8") as whole:
        for engine in (nnm, whole):
            engine.add([TEXT, "The bins are collected on Tuesday."], ids=["a", "b"])
        how = {"memories": ["a"], "max_tokens": 8}
        first, second, all_tokens = (
            nnm.answer("Where?", **how),
            nnm.answer("Where?", **how),
            whole.answer("Where?", **how),
        )
        assert first.token_ids == second.token_ids
        (part,), (full,) = first.receipt.parts, all_tokens.receipt.parts
        assert (part.codec, part.tier, part.tokens) == ("int8:keep=0.5", "compressed", full.tokens)
        assert first.receipt.tokens_injected == all_tokens.receipt.tokens_injected
        assert part.nbytes < 0.7 * full.nbytes
        assert nnm.stats()["bytes_states"] < whole.stats()["bytes_states"]


def test_a_second_memory_behind_an_evicted_one_is_read_and_kept_in_its_place(tmp_path: Path) -> None:
    with opened(tmp_path / "a") as nnm:
        nnm.add([TEXT, "The bins are collected on Tuesday."], ids=["a", "b"])
        for policy in ("auto", "fast"):
            how = {"memories": ["a", "b"], "max_tokens": 8, "policy": policy}
            answers = [nnm.answer("Where?", **how) for _ in range(3)]
            assert len({answer.token_ids for answer in answers}) == 1
            assert [part.tier for part in answers[-1].receipt.parts] == ["compressed", "compressed"]
        read = nnm.answer("Where?", memories=["a", "b"], max_tokens=8, mode="read")
        exact = nnm.answer("Where?", memories=["a", "b"], max_tokens=8, policy="exact")
        assert exact.token_ids == read.token_ids


def test_an_evicted_state_is_read_again_when_everything_is_wanted(tmp_path: Path) -> None:
    with opened(tmp_path / "a") as nnm:
        nnm.add(TEXT, ids="a")
        nnm.search("key", rerank=True)  # passes it over
        with pytest.raises(InvalidInputError, match="left out"):
            nnm.answer("Where?", memories=["a"], injection=InjectionSettings(0.5))
        read = nnm.answer("Where?", memories=["a"], max_tokens=8, mode="read")
    with opened(tmp_path / "a", "native") as nnm:
        again = nnm.answer("Where?", memories=["a"], max_tokens=8)
        assert again.receipt.tier == "exact"
        assert again.token_ids == read.token_ids
