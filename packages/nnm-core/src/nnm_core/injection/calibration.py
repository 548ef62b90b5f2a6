"""How near composers and codecs come to reading on given prompts: greedy agreement, KL divergence, answer F1."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from nnm_core.errors import PositionError
from nnm_core.injection.compose import Composer, Composition
from nnm_core.injection.plan import Plan, make_plan, read_plan
from nnm_core.injection.planner import Quality
from nnm_core.injection.prefill import forward, looking, prefill
from nnm_core.model.load import LoadedModel
from nnm_core.model.prompt import Segment
from nnm_core.states.cache import PlacedCache
from nnm_core.states.capture import capture, place
from nnm_core.states.codecs import Codec, Reader, manifest_of
from nnm_core.states.state import PlacedState, State, chain

# (an answer, the answers that it should be) -> 0..1
Score = Callable[[str, Sequence[str]], float]
Filled = tuple[PlacedCache, Tensor]


@dataclass(frozen=True)
class Probe:
    """One prompt to compare on.

    Attributes:
        segments: the prompt; it begins with the canonical left context, if its first memory is to be exact.
        golds: right answers; without any, the answer of reading is the right one.
    """

    segments: Sequence[Segment]
    golds: tuple[str, ...] = ()


@dataclass(frozen=True)
class Reading:
    """What reading a probe gives: its greedy tokens, their logits [tokens, vocabulary], and the text."""

    tokens: list[int]
    logits: Tensor
    text: str


@dataclass
class Tally:
    """What was counted of one way over several probes."""

    agreed: int = 0
    tokens: int = 0
    kl: list[float] = field(default_factory=list)
    f1: list[float] = field(default_factory=list)
    f1_read: list[float] = field(default_factory=list)

    def quality(self, kind: str) -> Quality:
        """The means."""
        means = (statistics.fmean(values) for values in (self.kl, self.f1, self.f1_read))
        kl, f1, f1_read = means
        agreement = self.agreed / max(self.tokens, 1)
        return Quality(
            agreement, kl, f1, f1_read, len(self.f1), self.tokens, "codec" if kind == "codec" else "composer"
        )


@dataclass(frozen=True)
class Calibrator:
    """Compares ways of loading with reading, on one model.

    Attributes:
        left: the state of the canonical left context.
        score: of an answer.
        tokens: how many tokens of the answer are compared, at most.
    """

    model: LoadedModel
    left: PlacedState
    score: Score
    tokens: int = 24

    def composers(
        self, probes: Iterable[Probe], composers: Sequence[Composer], done: Callable[[], None] = lambda: None
    ) -> dict[str, Quality]:
        """Each composer on prompts of several memories; those that refuse the model are left out."""
        fitting = [composer for composer in composers if not composer.refusal(self.model)]
        tallies = {composer.name: Tally() for composer in fitting}
        for probe in probes:
            states = self._states(probe)
            if len(states) > 1:  # one memory alone is not composed
                reading = self._read(probe)
                for composer in fitting:
                    self._compare(tallies[composer.name], probe, reading, self._composing(composer, probe, states))
            done()
        return {name: tally.quality("composer") for name, tally in tallies.items() if tally.f1}

    def codecs(
        self, probes: Iterable[Probe], codecs: Sequence[Codec], done: Callable[[], None] = lambda: None
    ) -> dict[str, Quality]:
        """Each codec on prompts of one memory, whose state is exact but for the codec."""
        tallies = {codec.name: Tally() for codec in codecs}
        for probe in probes:
            reading = self._read(probe)
            for codec in codecs:
                filled = self._decoding(codec, probe)
                if filled is not None:
                    self._compare(tallies[codec.name], probe, reading, filled)
            done()
        return {name: tally.quality("codec") for name, tally in tallies.items() if tally.f1}

    def _read(self, probe: Probe) -> Reading:
        cache, logits = prefill(self.model, read_plan(probe.segments), room=self.tokens)
        tokens, rows = self._greedy(cache, logits)
        return Reading(tokens, torch.stack(rows), self._text(tokens))

    @torch.inference_mode()
    def _greedy(self, cache: PlacedCache, logits: Tensor) -> tuple[list[int], list[Tensor]]:
        tokens: list[int] = []
        rows: list[Tensor] = []
        while True:
            rows.append(logits.float())
            tokens.append(int(logits.argmax()))
            if len(tokens) == self.tokens or tokens[-1] in self.model.eos_token_ids:
                return tokens, rows
            logits = forward(self.model, cache, tokens[-1:])

    def _text(self, tokens: Sequence[int]) -> str:
        return str(self.model.tokenizer.decode(list(tokens), skip_special_tokens=True)).strip()

    @torch.inference_mode()
    def _compare(self, tally: Tally, probe: Probe, reading: Reading, fill: Callable[[], Filled]) -> None:
        """The same tokens as reading, how far are the distributions behind its tokens, and how good is the answer?"""
        cache, first = fill()
        rows = [first.float()[None]]
        if len(reading.tokens) > 1:
            ids = torch.tensor([reading.tokens[:-1]], device=self.model.device)
            with looking(cache):
                rows.append(self.model.hf(input_ids=ids, past_key_values=cache, use_cache=True).logits[0].float())
        logits = torch.cat(rows)
        wanted, found = reading.logits.log_softmax(-1), logits.log_softmax(-1)
        chosen = logits.argmax(-1).tolist()
        # Up to the first other token this is what it would have decoded freely.
        agreed = next((i for i, token in enumerate(reading.tokens) if chosen[i] != token), len(reading.tokens))
        tally.agreed += agreed
        tally.tokens += len(reading.tokens)
        tally.kl.append(max(0.0, float((wanted.exp() * (wanted - found)).sum(-1).mean())))
        text = reading.text
        if agreed < len(reading.tokens):
            cache, first = fill()
            text = self._text(self._greedy(cache, first)[0])
        golds = probe.golds or (reading.text,)
        tally.f1.append(1.0 if text == reading.text and not probe.golds else self.score(text, golds))
        tally.f1_read.append(self.score(reading.text, golds) if probe.golds else 1.0)

    def _states(self, probe: Probe) -> dict[str, State]:
        """By the memory's id."""
        return {s.memory.id: capture(self.model, [s.ids], self.left)[0] for s in probe.segments if s.memory is not None}

    def _composing(self, composer: Composer, probe: Probe, states: dict[str, State]) -> Callable[[], Filled]:
        def stored(segment: Segment) -> State | None:
            return None if segment.memory is None else states[segment.memory.id]

        def moved(segment: Segment, start: int) -> PlacedState | None:
            state = stored(segment)
            return None if state is None else place(self.model, state, start)

        def exact(segment: Segment, left: str, start: int) -> PlacedState | None:
            if segment.memory is None:
                return self.left if chain(left, segment.ids) == self.left.name else None
            return moved(segment, start) if left == self.left.name else None

        def fill() -> Filled:
            plan = make_plan(probe.segments, "fast", exact, moved)
            if not plan.composed:  # one memory only, or a model whose states cannot be moved
                return prefill(self.model, plan, room=self.tokens)
            made = composer.prefill(Composition(self.model, plan, self.tokens, stored))
            return made.cache, made.logits

        return fill

    def _decoding(self, codec: Codec, probe: Probe) -> Callable[[], Filled] | None:
        segment = next(segment for segment in probe.segments if segment.memory is not None)
        state = capture(self.model, [segment.ids], self.left, residual_layer=codec.residual_layer)[0]
        manifest = manifest_of(state, codec, self.model.fingerprint)
        decoded = codec.decode(codec.encode(state), manifest, Reader(self.model, lambda: self.left))
        if decoded is None:
            return None

        def exact(part: Segment, left: str, start: int) -> PlacedState | None:
            if part is segment:
                try:
                    return place(self.model, decoded, start)
                except PositionError:
                    return None
            return self.left if chain(left, part.ids) == self.left.name else None

        def fill() -> Filled:
            plan: Plan = make_plan(probe.segments, "auto", exact, lambda *_: None)
            return prefill(self.model, plan, room=self.tokens)

        return fill
