from __future__ import annotations

import json
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.core.storage.support import bytes_on_disk

from nnm_core.errors import EngineClosedError, InvalidInputError, StorageError, StoreMismatchError
from nnm_core.records import Memory, text_digest
from nnm_core.storage.journal import Journal
from nnm_core.storage.journal_records import Entry, Removal, StateRef, Write
from nnm_core.storage.journal_schema import decode_metadata, encode_metadata


@pytest.fixture(params=["disk", "ram"])
def journal(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Journal]:
    made = Journal(tmp_path / "journal.db" if request.param == "disk" else None, namespace="ns")
    yield made
    made.close()


def add(journal: Journal, *memories: Memory, states: tuple[StateRef, ...] = ()) -> list[Entry]:
    entries = journal.begin(memories)
    journal.commit([Write(e.point, np.ones(3, np.float32), 7, states) for e in entries])
    return entries


def test_what_is_pending_is_not_there_until_committed(journal: Journal) -> None:
    (entry,) = journal.begin([Memory("a", "text", {"k": 1})])
    assert journal.get(["a"]) == [None]
    assert journal.live_count() == 0
    assert journal.history("a") == []
    assert journal.live_points() == set()
    state = StateRef("key", "left")
    assert not journal.commit([Write(entry.point, None, 3, (state,))])
    (found,) = journal.get(["a"])
    assert found is not None
    assert found == Entry(entry.memory, entry.point, 3, states=(state,))
    assert found.memory.namespace == "ns"
    assert found.memory.digest == text_digest("text")
    assert journal.live_points() == {entry.point}
    assert journal.state_keys() == {"key"}


def test_order_and_gaps_are_kept(journal: Journal) -> None:
    entries = add(journal, *(Memory(str(i), f"t{i}") for i in range(5)))
    assert [e.memory.text if e else None for e in journal.get(["3", "x", "1", "3"])] == ["t3", None, "t1", "t3"]
    points = [entries[4].point, "no-such-point", entries[0].point]
    assert [e.memory.id if e else None for e in journal.by_points(points)] == ["4", None, "0"]


def test_a_new_version_supersedes_and_names_what_to_remove(journal: Journal) -> None:
    (first,) = add(journal, Memory("a", "one"), states=(StateRef("k1", "left"),))
    (second,) = journal.begin([Memory("a", "two")])
    assert (second.memory.version, second.memory.supersedes) == (2, 1)
    assert second.point != first.point
    removal = journal.commit([Write(second.point)])
    assert removal == Removal((first.point,), ("k1",))
    assert [e.memory.text for e in journal.history("a")] == ["one", "two"]
    assert journal.live_count() == 1
    assert journal.by_points([first.point, second.point])[0] is None
    assert journal.recover() == removal  # until told that it is done
    journal.removed(removal)
    assert journal.recover() == Removal()


def test_the_same_id_twice_in_one_batch(journal: Journal) -> None:
    one, two = journal.begin([Memory("a", "one"), Memory("a", "two")])
    removal = journal.commit([Write(one.point), Write(two.point)])
    assert removal.points == (one.point,)
    (found,) = journal.get(["a"])
    assert found is not None
    assert (found.memory.text, found.memory.version, found.memory.supersedes) == ("two", 2, 1)


def test_the_later_begin_wins_even_if_it_commits_first(journal: Journal) -> None:
    (one,), (two,) = journal.begin([Memory("a", "one")]), journal.begin([Memory("a", "two")])
    assert not journal.commit([Write(two.point)])
    assert journal.commit([Write(one.point, states=(StateRef("k", "l"),))]) == Removal((one.point,), ("k",))
    (found,) = journal.get(["a"])
    assert found is not None
    assert found.memory.text == "two"
    assert journal.live_count() == 1


def test_delete_leaves_a_history_and_forget_leaves_none(journal: Journal) -> None:
    (a, b) = add(journal, Memory("a", "one"), Memory("b", "other"))
    assert journal.delete(["a", "nobody", "a"]).points == (a.point,)
    assert journal.get(["a", "b"])[0] is None
    assert [(e.memory.version, e.tombstone) for e in journal.history("a")] == [(1, False), (2, True)]
    assert not journal.delete(["a"])
    (again,) = add(journal, Memory("a", "three"))
    assert again.memory.version == 3
    assert journal.live_count() == 2
    removal = journal.forget(["a", "nobody"])
    assert removal.erase
    assert {a.point, again.point} <= set(removal.points)
    assert b.point not in removal.points
    assert journal.history("a") == []
    assert journal.live_count() == 1


def test_deleting_holds_against_an_add_that_is_under_way(journal: Journal) -> None:
    add(journal, Memory("a", "old"))
    (pending,) = journal.begin([Memory("a", "new")])
    journal.delete(["a"])
    assert pending.point in journal.commit([Write(pending.point)]).points
    assert journal.get(["a"]) == [None]


def test_forgetting_holds_against_an_add_that_is_under_way(journal: Journal) -> None:
    (pending,) = journal.begin([Memory("a", "new")])
    assert pending.point in journal.forget(["a"]).points
    removal = journal.commit([Write(pending.point, np.ones(2, np.float32), 1, (StateRef("late", "l"),))])
    assert removal == Removal((pending.point,), ("late",))
    assert journal.history("a") == []
    assert journal.state_keys() == set()


def test_forgetting_takes_the_states_that_were_computed_behind_it(journal: Journal) -> None:
    (a, b) = add(journal, Memory("a", "first"), Memory("b", "second"))
    assert journal.add_state(b.point, StateRef("b-alone", "l0"))
    assert journal.add_state(b.point, StateRef("b-behind-a", "l1", sources=(a.point,)))
    assert [s.key for s in journal.get(["b"])[0].states] == ["b-alone", "b-behind-a"]  # type: ignore[union-attr]
    assert journal.forget(["a"]).blobs == ("b-behind-a",)
    assert journal.state_keys() == {"b-alone"}
    assert not journal.add_state(b.point, StateRef("b-behind-a", "l1", sources=(a.point,)))
    assert not journal.add_state(a.point, StateRef("a", "l"))
    journal.drop_states(["b-alone"])
    assert journal.state_keys() == set()


def test_an_id_that_comes_back_does_not_meet_its_former_self(journal: Journal) -> None:
    (old,) = add(journal, Memory("a", "one"))
    journal.forget(["a"])
    (new,) = add(journal, Memory("a", "one"))
    assert new.memory.version == 1
    assert new.point != old.point
    assert set(journal.recover().points) == {old.point}


def test_abort_and_recover_drop_what_is_pending(journal: Journal) -> None:
    (live,) = add(journal, Memory("a", "one"))
    (one, two) = journal.begin([Memory("b", "b"), Memory("a", "two")])
    assert journal.abort([one.point]).points == (one.point,)
    assert set(journal.recover().points) == {one.point, two.point}
    assert journal.live_points() == {live.point}
    (found,) = journal.get(["a"])
    assert found is not None
    assert found.memory.text == "one"


def test_recover_remembers_that_bytes_must_leave_the_disk(journal: Journal) -> None:
    add(journal, Memory("a", "one"))
    removal = journal.forget(["a"])
    assert journal.recover().erase
    journal.removed(removal)
    assert not journal.recover().erase


_json = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@given(st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), _json, max_size=5))
def test_metadata_comes_back_as_it_was(metadata: dict[str, Any]) -> None:
    back = decode_metadata(encode_metadata(metadata, "m"))
    assert json.dumps(back) == json.dumps(metadata)  # key order and types as well


def test_text_and_metadata_survive_reopening(tmp_path: Path) -> None:
    text = "z\x00 é ☃ \U0001f600 \r\n" * 3
    metadata = {"z": 1, "a": 1.0, "ü": ["☃", None, True, {"y": [], "x": {}}], "big": 2**63 - 1}
    first = Journal(tmp_path / "j.db")
    (entry,) = first.begin([Memory("id\x00 é", text, metadata, created=12.5)])
    first.commit([Write(entry.point, np.arange(6, dtype=np.float16).reshape(2, 3), 9)])
    first.set_setting("fingerprint", {"b": 1, "a": [1, None]})
    first.set_setting("whitening", b"\x00\x01")
    first.close()
    second = Journal(tmp_path / "j.db")
    (found,) = second.get(["id\x00 é"])
    assert found is not None
    assert found.memory.text == text
    assert json.dumps(found.memory.metadata) == json.dumps(metadata)
    assert found.memory.created == 12.5
    (((raw, vector),),) = list(second.iter_raw())
    assert raw == found
    assert vector is not None
    assert vector.dtype == np.float16
    assert vector.tolist() == [[0, 1, 2], [3, 4, 5]]
    assert second.get_setting("fingerprint") == {"b": 1, "a": [1, None]}
    assert second.get_setting("whitening") == b"\x00\x01"
    assert second.get_setting("nothing", 5) == 5
    second.close()


@pytest.mark.parametrize(
    ("metadata", "key"),
    [
        ({"when": {1, 2}}, "when"),
        ({"a": {"b": [1, object()]}}, r"a\.b\[1\]"),
        ({"x": float("nan")}, "x"),
        ({"x": float("inf")}, "x"),
        ({"big": 2**63}, "big"),
        ({"raw": b"bytes"}, "raw"),
        ({"s": "\ud800"}, "s"),
        ({"outer": {1: "x"}}, "outer"),
        ({"np": np.float32(1)}, "np"),
    ],
)
def test_metadata_that_is_not_json_is_refused_by_key(journal: Journal, metadata: dict[str, Any], key: str) -> None:
    with pytest.raises(InvalidInputError, match=key):
        journal.begin([Memory("good", "text"), Memory("bad", "text", metadata)])
    assert journal.recover() == Removal()  # not even the good one was begun


@pytest.mark.parametrize("memory", [Memory("", "t"), Memory(3, "t"), Memory("\ud800", "t")])  # type: ignore[arg-type]
def test_unusable_ids_are_refused(journal: Journal, memory: Memory) -> None:
    with pytest.raises(InvalidInputError):
        journal.begin([memory])


def test_lone_surrogates_in_text_are_refused(journal: Journal) -> None:
    with pytest.raises(InvalidInputError):
        journal.begin([Memory("a", "half \ud800", digest="given")])
    with pytest.raises(InvalidInputError):
        journal.commit([Write(journal.begin([Memory("a", "t")])[0].point, np.ones(2, np.float64))])


def test_streams_give_every_live_memory_once_while_others_write(journal: Journal) -> None:
    add(journal, *(Memory(str(i), f"text {i}") for i in range(25)))
    journal.delete(["7"])
    seen = []
    for number, batch in enumerate(journal.iter_live(batch=4)):
        assert len(batch) <= 4
        seen += [entry.memory.id for entry in batch]
        if number == 0:
            add(journal, Memory("0", "changed"))
            journal.delete(["20"])
    assert seen == [str(i) for i in range(25) if i not in (7, 20)] + ["0"]
    with pytest.raises(InvalidInputError):
        list(journal.iter_live(batch=0))


def test_two_threads_add_at_once(journal: Journal) -> None:
    failures: list[BaseException] = []

    def work(name: int) -> None:
        try:
            for i in range(30):
                add(journal, Memory(f"own-{name}-{i}", "text"), Memory("shared", f"{name}-{i}"))
        except BaseException as error:
            failures.append(error)
            raise

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert journal.live_count() == 4 * 30 + 1
    history = journal.history("shared")
    assert [e.memory.version for e in history] == list(range(1, 121))
    assert journal.get(["shared"])[0] == history[-1]


def test_forgotten_text_is_in_no_file(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.db")
    for round_ in range(3):
        add(journal, Memory("secret-id", f"SECRET-TEXT {round_} " * 500, {"note": "SECRET-META"}))
        add(journal, *(Memory(f"other {round_} {i}", "kept " * 100) for i in range(20)))
    journal.begin([Memory("secret-id", "SECRET-TEXT pending")])
    assert bytes_on_disk(tmp_path, "SECRET-TEXT")
    journal.forget(["secret-id"])
    for secret in ("SECRET-TEXT", "SECRET-META", "secret-id"):
        assert bytes_on_disk(tmp_path, secret) == []  # while it is open
    journal.close()
    assert bytes_on_disk(tmp_path, "SECRET") == []
    assert bytes_on_disk(tmp_path, "kept")


def test_files_are_private(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "ns" / "journal.db")
    add(journal, Memory("a", "text"))
    assert stat.S_IMODE((tmp_path / "ns").stat().st_mode) == 0o700
    for path in (tmp_path / "ns").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    journal.close()


def test_a_damaged_file_is_a_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    path.write_bytes(b"this is not a database at all, but some text" * 100)
    with pytest.raises(StorageError, match="damaged"):
        Journal(path)


def test_damage_inside_is_a_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    journal = Journal(path)
    add(journal, *(Memory(str(i), "text " * 500) for i in range(50)))
    journal.close()
    raw = bytearray(path.read_bytes())
    raw[4096:] = b"\xff" * (len(raw) - 4096)
    path.write_bytes(raw)
    damaged = Journal(path)
    with pytest.raises(StorageError, match="damaged"):
        list(damaged.iter_live())
    damaged.close()


def test_somebody_elses_database_is_left_alone(tmp_path: Path) -> None:
    import sqlite3

    path = tmp_path / "other.db"
    other = sqlite3.connect(path)
    other.execute("CREATE TABLE theirs (x)")
    other.commit()
    other.close()
    before = path.read_bytes()
    with pytest.raises(StorageError, match="not a journal"):
        Journal(path)
    assert path.read_bytes()[100:] == before[100:]


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    import sqlite3

    Journal(tmp_path / "j.db").close()
    raw = sqlite3.connect(tmp_path / "j.db")
    raw.execute("PRAGMA user_version = 99")
    raw.close()
    with pytest.raises(StoreMismatchError, match="99"):
        Journal(tmp_path / "j.db")


def test_use_after_close(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j.db")
    journal.close()
    journal.close()
    with pytest.raises(EngineClosedError):
        journal.get(["a"])
