"""The lens must be the same weights, not a copy of them, and compute what the fast view computes."""

from __future__ import annotations

import logging
import sys
from functools import cache

import pytest
import torch
from tests.core.families import FAMILIES, byte_tokenizer, loaded, make, random_ids
from torch import Tensor, nn

from nnm_core.errors import ModelError
from nnm_core.model.lens import Lens, open_lens, shared_copy
from nnm_core.model.load import LoadedModel

# TransformerLens rearranges fused projections whose heads are interleaved, and keeps the result beside the original.
REARRANGED = {"bloom", "gpt-neox", "mpt"}
IDS = random_ids(30, seed=1)


@cache
def lens_of(name: str) -> Lens:
    return loaded(name).lens


def storages(module: nn.Module) -> set[int]:
    return {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}


@torch.inference_mode()
def fast(model: LoadedModel, ids: list[int]) -> tuple[Tensor, Tensor]:
    output = model.hf(input_ids=torch.tensor([ids], device=model.device), output_hidden_states=True)
    return output.logits[0], torch.stack([states[0] for states in output.hidden_states])


@pytest.mark.parametrize("name", FAMILIES)
def test_logits_and_residuals_agree_with_the_fast_view(name: str) -> None:
    lens = lens_of(name)
    logits, hidden = fast(loaded(name), IDS)
    assert (lens.logits(IDS) - logits).abs().max() <= 1e-4
    residuals = lens.residuals(IDS)
    assert residuals.shape == (5, 30, 64)
    # transformers' last hidden state is normed, the lens gives the one before the norm
    assert (residuals[:-1] - hidden[:-1]).abs().max() <= 1e-4
    norm = final_norm(loaded(name))
    assert (norm(residuals[-1]) - hidden[-1]).abs().max() <= 1e-4


def final_norm(model: LoadedModel) -> nn.Module:
    names = ("norm", "ln_f", "norm_f", "final_layer_norm", "final_layernorm", "final_norm")
    ends = tuple(f".{name}" for name in names)
    layers = ("layers.", "h.", "blocks.")
    modules = dict(model.hf.named_modules())
    return next(m for name, m in modules.items() if name.endswith(ends) and not any(f".{x}" in name for x in layers))


@pytest.mark.parametrize("name", FAMILIES)
def test_every_parameter_is_shared(name: str) -> None:
    model, lens = loaded(name), lens_of(name)
    seen = storages(lens.bridge) | storages(lens.bridge.original_model)
    assert storages(model.hf) <= seen
    if name not in REARRANGED:
        assert seen <= storages(model.hf)


def test_a_weight_changed_in_one_view_is_changed_in_the_other() -> None:
    hf = make("llama")
    lens = open_lens(hf, byte_tokenizer(), "llama")
    before = lens.logits(IDS)
    with torch.no_grad():
        hf.model.layers[1].mlp.down_proj.weight.mul_(3.0)
        after = hf(input_ids=torch.tensor([IDS])).logits[0]
    assert not torch.allclose(before, after, atol=1e-2)
    assert (lens.logits(IDS) - after).abs().max() <= 1e-4


def test_the_fast_view_is_left_as_it_was() -> None:
    model = loaded("qwen3")
    tokens, implementation = model.tokenizer.special_tokens_map, model.hf.config._attn_implementation
    before, _ = fast(model, IDS)
    open_lens(model.hf, model.tokenizer, model.name)
    assert torch.equal(fast(model, IDS)[0], before)
    assert model.hf.config._attn_implementation == implementation == "nnm_sdpa"
    assert model.tokenizer.special_tokens_map == tokens


def test_the_copy_of_the_tree_holds_none_of_our_hooks() -> None:
    model = loaded("llama")
    assert any(module._forward_pre_hooks for module in model.hf.modules())
    assert not any(module._forward_pre_hooks for module in shared_copy(model.hf).modules())


def test_control_tokens_are_ordinary_input() -> None:
    ids = [1, 0, 0, *IDS[:5], 2, *IDS[5:9]]
    assert (lens_of("llama").logits(ids) - fast(loaded("llama"), ids)[0]).abs().max() <= 1e-4


def test_a_hook_steers_and_is_gone_afterwards() -> None:
    lens = lens_of("llama")
    plain = lens.logits(IDS)
    seen: list[tuple[int, ...]] = []

    def push(residual: Tensor, *, hook: object) -> Tensor:
        seen.append(tuple(residual.shape))
        return residual + 1.0

    steered = lens.run_with_hooks(IDS, [("blocks.2.hook_resid_post", push)])
    assert seen == [(1, 30, 64)]
    assert not torch.allclose(steered, plain, atol=1e-3)
    assert torch.equal(lens.logits(IDS), plain)


def test_a_hook_that_raises_leaves_nothing_behind() -> None:
    lens = lens_of("llama")
    plain = lens.logits(IDS)

    def fail(residual: Tensor, *, hook: object) -> Tensor:
        raise RuntimeError("from the hook")

    with pytest.raises(RuntimeError, match="from the hook"):
        lens.run_with_hooks(IDS, [("blocks.0.hook_resid_post", fail)])
    assert torch.equal(lens.logits(IDS), plain)


def test_the_process_keeps_its_logging(caplog: pytest.LogCaptureFixture) -> None:
    level = logging.getLogger("transformers").level
    open_lens(make("gpt2"), byte_tokenizer(), "gpt2")  # an old name of TransformerLens's, about which it would warn
    assert logging.getLogger("transformers").level == level
    assert not caplog.records


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformer_lens.model_bridge", None)
    with pytest.raises(ModelError, match=r"not installed.*nnm-core\[lens\]"):
        open_lens(loaded("llama").hf, byte_tokenizer(), "llama")


def test_an_architecture_that_it_does_not_know() -> None:
    class Unheard(type(loaded("llama").hf)):  # type: ignore[misc]  # a class made for this test
        pass

    hf = make("llama")
    hf.__class__ = Unheard
    hf.config.model_type = "unheard"
    with pytest.raises(ModelError, match=r"cannot open Unheard.*without the lens"):
        open_lens(hf, byte_tokenizer(), "unheard")


def test_bfloat16_agrees_as_far_as_its_digits_go() -> None:
    hf = make("llama").to(torch.bfloat16)
    lens = open_lens(hf, byte_tokenizer(), "llama")
    with torch.inference_mode():
        logits = hf(input_ids=torch.tensor([IDS])).logits[0]
    assert lens.logits(IDS).dtype == torch.bfloat16
    assert (lens.logits(IDS).float() - logits.float()).abs().max() <= 0.25  # of logits up to 5, with three digits


def test_the_reader_model(mini: LoadedModel) -> None:
    ids = mini.tokenizer("The bins are collected every Tuesday, except in the week after a bank holiday.")["input_ids"]
    logits, hidden = fast(mini, ids)
    assert (mini.lens.logits(ids) - logits).abs().max() <= 1e-4
    assert (mini.lens.residuals(ids)[:-1] - hidden[:-1]).abs().max() <= 1e-3
    assert storages(mini.lens.bridge.original_model) == storages(mini.hf)
