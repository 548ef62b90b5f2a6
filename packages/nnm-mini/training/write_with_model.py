"""Another open model writes questions: tuned on real ones, it samples, and keeps what it answers back.

python write_with_model.py --config configs/third.json --model FOLDER --data DATA --passages WORK/passages
    --out WORK/written [--until 300]

FOLDER is any `transformers` chat model under a licence that lets its output be trained on; `SmolLM2-135M-Instruct`
(Apache-2.0) was used. A writer that has read far more text than the reader asks more naturally than the reader itself
(`write_questions.py`), whose questions stay close to the wording of the passage. The first `tune_s` seconds train it
on the training portions of the reading sets, to ask and to answer; then it goes through the passages
(`cut_passages.py`) and writes OUT/*.jsonl, a line an article, {"title", "passages": [{"text", "pairs": [[question,
answer], ...]}]}. It sees no other text than passages that passed the block list.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

import torch
import torch.nn.functional as F
from recipe.config import load
from recipe.decode import Caches, answer_places, judged
from recipe.layout import DONT_KNOW
from recipe.reading_sets import Reading, load_reading_sets
from recipe.scores import f1
from torch import Tensor
from write_questions import Writer, write

WRITE = "Pick a short answer in the passage, then ask a question about the passage that has this answer."
READ = "Answer the question with the shortest span of the passage, or say: I don't know."
Example = tuple[str, str]
"""A prompt and its continuation."""
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
        self.shared = SharedPrompts()
        AttentionInterface.register("shared_prompts", self.shared)

    def padded(self, sequences: Sequence[list[int]], left: bool) -> tuple[Tensor, Tensor]:
        """Ids and mask [rows, longest]."""
        width = max(map(len, sequences))
        ids = torch.zeros(len(sequences), width, dtype=torch.long)
        mask = torch.zeros(len(sequences), width, dtype=torch.long)
        for row, sequence in enumerate(sequences):
            part = slice(width - len(sequence), width) if left else slice(0, len(sequence))
            ids[row, part] = torch.tensor(sequence)
            mask[row, part] = 1
        return ids.to(self.device), mask.to(self.device)

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
            if step == new - 1 or (step % 8 == 7 and bool(done.all())):
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


class ForeignWriter(Writer):
    """The writer's loop with another model's tokenizer and chat template."""

    def __init__(self, decoder: ForeignDecoder, settings: dict[str, Any]) -> None:
        super().__init__(decoder, decoder.tokenizer, settings)
        self.foreign = decoder

    def ids(self, texts: list[str]) -> list[list[int]]:
        """Token ids without added tokens."""
        return list(self.tokenizer(texts, add_special_tokens=False)["input_ids"]) if texts else []

    def texts(self, rows: list[list[int]]) -> list[str]:
        """The texts of token ids."""
        return list(self.tokenizer.batch_decode(rows))

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("config", "model", "data", "passages", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--until", type=float, help="seconds after the start of the run (OUT/../clock) to stop at")
    args = parser.parse_args()
    from transformers import AutoModelForCausalLM, AutoTokenizer

    config = load(args.config)
    settings = config["write"]
    clock_file = args.out.parent / "clock"
    clock = float(clock_file.read_text()) if clock_file.exists() else time.time()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(config["seed"])
    model: Any = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
    model.to(device)
    writer = ForeignWriter(ForeignDecoder(model, AutoTokenizer.from_pretrained(args.model)), settings)
    readings = load_reading_sets(args.data)
    own = [reading for reading in readings if reading.source == "squad"]
    held_out = own[::_HELD_OUT_EVERY]
    kept = [reading for reading in readings if reading not in held_out]
    rng = Random(config["seed"])  # training data, no secret
    model.train()
    tune(writer, examples(writer, kept, rng, 0.12), settings["tune_s"], settings["rate"], settings["rows"])
    model.eval()
    if device == "cuda":
        model.to(torch.bfloat16)
        torch.cuda.empty_cache()  # training may share the GPU
    print(f"the writer reads: {json.dumps(reading_score(writer, held_out))}", flush=True)
    while not (args.passages / "done").exists():  # `cut_passages.py` still runs
        time.sleep(0.5)
    for folder, out in (("held-out", args.out.with_name("written-held-out")), ("", args.out)):
        files = sorted((args.passages / folder).glob("*.jsonl"))
        stop = clock + (args.until or settings["until"])
        write(writer, files, out, 0, min(stop, time.time() + settings["held_out_s"]) if folder else stop)


if __name__ == "__main__":
    main()
