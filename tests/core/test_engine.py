"""The engine from end to end, on a tiny random model: what it keeps, finds, injects, forgets and refuses."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.core.tiny import tiny_reader

from nnm_core import (
    NNM,
    ContextOverflowError,
    EngineClosedError,
    InvalidInputError,
    MemoryNotFoundError,
    Message,
    StoreLockedError,
    StoreMismatchError,
)

TEXTS = [
    "The bins are collected on Tuesday.",
    "Maria leads the Falcon project.",
    "The spare key hangs behind the door.",
]
SYSTEM = "Be brief."


def open_store(path: Path | None, **options: object) -> NNM:
    return NNM.open(tiny_reader(), path, system=SYSTEM, **options)


@pytest.fixture(params=["ram", "disk"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[NNM]:
    with open_store(None if request.param == "ram" else tmp_path / "memory") as nnm:
        yield nnm


def test_adding_is_idempotent_and_versions_change_with_the_text(store: NNM) -> None:
    first = store.add(TEXTS, ids=["a", "b", "c"], metadatas=[{"n": 1}, {"n": 2}, None])
    again = store.add(TEXTS, ids=["a", "b", "c"], metadatas=[{"n": 1}, {"n": 2}, None])
    assert [m.version for m in again] == [1, 1, 1]
    assert [m.created for m in again] == [m.created for m in first]
    changed = store.add("The bins are collected on Friday.", ids="a")[0]
    assert (changed.version, changed.supersedes) == (2, 1)
    assert [m.text for m in store.history("a")] == [TEXTS[0], "The bins are collected on Friday."]
    assert store.stats()["memories"] == 3


def test_one_text_is_accepted_and_gets_an_id_of_its_digest(store: NNM) -> None:
    one = store.add(TEXTS[0])
    two = store.add([TEXTS[0]])
    assert len(one) == 1
    assert one[0].id == two[0].id
    assert store.get(one[0].id)[0].text == TEXTS[0]


def test_search_finds_the_words_and_explains_the_score(store: NNM) -> None:
    store.add(TEXTS, ids=["a", "b", "c"], metadatas=[{"topic": "home"}, {"topic": "work"}, {"topic": "home"}])
    hits = store.search("Who leads Falcon?", k=2)
    assert hits[0].memory.id == "b"
    assert {"sparse", "sparse_rank"} <= set(hits[0].parts)
    assert store.search("the key of Falcon", k=3, filter={"topic": "home"})[0].memory.id == "c"
    assert all(h.memory.metadata["topic"] == "home" for h in store.search("Falcon", k=3, filter={"topic": "home"}))


@pytest.mark.parametrize("memories", [["a"], ["a", "b"], ["c", "a", "b"]])
def test_injected_answers_equal_read_answers_token_for_token(store: NNM, memories: list[str]) -> None:
    store.add(TEXTS, ids=["a", "b", "c"])
    read = store.answer("Where?", memories=memories, mode="read", max_tokens=12)
    first = store.answer("Where?", memories=memories, policy="exact", max_tokens=12)
    second = store.answer("Where?", memories=memories, policy="exact", max_tokens=12)
    assert read.token_ids == first.token_ids == second.token_ids
    assert (read.receipt.tier, first.receipt.tier, second.receipt.tier) == ("text", "exact", "exact")
    total = read.receipt.tokens_read
    assert first.receipt.tokens_injected + first.receipt.tokens_read == total
    assert second.receipt.tokens_injected > 0
    assert set(second.receipt.memories.values()) == {"injected"}
    assert second.receipt.fallbacks == ()
    # The first memory is exact from ingest on; the others were read once, and say so.
    assert first.receipt.memories[memories[0]] == "injected"
    assert len(first.receipt.fallbacks) == len(memories) - 1


def test_fast_policy_composes_and_says_so(store: NNM) -> None:
    store.add(TEXTS, ids=["a", "b", "c"])
    answer = store.answer("Where?", memories=["a", "b"], policy="fast", max_tokens=4)
    assert answer.receipt.tier == "composed"
    assert set(answer.receipt.memories.values()) == {"injected"}
    # Nothing approximate may have entered the tree: an exact answer afterwards equals reading.
    exact = store.answer("Where?", memories=["a", "b"], policy="exact", max_tokens=8)
    assert exact.receipt.tier == "exact"
    assert exact.token_ids == store.answer("Where?", memories=["a", "b"], mode="read", max_tokens=8).token_ids


def test_bare_mode_sees_no_memory(store: NNM) -> None:
    store.add(TEXTS)
    answer = store.answer("Where?", mode="bare", max_tokens=2)
    assert answer.hits == ()
    assert answer.receipt.tier == "text"
    assert answer.receipt.tokens_injected == 0


def test_streamed_text_is_the_answer(store: NNM) -> None:
    store.add(TEXTS)
    chunks = list(store.stream("Where is the key?", max_tokens=10))
    answer = chunks[-1].answer
    assert answer is not None
    assert "".join(chunk.text for chunk in chunks) == answer.text
    assert sum((chunk.token_ids for chunk in chunks), ()) == answer.token_ids
    assert answer.receipt.tokens_generated == len(answer.token_ids)
    assert 0 < answer.receipt.seconds_to_first_token <= answer.receipt.seconds_total


def test_a_chat_prompt_gets_its_leased_memories_injected(store: NNM) -> None:
    store.add(TEXTS, ids=["a", "b", "c"])
    prompt = [Message("system", "You are kind."), Message("user", f"Known:\n{TEXTS[1]}\n\nWho leads?")]
    without = store.answer(prompt, max_tokens=4)
    assert without.hits == ()
    store.search("Falcon", k=1)
    first = store.answer(prompt, max_tokens=4)
    second = store.answer(prompt, max_tokens=4)
    assert [hit.memory.id for hit in first.hits] == ["b"]
    assert first.receipt.memories == {"b": "read"}
    assert second.receipt.memories == {"b": "injected"}
    assert second.receipt.tier == "exact"
    assert first.token_ids == second.token_ids
    assert store.answer(prompt, max_tokens=4, scope="other").hits == ()


def test_deleted_memories_leave_recall_and_keep_their_history(store: NNM) -> None:
    store.add(TEXTS, ids=["a", "b", "c"])
    assert store.delete(["a", "nobody"]) == 1
    assert all(hit.memory.id != "a" for hit in store.search("bins Tuesday", k=3))
    with pytest.raises(MemoryNotFoundError):
        store.get("a")
    assert [m.text for m in store.history("a")] == [TEXTS[0]]
    assert store.add(TEXTS[0], ids="a")[0].version > 1


def test_forgotten_memories_leave_nothing_behind(tmp_path: Path) -> None:
    secret = "The vault code is xylophone-8841."
    path = tmp_path / "memory"
    with open_store(path) as nnm:
        nnm.add([secret, *TEXTS], ids=["secret", "a", "b", "c"])
        nnm.answer("What is the vault code?", memories=["a", "secret", "b"], max_tokens=2)
        assert nnm.forget("secret") == 1
        assert nnm.history("secret") == []
        assert nnm.search("vault code xylophone", k=4) == [] or all(
            hit.memory.id != "secret" for hit in nnm.search("vault code xylophone", k=4)
        )
        prompt = [Message("user", secret)]
        assert nnm.answer(prompt, max_tokens=1).hits == ()
    for file in path.rglob("*"):
        if file.is_file():
            assert b"xylophone" not in file.read_bytes(), file


def test_many_memories_are_forgotten_with_one_rewrite_of_the_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "memory"
    with open_store(path) as nnm:
        nnm.add([f"Locker {i} opens with secret{i}." for i in range(24)], ids=[f"m{i}" for i in range(24)])
        nnm.add("Locker 0 opens with newsecret0.", ids="m0")  # two versions of one
        nnm.delete("m1")  # a deleted one has a history to forget
        index, rewrites = nnm._collection.index, []
        purge = type(index).purge
        monkeypatch.setattr(type(index), "purge", lambda self: (rewrites.append(1), purge(self))[1])
        assert nnm.forget([*(f"m{i}" for i in range(20)), "nobody", "m3"]) == 20
        assert len(rewrites) == 1
        assert sorted(memory.id for memory in nnm.find()) == ["m20", "m21", "m22", "m23"]
        assert nnm.search("locker secret21", k=1)[0].memory.id == "m21"
        assert nnm.history("m0") == nnm.history("m1") == []
    for file in (file for file in path.rglob("*") if file.is_file()):
        held = file.read_bytes()
        assert not [i for i in range(20) if f"secret{i}.".encode() in held], file


def test_a_reopened_store_answers_the_same(tmp_path: Path) -> None:
    with open_store(tmp_path) as nnm:
        nnm.add(TEXTS, ids=["a", "b", "c"])
        before = nnm.answer("Who leads Falcon?", k=2, max_tokens=8)
    with open_store(tmp_path) as nnm:
        after = nnm.answer("Who leads Falcon?", k=2, max_tokens=8)
        assert after.receipt.memories[after.hits[0].memory.id] == "injected"
    assert (before.token_ids, [h.memory.id for h in before.hits]) == (
        after.token_ids,
        [h.memory.id for h in after.hits],
    )


def test_a_second_writer_is_refused(tmp_path: Path) -> None:
    with open_store(tmp_path), pytest.raises(StoreLockedError, match="open for writing"):
        open_store(tmp_path)
    open_store(tmp_path).close()


def test_namespaces_see_nothing_of_each_other(tmp_path: Path) -> None:
    with open_store(tmp_path, namespace="red") as red, open_store(tmp_path, namespace="blue") as blue:
        red.add(TEXTS, ids=["a", "b", "c"])
        assert blue.search("bins Tuesday Falcon key") == []
        assert blue.stats()["memories"] == 0
        red.search("bins Tuesday", k=3)
        assert blue.answer([Message("user", TEXTS[0])], max_tokens=1).receipt.memories == {}
        with pytest.raises(MemoryNotFoundError):
            blue.answer("Where?", memories=red.get(["a"]), max_tokens=1)


def test_a_store_of_another_model_is_refused_or_read_again(tmp_path: Path) -> None:
    with open_store(tmp_path) as nnm:
        nnm.add(TEXTS, ids=["a", "b", "c"])
    with pytest.raises(StoreMismatchError, match="tiny-qwen3"):
        NNM.open(tiny_reader("llama"), tmp_path, system=SYSTEM)
    with NNM.open(tiny_reader("llama"), tmp_path, system=SYSTEM, rebuild=True) as nnm:
        assert nnm.search("Falcon", k=1)[0].memory.id == "b"
        assert nnm.answer("Where?", memories=["a"], max_tokens=2).receipt.tier == "exact"
        assert nnm.get("a")[0].version == 1
    with NNM.open(tiny_reader("llama"), tmp_path, system=SYSTEM) as nnm:
        assert nnm.answer("Where?", memories=["b"], max_tokens=2).receipt.tier == "exact"


def test_a_lost_or_damaged_state_is_read_as_text(tmp_path: Path) -> None:
    with open_store(tmp_path) as nnm:
        nnm.add(TEXTS, ids=["a", "b", "c"])
        expected = nnm.answer("Where?", memories=["a"], max_tokens=8)
        assert expected.receipt.memories == {"a": "injected"}
    for file in tmp_path.rglob("*.safetensors"):
        data = bytearray(file.read_bytes())
        data[-5] ^= 0xFF
        file.write_bytes(bytes(data))
    with open_store(tmp_path) as nnm:
        answer = nnm.answer("Where?", memories=["a"], max_tokens=8)
    assert answer.receipt.memories == {"a": "read"}
    assert answer.receipt.tier == "text"
    assert answer.receipt.fallbacks
    assert answer.token_ids == expected.token_ids


def test_a_lost_index_is_built_again_without_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    with open_store(tmp_path) as nnm:
        nnm.add(TEXTS, ids=["a", "b", "c"])
        before = [(h.memory.id, round(h.score, 5)) for h in nnm.search("the bins and the key", k=3)]
    for folder in tmp_path.rglob("index"):
        shutil.rmtree(folder)
    with open_store(tmp_path) as nnm:
        assert [(h.memory.id, round(h.score, 5)) for h in nnm.search("the bins and the key", k=3)] == before


@pytest.mark.parametrize(
    ("texts", "options", "match"),
    [
        ([""], {}, "empty"),
        (["  \n"], {}, "empty"),
        ([TEXTS[0], 3], {}, "not a string"),
        ([TEXTS[0]], {"ids": ["a", "b"]}, "1 texts but 2 ids"),
        ([TEXTS[0], TEXTS[1]], {"ids": ["a", "a"]}, "two different texts"),
        ([TEXTS[0]], {"ids": [""]}, "non-empty"),
        (["x" * 200_000], {"ids": ["long"]}, "200002 tokens"),
        ([TEXTS[0]], {"metadatas": [{"when": object()}]}, "when"),
        (["lone surrogate \ud800"], {}, "Unicode"),
    ],
)
def test_bad_input_is_named_and_harms_nothing(store: NNM, texts: list[str], options: dict, match: str) -> None:
    store.add(TEXTS[2], ids="kept")
    with pytest.raises(InvalidInputError, match=match):
        store.add([*TEXTS[:1], *texts] if "ids" not in options and "metadatas" not in options else texts, **options)
    assert store.stats()["memories"] == 1
    assert store.search("spare key", k=5)[0].memory.id == "kept"


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"mode": "write"}, "mode"),
        ({"policy": "best"}, "policy"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"temperature": -1.0}, "temperature"),
        ({"stop": [""]}, "stop"),
        ({"k": 0}, "k is 0"),
    ],
)
def test_bad_options_are_named(store: NNM, options: dict, match: str) -> None:
    store.add(TEXTS)
    with pytest.raises(InvalidInputError, match=match):
        store.answer("Where?", **options)


def test_what_does_not_fit_raises_or_drops_the_lowest_ranked(store: NNM) -> None:
    store.add(["long " * 30 + str(n) for n in range(4)], ids=[f"m{n}" for n in range(4)])
    everything = [f"m{n}" for n in range(4)]
    with pytest.raises(ContextOverflowError, match="context of 512"):
        store.answer("Where?", memories=everything, max_tokens=8)
    answer = store.answer("Where?", memories=everything, max_tokens=8, overflow="drop")
    assert [hit.memory.id for hit in answer.hits] == ["m0", "m1"]
    assert [reason.split(":")[0] for reason in answer.receipt.fallbacks if "dropped" in reason] == ["m3", "m2"]


def test_a_closed_engine_says_so(tmp_path: Path) -> None:
    nnm = open_store(tmp_path)
    nnm.close()
    nnm.close()
    with pytest.raises(EngineClosedError):
        nnm.search("anything")
    with pytest.raises(EngineClosedError):
        nnm.add("anything")


def test_a_failing_pass_leaves_the_store_as_it_was(store: NNM, monkeypatch: pytest.MonkeyPatch) -> None:
    store.add(TEXTS[0], ids="a")
    monkeypatch.setattr(type(store._collection.embedder), "encode", _fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        store.add(TEXTS[1:], ids=["b", "c"])
    monkeypatch.undo()
    assert store.stats()["memories"] == 1
    # The states had been written before the vectors failed: they are gone at once, not at the next opening.
    assert store._collection.blobs.keys() == store._collection.journal.state_keys()
    assert [m.version for m in store.add(TEXTS[1:], ids=["b", "c"])] == [1, 1]


def _fail(*args: object, **kwargs: object) -> None:
    raise RuntimeError("out of memory")


def test_whitening_is_fitted_when_there_are_documents_and_search_still_finds(store: NNM) -> None:
    store.add([f"Room {n} belongs to person number {n * 7}." for n in range(40)], ids=[f"r{n}" for n in range(40)])
    assert store.stats()["whitening_fitted_on"] == 40
    assert store.search("Who has room 31?", k=1)[0].memory.id == "r31"
    store.add([f"Desk {n} is free." for n in range(45)])
    assert store.stats()["whitening_fitted_on"] == 85
    assert store.search("Who has room 31?", k=1)[0].memory.id == "r31"


def test_states_re_rank_what_the_index_found(store: NNM) -> None:
    texts = [
        f"Room {n} belongs to person number {n * 7}. Its window looks to the {side}." for n, side in enumerate(SIDES)
    ]
    store.add(texts, ids=[f"r{n}" for n in range(len(SIDES))])
    tuned = store.tune(count=20)
    assert {"first"} <= set(tuned["weights"])
    plain = store.search("Whose window looks to the north?", k=3)
    ranked = store.search("Whose window looks to the north?", k=3, rerank=True)
    assert len(ranked) == 3
    assert {"first", "likelihood"} <= set(ranked[0].parts)
    assert [hit.score for hit in ranked] == sorted((hit.score for hit in ranked), reverse=True)
    assert plain[0].parts["sparse"] == max(hit.parts.get("sparse", 0.0) for hit in plain)
    assert store.answer("Whose window?", k=2, rerank=True, max_tokens=1).receipt.tier == "exact"


SIDES = ["north", "south", "east", "west"] * 6
