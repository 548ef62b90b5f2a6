"""``nnm eval gate`` from end to end, on a tiny random model: files, tables, plots, exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.core.cli.conftest import Nnm
from tests.core.evaluation.samples import locomo, write_squad
from tests.core.families import make
from tests.core.tiny import byte_tokenizer


@pytest.fixture
def reader(tmp_path: Path) -> str:
    folder = tmp_path / "tiny"
    make("qwen3", max_position_embeddings=2048).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture
def text(tmp_path: Path) -> str:
    path = tmp_path / "hay.txt"
    path.write_text("\n".join(f"This is the sentence with number {i}." for i in range(200)))
    return str(path)


def test_qa_writes_json_items_and_plot_and_keeps_what_it_read(real_nnm: Nnm, reader: str, tmp_path: Path) -> None:
    data = str(write_squad(tmp_path / "dev.json"))
    command = ("eval", "gate", "qa", "--data", data, "--model", reader, "--device", "cpu", "--retriever", "bm25")
    command += ("-k", "2", "--limit", "3", "--max-tokens", "3", "--work", "work")
    ran = real_nnm(*command, "--json", "o/qa.json", "--items", "o/qa.jsonl", "--plot", "o/qa.png")
    assert ran.code == 0, ran.err
    assert "oracle nnm = oracle rag same order" in ran.out
    assert "3 of 3" in ran.out
    report = json.loads(Path("o/qa.json").read_text())
    assert report["passed"] is True
    assert report["config"]["model"] == reader
    assert report["config"]["questions"] == 3
    assert report["config"]["retriever"] == "BM25"
    assert "eval gate qa" in report["config"]["command"] or report["config"]["command"].startswith("nnm")
    lines = [json.loads(line) for line in Path("o/qa.jsonl").read_text().splitlines()]
    assert len(lines) == 3 * len(report["arms"]) == len(report["items"])
    assert {"tokens_read", "tokens_injected", "tier"} <= set(lines[0]["receipt"])
    assert Path("o/qa.png").read_bytes().startswith(b"\x89PNG")
    again = real_nnm(*command, "--json", "o/again.json")
    assert again.code == 0, again.err
    second = json.loads(Path("o/again.json").read_text())
    assert [item["token_ids"] for item in second["items"]] == [item["token_ids"] for item in report["items"]]


@pytest.mark.parametrize(
    ("gate", "options", "arms"),
    [
        ("needle", ["--lengths", "200,400", "--cases", "2", "--depths", "2", "--pieces", "2"], 5),
        ("multi", ["--sizes", "2,3", "--cases", "1"], 5),
        ("extraction", ["--carriers", "1", "--characters", "200"], 5),
    ],
)
def test_generated_gates_draw_their_plots(
    real_nnm: Nnm, reader: str, text: str, gate: str, options: list[str], arms: int
) -> None:
    ran = real_nnm(
        *("eval", "gate", gate, "--model", reader, "--device", "cpu", "--max-tokens", "2", "--data", text),
        *("--json", "r.json", "--plot", "r.svg", *options),
    )
    assert ran.code == 0, ran.err
    report = json.loads(Path("r.json").read_text())
    assert len(report["arms"]) == arms
    assert report["gate"] == gate
    assert "<svg" in Path("r.svg").read_text()


def test_conversation_and_claims(real_nnm: Nnm, reader: str, tmp_path: Path) -> None:
    (tmp_path / "locomo.json").write_text(json.dumps(locomo()))
    common = ("--model", reader, "--device", "cpu")
    ran = real_nnm(
        *("eval", "gate", "conversation", "--data", "locomo.json", "--retriever", "bm25", "-k", "2", *common),
        *("--max-tokens", "2", "--json", "-"),
    )
    assert ran.code == 0, ran.err
    assert json.loads(ran.out)["config"]["turns"] == 4  # JSON alone on stdout
    lines = [{"claim": f"c{i}", "label": label, "evidence": f"e{i}"} for i, label in enumerate(["NEI", "SUPPORT"])]
    (tmp_path / "claims.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    ran = real_nnm("eval", "gate", "claims", "--data", "claims.jsonl", *common)
    assert ran.code == 0, ran.err
    assert "scores = rag same order scores" in ran.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["qa", "--data", "absent.json"], "no such file"),
        (["qa", "--data", "dev.json", "--retriever", "magic"], "'magic' cannot be loaded"),
        (["qa", "--data", "dev.json", "--format", "xml"], "no known format"),
        (["qa", "--data", "hub:imagenet"], "no set that can be fetched"),
        (["needle", "--data", "dev.json", "--lengths", "a"], "--lengths a"),
        (["claims", "--data", "c.jsonl", "--words", "yes,no"], "not three words"),
        (["conversation", "--data", "dev.json"], "not a list of conversations"),
        (["claims", "--data", "folder"], "corpus.jsonl"),
    ],
)
def test_mistakes_are_explained_before_a_model_is_loaded(
    nnm: Nnm, tmp_path: Path, arguments: list[str], message: str
) -> None:
    write_squad(tmp_path / "dev.json")
    (tmp_path / "c.jsonl").write_text('{"claim": "c", "label": "NEI", "evidence": "e"}')
    (tmp_path / "folder").mkdir()
    ran = nnm("eval", "gate", *arguments)
    assert ran.code == 1
    assert message in ran.err
    assert "Hint:" in ran.err
    assert "Traceback" not in ran.err


def test_a_failed_check_is_the_exit_code(
    real_nnm: Nnm, reader: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nnm_core.evaluation.gates import qa
    from nnm_core.evaluation.gates.result import Check

    monkeypatch.setattr(qa, "same_tokens", lambda *_: Check("nnm = read", False, "0 of 1"))
    ran = real_nnm(
        *("eval", "gate", "qa", "--data", str(write_squad(tmp_path / "dev.json")), "--model", reader),
        *("--device", "cpu", "--passages", "oracle", "--limit", "1", "--max-tokens", "2", "--retriever", "bm25"),
        *("--json", "r.json"),
    )
    assert ran.code == 1
    assert json.loads(Path("r.json").read_text())["passed"] is False


def test_a_calibrated_machine_injects_short_memories_all_the_same(
    real_nnm: Nnm, reader: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nnm_core.injection.planner import Planner

    command = ("eval", "gate", "multi", "--model", reader, "--device", "cpu", "--max-tokens", "2", "--sizes", "2")
    monkeypatch.setattr(Planner, "read_instead", lambda self, *_, **__: "" if self.costs is None else "too short")
    monkeypatch.setattr("nnm_core.planning.load_costs", lambda model: object())
    ran = real_nnm(*command, "--cases", "1", "--json", "r.json")
    assert ran.code == 0, ran.err
    report = json.loads(Path("r.json").read_text())
    assert report["arms"]["composed"]["tiers"] == {"composed": 2}


def test_a_memory_that_is_there_is_used_and_not_read_again(real_nnm: Nnm, reader: str, tmp_path: Path) -> None:
    from nnm_core import NNM
    from nnm_core.evaluation.datasets import load_questions

    data = write_squad(tmp_path / "dev.json")
    passages = load_questions(data).passages
    with NNM.open(reader, "store", device="cpu") as nnm:
        added = nnm.add(list(passages.values()), ids=list(passages))
    ran = real_nnm(
        *(
            "eval",
            "gate",
            "qa",
            "--data",
            str(data),
            "--model",
            reader,
            "--device",
            "cpu",
            "--store",
            "store",
            "-k",
            "1",
        ),
        *("--retriever", "bm25", "--max-tokens", "2", "--batch", "4", "--json", "r.json"),
    )
    assert ran.code == 0, ran.err
    report = json.loads(Path("r.json").read_text())
    assert report["arms"]["retrieved nnm"]["tiers"] == {"exact": 6}
    with NNM.open(reader, "store", device="cpu") as nnm:
        assert nnm.stats()["memories"] == len(passages)
        assert nnm.get(list(passages)) == added
