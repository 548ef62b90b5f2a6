"""Side by side, nothing repaired."""

from __future__ import annotations

from dataclasses import dataclass

from nnm_core.injection.compose.base import Composed, Composition
from nnm_core.injection.prefill import prefill
from nnm_core.model.load import LoadedModel


@dataclass(frozen=True)
class Concatenate:
    """Every memory's state is moved to its place in the prompt as it is, behind one shared sink prefix.

    All states were computed behind the canonical left context, which is in the prompt once: it is the shared prefix
    that keeps the first tokens of later memories from becoming attention sinks (Link0 of EPIC, Hu et al. 2024,
    arXiv 2410.15332; the shared prefix of APE, Yang et al. 2025, arXiv 2502.05431). What is missing is the attention
    between memories. Nothing is computed again.
    """

    name: str = "concatenate"

    def refusal(self, model: LoadedModel) -> str:
        """None: what cannot be moved has been planned to be read."""
        return ""

    def prefill(self, work: Composition) -> Composed:
        """Load what is loaded, read what is read, in the order of the prompt."""
        return Composed(*prefill(work.model, work.plan, room=work.room))
