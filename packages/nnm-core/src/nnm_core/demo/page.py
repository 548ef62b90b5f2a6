"""The demo's result as one HTML page that needs nothing else: no scripts, no other files, no network."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from nnm_core.demo.run import ARMS, Item
from nnm_core.demo.table import by_question, figures
from nnm_core.evaluation.report import seconds, visible

EXPLANATION = {
    "bare": "the question alone",
    "rag": "passages found by {retriever}, their text read in the prompt",
    "nnm": "passages found by NNM's own index, their states injected",
    "random": "states of passages that do not answer the question: what injection does by itself",
}

STYLE = """
:root { color-scheme: light dark; --ink: #22303c; --soft: #66788a; --line: #dde3e8; --paper: #fff; --tint: #f6f8fa;
        --good: #1a7f4b; --bad: #b3402e; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6ebf0; --soft: #9fb0c0; --line: #33414e; --paper: #17202a;
        --tint: #1e2a36; --good: #58c48c; --bad: #ec8573; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 72rem; padding: 2rem 1.25rem 4rem; background: var(--paper); color: var(--ink);
       font: 16px/1.5 system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1 { font-size: 1.7rem; margin: 0 0 .25rem; } h2 { font-size: 1.15rem; margin: 2.5rem 0 .75rem; }
p { margin: .25rem 0 1rem; max-width: 60rem; } .soft { color: var(--soft); }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(14rem, 1fr)); gap: 1rem; margin: 1.5rem 0; }
.card { border: 1px solid var(--line); border-radius: .6rem; padding: 1rem 1.1rem; background: var(--tint); }
.card h3 { margin: 0; font-size: 1rem; } .card .big { font-size: 1.9rem; font-weight: 650; line-height: 1.25; }
.card dl { display: grid; grid-template-columns: 1fr auto; gap: .1rem .75rem; margin: .5rem 0 0; font-size: .9rem; }
.card dt { color: var(--soft); } .card dd { margin: 0; text-align: right; font-variant-numeric: tabular-nums; }
img { width: 100%; border: 1px solid var(--line); border-radius: .6rem; background: #fff; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .93rem; }
th, td { text-align: left; vertical-align: top; padding: .5rem .7rem; border-bottom: 1px solid var(--line); }
thead th { position: sticky; top: 0; background: var(--paper); } tbody th { font-weight: 500; width: 28%; }
tfoot td, tfoot th { font-weight: 650; background: var(--tint); }
.right::before { content: "\\2713\\00a0"; color: var(--good); font-weight: 700; }
.wrong::before { content: "\\2717\\00a0"; color: var(--bad); font-weight: 700; } .wrong { color: var(--soft); }
small { color: var(--soft); display: block; }
"""


def save_page(
    items: Sequence[Item],
    arms: Mapping[str, Mapping[str, Any]],
    config: Mapping[str, Any],
    *,
    plot: Path | None,
    target: Path,
) -> None:
    """Write the page; `plot` is a PNG that becomes part of it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(render(items, arms, config, plot=plot), encoding="utf-8")


def render(
    items: Sequence[Item], arms: Mapping[str, Mapping[str, Any]], config: Mapping[str, Any], *, plot: Path | None
) -> str:
    """The page as text; every value from outside is escaped."""
    image = ""
    if plot is not None:
        data = base64.b64encode(plot.read_bytes()).decode("ascii")
        image = (
            f'<img alt="Right answers, tokens and time to first token of each arm" src="data:image/png;base64,{data}">'
        )
    cards = "\n".join(_card(name, row, config) for name, row in arms.items())
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Neural Native Memory: the demo</title>
<style>{STYLE}</style>
</head>
<body>
<h1>The same questions, answered four ways</h1>
<p class="soft">{_made_with(config)}</p>
<div class="cards">
{cards}
</div>
{image}
<h2>Question by question</h2>
<p class="soft">An answer counts as right if a gold answer stands in it. Under each: tokens read and injected, and the
time to the first token, retrieval included.</p>
<div class="scroll">
<table>
{_rows(items, arms)}
</table>
</div>
<h2>Where this comes from</h2>
<p>Passages: excerpts of Wikipedia articles, questions and gold answers: SQuAD v1.1 (Rajpurkar et al. 2016), both
CC BY-SA 4.0. {escape(str(config["questions"]))} questions tell arms apart that differ a lot, not ones that are close;
for measurements with intervals see the project's <code>benchmarks/</code>.</p>
</body>
</html>
"""


def _made_with(config: Mapping[str, Any]) -> str:
    shown = (
        f"{config['questions']} questions about {config['passages']} passages; model {Path(config['model']).name} on "
        f"{config['device']}; {config['k']} passage{'s' if config['k'] > 1 else ''} a question; policy "
        f"{config['policy']}; nnm-core {config['version']}, {config['date']}"
    )
    return escape(shown)


def _card(name: str, row: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    explanation = EXPLANATION[name].format(retriever=config["retriever"])
    return f"""<div class="card"><h3>{escape(ARMS[name])}</h3>
<div class="big">{row["right"]}<span class="soft"> of {row["questions"]}</span></div>
<small>{escape(explanation)}</small>
<dl><dt>tokens read</dt><dd>{row["tokens_read"]:.0f}</dd>
<dt>tokens injected</dt><dd>{row["tokens_injected"]:.0f}</dd>
<dt>first token after</dt><dd>{seconds(row["seconds_to_first_token"])}</dd></dl></div>"""


def _rows(items: Sequence[Item], arms: Mapping[str, Mapping[str, Any]]) -> str:
    head = "".join(f'<th scope="col">{escape(ARMS[name])}</th>' for name in arms)
    body = "\n".join(_row(row) for row in by_question(items))
    foot = "\n".join(
        f'<tr><th scope="row">{escape(label)}</th>{"".join(f"<td>{escape(value)}</td>" for value in values)}</tr>'
        for label, values in figures(arms)
    )
    return f"""<thead><tr><th scope="col">Question</th>{head}</tr></thead>
<tbody>
{body}
</tbody>
<tfoot>
{foot}
</tfoot>"""


def _row(row: Sequence[Item]) -> str:
    question = row[0].question
    golds = escape(" / ".join(question.answers))
    cells = "".join(_cell(item) for item in row)
    return f'<tr><th scope="row">{escape(question.question)}<small>gold: {golds}</small></th>{cells}</tr>'


def _cell(item: Item) -> str:
    receipt = item.answer.receipt
    kind = "right" if item.right else "wrong"
    cost = f"{receipt.tokens_read} read, {receipt.tokens_injected} injected, {seconds(receipt.seconds_to_first_token)}"
    answer = escape(visible(item.answer.text.strip())) or "(nothing)"
    return f'<td><span class="{kind}">{answer}</span><small>{escape(cost)}</small></td>'
