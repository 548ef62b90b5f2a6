"""Batched sampling with a key-value cache, and scoring of given continuations, for the question writer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from recipe.model import Reader, block, qkv, rest_of_block, rms, rotary

END = 2


class Caches:
    """Keys and values of one layer: those of the prompts, shared by all samples of a prompt, and those of the new
    tokens.

    `prompt_*` [prompts, kv_heads, length, head_dim], `new_*` [prompts, kv_heads, samples, new, head_dim].
    """

    def __init__(self, keys: Tensor, values: Tensor, samples: int, new: int) -> None:
        self.prompt_keys, self.prompt_values = keys, values
        shape = (keys.shape[0], keys.shape[1], samples, new, keys.shape[3])
        self.new_keys, self.new_values = keys.new_zeros(shape), keys.new_zeros(shape)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, step: int, seen: Tensor) -> Tensor:
        """Take in one new token a sample, and attend to the prompt, where it is `seen` [prompts, length], and the new
        tokens.

        query [prompts * samples, heads, 1, head_dim] gives the shape of what is returned; key and value have kv_heads.
        """
        prompts, kv_heads, length, size = self.prompt_keys.shape
        samples = self.new_keys.shape[2]

        def by_prompt(t: Tensor) -> Tensor:
            return t.reshape(prompts, samples, kv_heads, -1, size).transpose(1, 2)

        attended: Tensor
        self.new_keys[:, :, :, step] = by_prompt(key)[:, :, :, 0]
        self.new_values[:, :, :, step] = by_prompt(value)[:, :, :, 0]
        queries = by_prompt(query)  # [prompts, kv_heads, samples, group, head_dim]
        group = queries.shape[3]
        old = (queries.flatten(2, 3) @ self.prompt_keys.mT).float().unflatten(2, (samples, group))
        fresh = (queries @ self.new_keys[:, :, :, : step + 1].mT).float()
        old = old.masked_fill(~seen[:, None, None, None], float("-inf"))
        shares = (torch.cat([old, fresh], -1) / size**0.5).softmax(-1).to(query.dtype)
        attended = (shares[..., :length].flatten(2, 3) @ self.prompt_values).unflatten(2, (samples, group))
        attended = attended + shares[..., length:] @ self.new_values[:, :, :, : step + 1]
        return attended.transpose(1, 2).reshape(query.shape)


def decode_block(
    x: Tensor, cache: Caches, step: int, seen: Tensor, cosine: Tensor, sine: Tensor, head_dim: int, *weights: Tensor
) -> Tensor:
    """One layer for one new token a sample; x [prompts * samples, 1, hidden]; `seen` [prompts, length] marks prompt
    tokens."""
    q, k, v = qkv(x, weights, cosine, sine, head_dim)
    return rest_of_block(x, cache.attend(q, k, v, step, seen), weights)


def answer_places(starts: Tensor, lengths: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Row and column of every token behind which a token of the answer stands: from `starts` to `lengths`, [rows]."""
    index = torch.arange(width, device=starts.device)[None]
    row, column = ((index >= starts[:, None] - 1) & (index < lengths[:, None] - 1)).nonzero(as_tuple=True)
    return row, column


def judged(logits: Tensor, targets: Tensor, row: Tensor, rows: int) -> list[tuple[bool, float]]:
    """For each row whether all its targets are the most likely tokens, and their mean log-probability.

    logits [tokens, vocabulary] in fp32 and targets [tokens], each of the row that `row` [tokens] says.
    """
    logs = logits.log_softmax(-1)

    def summed(values: Tensor) -> Tensor:
        return torch.zeros(rows, device=logits.device).index_add_(0, row, values)

    wrong = summed((logs.argmax(-1) != targets).float())
    means = summed(logs.gather(-1, targets[:, None])[:, 0]) / summed(torch.ones_like(logs[:, 0])).clamp(min=1)
    return list(zip((wrong == 0).tolist(), means.tolist(), strict=True))


class Decoder:
    """Sampling and scoring with one model; the whole-sequence passes have one shape, so that they are compiled once."""

    one_shape = True

    def __init__(self, model: Reader, length: int) -> None:
        self.model, self.shape, self.length = model, model.shape, length
        self.device = model.embedding.device
        self.cuda = self.device.type == "cuda"
        self.block: Callable[..., Any] = torch.compile(block, dynamic=False) if self.cuda else block
        self.dtype = torch.bfloat16 if self.cuda else torch.float32

    def padded(self, sequences: list[list[int]], length: int) -> tuple[Tensor, Tensor]:
        """Right-padded ids [rows, length] and lengths [rows]."""
        ids = torch.zeros(len(sequences), length, dtype=torch.long)
        for row, sequence in enumerate(sequences):
            ids[row, : len(sequence)] = torch.tensor(sequence)
        return ids.to(self.device), torch.tensor([len(s) for s in sequences], device=self.device)

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits in fp32."""
        return F.linear(rms(hidden, self.model.final_norm).to(self.dtype), self.model.embedding.to(self.dtype)).float()

    @torch.no_grad()
    def sample(
        self, prompts: list[list[int]], samples: int, new: int, temperatures: tuple[float, float], newline: int
    ) -> list[list[int]]:
        """`samples` continuations of each prompt, up to `new` tokens; the second temperature holds after a newline."""
        ids, lengths = self.padded(prompts, self.length)
        x = F.embedding(ids, self.model.embedding).to(self.dtype)
        cosine, sine = rotary(torch.arange(ids.shape[1], device=self.device)[None], self.shape)
        caches: list[Caches] = []
        for layer in self.model.blocks:
            weights = layer.weights()
            _, k, v = qkv(x, weights, cosine, sine, self.shape.head_dim)
            caches.append(Caches(k, v, samples, new))
            x = self.block(x, cosine, sine, None, self.shape.head_dim, *weights)
        last = x[torch.arange(len(ids), device=self.device), lengths - 1]
        logits = self.logits(last).repeat_interleave(samples, 0)
        seen = torch.arange(self.length, device=self.device)[None] < lengths[:, None]
        at = lengths.repeat_interleave(samples, 0)
        done = torch.zeros(len(at), dtype=torch.bool, device=self.device)
        asking = torch.zeros_like(done)
        out: list[Tensor] = []
        for step in range(new):
            heat = torch.where(asking, temperatures[1], temperatures[0])[:, None]
            token = torch.multinomial((logits / heat).softmax(-1), 1)[:, 0].masked_fill(done, END)
            out.append(token)
            done |= (token == END) | (token == 0)
            asking |= token == newline
            if step == new - 1 or (step % 8 == 7 and bool(done.all())):
                break
            logits = self.logits(self._advance(token, at + step, caches, step, seen))
        rows = torch.stack(out, 1).tolist()
        return [row[: row.index(END)] if END in row else row for row in rows]

    def _advance(self, token: Tensor, at: Tensor, caches: list[Caches], step: int, seen: Tensor) -> Tensor:
        x = F.embedding(token[:, None], self.model.embedding).to(self.dtype)
        cosine, sine = rotary(at[:, None], self.shape)
        for layer, cache in zip(self.model.blocks, caches, strict=True):
            x = decode_block(x, cache, step, seen, cosine, sine, self.shape.head_dim, *layer.weights())
        return x[:, 0]

    @torch.no_grad()
    def score(self, prompts: list[list[int]], answers: list[list[int]], rows: int) -> list[tuple[bool, float]]:
        """For each prompt: whether greedy decoding gives exactly the answer, and the answer's mean log-probability.

        Teacher forcing in batches of `rows`; a sequence that is longer than the decoder's length counts as wrong.
        """
        length = self.length
        out = [(False, -99.0)] * len(prompts)
        fitting = [i for i in range(len(prompts)) if len(prompts[i]) + len(answers[i]) <= length]
        for start in range(0, len(fitting), rows):
            chosen = fitting[start : start + rows]
            sequences = [prompts[i] + answers[i] for i in chosen]
            ids, lengths = self.padded(sequences + [[0]] * (rows - len(chosen)), length)
            x = F.embedding(ids, self.model.embedding).to(self.dtype)
            cosine, sine = rotary(torch.arange(length, device=self.device)[None], self.shape)
            for layer in self.model.blocks:
                x = self.block(x, cosine, sine, None, self.shape.head_dim, *layer.weights())
            starts = torch.tensor([len(prompts[i]) for i in chosen] + [1] * (rows - len(chosen)), device=self.device)
            row, column = answer_places(starts, lengths, length)
            scores = judged(self.logits(x[row, column]), ids[row, column + 1], row, rows)
            for i, score in zip(chosen, scores, strict=False):  # behind them stand the rows that fill up the batch
                out[i] = score
        return out
