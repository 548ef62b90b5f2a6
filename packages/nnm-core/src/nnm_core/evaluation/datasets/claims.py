"""Claims with labelled evidence: SciFact (Wadden et al. 2020) in BEIR's folder, or a file of one's own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnm_core.errors import InvalidInputError
from nnm_core.evaluation.datasets.beir import load_beir
from nnm_core.evaluation.datasets.files import Row, find, read_jsonl
from nnm_core.records import text_digest

SUPPORT, CONTRADICT, NEI = "SUPPORT", "CONTRADICT", "NEI"
LABELS = (SUPPORT, CONTRADICT, NEI)
HINT = (
    'A line of a claims file is {"claim": "...", "label": "SUPPORT" | "CONTRADICT" | "NEI", "evidence": "text"}; a '
    "folder in BEIR's layout needs labels in the metadata of its queries.jsonl, as SciFact's has."
)


@dataclass(frozen=True, slots=True)
class Claim:
    """A claim, what it is judged by, and the judgement.

    Attributes:
        id: unique.
        text: the claim.
        documents: ids of the documents that it is judged by, at least one.
        label: one of `LABELS`.
    """

    id: str
    text: str
    documents: tuple[str, ...]
    label: str


@dataclass(frozen=True)
class ClaimSet:
    """Claims and documents (id -> text) of one source."""

    name: str
    documents: Mapping[str, str]
    claims: tuple[Claim, ...]


def load_claims(path: str | Path, split: str = "test") -> ClaimSet:
    """A folder in BEIR's layout whose queries carry labels, or a JSONL file.

    In SciFact a claim without evidence in its cited document is NEI: the document is there, it just does not say.

    Raises:
        InvalidInputError: a part is missing, a label is unknown, or the folder has no labels at all.
    """
    source = Path(path)
    return _folder(source, split) if source.is_dir() else _file(source)


def _folder(root: Path, split: str) -> ClaimSet:
    data = load_beir(root, split)
    rows = {str(row.value.get("_id")): row for row in read_jsonl(find(root / "queries.jsonl"), HINT)}
    if not any(_evidence(row) for row in rows.values()):
        raise InvalidInputError(f"{root}: no query has a label in its metadata.", hint=HINT)
    claims = []
    for key, text in data.queries.items():
        labels = {
            str(judgement.get("label"))
            for judgements in _evidence(rows[key]).values()
            for judgement in judgements
            if isinstance(judgement, dict)
        }
        if len(labels) > 1 or not labels <= {SUPPORT, CONTRADICT}:
            rows[key].fail(f"the labels {sorted(labels)} are not one of SUPPORT and CONTRADICT")
        claims.append(Claim(key, text, tuple(data.qrels[key]), next(iter(labels), NEI)))
    return ClaimSet(data.name, data.documents, tuple(claims))


def _evidence(row: Row) -> Mapping[str, list[Any]]:
    found = row.value.get("metadata")
    return found if isinstance(found, dict) else {}


def _file(source: Path) -> ClaimSet:
    documents: dict[str, str] = {}
    claims: dict[str, Claim] = {}
    for number, row in enumerate(read_jsonl(source, HINT), start=1):
        label = row.text("label").upper()
        if label not in LABELS:
            row.fail(f"the label is {label!r}, not one of {', '.join(LABELS)}")
        text = row.text("evidence").strip()
        document = text_digest(text)[:16]
        documents[document] = text
        key = str(row.value.get("id", number))
        if key in claims:
            row.fail(f"a second claim has the id {key!r}")
        claims[key] = Claim(key, row.text("claim"), (document,), label)
    if not claims:
        raise InvalidInputError(f"{source}: no claims.", hint=HINT)
    return ClaimSet(source.name, documents, tuple(claims.values()))
