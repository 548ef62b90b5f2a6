"""Strength and place of injected memories: settings that are plain values (no torch is loaded for them)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from nnm_core.errors import InvalidInputError, UnsupportedModelError

if TYPE_CHECKING:
    from nnm_core.model.load import LoadedModel

Scaling = Literal["attention", "value"]


@dataclass(frozen=True)
class InjectionSettings:
    """Strength and place of the memories in a prompt.

    Attributes:
        strength: 1 is as read; 0 takes the memories' content away; more than 1 exaggerates it.
        by: what is scaled.
        layers: the layers in which the memories can be seen; None for all.
    """

    strength: float = 1.0
    by: Scaling = "attention"
    layers: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.strength < float("inf"):
            raise InvalidInputError(f"strength is {self.strength}.", hint="Use 0 or more; 1 is as read.")
        if self.by not in ("attention", "value"):
            raise InvalidInputError(f"by is {self.by!r}.", hint="Use attention or value.")
        if self.layers is not None:
            object.__setattr__(self, "layers", tuple(sorted(set(self.layers))))

    def check(self, model: LoadedModel) -> None:
        """Raise unless this model can be intervened in as these settings ask.

        Raises:
            InvalidInputError: a layer that the model does not have.
            UnsupportedModelError: its attention cannot be intercepted, or takes no masks.
        """
        wrong = [layer for layer in self.layers or () if not 0 <= layer < model.layers]
        if wrong:
            raise InvalidInputError(
                f"{model.name} has no layer {wrong[0]}.", hint=f"Use layers from 0 to {model.layers - 1}."
            )
        if self.felt_as_read(model.layers):
            return
        kind = str(getattr(model.hf.config, "_attn_implementation", ""))
        if not model.intervenes or "flash" in kind or "flex" in kind:
            raise UnsupportedModelError(
                f"The attention of {model.name} ({kind}) cannot be scaled.",
                hint="Load the model with attention='sdpa' or 'eager', or leave strength and layers as they are.",
            )

    def felt_as_read(self, layers: int) -> bool:
        """Whether these settings change nothing in a model of so many layers."""
        return self.strength == 1.0 and (self.layers is None or len(self.layers) == layers)


AS_READ = InjectionSettings()


def parse_layers(text: str) -> tuple[int, ...] | None:
    """``all``, ``7``, ``4-9`` or ``0-3,7`` as layer numbers.

    Raises:
        InvalidInputError: anything else.
    """
    if text == "all":
        return None
    found: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()) or (dash and int(last) < int(first)):
            raise InvalidInputError(f"{text!r} names no layers.", hint="Write all, 7, 4-9 or 0-3,7.")
        found += range(int(first), int(last or first) + 1)
    return tuple(found)
