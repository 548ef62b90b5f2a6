"""``nnm demo``: real documents, four ways to answer, side by side."""

from __future__ import annotations

import datetime
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nnm_core._version import __version__
from nnm_core.cli import session as shared
from nnm_core.cli.output import owns_stdout, progress_bar, stderr, stdout
from nnm_core.cli.session import Session, opened
from nnm_core.evaluation.report import seconds, write_json
from nnm_core.records import Policy

if TYPE_CHECKING:
    from nnm_core.demo.run import Item

DEFAULT_OUT = Path("out/demo")


def register(app: typer.Typer) -> None:
    """Put the command into `app`."""
    app.command()(demo)


def demo(
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Where the plot and the page go.")] = DEFAULT_OUT,
    k: Annotated[int, typer.Option("-k", min=1, max=8, help="Passages for each question.")] = 1,
    policy: Annotated[Policy, typer.Option(help="What may be injected: exact, auto, or fast.")] = "auto",
    max_questions: Annotated[int, typer.Option("--questions", min=1, help="Ask only so many.")] = 24,
    model: shared.ModelOption = shared.DEFAULT_MODEL,
    device: shared.DeviceOption = None,
    json: shared.JsonOption = None,
) -> None:
    """Compare the bare model, classic RAG, NNM, and NNM with random memories on real questions.

    The passages ship with the program and go into a memory that lasts as long as the command.
    """
    from nnm_core.demo.run import ARMS, Settings, summary

    settings = Settings(k=k, policy=policy)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="nnm-demo-") as folder:
        session = Session(model, Path(folder), shared.DEFAULT_NAMESPACE, device)
        items, config = _ask_all(session, settings, max_questions)
    arms = {name: summary(items, name) for name in ARMS}
    config["seconds"] = time.perf_counter() - started
    write_json(json, {"arms": arms, "config": config, "items": [_item(item) for item in items]})
    if not owns_stdout(json):
        from nnm_core.demo.table import result_table

        stdout().print(result_table(items, arms))
    _save(items, arms, config, out)
    stderr().print(f"Done in {seconds(config['seconds'])}.")


def _ask_all(session: Session, settings: Any, max_questions: int) -> tuple[list[Item], dict[str, Any]]:
    from nnm_core.demo import dataset
    from nnm_core.demo.run import ARMS, add_passages, make_arms, run, warm_up
    from nnm_core.evaluation.rag import default_retriever

    passages, questions = dataset.passages(), dataset.questions()[:max_questions]
    with opened(session, create=True) as engine:
        retriever = default_retriever()
        with stderr().status(f"Reading {len(passages)} passages ..."):
            started = time.perf_counter()
            memories = add_passages(engine, passages)
            ingest = time.perf_counter() - started
        arms = make_arms(engine, memories, retriever, settings)
        warm_up(engine, memories, questions, retriever)
        with progress_bar("Asking", total=len(questions) * len(ARMS)) as progress:
            items = []
            for item in run(arms, questions):
                items.append(item)
                progress.advance(progress.task_ids[0])
        config = {
            "model": session.model,
            "device": engine.stats()["device"],
            "fingerprint": items[0].answer.receipt.fingerprint,
            "retriever": retriever.name,
            "k": settings.k,
            "policy": settings.policy,
            "max_tokens": settings.max_tokens,
            "seed": settings.seed,
            "passages": len(passages),
            "questions": len(questions),
            "ingest_seconds": ingest,
            "version": __version__,
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        }
    return items, config


def _item(item: Item) -> dict[str, Any]:
    return {
        "arm": item.arm,
        "id": item.question.id,
        "question": item.question.question,
        "gold": item.question.answers,
        "answer": item.answer.text,
        "right": item.right,
        "passage_found": item.found,
        "memories": [hit.memory.id for hit in item.answer.hits] or list(item.answer.receipt.memories),
        "receipt": item.answer.receipt,
    }


def _save(items: Sequence[Item], arms: Mapping[str, Any], config: Mapping[str, Any], out: Path) -> None:
    import importlib.util

    from nnm_core.demo.page import save_page
    from nnm_core.demo.plot import save_plot

    plot: Path | None = out / "demo.png"
    if importlib.util.find_spec("matplotlib") is None:
        plot = None
        stderr().print("No plot without matplotlib: pip install 'nnm-core[plot]'.")
    else:
        save_plot(items, arms, out / "demo.png")
    save_page(items, arms, config, plot=plot, target=out / "demo.html")
    stderr().print("Written: " + ", ".join(str(path) for path in (plot, out / "demo.html") if path is not None))
