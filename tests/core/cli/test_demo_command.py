"""``nnm demo`` from end to end, on a tiny random model."""

from __future__ import annotations

import json
from pathlib import Path

from tests.core.cli.conftest import Nnm
from tests.core.families import make
from tests.core.tiny import byte_tokenizer


def test_the_command_writes_table_plot_page_and_json(real_nnm: Nnm, tmp_path: Path) -> None:
    model = tmp_path / "tiny"
    make("qwen3", max_position_embeddings=2048).save_pretrained(model)
    byte_tokenizer().save_pretrained(model)
    ran = real_nnm(
        "demo", "--model", str(model), "--device", "cpu", "--questions", "2", "--out", "o", "--json", "o/demo.json"
    )
    assert ran.code == 0, ran.err
    assert "tokens injected" in ran.out
    report = json.loads(Path("o/demo.json").read_text())
    assert list(report["arms"]) == ["bare", "rag", "nnm", "random"]
    assert {entry["arm"] for entry in report["items"]} == set(report["arms"])
    assert report["arms"]["rag"]["tokens_injected"] == 0
    assert report["arms"]["nnm"]["tiers"] == report["arms"]["random"]["tiers"] == ["exact"]
    assert report["arms"]["nnm"]["tokens_read"] < report["arms"]["rag"]["tokens_read"]
    assert all(entry["passage_found"] is False for entry in report["items"] if entry["arm"] in ("bare", "random"))
    assert Path("o/demo.png").read_bytes().startswith(b"\x89PNG")
    assert Path("o/demo.html").read_text().count("<svg") == 4
    assert report["config"]["questions"] == 2
    assert not Path("memory").exists()
