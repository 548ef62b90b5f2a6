"""The planner decides by what was measured; here the measurements are given."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from tests.core.families import loaded
from tests.core.tiny import tiny_reader

from nnm_core import NNM, ContextOverflowError, InvalidInputError
from nnm_core.cli.doctor import planning_check
from nnm_core.evaluation.answers import f1
from nnm_core.injection.compose import AUTO_BOUND
from nnm_core.injection.costs import Costs, Curve, keep_costs, load_costs, measure_costs
from nnm_core.injection.planner import Planner, Quality

TEXTS = [
    "The bins are collected on Tuesday. The lamps in the north corridor are switched off at nine in the evening.",
    "The ferry leaves at six. Tickets for the island are sold in the small house beside the pier until noon.",
    "The library opens at ten. Books that are returned late cost ten cents a day and are put into the grey box.",
]
SHORT = "Keys: box."


def costs(load: float = 0.010) -> Costs:
    """Reading takes 0.1 ms a token, loading always the same."""
    flat = Curve(((1, load), (1000, load)))
    return Costs(
        Curve(((0, 0.0), (1000, 0.1))),
        {"native ram": flat, "native disk": flat, "int8 ram": flat},
        {"concatenate": Curve(((1, load), (1000, load)))},
    )


def quality(agreement: float) -> Quality:
    return Quality(agreement, 0.1, 0.8, 1.0, 4, 96, "composer")


def test_curves_run_through_their_points_and_on() -> None:
    curve = Curve(((10, 1.0), (20, 3.0), (40, 4.0)))
    assert [curve(n) for n in (10, 15, 20, 30, 40, 60)] == [1.0, 2.0, 3.0, 3.5, 4.0, 5.0]
    assert curve(0) == 0.0  # never negative
    assert Curve(((10, 2.0),))(99) == 2.0


def test_break_even_is_where_loading_is_clearly_faster() -> None:
    assert costs().break_even(costs().load["native ram"]) == 106  # 10 ms < 95 % of n / 10 ms
    assert costs(1.0).break_even(Curve(((1, 9.0), (2, 9.0)))) is None


def test_costs_survive_their_file_and_nothing_else_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NNM_COSTS")
    model = loaded("llama")
    assert load_costs(model, tmp_path) is None
    kept = keep_costs(model, costs(), tmp_path)
    assert load_costs(model, tmp_path) == kept
    assert kept == replace(costs(), made={"file": str(next(tmp_path.iterdir()))})
    assert str(tmp_path) not in next(tmp_path.iterdir()).read_text()
    assert load_costs(loaded("qwen3"), tmp_path) is None  # measured with another model
    next(tmp_path.iterdir()).write_text('{"read": []}')
    assert load_costs(model, tmp_path) is None


def test_what_an_earlier_run_measured_is_said_and_can_be_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NNM_COSTS")
    monkeypatch.setattr("nnm_core.injection.costs.platformdirs.user_cache_dir", lambda _: str(tmp_path))
    kept = keep_costs(tiny_reader(), replace(costs(9.0), made={"date": "2026-01-02"}))
    with NNM.open(tiny_reader()) as engine:
        engine.add(SHORT, ids="short")
        receipt = engine.answer("When?", memories=["short"], max_tokens=4).receipt
        assert receipt.tier == "text"
        assert "measured here on 2026-01-02" in receipt.fallbacks[0]
        known = engine.stats()["planner"]
        assert (known["costs_file"], known["measured_on"]) == (kept.made["file"], "2026-01-02")
        assert Path(known["costs_file"]).is_file()
        shown = planning_check(load_costs(tiny_reader())).detail
        assert kept.made["file"] in shown
        assert "2026-01-02" in shown
    monkeypatch.setenv("NNM_COSTS", "off")
    with NNM.open(tiny_reader()) as engine:
        engine.add(SHORT, ids="short")
        assert engine.answer("When?", memories=["short"], max_tokens=4).receipt.tier == "exact"
        assert engine.stats()["planner"]["costs_file"] is None
        assert "NNM_COSTS=off" in planning_check(None).detail
        assert keep_costs(loaded("llama"), costs()) == costs()
        assert len(list((tmp_path / "costs").iterdir())) == 1


@pytest.mark.parametrize("name", ["qwen3", "gpt2", "bloom"])
def test_measuring_covers_codecs_places_and_composers(name: str, tmp_path: Path) -> None:
    model = loaded(name)
    said: list[str] = []
    found = measure_costs(model, lengths=(16, 48, 5000), folder=tmp_path, repeats=1, progress=said.append)
    assert said == ["16 tokens", "48 tokens"]  # 5,000 do not fit
    assert {"native ram", "native disk", "int8 ram", "tokens disk"} <= set(found.load)
    assert ("concatenate" in found.compose) == (name != "gpt2")  # its states cannot be moved
    assert all([n for n, _ in curve.points] == [16, 48] for curve in (found.read, *found.load.values()))
    assert all(seconds > 0 for curve in found.load.values() for _, seconds in curve.points)
    assert Costs.from_json(found.to_json()) == found
    assert not list(tmp_path.iterdir())
    with pytest.raises(InvalidInputError, match="No memory"):
        measure_costs(model, lengths=(5000,))


def test_short_memories_are_read_and_long_ones_loaded() -> None:
    with NNM.open(tiny_reader(), state_cache=0) as engine:
        engine.add([SHORT, TEXTS[0]], ids=["short", "long"])
        unmeasured = engine.answer("When?", memories=["short"], max_tokens=4)
        assert unmeasured.receipt.tier == "exact"
        engine.planner = replace(engine.planner, costs=costs(0.008))  # pays from 85 tokens on
        for policy in ("exact", "auto", "fast"):
            receipt = engine.answer("When?", memories=["short"], policy=policy, max_tokens=4).receipt
            assert receipt.tier == "text" and "are read in" in receipt.parts[0].reason
            assert engine.answer("When?", memories=["long"], policy=policy, max_tokens=4).receipt.tier == "exact"
        assert engine.answer("When?", memories=["short"], max_tokens=4).token_ids == unmeasured.token_ids
        strict = engine.answer("When?", memories=["short"], strict=True, max_tokens=4)
        assert strict.receipt.tier == "exact"  # reading it was refused
        assert engine.stats()["planner"]["break_even_tokens"] == 85


def test_what_is_in_ram_already_is_always_used() -> None:
    with NNM.open(tiny_reader()) as engine:
        engine.add(SHORT, ids="short")
        engine.planner = replace(engine.planner, costs=costs(9.0))
        first, second = (engine.answer("When?", memories=["short"], max_tokens=4) for _ in range(2))
        assert (first.receipt.tier, second.receipt.tier) == ("text", "exact")
        assert first.token_ids == second.token_ids


def test_a_memory_read_in_the_middle_leaves_the_next_one_exact() -> None:
    with NNM.open(tiny_reader(), codec="native") as engine:
        engine.add([TEXTS[0], SHORT, TEXTS[1]], ids=["a", "b", "c"])
        group = ["a", "b", "c"]
        for _ in range(2):  # the second time the whole chain is known
            receipt = engine.answer("When?", memories=group, max_tokens=4).receipt
        assert receipt.tier == "exact" and receipt.tokens_read < len(TEXTS[0])


def test_auto_composes_only_what_was_measured_to_be_good() -> None:
    with NNM.open(tiny_reader(), state_cache=0) as engine:
        engine.add(TEXTS, ids=["a", "b", "c"])

        def tier(**options: str) -> str:
            return engine.answer("When?", memories=["a", "b"], max_tokens=2, **options).receipt.tier

        assert tier() == "exact"  # the second one is read behind the first
        for agreement, expected in ((AUTO_BOUND - 0.01, "exact"), (AUTO_BOUND, "composed")):
            engine.planner = Planner(quality={"concatenate": quality(agreement)})
            assert tier() == expected
            assert tier(policy="exact") == "exact" and tier(policy="fast") == "composed"
        receipt = engine.answer("When?", memories=["a", "b"], max_tokens=2).receipt
        assert receipt.parts[1].expected_agreement == AUTO_BOUND


def test_auto_takes_the_fastest_of_the_good_composers() -> None:
    known = {"slow": quality(0.99), "quick": quality(0.95), "bad": quality(0.5)}
    compose = {name: Curve(((512, s),)) for name, s in (("slow", 3.0), ("quick", 2.0), ("bad", 1.0))}
    assert Planner(costs=replace(costs(), compose=compose), quality=known).automatic == "quick"
    assert Planner(quality=known).automatic == "slow"  # no times: the nearest to reading
    assert Planner(quality={"bad": quality(0.5)}).automatic is None
    assert Planner(quality={"int8": replace(quality(1.0), kind="codec")}).automatic is None


def test_a_budget_drops_the_lowest_ranked_memories() -> None:
    with NNM.open(tiny_reader()) as engine:
        engine.add(TEXTS[:2], ids=["a", "b"])
        both = engine.answer("When?", memories=["a", "b"], max_tokens=2).receipt
        used = both.tokens_injected + both.tokens_read
        assert list(engine.answer("When?", memories=["a", "b"], max_tokens=2, budget=used).receipt.memories) == [
            "a",
            "b",
        ]
        less = engine.answer("When?", memories=["a", "b"], max_tokens=2, budget=used - 1)
        assert list(less.receipt.memories) == ["a"] and "b: dropped" in less.receipt.fallbacks[0]
        with pytest.raises(ContextOverflowError, match="budget of 3"):
            engine.answer("When?", memories=["a"], max_tokens=2, budget=3)


def test_measured_costs_are_used_by_the_engine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("NNM_COSTS")
    monkeypatch.setattr("nnm_core.injection.costs.platformdirs.user_cache_dir", lambda name: str(tmp_path / name))
    model = tiny_reader()
    with NNM.open(model) as engine:
        assert engine.planner.costs is None and engine.planner.break_even == 0
        monkeypatch.setattr("nnm_core.planning.measure_costs", lambda *args, **kwargs: costs())
        measured = engine.measure()
        assert measured.read == costs().read
        assert str(tmp_path) in measured.made["file"]
    monkeypatch.setattr("nnm_core.planning.measure_costs", lambda *args, **kwargs: pytest.fail("measured twice"))
    with NNM.open(model) as engine:
        assert engine.planner.costs == measured and engine.planner.break_even == 106
        assert engine.measure() == measured


def test_calibration_tells_exact_from_approximate_and_is_kept(tmp_path: Path) -> None:
    with NNM.open(tiny_reader(), path=tmp_path) as engine:
        engine.add(TEXTS, ids=["a", "b", "c"])
        calls: list[tuple[int, int]] = []
        found = engine.calibrate(f1, count=3, progress=lambda done, total: calls.append((done, total)))
        assert calls[-1] == (6, 6)
        for name in ("native", "tokens"):
            assert found[name].agreement == 1.0 and found[name].f1 == 1.0 and found[name].kl < 1e-6
        # Random weights: other contexts give other noise, and four bits cost more than eight.
        assert found["concatenate"].agreement < 1.0 and found["concatenate"].kl > 1e-3
        assert 0.0 < found["int8"].kl < found["int4"].kl
        assert found["concatenate"].kind == "composer" and found["int4"].prompts == 3
        composed = engine.answer("When?", memories=["a", "b"], policy="fast", max_tokens=2).receipt
        assert composed.parts[1].expected_agreement == found[composed.composer].agreement
    with NNM.open(tiny_reader(), path=tmp_path) as engine:
        assert engine.planner.quality == found


def test_calibration_on_own_questions_scores_against_gold_answers() -> None:
    with NNM.open(tiny_reader()) as engine:
        engine.add(TEXTS, ids=["a", "b", "c"])
        found = engine.calibrate(
            lambda answer, golds: float("Tuesday" in golds), questions=[("When?", ["Tuesday"])], codecs=["native"]
        )
        assert found["native"].f1 == found["native"].f1_read == 1.0
        assert found["native"].prompts == 1


def test_calibration_needs_memories() -> None:
    with NNM.open(tiny_reader()) as engine:
        engine.add(SHORT)
        with pytest.raises(InvalidInputError, match="too few memories"):
            engine.calibrate(f1)
