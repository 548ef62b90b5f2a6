"""The decoding loop: greedy or sampled, stop strings, seeds. A plain generator: errors and `close()` pass through."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    PreTrainedTokenizerBase,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from nnm_core.errors import InvalidInputError
from nnm_core.injection.guide import Grammar, Guide
from nnm_core.injection.prefill import forward
from nnm_core.model.load import LoadedModel
from nnm_core.states.cache import PlacedCache

FinishReason = Literal["stop", "length"]
# What a tokenizer prints for bytes that are not yet a whole character. SentencePiece's byte tokens are decoded a run
# at a time, so one missing byte turns a whole run of characters into these, for as long as it is missing.
_INCOMPLETE = "\ufffd"


@dataclass(frozen=True)
class DecodeSettings:
    """How an answer is decoded.

    Attributes:
        max_tokens: at most so many tokens.
        temperature: 0 is greedy; otherwise logits are divided by it and sampled.
        top_p: sample from the smallest set of tokens that holds this share of the probability.
        top_k: sample from so many most likely tokens; 0 for all.
        stop: strings that end the answer and are cut from it; they may span tokens.
        seed: makes sampling repeatable; None draws a fresh one.
        grammar: the only form that an answer may have; None for any.
    """

    max_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    stop: tuple[str, ...] = ()
    seed: int | None = None
    grammar: Grammar | None = None

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise InvalidInputError(f"max_tokens is {self.max_tokens}.", hint="Ask for at least one token.")
        if not 0 <= self.temperature < float("inf") or not 0 < self.top_p <= 1 or self.top_k < 0:
            raise InvalidInputError(
                f"temperature={self.temperature}, top_p={self.top_p}, top_k={self.top_k} cannot be sampled.",
                hint="temperature >= 0, 0 < top_p <= 1, top_k >= 0.",
            )
        if any(not text for text in self.stop):
            raise InvalidInputError("A stop string is empty.", hint="Leave it out.")


@dataclass(frozen=True)
class Decoded:
    """One decoded token: the text that became final with it (may be empty), and at the end the reason."""

    token_id: int
    text: str
    finish_reason: FinishReason | None = None


def decode(model: LoadedModel, cache: PlacedCache, logits: Tensor, settings: DecodeSettings) -> Iterator[Decoded]:
    """Decode behind a prefilled `cache`, starting from the prompt's last `logits` [vocabulary]."""
    decoder = Decoder(model, settings, logits.device)
    while True:
        step = decoder.step(logits)
        yield step
        if step.finish_reason is not None:
            return
        with torch.inference_mode():
            logits = forward(model, cache, [step.token_id])


class Decoder:
    """One answer in the making: is given logits, chooses tokens, and knows when to stop."""

    def __init__(self, model: LoadedModel, settings: DecodeSettings, device: torch.device) -> None:
        self._eos = model.eos_token_ids
        self._left = settings.max_tokens
        self._choose = _Chooser(settings, device)
        self._guide = None if settings.grammar is None else settings.grammar.guide(model, settings.max_tokens)
        self._text = TextStream(model.tokenizer, settings.stop)

    def step(self, logits: Tensor) -> Decoded:
        """The token that follows, of logits [vocabulary]; the last one has a `finish_reason`."""
        self._left -= 1
        guide, text = self._guide, self._text
        token = self._choose(logits) if guide is None else _guided(guide, self._choose, logits, self._left)
        if token in self._eos:
            return Decoded(token, text.finish(), "stop")
        piece = text.push(token)
        if text.stopped:
            return Decoded(token, piece, "stop")
        if guide is not None and guide.finished:
            return Decoded(token, piece + text.finish(), "stop")
        if not self._left:
            return Decoded(token, piece + text.finish(), "length")
        return Decoded(token, piece)


def _guided(guide: Guide, choose: Callable[[Tensor], int], logits: Tensor, left: int) -> int:
    allowed = torch.from_numpy(guide.allowed(len(logits))).to(logits.device)
    return guide.accept(choose(logits.masked_fill(~allowed, float("-inf"))), left)


class _Chooser:
    """Picks the next token from logits."""

    def __init__(self, settings: DecodeSettings, device: torch.device) -> None:
        self._greedy = settings.temperature == 0.0
        self._warpers = LogitsProcessorList()
        self._generator = torch.Generator(device=device)
        if settings.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(settings.seed)
        if not self._greedy:
            self._warpers.append(TemperatureLogitsWarper(settings.temperature))
        if settings.top_k:
            self._warpers.append(TopKLogitsWarper(settings.top_k))
        if settings.top_p < 1.0:
            self._warpers.append(TopPLogitsWarper(settings.top_p))

    @torch.inference_mode()
    def __call__(self, logits: Tensor) -> int:
        if self._greedy:
            return int(logits.argmax())
        no_ids = torch.empty((1, 0), dtype=torch.long, device=logits.device)
        scores = self._warpers(no_ids, logits[None].float())  # type: ignore[arg-type]  # wants legacy LongTensor types
        return int(torch.multinomial(scores.softmax(-1)[0], 1, generator=self._generator))


class TextStream:
    """Turns tokens into final text: whole characters only, nothing that may still become a stop string."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str]) -> None:
        """Args: stop: non-empty strings that end the text."""
        self._tokenizer = tokenizer
        self._stop = tuple(stop)
        self._ids: list[int] = []
        self._sent = 0
        self.stopped = False

    def push(self, token_id: int) -> str:
        """The text that became final with this token. Leading white space of the answer is dropped."""
        self._ids.append(token_id)
        text = self._text()
        cut = min((at for at in (text.find(s) for s in self._stop) if at >= 0), default=-1)
        if cut >= 0:
            self.stopped = True
            return self._send(text, cut)
        return self._send(text, self._safe_end(text))

    def finish(self) -> str:
        """What was held back, at the end of the answer."""
        text = self._text()
        return self._send(text, len(text))

    def _text(self) -> str:
        # Decoding everything again is quadratic in the answer but independent of tokenizer quirks at token borders.
        # Cleaning up blanks would change text that has been sent already.
        text = self._tokenizer.decode(self._ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return str(text).lstrip()

    def _safe_end(self, text: str) -> int:
        end = len(text.rstrip(_INCOMPLETE))
        longest = max((len(s) for s in self._stop), default=1) - 1
        for size in range(min(longest, end), 0, -1):
            if any(s.startswith(text[end - size : end]) for s in self._stop):
                return end - size
        return end

    def _send(self, text: str, end: int) -> str:
        piece = text[self._sent : end]
        self._sent = max(self._sent, end)
        return piece
