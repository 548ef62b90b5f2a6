"""Killed in the middle of `add`, many times, at random moments: nothing that was returned is lost."""

from __future__ import annotations

import multiprocessing
import random
import time
from pathlib import Path

import pytest
from tests.core.tiny import tiny_reader

from nnm_core import NNM

ROUNDS = 15
# Processes are forked from one that has only imported things: a round costs no start of the libraries.
FORKS = multiprocessing.get_context("forkserver")


def keep_adding(path: Path, log: Path) -> None:
    """Add facts for ever; each id is logged once `add` has returned it."""
    with NNM.open(tiny_reader(), path, system=None) as nnm, log.open("a", buffering=1) as returned:
        known = nnm.stats()["memories"]
        returned.write("ready\n")
        for batch in range(10_000):
            numbers = range(known + 4 * batch, known + 4 * batch + 4)
            texts = [f"Fact {n}: locker {n} holds item {n * 17}." for n in numbers]
            for memory in nnm.add(texts, ids=[f"fact-{n}" for n in numbers]):
                returned.write(f"{memory.id}\n")
            nnm.add(f"Status number {batch} of round {known}.", ids="status")


@pytest.mark.skipif("forkserver" not in multiprocessing.get_all_start_methods(), reason="needs POSIX processes")
def test_sigkill_during_add_loses_nothing_that_was_returned(tmp_path: Path) -> None:
    FORKS.set_forkserver_preload(["nnm_core.engine", "tests.core.tiny"])
    generator = random.Random(7)
    log = tmp_path / "returned"
    for _ in range(ROUNDS):
        _kill_a_writer(tmp_path / "memory", log, generator.uniform(0.0, 0.5))
        returned = {line for line in log.read_text().splitlines() if line != "ready"}
        with NNM.open(tiny_reader(), tmp_path / "memory", system=None) as nnm:
            # Every returned memory is there, whole: record, vectors and state; and nothing that is not one.
            found = nnm.get(sorted(returned))
            assert [memory.id for memory in found] == sorted(returned)
            assert set(nnm._collection.index.ids()) == nnm._collection.journal.live_points()
            assert nnm._collection.blobs.keys() == nnm._collection.journal.state_keys()
            for memory in generator.sample(found, min(2, len(found))):
                assert nnm.search(memory.text, k=1)[0].memory.id == memory.id
                answer = nnm.answer("Which item?", memories=[memory], max_tokens=1)
                assert answer.receipt.memories == {memory.id: "injected"}
    assert len(returned) > ROUNDS, "the writers never got going; the test proves nothing"


def _kill_a_writer(path: Path, log: Path, delay: float) -> None:
    """SIGKILL a writer `delay` seconds after it was ready; one that dies by itself is a failure."""
    ready = _count(log)
    writer = FORKS.Process(target=keep_adding, args=(path, log))
    writer.start()
    deadline = time.monotonic() + 120
    while _count(log) == ready:
        assert writer.is_alive(), "the writer could not open the store"
        assert time.monotonic() < deadline, "the writer hangs"
        time.sleep(0.01)
    time.sleep(delay)
    assert writer.is_alive(), "the writer died by itself"
    writer.kill()
    writer.join()


def _count(log: Path) -> int:
    return log.read_text().count("ready") if log.exists() else 0
