"""Everything that NNM raises on purpose, each with a `hint` that says what to do next."""

from __future__ import annotations


class NNMError(Exception):
    """Root of all errors of this project.

    Attributes:
        hint: one sentence that tells the reader what to do about it; empty when there is nothing to do.
    """

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint

    def __str__(self) -> str:
        message = super().__str__()
        return f"{message} Hint: {self.hint}" if self.hint else message


class InvalidInputError(NNMError, ValueError):
    """The caller's arguments or data cannot be used (empty text, wrong types, mismatched lengths)."""


class ModelError(NNMError):
    """A model cannot be loaded or cannot be used."""


class ModelNotFoundError(ModelError):
    """No such model, locally or on the hub."""


class UnsupportedModelError(ModelError):
    """The model loads, but its state is not a per-token KV cache (encoder-decoder, state-space, hybrid ...)."""


class ContextOverflowError(NNMError):
    """The prompt and the tokens to generate do not fit the model's context."""


class StorageError(NNMError):
    """The store cannot be read or written (disk full, read-only, damaged)."""


class StoreLockedError(StorageError):
    """Another process has this namespace open for writing."""


class StoreMismatchError(StorageError):
    """The store was made by another model or by a newer format than this program can use."""


class IndexDamagedError(StorageError):
    """The vector index is missing parts or cannot be read. Its content can be rebuilt from the journal."""


class MemoryNotFoundError(NNMError, KeyError):
    """No memory has this id in this namespace."""

    # KeyError.__str__ shows the repr of the message; people should read the message itself.
    __str__ = NNMError.__str__


class MemoryNotInjectedError(NNMError):
    """A strict prompt has a memory whose state cannot be used, or has none of those recalled for it."""


class FilterError(InvalidInputError):
    """A search filter is malformed or asks for something that the index cannot do. Filters never fail open."""


class PositionError(NNMError):
    """A state was asked to move to a place that its position family does not allow."""


class EngineClosedError(NNMError):
    """The engine was used after `close()`."""
