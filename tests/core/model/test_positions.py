"""Position families are found by measuring, and what cannot be proven is not used."""

from __future__ import annotations

import pytest
import torch
from tests.core.families import BASE, FAMILIES, byte_tokenizer, loaded, make, random_ids
from tests.core.reading import distance, read_states
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from nnm_core.errors import PositionError, UnsupportedModelError
from nnm_core.model.load import wrap_model
from nnm_core.model.positions import Positions, measure_positions, remove_deferral
from nnm_core.states.capture import capture, place

FACTORS = {"short_factor": [1.0] * 8, "long_factor": [2.0] * 8}
LONGROPE = {"rope_type": "longrope", "rope_theta": 10000.0, **FACTORS}


@pytest.mark.parametrize("name", FAMILIES)
def test_the_family_that_is_found(name: str) -> None:
    positions = loaded(name).positions
    assert positions.family == FAMILIES[name][2]
    assert positions.layers == 4
    assert (positions.note == "") == (positions.family != "fixed")


def test_measuring_again_finds_the_same() -> None:
    for name in ("llama", "smollm3", "gemma3", "gpt2", "bloom"):
        hf = make(name)
        first, second = measure_positions(hf, name), measure_positions(hf, name)
        assert (first.family, first.rotary) == (second.family, second.rotary)


def test_hooks_of_others_are_left_alone() -> None:
    hf, seen = make("llama"), []
    hf.model.layers[0].self_attn.register_forward_pre_hook(lambda *_: seen.append(1))
    measure_positions(hf, "llama")
    remove_deferral(hf)
    seen.clear()
    hf(input_ids=torch.tensor([[5, 6]]))
    assert seen == [1]
    assert sum(len(module._forward_pre_hooks) for module in hf.modules()) == 1


def test_a_model_whose_rotation_is_patched_keeps_its_states_in_place() -> None:
    """Somebody else's change of the arithmetic is noticed: the module's own function no longer gives its keys."""
    hf = make("llama")

    class Shifted(nn.Module):
        def __init__(self, linear: nn.Module) -> None:
            super().__init__()
            self.linear = linear

        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            return self.linear(hidden) + torch.arange(hidden.shape[1])[None, :, None] * 0.1

    hf.model.layers[0].self_attn.k_proj = Shifted(hf.model.layers[0].self_attn.k_proj)
    assert measure_positions(hf, "patched").family == "fixed"


def test_positions_that_hide_in_the_values_are_found() -> None:
    """A latent cache keeps the rotated part of its keys where others keep values."""
    model = loaded("deepseek-v3")
    assert model.positions.family == "fixed"
    state = capture(model, [random_ids(9, seed=1)])[0]
    assert place(model, state, 0).layers[0][1].shape != place(model, state, 0).layers[0][0].shape


def test_alibi_beside_unused_tables_is_free() -> None:
    sizes = {key: value for key, value in BASE.items() if key != "head_dim"}
    hf = AutoModelForCausalLM.from_config(AutoConfig.for_model("falcon", **sizes, alibi=True)).eval()
    assert measure_positions(hf, "falcon").family == "free"


def test_a_later_token_must_not_change_an_earlier_one() -> None:
    hf = AutoModelForCausalLM.from_config(AutoConfig.for_model("bert", **BASE)).eval()
    with pytest.raises(UnsupportedModelError, match="later token changes earlier"):
        measure_positions(hf, "bert")


def test_a_model_that_does_not_run_is_refused_by_name() -> None:
    hf = make("llama")
    hf.model.layers[2].mlp = nn.Linear(3, 3)
    with pytest.raises(UnsupportedModelError, match="broken does not run with an ordinary cache") as caught:
        measure_positions(hf, "broken")
    assert caught.value.hint


@pytest.mark.parametrize("factor", [1.0, 4.0])
def test_tables_that_change_with_the_length_have_a_limit(factor: float) -> None:
    """LongRoPE uses other frequencies beyond the length of pre-training; up to there states may move."""
    hf = make("phi3", rope_parameters=LONGROPE, original_max_position_embeddings=64)
    model = wrap_model(hf, byte_tokenizer(), name="longrope")
    assert model.positions.length_limit == 64
    ids = random_ids(20, seed=3)
    state = capture(model, [ids])[0]
    for (key, _), (fresh, _) in zip(place(model, state, 40).layers, read_states(model, ids, start=40), strict=True):
        assert distance(key, fresh) <= 1e-3
    with pytest.raises(PositionError, match="change beyond 64") as caught:
        place(model, state, 45)
    assert caught.value.hint


def test_checks_of_moves() -> None:
    Positions("fixed", 2).check_move(5, 5, 10)
    Positions("free", 2).check_move(5, 99, 10)
    Positions("rotary", 2, length_limit=20).check_move(0, 10, 10)
    with pytest.raises(PositionError):
        Positions("fixed", 2).check_move(5, 6, 10)
    with pytest.raises(PositionError):
        Positions("rotary", 2, length_limit=20).check_move(0, 11, 10)
