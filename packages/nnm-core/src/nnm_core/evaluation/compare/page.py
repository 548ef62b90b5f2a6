"""A comparison as one HTML page that a person reads in a minute."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnm_core.errors import StorageError
from nnm_core.evaluation.compare.arms import EXPLANATIONS, LABELS
from nnm_core.evaluation.compare.findings import findings
from nnm_core.evaluation.compare.items import Item
from nnm_core.evaluation.compare.style import document
from nnm_core.evaluation.compare.table import COLUMNS, cells
from nnm_core.evaluation.report import seconds, snippet, visible

if TYPE_CHECKING:
    from nnm_core.evaluation.compare.run import Comparison

TITLE = "Neural Native Memory beside classic RAG"
SHOWN_ITEMS = 200
CAPTIONS = {
    "quality": ("Answers", "Exact match (full) and F1 (pale), with 95 % bootstrap intervals over the questions."),
    "first_token": ("Time to the first token", "Median over the questions, retrieval included; a dot is a question."),
    "tokens": ("Tokens of a prompt", "Mean; what is injected is loaded from a state and not computed again."),
    "latency": ("First token over the length of the prompt", "Medians of a few questions at each number of passages."),
    "break_even": ("Break-even", "Seconds in total: ingest once, then every question. A dot: from here on it pays."),
}
GENERATED = (
    "These questions were generated from the documents by rule: a sentence with a gap. They share most of their words "
    "with the passage that answers them, so retrieval is easier than with questions of people. Give your own with "
    "--questions FILE."
)


def save_page(comparison: Comparison, drawn: Mapping[str, str], target: Path, *, title: str = TITLE) -> None:
    """Write the page; `drawn` are the SVGs of `plots.plots`.

    Raises:
        StorageError: it cannot be written.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(render(comparison, drawn, title=title), encoding="utf-8")
    except OSError as error:
        raise StorageError(
            f"Cannot write {target}: {error.strerror}.", hint="Name another folder with --out."
        ) from error


def render(comparison: Comparison, drawn: Mapping[str, str], *, title: str = TITLE) -> str:
    """The page as text; every value from outside is escaped."""
    config = comparison.config
    figures = "\n".join(_figure(name, drawn[name]) for name in CAPTIONS if name in drawn)
    sentences = "\n".join(f"<li>{escape(sentence)}</li>" for sentence in findings(comparison))
    body = f"""<h1>{escape(title)}</h1>
<p class="soft">{escape(made_with(config))}</p>
{_notes(comparison)}
<ul class="findings">
{sentences}
</ul>
<div class="plots">
{figures}
</div>
<h2>All figures</h2>
<div class="scroll"><table class="figures">
{_figures_table(comparison.arms, config)}
</table></div>
{_legend(comparison.arms, config["retriever"])}
<p class="soft">EM and F1 as SQuAD counts them. Gold given: a gold answer stands in the passages that the model was
given. Supported: the answer itself stands in them. Tokens are means of a prompt, times medians. Differences are paired
by question; p is the exact McNemar test. All arms have the same model, decoding and prompt layout.</p>
<h2>Question by question</h2>
{_items(comparison)}
{f"<p>{escape(str(config['source']))}</p>" if "source" in config else ""}
"""
    return document(escape(title), body)


def made_with(config: Mapping[str, Any]) -> str:
    """One line on how the comparison was made."""
    return (
        f"{config['questions']} questions about {config['passages']} passages, {config['k']} a question; model "
        f"{Path(str(config['model'])).name} on {config['device']}; classic RAG: {config['retriever']}; "
        f"nnm-core {config['versions'].get('nnm-core', '?')}, {config['machine']}, {config['cores']} cores, "
        f"{config['date']}"
    )


def _notes(comparison: Comparison) -> str:
    config = comparison.config
    notes = [GENERATED] if config["questions_generated"] else []
    if comparison.left_out:
        notes.append(
            f"{len(comparison.left_out)} questions are left out of all arms, because their prompt does not fit the "
            f"model's context in one of them; nothing was cut."
        )
    if config["questions_with_gold"] == 0:
        notes.append("No question has a gold answer, so that only support and cost can be compared.")
    if config["questions"] < 100:
        notes.append(f"{config['questions']} questions tell arms apart that differ a lot, not ones that are close.")
    return "\n".join(f'<p class="note">{escape(note)}</p>' for note in notes)


def _figure(name: str, svg: str) -> str:
    title, caption = CAPTIONS[name]
    label = f'role="img" aria-label="{escape(title)}"'
    drawing = svg.replace("<svg", f"<svg {label}", 1)
    return f"<figure><h3>{escape(title)}</h3>{drawing}<figcaption>{escape(caption)}</figcaption></figure>"


def _figures_table(arms: Mapping[str, Mapping[str, Any]], config: Mapping[str, Any]) -> str:
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in ("arm", *COLUMNS))
    rows = []
    for name, row in arms.items():
        what = escape(explain(name, config["retriever"]))
        values = "".join(f"<td>{escape(value)}</td>" for value in cells(row))
        rows.append(f'<tr><th scope="row" title="{what}">{escape(LABELS[name])}</th>{values}</tr>')
    return f"<thead><tr>{head}</tr></thead>\n<tbody>\n{chr(10).join(rows)}\n</tbody>"


def _legend(arms: Iterable[str], retriever: str) -> str:
    rows = [f"<dt>{escape(LABELS[name])}</dt><dd>{escape(explain(name, retriever))}</dd>" for name in arms]
    return f'<dl class="legend">{"".join(rows)}</dl>'


def explain(arm: str, retriever: str) -> str:
    """What an arm does, in one line."""
    return EXPLANATIONS[arm].format(retriever=retriever)


def _items(comparison: Comparison) -> str:
    rows = by_question(comparison.items)
    head = "".join(f'<th scope="col">{escape(LABELS[name])}</th>' for name in comparison.arms)
    body = "\n".join(item_row(row) for row in rows[:SHOWN_ITEMS])
    rest = f"<p class='soft'>{len(rows) - SHOWN_ITEMS} more are in the JSON.</p>" if len(rows) > SHOWN_ITEMS else ""
    return f"""<details{" open" if len(rows) <= 30 else ""}><summary>{len(rows)} questions</summary>
<div class="scroll"><table class="items">
<thead><tr><th scope="col">Question</th>{head}</tr></thead>
<tbody>
{body}
</tbody></table></div>{rest}</details>"""


def by_question(items: Sequence[Item]) -> list[list[Item]]:
    """The items of each question together, in the order of the arms."""
    rows: dict[str, list[Item]] = {}
    for item in items:
        rows.setdefault(item.question.id, []).append(item)
    return list(rows.values())


def item_row(row: Sequence[Item]) -> str:
    """A table row: the question, its gold answers, and what each arm answered at what cost."""
    question = row[0].question
    golds = f"<small>gold: {escape(visible(' / '.join(question.answers)))}</small>" if question.answers else ""
    cells = "".join(map(_cell, row))
    return f'<tr><th scope="row">{escape(visible(question.question))}{golds}</th>{cells}</tr>'


def _cell(item: Item) -> str:
    receipt = item.answer.receipt
    kind = ("right" if item.right else "wrong") if item.question.answers else ""
    cost = f"{receipt.tokens_read} read, {receipt.tokens_injected} injected, {seconds(receipt.seconds_to_first_token)}"
    answer = escape(snippet(item.answer.text, 300)) or "(nothing)"
    return f'<td><span class="{kind}">{answer}</span><small>{escape(cost)}</small></td>'
