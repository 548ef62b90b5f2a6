"""``nnm compare``: your documents and questions through classic RAG and NNM, side by side."""

from __future__ import annotations

import importlib.util
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nnm_core.cli import session as shared
from nnm_core.cli.documents import Document, read_documents
from nnm_core.cli.output import owns_stdout, progress_bar, stderr, stdout
from nnm_core.cli.session import Session, opened
from nnm_core.errors import InvalidInputError
from nnm_core.evaluation.report import seconds, write_json

if TYPE_CHECKING:
    from nnm_core.evaluation.compare.questions import Question
    from nnm_core.evaluation.compare.run import CompareSettings, Comparison
    from nnm_core.evaluation.rag import TextRetriever

DEFAULT_OUT = Path("out/compare")
DEFAULT_QUESTIONS = 100


def register(app: typer.Typer) -> None:
    """Put the command into `app`."""
    app.command()(compare)


def compare(
    sources: Annotated[list[str], typer.Argument(metavar="FILE|FOLDER...", help="Documents: .txt, .md, .jsonl.")],
    questions: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="JSONL or CSV with question and answers; left out: made from the documents."),
    ] = None,
    max_questions: Annotated[int, typer.Option(min=1, help="Ask the first so many.")] = DEFAULT_QUESTIONS,
    k: Annotated[int, typer.Option("-k", min=1, help="Passages for each question.")] = 4,
    embedder: Annotated[
        str, typer.Option(help="Of classic RAG: minilm, bm25, or a sentence-transformers name or folder.")
    ] = "minilm",
    arms: Annotated[
        str,
        typer.Option(
            metavar="NAME,...",
            help="Only these of bare, rag, rag_recall, read, nnm, nnm_again, composed, random; rag is the reference.",
        ),
    ] = "",
    composer: Annotated[str | None, typer.Option(help="How the composed arm places states side by side.")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="The longest answer.")] = 24,
    latency: Annotated[bool, typer.Option(help="Also time the first token over the length of the prompt.")] = True,
    split: Annotated[int, typer.Option(min=0, metavar="WORDS", help="Size of the passages of text files.")] = 120,
    seed: Annotated[int, typer.Option(help="Of the random memories and the generated questions.")] = 0,
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Where the page goes.")] = DEFAULT_OUT,
    model: shared.ModelOption = shared.DEFAULT_MODEL,
    device: shared.DeviceOption = None,
    json: shared.JsonOption = None,
) -> None:
    """Compare the bare model, classic RAG and NNM on your own documents and questions.

    The documents go into a memory that lasts as long as the command. Results: a table, a page with plots, and with
    --json every answer.
    """
    from nnm_core.evaluation.compare.findings import findings
    from nnm_core.evaluation.compare.table import costs_table, quality_table

    settings = _settings(arms, k, max_tokens, composer, seed, latency=latency)
    started = time.perf_counter()
    documents = _documents(sources, split)
    asked = _questions(questions, documents, max_questions, seed)
    with tempfile.TemporaryDirectory(prefix="nnm-compare-") as folder:
        result = _run(Session(model, Path(folder), device=device), documents, asked, settings, embedder)
    result = _with_config(result, {"sources": sources, "split": split, "seconds": time.perf_counter() - started})
    write_json(json, result.to_dict())
    if not owns_stdout(json):
        title = f"{result.config['questions']} questions, {len(documents)} passages, {k} a question"
        stdout().print(quality_table(result.arms, title))
        stdout().print(costs_table(result.arms, "What it costs: tokens of a prompt (means), times (medians), bytes"))
    for sentence in findings(result):
        stderr().print(f"- {sentence}")
    _save(result, out)
    stderr().print(f"Done in {seconds(result.config['seconds'])}.")


def _settings(arms: str, k: int, max_tokens: int, composer: str | None, seed: int, *, latency: bool) -> CompareSettings:
    from nnm_core.evaluation.compare.arms import LABELS, ArmSettings
    from nnm_core.evaluation.compare.run import CompareSettings

    wanted = tuple(dict.fromkeys(name.strip() for name in arms.split(",") if name.strip())) or tuple(LABELS)
    unknown = [name for name in wanted if name not in LABELS]
    if unknown:
        raise InvalidInputError(f"There is no arm {unknown[0]!r}.", hint=f"Arms: {', '.join(LABELS)}.")
    answers = ArmSettings(k=k, max_tokens=max_tokens, composer=composer, seed=seed)
    ordered = tuple(name for name in LABELS if name in wanted)
    return CompareSettings(answers, ordered) if latency else CompareSettings(answers, ordered, lengths=())


def _documents(sources: Sequence[str], split: int) -> list[Document]:
    documents: dict[str, Document] = {}
    for found in read_documents(sources, split=split):
        if not isinstance(found, Document):
            raise found.error
        if documents.setdefault(found.id, found) is not found:
            raise InvalidInputError(
                f"{found.origin}: a second document has the id {found.id!r}.", hint="Give each record its own id."
            )
    if not documents:
        raise InvalidInputError("There are no documents.", hint="Give files or folders with .txt, .md or .jsonl.")
    return list(documents.values())


def _questions(path: Path | None, documents: Sequence[Document], count: int, seed: int) -> list[Question]:
    from nnm_core.evaluation.compare.questions import generate_questions, read_questions

    if path is not None:
        return read_questions(path)[:count]
    made = generate_questions([(document.id, document.text) for document in documents], count, seed=seed)
    if not made:
        raise InvalidInputError(
            "No question can be made from these documents by rule.", hint="Give your own with --questions FILE."
        )
    stderr().print(f"No --questions: {len(made)} fill-in questions were generated from the documents by rule.")
    return made


def _run(
    session: Session, documents: Sequence[Document], asked: Sequence[Question], settings: CompareSettings, embedder: str
) -> Comparison:
    from nnm_core.evaluation.compare import run

    with opened(session, create=True) as engine, _retriever(embedder) as retriever, progress_bar("Reading") as progress:
        task = progress.task_ids[0]

        def tell(what: str, done: int, total: int) -> None:
            progress.update(task, description=what, completed=done, total=total)

        started = time.perf_counter()
        memories = engine.add(
            [document.text for document in documents],
            ids=[document.id for document in documents],
            metadatas=[dict(document.metadata) for document in documents],
            progress=lambda done, total: tell("Reading", done, total),
        )
        ingest = time.perf_counter() - started
        return run.compare(
            engine, memories, asked, retriever=retriever, settings=settings, ingest_seconds=ingest, tell=tell
        )


@contextmanager
def _retriever(embedder: str) -> Iterator[TextRetriever]:
    from nnm_core.evaluation.embedders import EmbeddingRetriever
    from nnm_core.evaluation.rag import BM25Retriever

    if embedder.lower() == "bm25":
        yield BM25Retriever()
        return
    with stderr().status(f"Loading {embedder} ..."):
        retriever = EmbeddingRetriever(embedder)
    try:
        yield retriever
    finally:
        retriever.close()


def _with_config(result: Comparison, more: dict[str, Any]) -> Comparison:
    from dataclasses import replace

    return replace(result, config={**result.config, **more})


def _save(result: Comparison, out: Path) -> None:
    from nnm_core.evaluation.compare.page import save_page
    from nnm_core.evaluation.compare.plots import plots

    drawn: dict[str, str] = {}
    if importlib.util.find_spec("matplotlib") is None:
        stderr().print("No plots without matplotlib: pip install 'nnm-core[plot]'.")
    else:
        drawn = plots(result)
    save_page(result, drawn, out / "compare.html")
    stderr().print(f"Written: {out / 'compare.html'}")
