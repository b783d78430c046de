"""The web server of `rlhf compare`: one page and a few JSON calls, for one person, behind a random token.

Rules: it listens on the loopback address by default; every call but those for the page's own files needs the token; a
request that another site causes is refused (its `Origin`, and a `Host` that is none of this machine's names, against
DNS rebinding); bodies are small JSON objects of that content type; the browser gets a content-security policy that
allows scripts and styles from this server alone, and nothing from anywhere else.
"""

import json
import secrets
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rlhf.people.production import Production
from rlhf.people.store import CHOICES, Store
from rlhf.people.summary import render, summarise

PAGE = Path(__file__).with_name("page")

LONGEST_BODY = 10_000
"""Bytes of a request's body; an answer has about a hundred."""

SECURITY_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


def make_app(
    store: Store, annotator: str, token: str, *, host: str = "127.0.0.1", production: Production | None = None
) -> ASGIApp:
    """The application.

    Args:
        annotator: the person whose answers it saves.
        token: must come with every call.
        host: the address that it listens on, whose name requests may use.
        production: makes more pairs meanwhile.
    """
    calls = Calls(store, annotator, token, production)
    app = Starlette(
        routes=[
            Route("/", calls.page),
            Route("/summary", calls.summary),
            Route("/api/question", calls.question),
            Route("/api/answer", calls.answer, methods=["POST"]),
            Route("/api/undo", calls.undo, methods=["POST"]),
            Mount("/static", StaticFiles(directory=PAGE)),
        ],
        exception_handlers={HTTPException: _refuse, Exception: _fail},
    )
    everywhere = host in ("0.0.0.0", "::")
    return SameOrigin(app, None if everywhere else {"127.0.0.1", "localhost", "::1", host})


class Calls:
    """What the page asks for."""

    def __init__(self, store: Store, annotator: str, token: str, production: Production | None):
        self.store, self.annotator, self.production = store, annotator, production
        self._token = token

    def page(self, request: Request) -> Response:
        """The page itself, which has no data in it."""
        self._check_token(request, request.query_params.get("token", ""))
        return HTMLResponse((PAGE / "compare.html").read_text(encoding="utf-8"))

    def summary(self, request: Request) -> Response:
        """The summary of all answers."""
        self._check_token(request, request.query_params.get("token", ""))
        return HTMLResponse(render(summarise(self.store), stylesheet="/static/compare.css"))

    def question(self, request: Request) -> Response:
        """The pair to compare now, and the progress."""
        self._check_token(request)
        return self._state()

    async def answer(self, request: Request) -> Response:
        """Save an answer; returns the next question. 409 with the current one if the answer was to another."""
        self._check_token(request)
        body = await _read_json(request)
        question, choice = body.get("question"), body.get("choice")
        clearly, seconds = body.get("clearly", False), body.get("seconds")
        if not isinstance(question, str) or choice not in CHOICES or not isinstance(clearly, bool):
            raise HTTPException(400, f"an answer has a question, and a choice of {', '.join(CHOICES)}")
        if seconds is not None and not (isinstance(seconds, int | float) and 0 <= seconds < 1e6):
            raise HTTPException(400, "seconds must be a number from 0 on")
        saved = await run_in_threadpool(self.store.answer, self.annotator, question, choice, clearly, seconds)
        return await run_in_threadpool(self._state, 200 if saved else 409)

    async def undo(self, request: Request) -> Response:
        """Take the newest answer back; returns its question."""
        self._check_token(request)
        await _read_json(request)
        undone = await run_in_threadpool(self.store.undo, self.annotator)
        return await run_in_threadpool(self._state, 200 if undone else 409)

    def _state(self, status: int = 200) -> Response:
        running = self.production is not None and self.production.running
        question = self.store.question(self.annotator, more_to_come=running)
        state = {
            "annotator": self.annotator,
            "question": None if question is None else asdict(question),
            "progress": asdict(self.store.progress(self.annotator)),
            "more_to_come": running,
            "problem": None if self.production is None else self.production.error,
        }
        return JSONResponse(state, status_code=status)

    def _check_token(self, request: Request, token: str | None = None) -> None:
        if token is None:
            scheme, _, token = request.headers.get("Authorization", "").partition(" ")
            token = token if scheme == "Bearer" else ""
        if not secrets.compare_digest(token.encode(), self._token.encode()):
            raise HTTPException(401, "open the address that `rlhf compare` printed, with its token")


async def _read_json(request: Request) -> dict[str, Any]:
    """The body of a request, which must be a small JSON object and say so."""
    if request.headers.get("Content-Type", "").partition(";")[0].strip().lower() != "application/json":
        raise HTTPException(415, "the content type must be application/json")
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > LONGEST_BODY:
            raise HTTPException(413, f"a body has at most {LONGEST_BODY} bytes")
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        raise HTTPException(400, "the body is not JSON") from None
    if not isinstance(content, dict):
        raise HTTPException(400, "the body must be a JSON object")
    return content


class SameOrigin:
    """Refuses what other sites cause a browser to send, and adds the security headers to every response."""

    def __init__(self, app: ASGIApp, hosts: set[str] | None):
        """With the names of this machine that requests may use; None: any."""
        self.app, self.hosts = app, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(SECURITY_HEADERS)
            await send(message)

        problem = self._problem(Headers(scope=scope))
        app = self.app if problem is None else JSONResponse({"error": problem}, status_code=403)
        await app(scope, receive, send_with_headers)

    def _problem(self, headers: Headers) -> str | None:
        """Why a request is refused; None where it is not."""
        host = headers.get("Host", "")
        if self.hosts is not None and urlsplit(f"//{host}").hostname not in self.hosts:
            return f"the host {host!r} is not this server"
        origin = headers.get("Origin")
        if origin is not None and origin != f"http://{host}":
            return f"requests from {origin} are refused"
        # A link to the page may be clicked anywhere, such as in a terminal that is a web page itself.
        is_link = headers.get("Sec-Fetch-Mode") == "navigate" and headers.get("Sec-Fetch-Dest") == "document"
        if headers.get("Sec-Fetch-Site", "none") not in ("same-origin", "none") and not is_link:
            return "requests from other sites are refused"
        return None


def _refuse(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, status_code=error.status_code)


def _fail(request: Request, error: Exception) -> Response:
    """A fault of ours or of the disk: the page shows it, and the answer is sent again by its retry."""
    print(f"error: {type(error).__name__}: {error}", file=sys.stderr)
    return JSONResponse({"error": f"{type(error).__name__}: {error}"}, status_code=500)
