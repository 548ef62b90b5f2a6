"""What only the embedded index has: files."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from tests.core.storage.support import DIM, TOKEN_DIM, bytes_on_disk, point, python, uid

from nnm_core.errors import IndexDamagedError, StorageError, StoreMismatchError
from nnm_core.storage import edge as edge_module
from nnm_core.storage import edge_support
from nnm_core.storage.filters import parse_filter
from nnm_core.storage.index import Point, VectorIndex, discard_index, open_index

_WRITE_AND_DIE = """
import os, signal, sys
from pathlib import Path
from nnm_core.storage.index import open_index
from tests.core.storage.support import DIM, TOKEN_DIM, point, uid
index = open_index(Path(sys.argv[1]), namespace="n", dim=DIM, token_dim=TOKEN_DIM)
for start in range(0, 60, 20):
    index.upsert([point(n, {"n": n}) for n in range(start, start + 20)])
index.delete([uid(3)])
os.kill(os.getpid(), signal.SIGKILL)
"""


def reopen(path: Path) -> VectorIndex:
    return open_index(path, namespace="n", dim=DIM, token_dim=TOKEN_DIM)


def test_what_was_written_survives_a_kill(fast_path: Path) -> None:
    child = python(_WRITE_AND_DIE, str(fast_path / "index"), stdout=subprocess.DEVNULL)
    assert child.wait() == -9
    index = reopen(fast_path / "index")
    assert set(index.ids()) == {uid(n) for n in range(60) if n != 3}
    assert len(index.search_sparse(point(5).sparse, limit=60)) > 10  # type: ignore[arg-type]  # it has one
    (best, *_) = index.search_dense(point(41).dense, limit=3)  # type: ignore[arg-type]  # it has one
    assert best.id == uid(41)
    assert index.count(parse_filter({"n": 41})) == 1
    index.close()


def test_search_is_complete_right_after_upsert_and_after_optimize(
    fast_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = reopen(fast_path / "index")
    rng = np.random.default_rng(0)
    dense = rng.standard_normal((3000, DIM)).astype(np.float32)
    for start in range(0, 3000, 1000):
        index.upsert([Point(uid(n), dense[n]) for n in range(start, start + 1000)])
    query = rng.standard_normal(DIM)
    cosine = dense @ query / np.linalg.norm(dense, axis=1)
    expected = {uid(int(n)) for n in np.argsort(-cosine)[:20]}
    assert {hit.id for hit in index.search_dense(query, limit=20)} == expected
    index.optimize()
    assert {hit.id for hit in index.search_dense(query, limit=20)} == expected
    index.upsert([Point(uid(5000), query)])
    assert index.search_dense(query, limit=1)[0].id == uid(5000)
    index.close()
    # And with the graph, which small indexes do not get.
    monkeypatch.setattr(edge_support, "EXACT_UP_TO", 100)
    graph = reopen(fast_path / "index")
    graph.optimize()
    found = {hit.id for hit in graph.search_dense(query, limit=21)}
    assert len(found & expected) >= 19
    assert uid(5000) in found
    graph.close()


def test_purged_bytes_leave_the_disk(fast_path: Path) -> None:
    path = fast_path / "index"
    index = reopen(path)
    index.upsert([point(n, {"note": f"KEPT-{n}"}) for n in range(50)])
    index.upsert([point(99, {"note": "SECRET-NOTE", "id": "SECRET-ID"})])
    assert bytes_on_disk(path, "SECRET-NOTE")
    index.optimize()
    index.delete([uid(99)])
    index.purge()
    assert bytes_on_disk(path, "SECRET") == []
    assert bytes_on_disk(path, "KEPT-7")
    assert index.count() == 50
    assert index.search_dense(point(7).dense, limit=1)[0].id == uid(7)  # type: ignore[arg-type]  # it has one
    index.upsert([point(99)])
    assert index.count() == 51
    index.close()
    assert bytes_on_disk(path, "SECRET") == []
    again = reopen(path)
    assert again.count() == 51
    again.close()


def test_clear_leaves_nothing(fast_path: Path) -> None:
    index = reopen(fast_path / "index")
    index.upsert([point(1, {"note": "SECRET"})])
    index.clear()
    assert index.count() == 0
    assert bytes_on_disk(fast_path, "SECRET") == []
    index.upsert([point(2)])
    assert list(index.ids()) == [uid(2)]
    index.close()


def test_other_dimensions_are_refused_and_nothing_is_harmed(fast_path: Path) -> None:
    path = fast_path / "index"
    index = reopen(path)
    index.upsert([point(1)])
    index.close()
    for dim, token_dim in ((DIM + 1, TOKEN_DIM), (DIM, None), (DIM, TOKEN_DIM + 1)):
        with pytest.raises(StoreMismatchError):
            open_index(path, namespace="n", dim=dim, token_dim=token_dim)
    index = reopen(path)
    assert index.count() == 1
    index.close()


def _first(path: Path, pattern: str) -> Path:
    return sorted(path.rglob(pattern))[0]


@pytest.mark.parametrize(
    "pattern", ["edge_config.json", "segment.json", "page_0.dat", "mutable_id_tracker.mappings", "chunk_0.mmap"]
)
@pytest.mark.parametrize("how", ["garbage", "truncate"])
def test_a_damaged_index_is_an_error_or_visibly_short_and_can_be_replaced(
    fast_path: Path, pattern: str, how: str
) -> None:
    path = fast_path / "index"
    index = reopen(path)
    points = [point(n, {"n": n}) for n in range(200)]
    index.upsert(points)
    index.close()
    broken = _first(path, pattern)
    raw = broken.read_bytes()
    broken.write_bytes(np.random.default_rng(0).bytes(min(len(raw), 4096)) + raw[4096:] if how == "garbage" else b"")
    try:
        damaged = reopen(path)
    except IndexDamagedError:
        pass
    else:
        # Then the ids show what is missing (`recover` compares them), or single vectors or payloads are wrong, which
        # shows when they are read: the files have no checksums.
        short = set(damaged.ids()) < {p.id for p in points}
        assert short or pattern in ("chunk_0.mmap", "page_0.dat")
        damaged.close()
    discard_index(path)
    assert not path.exists()
    fresh = reopen(path)
    fresh.upsert(points)
    assert fresh.count() == 200
    fresh.close()


def test_a_missing_folder_is_an_empty_index(fast_path: Path) -> None:
    index = reopen(fast_path / "index")
    index.upsert([point(1)])
    index.close()
    shutil.rmtree(fast_path / "index")
    index = reopen(fast_path / "index")
    assert index.count() == 0
    index.close()


def test_a_file_in_the_way_is_a_clear_error(fast_path: Path) -> None:
    (fast_path / "index").write_text("not a folder")
    with pytest.raises(StorageError):
        reopen(fast_path / "index")


def test_field_indexes_survive_clear_and_serve_later_rows(fast_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edge_module, "_FIELD_INDEX_FROM", 1)
    index = reopen(fast_path / "index")
    condition = parse_filter({"tag": "a", "deep.key": {"$in": ["x", "y"]}})
    for _ in range(2):
        index.upsert([point(n, {"tag": "ab"[n % 2], "deep": {"key": "xyz"[n % 3]}}) for n in range(12)])
        assert index.count(condition) == 4
        index.upsert([point(50, {"tag": "a", "deep": {"key": "y"}})])
        assert index.count(condition) == 5
        index.purge()
        assert index.count(condition) == 5
        index.clear()
        assert index.count(condition) == 0
    index.close()


def test_a_small_index_is_small_on_disk(tmp_path: Path) -> None:
    for _ in range(3):  # opening must not fill the sparse files
        index = reopen(tmp_path / "index")
        index.upsert([point(1)])
        index.close()
    used = sum(path.stat().st_blocks * 512 for path in tmp_path.rglob("*"))
    assert used < 2 * 2**20
