"""Batched sampling with a key-value cache, and scoring of given continuations, for the question writer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from recipe.model import Reader, block, qkv, rest_of_block, rms, rotary

END = 2


def decode_block(
    x: Tensor,
    keys: Tensor,
    values: Tensor,
    at: Tensor,
    seen: Tensor,
    cosine: Tensor,
    sine: Tensor,
    head_dim: int,
    *weights: Tensor,
) -> Tensor:
    """One layer for one new token a row; x [rows, 1, hidden], cache [rows, kv_heads, tokens, head_dim], written at
    `at`.

    `seen` [rows, tokens] says which cache entries exist, the new one included.
    """
    q, k, v = qkv(x, weights, cosine, sine, head_dim)
    index = at[:, None, None, None].expand(-1, k.shape[1], 1, head_dim)
    keys.scatter_(2, index, k)
    values.scatter_(2, index, v)
    grouped = q.reshape(q.shape[0], k.shape[1], -1, head_dim)
    scores = (grouped @ keys.mT).float() / head_dim**0.5
    shares = scores.masked_fill(~seen[:, None, None], float("-inf")).softmax(-1).to(x.dtype)
    attended = (shares @ values).reshape(q.shape)
    return rest_of_block(x, attended, weights)


class Decoder:
    """Sampling and scoring with one model; shapes are fixed so that each function is compiled once."""

    def __init__(self, model: Reader, length: int) -> None:
        self.model, self.shape, self.length = model, model.shape, length
        self.device = model.embedding.device
        self.cuda = self.device.type == "cuda"
        compiled: Callable[..., Any] = (lambda f: torch.compile(f, dynamic=False)) if self.cuda else (lambda f: f)
        self.decode_block, self.block = compiled(decode_block), compiled(block)
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
        caches: list[tuple[Tensor, Tensor]] = []
        for layer in self.model.blocks:
            weights = layer.weights()
            _, k, v = qkv(x, weights, cosine, sine, self.shape.head_dim)
            caches.append((k.repeat_interleave(samples, 0), v.repeat_interleave(samples, 0)))
            x = self.block(x, cosine, sine, None, self.shape.head_dim, *weights)
        last = x[torch.arange(len(ids), device=self.device), lengths - 1]
        logits = self.logits(last).repeat_interleave(samples, 0)
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
            logits = self.logits(self._advance(token, at, caches))
            at = at + 1
        rows = torch.stack(out, 1).tolist()
        return [row[: row.index(END)] if END in row else row for row in rows]

    def _advance(self, token: Tensor, at: Tensor, caches: list[tuple[Tensor, Tensor]]) -> Tensor:
        x = F.embedding(token[:, None], self.model.embedding).to(self.dtype)
        cosine, sine = rotary(at[:, None], self.shape)
        seen = torch.arange(self.length, device=self.device)[None] <= at[:, None]
        for layer, (keys, values) in zip(self.model.blocks, caches, strict=True):
            x = self.decode_block(x, keys, values, at, seen, cosine, sine, self.shape.head_dim, *layer.weights())
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
            index = torch.arange(length, device=self.device)[None]
            inside = (index >= starts[:, None] - 1) & (index < lengths[:, None] - 1)
            row, column = inside.nonzero(as_tuple=True)
            logs = self.logits(x[row, column]).log_softmax(-1)
            targets = ids[row, column + 1]
            wrong = torch.zeros(rows, device=self.device).index_add_(0, row, (logs.argmax(-1) != targets).float())
            sums = torch.zeros(rows, device=self.device).index_add_(0, row, logs.gather(-1, targets[:, None])[:, 0])
            means = (sums / inside.sum(1).clamp(min=1)).tolist()
            for position, i in enumerate(chosen):
                out[i] = (bool(wrong[position] == 0), means[position])
        return out
