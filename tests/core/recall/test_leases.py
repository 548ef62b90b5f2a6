"""Only what was just recalled is looked for, and found although a chain has re-wrapped it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from nnm_core.recall import leases
from nnm_core.recall.leases import LeaseBook
from nnm_core.records import Memory

RED = Memory("red", "the bins are red")
KEY = Memory("key", "The key hangs\n\n  behind the door.")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    fake = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(leases, "time", SimpleNamespace(monotonic=lambda: fake.now))
    return fake


def book(*memories: Memory, **settings: float) -> LeaseBook:
    made = LeaseBook(**settings)
    made.take(memories)
    return made


def test_the_text_is_cut_at_the_memories() -> None:
    found = book(RED, KEY).find(f"Context: {RED.text}\n{KEY.text} Who?")
    assert found == ("Context: ", RED, "\n", KEY, " Who?")


@pytest.mark.parametrize(
    "text",
    [
        "The key hangs behind the door.",
        "The  key\thangs\nbehind\u00a0the\r\ndoor.",
        "The key hangs\n\n  behind the door.",
        "The\u2003key hangs behind\u3000the door.",
    ],
)
def test_white_space_does_not_matter(text: str) -> None:
    assert book(KEY).find(text) == (KEY,)


@pytest.mark.parametrize("text", ["The key hangs behind the door", "the key hangs behind the door.", "Thekey", ""])
def test_anything_else_does(text: str) -> None:
    assert book(KEY).find(text) == ((text,) if text else ())


def test_patterns_of_regular_expressions_are_text() -> None:
    odd = Memory("odd", r"a.b (c|d)* [e] \d $1^ {2}")
    assert book(odd).find(f"x {odd.text} y axb") == ("x ", odd, " y axb")


def test_a_memory_may_stand_there_more_than_once() -> None:
    assert book(RED).find(f"{RED.text}, {RED.text}") == (RED, ", ", RED)


@pytest.mark.parametrize("text", ["bred", "reddish", "infrared", "red1", "red_", "ared"])
def test_not_inside_of_other_words(text: str) -> None:
    assert book(Memory("one", "red")).find(text) == (text,)


@pytest.mark.parametrize("text", ["(red)", "red.", "-red-", "red"])
def test_but_between_signs(text: str) -> None:
    assert any(isinstance(part, Memory) for part in book(Memory("one", "red")).find(text))


def test_other_scripts_and_signs_at_the_ends() -> None:
    for text in ("«Ключ за дверью»", "鍵はドアの後ろ", "🔑 behind 🚪", "naïve café"):
        memory = Memory("m", text)
        assert book(memory).find(f"a {text} b") == ("a ", memory, " b")


def test_the_longer_of_two_that_overlap() -> None:
    short, long = Memory("short", "one two"), Memory("long", "two three four")
    for order in ((short, long), (long, short)):
        assert book(*order).find("one two three four") == ("one ", long)
    inner, outer = Memory("inner", "two three"), Memory("outer", "one two three four")
    assert book(inner, outer).find("one two three four. two three") == (outer, ". ", inner)


def test_a_chain_of_overlaps_keeps_as_much_as_fits() -> None:
    memories = [Memory("a", "one two"), Memory("b", "two three three"), Memory("c", "three four")]
    assert book(*memories).find("one two three three four") == ("one ", memories[1], " four")


def test_only_leased_memories_are_found() -> None:
    """Else a prompt could ask the store what it holds."""
    assert book(RED).find(KEY.text) == (KEY.text,)


def test_scopes_are_apart() -> None:
    made = LeaseBook()
    made.take([RED], scope="one")
    assert made.find(RED.text, scope="one") == (RED,)
    assert made.find(RED.text, scope="two") == made.find(RED.text) == (RED.text,)


def test_leases_end(clock: SimpleNamespace) -> None:
    made = book(RED, ttl=60)
    clock.now += 59
    assert made.find(RED.text) == (RED,)
    clock.now += 2
    assert made.find(RED.text) == (RED.text,)


def test_taking_again_renews(clock: SimpleNamespace) -> None:
    made = book(RED, ttl=60)
    clock.now += 50
    made.take([RED])
    clock.now += 50
    assert made.find(RED.text) == (RED,)


def test_the_oldest_goes_when_there_are_too_many() -> None:
    memories = [Memory(str(n), f"number {n} end") for n in range(4)]
    made = book(*memories[:3], limit=3)
    made.take([memories[0]])  # now the newest
    made.take([memories[3]])
    assert [made.find(m.text) == (m,) for m in memories] == [True, False, True, True]


def test_a_newer_version_replaces_the_older() -> None:
    newer = Memory("red", "the bins are blue", version=2)
    made = book(RED)
    made.take([newer])
    assert made.find(RED.text) == (RED.text,)
    assert made.find(newer.text) == (newer,)


def test_dropped_leases_end_in_all_scopes() -> None:
    made = book(RED, KEY)
    made.take([RED], scope="other")
    made.drop(["red", "unknown"])
    assert made.find(RED.text) == made.find(RED.text, scope="other") == (RED.text,)
    assert made.find(KEY.text) == (KEY,)


def test_memories_without_words_are_never_leased() -> None:
    blank = Memory("blank", " \n\t ")
    assert book(blank).find("a \n\t b", also=[blank]) == ("a \n\t b",)


def test_memories_given_beside_the_leases_take_none() -> None:
    made = LeaseBook()
    assert made.find(f"see {RED.text}", also=[RED]) == ("see ", RED)
    assert made.find(RED.text) == (RED.text,)


def test_what_was_recalled_and_is_missing_is_told_once() -> None:
    made = book(RED, KEY)
    assert made.settle([RED]) == (KEY,)
    assert made.settle([]) == ()
    assert made.find(KEY.text) == (KEY,)


def test_threads() -> None:
    made = LeaseBook(limit=50)
    memories = [Memory(str(n), f"number {n} end") for n in range(200)]

    def work(memory: Memory) -> bool:
        made.take([memory], scope=memory.id)
        made.find(memory.text, scope=memory.id)
        made.drop([memory.id])
        return made.find(memory.text, scope=memory.id) == (memory.text,)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, memories))


def test_white_space_may_be_written_as_in_strings_of_json() -> None:
    book = LeaseBook()
    memory = Memory(id="m", text="Maria leads\nthe project.")
    book.take([memory])
    parts = book.find(repr(["room: 1\n\nMaria leads\nthe project.\nMore"]))
    assert parts == ("['room: 1\\n\\n", memory, "\\nMore']")
    assert len(book.find("nMaria leads the project.")) == 1
