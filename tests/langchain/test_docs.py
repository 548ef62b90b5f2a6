"""Every page of the documentation runs from top to bottom."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from nnm_core import NNM
from nnm_core.model.load import LoadedModel

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs" / "langchain").glob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_pages_run(page: Path, reader: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[NNM] = []
    original = NNM.open

    def open_reader(model: str | LoadedModel, **options: object) -> NNM:
        opened.append(original(reader if model == "nnm-mini" else model, **options))
        return opened[-1]

    monkeypatch.setattr(NNM, "open", open_reader)
    code = "\n".join(re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE))
    assert code
    try:
        exec(compile(code, page.name, "exec"), {})
    finally:
        for nnm in opened:
            nnm.close()


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target
