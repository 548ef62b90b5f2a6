"""What the plain and the asynchronous side of the index on a Qdrant server share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import httpx
from qdrant_client import models
from qdrant_client.http.exceptions import ApiException, UnexpectedResponse

from nnm_core.errors import StorageError
from nnm_core.storage.index import SparseVector

_HNSW_EF = 256
PAGE = 1_000
_CHECK = "Check that it runs and that the address is right (docker compose up qdrant)."
_WANTS_A_KEY = "Give its key: NNM.open(url=..., api_key=...), or QDRANT_API_KEY in the environment."


def is_local(options: Mapping[str, Any]) -> bool:
    """Whether a client with these `init_options` is qdrant-client's local mode and has no server."""
    return options.get("location") == ":memory:" or options.get("path") is not None


def search_params(limit: int, *, local: bool) -> models.SearchParams | None:
    """A wider graph search than the default; None for the local mode, which compares all and warns about options."""
    return None if local else models.SearchParams(hnsw_ef=max(_HNSW_EF, limit))


def encode_sparse(vector: SparseVector) -> models.SparseVector:
    """The vector as the server takes it."""
    return models.SparseVector(indices=vector.indices.tolist(), values=vector.values.tolist())


@contextmanager
def server_errors(collection: str) -> Iterator[None]:
    """What goes wrong with a server, as a `StorageError`."""
    try:
        yield
    except (ApiException, httpx.HTTPError, OSError) as error:
        refused = isinstance(error, UnexpectedResponse) and error.status_code in (401, 403)
        raise StorageError(
            f"The Qdrant server failed on {collection!r}: {error}.",
            hint=_WANTS_A_KEY if refused else _CHECK,
        ) from error
