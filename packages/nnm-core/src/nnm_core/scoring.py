"""The scoring side of the engine's public face: how likely given answers are, with memories injected or read."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from nnm_core.answering import Request
from nnm_core.asking import AskFace
from nnm_core.chat import bare_prompt
from nnm_core.errors import InvalidInputError
from nnm_core.injection.compose import Composer
from nnm_core.injection.compose import composer as pick
from nnm_core.injection.generate import DecodeSettings
from nnm_core.injection.score import log_probabilities
from nnm_core.model.prompt import PromptFormat, question_prompt
from nnm_core.records import Hit, Memory, Message, Mode, Policy, Receipt


@dataclass(frozen=True, slots=True)
class Scores:
    """How likely each continuation is.

    Attributes:
        log_probs: natural logarithms, in the order of the continuations; sums over their tokens.
        receipt: what was done with the memories; its `tokens_generated` is 0.
    """

    log_probs: tuple[float, ...]
    receipt: Receipt

    @property
    def best(self) -> int:
        """Place of the most likely continuation, the first one of equals."""
        return max(range(len(self.log_probs)), key=self.log_probs.__getitem__)


class ScoreFace(AskFace):
    """What an open engine says about given answers."""

    _format: PromptFormat

    def score(
        self,
        question: str,
        continuations: Sequence[str],
        *,
        memories: Sequence[str | Memory | Hit] = (),
        mode: Mode = "inject",
        policy: Policy = "exact",
        composer: str | Composer | None = None,
    ) -> Scores:
        """log p(continuation | memories, question) for each continuation.

        Args:
            question: what is asked, in NNM's own layout.
            continuations: answers as the model would write them, from the first character on; a model without a chat
                template expects a blank in front.
            memories: ids, memories or hits, in this order.
            mode, policy, composer: as in `NNM.stream`.

        Raises:
            InvalidInputError: an empty question, or a continuation without tokens.
            ContextOverflowError: prompt and continuation do not fit the model's context.
        """
        rows = [self._format.text_ids(text) for text in continuations]
        if not rows or not all(rows):
            raise InvalidInputError("A continuation is empty.", hint="Give at least one, each with some text.")
        request = self._request(question, memories, mode, policy, composer, max_tokens=max(map(len, rows)))
        made, receipt = self._answerer.prepared(request)
        return Scores(tuple(log_probabilities(self._answerer.model, made.cache, made.logits, rows)), receipt)

    def _request(
        self,
        prompt: str | Sequence[Message],
        memories: Sequence[str | Memory | Hit],
        mode: Mode,
        policy: Policy,
        composer: str | Composer | None,
        *,
        max_tokens: int,
    ) -> Request:
        """A greedy request: a question in NNM's own layout with just these memories, or a chat prompt as it stands."""
        started = time.perf_counter()
        self._check_open()
        hits: tuple[Hit, ...] = ()
        if isinstance(prompt, str):
            if not prompt.strip():
                raise InvalidInputError("The question is empty.", hint="Ask something.")
            hits = () if mode == "bare" else self._given(memories)
            messages = question_prompt(prompt, [hit.memory for hit in hits], self.system)
        else:
            messages = bare_prompt(prompt).messages
        self._left_state()
        decoding = DecodeSettings(max_tokens)
        return Request(messages, hits, mode, policy, decoding, started, composer=pick(composer, self._answerer.model))
