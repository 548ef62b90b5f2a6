"""The fast KV-Embedding against an independent eager computation, and what must not change its vectors."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tests.core.families import loaded
from torch import Tensor
from transformers.models.qwen3.modeling_qwen3 import apply_rotary_pos_emb

from nnm_core.embedding.kv_embedding import KVEmbedder, batches
from nnm_core.embedding.prompts import Window
from nnm_core.embedding.settings import EmbeddingSettings, default_layers
from nnm_core.errors import InvalidInputError, UnsupportedModelError
from nnm_core.model.batching import tokens_per_pass

TEXTS = ["The bins are collected on Monday.", "x", "", "A long text about rivers and lakes. " * 6]


def reference(model: Any, ids: list[int], layers: tuple[int, ...], bias: float, *, first_pass: bool) -> Tensor:
    """h of one row after the final norm, written out from the paper for a Qwen3: no mask tricks, no batch."""
    body = model.hf.model
    config = model.hf.config
    hidden = body.embed_tokens(torch.tensor([ids]))
    cos, sin = body.rotary_emb(hidden, torch.arange(len(ids))[None])
    groups = config.num_attention_heads // config.num_key_value_heads
    plain = hidden
    for index, layer in enumerate(body.layers):

        def attend(states: Tensor, slot: tuple[Tensor, Tensor] | None, layer: Any = layer) -> tuple[Tensor, Any]:
            block = layer.self_attn
            shape = (1, len(ids), -1, config.head_dim)
            normed = layer.input_layernorm(states)
            q = block.q_norm(block.q_proj(normed).view(shape)).transpose(1, 2)
            k = block.k_norm(block.k_proj(normed).view(shape)).transpose(1, 2)
            v = block.v_proj(normed).view(shape).transpose(1, 2)
            q, k = apply_rotary_pos_emb(q, k, cos, sin)
            own = (k[:, :, -1:], v[:, :, -1:])
            if slot == ():
                slot = own
            out = torch.empty_like(q)
            for head in range(q.shape[1]):
                for token in range(len(ids)):
                    keys = k[0, head // groups, : token + 1]
                    values = v[0, head // groups, : token + 1]
                    logits = keys @ q[0, head, token] / math.sqrt(config.head_dim)
                    if slot is not None:
                        extra = slot[0][0, head // groups, 0] @ q[0, head, token] / math.sqrt(config.head_dim) + bias
                        logits = torch.cat((extra[None], logits))
                        values = torch.cat((slot[1][0, head // groups], values))
                    out[0, head, token] = logits.softmax(0) @ values
            mixed = states + block.o_proj(out.transpose(1, 2).reshape(1, len(ids), -1))
            return mixed + layer.mlp(layer.post_attention_layernorm(mixed)), own

        plain, recorded = attend(plain, None)
        slot: Any = None if index not in layers else (recorded if first_pass else ())
        hidden, _ = attend(hidden, slot)
    return body.norm(hidden)[0]


@pytest.mark.parametrize("route", ["one-pass", "two-pass", "off"])
def test_vectors_are_those_of_the_paper(route: Any) -> None:
    model = loaded("qwen3")
    settings = EmbeddingSettings(layers=(1, 2), bias=1.5, route=route)
    embedder = KVEmbedder(model, settings)
    got = embedder.encode(TEXTS, "context")
    for text, vector in zip(TEXTS, got, strict=True):
        (row,) = embedder.prompt.windows([text], "context", window=512)
        with torch.no_grad():
            layers = () if route == "off" else (1, 2)
            states = reference(model, list(row.ids), layers, 1.5, first_pass=route == "two-pass")
        expected = torch.nn.functional.normalize((states[-1] + states.mean(0)) / 2, dim=0)
        np.testing.assert_allclose(vector, expected.numpy(), atol=2e-5)


def test_re_routing_changes_the_vectors_and_bias_scales_it() -> None:
    model = loaded("qwen3")
    off = KVEmbedder(model, EmbeddingSettings(route="off")).encode(TEXTS)
    silent = KVEmbedder(model, EmbeddingSettings(layers=(1,), bias=-1e4)).encode(TEXTS)
    loud = KVEmbedder(model, EmbeddingSettings(layers=(1,), bias=1.0)).encode(TEXTS)
    np.testing.assert_allclose(silent, off, atol=1e-5)
    assert np.abs(loud - off).max() > 1e-3


@pytest.mark.parametrize("family", ["qwen3", "llama", "mistral-window", "gemma3", "phi", "gpt-neox", "gpt2", "bloom"])
def test_a_vector_does_not_depend_on_its_batch(family: str) -> None:
    model = loaded(family)
    route = "one-pass" if model.intervenes else "off"
    embedder = KVEmbedder(model, EmbeddingSettings(route=route, layers=(1, 2)))
    together = embedder.encode(TEXTS)
    alone = np.concatenate([embedder.encode([text]) for text in TEXTS])
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_a_pass_is_no_larger_than_suits_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    model = loaded("qwen3")
    embedder = KVEmbedder(model)
    texts = [f"{text} {number}" for number in range(40) for text in TEXTS]
    sizes: list[int] = []
    ordinary = KVEmbedder._encode_batch

    def noted(self: KVEmbedder, batch: Any) -> Any:
        sizes.append(len(batch) * max(len(row.ids) for row in batch))
        return ordinary(self, batch)

    monkeypatch.setattr(KVEmbedder, "_encode_batch", noted)
    embedder.encode(texts)
    most = tokens_per_pass(model.device)
    assert most < embedder.settings.tokens_per_batch
    assert max(sizes) <= most < sum(sizes)
    assert tokens_per_pass(torch.device("cuda")) > most


def test_order_and_number_of_texts_are_kept() -> None:
    embedder = KVEmbedder(loaded("qwen3"), EmbeddingSettings(tokens_per_batch=1))
    forward, backward = embedder.encode(TEXTS), embedder.encode(TEXTS[::-1])
    np.testing.assert_allclose(forward, backward[::-1], atol=1e-5)
    assert embedder.encode([]).shape == (0, embedder.dim)
    assert forward.dtype == np.float32


def test_windows_are_averaged_by_their_tokens() -> None:
    model = loaded("qwen3")
    text = "abcdefghij" * 9
    split = KVEmbedder(model, EmbeddingSettings(window=100))
    rows = split.prompt.windows([text], "context", window=100)
    assert len(rows) > 1
    whole = KVEmbedder(model, EmbeddingSettings(window=None))
    ids = model.tokenizer.decode
    parts = [whole.encode([ids(row.ids[row.start : row.stop]).strip()])[0] for row in rows[:1]]
    mean = split.encode([text])[0]
    others = [split._encode_batch([row])[0].numpy() for row in rows]
    expected = sum(row.weight * vector for row, vector in zip(rows, others, strict=True)) / sum(r.weight for r in rows)
    np.testing.assert_allclose(mean, expected, atol=1e-6)
    np.testing.assert_allclose(others[0], parts[0], atol=1e-5)


@pytest.mark.parametrize("pooling", ["last", "mean", "last+mean"])
def test_pooling_reads_only_real_tokens(pooling: Any) -> None:
    model = loaded("qwen3")
    settings = EmbeddingSettings(route="off", pooling=pooling, mean_over="text", hidden_layer=1)
    embedder = KVEmbedder(model, settings)
    (row,) = embedder.prompt.windows([TEXTS[0]], "context", window=512)
    with torch.no_grad():
        states = model.hf.model(torch.tensor([row.ids]), output_hidden_states=True).hidden_states[2][0]
    parts = {"last": states[-1], "mean": states[row.start : row.stop].mean(0)}
    parts["last+mean"] = (parts["last"] + parts["mean"]) / 2
    expected = torch.nn.functional.normalize(parts[pooling], dim=0)
    np.testing.assert_allclose(embedder.encode(TEXTS)[0], expected.numpy(), atol=1e-5)


def test_the_last_layer_by_number_is_the_final_norm() -> None:
    model = loaded("qwen3")
    named = KVEmbedder(model, EmbeddingSettings(hidden_layer=3)).encode(TEXTS)
    last = KVEmbedder(model, EmbeddingSettings(hidden_layer=-1)).encode(TEXTS)
    np.testing.assert_array_equal(named, last)


def test_a_model_that_cannot_be_intercepted_is_refused_by_name_of_the_reason() -> None:
    model = loaded("qwen3")
    deaf = SimpleNamespace(
        hf=model.hf, tokenizer=model.tokenizer, device=model.device, context_limit=512, intervenes=False
    )
    with pytest.raises(UnsupportedModelError, match="AttentionInterface"):
        KVEmbedder(deaf)
    assert KVEmbedder(deaf, EmbeddingSettings(route="off")).encode(["x"]).shape == (1, 64)


def test_an_attention_that_takes_no_bias_is_refused() -> None:
    config = SimpleNamespace(
        get_text_config=lambda: loaded("qwen3").hf.config, _attn_implementation="nnm_flash_attention_2"
    )
    flash = SimpleNamespace(hf=SimpleNamespace(config=config, base_model=None), intervenes=True)
    with pytest.raises(UnsupportedModelError, match="flash_attention_2"):
        KVEmbedder(flash)  # type: ignore[arg-type]


@pytest.mark.parametrize("settings", [{"layers": (4,)}, {"layers": (-1,)}, {"hidden_layer": 4}])
def test_layers_that_do_not_exist_are_refused(settings: Any) -> None:
    with pytest.raises(InvalidInputError, match="layers 0 to 3"):
        KVEmbedder(loaded("qwen3"), EmbeddingSettings(**settings))


def test_settings_survive_json_and_refuse_what_they_do_not_know() -> None:
    settings = EmbeddingSettings(layers=(3, 1), bias=0.5, route="two-pass", hidden_layer=2)
    assert EmbeddingSettings.from_json(settings.to_json()) == settings
    assert settings.layers == (1, 3)
    with pytest.raises(InvalidInputError, match="newer"):
        EmbeddingSettings.from_json('{"bias": 1, "magic": 2}')
    with pytest.raises(InvalidInputError, match="no JSON"):
        EmbeddingSettings.from_json("{")
    with pytest.raises(InvalidInputError, match="route"):
        EmbeddingSettings(route="sideways")  # type: ignore[arg-type]


@pytest.mark.parametrize("count", [1, 2, 4, 16, 28, 61])
def test_default_layers_exist(count: int) -> None:
    layers = default_layers(count)
    assert layers
    assert all(0 <= layer < count for layer in layers)


def test_batches_keep_the_token_budget_and_every_row() -> None:
    rows = [Window(i, tuple(range(n)), 0, n) for i, n in enumerate([5, 90, 40, 40, 7, 200])]
    made = list(batches(rows, 100))
    assert sorted(row.text for batch in made for row in batch) == list(range(6))
    assert all(len(batch) == 1 or len(batch) * max(len(row.ids) for row in batch) <= 100 for batch in made)
