"""Strength and place: one is as read, nothing is nothing, and a masked layer sees no memory."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from tests.core.families import loaded, random_ids
from tests.core.tiny import tiny_reader

from nnm_core import NNM, InjectionSettings, InvalidInputError, UnsupportedModelError
from nnm_core.injection.plan import Plan, Step
from nnm_core.injection.prefill import prefill
from nnm_core.injection.settings import parse_layers
from nnm_core.injection.strength import Scaled, Span, during, scaled
from nnm_core.model.attention import intervened
from nnm_core.model.load import LoadedModel
from nnm_core.model.prompt import Segment
from nnm_core.records import Memory
from nnm_core.states.capture import capture, place

# Full attention, windows, soft-capping, sinks (eager), partial rotation, layers without positions.
FAMILIES = ["llama", "qwen3", "mistral-window", "gemma2", "gemma3", "gpt-oss", "phi", "smollm3", "gpt2"]
LEFT, MEMORY, QUESTION = random_ids(6, seed=1), random_ids(20, seed=2), random_ids(7, seed=3)
TEXTS = ["The spare key hangs behind the door.", "The bins are collected on Tuesday."]


def plan_of(model: LoadedModel, memory: list[int], *, inject: bool = True) -> Plan:
    left = place(model, capture(model, [LEFT])[0], 0)
    state = place(model, capture(model, [memory], left)[0], left.length)
    record = Memory(id="m", text="m")
    return Plan(
        (
            Step(Segment(tuple(LEFT)), 0, "l", "exact", left),
            Step(
                Segment(tuple(memory), record), len(LEFT), "m", "exact" if inject else "read", state if inject else None
            ),
            Step(Segment(tuple(QUESTION)), len(LEFT) + len(memory), "q", "read"),
        )
    )


def logits_of(model: LoadedModel, plan: Plan, settings: InjectionSettings) -> torch.Tensor:
    with during(scaled(plan, settings, model)):
        return prefill(model, plan, room=1)[1]


def layers(count: int) -> tuple[int, ...]:
    return tuple(range(count))


@pytest.mark.parametrize("by", ["attention", "value"])
@pytest.mark.parametrize("name", FAMILIES)
def test_read_and_injected_feel_the_same_strength(name: str, by: str) -> None:
    model = loaded(name)
    settings = InjectionSettings(0.3, by)  # type: ignore[arg-type]  # parametrised
    injected = logits_of(model, plan_of(model, MEMORY), settings)
    read = logits_of(model, plan_of(model, MEMORY, inject=False), settings)
    plain = logits_of(model, plan_of(model, MEMORY), InjectionSettings())
    assert float((injected - read).abs().max()) <= 1e-3
    assert float((injected - plain).abs().max()) > 1e-2


@pytest.mark.parametrize("by", ["attention", "value"])
@pytest.mark.parametrize("name", FAMILIES)
def test_at_zero_nothing_of_the_content_is_left(name: str, by: str) -> None:
    """Two memories of one length cannot be told apart; at any strength above zero they can."""
    model = loaded(name)
    one, other = plan_of(model, MEMORY), plan_of(model, random_ids(len(MEMORY), seed=9))
    gone, faint = InjectionSettings(0.0, by), InjectionSettings(0.05, by)  # type: ignore[arg-type]  # parametrised
    if by == "attention":
        assert torch.equal(logits_of(model, one, gone), logits_of(model, other, gone))
        near = logits_of(model, one, InjectionSettings(1e-9)) - logits_of(model, one, gone)
        assert float(near.abs().max()) <= 1e-2
    assert not torch.equal(logits_of(model, one, faint), logits_of(model, other, faint))


@pytest.mark.parametrize("name", ["llama", "qwen3", "smollm3"])
def test_at_zero_attention_the_model_is_bare_with_a_gap_in_its_positions(name: str) -> None:
    """The oracle: plain transformers reading left context and question, the question at its later positions."""
    model = loaded(name)
    gone = logits_of(model, plan_of(model, MEMORY), InjectionSettings(0.0))
    at = [*range(len(LEFT)), *range(len(LEFT) + len(MEMORY), len(LEFT) + len(MEMORY) + len(QUESTION))]
    with torch.inference_mode():
        bare = model.hf(input_ids=torch.tensor([[*LEFT, *QUESTION]]), position_ids=torch.tensor([at])).logits[0, -1]
    assert float((gone - bare).abs().max()) <= 1e-4


@pytest.mark.parametrize("name", FAMILIES)
def test_strength_one_through_the_seam_is_the_ordinary_pass(name: str) -> None:
    model = loaded(name)
    plan = plan_of(model, MEMORY)
    plain = prefill(model, plan, room=1)[1]
    span = (Span(len(LEFT), len(LEFT) + len(MEMORY)),)
    for settings in (InjectionSettings(), InjectionSettings(layers=layers(model.layers))):
        assert scaled(plan, settings, model) is None  # and so nothing is slower
        with during(Scaled(span, settings)):
            assert torch.equal(prefill(model, plan, room=1)[1], plain)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_memory_is_seen_in_its_layers_only(name: str) -> None:
    """Masked everywhere it is as gone as at strength zero; the first layer alone already tells memories apart."""
    model = loaded(name)
    one, other = plan_of(model, MEMORY), plan_of(model, random_ids(len(MEMORY), seed=9))
    nowhere = InjectionSettings(layers=())
    assert torch.equal(logits_of(model, one, nowhere), logits_of(model, other, nowhere))
    assert torch.equal(logits_of(model, one, nowhere), logits_of(model, one, InjectionSettings(0.0)))
    somewhere = InjectionSettings(layers=(model.layers - 1,))
    assert not torch.equal(logits_of(model, one, somewhere), logits_of(model, other, somewhere))
    two = InjectionSettings(layers=(0, 1))
    assert float((logits_of(model, one, two) - logits_of(model, one, somewhere)).abs().max()) > 1e-3


def test_values_are_scaled_linearly_in_the_last_layer() -> None:
    """In the last layer alone nothing follows but a norm: half the strength is half way between none and all."""
    model = loaded("llama")
    plan = plan_of(model, MEMORY)
    seen: dict[float, torch.Tensor] = {}
    attention = model.hf.model.layers[-1].self_attn
    hook = attention.register_forward_hook(lambda m, a, output: seen.__setitem__(now, output[0][0, -1].clone()))
    try:
        for now in (0.0, 0.5, 1.0):
            spans = (Span(len(LEFT), len(LEFT) + len(MEMORY)),)
            only = _OnlyLayer(Scaled(spans, InjectionSettings(now, "value")), model.layers - 1)
            with during(only):  # type: ignore[arg-type]  # a stand-in of the same protocol
                prefill(model, plan, room=1)
    finally:
        hook.remove()
    assert torch.allclose(seen[0.5], (seen[0.0] + seen[1.0]) / 2, atol=1e-5)
    assert not torch.allclose(seen[0.0], seen[1.0], atol=1e-3)


class _OnlyLayer:
    def __init__(self, inner: Scaled, layer: int) -> None:
        self.inner, self.layer = inner, layer

    def __call__(self, attend, module, *args, **kwargs):  # type: ignore[no-untyped-def]  # as the protocol
        if module.layer_idx == self.layer:
            return self.inner(attend, module, *args, **kwargs)
        return attend(module, *args, **kwargs)


@pytest.mark.parametrize(("text", "expected"), [("all", None), ("3", (3,)), ("1-3", (1, 2, 3)), ("0-1,5", (0, 1, 5))])
def test_layers_are_written_as_ranges(text: str, expected: tuple[int, ...] | None) -> None:
    assert parse_layers(text) == expected


@pytest.mark.parametrize("text", ["", "a", "3-1", "-2", "1-", "1,,2"])
def test_what_names_no_layers_is_refused(text: str) -> None:
    with pytest.raises(InvalidInputError, match="names no layers"):
        parse_layers(text)


def test_wrong_settings_are_refused() -> None:
    for wrong in ({"strength": -1.0}, {"strength": float("nan")}, {"by": "magic"}):
        with pytest.raises(InvalidInputError):
            InjectionSettings(**wrong)  # type: ignore[arg-type]  # wrong on purpose
    with pytest.raises(InvalidInputError, match="no layer 9"):
        InjectionSettings(layers=(9,)).check(loaded("llama"))


def test_models_whose_attention_cannot_be_intercepted_are_refused_unless_nothing_is_asked() -> None:
    model = loaded("bloom")
    assert not model.intervenes
    InjectionSettings().check(model)
    with pytest.raises(UnsupportedModelError, match="cannot be scaled"):
        InjectionSettings(0.5).check(model)


# --- through the engine -----------------------------------------------------------------------------------------


@pytest.fixture
def nnm() -> Iterator[NNM]:
    with NNM.open(tiny_reader(), system="Be brief.") as opened:
        opened.add(TEXTS, ids=["a", "b"])
        yield opened


@pytest.mark.parametrize("settings", [InjectionSettings(0.2), InjectionSettings(0.5, "value"), InjectionSettings(2.0)])
def test_injected_answers_equal_read_ones_at_every_strength(nnm: NNM, settings: InjectionSettings) -> None:
    for memories in (["a"], ["a", "b"]):
        how = {"memories": memories, "max_tokens": 8, "injection": settings}
        read = nnm.answer("Where is it?", mode="read", **how)
        first, second = (nnm.answer("Where is it?", **how) for _ in range(2))
        assert first.token_ids == second.token_ids == read.token_ids
        assert second.receipt.tier == "exact"


def test_what_an_answer_of_another_strength_leaves_behind_is_as_read(nnm: NNM) -> None:
    how = {"memories": ["a", "b"], "max_tokens": 8}
    expected = nnm.answer("Where is it?", mode="read", **how).token_ids
    nnm.answer("Where is it?", injection=InjectionSettings(0.0), **how)
    again = nnm.answer("Where is it?", **how)
    assert again.receipt.tier == "exact"
    assert again.token_ids == expected


def test_nothing_intervenes_between_the_pieces_of_a_stream(nnm: NNM) -> None:
    for _ in nnm.stream("Where is it?", memories=["a"], max_tokens=4, injection=InjectionSettings(0.5)):
        assert not intervened()


def test_strength_with_a_composer_that_computes_again_is_refused(nnm: NNM) -> None:
    class Other:
        name = "other"

        def refusal(self, model: LoadedModel) -> str:
            return ""

        def prefill(self, work: object) -> object:
            raise AssertionError("never reached")

    how = {"memories": ["a", "b"], "policy": "fast", "injection": InjectionSettings(0.5)}
    with pytest.raises(InvalidInputError, match="composer 'other'"):
        nnm.answer("Where is it?", composer=Other(), **how)
    assert nnm.answer("Where is it?", **how).receipt.tier == "composed"


def test_a_memory_without_lower_layers_is_masked_there_in_ram_and_from_disk() -> None:
    with NNM.open(tiny_reader(), system="Be brief.", codec="residual-int8:layer=2,lower=masked") as nnm:
        nnm.add(TEXTS, ids=["a", "b"])
        how = {"memories": ["a"], "max_tokens": 8}
        plain = nnm.answer("Where is it?", mode="read", **how)
        upper = nnm.answer("Where is it?", mode="read", injection=InjectionSettings(layers=(2, 3)), **how)
        first, second = (nnm.answer("Where is it?", **how) for _ in range(2))
        assert first.receipt.tier == second.receipt.tier == "compressed"
        assert first.token_ids == second.token_ids == upper.token_ids
        assert first.token_ids != plain.token_ids


@pytest.mark.parametrize("codec", ["int8:keep=0.5", "residual-int8:layer=2,lower=masked", "int8"])
def test_batches_and_scores_respect_what_states_lack(codec: str) -> None:
    with NNM.open(tiny_reader(), system="Be brief.", codec=codec) as nnm:
        nnm.add(TEXTS, ids=["a", "b"])
        how = {"memories": ["a"], "max_tokens": 6}
        alone = [nnm.answer(question, **how).token_ids for question in ("Where is it?", "When?")]
        together = nnm.answer_batch(["Where is it?", "When?"], **how)
        assert [answer.token_ids for answer in together] == alone
        likely = nnm.score("Where is it?", ["door", "on Tuesday"], memories=["a"], policy="auto")
        assert likely.receipt.tier == "compressed"
        read = nnm.score("Where is it?", ["door", "on Tuesday"], memories=["a"], mode="read")
        assert likely.log_probs != read.log_probs


def test_strength_counts_in_batches_too(nnm: NNM) -> None:
    how = {"memories": ["a", "b"], "max_tokens": 6, "injection": InjectionSettings(0.2)}
    alone = [nnm.answer(question, **how).token_ids for question in ("Where is it?", "When?")]
    assert [answer.token_ids for answer in nnm.answer_batch(["Where is it?", "When?"], **how)] == alone
