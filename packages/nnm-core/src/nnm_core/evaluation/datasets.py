"""Retrieval sets in the layout of BEIR: a folder with corpus, queries and judgements."""

from __future__ import annotations

import csv
import gzip
import json
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO, cast

from nnm_core.errors import InvalidInputError


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
    """Read ``corpus.jsonl``, ``queries.jsonl`` and ``qrels/<split>.tsv``; each may also be gzipped (``.gz``).

    Raises:
        InvalidInputError: a file is missing or a line cannot be read, or a judgement names an unknown document.
    """
    root = Path(folder)
    documents = {str(row["_id"]): _text(row) for row in _rows(root, "corpus.jsonl")}
    queries = {str(row["_id"]): str(row["text"]) for row in _rows(root, "queries.jsonl")}
    qrels = _qrels(root, f"qrels/{split}.tsv")
    unknown = {key for judged in qrels.values() for key in judged} - set(documents)
    if unknown or not qrels.keys() <= queries.keys():
        raise InvalidInputError(f"The judgements of {root} name {len(unknown)} unknown documents or unknown queries.")
    return RetrievalSet(f"{root.name}/{split}", documents, {key: queries[key] for key in qrels}, qrels)


def _text(row: Mapping[str, Any]) -> str:
    return "\n".join(part for part in (str(row.get("title") or "").strip(), str(row.get("text") or "").strip()) if part)


def _rows(root: Path, name: str) -> Iterator[dict[str, Any]]:
    with _open(root, name) as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = cast("dict[str, Any]", json.loads(line))
                row["_id"]
            except (json.JSONDecodeError, KeyError, TypeError) as error:
                raise InvalidInputError(f"{root / name}, line {number}: {error!r}.") from error
            yield row


def _qrels(root: Path, name: str) -> dict[str, dict[str, int]]:
    qrels: dict[str, dict[str, int]] = {}
    with _open(root, name) as lines:
        for number, row in enumerate(csv.reader(lines, delimiter="\t"), start=1):
            if number == 1 and row and not row[-1].lstrip("-").isdigit():
                continue  # the header
            try:
                query, document, grade = row[0], row[-2], int(row[-1])
            except (IndexError, ValueError) as error:
                raise InvalidInputError(f"{root / name}, line {number}: {error!r}.") from error
            if grade > 0:
                qrels.setdefault(query, {})[document] = grade
    return qrels


def _open(root: Path, name: str) -> TextIO:
    for path in (root / name, root / f"{name}.gz"):
        if path.is_file():
            if path.suffix == ".gz":
                return gzip.open(path, "rt", encoding="utf-8")
            return path.open(encoding="utf-8")
    raise InvalidInputError(
        f"There is no {name} (or {name}.gz) in {root}.", hint="Give a folder in BEIR's layout: corpus, queries, qrels."
    )
