"""Tables of recall on the results page: a set's arms and what each step brings, spans, abstaining, the index."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Result = Mapping[str, Any]
Table = tuple[list[str], list[list[str]]]

_DIFFERENCE = "ndcg@10_minus_"


def p_value(p: float) -> str:
    """A probability, short."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def retrieval_tables(result: Result) -> Iterator[tuple[str, Table]]:
    """Per set its title and arms, then its title and steps."""
    sets = result["config"]["sets"]
    for name, config in sets.items():
        found = result["sets"].get(name, result)
        title = f"{name}: {config['documents']:,} documents, {config['queries']:,} queries; nDCG@10"
        yield title, _arms(found["arms"])
        if found.get("ablation"):
            yield f"{name}: what each step brings (nDCG@10, paired by query)", _steps(found["ablation"])


def _arms(arms: Mapping[str, Result]) -> Table:
    references = list(dict.fromkeys(key for row in arms.values() for key in row if key.startswith(_DIFFERENCE)))
    head = ["arm", "nDCG@10 [95 %]", *(f"- {key.removeprefix(_DIFFERENCE)}" for key in references)]
    rows = [
        [
            name,
            f"{row['ndcg@10']:.4f} [{row['ndcg@10_interval'][0]:.3f}, {row['ndcg@10_interval'][1]:.3f}]",
            *(_difference(row.get(key)) for key in references),
            f"{row['recall@100']:.3f}",
            f"{row['mrr@10']:.3f}",
        ]
        for name, row in arms.items()
    ]
    return [*head, "recall@100", "MRR@10"], rows


def _steps(steps: Mapping[str, Result]) -> Table:
    rows = [
        [name, f"{found['mean']:+.4f}", f"[{found['low']:+.4f}, {found['high']:+.4f}]", p_value(found["p"])]
        for name, found in steps.items()
    ]
    return ["step", "difference", "95 %", "p"], rows


def choices(result: Result) -> list[str]:
    """What was chosen, and on what."""
    lines = []
    for name, config in result["config"]["sets"].items():
        if "rerank" in config:
            own, weights = config["rerank"]["own_sentences"], config["rerank"]["weights"]
            lines.append(
                f"{name}: {_weights(weights)} on {own['trials']} own sentences (mean reciprocal rank "
                f"{own['first_stage']:.3f} to {own['score']:.3f})."
            )
        if "judged" in config:
            judged = config["judged"]
            heads = f"{len(judged['heads'])} head{'s' * (len(judged['heads']) != 1)}"
            lines.append(
                f"{name}: {_weights(judged['weights'])}, {heads}, depth {judged['depth']} on "
                f"{judged['queries']} queries of {judged['data'].split('[')[0]} ({judged['baseline']:.4f} to "
                f"{judged['score']:.4f} on them)."
            )
    return lines


def citation_rows(result: Result) -> Table:
    """A figure a row: spans in %, areas under the ROC curve."""
    rows = []
    for name, found in result["arms"].items():
        if name.startswith("AUC"):
            rows.append([name, f"{found['mean']:.3f}", f"[{found['low']:.3f}, {found['high']:.3f}]"])
        else:
            interval = f"[{100 * found['low']:.1f}, {100 * found['high']:.1f}]" if "low" in found else ""
            rows.append([name, f"{100 * found['mean']:.1f} %", interval])
    return ["what", "figure", "95 %"], rows


def index_rows(result: Result) -> Table:
    """An operation a row: median, 99th percentile, recall against exact search, what ingest gives."""
    rows = []
    for name, row in result["arms"].items():
        times = [f"{row[key]:.1f} ms" if key in row else "" for key in ("p50_ms", "p99_ms")]
        rest = [f"{value:,.3f} {_named(key)}" for key, value in row.items() if key not in ("p50_ms", "p99_ms")]
        rows.append([name, *times, ", ".join(rest)])
    return ["what", "median", "99th percentile", ""], rows


def _named(key: str) -> str:
    return key.replace("_per_", " / ").replace("_", " ")


def _weights(weights: Mapping[str, float]) -> str:
    return "weights " + ", ".join(f"{name} {value:g}" for name, value in weights.items())


def _difference(found: Result | None) -> str:
    return "" if found is None else f"{found['mean']:+.4f} (p {p_value(found['p'])})"


def as_paragraphs(titled: Sequence[tuple[str, str]]) -> list[str]:
    """Titles in bold above their tables."""
    return [text for title, table in titled for text in (f"**{title}**", table)]
