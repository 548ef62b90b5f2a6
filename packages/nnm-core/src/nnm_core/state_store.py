"""The stored states of one namespace: encoded, decoded, and brought into another codec when the choice has changed."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from nnm_core.errors import InvalidInputError, StorageError
from nnm_core.states.capture import capture
from nnm_core.states.codecs import Codec, EvictingCodec, Reader, expectation, make_codec, manifest_of
from nnm_core.states.state import State
from nnm_core.storage.blobs import Blob, BlobStore

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StateStore:
    """States as blobs, each under the point of its version.

    Attributes:
        blobs: where they lie.
        codec: in which form they are to lie.
        reader: the model, and its canonical left context.
    """

    blobs: BlobStore
    codec: Codec
    reader: Reader

    def put(self, key: str, state: State) -> None:
        """Store `state`."""
        manifest = manifest_of(state, self.codec, self.reader.model.fingerprint)
        self.blobs.put(key, self.encoded(state), manifest)

    def encoded(self, state: State) -> dict[str, Tensor]:
        """What is stored of `state`; codecs that leave out tokens choose them here."""
        if isinstance(self.codec, EvictingCodec):
            state = self.codec.choose(state, self.reader)
        return self.codec.encode(state)

    def get(self, key: str, alive: Callable[[], bool]) -> State | None:
        """The state under `key`, or None: not there, another model's, damaged, or not to be computed again here.

        A state in another form than `codec` is converted at its first use and stored so.

        Args:
            alive: whether its memory is still there; asked after a converted state was stored.
        """
        wanted = expectation(self.codec, self.reader.model.fingerprint)
        form = wanted.pop("codec")
        blob = self.blobs.get(key, expect=wanted)
        if blob is None:
            return None
        if blob.manifest["codec"] == form:
            return self.codec.decode(blob.tensors, blob.manifest, self.reader)
        return self._converted(key, blob, alive)

    def _converted(self, key: str, blob: Blob, alive: Callable[[], bool]) -> State | None:
        state = self._original(blob)
        if state is None:
            return None
        encoded = self.encoded(state)
        manifest = manifest_of(state, self.codec, self.reader.model.fingerprint)
        try:
            self.blobs.put(key, encoded, manifest)
        except StorageError as error:
            logger.warning("State %s stays in its old form: %s", key, error)
        if not alive():  # it was deleted meanwhile, perhaps before the new form was stored
            self.blobs.delete([key])
        # What is used now is what will be used later.
        return self.codec.decode(encoded, manifest, self.reader)

    def _original(self, blob: Blob) -> State | None:
        """The state as it was captured: decoded if nothing was lost, else read again."""
        try:
            old = make_codec(blob.manifest["codec"])
        except InvalidInputError:
            return None  # a later release's
        if old.lossless and self.codec.residual_layer is None:
            return old.decode(blob.tensors, blob.manifest, self.reader)
        left = self.reader.left()
        if left.name != blob.manifest["left"]:
            return None
        ids = tuple(blob.tensors["token_ids"].tolist())
        return capture(self.reader.model, [ids], left, residual_layer=self.codec.residual_layer)[0]
