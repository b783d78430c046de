"""Reward servers: sources that score over HTTP. docs/rewards.md describes the JSON."""

import asyncio
import importlib
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from rlhf.errors import UserError
from rlhf.rewards import event_loop
from rlhf.rewards.results import TEXTS_ONLY, Context, Failure, Score, as_numbers, read_scores

PACKAGES = ("httpx2", "tenacity", "starlette", "uvicorn")
"""The extra `server` of pyproject.toml."""
FIRST_WAIT = 1.0
"""Seconds before the second attempt; each further wait is twice as long, up to LONGEST_WAIT."""
LONGEST_WAIT = 60.0
MAX_ANSWER = 64 * 2**20
"""Bytes of an answer that are read."""
BUSY = (408, 429, *range(500, 600))
"""Statuses after which a request is sent again."""


class UnavailableError(Exception):
    """The server did not answer, or is busy: the same request may succeed later."""


def require_package(name: str) -> Any:
    """A package of the extra `server`.

    Raises:
        UserError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(f"reward servers need the package {name}; pip install {' '.join(PACKAGES)}") from error


def read_token(variable: str | None, setting: str) -> str | None:
    """The bearer token in an environment variable; None where none is named.

    Raises:
        UserError: the variable is not set, or cannot be sent in a header.
    """
    if variable is None:
        return None
    token = os.environ.get(variable, "").strip()
    if not token or not token.isascii() or not token.isprintable():
        state = "is not set" if not token else "holds characters that a header cannot"
        raise UserError(f"{setting} names the environment variable {variable}, which {state}")
    return token


class ServerReward:
    """Scores by a server: several requests at a time, each repeated while the server is away or busy."""

    waits = True

    def __init__(
        self,
        url: str,
        *,
        batch_size: int = 64,
        timeout: float | None = None,
        token_env: str | None = None,
        retries: int = 6,
        max_in_flight: int = 8,
    ):
        """Nothing is sent before the first scores.

        Args:
            url: takes the requests.
            batch_size: texts of one request.
            timeout: seconds that one request may take; None: 60.
            token_env: environment variable with the bearer token, which is sent and written nowhere else.
            retries: attempts after the first one.
            max_in_flight: requests that wait for the server at a time.

        Raises:
            UserError: a package is missing, or the environment variable is not set.
        """
        self.http = require_package("httpx2")
        self.tenacity = require_package("tenacity")
        self.url = url
        self.batch_size = batch_size
        self.timeout = 60.0 if timeout is None else timeout
        self.retries = retries
        self.max_in_flight = max_in_flight
        self._token = read_token(token_env, "token_env")
        self._client: Any = None

    def __str__(self) -> str:
        return f"reward server {self.url}"

    def __call__(self, prompts: list[Any], completions: list[str], columns: dict[str, list[Any]]) -> list[float]:
        """One number for each completion, of rewards by token their sum.

        Raises:
            UserError: the server stays away, refuses, or has no finite number for a completion.
        """
        return as_numbers(self.score(prompts, completions, columns), str(self), prompts, completions)

    def score(
        self, prompts: list[Any], completions: list[str], columns: dict[str, list[Any]], context: Context = TEXTS_ONLY
    ) -> list[Score]:
        """One score for each completion.

        Raises:
            UserError: the server stays away, refuses, or answers with anything but one entry for each completion.
        """
        return event_loop.wait_for(self._score(prompts, completions, columns, context))

    async def _score(
        self, prompts: list[Any], completions: list[str], columns: dict[str, list[Any]], context: Context
    ) -> list[Score]:
        if self._client is None:
            # The whole request has one time limit, so that a server that sends a byte a minute has it too.
            self._client = self.http.AsyncClient(timeout=None)
        in_flight = asyncio.Semaphore(self.max_in_flight)

        async def part(first: int) -> list[Score]:
            rows = slice(first, first + self.batch_size)
            some = {name: values[rows] for name, values in columns.items()}
            async with in_flight:
                return await self._score_part(
                    prompts[rows], completions[rows], some, context.step, context.first_row + first
                )

        tasks = [asyncio.create_task(part(first)) for first in range(0, len(completions), self.batch_size)]
        try:
            return [score for scores in await asyncio.gather(*tasks) for score in scores]
        finally:
            for task in tasks:
                task.cancel()

    async def _score_part(
        self, prompts: list[Any], completions: list[str], columns: Mapping[str, list[Any]], step: int, first_row: int
    ) -> list[Score]:
        body = self._encode(prompts, completions, columns, step)
        try:
            async for attempt in self.tenacity.AsyncRetrying(
                retry=self.tenacity.retry_if_exception_type(UnavailableError),
                stop=self.tenacity.stop_after_attempt(1 + self.retries),
                wait=self.tenacity.wait_exponential(multiplier=FIRST_WAIT, max=LONGEST_WAIT),
                reraise=True,
            ):
                with attempt:
                    answer = await self._post(body)
        except UnavailableError as error:
            attempts = f"{1 + self.retries} attempts" if self.retries else "one attempt"
            raise UserError(f"{self} has not answered in {attempts}: {self._without_token(str(error))}") from None
        return self._read(answer, prompts, completions, first_row)

    def _encode(self, prompts: list[Any], completions: list[str], columns: Mapping[str, list[Any]], step: int) -> bytes:
        request = {"prompts": prompts, "completions": completions, "columns": columns, "step": step}
        for name, value in (*columns.items(), ("", request)):
            try:
                body = json.dumps(value, allow_nan=False)
            except (TypeError, ValueError) as error:
                raise UserError(f"column {name!r} cannot be sent to {self} as JSON: {error}") from error
        return body.encode()

    async def _post(self, body: bytes) -> bytes:
        """The body of a successful answer.

        Raises:
            UnavailableError: there is none now, and there may be one later.
            UserError: the server refuses the request.
        """
        headers = {"content-type": "application/json"}
        if self._token is not None:
            headers["authorization"] = f"Bearer {self._token}"
        try:
            status, answer = await asyncio.wait_for(self._exchange(body, headers), self.timeout)
        except TimeoutError:
            raise UnavailableError(f"no answer within {self.timeout:g} s (timeout)") from None
        except self.http.TransportError as error:
            raise UnavailableError(f"{type(error).__name__}: {error}".rstrip(": ")) from None
        except self.http.InvalidURL as error:
            raise UserError(f"{self} is no address: {error}") from error
        text = self._without_token(answer.decode(errors="replace"))
        if status in BUSY:
            raise UnavailableError(f"status {status}: {text:.200}")
        if status != 200:
            hint = "; name the environment variable of its token in token_env" if status in (401, 403) else ""
            raise UserError(f"{self} refuses the request with status {status}: {text:.300}{hint}")
        return answer

    async def _exchange(self, body: bytes, headers: Mapping[str, str]) -> tuple[int, bytes]:
        """Status and body of the answer to one request."""
        async with self._client.stream("POST", self.url, content=body, headers=headers) as response:
            parts: list[bytes] = []
            async for chunk in response.aiter_bytes():
                parts.append(chunk)
                if sum(map(len, parts)) > MAX_ANSWER:
                    raise UserError(f"{self} answers with more than {MAX_ANSWER // 2**20} MiB")
            return response.status_code, b"".join(parts)

    def _read(self, answer: bytes, prompts: Sequence[Any], completions: Sequence[str], first_row: int) -> list[Score]:
        """The scores in an answer."""
        try:
            content = json.loads(answer)
        except (ValueError, RecursionError):
            text = self._without_token(answer.decode(errors="replace"))
            raise UserError(f"{self} answers with {text!r:.120}, which is no JSON") from None
        if not isinstance(content, dict) or not isinstance(content.get("scores"), list):
            raise UserError(f"{self} answers with {content!r:.120}, but must answer with {{'scores': [...]}}")
        scores = read_scores(content["scores"], str(self), prompts, completions, first_row)
        errors = content.get("errors") or [None] * len(scores)
        if not isinstance(errors, list) or len(errors) != len(scores):
            raise UserError(f"{self} answers with errors {errors!r:.120}, but must have one entry for each score")
        pairs = zip(scores, errors, strict=True)
        return [score if error is None else Failure(f"{self}: {error!s:.300}") for score, error in pairs]

    def _without_token(self, text: str) -> str:
        return text if self._token is None else text.replace(self._token, "***")
