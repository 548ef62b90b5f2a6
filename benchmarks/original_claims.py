"""The headline results of the project that this one continues, made again with the mistake and without it.

    python benchmarks/original_claims.py --squad dev-v1.1.json --json out/original_claims.json

layout       It put a passage's states in front of the whole chat prompt and classic RAG's passage inside the user turn,
             and called the difference an effect of injection. Here: the same, and beside it a third arm that reads the
             very tokens that are injected.
truncation   Its needle test ran in a library that cut prompts at 2,048 tokens without saying so: RAG's prompt lost the
             question behind a long document, while document and question of the other arm were cut apart. Here: prompts
             cut at --limit tokens on purpose, in this program only, and the same prompts whole. Documents and limit are
             half as long as they were.
repetition   It counted greedy answers three times, once a seed that changed nothing. Here: McNemar's test of its
             published counts, and of the same counts with each item once (a third of them).

The figures of `published` are taken from its result files; the others are measured on this model.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

from nnm_core import NNM, Message
from nnm_core.demo import dataset
from nnm_core.evaluation.answers import contains_answer, exact_match
from nnm_core.evaluation.benchmark import environment, inject_always, parser
from nnm_core.evaluation.compare.questions import Question
from nnm_core.evaluation.datasets.load import load_questions
from nnm_core.evaluation.gates.corpus import remember
from nnm_core.evaluation.rag import plain_prompt
from nnm_core.evaluation.report import write_json
from nnm_core.evaluation.statistics import bootstrap, mcnemar, mcnemar_p
from nnm_core.records import Answer, Memory

ASKED = "What is the secret access code for this document?"
NEEDLE = "Note: The secret access code for this document is {}."
# (claim, items counted by the original, only NNM right, only RAG right, the same with each item once)
PUBLISHED = (
    ("TriviaQA, Qwen2.5-7B, 0.76 against 0.72", 300, (15, 3), (5, 1)),
    ("earlier Qwen run", 300, (30, 9), (10, 3)),
    ("Gemma run", 300, (30, 12), (10, 4)),
)


@dataclass
class Experiment:
    """An open engine and what the parts share."""

    engine: NNM
    options: argparse.Namespace

    def layout(self, questions: Sequence[Question], passages: dict[str, str]) -> dict[str, Any]:
        """EM of the passage inside the user turn, and before the chat prompt: injected, and read."""
        ids = list(dict.fromkeys(question.passage for question in questions))
        memories = remember(self.engine, {name: passages[name] for name in ids}, searchable=False)
        answers: dict[str, list[Answer]] = {"inside, read": [], "before, injected": [], "before, read": []}
        for question in track(questions, "layout", console=Console(stderr=True), transient=True):
            memory = memories[question.passage]
            inside = plain_prompt(question.question, [memory.text], self.engine.system)
            before = [Message("prompt", f"Context: {memory.text}\n\n{self.rendered(question.question)}")]
            answers["inside, read"].append(self.ask(inside))
            answers["before, read"].append(self.ask(before))
            self.ask(before, memory, max_tokens=1)  # is read here, and kept as it stands in this prompt
            injected = self.ask(before, memory)
            if not injected.receipt.tokens_injected:
                raise RuntimeError(f"nothing was injected: {injected.receipt}")
            answers["before, injected"].append(injected)
        right = {
            arm: [exact_match(answer.text, question.answers) for answer, question in zip(row, questions, strict=True)]
            for arm, row in answers.items()
        }
        same = sum(
            a.token_ids == b.token_ids
            for a, b in zip(answers["before, injected"], answers["before, read"], strict=True)
        )
        arms = {f"layout: {arm}": _score(values) for arm, values in right.items()}
        arms["layout: before, injected"] |= {
            "same_answer_as_read": same,
            "mcnemar_inside": asdict(mcnemar(right["before, injected"], right["inside, read"])),
        }
        return arms

    def truncation(self, texts: Sequence[str]) -> dict[str, Any]:
        """Needles found when prompts are cut at the limit, and when they are whole."""
        found: dict[str, list[float]] = {"RAG, cut": [], "NNM, cut": [], "RAG, whole": [], "NNM, whole": []}
        lengths: list[int] = []
        chance = random.Random(self.options.seed)  # noqa: S311 - a repeatable choice, no secret
        for number in track(range(self.options.cases), "needles", console=Console(stderr=True), transient=True):
            document, code = self.document(texts, chance)
            whole = plain_prompt(ASKED, [document], self.engine.system)
            ids = self.tokens(self.rendered(whole[-1].content))
            lengths.append(len(ids))
            cut = [Message("prompt", self.text(ids[: self.options.limit]))]
            said = {
                "RAG, cut": self.ask(cut),
                "NNM, cut": self.injected(f"cut-{number}", self.text(self.tokens(document)[: self.options.limit])),
                "RAG, whole": self.ask(whole),
                "NNM, whole": self.injected(f"whole-{number}", document),
            }
            for arm, answer in said.items():
                found[arm].append(float(contains_answer(answer.text, [code])))
        longer = [length > self.options.limit for length in lengths]
        arms = {f"needle: {arm}": _score(values) for arm, values in found.items()}
        for arm, values in found.items():
            fits = [value for value, long in zip(values, longer, strict=True) if not long]
            arms[f"needle: {arm}"]["among_uncut"] = statistics.fmean(fits) if fits else None
        for kind in ("cut", "whole"):
            test = mcnemar(found[f"NNM, {kind}"], found[f"RAG, {kind}"])
            arms[f"needle: NNM, {kind}"]["mcnemar_rag"] = asdict(test)
        return {"arms": arms, "prompts": len(lengths), "longer_than_limit": sum(longer)}

    def document(self, texts: Sequence[str], chance: random.Random) -> tuple[str, str]:
        """A document of half the original's length, one in six a little longer than the limit, with a needle in it."""
        goal = self.options.limit * (chance.uniform(1.0, 1.1) if chance.random() < 1 / 6 else chance.uniform(0.3, 0.9))
        parts: list[str] = []
        while len(self.tokens(" ".join(parts))) < goal:
            parts.append(chance.choice(texts))
        words = self.text(self.tokens(" ".join(parts))[: int(goal)]).split(" ")
        code = f"{chance.randrange(100_000, 1_000_000)}"
        # The needle stays in front of the cut, as nearly all of the original's did.
        words.insert(chance.randrange(int(len(words) * 0.85)), NEEDLE.format(code))
        return " ".join(words), code

    def injected(self, name: str, document: str) -> Answer:
        """The document as a memory; its state is injected, the question read behind it."""
        memory = remember(self.engine, {name: document}, searchable=False)[name]
        answer = self.engine.answer(ASKED, memories=[memory], policy="exact", max_tokens=self.options.max_tokens)
        if answer.receipt.tier != "exact":
            raise RuntimeError(f"nothing was injected: {answer.receipt}")
        return answer

    def ask(self, prompt: Sequence[Message], memory: Memory | None = None, max_tokens: int | None = None) -> Answer:
        """Answer a prompt; `memory` is looked for in it and injected once it is known there."""
        limit = max_tokens or self.options.max_tokens
        if memory is None:
            return self.engine.answer(prompt, mode="bare", max_tokens=limit)
        return self.engine.answer(prompt, references=[memory], policy="exact", max_tokens=limit)

    def rendered(self, content: str) -> str:
        """The chat prompt as text, ready to be answered."""
        system = self.engine.system
        turns = [{"role": "system", "content": system}] if system else []
        turns.append({"role": "user", "content": content})
        return str(self.engine.model.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))

    def tokens(self, text: str) -> list[int]:
        """Token ids of a text."""
        ids: list[int] = self.engine.model.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return ids

    def text(self, ids: Sequence[int]) -> str:
        """The text of token ids."""
        return str(self.engine.model.tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))


def published() -> list[dict[str, Any]]:
    """The tests of the original's counts, as counted and with each item once."""
    return [
        {
            "claim": claim,
            "counted": count,
            "as_counted": {"nnm": counted[0], "rag": counted[1], "p": mcnemar_p(*counted)},
            "each_item_once": {"items": count // 3, "nnm": once[0], "rag": once[1], "p": mcnemar_p(*once)},
        }
        for claim, count, counted, once in PUBLISHED
    ]


def _score(values: Sequence[float]) -> dict[str, Any]:
    interval = bootstrap(values)
    return {
        "right": sum(values),
        "items": len(values),
        "mean": interval.mean,
        "interval": [interval.low, interval.high],
    }


def main() -> None:
    """Measure, print, save."""
    options = _options()
    questions, passages = _data(options)
    with NNM.open(options.model, device=options.device) as engine:
        inject_always(engine)
        experiment = Experiment(engine, options)
        arms = experiment.layout(questions, passages)
        needles = experiment.truncation(sorted(passages.values()))
        config = environment(engine.model) | {
            "questions": len(questions),
            "needle_prompts": needles["prompts"],
            "needle_prompts_longer_than_limit": needles["longer_than_limit"],
            "limit": options.limit,
            "seed": options.seed,
        }
    report = {"arms": arms | needles["arms"], "published": published(), "config": config}
    write_json(options.json, report)
    console = Console(file=sys.stderr if str(options.json) == "-" else sys.stdout)
    for table in tables(report):
        console.print(table)


def tables(report: dict[str, Any]) -> list[Table]:
    """What is measured here, and the original's counts."""
    measured = Table("arm", "right", "95 %", title=f"Measured, {report['config']['model']}")
    for name, row in report["arms"].items():
        low, high = row["interval"]
        measured.add_row(name, f"{row['right']:.0f} of {row['items']}", f"[{low:.2f}, {high:.2f}]")
    counted = Table("claim", "as counted", "p", "each item once", "p", title="The original's counts")
    for row in report["published"]:
        old, new = row["as_counted"], row["each_item_once"]
        counted.add_row(row["claim"], f"{old['nnm']}:{old['rag']}", f"{old['p']:.4f}", f"{new['nnm']}:{new['rag']}",
                        f"{new['p']:.2f}")  # fmt: skip
    return [measured, counted]


def _data(options: argparse.Namespace) -> tuple[list[Question], dict[str, str]]:
    if options.squad is None:
        return dataset.questions()[: options.questions], {item.id: item.text for item in dataset.passages()}
    found = load_questions(options.squad)
    chosen = found.sample(options.questions, seed=options.seed).questions
    return [Question(q.id, q.text, q.answers, q.passages[0]) for q in chosen], dict(found.passages)


def _options() -> argparse.Namespace:
    options = parser(str(__doc__).splitlines()[0], repeats=1)
    options.description, options.formatter_class = __doc__, argparse.RawDescriptionHelpFormatter
    options.add_argument("--squad", type=Path, help="a SQuAD v1.1 file; default: the demo's passages and questions")
    options.add_argument("--questions", type=int, default=100, help="of the layout")
    options.add_argument("--cases", type=int, default=48, help="of the needles")
    options.add_argument(
        "--limit", type=int, default=1024, help="tokens at which prompts are cut, in this program only"
    )
    options.add_argument("--max-tokens", type=int, default=16)
    options.add_argument("--seed", type=int, default=0)
    return options.parse_args()


if __name__ == "__main__":
    main()
