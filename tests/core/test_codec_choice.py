"""The codec of a namespace: what receipts say about it, what policies make of it, and what a change of it does."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from tests.core.tiny import tiny_reader

from nnm_core import NNM, InvalidInputError
from nnm_core.states.codecs import CODECS, make_codec
from nnm_core.storage.blobs import CachedBlobs

TEXT = "The spare key hangs behind the green door of the old boat house, and nobody but Maria knows about it."
OTHER = "The bins are collected on Tuesday, before the bell of the church has rung for the second time."
ASK = {"memories": ["a"], "max_tokens": 6}


def open_store(path: Path | None, codec: str | None = None, **options: object) -> NNM:
    return NNM.open(tiny_reader(), path, system="Be brief.", codec=codec, **options)


def filled(path: Path | None, codec: str | None = None) -> NNM:
    nnm = open_store(path, codec)
    nnm.add([TEXT, OTHER], ids=["a", "b"])
    return nnm


def manifests(nnm: NNM) -> set[str]:
    blobs = nnm._collection.blobs
    found = (blobs.get(key) for key in blobs.keys())  # noqa: SIM118
    return {blob.manifest["codec"] for blob in found if blob is not None}


@pytest.mark.parametrize("codec", CODECS)
def test_the_receipt_says_what_was_loaded(codec: str, tmp_path: Path) -> None:
    with filled(tmp_path / "memory", codec) as nnm:
        made = make_codec(codec)
        made.check(nnm.model)
        receipt = nnm.answer("Where?", **ASK).receipt
        (part,) = receipt.parts
        assert receipt.tier == part.tier == ("exact" if made.lossless else "compressed")
        assert (part.action, part.codec) == ("exact", codec)
        ids = 4 * part.tokens if codec == "native" else 0  # of which only keys and values are loaded
        assert part.nbytes == pytest.approx(made.bytes_per_token(nnm.model, part.tokens) * part.tokens - ids, abs=8)
        assert (
            part.recomputed == receipt.tokens_recomputed == (part.tokens if codec in ("tokens", "residual-int8") else 0)
        )
        assert part.expected_agreement == (1.0 if made.lossless else None)
        assert nnm.stats()["codec"] == codec


@pytest.mark.parametrize("codec", ["int8", "int4", "residual-int8", "tokens"])
def test_the_second_use_comes_from_ram_and_promises_no_more(codec: str, tmp_path: Path) -> None:
    with filled(tmp_path / "memory", codec) as nnm:
        first, second = (nnm.answer("Where?", **ASK) for _ in range(2))
        assert second.token_ids == first.token_ids
        assert second.receipt.tier == first.receipt.tier
        assert second.receipt.tokens_recomputed == 0
        assert second.receipt.parts[0].codec == ("native" if codec == "tokens" else codec)


def test_what_was_read_behind_a_compressed_state_is_compressed_too(tmp_path: Path) -> None:
    with filled(tmp_path / "memory", "int8") as nnm:
        both = {"memories": ["a", "b"], "max_tokens": 4}
        assert [part.tier for part in nnm.answer("Where?", **both).receipt.parts] == ["compressed", "text"]
        assert [part.tier for part in nnm.answer("Where?", **both).receipt.parts] == ["compressed", "compressed"]


def test_the_exact_policy_never_uses_a_lossy_state(tmp_path: Path) -> None:
    with filled(tmp_path / "memory", "int4") as nnm, filled(tmp_path / "plain") as plain:
        read = nnm.answer("Where?", mode="read", **ASK)
        nnm.answer("Where?", **ASK)  # leaves a lossy state in RAM
        first = nnm.answer("Where?", policy="exact", **ASK)
        second = nnm.answer("Where?", policy="exact", **ASK)
        assert first.receipt.tier == "text"
        assert second.receipt.tier == "exact"
        assert read.token_ids == first.token_ids == second.token_ids == plain.answer("Where?", **ASK).token_ids
        # Now that the exact state is in RAM, everybody gets it.
        assert nnm.answer("Where?", **ASK).receipt.tier == "exact"


def test_a_pinned_chain_is_exact_whatever_the_codec(tmp_path: Path) -> None:
    with filled(tmp_path / "memory", "int4") as nnm:
        nnm.answer("Where?", **ASK)
        nnm.pin(["a"])
        assert nnm.answer("Where?", policy="exact", **ASK).receipt.tier == "exact"


@pytest.mark.parametrize("codec", ["int8", "int4"])
def test_fast_composition_of_compressed_states(codec: str, tmp_path: Path) -> None:
    with filled(tmp_path / "memory", codec) as nnm:
        receipt = nnm.answer("Where?", memories=["a", "b"], policy="fast", max_tokens=4).receipt
        assert receipt.tier == "composed"
        assert [(part.tier, part.codec) for part in receipt.parts] == [("compressed", codec), ("composed", codec)]


def test_the_choice_stays_with_the_namespace(tmp_path: Path) -> None:
    filled(tmp_path / "memory", "int8").close()
    with open_store(tmp_path / "memory") as nnm:
        assert nnm.stats()["codec"] == "int8"
        assert nnm.answer("Where?", **ASK).receipt.tier == "compressed"
    with open_store(tmp_path / "memory", namespace="other") as nnm:
        assert nnm.stats()["codec"] == "native"


def test_codecs_have_fingerprints_of_their_own(tmp_path: Path) -> None:
    prints = set()
    for codec in CODECS:
        with open_store(None, codec) as nnm:
            prints.add(nnm.stats()["fingerprint"])
    assert len(prints) == len(CODECS)


@pytest.mark.parametrize("after", CODECS)
@pytest.mark.parametrize("before", CODECS)
def test_a_changed_codec_converts_at_first_use_and_never_answers_wrongly(
    before: str, after: str, tmp_path: Path
) -> None:
    with filled(tmp_path / "fresh", after) as nnm:
        expected = nnm.answer("Where?", **ASK)
    filled(tmp_path / "memory", before).close()
    with open_store(tmp_path / "memory", after) as nnm:
        assert manifests(nnm) == {before}
        got = nnm.answer("Where?", **ASK)
        assert got.token_ids == expected.token_ids
        assert got.receipt.tier == expected.receipt.tier
        assert got.receipt.parts[0].codec == after
        assert manifests(nnm) == {before, after}  # the other memory was not asked for
        assert nnm.answer("Where?", memories=["b"], max_tokens=4).receipt.parts[0].codec == after
        assert manifests(nnm) == {after}


def test_what_cannot_be_converted_is_read_as_text(tmp_path: Path) -> None:
    """Behind another system prompt a lossy state cannot be computed again."""
    filled(tmp_path / "memory", "int4").close()
    with NNM.open(tiny_reader(), tmp_path / "memory", system="Be long.", codec="native") as nnm:
        assert nnm.answer("Where?", policy="fast", **ASK).receipt.tier == "text"
        assert manifests(nnm) == {"int4"}


def test_a_memory_that_is_forgotten_while_its_state_is_converted_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(tmp_path / "memory", "native").close()
    with open_store(tmp_path / "memory", "int8") as nnm:
        put, forgetting = CachedBlobs.put, threading.Event()

        def late(self: CachedBlobs, *args: object) -> int:
            if not forgetting.is_set():
                forgetting.set()
                nnm.forget("a")
            return put(self, *args)  # type: ignore[arg-type]

        monkeypatch.setattr(CachedBlobs, "put", late)
        memory = nnm.get("a")[0]
        nnm._collection.find_state(memory)
        assert forgetting.is_set()
        assert len(nnm._collection.blobs.keys()) == 1


@pytest.mark.parametrize("codec", ["int8", "int4", "residual-int8", "tokens"])
@pytest.mark.parametrize("damage", ["flip", "cut"])
def test_a_damaged_compressed_state_is_read_as_text(codec: str, damage: str, tmp_path: Path) -> None:
    filled(tmp_path / "memory", codec).close()
    for file in (tmp_path / "memory").rglob("*.safetensors"):
        raw = bytearray(file.read_bytes())
        raw[-3] ^= 0xFF
        file.write_bytes(raw if damage == "flip" else raw[:-7])
    with open_store(tmp_path / "memory") as nnm:
        read = nnm.answer("Where?", mode="read", **ASK)
        got = nnm.answer("Where?", **ASK)
        assert got.receipt.tier == "text"
        assert got.token_ids == read.token_ids


def test_compressed_states_take_less_room(tmp_path: Path) -> None:
    sizes = {}
    for codec in CODECS:
        with filled(tmp_path / codec, codec) as nnm:
            sizes[codec] = nnm.stats()["bytes_states"]
    assert sizes["tokens"] < sizes["residual-int8"] < sizes["int4"] < sizes["int8"] < sizes["native"]


def test_an_unknown_codec_is_refused_and_nothing_is_changed(tmp_path: Path) -> None:
    filled(tmp_path / "memory", "int8").close()
    with pytest.raises(InvalidInputError, match="int9"):
        open_store(tmp_path / "memory", "int9")
    with open_store(tmp_path / "memory") as nnm:
        assert nnm.stats()["codec"] == "int8"


def test_compressed_states_are_re_ranked_as_well(tmp_path: Path) -> None:
    with filled(tmp_path / "memory", "int8") as nnm:
        hits = nnm.search("spare key", 2, rerank=True)
        assert {hit.memory.id for hit in hits} == {"a", "b"}
