"""The web server of `rlhf compare`: one page and a few JSON calls, for one person, by the rules of `rlhf.web`."""

from dataclasses import asdict
from pathlib import Path

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from rlhf.people.production import Production
from rlhf.people.store import CHOICES, Store
from rlhf.people.summary import render, summarise
from rlhf.web.security import EXCEPTION_HANDLERS, SameOrigin, check_token, own_hosts, read_json

PAGE = Path(__file__).with_name("page")


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
        exception_handlers=EXCEPTION_HANDLERS,
    )
    return SameOrigin(app, own_hosts(host))


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
        body = await read_json(request)
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
        await read_json(request)
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
        check_token(request, self._token, "rlhf compare", token)
