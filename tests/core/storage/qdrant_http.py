"""A stand-in for a Qdrant server: its REST interface, as far as the index uses it, over qdrant-client's local mode.

Everything between client and server is real (HTTP, JSON, connections, waiting); only the storage behind it is not.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from typing import Any

from qdrant_client import QdrantClient, models

_COLLECTION = r"/collections/([^/?]+)"


class Server:
    """Answers `requests` (method and path of each is noted), each after `delay` seconds.

    With a `key` it answers those only that send it.
    """

    def __init__(self) -> None:
        self.local = QdrantClient(":memory:")
        self.requests: list[str] = []
        self.delay = 0.0
        self.broken = False
        self.key = ""
        self.under_way = self.most_under_way = 0
        self.url = ""
        self._lock = threading.Lock()

    def answer(self, verb: str, path: str, body: dict[str, Any]) -> Any:
        """The `result` of a request, or None for an unknown one."""
        self.requests.append(f"{verb} {re.sub(_COLLECTION, '', path)}")
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        time.sleep(self.delay)
        try:
            if self.broken:
                return None
            for pattern, method, call in ROUTES:
                found = re.fullmatch(pattern, path)
                if found and method == verb:
                    with self._lock:
                        return call(self.local, found[1], body)
            return None
        finally:
            self.under_way -= 1


def _create(local: QdrantClient, name: str, body: dict[str, Any]) -> Any:
    made = models.CreateCollection.model_validate(body)
    return local.create_collection(name, vectors_config=made.vectors, sparse_vectors_config=made.sparse_vectors)


def _query(local: QdrantClient, name: str, body: dict[str, Any]) -> Any:
    asked = models.QueryRequest.model_validate(body)
    query: Any = asked.query.nearest if isinstance(asked.query, models.NearestQuery) else asked.query
    return local.query_points(
        name, query, using=asked.using, limit=asked.limit or 10, query_filter=asked.filter, with_payload=False
    )


def _scroll(local: QdrantClient, name: str, body: dict[str, Any]) -> Any:
    points, after = local.scroll(
        name, limit=body["limit"], offset=body.get("offset"), with_payload=body["with_payload"], with_vectors=False
    )
    return {"points": [point.model_dump() for point in points], "next_page_offset": after}


def _upsert(local: QdrantClient, name: str, body: dict[str, Any]) -> Any:
    return local.upsert(name, models.PointsList.model_validate(body).points)


def _count(local: QdrantClient, name: str, body: dict[str, Any]) -> Any:
    return local.count(name, count_filter=models.CountRequest.model_validate(body).filter)


ROUTES: list[tuple[str, str, Callable[[QdrantClient, str, dict[str, Any]], Any]]] = [
    (f"{_COLLECTION}/exists", "GET", lambda local, name, _: {"exists": local.collection_exists(name)}),
    (_COLLECTION, "GET", lambda local, name, _: local.get_collection(name)),
    (_COLLECTION, "PUT", _create),
    (_COLLECTION, "DELETE", lambda local, name, _: local.delete_collection(name)),
    (f"{_COLLECTION}/points", "PUT", _upsert),
    (f"{_COLLECTION}/points/delete", "POST", lambda local, name, body: local.delete(name, body["points"])),
    (f"{_COLLECTION}/points/query", "POST", _query),
    (f"{_COLLECTION}/points/scroll", "POST", _scroll),
    (f"{_COLLECTION}/points/count", "POST", _count),
    (
        f"{_COLLECTION}/points",
        "POST",
        lambda local, name, body: local.retrieve(name, body["ids"], with_payload=True, with_vectors=True),
    ),
]


def _handler(server: Server) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _serve(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, done = 200, {"title": "qdrant - vector search engine", "version": version("qdrant-client")}
            if self.path != "/":
                status, done = self._answer(json.loads(body) if body else {})
            text = json.dumps(done, default=lambda value: value.model_dump()).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def _answer(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
            if server.key not in ("", self.headers.get("api-key")):
                return 401, {"status": {"error": "Must provide an API key"}, "time": 0.0}
            result = server.answer(self.command, self.path.partition("?")[0], body)
            return (500 if result is None else 200), {"result": result, "status": "ok", "time": 0.0}

        do_GET = do_PUT = do_POST = do_DELETE = _serve  # names of the standard library

        def log_message(self, *_: Any) -> None:
            pass

    return Handler


class _Http(ThreadingHTTPServer):
    request_queue_size = 128


@contextmanager
def qdrant_server() -> Iterator[Server]:
    """A running server."""
    server = Server()
    http = _Http(("127.0.0.1", 0), _handler(server))
    server.url = f"http://127.0.0.1:{http.server_port}"
    thread = threading.Thread(target=http.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
        # Each plain client asks for the version in a thread of its own, and warns if the server is gone by then.
        for asking in (thread for thread in threading.enumerate() if "_check_compatibility" in thread.name):
            asking.join(10)
    finally:
        http.shutdown()
        http.server_close()
        thread.join()
