"""Write the scores of `evaluate.py` into the model card, between its two `scores` comments.

python card.py --card ../MODEL_CARD.md --column shipped A.json B.json [--column before C.json ...]

Each column takes the JSON files of one model; a measure that no file holds is written as `not measured`, one of a
sample (`evaluate.py --limit`) says how many cases it has.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

START, END = "<!-- scores -->", "<!-- end of scores -->"
ROWS: tuple[tuple[str, str, str, str], ...] = (
    ("SQuAD v1.1 dev, gold passage (4,650): EM / F1 / declined %", "squad", "{em} / {f1} / {declined}", "EM >= 48"),
    ("the same with 3 distractors", "distractors", "{em} / {f1} / {declined}", "within 4 points"),
    ("closed book EM", "closed", "{em}", "under 5"),
    (
        "SQuAD 2.0 unanswerable declined (2,877); answerable EM / declined %",
        "unanswerable",
        "{declined} %; {answerable_em} / {answerable_declined}",
        ">= 60 % at EM >= 48",
    ),
    ("needle, unseen wording (100)", "needle", "{em}", ">= 97"),
    ("facts held out by wording and name (1,000): EM", "facts", "{em}", ">= 95"),
    (
        "4 passages independent over joint: EM / EM = ratio",
        "independent",
        "{em} / {em_read_together} = {ratio}",
        ">= 0.97",
    ),
    ("held-out Wikipedia perplexity a token", "perplexity", "{perplexity}", "not worse than the prototype (limits)"),
)


def merged(paths: list[str]) -> dict[str, dict[str, Any]]:
    """The arms of several JSON files."""
    arms: dict[str, dict[str, Any]] = {}
    for path in paths:
        result = json.loads(Path(path).read_text(encoding="utf-8"))
        limit = result["config"]["limit"]
        for task, arm in result["arms"].items():
            sampled = limit and arm.get("cases", 0) >= limit
            arms[task] = {**arm, "note": f" (even sample of {arm['cases']})" if sampled else ""}
    return arms


def table(columns: dict[str, dict[str, dict[str, Any]]]) -> str:
    """A Markdown table, a row a measure and a column a model."""
    lines = [f"| measure | {' | '.join(columns)} | reach |", "|---|" + "---|" * (len(columns) + 1)]
    for label, task, form, reach in ROWS:
        cells = [
            form.format(**arms[task]) + arms[task]["note"] if task in arms else "not measured"
            for arms in columns.values()
        ]
        lines.append(f"| {label} | {' | '.join(cells)} | {reach} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--card", type=Path, required=True)
    parser.add_argument("--column", action="append", nargs="+", required=True, metavar="NAME JSON")
    args = parser.parse_args()
    text = args.card.read_text(encoding="utf-8")
    written = table({name: merged(paths) for name, *paths in args.column})
    pattern = re.compile(f"{re.escape(START)}.*{re.escape(END)}", re.DOTALL)
    if not pattern.search(text):
        raise SystemExit(f"{args.card} has no lines {START} and {END}")
    args.card.write_text(pattern.sub(lambda _: f"{START}\n{written}\n{END}", text), encoding="utf-8")
    print(written)


if __name__ == "__main__":
    main()
