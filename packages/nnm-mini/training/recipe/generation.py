"""Greedy answers of a `transformers` model: prompts in padded batches, and passages encoded independently."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from recipe.layout import SYSTEM, chat
from recipe.tasks import Case

NEW_TOKENS = 32


class Answerer:
    """A model and its tokenizer; `budget` is the number of padded tokens in a batch."""

    def __init__(self, model: Any, tokenizer: Any, budget: int) -> None:
        self.model, self.tokenizer, self.budget = model, tokenizer, budget
        self.device = model.device

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def _text(self, ids: list[int]) -> str:
        end = next((i for i, token in enumerate(ids) if token in (0, 2)), len(ids))
        return str(self.tokenizer.decode(ids[:end])).strip()

    @torch.no_grad()
    def answers(self, cases: Sequence[Case]) -> list[str]:
        """Greedy answers with all passages read together, in NNM's layout (`layout.chat`)."""
        prompts = [self._ids(chat(list(case.passages), case.question)) for case in cases]
        order = sorted(range(len(cases)), key=lambda i: len(prompts[i]), reverse=True)
        out = [""] * len(cases)
        while order:
            width = len(prompts[order[0]]) + NEW_TOKENS
            size = max(1, self.budget // width)
            chosen, order = order[:size], order[size:]
            ids, mask = _left_padded([prompts[i] for i in chosen], self.device)
            produced = self.model.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=NEW_TOKENS,
                do_sample=False,
                eos_token_id=[2, 0],
                pad_token_id=0,
            )
            for i, row in zip(chosen, produced[:, ids.shape[1] :].tolist(), strict=True):
                out[i] = self._text(row)
        return out

    @torch.no_grad()
    def composed_answers(self, cases: Sequence[Case]) -> list[str]:
        """The same prompts, but every passage's state is computed alone behind the shared prefix and then put in place.

        As in the memory engine: keys and values of each passage (with its separator) behind the prefix, keys rotated
        from there to the passage's position in the prompt; then the question reads everything.
        """
        order = sorted(range(len(cases)), key=lambda i: sum(map(len, cases[i].passages)))
        out = [""] * len(cases)
        size = max(1, self.budget // 1536)
        for start in range(0, len(order), size):
            chosen = order[start : start + size]
            for i, text in zip(chosen, self._composed([cases[i] for i in chosen]), strict=True):
                out[i] = text
        return out

    def _composed(self, cases: list[Case]) -> list[str]:
        prefix = self._ids(f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\nContext:\n")
        passages = [[self._ids(f"{passage}\n\n") for passage in case.passages] for case in cases]
        flat = [prefix + ids for row in passages for ids in row]
        keys, values = self._states(flat)
        lengths = [len(prefix) + sum(map(len, row)) for row in passages]
        longest = max(lengths)
        shape = (len(cases), keys[0].shape[1], longest, keys[0].shape[3])
        placed = [(torch.zeros(shape, device=self.device), torch.zeros(shape, device=self.device)) for _ in keys]
        number = 0
        for row, parts in enumerate(passages):
            at = len(prefix)
            for part in parts:
                source = slice(len(prefix), len(prefix) + len(part))
                turn = self._turn(at - len(prefix))
                for layer, (key_store, value_store) in enumerate(placed):
                    key_store[row, :, : len(prefix)] = keys[layer][number, :, : len(prefix)]
                    value_store[row, :, : len(prefix)] = values[layer][number, :, : len(prefix)]
                    key_store[row, :, at : at + len(part)] = turn(keys[layer][number, :, source])
                    value_store[row, :, at : at + len(part)] = values[layer][number, :, source]
                at += len(part)
                number += 1
        questions = [self._ids(f"Question: {case.question}<|im_end|>\n<|im_start|>assistant\n") for case in cases]
        return self._continue(placed, lengths, questions)

    def _states(self, sequences: list[list[int]]) -> tuple[list[Tensor], list[Tensor]]:
        width = max(map(len, sequences))
        ids = torch.tensor([sequence + [0] * (width - len(sequence)) for sequence in sequences], device=self.device)
        cache = self.model(input_ids=ids, use_cache=True, logits_to_keep=1).past_key_values
        return [layer.keys for layer in cache.layers], [layer.values for layer in cache.layers]

    def _turn(self, distance: int) -> Any:
        """Rotates keys by `distance` positions with the model's own rotary embedding."""
        rotary = self.model.model.rotary_emb
        cosine, sine = rotary(torch.zeros(1, device=self.device), torch.tensor([[distance]], device=self.device))

        def turn(keys: Tensor) -> Tensor:
            first, second = keys.chunk(2, -1)
            turned: Tensor = keys * cosine[0] + torch.cat([-second, first], -1) * sine[0]
            return turned

        return turn

    def _continue(
        self, states: list[tuple[Tensor, Tensor]], lengths: list[int], questions: list[list[int]]
    ) -> list[str]:
        from transformers import DynamicCache

        cache = DynamicCache()
        for layer, (key_store, value_store) in enumerate(states):
            cache.update(key_store, value_store, layer)
        longest = states[0][0].shape[2]
        ids, question_mask = _left_padded(questions, self.device)
        filled = torch.tensor(lengths, device=self.device)
        mask = torch.cat([(torch.arange(longest, device=self.device)[None] < filled[:, None]).long(), question_mask], 1)
        positions = filled[:, None] + (question_mask.cumsum(1) - 1).clamp(min=0)
        produced: list[Tensor] = []
        for _ in range(NEW_TOKENS):
            logits = self.model(
                input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache
            ).logits
            ids = logits[:, -1].argmax(-1)[:, None]
            produced.append(ids[:, 0])
            if bool(torch.stack(produced).eq(2).any(0).all()):
                break
            mask = torch.cat([mask, torch.ones_like(ids)], 1)
            positions = positions[:, -1:] + 1
        return [self._text(row) for row in torch.stack(produced, 1).tolist()]


def _left_padded(sequences: list[list[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    width = max(map(len, sequences))
    ids = [[0] * (width - len(sequence)) + sequence for sequence in sequences]
    mask = [[0] * (width - len(sequence)) + [1] * len(sequence) for sequence in sequences]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


@torch.no_grad()
def perplexity(
    model: Any, tokenizer: Any, texts: Sequence[str], length: int = 1024, batch: int = 8
) -> dict[str, float]:
    """Perplexity a token over windows of `length` tokens, each within one document that starts with <|endoftext|>.

    `bits_per_character` is the same loss over the characters of the windows: it compares models with different
    tokenizers.
    """
    windows: list[list[int]] = []
    for text in texts:
        ids = [0, *tokenizer(text, add_special_tokens=False)["input_ids"]]
        windows += [ids[at : at + length + 1] for at in range(0, len(ids) - length, length)]
    total, characters = 0.0, 0
    for start in range(0, len(windows), batch):
        rows = torch.tensor(windows[start : start + batch], device=model.device)
        logits = model(input_ids=rows[:, :-1]).logits.float()
        total += float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten(), reduction="sum"))
        characters += sum(map(len, tokenizer.batch_decode(rows[:, 1:].tolist(), clean_up_tokenization_spaces=False)))
    tokens = len(windows) * length
    return {
        "perplexity": round(math.exp(total / max(1, tokens)), 3),
        "bits_per_character": round(total / math.log(2) / max(1, characters), 4),
        "tokens": tokens,
    }
