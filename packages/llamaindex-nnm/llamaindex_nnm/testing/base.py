"""What the cases share: the factory, what may be skipped, and the nodes that they work on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, TypeVar
from uuid import NAMESPACE_OID, uuid5

from llama_index.core.schema import NodeRelationship, RelatedNodeInfo, TextNode
from llama_index.core.vector_stores.types import BasePydanticVectorStore, VectorStoreQuery, VectorStoreQueryResult

from llamaindex_nnm.testing.needed import pytest

Case = TypeVar("Case", bound=Callable[..., Any])
_NEEDS = "needed_abilities"

Abilities = frozenset(
    {
        "async",  # add, query, get and delete without blocking the loop
        "get_nodes",  # nodes come back by id and by filter
        "nested",  # groups of filters inside groups
        "sparse",  # search by words alone
        "hybrid",  # search by words and vectors, weighed by alpha
        "text",  # the store keeps text itself
    }
)


class Cases:
    """Base of all cases."""

    lacks: ClassVar[frozenset[str] | set[str]] = frozenset()
    known_failures: ClassVar[Mapping[str, str]] = {}

    @pytest.fixture(autouse=True)
    def _expectations(self, request: pytest.FixtureRequest) -> None:
        """Skips what is not claimed and expects the failures that are listed."""
        unknown = set(self.lacks) - Abilities
        if unknown:
            raise pytest.UsageError(f"Unknown abilities: {', '.join(sorted(unknown))}.")
        missing = sorted(getattr(request.function, _NEEDS, set()) & set(self.lacks))
        if missing:
            pytest.skip(f"lacks {', '.join(missing)}")
        name = request.node.name
        reason = self.known_failures.get(name) or self.known_failures.get(name.split("[")[0])
        if reason:
            request.applymarker(pytest.mark.xfail(reason=reason, strict=True))


def needs(*abilities: str) -> Callable[[Case], Case]:
    """Notes on a case what an implementation may lack."""

    def note(case: Case) -> Case:
        setattr(case, _NEEDS, set(abilities))
        return case

    return note


class StoreFactory(Cases):
    """Cases that work on a fresh store."""

    def make_store(self) -> BasePydanticVectorStore:
        """An empty store; it will be given vectors of three numbers."""
        raise NotImplementedError("say how to make an empty store")

    @pytest.fixture
    def store(self) -> BasePydanticVectorStore:
        """A fresh store for each case."""
        return self.make_store()


def key(name: str) -> str:
    """The id of the node that the cases call by this name: a UUID, so that what is asked is not about ids."""
    return str(uuid5(NAMESPACE_OID, name))


def keys(*names: str) -> list[str]:
    """The ids of several nodes."""
    return [key(name) for name in names]


def node(
    name: str,
    embedding: Sequence[float],
    text: str = "",
    *,
    document: str | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> TextNode:
    """A node of a document, with an embedding."""
    relationships = {} if document is None else {NodeRelationship.SOURCE: RelatedNodeInfo(node_id=document)}
    return TextNode(
        id_=key(name),
        text=text or f"This is the text of {name}.",
        embedding=list(embedding),
        metadata=dict(metadata or {}),
        relationships=relationships,
    )


def people() -> list[TextNode]:
    """Six nodes of three documents whose vectors fan out from the first axis."""
    rows: list[tuple[str, list[float], str, str, dict[str, Any]]] = [
        ("ada", [1.0, 0.0, 0.0], "doc-1", "Ada Byron wrote the first program.", {"born": 1815, "field": "Mathematics"}),
        ("Bob", [0.9, 0.3, 0.0], "doc-1", "Bob repairs bicycles.", {"born": 1990, "field": "mechanics", "score": 1.5}),
        ("c-3", [0.7, 0.6, 0.0], "doc-2", "Chloe swims each morning.", {"born": 2001, "field": "sports", "score": 2.0}),
        ("d4", [0.4, 0.9, 0.0], "doc-2", "Dmitri plays chess.", {"field": "games", "tags": ["indoor", "quiet"]}),
        ("e 5", [0.0, 1.0, 0.1], "doc-3", "Esra bakes bread.", {"born": 1990, "tags": ["indoor", "warm"]}),
        ("f/6", [0.0, 0.2, 1.0], "doc-3", "Femi grows beans.", {"tags": []}),
    ]
    return [node(name, vector, text, document=doc, metadata=metadata) for name, vector, doc, text, metadata in rows]


EVERYBODY = {"ada", "Bob", "c-3", "d4", "e 5", "f/6"}
NORTH = [1.0, 0.0, 0.0]


def query(**options: Any) -> VectorStoreQuery:
    """A query along the first axis that would give everything."""
    return VectorStoreQuery(**{"query_embedding": NORTH, "similarity_top_k": 10, **options})


_NAMES = {
    key(name): name for name in [*EVERYBODY, *"abcd", "one", "two", "long", "short", "opposite", "across", "start"]
}


def names(result: VectorStoreQueryResult) -> list[str]:
    """The names of a result, in order; an id that no case has given stands for itself."""
    return [_NAMES.get(id, id) for id in result.ids or []]


def names_of(nodes: Iterable[Any]) -> set[str]:
    """The names of nodes."""
    return {_NAMES.get(found.node_id, found.node_id) for found in nodes}
