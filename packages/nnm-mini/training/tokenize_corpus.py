"""Turn Wikipedia text into token files, with many processes; held-out documents go into files of their own.

python tokenize_corpus.py --data DATA --tokenizer tokenizer --out WORK/text [--processes 14] [--part 0] FILE ...

Lines that share a window of words with a dev or test passage are dropped (`recipe.overlap`).
"""

from __future__ import annotations

import argparse
import os
from multiprocessing import Process
from pathlib import Path

import numpy as np
from recipe.corpus import Document, documents
from recipe.overlap import blocklist
from tokenizers import Tokenizer

SHARD_TOKENS = 300_000
BATCH = 256


def save(path: Path, tokens: list[np.ndarray]) -> None:
    """Write a token file atomically."""
    if not tokens:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    with temporary.open("wb") as file:
        np.save(file, np.concatenate(tokens))
    temporary.rename(path)


def work(args: argparse.Namespace, worker: int) -> None:
    """One process: every `processes`-th document of every file."""
    tokenizer = Tokenizer.from_file(str(args.tokenizer / "tokenizer.json"))
    blocked = blocklist(args.data)
    kept: dict[str, list[np.ndarray]] = {"text": [], "held-out": []}
    shards = 0

    def take(batch: list[Document]) -> None:
        texts = [f"{document.title}\n{blocked.clean(document.text)}" for document in batch]
        for document, encoded in zip(batch, tokenizer.encode_batch(texts, add_special_tokens=False), strict=True):
            kind = "held-out" if document.held_out else "text"
            kept[kind].append(np.array([0, *encoded.ids], np.uint16))

    for file in args.files:
        batch: list[Document] = []
        for number, document in enumerate(documents(file)):
            if number % args.processes == worker:
                batch.append(document)
            if len(batch) == BATCH:
                take(batch)
                batch = []
            if sum(map(len, kept["text"])) > SHARD_TOKENS:
                save(args.out / f"text-{args.part}-{worker:02d}-{shards:03d}.npy", kept["text"])
                kept["text"], shards = [], shards + 1
        take(batch)
    save(args.out / f"text-{args.part}-{worker:02d}-{shards:03d}.npy", kept["text"])
    save(args.out / f"held-out-{args.part}-{worker:02d}.npy", kept["held-out"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("data", "tokenizer", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--part", type=int, default=0, help="a number for the file names of this run")
    parser.add_argument("files", type=Path, nargs="+")
    args = parser.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    workers = [Process(target=work, args=(args, number)) for number in range(args.processes)]
    for process in workers:
        process.start()
    for process in workers:
        process.join()
    tokens = sum(len(np.load(file, mmap_mode="r")) for file in args.out.glob("text-*.npy"))
    print(f"{tokens / 1e6:.1f} M training tokens in {args.out}", flush=True)
    if any(process.exitcode for process in workers):
        raise SystemExit("a worker failed")


if __name__ == "__main__":
    main()
