"""Local web servers in a thread, with a client that sends any request, and a headless Chromium."""

import http.client
import importlib.util
import json
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

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

    def get(self, path: str) -> Any:
        return self.request("GET", path).json

    def question(self) -> dict[str, Any]:
        """Of `rlhf compare`."""
        return self.get("/api/question")

    def answer(self, question: str, choice: str = "left", clearly: bool = False, seconds: float = 1.0) -> Any:
        """Of `rlhf compare`."""
        body = {"question": question, "choice": choice, "clearly": clearly, "seconds": seconds}
        return self.request("POST", "/api/answer", body)

    def undo(self) -> Any:
        """Of `rlhf compare`."""
        return self.request("POST", "/api/undo", {})


@pytest.fixture
def connect() -> Callable[[int, str], Client]:
    """`connect(port, token)`: a client of a server in another process."""
    return Client


@pytest.fixture
def serve_app() -> Iterator[Callable[[Any], Client]]:
    """`serve_app(app)`: a client of an application on a free port, which expects the token `TOKEN`."""
    import uvicorn

    running = []

    def start(app: Any) -> Client:
        listener = socket.socket()
        listener.bind(("127.0.0.1", 0))
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


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """A headless Chromium; the test is skipped where it or playwright is not installed."""
    names = ("chromium", "chromium-browser", "google-chrome")
    executable = next((path for name in names if (path := shutil.which(name))), None)
    if executable is None or importlib.util.find_spec("playwright") is None:
        pytest.skip("playwright and a Chromium are not installed")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def open_address(browser) -> Iterator[Callable[..., Any]]:
    """`open_address(url, width=..., color_scheme=...)`: the page; errors, requests to elsewhere and dialogs fail."""
    contexts, problems = [], []

    def start(url: str, width: int = 1280, height: int = 800, **options: Any) -> Any:
        context = browser.new_context(viewport={"width": width, "height": height}, **options)
        contexts.append(context)
        page = context.new_page()
        allowed = ("http://127.0.0.1:", "file://")
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("dialog", lambda dialog: problems.append(dialog.message))
        page.on("request", lambda r: problems.append(r.url) if not r.url.startswith(allowed) else None)
        page.on("console", lambda m: problems.append(m.text) if "Content Security Policy" in m.text else None)
        page.goto(url)
        return page

    yield start
    for context in contexts:
        context.close()
    assert not problems
