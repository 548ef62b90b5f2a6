"""Re-ranking on states: the same numbers as re-reading everything, for any batch, and an order that is explained."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from tests.core.families import FAMILIES, loaded
from tests.core.reading import read_logits

from nnm_core.errors import InvalidInputError
from nnm_core.model.prompt import PromptFormat
from nnm_core.recall import rerank
from nnm_core.recall.fusion import FusedHit
from nnm_core.recall.rerank import Evidence, RerankSettings, StateReranker, combine
from nnm_core.states.capture import capture, place
from nnm_core.states.state import PlacedState

TEXTS = {"bins": "The bins go on Monday.", "bus": "The bus leaves at noon from the old station.", "cat": "A cat."}
QUERY = "When does the bus leave?"


def stored(family: str) -> tuple[PlacedState, dict[str, PlacedState], list[int], dict[str, list[int]]]:
    model = loaded(family)
    prompt = PromptFormat(model.tokenizer)
    left_ids = list(prompt.left_context(None))
    left = place(model, capture(model, [left_ids])[0], 0)
    rows = {key: list(prompt.memory_ids(text)) for key, text in TEXTS.items()}
    states = dict(zip(rows, capture(model, list(rows.values()), left), strict=True))
    return left, {key: place(model, s, left.length) for key, s in states.items()}, left_ids, rows


def log_likelihoods(family: str, before: list[int], query: str, cue: str) -> torch.Tensor:
    tokenizer = loaded(family).tokenizer
    cue_ids = tokenizer(cue, add_special_tokens=False)["input_ids"] if cue else []
    ids = tokenizer(f" {query}" if cue else query, add_special_tokens=False)["input_ids"]
    skip = 0 if cue else 1
    logits = read_logits(loaded(family), [*before, *cue_ids, *ids])[-len(ids) - 1 + skip : -1].log_softmax(-1)
    return logits.gather(1, torch.tensor(ids[skip:])[:, None])[:, 0]


@pytest.mark.parametrize("cue", ["", "Question:"])
@pytest.mark.parametrize("family", ["qwen3", "mistral-window", "gemma2", "bloom", "gpt2"])
def test_likelihood_is_the_gain_over_reading_without_the_memory(family: str, cue: str) -> None:
    left, states, left_ids, rows = stored(family)
    evidence = StateReranker(loaded(family), left, RerankSettings(cue=cue)).evidence(QUERY, states)
    null = log_likelihoods(family, left_ids, QUERY, cue)
    for key, row in rows.items():
        gains = log_likelihoods(family, [*left_ids, *row], QUERY, cue) - null
        np.testing.assert_allclose(evidence[key].gains, gains, atol=1e-3)
        np.testing.assert_allclose(evidence[key].surprise, -null, atol=1e-3)
        assert evidence[key].likelihood == pytest.approx(float((gains * -null).sum() / -null.sum()), abs=2e-4)


def rows_of_passes(monkeypatch: pytest.MonkeyPatch, room: int) -> list[int]:
    """Lets the model read at most `room` rows at a time; the rows of every pass that fitted."""
    hf, rows = loaded("qwen3").hf, []
    forward = hf.forward

    def limited(*args: Any, **kwargs: Any) -> Any:
        if len(kwargs["input_ids"]) > room:
            raise torch.OutOfMemoryError("no room")
        rows.append(len(kwargs["input_ids"]))
        return forward(*args, **kwargs)

    monkeypatch.setattr(hf, "forward", limited)
    return rows


def test_candidates_that_do_not_fit_the_device_are_read_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    left, states, _, _ = stored("qwen3")
    whole = StateReranker(loaded("qwen3"), left, all_heads=True).evidence(QUERY, states)
    rows = rows_of_passes(monkeypatch, room=1)
    parts = StateReranker(loaded("qwen3"), left, all_heads=True).evidence(QUERY, states)
    assert rows == [1] * (1 + len(states))  # the reading without a memory, and each candidate
    assert list(parts) == list(whole)
    for key, evidence in whole.items():
        np.testing.assert_allclose(parts[key].gains, evidence.gains, atol=1e-3)
        np.testing.assert_allclose(parts[key].attention, evidence.attention, atol=1e-3)


def test_the_logits_of_a_pass_are_bounded_however_small_the_memories_are(monkeypatch: pytest.MonkeyPatch) -> None:
    left, states, _, _ = stored("qwen3")
    many = {f"{key} {turn}": state for turn in range(5) for key, state in states.items()}
    model = loaded("qwen3")
    read = len(model.tokenizer(f"Question: {QUERY}", add_special_tokens=False)["input_ids"])
    monkeypatch.setattr(rerank, "_LOGIT_BYTES", 4 * 4 * read * model.hf.config.vocab_size)
    rows = rows_of_passes(monkeypatch, room=len(many))
    StateReranker(model, left).evidence(QUERY, many)
    assert max(rows) == 4
    assert sum(rows) == 1 + len(many)


def eager_attention(row: list[int], memory: slice, query: slice, layer: int, weights: torch.Tensor) -> torch.Tensor:
    """Per head sum_t w_t logsumexp of the query's logits on the memory, from one plain eager reading of everything."""
    model = loaded("qwen3").hf
    seen: dict[str, torch.Tensor] = {}
    block = model.model.layers[layer].self_attn

    def keep(name: str):  # type: ignore[no-untyped-def]
        return lambda module, args, output: seen.__setitem__(name, output.detach())

    hooks = [block.q_norm.register_forward_hook(keep("q")), block.k_norm.register_forward_hook(keep("k"))]
    try:
        with torch.no_grad():
            model(torch.tensor([row]))
    finally:
        for hook in hooks:
            hook.remove()
    from transformers.models.qwen3.modeling_qwen3 import apply_rotary_pos_emb

    cos, sin = model.model.rotary_emb(seen["q"], torch.arange(len(row))[None])
    q, k = apply_rotary_pos_emb(seen["q"].transpose(1, 2), seen["k"].transpose(1, 2), cos, sin)
    k = k.repeat_interleave(q.shape[1] // k.shape[1], 1)
    logits = (q @ k.transpose(2, 3))[0] * block.head_dim**-0.5
    return torch.einsum("hq,q->h", logits[:, query, memory].logsumexp(-1), weights)


def test_attention_is_that_of_reading_the_text() -> None:
    model = loaded("qwen3")
    left, states, left_ids, rows = stored("qwen3")
    settings = RerankSettings(cue="Q:", heads=((2, 3), (1, 0)))
    evidence = StateReranker(model, left, settings).evidence(QUERY, states)
    cue = model.tokenizer("Q:", add_special_tokens=False)["input_ids"]
    ids = model.tokenizer(f" {QUERY}", add_special_tokens=False)["input_ids"]
    null = read_logits(model, [*left_ids, *cue, *ids])[-len(ids) - 1 : -1].log_softmax(-1)
    surprise = -null.gather(1, torch.tensor(ids)[:, None])[:, 0]
    for key, row in rows.items():
        whole = [*left_ids, *row, *cue, *ids]
        memory = slice(len(left_ids), len(left_ids) + len(row))
        query = slice(len(whole) - len(ids), len(whole))
        expected = [
            float(eager_attention(whole, memory, query, layer, surprise / surprise.sum())[head])
            for layer, head in ((1, 0), (2, 3))
        ]
        np.testing.assert_allclose(evidence[key].attention, expected, atol=2e-3)
        assert evidence[key].spread.shape == (len(row),)
        assert evidence[key].spread.sum() == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("family", list(FAMILIES))
def test_evidence_does_not_depend_on_the_batch(family: str) -> None:
    left, states, _, _ = stored(family)
    heads = ((1, 0), (2, 3)) if loaded(family).intervenes else ()
    together = StateReranker(loaded(family), left, RerankSettings(heads=heads)).evidence(QUERY, states)
    alone = StateReranker(loaded(family), left, RerankSettings(heads=heads, tokens_per_batch=1))
    for key, evidence in alone.evidence(QUERY, states).items():
        assert evidence.likelihood == pytest.approx(together[key].likelihood, abs=2e-4)
        np.testing.assert_allclose(evidence.attention, together[key].attention, atol=2e-3)
        np.testing.assert_allclose(evidence.spread, together[key].spread, atol=1e-3)


def test_all_heads_are_the_chosen_heads_in_order_of_layer_and_head() -> None:
    left, states, _, _ = stored("qwen3")
    every = StateReranker(loaded("qwen3"), left, all_heads=True).evidence(QUERY, states)
    some = StateReranker(loaded("qwen3"), left, RerankSettings(heads=((3, 1), (0, 2)))).evidence(QUERY, states)
    for key in states:
        np.testing.assert_allclose(some[key].attention, every[key].attention[[2, 3 * 4 + 1]], atol=1e-4)


def evidence(likelihood: float, *attention: float) -> Evidence:
    return Evidence(likelihood, np.array(attention, np.float32), np.zeros(0, np.float32))


def test_witnesses_are_standardised_before_they_are_weighed() -> None:
    first = {"a": 1000.0, "b": 900.0, "c": 0.0}
    seen = {"a": evidence(0.1, 5.0, 0.0), "b": evidence(0.3, 6.0, 0.0), "c": evidence(0.2, 4.0, 0.0)}
    order = combine(first, seen, {"first": 1.0, "likelihood": 1.0, "attention": 0.0})
    z = {k: (v - 1900 / 3) / np.std([1000, 900, 0]) for k, v in first.items()}
    y = {k: (e.likelihood - 0.2) / np.std([0.1, 0.2, 0.3]) for k, e in seen.items()}
    assert [key for key, _, _ in order] == ["b", "a", "c"]
    for key, score, parts in order:
        assert score == pytest.approx(z[key] + y[key], abs=1e-6)
        assert parts["likelihood"] == pytest.approx(seen[key].likelihood)
    only_attention = combine(first, seen, {"attention": 1.0})
    assert [key for key, _, _ in only_attention] == ["b", "a", "c"]


def test_without_any_say_the_first_stage_keeps_its_order() -> None:
    first = {"a": 3.0, "b": 2.0, "c": 1.0}
    seen = {key: evidence(float(i)) for i, key in enumerate(first)}
    assert [key for key, _, _ in combine(first, seen, {"first": 1.0})] == ["a", "b", "c"]
    assert [key for key, _, _ in combine(first, seen, {})] == ["a", "b", "c"]


def test_reranked_hits_keep_their_parts_and_unread_ones_come_behind() -> None:
    left, states, _, _ = stored("qwen3")
    reranker = StateReranker(loaded("qwen3"), left, RerankSettings(depth=3))
    hits = [FusedHit(key, 1.0 - 0.1 * i, {"sparse_rank": i}) for i, key in enumerate(["lost", "cat", "bus", "bins"])]
    got = reranker.rerank(QUERY, hits, states)
    assert sorted(hit.id for hit in got[:2]) == ["bus", "cat"]
    assert [hit.id for hit in got[2:]] == ["lost", "bins"]
    assert all(upper.score > lower.score for upper, lower in pairwise(got))
    assert set(got[0].parts) == {"sparse_rank", "first", "likelihood"}
    assert reranker.rerank(QUERY, hits, {}) == hits


def test_the_span_to_cite_holds_the_attention() -> None:
    spread = np.zeros(100, np.float32)
    spread[60:64] = 0.25
    start, stop = Evidence(0.0, np.zeros(0, np.float32), spread).span(16)
    assert start <= 60
    assert stop >= 64
    assert stop - start == 16
    assert Evidence(0.0, np.zeros(0, np.float32), spread[:9]).span(16) == (0, 9)


def test_one_token_queries_and_empty_ones() -> None:
    left, states, _, _ = stored("qwen3")
    reranker = StateReranker(loaded("qwen3"), left)
    assert np.isfinite([e.likelihood for e in reranker.evidence("x", states).values()]).all()
    with pytest.raises(InvalidInputError, match="no tokens"):
        reranker.evidence("  ", states)
    assert reranker.evidence(QUERY, {}) == {}


def test_settings_survive_a_mapping() -> None:
    settings = RerankSettings(heads=((3, 1), (0, 2)), weights={"first": 1.0})
    assert RerankSettings(**settings.to_dict()) == settings
    with pytest.raises(InvalidInputError, match="negative"):
        RerankSettings(weights={"first": -1.0})
