"""Pairs, a store, and a server in a thread with a client that sends any request."""

import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from rlhf.people.pairs import Pair
from rlhf.people.server import make_app
from rlhf.people.store import Store

TOKEN = "secret"


class Client:
    """Requests to a server on this machine; every header can be replaced, or left out with None."""

    def __init__(self, port: int, token: str = TOKEN):
        self.port, self.token = port, token

    def request(self, method: str, path: str, body: Any = None, **headers: str | None) -> SimpleNamespace:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        defaults: dict[str, str | None] = {"Authorization": f"Bearer {self.token}"}
        if body is not None:
            defaults["Content-Type"] = "application/json"
        values = defaults | {name.replace("_", "-"): value for name, value in headers.items()}
        content = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        connection.request(method, path, content, {k: v for k, v in values.items() if v is not None})
        response = connection.getresponse()
        text = response.read().decode()
        connection.close()
        is_json = response.headers.get("Content-Type", "").startswith("application/json")
        return SimpleNamespace(
            status=response.status, headers=response.headers, text=text, json=json.loads(text) if is_json else None
        )

    def question(self) -> dict[str, Any]:
        return self.request("GET", "/api/question").json

    def answer(self, question: str, choice: str = "left", clearly: bool = False, seconds: float = 1.0) -> Any:
        body = {"question": question, "choice": choice, "clearly": clearly, "seconds": seconds}
        return self.request("POST", "/api/answer", body)

    def undo(self) -> Any:
        return self.request("POST", "/api/undo", {})


@pytest.fixture
def connect() -> Callable[[int, str], Client]:
    """`connect(port, token)`: a client of a server in another process."""
    return Client


@pytest.fixture
def pairs() -> Callable[..., list[tuple[int, Pair]]]:
    """`pairs(30)`: that many pairs with their positions, of two origins."""

    def make(count: int, **changes: Any) -> list[tuple[int, Pair]]:
        settings = {"origin_a": "start", "origin_b": "trained"} | changes
        return [(i, Pair(f"prompt {i}", f"first {i}", f"second answer {i}", **settings)) for i in range(count)]

    return make


@pytest.fixture
def store(tmp_path, pairs) -> Store:
    """30 pairs; none is repeated or seen by two people."""
    made = Store(tmp_path / "preferences.jsonl", repeats=0.0, overlap=0.0)
    made.add("test", pairs(30))
    return made


@pytest.fixture
def serve() -> Iterator[Callable[..., Client]]:
    """`serve(store, "ada")`: a client of a running server."""
    import uvicorn

    running = []

    def start(store: Store, annotator: str = "ada", **options: Any) -> Client:
        listener = socket.socket()
        listener.bind(("127.0.0.1", 0))
        app = make_app(store, annotator, TOKEN, **options)
        server = uvicorn.Server(uvicorn.Config(app, log_level="critical", lifespan="off"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        running.append((server, thread, listener))
        return Client(listener.getsockname()[1])

    yield start
    for server, thread, listener in running:
        server.should_exit = True
        thread.join()
        listener.close()
