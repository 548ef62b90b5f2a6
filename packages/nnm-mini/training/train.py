"""Train the reader: language modelling, then reading; one stage of the config a run, on one or several GPUs.

python train.py --config configs/full.json --stage base --work WORK [--init CHECKPOINT | --init STORED]
torchrun --standalone --nproc-per-node 2 train.py ...        (gradients are averaged over the GPUs)

WORK holds `text/` (token files), `rows/<source>/` (reading rows), `clock` (when the run began, made if missing),
and gets
`<stage>.pt` (checkpoint, resumed from when it exists) and `losses.jsonl`. Files that appear while it runs are
picked up. Time in the config is seconds since the run began, or optimiser steps with `"unit": "steps"`. A number in
`WORK/end` moves the end of the last stage while it runs. `--init` takes a checkpoint of this program, or a folder of
stored
weights (then the optimiser begins anew).
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from recipe.config import Shape, load
from recipe.layout import ANSWER, CONTEXT, MARKUP
from recipe.model import Reader, block, dense_mask, flex_mask, from_transformers, head_loss, positions_of, rms, rotary
from recipe.optim import Optimiser
from recipe.pools import Batch, RowPool, TextPool, joined, split
from recipe.quantise import load_stored
from recipe.ranks import Ranks
from torch import Tensor

_SYNC_EVERY = 10
_LONG_EVERY = 5
"""One reading step in this many takes the long rows."""


class Trainer:
    """One stage on one rank."""

    def __init__(self, config: dict[str, Any], stage: str, work: Path, ranks: Ranks) -> None:
        self.config, self.work, self.ranks = config, work, ranks
        self.settings = config["train"]
        self.device = ranks.device
        self.cuda = self.device.type == "cuda"
        torch.manual_seed(config["seed"])
        self.shape = Shape(**config["model"])
        self.model = Reader(self.shape).to(self.device)
        self.optimiser = Optimiser(self.model, config["optimiser"])
        self.block = torch.compile(block, dynamic=False) if self.cuda else block
        self.head = torch.compile(head_loss, dynamic=False) if self.cuda else head_loss
        generator = torch.Generator().manual_seed(config["seed"] * 100 + ranks.rank)
        self.text = TextPool(work / "text", self.device, generator)
        self.held_out = TextPool(work / "text", self.device, generator, "held-out-*.npy")
        plans = self.settings["stages"].values()
        names = sorted({name for plan in plans for phase in plan["phases"] for name in phase.get("sources", {})})
        self.pools = {n: RowPool(work / "rows" / n, self.device, generator, ranks.rank, ranks.world) for n in names}
        self.checks = RowPool(work / "rows" / "check", self.device, generator)
        self.lengths = sorted(config["rows"]["common"]["lengths"])
        self.step = 0
        self.now = 0.0
        self.available: dict[tuple[str, int], int] = {}
        self.log_file = work / "losses.jsonl" if ranks.rank == 0 else None
        self.begin(stage)

    def begin(self, stage: str, init: Path | None = None) -> None:
        """Turn to a stage: resume it from its own checkpoint, or start it from `init`."""
        self.stage, self.plan = stage, copy.deepcopy(self.settings["stages"][stage])
        own = self.work / f"{stage}.pt"
        if own.exists() or init:
            self.restore(own if own.exists() or init is None else init)

    def log(self, **values: Any) -> None:
        """One line for the loss curves, and one for the reader."""
        if self.log_file:
            line = {"stage": self.stage, "step": self.step, "time": round(self.now, 1), **values}
            with self.log_file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            print(" ".join(f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in line.items()), flush=True)

    def synchronise(self, clock: float) -> None:
        """Agree with the other ranks on the time and on which rows are loaded."""
        pools: list[TextPool | RowPool] = [self.text, *self.pools.values()]
        for pool in pools:
            pool.refresh()
        keys = [(name, length) for name in self.pools for length in self.lengths]
        if (self.work / "end").exists() and self.stage == list(self.settings["stages"])[-1]:
            self.plan["phases"][-1]["until"] = float((self.work / "end").read_text())
        now = float(self.step) if self.settings.get("unit") == "steps" else time.time() - clock
        agreed = self.ranks.minimum([now, *(self.pools[name].rows(length) for name, length in keys)])
        self.now, counts = agreed[0], agreed[1:]
        self.available = {key: int(count) for key, count in zip(keys, counts, strict=True)}

    def phase(self) -> dict[str, Any] | None:
        """The phase that the clock is in; None when the stage is over."""
        return next((phase for phase in self.plan["phases"] if self.now < phase["until"]), None)

    def factor(self) -> float:
        """The learning rate's factor: warm-up, constant, then linear decay to 1 % from `decay_from` to the end."""
        rate = self.plan.get("rate", 1.0)
        warm = min(1.0, (self.step + 1) / self.config["optimiser"]["warmup_steps"])
        if "decay_from" not in self.plan:
            return float(rate * warm)
        start, end = self.plan["decay_from"], self.plan["phases"][-1]["until"]
        return float(rate * min(warm, max(0.01, 1 - max(0.0, self.now - start) / (end - start))))

    def batch(self, phase: dict[str, Any]) -> Batch:
        """Reading rows by the phase's sources and share, text rows for the rest."""
        sources = phase.get("sources", {})
        length = phase["length"]
        long = self.lengths[-1]
        if (
            phase["reading"] > 0
            and self.step % _LONG_EVERY == _LONG_EVERY - 1
            and any(self.available.get((s, long)) for s in sources)
        ):
            length = long
        rows = max(1, self.settings["tokens_per_step"] // self.ranks.world // length)
        usable = {name: share for name, share in sources.items() if self.available.get((name, length))}
        reading = round(rows * phase["reading"]) if usable else 0
        parts: list[Batch] = []
        left = reading
        for number, (name, share) in enumerate(usable.items()):
            count = left if number == len(usable) - 1 else min(left, round(reading * share / sum(usable.values())))
            if count:
                parts.append(self.pools[name].batch(count, length))
            left -= count
        if rows > reading and self.text.rows(length):
            parts.append(self.text.batch(rows - reading, length))
        return joined(parts)

    def losses(self, batch: Batch, text_only: bool) -> tuple[Tensor, Tensor]:
        """The loss, and the mean cross-entropy of context and answer tokens.

        0.5 x mean(context) + 1 x mean(answers) + 0.05 x mean(markup and questions); for text alone the plain mean.
        """
        ids, targets = batch.tokens[:, :-1], batch.tokens[:, 1:]
        example, group = batch.example[:, :-1].contiguous(), batch.group[:, :-1].contiguous()
        kinds = torch.where(batch.example[:, 1:] == example, batch.loss[:, 1:], 0)
        weights = torch.zeros(ids.shape, device=self.device)
        for kind, weight in ((CONTEXT, 1.0 if text_only else 0.5), (ANSWER, 1.0), (MARKUP, 0.05)):
            chosen = kinds == kind
            weights += chosen * (weight / chosen.sum().clamp(min=1))
        hidden = self.hidden(ids, example, group)
        loss, entropy = self.head(hidden, self.model.final_norm, self.model.embedding, targets, weights)
        means = [(entropy * (kinds == kind)).sum() / (kinds == kind).sum().clamp(min=1) for kind in (CONTEXT, ANSWER)]
        return loss, torch.stack(means)

    def backward(self, batch: Batch, text_only: bool) -> Tensor:
        """Gradients of one step, in parts of at most `micro_tokens`; the mean of the parts' context and answer
        losses."""
        parts = split(batch, self.settings.get("micro_tokens", self.settings["tokens_per_step"]))
        means = []
        for part in parts:
            loss, mean = self.losses(part, text_only)
            (loss / len(parts)).backward()
            means.append(mean)
        return torch.stack(means).mean(0)

    def check(self) -> None:
        """Log how held-out training questions are answered, by teacher forcing: exactly right, and declined, in
        percent."""
        self.checks.refresh()
        length = self.lengths[0]
        size = max(1, self.settings.get("micro_tokens", self.settings["tokens_per_step"]) // length)
        rows = min(self.checks.rows(length) // size, 4) * size
        if not rows:
            return
        counts = torch.zeros(2, 3, device=self.device)
        for part in split(self.checks.first(rows, length), size * length):
            counts += self._check(part)
        total = counts[:, :1].clamp(min=1)
        (right, declined), (_, rightly) = (100 * counts[:, 1:] / total).tolist()
        self.log(
            check_exact=right, check_declined=declined, check_rightly_declined=rightly, checked=int(counts[:, 0].sum())
        )

    def _check(self, batch: Batch) -> Tensor:
        """[answerable, unanswerable] x [cases, exact, declined]; gradients stay on so that nothing is compiled anew."""
        ids, targets = batch.tokens[:, :-1], batch.tokens[:, 1:]
        example, group = batch.example[:, :-1].contiguous(), batch.group[:, :-1].contiguous()
        states = self.hidden(ids, example, group).detach()
        answers = (batch.loss[:, 1:] == ANSWER) & (batch.example[:, 1:] == example)
        row, column = answers.nonzero(as_tuple=True)
        normed = rms(states[row, column], self.model.final_norm.detach()).to(states.dtype)
        best = F.linear(normed, self.model.embedding.detach().to(states.dtype)).argmax(-1)
        wrong = best != targets[row, column]
        first = torch.ones_like(row, dtype=torch.bool)
        first[1:] = (row[1:] != row[:-1]) | (column[1:] != column[:-1] + 1)
        number = first.cumsum(0) - 1
        cases = int(first.sum())
        errors = torch.zeros(cases, device=self.device).index_add_(0, number, wrong.float())
        decline = self.settings.get("decline_token", -1)
        gold, said = targets[row, column][first] == decline, best[first] == decline
        return torch.stack(
            [
                torch.stack([chosen.sum(), (chosen & (errors == 0)).sum(), (chosen & said).sum()])
                for chosen in (~gold, gold)
            ]
        ).float()

    def hidden(self, ids: Tensor, example: Tensor, group: Tensor) -> Tensor:
        """The last layer's output before the final norm, [rows, tokens, hidden]."""
        mask = flex_mask(example, group) if self.cuda else dense_mask(example, group)
        x = F.embedding(ids, self.model.embedding)
        x = x.to(torch.bfloat16) if self.cuda else x
        cosine, sine = rotary(positions_of(example), self.shape)
        for layer in self.model.blocks:
            x = self.block(x, cosine, sine, mask, self.shape.head_dim, *layer.weights())
        return x

    @torch.no_grad()
    def perplexity(self, length: int, rows: int = 8) -> float:
        """Perplexity a token on held-out documents, packed with document masks."""
        self.held_out.refresh()
        count = min(self.held_out.rows(length), self.settings["validation_rows"])
        if count < rows:
            return math.nan
        total = 0.0
        for start in range(0, count - rows + 1, rows):
            starts = (torch.arange(rows, device=self.device) + start) * length
            total += float(self.losses(self.held_out.windows(starts, length), True)[1][0])
        return math.exp(total / max(1, count // rows))

    def save(self) -> None:
        """Write the checkpoint (rank 0), atomically."""
        if self.ranks.rank == 0:
            state = {
                "model": self.model.state_dict(),
                "optimiser": self.optimiser.state(),
                "step": self.step,
                "stage": self.stage,
            }
            temporary = self.work / f"{self.stage}.pt.tmp"
            torch.save(state, temporary)
            temporary.rename(self.work / f"{self.stage}.pt")

    def keep(self, name: str) -> None:
        """Write the weights alone as a point on the way (rank 0), for means with the end."""
        if self.ranks.rank == 0:
            temporary = self.work / f"{name}.pt.tmp"
            torch.save({"model": self.model.state_dict()}, temporary)
            temporary.rename(self.work / f"{name}.pt")

    def restore(self, path: Path) -> None:
        """Take over a checkpoint, or stored weights alone."""
        if path.is_dir():
            weights = {name: torch.from_numpy(value) for name, value in load_stored(path).items()}
            self.model.load_state_dict(from_transformers(weights))
            return
        state = torch.load(path, map_location=self.device, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.optimiser.load(state["optimiser"])
        self.step = state["step"]

    def run(self, clock: float) -> None:
        """Train until the stage's last phase is over."""
        if self.settings.get("unit") != "steps" and self.plan.get("decay_from") == "start":
            self.plan["decay_from"] = time.time() - clock
        while not (self.text.refresh() or self.text.rows(self.lengths[0])):
            time.sleep(0.3)
        began = saved = checked = time.time()
        tokens = 0
        # Points that a resumed run is already past were kept before.
        now = float(self.step) if self.settings.get("unit") == "steps" else time.time() - clock
        keep = [at for at in self.plan.get("keep_at", []) if at > now]
        recent: list[Tensor] = []
        while True:
            if self.step % _SYNC_EVERY == 0 or not recent:
                self.synchronise(clock)
            phase = self.phase()
            if phase is None:
                break
            batch = self.batch(phase)
            means = self.backward(batch, phase["reading"] == 0)
            self.ranks.average_gradients(self.model)
            factor = self.factor()
            norm = self.optimiser.step(factor)
            self.step += 1
            tokens += batch.tokens[:, 1:].numel() * self.ranks.world
            recent.append(means)
            if self.step % self.settings["log_every"] == 0 or len(recent) == 3:
                context, answer = torch.stack(recent[-50:]).mean(0).tolist()
                self.log(
                    context=context,
                    answer=answer,
                    norm=float(norm),
                    factor=factor,
                    tokens_per_s=tokens / (time.time() - began),
                    millions=tokens / 1e6,
                    rows=sum(self.available.values()),
                )
            if time.time() - checked > self.settings.get("check_s", 1e9):
                checked = time.time()
                self.check()
            if time.time() - saved > self.settings["checkpoint_s"]:
                saved = time.time()
                self.save()
            if keep and self.now >= keep[0]:
                self.keep(f"{self.stage}-{keep.pop(0)}")
        self.save()
        self.check()
        if self.settings["validation_rows"]:
            self.log(held_out_perplexity=self.perplexity(self.lengths[0]))


def start_clock(work: Path, ranks: Ranks) -> float:
    """When the run began (seconds since the epoch); this is now if no one has said so yet."""
    file = work / "clock"
    if ranks.rank == 0 and not file.exists():
        file.write_text(str(time.time()))
    ranks.minimum([0.0])
    return float(file.read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--stage", required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--init", type=Path, help="checkpoint of the stage before")
    args = parser.parse_args()
    ranks = Ranks()
    clock = start_clock(args.work, ranks)
    trainer = Trainer(load(args.config), args.stage, args.work, ranks)
    trainer.begin(args.stage, args.init)
    trainer.run(clock)
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
