"""The commands on the real engine with a tiny random model: the whole way, and input that cannot be used."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
from tests.core.cli.conftest import Nnm, Ran
from tests.core.families import make
from tests.core.storage.qdrant_http import qdrant_server
from tests.core.tiny import byte_tokenizer, tiny_reader

from nnm_core import NNM

TEXTS = {"bins": "The bins are collected on Tuesday.", "key": "The spare key hangs behind the door."}


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder, as a user would have it."""
    return saved(tmp_path_factory.mktemp("models") / "tiny-qwen3", "qwen3")


def saved(folder: Path, family: str) -> Path:
    make(family).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def cli(real_nnm: Nnm, reader: Path, monkeypatch: pytest.MonkeyPatch) -> Nnm:
    """The command line on the real engine, with two memories stored."""
    monkeypatch.setenv("NNM_MODEL", str(reader))
    monkeypatch.setenv("NNM_DEVICE", "cpu")
    Path("r.jsonl").write_text("".join(json.dumps({"id": i, "text": text}) + "\n" for i, text in TEXTS.items()))
    assert real_nnm("add", "r.jsonl").code == 0
    return real_nnm


def stored(cli: Nnm) -> dict[str, str]:
    """The texts that a search still finds."""
    value = json.loads(cli("search", "the", "-k", "9", "--json", "-").out)
    return {hit["memory"]["id"]: hit["memory"]["text"] for hit in value["hits"]}


def fails(ran: Ran, *words: str) -> None:
    assert ran.code == 1, ran.err
    assert "Traceback" not in ran.err
    for word in words:
        assert word in ran.err


def test_the_whole_way(cli: Nnm) -> None:
    assert stored(cli) == TEXTS
    asked = {}
    for mode in ("inject", "read"):
        ran = cli("ask", "Where is the key?", "-k", "1", "--mode", mode, "--max-tokens", "8", "--json", "-")
        assert ran.code == 0, ran.err
        asked[mode] = json.loads(ran.out)["answer"]
    assert asked["inject"]["token_ids"] == asked["read"]["token_ids"]
    assert asked["inject"]["receipt"]["tier"] == "exact"
    assert asked["inject"]["receipt"]["tokens_injected"] > asked["read"]["receipt"]["tokens_injected"] == 0
    assert cli("delete", "key").code == 0
    assert set(stored(cli)) == {"bins"}
    assert cli("forget", "bins", "key", "--yes").code == 0
    assert stored(cli) == {}


def test_adding_twice_changes_nothing(cli: Nnm) -> None:
    before = json.loads(cli("stats", "--json", "-").out)["stats"]
    assert cli("add", "r.jsonl").code == 0
    assert json.loads(cli("stats", "--json", "-").out)["stats"] == before


def test_a_streamed_answer_is_the_answer(cli: Nnm) -> None:
    whole, streamed = (cli("ask", "Where?", "-k", "1", "--max-tokens", "8", *more) for more in ((), ("--stream",)))
    assert streamed.out.strip() == whole.out.strip()


def test_namespaces_do_not_see_each_other(cli: Nnm) -> None:
    assert cli("add", "-", "--namespace", "other", stdin=b"The key is under the mat.").code == 0
    assert set(stored(cli)) == set(TEXTS)


def test_a_text_of_200000_tokens_is_refused_and_harms_nothing(cli: Nnm) -> None:
    Path("long.txt").write_text("word " * 40_000)
    fails(cli("add", "long.txt", "--split", "0"), "long.txt", "tokens")
    assert stored(cli) == TEXTS


def test_an_empty_file_is_refused_and_harms_nothing(cli: Nnm) -> None:
    Path("empty.txt").write_text("\n")
    fails(cli("add", "empty.txt"), "empty.txt: there is no text in it.")
    assert stored(cli) == TEXTS


def test_an_unknown_model(real_nnm: Nnm) -> None:
    fails(real_nnm("add", "-", "--model", "./no-such-model", stdin=b"text"), "no-such-model")
    assert not Path("memory").exists()


def test_a_store_of_another_model_is_refused_and_stays_usable(cli: Nnm, tmp_path: Path) -> None:
    other = saved(tmp_path / "other", "llama")
    fails(cli("search", "key", "--model", str(other)), "Open it with that model", "--rebuild")
    assert stored(cli) == TEXTS


def test_a_store_of_another_model_can_be_rebuilt(cli: Nnm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = saved(tmp_path / "other", "llama")
    assert cli("search", "key", "--model", str(other), "--rebuild").code == 0
    monkeypatch.setenv("NNM_MODEL", str(other))
    assert stored(cli) == TEXTS


def test_a_store_that_is_open_elsewhere(cli: Nnm, reader: Path) -> None:
    with NNM.open(str(reader), "memory", device="cpu"):
        fails(cli("search", "key"))
    assert stored(cli) == TEXTS


def test_a_file_in_place_of_the_folder(cli: Nnm) -> None:
    Path("file").write_text("x")
    fails(cli("add", "-", "--path", "file", stdin=b"text"), "file")
    fails(cli("add", "-", "--path", "file/below", stdin=b"text"), "file")


@pytest.mark.skipif(sys.platform != "linux", reason="needs a file system that refuses new folders to everybody")
def test_a_place_that_cannot_be_written(cli: Nnm) -> None:
    fails(cli("add", "-", "--path", "/proc/self/memory", stdin=b"text"), "/proc/self/memory")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="nothing is read-only for root")
def test_a_read_only_folder(cli: Nnm) -> None:
    Path("locked").mkdir(mode=0o500)
    fails(cli("add", "-", "--path", "locked/memory", stdin=b"text"), "locked")


def test_the_doctor_examines_the_model(cli: Nnm, reader: Path) -> None:
    ran = cli("doctor", "--json", "-")
    checks = {check["name"]: check for check in json.loads(ran.out)["checks"]}
    assert checks["self-test"]["ok"] is True
    assert checks[str(reader)]["ok"] is True
    assert (ran.code == 0) == all(check["ok"] is not False for check in checks.values())


def test_the_doctor_measures_and_calibrates(cli: Nnm, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))  # other tests must not know these costs
    monkeypatch.delenv("NNM_COSTS")
    Path("q.jsonl").write_text('{"question": "When are the bins collected?", "answers": ["Tuesday"]}\n')
    ran = cli("doctor", "--costs", "--calibrate", "--questions", "q.jsonl", "--count", "2", "--json", "-")
    report = json.loads(ran.out)
    assert {"native ram", "int4 disk"} <= set(report["costs"]["load"])
    assert set(report["costs"]["break_even_tokens"]) >= {"load native ram", "compose concatenate"}
    assert report["calibration"]["native"]["agreement"] == 1.0
    assert report["calibration"]["concatenate"]["prompts"] == 1
    assert report["planner"]["calibrated"] == sorted(report["calibration"])
    shown = cli("doctor", "--costs")
    assert "loading pays from" in shown.out  # among the checks, now that it has been measured
    assert "pays from" in shown.out and "load int8 disk" in shown.out


def test_the_doctor_says_what_is_missing(real_nnm: Nnm) -> None:
    ran = real_nnm("doctor", "--model", "./no-such-model")
    assert ran.code == 1
    assert "no-such-model" in ran.out


def test_the_tiny_reader_of_other_tests_is_the_same_model(reader: Path) -> None:
    with NNM.open(str(reader), None, device="cpu") as nnm:
        assert nnm.model.fingerprint == tiny_reader().fingerprint


def test_layers_are_shown_drawn_and_kept(cli: Nnm) -> None:
    Path("more.jsonl").write_text(
        "".join(
            json.dumps({"id": f"m{i}", "text": f"Bin {i} goes out on day {i}. It is green. Ask {i}."}) + "\n"
            for i in range(9)
        )
    )
    assert cli("add", "more.jsonl").code == 0
    ran = cli("layers", "--labels", "5", "--plot", "layers.png", "--json", "layers.json")
    assert ran.code == 0, ran.err
    assert "Chosen:" in ran.out
    assert "intrinsic dimension" in ran.out
    assert Path("layers.png").read_bytes().startswith(b"\x89PNG")
    assert list(json.loads(Path("layers.json").read_text())["arms"]) == [f"layer {i}" for i in range(4)]
    fails(cli("layers", "--plot", "layers.xyz"), "xyz", ".png")


@pytest.mark.filterwarnings("ignore:Api key is used with an insecure connection")
def test_a_qdrant_server_and_its_key(cli: Nnm, monkeypatch: pytest.MonkeyPatch) -> None:
    with qdrant_server() as server:
        server.key = "k3y"
        fails(cli("search", "the key", "--url", server.url), "401", "QDRANT_API_KEY")
        monkeypatch.setenv("QDRANT_API_KEY", "k3y")
        monkeypatch.setenv("NNM_URL", server.url)
        assert stored(cli) == TEXTS
        assert server.local.count("nnm-default").count == len(TEXTS)
        ran = cli("stats", "--json", "-")
        assert "k3y" not in ran.out + ran.err
        assert cli("forget", "key", "--yes").code == 0
        assert server.local.count("nnm-default").count == len(TEXTS) - 1
