"""``nnm demo``: real documents, four ways to answer, side by side."""

from __future__ import annotations

import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nnm_core.cli import session as shared
from nnm_core.cli.output import owns_stdout, progress_bar, stderr, stdout
from nnm_core.cli.session import Session, opened
from nnm_core.evaluation.report import seconds, write_json
from nnm_core.records import Policy

if TYPE_CHECKING:
    from nnm_core.evaluation.compare.run import CompareSettings, Comparison

DEFAULT_OUT = Path("out/demo")
ARMS = ("bare", "rag", "nnm", "random")
SOURCE = (
    "Passages: excerpts of Wikipedia articles; questions and gold answers: SQuAD v1.1 (Rajpurkar et al. 2016); both "
    "CC BY-SA 4.0."
)


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
    from nnm_core.evaluation.compare.arms import ArmSettings
    from nnm_core.evaluation.compare.run import CompareSettings

    settings = CompareSettings(ArmSettings(k=k, policy=policy), ARMS, lengths=())
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="nnm-demo-") as folder:
        session = Session(model, Path(folder), shared.DEFAULT_NAMESPACE, device)
        result = _ask_all(session, settings, max_questions)
    result = replace(result, config={**result.config, "source": SOURCE, "seconds": time.perf_counter() - started})
    write_json(json, result.to_dict())
    if not owns_stdout(json):
        from nnm_core.demo.table import result_table

        stdout().print(result_table(result.items, result.arms))
    _save(result, out)
    stderr().print(f"Done in {seconds(result.config['seconds'])}.")


def _ask_all(session: Session, settings: CompareSettings, max_questions: int) -> Comparison:
    from nnm_core.demo import dataset
    from nnm_core.evaluation.compare.run import compare

    passages, questions = dataset.passages(), dataset.questions()[:max_questions]
    with opened(session, create=True) as engine:
        with stderr().status(f"Reading {len(passages)} passages ..."):
            started = time.perf_counter()
            memories = engine.add(
                [passage.text for passage in passages],
                ids=[passage.id for passage in passages],
                metadatas=[{"title": passage.title} for passage in passages],
            )
            ingest = time.perf_counter() - started
        with progress_bar("Asking", total=len(questions)) as progress:
            task = progress.task_ids[0]
            return compare(
                engine,
                memories,
                questions,
                settings=settings,
                ingest_seconds=ingest,
                tell=lambda what, done, total: progress.update(task, completed=done, total=total),
            )


def _save(result: Comparison, out: Path) -> None:
    import importlib.util

    from nnm_core.demo.plot import save_plot
    from nnm_core.evaluation.compare.page import save_page
    from nnm_core.evaluation.compare.plots import plots

    written, drawn = [out / "demo.html"], {}
    if importlib.util.find_spec("matplotlib") is None:
        stderr().print("No plots without matplotlib: pip install 'nnm-core[plot]'.")
    else:
        drawn = plots(result)
        save_plot(result.items, result.arms, out / "demo.png")
        written.insert(0, out / "demo.png")
    save_page(result, drawn, out / "demo.html", title="The same questions, answered four ways")
    stderr().print("Written: " + ", ".join(map(str, written)))
