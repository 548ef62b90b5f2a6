"""Cut Wikipedia into passages for the question writer: `<out>/<n>.jsonl`, a line an article with title and passages.

python cut_passages.py --data DATA --out WORK/passages [--processes 4] [--per-article 8] [--share 1] [--files 8]
    [--notes 0]

`--notes` adds that share of articles made of generated facts, so that these get natural questions too. Passages of
held-out articles go to `<out>/held-out`: questions on them measure, and are never trained on.
"""

from __future__ import annotations

import argparse
import json
from multiprocessing import Process
from pathlib import Path
from random import Random
from typing import Any

from recipe.corpus import documents, passages
from recipe.examples import Builder
from recipe.overlap import blocklist


def work(args: argparse.Namespace, worker: int) -> None:
    """One process: its share of the documents, dealt to its share of the output files in random order."""
    rng = Random(worker)  # training data, no secret
    blocked = blocklist(args.data)
    lines: list[str] = []
    held_out: list[str] = []
    for file in sorted(args.data.glob("wikipedia/*.txt*")):
        for number, document in enumerate(documents(file)):
            if number % args.processes != worker or (rng.random() > args.share and not document.held_out):
                continue
            cut = passages(document.text, rng.randint(50, 150), 190)
            if len(cut) > args.per_article:
                start = rng.randrange(len(cut) - args.per_article + 1) if rng.random() < 0.6 else 0
                cut = cut[start : start + args.per_article]
            kept = [text for text in cut if 150 < len(text) < 1300 and not blocked.blocks(text)]
            if kept:
                line = json.dumps({"title": document.title, "passages": kept}, ensure_ascii=False)
                (held_out if document.held_out else lines).append(line)
    facts = Builder(rng)
    lines += [json.dumps(_notes(facts), ensure_ascii=False) for _ in range(round(args.notes * len(lines)))]
    rng.shuffle(lines)
    _save(args.out / "held-out" / f"{worker:02d}.jsonl", held_out)
    for part in range(args.files):
        _save(args.out / f"{part:02d}-{worker:02d}.jsonl", lines[part :: args.files])


def _notes(builder: Builder) -> dict[str, Any]:
    """Four notes of a few generated facts each, as one article."""
    return {"title": "", "passages": [builder.note(builder.rng.randint(2, 6)) for _ in range(4)]}


def _save(path: Path, lines: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text("\n".join(lines) + "\n" if lines else "", encoding="utf-8")
    temporary.rename(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--per-article", type=int, default=8)
    parser.add_argument("--share", type=float, default=1.0, help="share of the articles that is taken")
    parser.add_argument("--notes", type=float, default=0.0, help="articles of generated facts per Wikipedia article")
    parser.add_argument("--files", type=int, default=8, help="output files a process")
    args = parser.parse_args()
    workers = [Process(target=work, args=(args, number)) for number in range(args.processes)]
    for process in workers:
        process.start()
    for process in workers:
        process.join()
    if any(process.exitcode for process in workers):
        raise SystemExit("a worker failed")
    (args.out / "done").write_text("")


if __name__ == "__main__":
    main()
