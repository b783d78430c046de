"""The web server of `rlhf watch`: one page and a few JSON calls that read run folders, by the rules of `rlhf.web`."""

import json
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from rlhf.watch.runs import Runs
from rlhf.web.security import EXCEPTION_HANDLERS, SameOrigin, check_token, own_hosts

PAGE = Path(__file__).with_name("page")


def make_app(runs: Runs, token: str, host: str = "127.0.0.1") -> ASGIApp:
    """The application; the token must come with every call."""
    calls = Calls(runs, token)
    app = Starlette(
        routes=[
            Route("/", calls.page),
            Route("/api/runs", calls.list),
            Route("/api/run", calls.detail),
            Route("/api/samples", calls.samples),
            Mount("/static", StaticFiles(directory=PAGE)),
        ],
        exception_handlers=EXCEPTION_HANDLERS,
    )
    return SameOrigin(app, own_hosts(host))


class Calls:
    """What the page asks for. A run is named by its path below the folder, and only runs that are there are read."""

    def __init__(self, runs: Runs, token: str):
        self.runs, self._token = runs, token

    def page(self, request: Request) -> Response:
        """The page itself, which has no data in it."""
        check_token(request, self._token, "rlhf watch", request.query_params.get("token", ""))
        return HTMLResponse((PAGE / "watch.html").read_text(encoding="utf-8"))

    def list(self, request: Request) -> Response:
        """All runs, the newest first."""
        check_token(request, self._token, "rlhf watch")
        return _json({"folder": self.runs.root.resolve().name, "runs": self.runs.list()})

    def detail(self, request: Request) -> Response:
        """Curves, warnings and settings of one run."""
        check_token(request, self._token, "rlhf watch")
        return _json(_existing(self.runs.detail(request.query_params.get("name", ""))))

    def samples(self, request: Request) -> Response:
        """The samples of one run at one step."""
        check_token(request, self._token, "rlhf watch")
        step = request.query_params.get("step", "")
        if (step and not step.isascii()) or (step and not step.isdigit()):
            raise HTTPException(400, "step must be a whole number")
        name = request.query_params.get("name", "")
        return _json(_existing(self.runs.samples(name, int(step) if step else None)))


def _existing(value: Any) -> Any:
    if value is None:
        raise HTTPException(404, "there is no such run")
    return value


def _json(value: Any) -> Response:
    """JSON of sampled texts, which may hold lone surrogates."""
    return Response(json.dumps(value).encode("ascii"), media_type="application/json")
