"""The residual route: the fast view and TransformerLens add the same vector and come to the same logits."""

from __future__ import annotations

import pytest
import torch
from tests.core.families import FAMILIES, loaded, random_ids
from tests.core.reading import distance, read_logits

from nnm_core import InvalidInputError
from nnm_core.injection.generate import DecodeSettings
from nnm_core.injection.steering import Steering, answer_steered, lens_logits, lens_vector, memory_vector, steered

LEFT, MEMORY, PROMPT = random_ids(5, seed=1), random_ids(12, seed=2), random_ids(9, seed=3)
# What TransformerLens opens among the small families; the fast view alone is tested on all.
LENS = ["llama", "qwen2", "qwen3", "mistral", "gemma2", "phi3", "gpt2"]


@pytest.mark.parametrize("pool", ["last", "mean"])
@pytest.mark.parametrize("name", LENS)
def test_the_lens_and_the_fast_view_agree(name: str, pool: str) -> None:
    model = loaded(name)
    for layer in (0, 2):
        vector = memory_vector(model, LEFT, MEMORY, layer=layer, pool=pool)  # type: ignore[arg-type]  # parametrised
        theirs = lens_vector(model.lens, LEFT, MEMORY, layer=layer, pool=pool)  # type: ignore[arg-type]
        assert distance(vector, theirs) <= 1e-4 * float(theirs.abs().max())
        steering = Steering(vector, layer, 0.7)
        ours = read_logits(steered(model, steering), PROMPT)
        oracle = lens_logits(model.lens, PROMPT, steering)
        assert distance(ours, oracle) <= 1e-3
        assert distance(ours, read_logits(model, PROMPT)) > 1e-2


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_is_steered_and_left_as_it_was(name: str) -> None:
    model = loaded(name)
    plain = read_logits(model, PROMPT)
    vector = memory_vector(model, LEFT, MEMORY, layer=1)
    assert torch.equal(read_logits(steered(model, Steering(vector, 1, 0.0)), PROMPT), plain)
    changed = read_logits(steered(model, Steering(vector, 1, 2.0)), PROMPT)
    assert distance(changed, plain) > 1e-3
    assert torch.equal(read_logits(model, PROMPT), plain)


def test_a_steered_answer_differs_and_no_strength_is_the_bare_answer() -> None:
    model = loaded("llama")
    vector = memory_vector(model, LEFT, MEMORY, layer=2)
    settings = DecodeSettings(8)
    bare = answer_steered(model, PROMPT, Steering(vector, 2, 0.0), settings)
    assert bare == answer_steered(model, PROMPT, Steering(torch.zeros_like(vector), 2), settings)
    assert bare != answer_steered(model, PROMPT, Steering(vector, 2, 3.0), settings)


def test_wrong_layers_and_pools_are_refused() -> None:
    model = loaded("llama")
    vector = torch.zeros(64)
    for layer in (-1, 4):
        with pytest.raises(InvalidInputError):
            memory_vector(model, LEFT, MEMORY, layer=layer)
    with pytest.raises(InvalidInputError):
        steered(model, Steering(vector, 4))
    with pytest.raises(InvalidInputError, match="pool"):
        memory_vector(model, LEFT, MEMORY, layer=1, pool="max")  # type: ignore[arg-type]  # wrong on purpose
    with pytest.raises(InvalidInputError, match="no tokens"):
        memory_vector(model, LEFT, [], layer=1)
