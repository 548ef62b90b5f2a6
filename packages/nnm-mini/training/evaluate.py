"""Measure a model folder: greedy answers with plain `transformers`, no memory engine. Prints every row and writes JSON.

python evaluate.py --model FOLDER --data DATA --json FILE [--tasks squad,needle] [--limit 500] [--device cuda]
[--samples 0]

`--limit` takes an even sample of each set (for a CPU); without it the sets are whole. `--model bundled` is the
package's.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from recipe.corpus import Document, documents
from recipe.generation import Answerer, perplexity
from recipe.scores import summary
from recipe.tasks import Case, closed_book, held_out_facts, needles, squad, with_distractors

TASKS = ("squad", "distractors", "closed", "unanswerable", "needle", "facts", "independent", "perplexity")
_WHICH_FILE = "enwiki"


def thinned(cases: list[Case], limit: int | None) -> list[Case]:
    """An even sample of at most `limit` cases."""
    if not limit or len(cases) <= limit:
        return cases
    return [cases[i * len(cases) // limit] for i in range(limit)]


def held_out_documents(data: Path, most: int = 200) -> list[Document]:
    """Held-out articles of the first encyclopedia file, in order."""
    files = sorted(data.glob("wikipedia/*.txt*"))
    file = next((f for f in files if f.name.startswith(_WHICH_FILE)), files[0])
    out: list[Document] = []
    for document in documents(file):
        if document.held_out and len(document.text) > 2500:
            out.append(document)
        if len(out) >= most:
            break
    return out


class Measurement:
    """Runs the tasks and collects rows."""

    def __init__(self, answerer: Answerer, data: Path, limit: int | None, samples: int) -> None:
        self.answerer, self.data, self.limit, self.samples = answerer, data, limit, samples
        self.dev = squad(data / "squad" / "dev-v1.1.json.gz")

    def row(self, cases: Sequence[Case], answer: Callable[[Sequence[Case]], list[str]]) -> dict[str, Any]:
        """Scores of one set of cases, with a few samples."""
        predictions = answer(cases)
        result: dict[str, Any] = dict(summary(predictions, [case.golds for case in cases]))
        if self.samples:
            step = max(1, len(cases) // self.samples)
            result["samples"] = [
                (c.question, p, list(c.golds[:1])) for c, p in list(zip(cases, predictions, strict=True))[::step]
            ]
        return result

    def measure(self, task: str) -> dict[str, Any]:
        """One row of the table."""
        read = self.answerer.answers
        if task == "squad":
            return self.row(thinned(self.dev, self.limit), read)
        if task == "distractors":
            return self.row(thinned(with_distractors(self.dev, 3), self.limit), read)
        if task == "closed":
            return self.row(thinned(closed_book(self.dev), self.limit), read)
        if task == "unanswerable":
            path = self.data / "squad" / "dev-v2.0.json.gz"
            result = self.row(thinned(squad(path, answerable=False), self.limit), read)
            answerable = self.row(thinned(squad(path), self.limit), read)
            return {**result, "answerable_em": answerable["em"], "answerable_declined": answerable["declined"]}
        if task == "needle":
            return self.row(thinned(needles(held_out_documents(self.data), 100), self.limit), read)
        if task == "facts":
            return self.row(thinned(held_out_facts(), self.limit), read)
        if task == "independent":
            cases = thinned(with_distractors(self.dev, 3), self.limit)
            alone, together = self.row(cases, self.answerer.composed_answers), self.row(cases, read)
            ratio = round(alone["em"] / max(together["em"], 1e-9), 4)
            return {**alone, "em_read_together": together["em"], "f1_read_together": together["f1"], "ratio": ratio}
        texts = [f"{document.title}\n{document.text}" for document in held_out_documents(self.data)]
        return dict(
            perplexity(self.answerer.model, self.answerer.tokenizer, texts[: max(1, (self.limit or 1600) // 8)])
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--limit", type=int)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--budget", type=int, help="padded tokens in a batch; fewer need less memory")
    parser.add_argument("--samples", type=int, default=0, help="answers of each set that go into the JSON")
    args = parser.parse_args()
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = args.model
    if folder == "bundled":
        import nnm_mini

        folder = str(nnm_mini.path())
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).to(args.device).eval()
    answerer = Answerer(
        model, AutoTokenizer.from_pretrained(folder), args.budget or (400_000 if "cuda" in args.device else 6_000)
    )
    measurement = Measurement(answerer, args.data, args.limit, args.samples)
    arms: dict[str, Any] = {}
    for task in args.tasks.split(","):
        began = time.time()
        arms[task] = measurement.measure(task)
        arms[task]["seconds"] = round(time.time() - began, 1)
        print(task, json.dumps({name: value for name, value in arms[task].items() if name != "samples"}), flush=True)
        if args.json:
            config = {"model": args.model, "limit": args.limit, "device": args.device}
            args.json.write_text(json.dumps({"arms": arms, "config": config}, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
