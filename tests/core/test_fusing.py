"""Neighbour-fused states: what they are, that only an asked-for composition uses them, and that they go with others."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tests.core.families import loaded, random_ids
from tests.core.reading import distance, read_states
from tests.core.tiny import tiny_reader

from nnm_core import NNM
from nnm_core.errors import InvalidInputError, MemoryNotFoundError
from nnm_core.model.load import LoadedModel
from nnm_core.states.capture import capture, place
from nnm_core.states.fused import capture_behind
from nnm_core.states.state import chain

TEXTS = {
    "bins": "Bins: on Tuesday.",
    "paper": "Paper: on Monday.",
    "glass": "Glass: on Friday.",
    "shop": "The shop opens at nine.",
}
LEFT, FIRST, SECOND, LAST = (random_ids(n, seed=n) for n in (10, 21, 13, 30))


@pytest.fixture(params=["qwen3", "llama", "gpt-neox"])
def nnm(request: pytest.FixtureRequest) -> Iterator[NNM]:
    with NNM.open(tiny_reader(request.param), system=None) as opened:
        opened.add(list(TEXTS.values()), ids=list(TEXTS))
        yield opened


@pytest.mark.parametrize("family", ["qwen3", "llama-yarn", "gemma3", "phi", "bloom"])
def test_a_fused_state_is_that_of_reading_behind_the_neighbours(family: str) -> None:
    model: LoadedModel = loaded(family)
    left = place(model, capture(model, [LEFT])[0], 0)
    short, long = capture_behind(model, [[LAST], [FIRST, SECOND, LAST]], left)
    assert short.left == left.name
    assert long.left == chain(chain(left.name, FIRST), SECOND)
    assert (long.start, long.token_ids) == (len(LEFT + FIRST + SECOND), tuple(LAST))
    whole = read_states(model, [*LEFT, *FIRST, *SECOND, *LAST])
    for (key, value), (read_key, read_value) in zip(place(model, long, long.start).layers, whole, strict=True):
        assert distance(key, read_key[:, long.start :]) <= 1e-4
        assert distance(value, read_value[:, long.start :]) <= 1e-4
    alone = capture(model, [LAST], left)[0]
    assert distance(long.layers[-1][1], alone.layers[-1][1]) > 1e-3, "the neighbours are felt"
    assert torch.equal(capture_behind(model, [[LAST]], left)[0].layers[-1][1], alone.layers[-1][1])
    # Beside another row the last bits differ on some processors: a pass of two rows multiplies in another order.
    assert distance(short.layers[-1][1], alone.layers[-1][1]) <= 1e-5


def test_only_a_composition_that_asks_for_them_uses_them(nnm: NNM) -> None:
    ids = ["bins", "paper", "glass"]

    def ask(**how: object) -> tuple[tuple[int, ...], list[bool], list[str]]:
        answer = nnm.answer("When is glass?", memories=ids, max_tokens=6, **how)
        parts = answer.receipt.parts
        return answer.token_ids, [part.fused for part in parts], [part.action for part in parts]

    before = [ask(policy="fast", composer="concatenate"), ask(policy="fast")]
    without = nnm.answer("When?", memories=ids, policy="fast", composer="concatenate", max_tokens=6, fused=True)
    assert not any(part.fused for part in without.receipt.parts), "there are none yet"
    assert nnm.fuse() == len(TEXTS)
    assert [ask(policy="fast", composer="concatenate"), ask(policy="fast")] == before
    reading = nnm.answer("When is glass?", memories=ids, max_tokens=6, mode="read").token_ids
    for policy in ("exact", "auto", "exact"):
        tokens, fused, actions = ask(policy=policy)
        assert tokens == reading
        assert not any(fused)
        assert "composed" not in actions
    for composer in ("concatenate", "link", None):
        answer = nnm.answer("When?", memories=ids[::-1], max_tokens=6, policy="fast", composer=composer, fused=True)
        parts = answer.receipt.parts
        assert [part.fused for part in parts] == [False, True, True], "the first one is exact without"
        assert [part.action for part in parts] == ["exact", "composed", "composed"]
        assert parts[1].expected_agreement is None
        assert answer.receipt.tier == "composed"


def test_composed_from_the_very_states(nnm: NNM) -> None:
    """The logits of a composition by hand, of the first memory's state and the second one's fused state."""
    nnm.fuse("paper", neighbours=1)
    model, prompt_format = nnm.model, nnm._format
    bins, paper = nnm.get(["bins", "paper"])
    state = nnm._collection.find_fused(paper)
    assert state is not None
    left = nnm._left_state()
    nearest = nnm.search("", 2, vector=nnm.vectors(["paper"])[0], alpha=1.0)
    neighbour = next(hit.memory for hit in nearest if hit.memory.id != "paper")
    assert state.left == chain(left.name, prompt_format.memory_ids(neighbour.text))
    expected = capture_behind(
        model, [[prompt_format.memory_ids(neighbour.text), prompt_format.memory_ids(paper.text)]], left
    )[0]
    assert distance(state.layers[-1][1], expected.layers[-1][1]) <= 1e-5
    plan = nnm.answer("Q?", memories=["bins", "paper"], policy="fast", composer="concatenate", fused=True, max_tokens=2)
    assert [part.fused for part in plan.receipt.parts] == [False, True]
    assert nnm._collection.find_fused(bins) is None, "only the one that was named has such a state"


@pytest.mark.parametrize("how", ["forget", "delete", "change"])
def test_it_goes_with_a_neighbour(tmp_path: Path, how: str) -> None:
    with NNM.open(tiny_reader(), tmp_path, system=None) as nnm:
        nnm.add(["bins bins bins.", "bins bins bin."], ids=["a", "b"])
        assert nnm.fuse(neighbours=1) == 2
        (a,) = nnm.get("a")
        assert nnm._collection.find_fused(a) is not None
        files = len(list(tmp_path.rglob("*.safetensors")))
        if how == "change":
            nnm.add("other text", ids="b")
        else:
            getattr(nnm, how)("b")
        assert nnm._collection.find_fused(a) is None
        assert nnm._collection.find_state(a) is not None, "its own state says nothing of the neighbour"
        gone = 2 if how == "change" else 3  # both fused ones, and b's own, which a new version has again
        assert len(list(tmp_path.rglob("*.safetensors"))) == files - gone
    with NNM.open(tiny_reader(), tmp_path, system=None) as again:
        assert again._collection.find_fused(again.get("a")[0]) is None


def test_made_anew_it_has_the_neighbours_of_then(tmp_path: Path) -> None:
    with NNM.open(tiny_reader(), tmp_path, system=None) as nnm:
        nnm.add(["bins bins bins.", "Something else."], ids=["a", "far"])
        nnm.fuse("a", neighbours=1)
        (a,) = nnm.get("a")
        first = nnm._collection.find_fused(a)
        nnm.add("bins bins bins!", ids="near")
        nnm.fuse("a", neighbours=1)
        second = nnm._collection.find_fused(a)
        assert first is not None
        assert second is not None
        assert first.left != second.left
        nnm.forget("far")
        assert nnm._collection.find_fused(a) is not None, "what it was made of before does not count"
        nnm.forget("near")
        assert nnm._collection.find_fused(a) is None


def test_a_title_stands_before_the_text_and_what_does_not_fit_is_left_out() -> None:
    with NNM.open(tiny_reader(), system=None) as nnm:
        own, other = "x" * 200, "y" * 200
        nnm.add([own, other], ids=["a", "other"], metadatas=[{"title": "Bins"}, None])
        assert nnm.fuse("a") == 1
        (a,) = nnm.get("a")
        state = nnm._collection.find_fused(a)
        assert state is not None
        ids = nnm._format.memory_ids
        assert state.left == chain(chain(nnm._left_state().name, ids(other)), ids("Bins"))
        nnm.forget("other")
        nnm.add("y" * 350, ids="too long")
        assert nnm.fuse("a") == 1
        state = nnm._collection.find_fused(a)
        assert state is not None
        assert state.left == chain(nnm._left_state().name, ids("Bins"))
        nnm.forget("a")
        assert nnm.fuse() == 0, "nothing stands before the only one"


def test_what_cannot_be_is_refused(nnm: NNM) -> None:
    with pytest.raises(InvalidInputError, match="fast"):
        nnm.answer("When?", fused=True)
    with pytest.raises(InvalidInputError, match="parallel"):
        nnm.answer("When?", policy="fast", composer="parallel", fused=True)
    with pytest.raises(InvalidInputError, match="neighbours"):
        nnm.fuse(neighbours=0)
    with pytest.raises(MemoryNotFoundError):
        nnm.fuse("nobody")
    with NNM.open(tiny_reader("gpt2"), system=None) as fixed, pytest.raises(InvalidInputError, match="cannot be moved"):
        fixed.fuse()


@pytest.mark.parametrize("codec", ["tokens", "residual-int8", "int8:keep=0.5"])
def test_codecs_that_compute_states_again_cannot_keep_them(codec: str) -> None:
    with NNM.open(tiny_reader(), system=None, codec=codec) as nnm, pytest.raises(InvalidInputError, match="codec"):
        nnm.fuse()


def test_another_codec_and_a_reopened_store_have_them_still(tmp_path: Path) -> None:
    with NNM.open(tiny_reader(), tmp_path, system=None) as nnm:
        nnm.add(list(TEXTS.values()), ids=list(TEXTS))
        nnm.fuse()
    with NNM.open(tiny_reader(), tmp_path, system=None, codec="int8") as nnm:
        answer = nnm.answer("When?", memories=["bins", "glass"], policy="fast", fused=True, max_tokens=2)
        assert [(part.fused, part.codec) for part in answer.receipt.parts] == [(False, "int8"), (True, "int8")]
    with NNM.open(tiny_reader(), tmp_path, system=None, codec="int4") as nnm:  # a lossy one is not converted
        answer = nnm.answer("When?", memories=["bins", "glass"], policy="fast", fused=True, max_tokens=2)
        assert [(part.fused, part.codec) for part in answer.receipt.parts] == [(False, "int4"), (False, "int4")]
