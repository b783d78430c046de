"""The rules of the local web servers, which serve one person behind a random token.

A server listens on the loopback address by default; every call but those for the page's own files needs the token; a
request that another site causes is refused (its `Origin`, and a `Host` that is none of this machine's names, against
DNS rebinding); bodies are small JSON objects of that content type; the browser gets a content-security policy that
allows scripts and styles from this server alone, and nothing from anywhere else.
"""

import json
import secrets
import sys
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

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


def own_hosts(host: str) -> set[str] | None:
    """The names by which requests may call a server that listens on an address; None: any."""
    return None if host in ("0.0.0.0", "::") else {"127.0.0.1", "localhost", "::1", host}


def check_token(request: Request, token: str, command: str, sent: str | None = None) -> None:
    """Refuse a request without the token.

    Args:
        command: printed the address with the token.
        sent: the token of the address; None: that of the header `Authorization`.
    """
    if sent is None:
        scheme, _, sent = request.headers.get("Authorization", "").partition(" ")
        sent = sent if scheme == "Bearer" else ""
    if not secrets.compare_digest(sent.encode(), token.encode()):
        raise HTTPException(401, f"open the address that `{command}` printed, with its token")


async def read_json(request: Request) -> dict[str, Any]:
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


EXCEPTION_HANDLERS: dict[Any, Any] = {HTTPException: _refuse, Exception: _fail}
"""Errors as JSON, for Starlette."""
