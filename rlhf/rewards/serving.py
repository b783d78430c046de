"""A source over HTTP, as `rlhf serve-reward` runs it and `reward.url` asks it. docs/rewards.md describes the JSON."""

import hmac
import ipaddress
import json
import math
import socket
from collections.abc import Mapping
from typing import Any

import torch

from rlhf.config.serving import ServeRewardJob
from rlhf.errors import UserError
from rlhf.rewards.mixes import Mix
from rlhf.rewards.results import Context, Failure, Score, TokenRewards, read_scores
from rlhf.rewards.servers import read_token, require_package
from rlhf.rewards.sources import RewardSource, open_sources

PATH = "/score"


class RequestError(Exception):
    """A request that cannot be answered, with its HTTP status."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status


def serve_reward(job: ServeRewardJob) -> None:
    """Answer requests until interrupted.

    Raises:
        UserError: the source cannot be opened, the address cannot be used, or it needs a token.
    """
    uvicorn = require_package("uvicorn")
    require_package("starlette")
    token = read_token(job.token_env, "token_env")
    if token is None and not is_loopback(job.host):
        raise UserError(
            f"host is {job.host!r}, which other machines can reach, but token_env is not set; set it to an environment "
            "variable with a token, or host to 127.0.0.1"
        )
    listener = _listen(job.host, job.port)
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    source = open_sources({"score": job.reward}, device or "cpu")["score"]
    app = make_app(source, token, int(job.max_body_mb * 2**20))
    host = f"[{job.host}]" if ":" in job.host else job.host
    address = f"http://{host}:{listener.getsockname()[1]}{PATH}"
    print(f"{describe(source)} answers at {address}; use it with --reward.url {address}", flush=True)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False))
    server.run(sockets=[listener])


def describe(source: RewardSource) -> str:
    """A source in words."""
    return f"the sum of {', '.join(source.sources)}" if isinstance(source, Mix) else str(source)


def is_loopback(host: str) -> bool:
    """Whether an address can be reached from this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _listen(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise UserError(f"cannot listen at {host}, port {port}: {error.strerror or error}; set host or port") from error


def make_app(source: RewardSource, token: str | None, max_body: int) -> Any:
    """The ASGI application.

    Args:
        token: that requests must bring; None: none.
        max_body: bytes of a request.
    """
    from anyio import CapacityLimiter, to_thread
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import JSONResponse
    from starlette.routing import Route

    limiter: list[CapacityLimiter] = []  # a model computes one batch at a time; it is made on the server's event loop

    async def score(request: Request) -> JSONResponse:
        try:
            check_headers(request.headers, token, max_body)
            body = bytearray()
            async for chunk in request.stream():
                body += chunk
                if len(body) > max_body:
                    raise RequestError(413, f"the request is larger than {max_body} bytes (max_body_mb)")
            texts = read_request(bytes(body))
            if not limiter:
                limiter.append(CapacityLimiter(64 if getattr(source, "waits", False) else 1))
            answer = await to_thread.run_sync(lambda: answer_of(source, *texts), limiter=limiter[0])
            return JSONResponse(answer)
        except RequestError as error:
            return JSONResponse({"error": str(error)}, status_code=error.status)
        except UserError as error:
            return JSONResponse({"error": str(error)}, status_code=422)

    async def health(request: Request) -> JSONResponse:
        return JSONResponse({"status": "ok"})

    return Starlette(routes=[Route(PATH, score, methods=["POST"]), Route("/health", health)])


def check_headers(headers: Mapping[str, str], token: str | None, max_body: int) -> None:
    """Refuse a request before its body is read. Raises RequestError.

    Only JSON is accepted: a web page that a browser on this machine shows cannot send that to another origin.
    """
    if token is not None:
        expected = f"Bearer {token}".encode()
        if not hmac.compare_digest(headers.get("authorization", "").encode("latin-1", "replace"), expected):
            raise RequestError(401, "the bearer token is missing or wrong")
    if headers.get("content-type", "").split(";")[0].strip().lower() != "application/json":
        raise RequestError(415, "the content type must be application/json")
    length = headers.get("content-length", "0")
    if length.isdigit() and int(length) > max_body:
        raise RequestError(413, f"the request is larger than {max_body} bytes (max_body_mb)")


def read_request(body: bytes) -> tuple[list[Any], list[str], dict[str, list[Any]], int]:
    """Prompts, completions, columns and step of a request. Raises RequestError where it is not as described."""
    try:
        request = json.loads(body)
    except (ValueError, RecursionError):
        raise RequestError(400, "the body is no JSON") from None
    if not isinstance(request, dict):
        raise RequestError(400, "the body must be an object with prompts and completions")
    if unknown := sorted(set(request) - {"prompts", "completions", "columns", "step"}):
        raise RequestError(400, f"unknown key {unknown[0]!r}; there are prompts, completions, columns, step")
    prompts, completions = request.get("prompts"), request.get("completions")
    columns, step = request.get("columns") or {}, request.get("step", 0)
    if not isinstance(completions, list) or not all(isinstance(text, str) for text in completions):
        raise RequestError(400, "completions must be a list of texts")
    if not isinstance(prompts, list) or not all(isinstance(prompt, str | list) for prompt in prompts):
        raise RequestError(400, "prompts must be a list of texts or of lists of messages")
    if not isinstance(columns, dict) or not all(isinstance(values, list) for values in columns.values()):
        raise RequestError(400, "columns must be an object of lists")
    if isinstance(step, bool) or not isinstance(step, int) or step < 0:
        raise RequestError(400, "step must be a whole number of at least 0")
    for name, values in {"prompts": prompts, **columns}.items():
        if len(values) != len(completions):
            raise RequestError(400, f"there are {len(completions)} completions, but {len(values)} {name}")
    return prompts, completions, columns, step


def answer_of(
    source: Any, prompts: list[Any], completions: list[str], columns: dict[str, list[Any]], step: int
) -> dict[str, Any]:
    """The answer to a request: a score for each completion, and why some have none."""
    if not completions:
        return {"scores": []}
    context = Context(step)
    if isinstance(source, Mix):
        mixed = source.score(prompts, completions, columns, context, skip=True)
        scores: list[Score] = [
            total if error is None else Failure(error) for total, error in zip(mixed.totals, mixed.errors, strict=True)
        ]
    elif hasattr(source, "score"):
        scores = source.score(prompts, completions, columns, context)
    else:
        scores = read_scores(source(prompts, completions, columns), "the source", prompts, completions)
    errors = [score.message if isinstance(score, Failure) else None for score in scores]
    answer: dict[str, Any] = {"scores": [_as_json(score) for score in scores]}
    return answer | ({"errors": errors} if any(errors) else {})


def _as_json(score: Score) -> Any:
    if isinstance(score, TokenRewards):
        ends, values = score.ends, score.values
        return values if ends is None else [list(pair) for pair in zip(ends, values, strict=True)]
    return None if score is None or isinstance(score, Failure) or not math.isfinite(score) else score
