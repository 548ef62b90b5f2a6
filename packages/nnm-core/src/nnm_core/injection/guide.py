"""What may be answered: a guide says before each token which ones are allowed, whatever the model would like."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from nnm_core.model.load import LoadedModel


class Guide(Protocol):
    """The way through one answer."""

    @property
    def finished(self) -> bool:
        """Nothing can follow."""
        ...

    def allowed(self, size: int) -> NDArray[np.bool_]:
        """Which of `size` tokens may come next, [size]."""
        ...

    def accept(self, token: int, left: int) -> int:
        """Go on with an allowed token and return it.

        Or with another one, if the answer could not be finished within the `left` tokens that follow.
        """
        ...


class Grammar(Protocol):
    """Answers of one form."""

    def guide(self, model: LoadedModel, max_tokens: int) -> Guide:
        """A guide for one answer of `model`.

        Raises:
            InvalidInputError: no answer of this form fits `max_tokens`, or this model's tokenizer cannot be guided.
        """
        ...
