"""Another open model writes questions: tuned on real ones, it samples, and keeps what it answers back.

python write_with_model.py --config configs/third.json --model FOLDER --data DATA --passages WORK/passages
    --out WORK/written [--until 300] [--shard 0/4 --tuned WORK/tuned]

FOLDER is any `transformers` chat model under a licence that lets its output be trained on; `SmolLM2-135M-Instruct`
(Apache-2.0) was used. A writer that has read far more text than the reader asks more naturally than the reader itself
(`write_questions.py`), whose questions stay close to the wording of the passage. The first `tune_s` seconds train it
on the training portions of the reading sets, to ask and to answer; then it goes through the passages
(`cut_passages.py`) and writes OUT/*.jsonl, a line an article, {"title", "passages": [{"text", "pairs": [[question,
answer], ...], "declined": [[question, its answer elsewhere], ...]}]}. It sees no other text than passages that passed
the block list. With `--shard i/n`, process i of n takes its share of the files: the first one tunes and saves the
writer in TUNED, the others wait for it. Several processes keep a GPU busy, since each spends much of its time on the
CPU; they are dealt to all GPUs.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from recipe.config import load
from recipe.decode import Caches, answer_places, judged
from recipe.layout import DONT_KNOW
from recipe.reading_sets import Reading, load_reading_sets
from recipe.scores import f1
from torch import Tensor
from write_questions import Candidate, Writer, write

WRITE = "Pick a short answer in the passage, then ask a question about the passage that has this answer."
READ = "Answer the question with the shortest span of the passage, or say: I don't know."
Example = tuple[str, str]
"""A prompt and its continuation."""
Tail = tuple[int, list[int], list[int]]
"""The number of the head that it continues, question ids, answer ids."""
_HELD_OUT_EVERY = 10
"""One SQuAD training passage in this many is kept from tuning, to measure the writer's reading."""


def prompt(tokenizer: Any, system: str, user: str) -> str:
    """A chat prompt up to where the answer starts."""
    turns = [{"role": "system", "content": system}, {"role": "user", "content": user}]
    return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))


class SharedPrompts:
    """Attention of new tokens to the keys and values of a prompt that several samples share, and to their own.

    While `step` is None, plain attention runs and each layer's keys and values are kept (`recipe.decode.Caches`).
    Afterwards every call brings one new token a sample; nothing of a prompt is repeated for its samples.
    """

    def __init__(self) -> None:
        self.caches: dict[int, Caches] = {}
        self.seen = torch.empty(0)
        self.samples = self.room = 0
        self.step: int | None = None

    def __call__(  # the signature of an attention function of `transformers`
        self, module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **_: Any
    ) -> tuple[Tensor, None]:
        """Output [rows, tokens, heads, head_dim]; no attention weights."""
        layer = int(module.layer_idx)
        if self.step is not None:
            return self.caches[layer].attend(query, key, value, self.step, self.seen).transpose(1, 2), None
        self.caches[layer] = Caches(key, value, self.samples, self.room)
        group = query.shape[1] // key.shape[1]
        keys, values = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
        return F.scaled_dot_product_attention(query, keys, values, mask).transpose(1, 2), None


class ForeignDecoder:
    """Sampling and scoring with a `transformers` model (`write_questions.Samples`)."""

    one_shape = False

    def __init__(self, model: Any, tokenizer: Any) -> None:
        from transformers import AttentionInterface

        self.model, self.tokenizer = model, tokenizer
        self.device = model.device
        self.enough = 1.0
        """Sampling stops when this share of the samples has ended; the others are of no use without their end."""
        self.shared = SharedPrompts()
        AttentionInterface.register("shared_prompts", self.shared)

    def padded(self, sequences: Sequence[list[int]], left: bool) -> tuple[Tensor, Tensor]:
        """Ids and mask [rows, longest]."""
        width = max(map(len, sequences))
        ids = np.zeros((len(sequences), width), np.int64)
        mask = np.zeros((len(sequences), width), np.int64)
        for row, sequence in enumerate(sequences):
            part = slice(width - len(sequence), width) if left else slice(0, len(sequence))
            ids[row, part] = sequence
            mask[row, part] = 1
        return torch.from_numpy(ids).to(self.device), torch.from_numpy(mask).to(self.device)

    @torch.no_grad()
    def sample(
        self, prompts: list[list[int]], samples: int, new: int, temperatures: tuple[float, float], newline: int
    ) -> list[list[int]]:
        """`samples` continuations of each prompt, up to `new` tokens; the second temperature holds after a newline."""
        shared, end = self.shared, int(self.tokenizer.eos_token_id)
        ids, mask = self.padded(prompts, left=True)
        places = (mask.cumsum(1) - 1).clamp(min=0)
        shared.step, shared.samples, shared.room, shared.seen = None, samples, new, mask == 1
        # Each padded token sees itself, so that no row of the softmax is empty.
        length = ids.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool, device=self.device).tril()
        seen = causal & ((mask[:, None, None, :] == 1) | torch.eye(length, dtype=torch.bool, device=self.device))
        self.model.set_attn_implementation("shared_prompts")
        logits = self._next(ids, places, seen)
        logits, at = logits.repeat_interleave(samples, 0), places[:, -1].repeat_interleave(samples, 0)
        done = torch.zeros(len(at), dtype=torch.bool, device=self.device)
        asking = torch.zeros_like(done)
        out: list[Tensor] = []
        for step in range(new):
            heat = torch.where(asking, temperatures[1], temperatures[0])[:, None]
            token = torch.multinomial((logits / heat).softmax(-1), 1)[:, 0].masked_fill(done, end)
            out.append(token)
            done |= token == end
            asking |= token == newline
            if step == new - 1 or (step % 8 == 7 and bool(done.float().mean() >= self.enough)):
                break
            shared.step = step
            logits = self._next(token[:, None], (at + step + 1)[:, None], None)
        shared.caches = {}
        self.model.set_attn_implementation("sdpa")
        rows = torch.stack(out, 1).tolist()
        return [row[: row.index(end)] if end in row else row for row in rows]

    def _next(self, ids: Tensor, places: Tensor, mask: Tensor | None) -> Tensor:
        states = self.model.model(input_ids=ids, position_ids=places, attention_mask=mask, use_cache=False)
        return self.model.lm_head(states.last_hidden_state[:, -1]).float()  # type: ignore[no-any-return]

    @torch.no_grad()
    def score(self, prompts: list[list[int]], answers: list[list[int]], rows: int) -> list[tuple[bool, float]]:
        """For each prompt: whether greedy decoding gives exactly the answer, and the answer's mean log-probability."""
        out = [(False, -99.0)] * len(prompts)
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]) + len(answers[i]))
        for start in range(0, len(order), rows):
            chosen = order[start : start + rows]
            ids, mask = self.padded([prompts[i] + answers[i] for i in chosen], left=False)
            states = self.model.model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
            begins = torch.tensor([len(prompts[i]) for i in chosen], device=self.device)
            row, column = answer_places(begins, mask.sum(1), ids.shape[1])
            logits = self.model.lm_head(states[row, column]).float()
            for i, score in zip(chosen, judged(logits, ids[row, column + 1], row, len(chosen)), strict=True):
                out[i] = score
        return out

    @torch.no_grad()
    def score_shared(self, heads: list[list[int]], tails: list[Tail], tokens: int) -> list[tuple[bool, float]]:
        """`score` of tails that continue heads which several of them share: each head is read once.

        A row holds a head and, side by side, all its tails, each blind to the others and placed right behind the head;
        rows are read in batches of about `tokens` padded tokens.
        """
        out = [(False, -99.0)] * len(tails)
        of: dict[int, list[int]] = {}
        for number, (head, _, _) in enumerate(tails):
            of.setdefault(head, []).append(number)

        def width(head: int) -> int:
            size = len(heads[head]) + sum(len(tails[i][1]) + len(tails[i][2]) for i in of[head])
            return -(-size // 8) * 8  # attention with a mask is faster in whole eights

        order = sorted(of, key=width, reverse=True)
        while order:
            size = max(1, tokens // width(order[0]))
            chosen, order = order[:size], order[size:]
            batch = _SharedRows(len(chosen), width(chosen[0]))
            for row, head in enumerate(chosen):
                batch.add(row, heads[head], [tails[i] for i in of[head]])
            numbers = [i for head in chosen for i in of[head]]
            for i, score in zip(numbers, self._judge(batch, len(numbers)), strict=True):
                out[i] = score
        return out

    def _judge(self, batch: _SharedRows, count: int) -> list[tuple[bool, float]]:
        ids, places, part = (torch.from_numpy(a).to(self.device) for a in (batch.ids, batch.places, batch.part))
        row, column, number = (torch.tensor(a, device=self.device) for a in (batch.row, batch.column, batch.number))
        causal = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool, device=self.device).tril()
        seen = causal & ((part[:, None] == 0) | (part[:, None] == part[:, :, None]))
        states = self.model.model(
            input_ids=ids, position_ids=places, attention_mask=seen[:, None], use_cache=False
        ).last_hidden_state
        logits = self.model.lm_head(states[row, column]).float()
        return judged(logits, torch.tensor(batch.targets, device=self.device), number, count)


class _SharedRows:
    """Rows of a head and its tails: ids, positions and parts (0 head, k > 0 the k-th tail, -1 padding), and where
    answers stand."""

    def __init__(self, rows: int, width: int) -> None:
        self.ids = np.zeros((rows, width), np.int64)
        self.places = np.zeros((rows, width), np.int64)
        self.part = np.full((rows, width), -1, np.int64)
        self.row: list[int] = []
        self.column: list[int] = []
        self.number: list[int] = []
        self.targets: list[int] = []
        self.tails = 0

    def add(self, row: int, head: list[int], tails: list[Tail]) -> None:
        """Fill one row."""
        at = len(head)
        self.ids[row, :at], self.places[row, :at], self.part[row, :at] = head, np.arange(at), 0
        for part, (_, asked, answer) in enumerate(tails, start=1):
            end = at + len(asked) + len(answer)
            self.ids[row, at:end], self.part[row, at:end] = asked + answer, part
            self.places[row, at:end] = np.arange(len(head), len(head) + end - at)
            self.row += [row] * len(answer)
            self.column += range(end - len(answer) - 1, end - 1)
            self.number += [self.tails] * len(answer)
            self.targets += answer
            self.tails += 1
            at = end


class ForeignWriter(Writer):
    """The writer's loop with another model's tokenizer and chat template."""

    def __init__(self, decoder: ForeignDecoder, settings: dict[str, Any]) -> None:
        self.backend = decoder.tokenizer.backend_tokenizer  # no Python work for each text
        super().__init__(decoder, decoder.tokenizer, settings)
        self.foreign = decoder
        self.frames = {system: self._frame(system, user) for system, user in ((WRITE, "\0"), (READ, "\0\n\n\1"))}

    def _frame(self, system: str, user: str) -> tuple[list[int], str]:
        """The ids before the passage, and the text behind it."""
        before, _, behind = prompt(self.tokenizer, system, user).partition("\0")
        return self.ids([before])[0], behind

    def ids(self, texts: list[str]) -> list[list[int]]:
        """Token ids without added tokens."""
        return [found.ids for found in self.backend.encode_batch(texts, add_special_tokens=False)] if texts else []

    def texts(self, rows: list[list[int]]) -> list[str]:
        """The texts of token ids."""
        return list(self.backend.decode_batch(rows, skip_special_tokens=False))

    def writing_ids(self, passages: list[str]) -> list[list[int]]:
        """Token ids of the writing prompts; the chat template is filled in once, not for every passage."""
        head, behind = self.frames[WRITE]
        tail = self.ids([behind])[0]
        return [head + ids + tail for ids in self.ids(passages)]

    def scores(self, passages: list[str], candidates: list[Candidate]) -> list[tuple[bool, float]]:
        """For each candidate: whether the model, asked, says exactly the answer, and its mean log-probability."""
        head, behind = self.frames[READ]
        before, _, after = behind.partition("\1")
        heads = [head + ids for ids in self.ids(passages)]
        asked = self.ids([f"{before}Question: {question}{after}" for _, question, _ in candidates])
        answers = self.ids([self.answer(answer) for _, _, answer in candidates])
        tails = [(index, q, a) for (index, _, _), q, a in zip(candidates, asked, answers, strict=True)]
        return self.foreign.score_shared(heads, tails, self.settings.get("score_tokens", 65536))

    def writing(self, passage: str) -> str:
        """The prompt after which an answer, a line `Question:` and the question follow."""
        return prompt(self.tokenizer, WRITE, passage)

    def asking(self, passage: str, question: str) -> str:
        """The prompt to answer a question."""
        return prompt(self.tokenizer, READ, f"{passage}\n\nQuestion: {question}")

    def reading(self, passages: list[str], asked: list[tuple[int, str]]) -> list[list[int]]:
        """Prompts to answer questions, each put to a passage by its index."""
        return self.ids([self.asking(passages[index], question) for index, question in asked])

    def answer(self, answer: str) -> str:
        """How an answer is written after such a prompt."""
        return f"{answer}{self.tokenizer.eos_token}"


def examples(writer: ForeignWriter, readings: Sequence[Reading], rng: Random, declined: float) -> Iterator[Example]:
    """Writing and reading examples for ever; about half of them each, a share of the read ones unanswerable.

    Two in three are of SQuAD, whose passages are alike to those that will be written on.
    """
    by_source: dict[str, list[tuple[Reading, str, str]]] = {}
    for reading in readings:
        by_source.setdefault(reading.source, []).extend(
            (reading, question, answer) for question, answer in reading.pairs
        )
    sources = sorted(by_source)
    while True:
        reading, question, answer = rng.choice(by_source[sources[-1] if rng.random() < 0.65 else sources[0]])
        if len(reading.passage) > 1800:
            continue
        if rng.random() < 0.5:
            if answer in reading.passage and answer.lower() not in question.lower():
                yield writer.writing(reading.passage), writer.answer(f"{answer}\nQuestion: {question}")
            continue
        absent = [text for text in reading.near if answer.lower() not in text.lower() and len(text) < 1800]
        if absent and rng.random() < declined:
            yield writer.asking(rng.choice(absent), question), writer.answer(DONT_KNOW)
        else:
            yield writer.asking(reading.passage, question), writer.answer(answer)


def tune(writer: ForeignWriter, drawn: Iterator[Example], seconds: float, rate: float, rows: int) -> None:
    """Train all weights for `seconds`, the rate falling linearly to zero; answers alone carry loss."""
    decoder, model = writer.foreign, writer.foreign.model
    optimiser = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    began = reported = time.time()
    step = 0
    while (spent := time.time() - began) < seconds:
        for group in optimiser.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / 20) * (1 - spent / seconds)
        pairs = [next(drawn) for _ in range(rows)]
        heads, tails = writer.ids([p for p, _ in pairs]), writer.ids([a for _, a in pairs])
        ids, mask = decoder.padded([h + t for h, t in zip(heads, tails, strict=True)], left=False)
        begins = torch.tensor([len(head) for head in heads], device=ids.device)
        row, column = answer_places(begins, mask.sum(1), ids.shape[1])
        with torch.autocast(ids.device.type, torch.bfloat16):
            states = model.model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
            logits = model.lm_head(states[row, column])
        loss = F.cross_entropy(logits.float(), ids[row, column + 1])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        step += 1
        if time.time() - reported > 10:
            reported = time.time()
            print(f"tuning: step {step}, {spent:.0f} s, loss {loss.item():.3f}", flush=True)


def reading_score(writer: ForeignWriter, held_out: Sequence[Reading]) -> dict[str, float]:
    """How the writer itself reads: greedy answers to questions of passages that were kept from tuning."""
    cases = [(reading.passage, question, answer) for reading in held_out for question, answer in reading.pairs]
    prompts = writer.ids([writer.asking(passage, question) for passage, question, _ in cases])
    said: list[str] = []
    for start in range(0, len(prompts), 256):
        found = writer.decoder.sample(prompts[start : start + 256], 1, 24, (0.01, 0.01), writer.newline)
        said += [text.strip() for text in writer.texts(found)]
    gold = [answer for _, _, answer in cases]
    return {
        "questions": len(cases),
        "f1": round(100 * sum(f1(s, [g]) for s, g in zip(said, gold, strict=True)) / max(1, len(cases)), 1),
        "declined": round(100 * sum(DONT_KNOW in s for s in said) / max(1, len(cases)), 1),
    }


def tuned(args: argparse.Namespace, config: dict[str, Any], shard: int, device: str) -> ForeignWriter:
    """The tuned writer: made here by the first process, loaded by the others."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    settings = {**config["write"], "seed": config["seed"] + shard}
    if shard:
        while not args.tuned.exists():
            time.sleep(0.3)
    model: Any = AutoModelForCausalLM.from_pretrained(args.tuned if shard else args.model, dtype=torch.float32)
    model.to(device)
    writer = ForeignWriter(ForeignDecoder(model, AutoTokenizer.from_pretrained(args.model)), settings)
    if not shard:
        readings = load_reading_sets(args.data)
        own = [reading for reading in readings if reading.source == "squad"]
        held_out = own[::_HELD_OUT_EVERY]
        kept = [reading for reading in readings if reading not in held_out]
        rng = Random(config["seed"])  # training data, no secret
        model.train()
        drawn = examples(writer, kept, rng, settings.get("tune_declined", 0.12))
        tune(writer, drawn, settings["tune_s"], settings["rate"], settings["rows"])
        if args.tuned:
            temporary = args.tuned.with_name(f"{args.tuned.name}.tmp")
            model.save_pretrained(temporary)
            temporary.rename(args.tuned)
    model.eval()
    if device != "cpu":
        model.to(torch.bfloat16)
        torch.cuda.empty_cache()  # training may share the GPU
    if not shard:
        print(f"the writer reads: {json.dumps(reading_score(writer, held_out))}", flush=True)
    writer.foreign.enough = settings.get("enough", 1.0)
    return writer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("config", "model", "data", "passages", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--until", type=float, help="seconds after the start of the run (OUT/../clock) to stop at")
    parser.add_argument("--shard", default="0/1", help="i/n: this process and how many there are")
    parser.add_argument("--tuned", type=Path, help="folder by which the first process hands the tuned writer on")
    args = parser.parse_args()
    config = load(args.config)
    settings = config["write"]
    clock_file = args.out.parent / "clock"
    clock = float(clock_file.read_text()) if clock_file.exists() else time.time()
    shard, shards = map(int, args.shard.split("/"))
    torch.manual_seed(config["seed"] + shard)
    gpus = torch.cuda.device_count()
    writer = tuned(args, config, shard, f"cuda:{shard % gpus}" if gpus else "cpu")
    while not (args.passages / "done").exists():  # `cut_passages.py` still runs
        time.sleep(0.5)
    stop = clock + (args.until or settings["until"])
    if not shard:
        held_out = sorted((args.passages / "held-out").glob("*.jsonl"))
        limit = min(stop, time.time() + settings["held_out_s"])
        write(writer, held_out, args.out.with_name("written-held-out"), 0, limit)
    write(writer, sorted(args.passages.glob("*.jsonl"))[shard::shards], args.out, shard, stop)


if __name__ == "__main__":
    main()
