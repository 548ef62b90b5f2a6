"""All training stages in one process a GPU, so that nothing is compiled twice: base, tune and write questions, final.

[torchrun --standalone --nproc-per-node N] python all_stages.py --config configs/full.json --work WORK --tokenizer
tokenizer [--init STORED]

The rows and passages must be made beside it (`run.py` does). Started again, it goes on from the last checkpoint.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch.distributed as dist
from recipe.config import load
from recipe.ranks import Ranks
from train import Trainer, start_clock
from write_questions import write_questions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("config", "work", "tokenizer"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--init", type=Path, help="stored weights to start from instead of random ones")
    args = parser.parse_args()
    ranks = Ranks()
    clock = start_clock(args.work, ranks)
    trainer = Trainer(load(args.config), "base", args.work, ranks)
    trainer.begin("base", args.init)
    if not (args.work / "final.pt").exists():
        trainer.run(clock)
        ranks.minimum([0.0])
        write_questions(trainer, clock, args.tokenizer)
    trainer.begin("final", args.work / "base.pt")
    trainer.run(clock)
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
