"""Average the stored weights of several checkpoints of one run, and make declining easier or harder.

python average.py --out ../src/nnm_mini/weights --tokenizer tokenizer STORED=0.5 STORED=0.5 [--decline-shift 3
--data DATA]

The average of two points of one run often reads better than either. `--decline-shift` lowers the logit of the
first token
of "I don't know." where an answer starts, by about that much: row -= shift * h / |h|^2, where h is the mean final
hidden
state there over 48 questions of the SQuAD training subset. No dev or test text is used.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recipe.layout import DONT_KNOW, chat
from recipe.quantise import load_stored, save_shards, write_manifest
from recipe.reading_sets import squad_train

from nnm_mini._weights import expand

Weights = dict[str, np.ndarray[Any, np.dtype[np.float32]]]


@torch.no_grad()
def answer_start(folder: Path, data: Path, count: int = 48) -> torch.Tensor:
    """The mean final hidden state where an answer starts, [hidden]."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    readings = [reading for reading in squad_train(data) if len(reading.passage) < 700][:count]
    states = []
    for reading in readings:
        ids = tokenizer(chat([reading.passage], reading.pairs[0][0]), add_special_tokens=False, return_tensors="pt")[
            "input_ids"
        ]
        states.append(model.model(input_ids=ids).last_hidden_state[0, -1])
    return torch.stack(states).mean(0)


def mean(weights: dict[str, Weights], recipe: dict[str, float]) -> Weights:
    """The weighted sum of some parts."""
    first = weights[next(iter(recipe))]
    return {
        key: np.sum(
            [np.float32(share) * weights[name][key] for name, share in recipe.items()], axis=0, dtype=np.float32
        )
        for key in first
    }


def write(weights: Weights, source: Path, tokenizer: Path, out: Path) -> str:
    """Store weights with the config files of `source` and the tokenizer."""
    configs = {name: (source / name).read_bytes() for name in ("config.json", "generation_config.json")}
    if out.exists():
        shutil.rmtree(out)
    save_shards(dict(weights), out)
    for name, content in configs.items():
        (out / name).write_bytes(content)
    for path in tokenizer.iterdir():
        if path.suffix in (".json", ".jinja"):
            shutil.copyfile(path, out / path.name)
    return write_manifest(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--decline-shift", type=float, default=0.0)
    parser.add_argument("--data", type=Path)
    parser.add_argument("parts", nargs="+", metavar="STORED=WEIGHT")
    args = parser.parse_args()
    given = [part.rpartition("=") for part in args.parts]
    source = Path(given[0][0])
    parts = {str(number): load_stored(Path(folder)) for number, (folder, _, _) in enumerate(given)}
    total = mean(parts, {str(number): float(share) for number, (_, _, share) in enumerate(given)})
    checksum = write(total, source, args.tokenizer, args.out)
    if args.decline_shift and args.data:
        from tokenizers import Tokenizer

        with tempfile.TemporaryDirectory() as name:
            expand(args.out, Path(name))
            state = answer_start(Path(name), args.data).numpy()
        first = Tokenizer.from_file(str(args.tokenizer / "tokenizer.json")).encode(f" {DONT_KNOW}").ids[0]
        total["model.embed_tokens.weight"][first] -= args.decline_shift * state / np.square(state).sum()
        checksum = write(total, args.out, args.tokenizer, args.out)
    print(f"checksum {checksum}")


if __name__ == "__main__":
    main()
