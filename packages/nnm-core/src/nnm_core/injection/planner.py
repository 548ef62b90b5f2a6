"""Which way to the first token is the fastest that the policy allows: the text, a state as it is, a composition.

Decisions rest on what was measured on this machine (`nnm_core.injection.costs`) and on these memories
(`nnm_core.injection.calibration`). What was not measured is not decided: states are then loaded wherever they are
exact, and nothing is composed unless it is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from nnm_core.injection.compose import AUTO_BOUND
from nnm_core.injection.costs import Costs, Curve

Where = Literal["ram", "disk"]


@dataclass(frozen=True)
class Quality:
    """How near a composer or codec came to reading, on the user's own memories.

    Attributes:
        agreement: share of the tokens of greedy reading that it gives as well; none count from the first other one on.
        kl: mean KL divergence of its next-token distribution from that of reading, in nats.
        f1: F1 of its own answers: against gold answers if there were some, else against the answers of reading.
        f1_read: F1 of reading against the same gold answers; 1.0 without gold answers.
        prompts: how many prompts were compared.
        tokens: how many tokens were compared.
        kind: ``composer`` or ``codec``.
    """

    agreement: float
    kl: float
    f1: float
    f1_read: float
    prompts: int
    tokens: int
    kind: Literal["composer", "codec"]


@dataclass(frozen=True)
class Planner:
    """Decides for one namespace.

    Attributes:
        costs: what was measured on this machine; None if nothing was.
        quality: by the name of a composer or codec, what calibration has found for this model.
        where: where stored states lie.
        codec: in which form.
        bound: least agreement with which ``auto`` composes.
    """

    costs: Costs | None = None
    quality: Mapping[str, Quality] = field(default_factory=dict)
    where: Where = "ram"
    codec: str = "native"
    bound: float = AUTO_BOUND

    def agreement(self, name: str) -> float | None:
        """Measured share of greedy tokens that are those of reading, for a composer or a codec; None: not measured."""
        found = self.quality.get(name)
        return None if found is None else found.agreement

    @cached_property
    def automatic(self) -> str | None:
        """The composer that ``auto`` uses when none is named: the fastest of those that are near enough to reading."""
        good = [name for name, q in self.quality.items() if q.kind == "composer" and q.agreement >= self.bound]
        if self.costs is None or not good:
            return max(good, key=lambda name: self.quality[name].agreement, default=None)
        known = self.costs.compose
        return min(good, key=lambda name: known[name](512) if name in known else float("inf"))

    @cached_property
    def break_even(self) -> int | None:
        """From how many tokens on a stored state is loaded faster than its text is read; 0 if nobody has measured it,
        None if never.
        """
        curve = self._loading
        return 0 if curve is None or self.costs is None else self.costs.break_even(curve)

    @property
    def _loading(self) -> Curve | None:
        return None if self.costs is None else self.costs.load.get(f"{self.codec} {self.where}")

    def read_instead(self, tokens: int, *, composed: bool = False) -> str:
        """Why a memory of so many tokens should be read though it could be loaded; empty if it should not.

        Args:
            composed: its state would have to be moved, which costs at least as much as loading it.
        """
        curve = self._loading
        if curve is None or self.costs is None:
            return ""
        if self.costs.pays(curve, tokens):
            return ""
        read, other = self.costs.read(tokens), curve(tokens)
        what = "moving" if composed else "loading"
        when = self.costs.made.get("date", "")
        measured = f" (measured here{f' on {when}' if when else ''}, see nnm doctor)"
        times = f"its {tokens} tokens are read in {1000 * read:.1f} ms, {what} its state takes {1000 * other:.1f} ms"
        return times + measured

    def report(self) -> dict[str, Any]:
        """For `NNM.stats` and ``nnm doctor``."""
        return {
            "measured": self.costs is not None,
            "measured_on": None if self.costs is None else self.costs.made.get("date"),
            "costs_file": None if self.costs is None else self.costs.made.get("file"),
            "break_even_tokens": None if self.costs is None else self.break_even,
            "auto_composer": self.automatic,
            "auto_bound": self.bound,
            "calibrated": sorted(self.quality),
        }
