"""Every page of the documentation runs from top to bottom, and its links lead somewhere."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from llama_index.core import Settings
from tests.core.storage.qdrant_http import qdrant_server

from nnm_core import NNM
from nnm_core.model.load import LoadedModel

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("packages/*/README.md")), *sorted((ROOT / "docs").rglob("*.md"))]
# A part of docs/results.md, with links as from there.
PAGES = [page for page in PAGES if page.parent.name != "results"]
NEED_DATA = {"evaluate": "needs a data set that is downloaded; tests/core/evaluation runs the same on small ones"}
BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT).with_suffix("")).replace("/", ".")


def code_of(page: Path) -> str:
    return "\n".join(BLOCK.findall(page.read_text(encoding="utf-8")))


@pytest.fixture
def bundled(reader: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """`NNM.open` with one loaded model, a stand-in for a Qdrant server, and everything closed in the end."""
    original = NNM.open
    loop = asyncio.new_event_loop()  # LlamaIndex asks for "the" loop outside of any and would leave one unclosed
    asyncio.set_event_loop(loop)
    with ExitStack() as stack:
        stack.callback(loop.close)
        stack.callback(asyncio.set_event_loop, None)

        def open_reader(model: str | LoadedModel = "nnm-mini", *args: object, **options: object) -> NNM:
            if "url" in options:
                options["url"] = stack.enter_context(qdrant_server()).url
            return stack.enter_context(original(reader if model == "nnm-mini" else model, *args, **options))

        monkeypatch.setattr(NNM, "open", open_reader)
        monkeypatch.setattr("nnm_core.injection.costs.platformdirs.user_cache_dir", lambda name: str(tmp_path / name))
        yield


@pytest.mark.usefixtures("bundled")
@pytest.mark.parametrize("page", [page for page in PAGES if code_of(page)], ids=name_of)
def test_pages_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Settings, "_tokenizer", Settings._tokenizer)
    if page.stem in NEED_DATA:
        imports = [line for line in code_of(page).splitlines() if line.startswith(("from ", "import "))]
        exec("\n".join(imports), {})
        pytest.skip(NEED_DATA[page.stem])
    exec(compile(code_of(page), page.name, "exec", dont_inherit=True), {"__name__": "page"})


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target
