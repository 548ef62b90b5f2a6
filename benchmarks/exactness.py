"""Is the exact tier exact? Greedy tokens and logits of injected prompts against reading the same tokens.

    python benchmarks/exactness.py --json results.json
    python benchmarks/exactness.py --squad dev-v1.1.json --model FOLDER

Every prompt is a chain of one to eight real passages and a real question. A chain of eight is asked first, when only
its first passage has a state (first use: the others are read and kept); then each of its beginnings, of one to eight
passages, with other questions (second use: everything but the question is injected). Passages are cut to
`--tokens`, at the end of a sentence where that is possible. By default they and the questions are those of the demo;
`--squad` takes a SQuAD v1.1 file.

The control reads the whole prompt with the injected answer behind it, in one pass. If the most likely token at every
place of the answer, its end included, is the answer's own, then greedy decoding after reading gives just that answer.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from nnm_core import NNM
from nnm_core.demo.dataset import passages, questions
from nnm_core.evaluation.benchmark import inject_always
from nnm_core.evaluation.datasets import load_questions
from nnm_core.evaluation.gates.corpus import remember
from nnm_core.injection.plan import make_plan
from nnm_core.injection.prefill import prefill
from nnm_core.injection.static import keeps_logits
from nnm_core.model.prompt import question_prompt

MAX_TOKENS = 16
LONGEST = 8
FIRST, ALL = "8 memories, first use", "1 to 8 memories, second use"


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


def main() -> None:
    """Run and print."""
    options = _options()
    generator = random.Random(options.seed)  # noqa: S311  # a repeatable choice, no secret
    started = time.perf_counter()
    with NNM.open(options.model) as nnm:
        inject_always(nnm)
        texts, questions_ = _squad(options.squad) if options.squad else _demo()
        texts = list(dict.fromkeys(shortened(nnm, text, options.tokens) for text in texts))
        generator.shuffle(texts)
        first, second = list(draw(texts, questions_, options.prompts, generator))
        used = sorted({text for prompt in first for text in prompt.texts})
        ids = {text: str(index) for index, text in enumerate(used)}
        remember(nnm, {name: text for text, name in ids.items()}, searchable=False)
        arms = {
            FIRST: Outcome(),
            **{_second(size): Outcome() for size in range(1, LONGEST + 1)},
            ALL: Outcome(),
        }
        later = iter(second)
        for prompt in track(first, "chains", transient=True):
            compare(nnm, prompt, ids, [arms[FIRST]])
            for follower in islice(later, LONGEST):
                compare(nnm, follower, ids, [arms[_second(len(follower.texts))], arms[ALL]])
        arms = {name: arm for name, arm in arms.items() if arm.prompts}
        _print(arms)
        config = {"model": nnm.model.name, "dtype": str(nnm.model.dtype), "fingerprint": nnm.stats()["fingerprint"]}
    config |= {"seed": options.seed, "tokens": options.tokens, "max_tokens": MAX_TOKENS}
    config["seconds"] = round(time.perf_counter() - started, 1)
    if options.json:
        options.json.write_text(json.dumps({"config": config, "arms": {k: vars(v) for k, v in arms.items()}}, indent=2))


def _second(size: int) -> str:
    return f"{size} {'memory' if size == 1 else 'memories'}, second use"


def compare(nnm: NNM, prompt: Prompt, ids: dict[str, str], outcomes: Sequence[Outcome]) -> None:
    """Answer by injection, read the same with the answer behind it, and count."""
    memories = [ids[text] for text in prompt.texts]
    answer = nnm.answer(prompt.question, memories=memories, policy="exact", max_tokens=MAX_TOKENS)
    segments = nnm._format.segments(question_prompt(prompt.question, nnm.get(memories), nnm.system))
    tokens = [token for segment in segments for token in segment.ids]
    read = read_behind(nnm, tokens, answer.token_ids)
    # The answer has left everything but the question in the tree: the same states as at second use.
    plan = make_plan(segments, "exact", nnm._answerer._find_exact, nnm._answerer._find_any)
    injected = prefill(nnm.model, plan, room=1)[1].float()
    for outcome in outcomes:
        outcome.prompts += 1
        outcome.equal += greedy(nnm, answer.token_ids, read)
        outcome.largest = max(outcome.largest, float((injected - read[0]).abs().max()))
        outcome.injected += answer.receipt.tokens_injected
        outcome.read += answer.receipt.tokens_read


@torch.inference_mode()
def read_behind(nnm: NNM, tokens: Sequence[int], answer: Sequence[int]) -> Tensor:
    """Logits [answer + 1, vocabulary] of one plain pass, by transformers alone: before each token of the answer, and
    behind the last.
    """
    ids = torch.tensor([[*tokens, *answer]], device=nnm.model.device)
    only = {"logits_to_keep": len(answer) + 1} if keeps_logits(nnm.model.hf) else {}
    logits: Tensor = nnm.model.hf(input_ids=ids, use_cache=False, **only).logits[0, -len(answer) - 1 :]
    return logits.float()


def greedy(nnm: NNM, answer: Sequence[int], logits: Tensor) -> bool:
    """Whether greedy decoding with these logits gives this answer, its end included."""
    likely = logits.argmax(-1).tolist()
    ended = len(answer) >= MAX_TOKENS or (bool(answer) and answer[-1] in nnm.model.eos_token_ids)
    return likely[:-1] == list(answer) and ended


def shortened(nnm: NNM, text: str, tokens: int) -> str:
    """The text's first sentences of at most so many tokens; if the first one is longer, its beginning."""
    encoded = nnm.model.tokenizer(text, add_special_tokens=False)["input_ids"]
    if len(encoded) <= tokens:
        return text
    cut = str(nnm.model.tokenizer.decode(encoded[:tokens]))
    end = cut.rfind(". ")
    return cut[: end + 1] if end > 0 else cut


def draw(texts: Sequence[str], asked: Sequence[str], count: int, generator: random.Random) -> Iterator[list[Prompt]]:
    """The prompts of first use, each a chain of as many passages as there can be; then `count` of second use.

    Of every eight in a row of the latter each begins a chain of the former, in order, with a question of its own.
    """
    longest = min(LONGEST, len(texts))
    chains = [tuple(generator.sample(list(texts), longest)) for _ in range(-(-count // LONGEST))]
    ask = cycle(generator.sample(list(asked), len(asked)))
    yield [Prompt(next(ask), chain) for chain in chains]
    yield [Prompt(next(ask), chains[n // LONGEST][: 1 + n % LONGEST]) for n in range(count)]


def _demo() -> tuple[list[str], list[str]]:
    return [passage.text for passage in passages()], [question.question for question in questions()]


def _squad(path: Path) -> tuple[list[str], list[str]]:
    found = load_questions(path)
    return list(found.passages.values()), [question.text for question in found.questions]


def _print(arms: dict[str, Outcome]) -> None:
    table = Table(title="Injected against read, greedy")
    for column in ("arm", "prompts", "same tokens", "largest |delta logit|", "tokens injected", "tokens read"):
        table.add_column(column, justify="left" if column == "arm" else "right")
    for name, arm in arms.items():
        share = f"{arm.equal} of {arm.prompts}"
        table.add_row(name, str(arm.prompts), share, f"{arm.largest:.1e}", str(arm.injected), str(arm.read))
    Console(width=110).print(table)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="nnm-mini")
    parser.add_argument("--squad", type=Path, help="a SQuAD v1.1 file; default: the demo's passages and questions")
    parser.add_argument("--prompts", type=int, default=500, help="chains at second use (default 500)")
    parser.add_argument("--tokens", type=int, default=80, help="longest passage (default 80)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_grad_enabled(False)
    return options


if __name__ == "__main__":
    main()
