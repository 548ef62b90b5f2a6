"""An engine without a model: it remembers calls and finds what shares words with the question."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

from nnm_core.errors import InvalidInputError
from nnm_core.records import Answer, Chunk, Hit, Memory, Message, Receipt


class FakeNNM:
    """Stands in for `nnm_core.NNM`; what is stored lives as long as the class."""

    store: ClassVar[dict[str, Memory]] = {}
    calls: ClassVar[list[tuple[str, Any]]] = []
    fail_with: ClassVar[BaseException | None] = None

    @classmethod
    def reset(cls) -> None:
        cls.store, cls.calls, cls.fail_with = {}, [], None

    @classmethod
    def open(cls, model: str, path: Any = None, **options: Any) -> FakeNNM:
        cls.calls.append(("open", {"model": model, "path": path, **options}))
        if cls.fail_with is not None:
            raise cls.fail_with
        path.mkdir(parents=True, exist_ok=True)
        return cls()

    def add(
        self, texts: Sequence[str], ids: Sequence[str], metadatas: Sequence[Mapping[str, Any]], **_: Any
    ) -> list[Memory]:
        if not all(texts):
            raise InvalidInputError("Text 1 is empty.", hint="Leave it out.")
        added = [Memory(i, text, meta) for i, text, meta in zip(ids, texts, metadatas, strict=True)]
        self.store.update({memory.id: memory for memory in added})
        self.calls.append(("add", list(ids)))
        return added

    def search(self, query: str, k: int = 4, **_: Any) -> list[Hit]:
        words = set(query.lower().split())
        scored = [(len(words & set(memory.text.lower().split())), memory) for memory in self.store.values()]
        best = sorted((pair for pair in scored if pair[0]), key=lambda pair: -pair[0])[:k]
        return [Hit(memory, float(n), {"sparse": n / 2, "sparse_rank": i}) for i, (n, memory) in enumerate(best, 1)]

    def answer(self, question: str | Sequence[Message], k: int = 4, max_tokens: int = 64, **options: Any) -> Answer:
        self.calls.append(("answer", {"question": question, "k": k, "max_tokens": max_tokens, **options}))
        hits = tuple(self.search(question, k)) if isinstance(question, str) else ()
        receipt = Receipt(
            "exact", 11, 7, 0, 2, 0.012, "f", ("m: too long",), 0.5, {h.memory.id: "injected" for h in hits}
        )
        return Answer(" on Tuesdays", (1, 2), hits, receipt)

    def stream(self, question: str | Sequence[Message], **options: Any) -> Iterator[Chunk]:
        yield Chunk(" on", (1,))
        yield Chunk(" Tuesdays", (2,), self.answer(question, **options))

    def delete(self, ids: Sequence[str]) -> int:
        return sum(self.store.pop(i, None) is not None for i in ids)

    def forget(self, ids: Sequence[str]) -> int:
        self.calls.append(("forget", list(ids)))
        return self.delete(ids)

    def stats(self) -> dict[str, Any]:
        return {"memories": len(self.store), "bytes_states": 3 * 2**20, "model": "fake"}

    def close(self) -> None:
        self.calls.append(("close", None))
