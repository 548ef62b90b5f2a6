"""The key of a Qdrant server: sent with every request, and left nowhere."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.core.families import loaded
from tests.core.storage.qdrant_http import Server, qdrant_server

from nnm_core import NNM, InvalidInputError, StorageError
from nnm_core.collection import StoreSettings

KEY = "k3y-that-nobody-may-see"
pytestmark = pytest.mark.filterwarnings("ignore:Api key is used with an insecure connection")


@pytest.fixture
def server() -> Iterator[Server]:
    with qdrant_server() as running:
        running.key = KEY
        yield running


@pytest.mark.parametrize("from_environment", [False, True])
async def test_the_key_is_sent_and_left_nowhere(
    server: Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    *,
    from_environment: bool,
) -> None:
    caplog.set_level("DEBUG")
    if from_environment:
        monkeypatch.setenv("QDRANT_API_KEY", f"{KEY}\n")
    with NNM.open(loaded("qwen3"), tmp_path, url=server.url, api_key=None if from_environment else KEY) as nnm:
        nnm.add(["The fox eats.", "The owl sleeps."], ids=["fox", "owl"])
        assert nnm.search("fox", k=1)[0].memory.id == "fox"
        assert (await nnm.asearch("owl", k=1))[0].memory.id == "owl"
        assert KEY not in repr(nnm.stats()) + repr(nnm._collection.settings)
    kept = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert kept
    assert not [path for path in kept if KEY.encode() in path.read_bytes()]
    points, _ = server.local.scroll("nnm-default", with_payload=True)
    assert len(points) == 2
    assert KEY not in repr(points)
    printed = capfd.readouterr()
    assert KEY not in printed.out + printed.err + caplog.text


@pytest.mark.parametrize("wrong", [None, "not-the-key"])
def test_a_server_that_wants_a_key_says_how_to_give_it(server: Server, wrong: str | None) -> None:
    with pytest.raises(StorageError, match="401") as caught:
        NNM.open(loaded("qwen3"), url=server.url, api_key=wrong)
    assert "QDRANT_API_KEY" in str(caught.value.hint)
    assert "not-the-key" not in str(caught.value)


def test_an_empty_key_is_none_even_where_the_environment_has_one(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QDRANT_API_KEY", KEY)
    with pytest.raises(StorageError, match="401"):
        NNM.open(loaded("qwen3"), url=server.url, api_key="")


@pytest.mark.parametrize("key", ["two\nlines", "sécret"])
def test_a_key_that_cannot_be_sent_is_refused_without_showing_it(server: Server, key: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        NNM.open(loaded("qwen3"), url=server.url, api_key=key)
    assert key not in str(caught.value)
    assert server.requests == []


def test_settings_do_not_show_it() -> None:
    assert KEY not in repr(StoreSettings(api_key=KEY))
