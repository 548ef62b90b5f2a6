"""Write a checkpoint as the stored weights of the package (int8, a scale a row) with config and tokenizer.

python export.py --config configs/full.json --checkpoint WORK/final.pt --tokenizer tokenizer --out
../src/nnm_mini/weights
    [--expanded FOLDER]      also as a plain fp32 folder for `transformers`, made from the int8 weights
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch
from recipe.config import Shape, load
from recipe.model import to_transformers, transformers_config
from recipe.quantise import save_shards, write_manifest

from nnm_mini._weights import expand

GENERATION = {"bos_token_id": 0, "eos_token_id": [2, 0], "pad_token_id": 0, "do_sample": False, "max_new_tokens": 32}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("config", "checkpoint", "tokenizer", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--expanded", type=Path)
    args = parser.parse_args()
    state = torch.load(args.checkpoint, map_location="cpu", weights_only=True)["model"]
    if args.out.exists():
        shutil.rmtree(args.out)
    save_shards({name: value.float().numpy() for name, value in to_transformers(state).items()}, args.out)
    shape = Shape(**load(args.config)["model"])
    (args.out / "config.json").write_text(json.dumps(transformers_config(shape), indent=1) + "\n")
    (args.out / "generation_config.json").write_text(json.dumps(GENERATION, indent=1) + "\n")
    for path in args.tokenizer.iterdir():
        if path.suffix in (".json", ".jinja"):
            shutil.copyfile(path, args.out / path.name)
    print(f"checksum {write_manifest(args.out)}")
    if args.expanded:
        args.expanded.mkdir(parents=True, exist_ok=True)
        expand(args.out, args.expanded)


if __name__ == "__main__":
    main()
