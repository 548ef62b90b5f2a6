"""The whole path at toy size: tokenizer, rows, two training stages, resuming, export; and the toy task is really
learnt."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from recipe.config import load
from recipe.layout import ANSWER, CONTEXT, MARKUP, Segment
from recipe.pack import Packer, encode
from recipe.ranks import Ranks
from tokenizers import Tokenizer
from train import Trainer
from train_tokenizer import save, train

from nnm_mini._weights import materialise

THINGS = ["red", "blue", "green", "black", "white"]


def example(rng: Random) -> tuple[str, str, str]:
    """Three things with a digit each, a question about one of them, its digit."""
    things = rng.sample(THINGS, 3)
    values = [str(rng.randrange(10)) for _ in things]
    asked = rng.randrange(3)
    return " ".join(f"{t} {v}" for t, v in zip(things, values, strict=True)), things[asked], values[asked]


def segments(passage: str, question: str, answer: str) -> list[Segment]:
    return [Segment(passage, CONTEXT), Segment(f"\n {question}", MARKUP), Segment(f" {answer}<|im_end|>", ANSWER)]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A work folder with a tokenizer, text and rows of the toy task."""
    folder = tmp_path_factory.mktemp("work")
    rng = Random(0)
    tokenizer = train(iter([" ".join(example(rng)) + " 0 1 2 3 4 5 6 7 8 9" for _ in range(200)]), 320)
    save(tokenizer, folder / "tokenizer", context=256)
    packers = [Packer(length, folder / "rows" / "read", "toy", 64) for length in (96, 128)]
    for number, row in enumerate(encode(tokenizer, [segments(*example(rng)) for _ in range(12000)])):
        packers[number % 8 == 7].add(row)
    for packer in packers:
        packer.flush(everything=True)
    (folder / "text").mkdir()
    np.save(folder / "text" / "text-0.npy", np.full(400, 5, np.uint16))
    return folder


@pytest.mark.slow
def test_the_smoke_configuration_learns_to_look_up(work: Path, training: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load(training / "configs" / "smoke.json")
    trainer = Trainer(config, "base", work, Ranks())
    trainer.run(0.0)
    assert trainer.step == 200
    # A second program goes on where the first one stopped, and the third resumes the finished stage.
    trainer = Trainer(config, "final", work, Ranks())
    trainer.begin("final", work / "base.pt")
    assert trainer.step == 200
    trainer.run(0.0)
    assert Trainer(config, "final", work, Ranks()).step == 400
    losses = [json.loads(line) for line in (work / "losses.jsonl").read_text().splitlines()]
    assert losses[-1]["answer"] < 0.5 * losses[0]["answer"]

    import export

    arguments = ["--config", str(training / "configs" / "smoke.json"), "--checkpoint", str(work / "final.pt")]
    arguments += ["--tokenizer", str(work / "tokenizer"), "--out", str(work / "stored")]
    monkeypatch.setattr(sys, "argv", ["export.py", *arguments])
    export.main()
    folder = materialise(work / "stored", work / "cache")
    assert accuracy(folder) >= 0.9


def accuracy(folder: Path) -> float:
    """Share of 200 new lookups that the exported model gets right; chance is 0.1."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    rng = Random(99)
    right = 0
    for _ in range(200):
        passage, question, answer = example(rng)
        ids = torch.tensor([tokenizer.encode(f"{passage}\n {question}", add_special_tokens=False).ids])
        with torch.no_grad():
            token = int(model(input_ids=ids).logits[0, -1].argmax())
        right += tokenizer.decode([token]).strip() == answer
    return right / 200
