"""Make packed training rows of reading examples, with many processes, until a time limit or a number of rows.

python make_rows.py --config configs/full.json --stage read --data DATA --tokenizer tokenizer --out WORK/rows/read
    [--written WORK/written] [--processes 14] [--seconds 120] [--seed 1]

The config's `rows.<stage>` gives the share of each kind of example. Kind `written` reads the self-written questions.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator
from multiprocessing import Process
from pathlib import Path
from random import Random
from typing import Any

from recipe.config import load
from recipe.corpus import Document, documents
from recipe.examples import Article, Builder, Passage, Segments, article_by_rule
from recipe.overlap import Blocklist, blocklist
from recipe.pack import Packer, encode
from recipe.reading_sets import Reading, load_reading_sets
from tokenizers import Tokenizer

BATCH = 128


def my_documents(
    data: Path, worker: int, workers: int, blocked: Blocklist, rng: Random, held_out: bool = False
) -> Iterator[Document]:
    """Every `workers`-th training (or held-out) document, for ever; blocked lines are left out.

    The file that was read least often comes next, so that files that appear later are read as often as the others.
    """
    taken: dict[Path, int] = {}
    while True:
        files = [file for file in sorted(data.glob("wikipedia/*.txt*")) if file.suffix != ".part"]
        file = min(files, key=lambda f: (taken.get(f, 0), rng.random()))
        taken[file] = taken.get(file, 0) + 1
        for number, document in enumerate(documents(file)):
            if number % workers == worker and document.held_out == held_out:
                text = blocked.clean(document.text)
                if len(text) > 200:
                    yield Document(document.title, text)


def written_passage(row: dict[str, Any]) -> Passage:
    """One passage of a line of written questions."""
    pairs, declined = ([(question, answer) for question, answer in row.get(name, [])] for name in ("pairs", "declined"))
    return Passage(row["text"], pairs, declined)


def written_articles(folder: Path, worker: int, workers: int, rng: Random, passes: int) -> Iterator[Article | None]:
    """This worker's share of the articles with self-written questions, each at most `passes` times.

    None says that no article is left for now; files that appear later are picked up. Without the limit, the few
    files of
    the first minutes would fill all rows, and the reader would learn their passages by heart instead of learning
    to read.
    """
    taken: dict[Path, int] = {}
    while True:
        mine = sorted(folder.glob("*.jsonl"))
        fresh = [file for file in mine if taken.get(file, 0) < passes]
        if not fresh:
            yield None
            continue
        file = min(fresh, key=lambda f: (taken.get(f, 0), rng.random()))
        taken[file] = taken.get(file, 0) + 1
        # A share of the lines, not of the files: there may be fewer files than workers.
        lines = file.read_text(encoding="utf-8").splitlines()[worker::workers]
        rng.shuffle(lines)
        for line in lines:
            row = json.loads(line)
            yield Article(row["title"], [written_passage(p) for p in row["passages"]], "declined" in row["passages"][0])


class Source:
    """Draws examples of each kind. With `wait`, none is drawn in place of written questions that are used up."""

    def __init__(
        self,
        builder: Builder,
        texts: Iterator[Document],
        held_out: Iterator[Document],
        written: Iterator[Article | None],
        readings: list[Reading],
        wait: bool = False,
    ) -> None:
        self.wait = wait
        self.builder, self.texts, self.held_out, self.written = builder, texts, held_out, written
        self.readings = {name: [r for r in readings if r.source == name] for name in {r.source for r in readings}}
        self.rng = builder.rng

    def draw(self, kind: str) -> list[Segments]:
        """Some examples of one kind."""
        if kind == "article":
            return self.builder.from_article(article_by_rule(next(self.texts), self.rng))
        if kind == "written":
            article = next(self.written)
            if article is not None:
                return self.builder.from_article(article)
            if self.wait:
                time.sleep(0.2)
                return []
            return self.draw("article")  # all written questions are used up: fresh passages rather than repetition
        if kind == "facts":
            return [self.builder.facts()]
        if kind == "needle":
            return [self.builder.needle(self._long())]
        if kind == "none":
            return [self.builder.no_context()]
        if kind == "write-rule":
            article = article_by_rule(next(self.texts), self.rng, 3)
            return [s for passage in article.passages if (s := self.builder.writing(passage)) is not None]
        if kind == "check":
            return self.builder.checks(article_by_rule(next(self.held_out), self.rng))
        task, _, name = kind.partition(":")
        reading = self.rng.choice(self.readings[name])
        if task == "read":
            return [self.builder.from_reading(reading)]
        example = self.builder.writing(Passage(reading.passage, list(reading.pairs)))
        return [example] if example else []

    def _long(self) -> str:
        for document in self.texts:
            if len(document.text) > 2600:
                return document.text
        return ""


def work(args: argparse.Namespace, config: dict[str, Any], worker: int) -> None:
    """One process: draws kinds by their share of examples, tokenises in batches, packs."""
    rng = Random(args.seed * 1000 + worker)  # training data, no secret
    tokenizer = Tokenizer.from_file(str(args.tokenizer / "tokenizer.json"))
    blocked = blocklist(args.data)
    builder = Builder(rng, config.get("unanswerable", 0.15))
    written = written_articles(args.written, worker, args.processes, rng, config.get("written_passes", 3))
    source = Source(
        builder,
        my_documents(args.data, worker, args.processes, blocked, rng),
        my_documents(args.data, worker, args.processes, blocked, rng, held_out=True),
        written,
        load_reading_sets(args.data, blocked),
        config.get("wait_for_written", False),
    )
    packers = {
        length: Packer(length, args.out, f"w{worker}s{args.seed}", config["rows_per_shard"])
        for length in config["lengths"]
    }
    short, long = min(packers), max(packers)
    kinds, shares = list(config["mix"]), list(config["mix"].values())
    # Shares are of examples; a kind that gives several at once is drawn less often.
    drawn = dict.fromkeys(kinds, 1e-6)
    stop = time.time() + args.seconds
    rows, waiting = 0, []
    while time.time() < stop and rows < args.rows:
        kind = min(kinds, key=lambda k: drawn[k] / config["mix"][k] + rng.random() * 1e-3) if sum(shares) else kinds[0]
        found = source.draw(kind)
        if kind != "written" or found or not source.wait:
            drawn[kind] += len(found) or 0.5
        waiting += found
        if len(waiting) < BATCH:
            continue
        for example in encode(tokenizer, waiting):
            size = len(example["tokens"])
            if size <= long:
                packers[short if size <= short and rng.random() < config["short_share"] else long].add(example)
        waiting = []
        rows = sum(packer.rows for packer in packers.values())
    for packer in packers.values():
        packer.flush(everything=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--stage", required=True)
    for name in ("data", "tokenizer", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--written", type=Path, default=Path("written"))
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=1e9)
    parser.add_argument("--rows", type=int, default=10**9, help="rows a process at most")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    config = load(args.config)["rows"]
    config = {**config["common"], **config[args.stage]}
    workers = [Process(target=work, args=(args, config, number)) for number in range(args.processes)]
    for process in workers:
        process.start()
    for process in workers:
        process.join()
    print(f"rows for stage {args.stage} in {args.out}: {len(list(args.out.glob('*.npz')))} shards", flush=True)
    if any(process.exitcode for process in workers):
        raise SystemExit("a worker failed")


if __name__ == "__main__":
    main()
