"""Retrieval sets in the layout of BEIR: a folder with corpus, queries and judgements."""

from __future__ import annotations

import csv
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnm_core.errors import InvalidInputError
from nnm_core.evaluation.datasets.files import find, read_jsonl, read_text

HINT = (
    'BEIR\'s layout is a folder with corpus.jsonl ({"_id", "title", "text"}), queries.jsonl ({"_id", "text"}) and '
    "qrels/<split>.tsv (query-id, corpus-id, score)."
)


@dataclass(frozen=True)
class RetrievalSet:
    """Documents, queries and who is relevant for whom.

    Attributes:
        name: of the folder and split.
        documents: id -> text (title and text, one line each).
        queries: id -> text; only queries with at least one judgement.
        qrels: query id -> document id -> grade above 0.
    """

    name: str
    documents: Mapping[str, str]
    queries: Mapping[str, str]
    qrels: Mapping[str, Mapping[str, int]]

    def subset(self, queries: int, documents: int, *, seed: int = 42) -> RetrievalSet:
        """The first `queries` queries and their documents, filled up at random to `documents`.

        Such a small pool makes any system look good; it is here to repeat figures that were made on one.
        """
        chosen = dict(list(self.queries.items())[:queries])
        keep = {key: None for query in chosen for key in self.qrels[query] if key in self.documents}
        others = [key for key in self.documents if key not in keep]
        random.Random(seed).shuffle(others)  # noqa: S311 - a reproducible sample, no secret
        names = [*keep, *others[: max(0, documents - len(keep))]]
        return RetrievalSet(
            f"{self.name}[{len(chosen)}x{len(names)}]",
            {key: self.documents[key] for key in names},
            chosen,
            {query: self.qrels[query] for query in chosen},
        )


def load_beir(folder: str | Path, split: str = "test") -> RetrievalSet:
    """Read ``corpus.jsonl``, ``queries.jsonl`` and ``qrels/<split>.tsv``; each may also be compressed (``.gz``).

    Raises:
        InvalidInputError: a file is missing, a line cannot be read, an id comes twice, a document is empty, or a
            judgement names an unknown document or query.
    """
    root = Path(folder)
    documents = _texts(root, "corpus.jsonl", document_text)
    queries = _texts(root, "queries.jsonl", lambda row: str(row.get("text") or "").strip())
    qrels = _qrels(root, split)
    unknown = [key for judged in qrels.values() for key in judged if key not in documents]
    unasked = [key for key in qrels if key not in queries]
    for names, what in ((unknown, "documents"), (unasked, "queries")):
        if names:
            raise InvalidInputError(
                f"The judgements of {root} name {len(names)} unknown {what}, for example {names[0]!r}.", hint=HINT
            )
    return RetrievalSet(f"{root.name}/{split}", documents, {key: queries[key] for key in qrels}, qrels)


def document_text(row: Mapping[str, Any]) -> str:
    """Title and text of a document, one line each."""
    return "\n".join(part for part in (str(row.get("title") or "").strip(), str(row.get("text") or "").strip()) if part)


def _texts(root: Path, name: str, text: Callable[[Mapping[str, Any]], str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for row in read_jsonl(_find(root, name), HINT):
        if "_id" not in row.value:
            row.fail("there is no '_id'")
        key = str(row.value["_id"])
        if key in found:
            row.fail(f"a second entry has the id {key!r}")
        found[key] = text(row.value)
        if not found[key]:
            row.fail(f"{key!r} has no text")
    return found


def _qrels(root: Path, split: str) -> dict[str, dict[str, int]]:
    source = _find(root, f"qrels/{split}.tsv")
    qrels: dict[str, dict[str, int]] = {}
    for number, row in enumerate(csv.reader(read_text(source).splitlines(), delimiter="\t"), start=1):
        if not row or (number == 1 and not row[-1].lstrip("-").isdigit()):
            continue  # an empty line, or the header
        try:
            query, document, grade = row[0], row[-2], int(row[-1])
        except (IndexError, ValueError) as error:
            raise InvalidInputError(f"{source}, line {number}: {row} is no judgement.", hint=HINT) from error
        if grade > 0:
            qrels.setdefault(query, {})[document] = grade
    if not qrels:
        raise InvalidInputError(f"{source}: no judgement above 0.", hint=HINT)
    return qrels


def _find(root: Path, name: str) -> Path:
    try:
        return find(root / name)
    except InvalidInputError as error:
        raise InvalidInputError(f"There is no {name} (or {name}.gz) in {root}.", hint=HINT) from error
