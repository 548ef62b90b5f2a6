from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.core.storage.support import DIM, bytes_on_disk, python, sparse

from nnm_core.records import Memory
from nnm_core.storage.blobs import BlobStore, open_blobs
from nnm_core.storage.index import Point, VectorIndex, discard_index, open_index
from nnm_core.storage.journal import Journal
from nnm_core.storage.journal_records import StateRef, Write
from nnm_core.storage.lock import NamespaceLock
from nnm_core.storage.recovery import carry_out, recover

Stores = tuple[Journal, VectorIndex, BlobStore]


def open_stores(root: Path) -> Stores:
    return (
        Journal(root / "journal.db"),
        open_index(root / "index", namespace="n", dim=DIM),
        open_blobs(root / "states"),
    )


def close_stores(stores: Stores) -> None:
    for store in stores:
        store.close()


@pytest.fixture
def stores(fast_path: Path) -> Iterator[Stores]:
    made = open_stores(fast_path)
    yield made
    close_stores(made)


def add(stores: Stores, memory_id: str, text: str, *, commit: bool = True) -> str:
    """The whole write protocol for one memory; returns its point."""
    journal, index, blobs = stores
    (entry,) = journal.begin([Memory(memory_id, text, {"note": text})])
    key = f"state-{entry.point}"
    blobs.put(key, {"a": torch.ones(16)}, {"id": memory_id})
    payload = {"id": memory_id, "metadata": entry.memory.metadata}
    index.upsert([Point(entry.point, np.ones(DIM), sparse(i1=1.0), None, payload)])
    if commit:
        removal = journal.commit([Write(entry.point, np.ones(DIM, np.float32), 4, (StateRef(key, "left"),))])
        carry_out(removal, journal, index, blobs)
    return entry.point


def test_a_clean_store_needs_nothing(stores: Stores) -> None:
    add(stores, "a", "text")
    done = recover(*stores)
    assert not done.removed_points
    assert not done.removed_blobs
    assert not done.missing_points
    assert not done.missing_states


def test_everything_of_an_unfinished_add_is_removed(stores: Stores) -> None:
    journal, index, blobs = stores
    kept = add(stores, "a", "old")
    lost = add(stores, "a", "new", commit=False)
    done = recover(*stores)
    assert done.removed_points == {lost}
    assert done.removed_blobs == {f"state-{lost}"}
    assert set(index.ids()) == {kept} == journal.live_points()
    assert blobs.keys() == {f"state-{kept}"} == journal.state_keys()


def test_a_removal_that_was_interrupted_is_finished(stores: Stores) -> None:
    journal, index, blobs = stores
    add(stores, "a", "text")
    kept = add(stores, "b", "text")
    journal.delete(["a"])  # and the process dies before carry_out
    recover(*stores)
    assert set(index.ids()) == {kept}
    assert blobs.keys() == {f"state-{kept}"}
    assert not journal.recover()


def test_what_is_missing_is_named_and_can_be_rebuilt(fast_path: Path) -> None:
    stores = open_stores(fast_path)
    points = [add(stores, str(n), f"text {n}") for n in range(5)]
    close_stores(stores)
    discard_index(fast_path / "index")
    next((fast_path / "states").rglob(f"state-{points[2]}*")).unlink()
    journal, index, _ = stores = open_stores(fast_path)
    done = recover(*stores)
    assert done.missing_points == set(points)
    assert done.missing_states == {f"state-{points[2]}"}
    assert [len(e.states) if e else None for e in journal.get(["1", "2"])] == [1, 0]
    for batch in journal.iter_raw(2):
        index.upsert([Point(e.point, vector, None, None, {"id": e.memory.id}) for e, vector in batch])
    assert not recover(*stores).missing_points
    assert index.count() == 5
    close_stores(stores)


def test_forgetting_leaves_no_byte_anywhere_even_if_it_is_interrupted(fast_path: Path) -> None:
    # Payloads are compressed: what is looked for must not repeat a part of another word.
    secret_id, secret_text = "qj7-person", "Vexillum81"
    stores = open_stores(fast_path)
    add(stores, secret_id, "earlier " + secret_text)
    add(stores, secret_id, secret_text)
    add(stores, "other", "kept")
    stores[0].forget([secret_id])  # and the process dies before carry_out
    close_stores(stores)
    assert {path.parent.name for path in bytes_on_disk(fast_path, secret_text)} == {"payload_storage"}
    stores = open_stores(fast_path)
    recover(*stores)
    for secret in (secret_id, secret_text):
        assert bytes_on_disk(fast_path, secret) == []
    assert stores[0].live_count() == stores[1].count() == 1
    close_stores(stores)
    for secret in (secret_id, secret_text):
        assert bytes_on_disk(fast_path, secret) == []


# Importing takes seconds, so one process imports and then forks a writer for each round.
_WRITERS = """
import os, random, sys
from pathlib import Path
from nnm_core.storage.lock import NamespaceLock
from nnm_core.storage.recovery import carry_out, recover
from tests.core.storage.test_recovery import add, open_stores
root = Path(sys.argv[1])

def write(seed):
    rng = random.Random(seed)
    lock = NamespaceLock(root).acquire()
    stores = open_stores(root)
    recover(*stores)
    number = 0
    print("ready", os.getpid(), flush=True)
    while True:
        number += 1
        choice, name = rng.random(), f"m{rng.randrange(40)}"
        if choice < 0.8:
            text = f"{seed}-{number}"
            add(stores, name, text)
            print("add", name, text, flush=True)
        else:
            verb = "delete" if choice < 0.93 else "forget"
            print("will", verb, name, flush=True)
            carry_out(getattr(stores[0], verb)([name]), *stores)
            print(verb, name, flush=True)

for line in sys.stdin:
    pid = os.fork()
    if not pid:
        write(int(line))
    os.waitpid(pid, 0)
    print("dead", flush=True)
"""

ROUNDS = 24


def test_random_kills_lose_nothing_that_was_acknowledged(fast_path: Path) -> None:
    rng = random.Random(7)
    known: dict[str, str] = {}
    acknowledged = 0
    with python(_WRITERS, str(fast_path), stdin=subprocess.PIPE, stdout=subprocess.PIPE) as writers:
        for seed in range(ROUNDS):
            lines = one_round(writers, seed, rng.uniform(0.0, 0.2))
            unsure = note(lines, known)
            acknowledged += sum(line[0] == "add" for line in lines)
            with NamespaceLock(fast_path):  # the lock of a dead process does not block
                stores = open_stores(fast_path)
                recover(*stores)
                check(stores, known, unsure, seed)
                close_stores(stores)
        assert writers.stdin is not None
        writers.stdin.close()
    assert acknowledged > ROUNDS


def one_round(writers: subprocess.Popen[str], seed: int, seconds: float) -> list[list[str]]:
    """Start a writer, kill it after a while, and return what it had acknowledged (a line is one atomic write)."""
    assert writers.stdin is not None
    assert writers.stdout is not None
    print(seed, file=writers.stdin, flush=True)
    ready, pid = writers.stdout.readline().split()
    assert ready == "ready"
    time.sleep(seconds)
    os.kill(int(pid), signal.SIGKILL)
    lines = []
    while (line := writers.stdout.readline().split()) != ["dead"]:
        lines.append(line)
    return lines


def note(lines: list[list[str]], known: dict[str, str]) -> set[str]:
    """Bring `known` up to date; returns the ids whose deletion had begun without being acknowledged."""
    unsure: set[str] = set()
    for verb, name, *rest in lines:
        if verb == "will":
            unsure.add(rest[0])
        elif verb == "add":
            known[name] = rest[0]
        else:
            known.pop(name, None)
            unsure.discard(name)
    return unsure


def check(stores: Stores, known: dict[str, str], unsure: set[str], seed: int) -> None:
    journal, index, blobs = stores
    live = {entry.memory.id: entry for batch in journal.iter_live() for entry in batch}
    assert len(live) == journal.live_count()
    for name, text in list(known.items()):
        if name in unsure and name not in live:
            del known[name]  # the deletion had happened, its acknowledgement had not
            continue
        found = live[name].memory.text
        # One addition may be in without having been acknowledged: the last of this round.
        newer = found.startswith(f"{seed}-") and (not text.startswith(f"{seed}-") or _number(found) > _number(text))
        assert found == text or newer, (name, text, found)
    known.update({name: entry.memory.text for name, entry in live.items()})
    # Nothing is missing, nothing is left over: in the index ...
    points = {entry.point for entry in live.values()}
    assert set(index.ids()) == points
    assert {hit.id for hit in index.search_dense(np.ones(DIM), limit=1000)} == points
    assert {hit.id for hit in index.search_sparse(sparse(i1=1.0), limit=1000)} == points
    # ... and in the states.
    assert blobs.keys() == {f"state-{p}" for p in points} == journal.state_keys()
    assert all(blobs.get(f"state-{e.point}", expect={"id": e.memory.id}) for e in live.values())


def _number(text: str) -> int:
    return int(text.split("-")[1])
