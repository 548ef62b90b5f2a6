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
from typing import Any

import torch
from average import write
from recipe.layout import DONT_KNOW, chat
from recipe.quantise import load_stored
from recipe.scores import exact, f1
from torch import Tensor

from nnm_mini._weights import expand

QUESTIONS = Path(__file__).parent / "recipe" / "calibration.jsonl"
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


class Probe:
    """Where answers start: hidden states, and what the reader says if it may not decline."""

    def __init__(self, folder: Path, device: str) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        model: Any = AutoModelForCausalLM.from_pretrained(folder)
        self.model = model.to(device).eval()
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        self.device = device
        self.decline = int(self.tokenizer(f" {DONT_KNOW}", add_special_tokens=False)["input_ids"][0])

    @torch.no_grad()
    def look(self, prompt: str) -> tuple[Tensor, float, str]:
        """The final hidden state [hidden], the margin of declining over the best other token, and the answer without
        it."""
        ids = self.tokenizer(prompt, add_special_tokens=False, return_tensors="pt")["input_ids"].to(self.device)
        found = self.model.model(input_ids=ids, use_cache=True)
        state = found.last_hidden_state[0, -1]
        logits = self.model.lm_head(state).float()
        own = float(logits[self.decline])
        logits[self.decline] = float("-inf")
        said: list[int] = []
        margin = own - float(logits.max())
        token, cache = int(logits.argmax()), found.past_key_values
        while token not in (0, 2) and len(said) < 24:
            said.append(token)
            step = self.model(input_ids=torch.tensor([[token]], device=self.device), past_key_values=cache)
            token = int(step.logits[0, -1].argmax())
        return state.float().cpu(), margin, str(self.tokenizer.decode(said)).strip()


def shares(probes: list[tuple[Tensor, float, str]], chosen: list[Case], shift: float) -> dict[str, float]:
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("stored", "tokenizer", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--most-lost", type=float, default=0.1)
    parser.add_argument(
        "--shift", type=float, help="take this shift instead of the smallest that is within --most-lost"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    weights, chosen = load_stored(args.stored), cases()
    with tempfile.TemporaryDirectory() as name:
        expand(args.stored, Path(name))
        probe = Probe(Path(name), args.device)
        probes = [probe.look(prompt) for prompt, _ in chosen]
    shift = args.shift
    for step in range(25):
        table = shares(probes, chosen, step * 0.5)
        print(
            f"shift {step * 0.5:.1f}: " + ", ".join(f"{name} {value:.1f}" for name, value in table.items()), flush=True
        )
        if shift is None and table["lost"] <= 100 * args.most_lost:
            shift = step * 0.5
    mean = torch.stack([state for (state, _, _), (_, answer) in zip(probes, chosen, strict=True) if answer]).mean(0)
    change = (shift or 0.0) * mean / mean.square().sum()
    weights["model.embed_tokens.weight"][probe.decline] -= change.numpy()
    print(f"shift {shift or 0.0}, checksum {write(weights, args.stored, args.tokenizer, args.out)}")


if __name__ == "__main__":
    main()
