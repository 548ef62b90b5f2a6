"""Killed in the middle of `add`, many times, at random moments: nothing that was returned is lost."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from nnm_core import NNM
from tests.core.tiny import tiny_reader

ROUNDS = 12
WRITER = """
import sys
sys.path.insert(0, sys.argv[2])
from nnm_core import NNM
from tests.core.tiny import tiny_reader
nnm = NNM.open(tiny_reader(), sys.argv[1], system=None)
known = nnm.stats()["memories"]
print("ready", flush=True)
for batch in range(1000):
    start = known + 4 * batch
    texts = [f"Fact {n}: locker {n} holds item {n * 17}." for n in range(start, start + 4)]
    for memory in nnm.add(texts, ids=[f"fact-{n}" for n in range(start, start + 4)]):
        print(memory.id, flush=True)
    nnm.add(f"Status number {batch} of round {known}.", ids="status")
"""


def test_sigkill_during_add_loses_nothing_that_was_returned(tmp_path: Path) -> None:
    root = str(Path(__file__).parents[2])
    generator = random.Random(7)
    returned: set[str] = set()
    for _ in range(ROUNDS):
        returned |= _killed_writer(tmp_path / "memory", root, generator.uniform(0.05, 0.6))
        with NNM.open(tiny_reader(), tmp_path / "memory", system=None) as nnm:
            # Every returned memory is there, whole: record, vectors and state.
            found = nnm.get(sorted(returned)) if returned else []
            assert [memory.id for memory in found] == sorted(returned)
            index = nnm._collection.index
            assert set(index.ids()) == nnm._collection.journal.live_points()
            assert nnm._collection.blobs.keys() == nnm._collection.journal.state_keys()
            for memory in generator.sample(found, min(3, len(found))):
                assert nnm.search(memory.text, k=1)[0].memory.id == memory.id
                answer = nnm.answer("Which item?", memories=[memory], max_tokens=1)
                assert answer.receipt.memories == {memory.id: "injected"}
    assert len(returned) > ROUNDS, "the writer never got going; the test proves nothing"


def _killed_writer(path: Path, root: str, delay: float) -> set[str]:
    """Ids that a writer had returned before it was killed `delay` seconds after it was ready."""
    command = [sys.executable, "-c", WRITER, str(path), root]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().strip() == "ready"
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        lines = process.stdout.read().split("\n")
    return {line for line in lines[:-1] if line}
