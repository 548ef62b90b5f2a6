"""Composers: ways to put memories side by side that were read apart, one small class a file.

`composer(name)` finds one by its name, `names()` lists them, `DEFAULT` is what ``policy="fast"`` uses where it can.
"""

from __future__ import annotations

from collections.abc import Callable

from nnm_core.errors import InvalidInputError
from nnm_core.injection.compose.base import Composed, Composer, Composition, FindStored
from nnm_core.injection.compose.blend import Blend
from nnm_core.injection.compose.concatenate import Concatenate
from nnm_core.injection.compose.guided import Guided
from nnm_core.injection.compose.link import Link
from nnm_core.injection.compose.parallel import Parallel
from nnm_core.injection.compose.spread import Spread
from nnm_core.model.load import LoadedModel

__all__ = ["AUTO_BOUND", "DEFAULT", "Composed", "Composer", "Composition", "FindStored", "composer", "names"]

DEFAULT = "guided-offset"
# `policy="auto"` composes only where the composer's measured greedy agreement with reading is at least this.
AUTO_BOUND = 0.9

_MAKERS: dict[str, Callable[[], Composer]] = {
    "concatenate": Concatenate,
    "link": Link,
    "blend": Blend,
    "guided": lambda: Guided(offset="none", name="guided", spread=0.0),
    "offset": Spread,
    "guided-offset": Guided,
    "parallel": Parallel,
}


def names() -> tuple[str, ...]:
    """The names of all composers."""
    return tuple(_MAKERS)


def composer(
    chosen: str | Composer | None = None, model: LoadedModel | None = None, *, plain: bool = False
) -> Composer:
    """The composer of that name with its default settings; a composer is returned as it is.

    Args:
        chosen: None for the default, or for plain concatenation where that cannot be used.
        model: what it is to work with; not all models can be repaired.
        plain: other things intervene in the attention, so the default must not.

    Raises:
        InvalidInputError: there is none of that name.
    """
    if chosen is None:
        default = _MAKERS[DEFAULT]()
        return Concatenate() if plain or (model is not None and default.refusal(model)) else default
    if not isinstance(chosen, str):
        return chosen
    if chosen not in _MAKERS:
        raise InvalidInputError(f"There is no composer {chosen!r}.", hint=f"Use one of {', '.join(_MAKERS)}.")
    return _MAKERS[chosen]()
