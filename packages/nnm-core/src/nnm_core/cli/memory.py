"""``nnm add``, ``search``, ``stats``, ``delete`` and ``forget``."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain, islice
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from nnm_core.cli import session as shared
from nnm_core.cli.documents import Document, Unreadable, count_files, read_documents
from nnm_core.cli.output import owns_stdout, progress_bar, show_error, stderr, stdout
from nnm_core.cli.session import Session, opened
from nnm_core.errors import InvalidInputError, MemoryNotFoundError
from nnm_core.evaluation.report import plain, seconds, snippet, visible, write_json

if TYPE_CHECKING:
    from nnm_core.records import Hit

BATCH = 64

Ids = Annotated[list[str], typer.Argument(metavar="ID...", help="The ids of the memories.")]


def register_add(app: typer.Typer) -> None:
    """Put what comes first into `app`; the order is that of the help."""
    app.command()(add)
    app.command()(search)


def register(app: typer.Typer) -> None:
    """Put what looks at a memory, or takes from it, into `app`."""
    app.command()(stats)
    app.command()(delete)
    app.command()(forget)


def add(
    sources: Annotated[
        list[str] | None,
        typer.Argument(metavar="[FILE|FOLDER|-]...", help="Text (.txt .md), JSONL, folders of such, or '-' for stdin."),
    ] = None,
    jsonl: Annotated[bool, typer.Option("--jsonl", help="Stdin holds JSONL, one record a line.")] = False,
    split: Annotated[
        int,
        typer.Option(min=0, metavar="WORDS", help="Cut text files into pieces of this size; 0: keep them whole."),
    ] = 250,
    skip_errors: Annotated[bool, typer.Option("--skip-errors", help="Go on without what cannot be read.")] = False,
    codec: Annotated[
        str | None,
        typer.Option("--codec", help="How states are kept: native, int8, int4, residual-int8, tokens; stays as it is."),
    ] = None,
    model: shared.ModelOption = shared.DEFAULT_MODEL,
    path: shared.PathOption = shared.DEFAULT_PATH,
    namespace: shared.NamespaceOption = shared.DEFAULT_NAMESPACE,
    device: shared.DeviceOption = None,
    url: shared.UrlOption = None,
    rebuild: shared.RebuildOption = False,
    json: shared.JsonOption = None,
) -> None:
    """Remember texts. Adding the same again changes nothing, so an interrupted run is simply repeated.

    A JSONL record is an object with a "text" and, if you like, an "id", a "title" and other fields, which are kept
    as metadata. A file's id is its path.
    """
    wanted = sources or ([] if sys.stdin.isatty() else ["-"])
    if not wanted:
        raise typer.BadParameter("name files or folders, or pipe text in", param_hint="FILE")
    session = Session(model, path, namespace, device, rebuild, codec, url)
    skipped: list[Unreadable] = []
    started = time.perf_counter()
    documents = _readable(read_documents(wanted, split=split, jsonl_stdin=jsonl), skipped, skip_errors)
    # The first document is fetched before the model is loaded: a wrong file name should not take seconds to report.
    first = list(islice(documents, 1))
    with opened(session, create=True) as engine:
        with progress_bar(f"Reading {count_files(wanted)} file(s)") as progress:
            added = 0
            for batch in filter(None, _batches(chain(first, documents))):
                engine.add(
                    [document.text for document in batch],
                    ids=[document.id for document in batch],
                    metadatas=[dict(document.metadata) for document in batch],
                )
                added += len(batch)
                progress.update(progress.task_ids[0], completed=added)
        elapsed = time.perf_counter() - started
        total = plain(engine.stats())
    write_json(
        json,
        {
            "config": session.config() | {"sources": wanted, "split": split},
            "added": added,
            "skipped": [{"origin": item.origin, "error": str(item.error)} for item in skipped],
            "seconds": elapsed,
            "stats": total,
        },
    )
    stderr().print(f"{added} {_memories(added)} in {seconds(elapsed)} to {path}, {len(skipped)} left out.")


def _memories(count: int) -> str:
    return "memory" if count == 1 else "memories"


def _readable(
    documents: Iterator[Document | Unreadable], skipped: list[Unreadable], skip_errors: bool
) -> Iterator[Document]:
    for document in documents:
        if isinstance(document, Document):
            yield document
        elif skip_errors:
            show_error(document.error)
            skipped.append(document)
        else:
            raise document.error


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    """Lists of up to `BATCH` documents; what came before an unreadable one is handed out before its error is raised."""
    batch: list[Document] = []
    try:
        for document in documents:
            batch.append(document)
            if len(batch) == BATCH:
                yield batch
                batch = []
    except InvalidInputError:
        yield batch
        raise
    yield batch


def search(
    query: Annotated[str, typer.Argument(help="What to look for.")],
    k: Annotated[int, typer.Option("-k", min=1, help="How many memories to show.")] = 4,
    explain: Annotated[bool, typer.Option("--explain", help="Show what each score is made of.")] = False,
    rerank: Annotated[bool, typer.Option("--rerank", help="Rank the candidates by what their states say.")] = False,
    model: shared.ModelOption = shared.DEFAULT_MODEL,
    path: shared.PathOption = shared.DEFAULT_PATH,
    namespace: shared.NamespaceOption = shared.DEFAULT_NAMESPACE,
    device: shared.DeviceOption = None,
    url: shared.UrlOption = None,
    rebuild: shared.RebuildOption = False,
    json: shared.JsonOption = None,
) -> None:
    """Show the memories that fit a question best."""
    session = Session(model, path, namespace, device, rebuild, url=url)
    with opened(session) as engine:
        started = time.perf_counter()
        hits = engine.search(query, k=k, rerank=rerank)
        elapsed = time.perf_counter() - started
    write_json(
        json,
        {"config": session.config() | {"query": query, "k": k, "rerank": rerank}, "hits": hits, "seconds": elapsed},
    )
    if owns_stdout(json):
        return
    if not hits:
        stderr().print("Nothing found.")
        return
    stdout().print(hits_table(hits, explain=explain))
    stderr().print(Text(f"{len(hits)} {_memories(len(hits))} from {path}, {seconds(elapsed)}", style="dim"))


def hits_table(hits: list[Hit], *, explain: bool) -> Table:
    """One row a hit: rank, score, id and the beginning of the text; with `explain` also the parts of the score.

    Of a hit with a span the span is shown.
    """
    found = {name for hit in hits for name in hit.parts} if explain else set()
    parts = sorted(name for name in found if not name.endswith("_rank"))
    table = Table(show_edge=False, pad_edge=False, expand=explain)
    table.add_column("#", justify="right", style="dim", no_wrap=True)
    table.add_column("score", justify="right", no_wrap=True)
    for name in parts:
        table.add_column(name, justify="right", style="cyan", no_wrap=True)
    table.add_column("id", style="bold", overflow="fold")
    # With many columns little room is left for the text: then one line of it has to do.
    table.add_column("text", no_wrap=explain, overflow="ellipsis", ratio=1 if explain else None)
    for rank, hit in enumerate(hits, start=1):
        values = [_part(hit, name) for name in parts]
        text = hit.memory.text if hit.span is None else hit.memory.text[slice(*hit.span)]
        table.add_row(str(rank), f"{hit.score:.3f}", *values, visible(hit.memory.id), snippet(text))
    return table


def _part(hit: Hit, name: str) -> str:
    """A part of a score, and in brackets the rank that it alone would have given."""
    if name not in hit.parts:
        return ""
    rank = hit.parts.get(f"{name}_rank")
    return f"{hit.parts[name]:.3f}" + ("" if rank is None else f" ({rank:.0f})")


def stats(
    model: shared.ModelOption = shared.DEFAULT_MODEL,
    path: shared.PathOption = shared.DEFAULT_PATH,
    namespace: shared.NamespaceOption = shared.DEFAULT_NAMESPACE,
    device: shared.DeviceOption = None,
    url: shared.UrlOption = None,
    json: shared.JsonOption = None,
) -> None:
    """Say what is stored and how large it is."""
    session = Session(model, path, namespace, device, url=url)
    with opened(session) as engine:
        values: Mapping[str, Any] = plain(engine.stats())
    write_json(json, {"config": session.config(), "stats": values})
    if owns_stdout(json):
        return
    table = Table(show_header=False, show_edge=False, pad_edge=False)
    for name, value in values.items():
        if isinstance(value, Mapping):
            value = ", ".join(
                f"{key.replace('_', ' ')} {_quantity(key, item)}" for key, item in value.items() if item is not None
            )
        table.add_row(Text(name.replace("_", " "), style="bold"), visible(_quantity(name, value)))
    stdout().print(table)


def _quantity(name: str, value: Any) -> str:
    if "bytes" in name and isinstance(value, int | float):
        size, units = float(value), ["B", "KiB", "MiB", "GiB", "TiB"]
        while size >= 1024 and len(units) > 1:
            size /= 1024
            units.pop(0)
        return f"{size:,.0f} {units[0]}" if units[0] == "B" else f"{size:,.1f} {units[0]}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def delete(
    ids: Ids,
    model: shared.ModelOption = shared.DEFAULT_MODEL,
    path: shared.PathOption = shared.DEFAULT_PATH,
    namespace: shared.NamespaceOption = shared.DEFAULT_NAMESPACE,
    device: shared.DeviceOption = None,
    url: shared.UrlOption = None,
) -> None:
    """Take memories out of recall; their history is kept. To remove every trace, use forget."""
    _remove(Session(model, path, namespace, device, url=url), ids, forget_them=False)


def forget(
    ids: Ids,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    model: shared.ModelOption = shared.DEFAULT_MODEL,
    path: shared.PathOption = shared.DEFAULT_PATH,
    namespace: shared.NamespaceOption = shared.DEFAULT_NAMESPACE,
    device: shared.DeviceOption = None,
    url: shared.UrlOption = None,
) -> None:
    """Remove every trace of memories: text, vectors, states and history, on disk too. This cannot be undone."""
    if not yes:
        if not sys.stdin.isatty():
            raise InvalidInputError("Forgetting cannot be undone.", hint="Say --yes when nobody can be asked.")
        typer.confirm(f"Forget {len(ids)} {_memories(len(ids))} for ever?", abort=True, err=True)
    _remove(Session(model, path, namespace, device, url=url), ids, forget_them=True)


def _remove(session: Session, ids: list[str], *, forget_them: bool) -> None:
    wanted = list(dict.fromkeys(ids))
    with opened(session) as engine:
        count = engine.forget(wanted) if forget_them else engine.delete(wanted)
    if not count:
        raise MemoryNotFoundError(
            f"None of these ids is in namespace {session.namespace!r}.", hint="'nnm search' shows the ids."
        )
    unknown = f", {len(wanted) - count} unknown" if count < len(wanted) else ""
    stderr().print(f"{count} {'forgotten' if forget_them else 'deleted'}{unknown}.")
