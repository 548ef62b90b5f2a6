"""Limit how often the reader declines what it could answer, on natural questions about held-out articles.

python calibrate.py --stored WORK/export-final --tokenizer tokenizer --out WORK/calibrated [--most-lost 0.1] [--shift 2]

Lowers the logit of the first token of "I don't know." where an answer starts, by about `shift`: row -= shift * h /
|h|^2,
where h is the mean final hidden state there. Of the questions that the reader answers rightly (F1 >= 0.5) when it may
not
decline, the share that it declines is what declining costs; the smallest shift that keeps this share within
`--most-lost` is
taken. The questions, 112 that can be answered and 56 that can not, were written by hand for passages of held-out
Wikipedia
articles (`recipe/calibration.jsonl`): neither training nor dev or test text.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from random import Random
from typing import Any

import torch
from average import Weights, write
from recipe.examples import Builder
from recipe.layout import DONT_KNOW, chat
from recipe.quantise import load_stored
from recipe.scores import exact, f1
from torch import Tensor

from nnm_mini._weights import expand

QUESTIONS = Path(__file__).parent / "recipe" / "calibration.jsonl"
Look = tuple[Tensor, float, str]
Case = tuple[str, str]
"""A prompt up to where the answer starts, and the answer; no answer means that it should be declined."""


def cases() -> list[Case]:
    """The hand-written questions in the measured layout."""
    out: list[Case] = []
    for line in QUESTIONS.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        out += [(chat([row["passage"]], question), answer) for question, answer in row["pairs"]]
        out += [(chat([row["passage"]], question), "") for question in row["unanswerable"]]
    return out


def written_cases(folder: Path, most: int, seed: int = 5) -> list[Case]:
    """Questions that another model wrote on held-out articles (`write_with_model.py`); a third can not be answered.

    Those are put to the passage without the answer's sentences, or to another passage of the article.
    """
    rng = Random(seed)
    builder = Builder(rng)
    out: list[Case] = []
    for file in sorted(folder.glob("*.jsonl")):
        for line in file.read_text(encoding="utf-8").splitlines():
            texts = [passage["text"] for passage in json.loads(line)["passages"]]
            for passage in json.loads(line)["passages"]:
                for question, answer in passage["pairs"][:2]:
                    out.append((chat([passage["text"]], question), answer))
                for question, answer in passage["pairs"][2:3]:
                    others = [text for text in texts if text != passage["text"]]
                    text = builder.without_sentence(passage["text"], answer)[0]
                    text = rng.choice(others) if others and rng.random() < 0.5 else text
                    if answer.lower() not in text.lower():
                        out.append((chat([text], question), ""))
    rng.shuffle(out)
    return out[:most]


class Probe:
    """Where answers start: hidden states, and what the reader says if it may not decline."""

    def __init__(self, folder: Path, device: str) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        model: Any = AutoModelForCausalLM.from_pretrained(folder)
        self.model = model.to(device).eval()
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        self.device, self.rows = device, 128 if "cuda" in device else 4
        self.decline = int(self.tokenizer(f" {DONT_KNOW}", add_special_tokens=False)["input_ids"][0])

    @torch.no_grad()
    def look(self, prompts: list[str]) -> list[Look]:
        """The final hidden state [hidden], the margin of declining over the best other token, and the answer without
        it."""
        out: list[Look] = []
        for start in range(0, len(prompts), self.rows):
            rows = prompts[start : start + self.rows]
            found = self.tokenizer(
                rows, add_special_tokens=False, return_tensors="pt", padding=True, padding_side="left"
            ).to(self.device)
            places = (found["attention_mask"].cumsum(1) - 1).clamp(min=0)
            states = self.model.model(**found, position_ids=places).last_hidden_state[:, -1]
            logits = self.model.lm_head(states).float()
            others = logits.index_fill(1, torch.tensor([self.decline], device=self.device), float("-inf"))
            margins = logits[:, self.decline] - others.max(1).values
            said = self.model.generate(
                **found, max_new_tokens=24, do_sample=False, begin_suppress_tokens=[self.decline], eos_token_id=[2, 0]
            )[:, found["input_ids"].shape[1] :]
            texts = self.tokenizer.batch_decode(said, skip_special_tokens=True)
            out += [
                (state, margin, text.strip())
                for state, margin, text in zip(states.float().cpu(), margins.tolist(), texts, strict=True)
            ]
        return out


def shares(probes: list[Look], chosen: list[Case], shift: float) -> dict[str, float]:
    """Exact, F1, declined, lost and rightly declined in percent at one shift."""
    states = torch.stack([state for state, _, _ in probes])
    can = torch.tensor([bool(answer) for _, answer in chosen])
    mean = states[can].mean(0)
    margins = torch.tensor([margin for _, margin, _ in probes]) - shift * (states @ mean) / mean.square().sum()
    says = margins > 0
    exacts = torch.tensor([exact(said, [a]) if a else 0.0 for (_, _, said), (_, a) in zip(probes, chosen, strict=True)])
    f1s = torch.tensor([f1(said, [a]) if a else 0.0 for (_, _, said), (_, a) in zip(probes, chosen, strict=True)])
    right = f1s >= 0.5
    count = float(can.sum())
    return {
        "em": 100 * float((exacts * ~says).sum()) / count,
        "f1": 100 * float((f1s * ~says).sum()) / count,
        "declined": 100 * float((says & can).sum()) / count,
        "lost": 100 * float((says & right).sum()) / max(1.0, float(right.sum())),
        "rightly_declined": 100 * float((says & ~can).sum()) / float((~can).sum()),
    }


def shifted(weights: Weights, looks: list[Look], chosen: list[Case], shift: float, row: int) -> Weights:
    """Weights whose logit of declining is lower by about `shift` where an answer starts."""
    states = torch.stack([state for (state, _, _), (_, answer) in zip(looks, chosen, strict=True) if answer]).mean(0)
    table = weights["model.embed_tokens.weight"].copy()
    table[row] -= (shift * states / states.square().sum()).numpy()
    return {**weights, "model.embed_tokens.weight": table}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("stored", "tokenizer", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--most-lost", type=float, default=0.1)
    parser.add_argument(
        "--shift", type=float, help="take this shift instead of the smallest that is within --most-lost"
    )
    parser.add_argument("--written", type=Path, help="use these self-written questions instead of the hand-written")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    weights = load_stored(args.stored)
    chosen = written_cases(args.written, 1500) if args.written else cases()
    with tempfile.TemporaryDirectory() as name:
        expand(args.stored, Path(name))
        probe = Probe(Path(name), args.device)
        probes = probe.look([prompt for prompt, _ in chosen])
    shift = args.shift
    for step in range(25):
        table = shares(probes, chosen, step * 0.5)
        print(
            f"shift {step * 0.5:.1f}: " + ", ".join(f"{name} {value:.1f}" for name, value in table.items()), flush=True
        )
        if shift is None and table["lost"] <= 100 * args.most_lost:
            shift = step * 0.5
    weights = shifted(weights, probes, chosen, shift or 0.0, probe.decline)
    print(f"shift {shift or 0.0}, checksum {write(weights, args.stored, args.tokenizer, args.out)}")


if __name__ == "__main__":
    main()
