"""Let the model write questions: tune it on real questions, sample answers and questions, keep those it answers back.

[torchrun --standalone --nproc-per-node N] python write_questions.py --config configs/full.json --work WORK --init
WORK/base.pt
    --tokenizer tokenizer

Reads WORK/passages (`cut_passages.py`) and WORK/rows/tune (`make_rows.py --stage tune`); writes WORK/written/*.jsonl:
a line an article, {"title", "passages": [{"text", "pairs": [[question, answer], ...]}]}. A rank takes its share of
the files.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any, Protocol

import torch
import torch.distributed as dist
from recipe.config import Shape, load
from recipe.decode import Decoder
from recipe.examples import Article, Builder, Passage
from recipe.layout import DONT_KNOW, chat, writer_prompt
from recipe.model import Reader
from recipe.ranks import Ranks
from tokenizers import Tokenizer
from train import Trainer, start_clock

Candidate = tuple[int, str, str]
"""Index of the passage in the batch, question, answer."""


def batches(files: list[Path], size: int) -> Iterator[list[dict[str, Any]]]:
    """Articles, about `size` passages at a time."""
    batch: list[dict[str, Any]] = []
    for file in files:
        for line in file.read_text(encoding="utf-8").splitlines():
            batch.append(json.loads(line))
            if sum(len(article["passages"]) for article in batch) >= size:
                yield batch
                batch = []
    if batch:
        yield batch


def parse(passage: str, text: str) -> tuple[str, str] | None:
    """(question, answer) of a sampled continuation, or None if it is malformed or the answer is not in the passage."""
    answer, marker, question = text.partition("\nQuestion:")
    answer, question = answer.strip(), question.strip()
    fits = marker and answer in passage and 0 < len(answer) <= 90 and "\n" not in question
    if (
        not fits
        or not question.endswith("?")
        or not 3 < len(question.split()) < 36
        or answer.lower() in question.lower()
    ):
        return None
    return question, answer


class Samples(Protocol):
    """What a writer needs of a model; `one_shape`: batches are filled up, so that one compiled shape serves all."""

    one_shape: bool

    def sample(
        self, prompts: list[list[int]], samples: int, new: int, temperatures: tuple[float, float], newline: int
    ) -> list[list[int]]:
        """`samples` continuations of each prompt; the second temperature holds after a newline."""
        ...

    def score(self, prompts: list[list[int]], answers: list[list[int]], rows: int) -> list[tuple[bool, float]]:
        """For each prompt: whether greedy decoding gives exactly the answer, and its mean log-probability."""
        ...


class Writer:
    """Samples and checks candidates for batches of passages."""

    def __init__(self, decoder: Samples, tokenizer: Any, settings: dict[str, Any]) -> None:
        self.decoder, self.tokenizer, self.settings = decoder, tokenizer, settings
        self.newline = self.ids(["\n"])[0][-1]
        self.builder = Builder(Random(settings.get("seed", 0)))  # training data, no secret
        self.counts = {"sampled": 0, "malformed": 0, "repeated": 0, "answered back": 0, "declined": 0}

    def ids(self, texts: list[str]) -> list[list[int]]:
        """Token ids without added tokens."""
        return [encoded.ids for encoded in self.tokenizer.encode_batch(texts, add_special_tokens=False)]

    def texts(self, rows: list[list[int]]) -> list[str]:
        """The texts of token ids, special tokens left out."""
        return list(self.tokenizer.decode_batch(rows))

    def writing(self, passage: str) -> str:
        """The prompt after which an answer, a line `Question:` and the question follow."""
        return "<|endoftext|>" + writer_prompt(passage)

    def reading(self, passages: list[str], asked: list[tuple[int, str]]) -> list[list[int]]:
        """Prompts to answer questions, each put to a passage by its index.

        Every passage is tokenised once: in the layout, its tokens never merge with its neighbours'.
        """
        head, _, tail = chat(["\0"], "\1").partition("\0")
        before, after = tail.split("\1")
        start, texts = self.ids([head])[0], self.ids(passages)
        questions = self.ids([before + question + after for _, question in asked])
        return [start + texts[index] + ids for (index, _), ids in zip(asked, questions, strict=True)]

    def answer(self, answer: str) -> str:
        """How an answer is written after such a prompt."""
        return f" {answer}<|im_end|>"

    def writing_ids(self, passages: list[str]) -> list[list[int]]:
        """Token ids of the writing prompts."""
        return self.ids([self.writing(passage) for passage in passages])

    def scores(self, passages: list[str], candidates: list[Candidate]) -> list[tuple[bool, float]]:
        """For each candidate: whether the model, asked, says exactly the answer, and its mean log-probability."""
        prompts = self.reading(passages, [(index, question) for index, question, _ in candidates])
        answers = self.ids([self.answer(answer) for _, _, answer in candidates])
        return self.decoder.score(prompts, answers, self.settings["passages_per_batch"])

    def candidates(self, passages: list[str]) -> list[Candidate]:
        """Well-formed samples, one for each answer of a passage."""
        settings = self.settings
        prompts = self.writing_ids(passages)
        size, longest = settings["passages_per_batch"], settings["longest_passage"]
        usable = [i for i, prompt in enumerate(prompts) if len(prompt) <= longest][:size]
        padding = [[0]] * (size - len(usable)) if self.decoder.one_shape else []
        temperatures = (settings["answer_temperature"], settings["question_temperature"])
        sampled = self.decoder.sample(
            [prompts[i] for i in usable] + padding,
            settings["samples"],
            settings["longest_text"],
            temperatures,
            self.newline,
        )
        texts = self.texts(sampled[: len(usable) * settings["samples"]])
        found: dict[tuple[int, str], str] = {}
        for number, text in enumerate(texts):
            index = usable[number // settings["samples"]]
            parsed = parse(passages[index], text)
            if parsed is None:
                self.counts["malformed"] += 1
            elif (index, parsed[1]) in found:
                self.counts["repeated"] += 1
            else:
                found[index, parsed[1]] = parsed[0]
        self.counts["sampled"] += len(texts)
        return [(index, question, answer) for (index, answer), question in found.items()]

    def pairs(self, passages: list[str]) -> list[list[tuple[str, str]]]:
        """For each passage the (question, answer) pairs that the reader answers back, or finds likely enough."""
        candidates = self.candidates(passages)
        scores = self.scores(passages, candidates)
        out: list[list[tuple[str, str]]] = [[] for _ in passages]
        for (index, question, answer), (exact, likelihood) in zip(candidates, scores, strict=True):
            if exact or likelihood > self.settings["least_log_probability"]:
                out[index].append((question, answer))
                self.counts["answered back"] += 1
        return out

    def declined(self, articles: list[Article], most: int) -> list[list[tuple[str, str]]]:
        """For each passage of all articles up to `most` questions that look answerable and that the model declines.

        Half of those that are tried come from other passages of the article, with their answer; the others have a
        name or date of the passage's own question changed, and an empty answer.
        """
        passages = [passage.text for article in articles for passage in article.passages]
        tried: list[Candidate] = []
        answers: list[str] = []
        start = 0
        for article in articles:
            for number in range(len(article.passages)):
                for question, answer in self.builder.absent(article, number, most):
                    tried.append((start + number, question, DONT_KNOW))
                    answers.append(answer)
            start += len(article.passages)
        out: list[list[tuple[str, str]]] = [[] for _ in passages]
        scores = self.scores(passages, tried) if tried else []
        for (index, question, _), answer, (exact, _) in zip(tried, answers, scores, strict=True):
            if exact:
                out[index].append((question, answer))
                self.counts["declined"] += 1
        return out


def write(writer: Writer, files: list[Path], out: Path, rank: int, stop: float) -> None:
    """Go through the passages until they end or the time is over; a file every few batches."""
    out.mkdir(parents=True, exist_ok=True)
    lines: list[str] = []
    shards = 0

    def flush() -> None:
        nonlocal lines, shards
        temporary = out / f"r{rank}-{shards:04d}.tmp"
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
        temporary.rename(temporary.with_suffix(".jsonl"))
        lines, shards = [], shards + 1

    for number, articles in enumerate(batches(files, writer.settings["passages_per_batch"])):
        passages = [text for article in articles for text in article["passages"]]
        found = iter(writer.pairs(passages))
        asked = [Article(a["title"], [Passage(text, next(found)) for text in a["passages"]]) for a in articles]
        declined = iter(writer.declined(asked, writer.settings.get("declined", 0)))
        for article, known in zip(articles, asked, strict=True):
            rows: list[dict[str, Any]] = [{"text": p.text, "pairs": p.pairs} for p in known.passages]
            if writer.settings.get("declined"):
                rows = [{**row, "declined": next(declined)} for row in rows]
            if any(row["pairs"] for row in rows):
                lines.append(json.dumps({"title": article["title"], "passages": rows}, ensure_ascii=False))
        if lines and number % writer.settings.get("flush_batches", 6) == 0:
            flush()
            print(f"rank {rank} {writer.counts}", flush=True)
        if time.time() > stop:
            break
    if lines:
        flush()
    print(f"rank {rank} {writer.counts}", flush=True)


def write_questions(trainer: Trainer, clock: float, tokenizer: Path) -> None:
    """Tune the trainer's model on real questions, then write until the config's time; the trainer's weights change."""
    config, work, ranks = trainer.config, trainer.work, trainer.ranks
    settings = config["write"]
    trainer.begin("tune")
    trainer.run(clock)
    by_steps = config["train"].get("unit") == "steps"
    stop = (time.time() if by_steps else clock) + settings["until"]
    torch.manual_seed(config["seed"] * 1000 + ranks.rank)
    files = sorted((work / "passages").glob("*.jsonl"))
    if trainer.cuda:
        torch.cuda.empty_cache()
    writer = Writer(Decoder(trainer.model, settings["length"]), load_tokenizer(tokenizer), settings)
    write(writer, files[ranks.rank :: ranks.world], work / "written", ranks.rank, stop)
    ranks.minimum([0.0])


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a folder."""
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def warm_up(config: dict[str, Any], tokenizer: Path) -> None:
    """Compile the writer's functions for this GPU with random weights, so that the compiler's cache holds them."""
    settings = config["write"]
    model = Reader(Shape(**config["model"])).to(Ranks().device)
    writer = Writer(Decoder(model, settings["length"]), load_tokenizer(tokenizer), settings)
    prompts = [[5] * 40] * settings["passages_per_batch"]
    writer.decoder.sample(prompts, settings["samples"], 3, (1.0, 1.0), writer.newline)
    writer.decoder.score(prompts, prompts, settings["passages_per_batch"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("config", "work", "init", "tokenizer"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--warm-up", action="store_true")
    args = parser.parse_args()
    config = load(args.config)
    if args.warm_up:
        warm_up(config, args.tokenizer)
        return
    ranks = Ranks()
    torch.manual_seed(config["seed"] + ranks.rank)
    trainer = Trainer(config, "tune", args.work, ranks)
    trainer.begin("tune", args.init)
    write_questions(trainer, start_clock(args.work, ranks), args.tokenizer)
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
