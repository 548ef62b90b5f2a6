"""Is the exact tier exact? Greedy tokens and logits of injected prompts against reading the same tokens.

    python benchmarks/exactness.py --json results.json
    python benchmarks/exactness.py --squad dev-v1.1.json --prompts 500

Every prompt is a real passage (or a chain of passages) with a real question. By default the passages and questions
that ship with the demo are paired with each other, `--prompts` different pairs; `--squad` takes a SQuAD v1.1 file and
asks each question about its own passage. Chains of 1 to 8 memories are asked twice: at first use the missing parts are
read, at second use everything but the question is injected.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from nnm_core import NNM
from nnm_core.demo.dataset import passages, questions
from nnm_core.evaluation.benchmark import inject_always
from nnm_core.injection.plan import Plan, make_plan, read_plan
from nnm_core.injection.prefill import prefill
from nnm_core.model.prompt import question_prompt

MAX_TOKENS = 16


@dataclass(frozen=True)
class Prompt:
    """A question and the texts that are put before it."""

    question: str
    texts: tuple[str, ...]


@dataclass
class Outcome:
    """Counts over the prompts of one arm."""

    prompts: int = 0
    equal: int = 0
    largest: float = 0.0
    injected: int = 0
    read: int = 0

    def add(self, *, equal: bool, delta: float, plan: Plan) -> None:
        """Count one prompt."""
        self.prompts += 1
        self.equal += equal
        self.largest = max(self.largest, delta)
        self.injected += plan.tokens_injected
        self.read += plan.tokens_read


def main() -> None:
    """Run and print."""
    options = _options()
    generator = random.Random(options.seed)  # noqa: S311  # a repeatable choice, no secret
    singles = _from_squad(options.squad, generator) if options.squad else _from_demo(generator)
    prompts = singles[: options.prompts]
    chains = _chains(singles, options.chains, generator)
    with NNM.open(options.model) as nnm:
        inject_always(nnm)
        texts = sorted({text for prompt in [*prompts, *chains] for text in prompt.texts})
        nnm.add(texts, ids=[str(index) for index in range(len(texts))], progress=True)
        ids = {text: str(index) for index, text in enumerate(texts)}
        arms = {"one memory": Outcome(), "chain, first use": Outcome(), "chain, second use": Outcome()}
        for prompt in track(prompts, "one memory", transient=True):
            _compare(nnm, prompt, ids, arms["one memory"])
        for prompt in track(chains, "chains", transient=True):
            _compare(nnm, prompt, ids, arms["chain, first use"])
            _compare(nnm, prompt, ids, arms["chain, second use"])
        _print(arms)
        config = {"model": nnm.model.name, "dtype": str(nnm.model.dtype), "fingerprint": nnm.stats()["fingerprint"]}
    if options.json:
        document = {"config": {**config, "seed": options.seed}, "arms": {k: vars(v) for k, v in arms.items()}}
        options.json.write_text(json.dumps(document, indent=2))


def _compare(nnm: NNM, prompt: Prompt, ids: dict[str, str], outcome: Outcome) -> None:
    memories = [ids[text] for text in prompt.texts]
    delta, plan = _logit_delta(nnm, prompt, memories)
    read = nnm.answer(prompt.question, memories=memories, mode="read", max_tokens=MAX_TOKENS)
    injected = nnm.answer(prompt.question, memories=memories, policy="exact", max_tokens=MAX_TOKENS)
    outcome.add(equal=read.token_ids == injected.token_ids, delta=delta, plan=plan)


def _logit_delta(nnm: NNM, prompt: Prompt, memories: Sequence[str]) -> tuple[float, Plan]:
    """Largest |delta| of the first answer token's logits, through the engine's own plan; nothing is kept of it."""
    answerer = nnm._answerer
    nnm._left_state()
    segments = nnm._format.segments(question_prompt(prompt.question, nnm.get(memories), nnm.system))
    plan = make_plan(segments, "exact", answerer._find_exact, answerer._find_any)
    logits = [prefill(nnm.model, p, room=1)[1].float() for p in (plan, read_plan(segments))]
    return float((logits[0] - logits[1]).abs().max()), plan


def _from_demo(generator: random.Random) -> list[Prompt]:
    pairs = [Prompt(question.question, (passage.text,)) for question in questions() for passage in passages()]
    generator.shuffle(pairs)
    return pairs


def _from_squad(path: Path, generator: random.Random) -> list[Prompt]:
    articles = json.loads(path.read_text(encoding="utf-8"))["data"]
    pairs = [
        Prompt(item["question"], (paragraph["context"],))
        for article in articles
        for paragraph in article["paragraphs"]
        for item in paragraph["qas"]
    ]
    generator.shuffle(pairs)
    return pairs


def _chains(singles: Sequence[Prompt], count: int, generator: random.Random) -> list[Prompt]:
    texts = sorted({text for prompt in singles for text in prompt.texts})
    return list(_draw_chains(singles, texts, count, generator))


def _draw_chains(
    singles: Sequence[Prompt], texts: Sequence[str], count: int, generator: random.Random
) -> Iterator[Prompt]:
    for number in range(count):
        size = 1 + number % 8
        yield Prompt(singles[number % len(singles)].question, tuple(generator.sample(texts, size)))


def _print(arms: dict[str, Outcome]) -> None:
    table = Table(title="Injected against read, greedy")
    for column in ("arm", "prompts", "same tokens", "largest |delta logit|", "tokens injected", "tokens read"):
        table.add_column(column, justify="left" if column == "arm" else "right")
    for name, arm in arms.items():
        share = f"{arm.equal} of {arm.prompts}"
        table.add_row(name, str(arm.prompts), share, f"{arm.largest:.1e}", str(arm.injected), str(arm.read))
    Console().print(table)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="nnm-mini")
    parser.add_argument("--squad", type=Path, help="a SQuAD v1.1 file; default: the demo's passages and questions")
    parser.add_argument("--prompts", type=int, default=500, help="prompts of one memory (default 500)")
    parser.add_argument("--chains", type=int, default=40, help="prompts of 1 to 8 memories (default 40)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_grad_enabled(False)
    return options


if __name__ == "__main__":
    main()
