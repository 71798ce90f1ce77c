"""http://...: an OpenAI-compatible chat endpoint as judge.

Two answers are compared in both orders and a win needs both to agree; anything else is a tie. One
answer alone is graded from 1 to 10. Replies without a valid verdict are counted, never win, and too
many of them end the run. Requests run in threads, bounded in number, size and time; failures that may
pass are tried again with exponential back-off. Verdicts are kept in a cache file as they come, so a
run that was stopped, or is repeated, asks only for what is missing.

The key comes from RLHFKIT_API_KEY alone and goes into one request header and nowhere else.
"""

from __future__ import annotations

import contextlib
import email.utils
import http.client
import json
import os
import random
import socket
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from urllib.parse import urlsplit

from rlhfkit.context import leave_if_asked, warn
from rlhfkit.errors import DataError, RlhfkitError, UsageError
from rlhfkit.scorers import Comparison, PairJudge, Scorable, ScorerConfig, Verdict
from rlhfkit.scorers.judging import INVALID, Question, as_text
from rlhfkit.scorers.verdicts import VerdictCache

API_KEY_VARIABLE = "RLHFKIT_API_KEY"
ATTEMPTS = 6
CONNECT_SECONDS = 10.0  # also the longest that close() may wait
MAX_BACKOFF_SECONDS = 30.0
MAX_RETRY_AFTER_SECONDS = 120.0
MAX_REPLY_BYTES = 2**20
MAX_INVALID_SHARE = 0.02
PASSING_STATUSES = frozenset((408, 409, 425, 429, 500, 502, 503, 504))
POLL_SECONDS = 0.1
LOOPBACK = ("localhost", "127.0.0.1", "::1")
PREFERENCE = {"A": 1.0, "B": 0.0, "TIE": 0.5}


class _Passing(Exception):
    """A failure that may pass; `after` is how long the server asked us to wait, in seconds."""

    def __init__(self, what: str, after: float = 0.0, *, replied: bool = False) -> None:
        super().__init__(what)
        self.after = after
        self.replied = replied  # the endpoint answered, but with nothing that can be used


class _Stopped(Exception):
    """Another request has failed for good, or the judge was closed."""


class Endpoint:
    """Sends chats to one URL. Thread-safe; every failure is worded without key or request."""

    def __init__(self, url: str, *, timeout: float, max_requests: int | None) -> None:
        parts = urlsplit(url)
        if parts.username is not None or parts.password is not None:
            raise UsageError(
                "a judge's URL must not hold a user name or password",
                hint=f"set the key in the environment as {API_KEY_VARIABLE}",
            )
        try:
            port = parts.port
        except ValueError as error:
            raise UsageError(f"judge URL: {error}") from None
        if not parts.hostname or not url.isascii() or not url.isprintable() or " " in url:
            raise UsageError(f"{url!r} is no judge's URL", hint="write http://localhost:8000/v1")
        self.secure = parts.scheme == "https"
        self.host, self.port = parts.hostname, port
        path = parts.path.rstrip("/") or "/v1"
        if not path.endswith("/chat/completions"):
            path += "/chat/completions"
        self.path = f"{path}?{parts.query}" if parts.query else path
        self.url = f"{parts.scheme}://{parts.netloc}{path}"  # without the query, which may be private
        self.requests = 0
        self._max_requests = max_requests
        self._timeout = timeout
        self._key = os.environ.get(API_KEY_VARIABLE, "")
        if not self._key.isascii() or not self._key.isprintable():
            raise UsageError(f"{API_KEY_VARIABLE} holds characters that no key has")
        if self._key and not self.secure and self.host not in LOOPBACK:
            warn(f"{API_KEY_VARIABLE} is sent to {self.host} unencrypted; https would hide it")
        self._lock = threading.Lock()
        self._open: dict[socket.socket, float] = {}  # socket -> when its time is up
        self._closed = False

    def ask(self, model: str, messages: list[dict[str, str]]) -> str:
        """The content of the reply. Raises _Passing, or RlhfkitError for what will not pass."""
        with self._lock:
            if self._closed:
                raise _Stopped
            if self._max_requests is not None and self.requests >= self._max_requests:
                raise RlhfkitError(
                    f"the judge has had its {self._max_requests} requests and more are needed",
                    where="--max-requests",
                    hint="verdicts in --judge-cache are not asked for again: raise the budget and rerun",
                )
            self.requests += 1
        body = json.dumps({"model": model, "messages": messages, "temperature": 0}).encode()
        try:
            status, retry_after, reply = self._exchange(body)
        except (OSError, http.client.HTTPException) as error:
            raise _Passing(f"{type(error).__name__}: {self._excerpt(str(error).encode())}") from None
        if len(reply) > MAX_REPLY_BYTES:
            raise _Passing(f"its reply is longer than {MAX_REPLY_BYTES} bytes", replied=True)
        if status in PASSING_STATUSES:
            raise _Passing(f"HTTP {status}: {self._excerpt(reply)}", _seconds(retry_after))
        if status != 200:
            raise RlhfkitError(
                f"judge {self.url}: HTTP {status}: {self._excerpt(reply)}", hint=_status_hint(status)
            )
        try:
            content = json.loads(reply)["choices"][0]["message"]["content"]
        except (ValueError, LookupError, TypeError, RecursionError):
            content = None
        if not isinstance(content, str):
            raise _Passing(f"its reply is no chat completion: {self._excerpt(reply)}", replied=True)
        return content

    def _exchange(self, body: bytes) -> tuple[int, str | None, bytes]:
        """One request on a connection of its own: status, Retry-After, body (cut above the limit)."""
        kind = http.client.HTTPSConnection if self.secure else http.client.HTTPConnection
        connection = kind(self.host, self.port, timeout=min(CONNECT_SECONDS, self._timeout))
        headers = {"Content-Type": "application/json", "Connection": "close"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        with contextlib.closing(connection):
            connection.connect()
            channel = connection.sock
            channel.settimeout(self._timeout)
            deadline = time.monotonic() + self._timeout
            with self._lock:
                self._open[channel] = deadline
            try:
                connection.request("POST", self.path, body, headers)
                with connection.getresponse() as response:
                    reply = response.read(MAX_REPLY_BYTES + 1)
                    if time.monotonic() > deadline:  # cut by enforce_deadlines, which looks like an end
                        raise TimeoutError(f"no whole reply in {self._timeout:g} s")
                    return response.status, response.getheader("Retry-After"), reply
            finally:
                with self._lock:
                    self._open.pop(channel)

    def _excerpt(self, body: bytes) -> str:
        """The start of a body as a short literal, safe to print; a server may echo the key."""
        text = body[:4096].decode("utf-8", "replace")
        return ascii((text.replace(self._key, f"[{API_KEY_VARIABLE}]") if self._key else text)[:200])

    def enforce_deadlines(self) -> None:
        """Cut requests whose time is up: a socket's own timeout starts anew with every byte."""
        now = time.monotonic()
        with self._lock:
            for channel, deadline in self._open.items():
                if now > deadline or self._closed:
                    with contextlib.suppress(OSError):
                        channel.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Cut every request in flight and accept no more."""
        self._closed = True
        self.enforce_deadlines()


class HttpJudge(PairJudge):
    """Compares and grades through a chat endpoint."""

    def __init__(self, url: str, config: ScorerConfig, *, backoff_seconds: float = 0.5) -> None:
        if config.judge_model is None:
            raise UsageError("an http judge needs the name of its model", where="--judge-model")
        self.endpoint = Endpoint(url, timeout=config.scorer_timeout, max_requests=config.max_requests)
        self.name = f"{self.endpoint.url}#{config.judge_model}"
        self.verdicts = 0
        self.invalid = 0
        self._model = config.judge_model
        self._backoff_seconds = backoff_seconds
        self._stopped = threading.Event()
        self._cache = VerdictCache(config.judge_cache)
        self._pool = ThreadPoolExecutor(config.concurrency, thread_name_prefix="judge")

    def compare(self, items: Sequence[Comparison]) -> list[Verdict]:
        """Ask in both orders: 1 or 0 when they agree, 0.5 when not, None when either is invalid.

        Equal answers are a tie and are not asked about.
        """
        questions: list[Question] = []
        for item in items:
            prompt, a, b = as_text(item.prompt), as_text(item.a), as_text(item.b)
            if a != b:
                questions += [Question(prompt, (a, b)), Question(prompt, (b, a))]
        verdicts = iter(self._ask_all(questions))
        return [
            Verdict(0.5) if as_text(item.a) == as_text(item.b) else _agreement(next(verdicts), next(verdicts))
            for item in items
        ]

    def score(self, items: Sequence[Scorable]) -> list[float]:
        """Grades from 1 to 10; 0, below every grade, for a reply without a valid one."""
        questions = [Question(as_text(item.prompt), (as_text(item.completion),)) for item in items]
        return [0.0 if verdict == INVALID else float(verdict) for verdict in self._ask_all(questions)]

    def finish(self) -> None:
        """Say how many verdicts were invalid. Raises DataError above 2%."""
        if not self.invalid:
            return
        share = self.invalid / self.verdicts
        told = f"judge {self.name}: {self.invalid} of {self.verdicts} verdicts are invalid ({share:.1%})"
        if share > MAX_INVALID_SHARE:
            raise DataError(
                f"{told}, more than {MAX_INVALID_SHARE:.0%}",
                hint="the model must end its reply with the line it was asked for; try another --judge-model",
            )
        warn(f"{told}; none of them counts as a win")

    def close(self) -> None:
        """Cut what is in flight, end the threads, close the cache."""
        self._stopped.set()
        self.endpoint.close()
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._cache.close()

    def _ask_all(self, questions: Sequence[Question]) -> list[str]:
        """A verdict each, in order; one question is asked once, however often it stands here."""
        keys = [question.key(self.endpoint.url, self._model) for question in questions]
        missing = {key: q for key, q in zip(keys, questions, strict=True) if self._cache.get(key) is None}
        pending = {self._pool.submit(self._ask, question): key for key, question in missing.items()}
        passing: dict[str, str] = {}  # verdicts that a rerun shall ask for again
        failure: BaseException | None = None
        while pending:
            done, _ = wait_for(pending, timeout=POLL_SECONDS)
            for future in done:
                key = pending.pop(future)
                if (error := future.exception()) is not None:
                    # What is in flight has been paid for: let it end before failing.
                    failure = error if failure is None or isinstance(failure, _Stopped) else failure
                elif (verdict := future.result()) is None:
                    passing[key] = INVALID
                else:
                    self._cache.add(key, verdict)
            self.endpoint.enforce_deadlines()
            leave_if_asked()
        if failure is not None:
            raise failure
        verdicts = [self._cache.get(key) or passing[key] for key in keys]
        self.verdicts += len(verdicts)
        self.invalid += verdicts.count(INVALID)
        return verdicts

    def _ask(self, question: Question) -> str | None:
        """One verdict; None when the endpoint only ever replied garbage. A failure stops all others."""
        try:
            return self._ask_patiently(question)
        except RlhfkitError:
            self._stopped.set()
            raise

    def _ask_patiently(self, question: Question) -> str | None:
        for attempt in range(1, ATTEMPTS + 1):
            if self._stopped.is_set():
                raise _Stopped
            nonce = question.nonce()
            try:
                return question.verdict(self.endpoint.ask(self._model, question.messages(nonce)), nonce)
            except _Passing as failure:
                if attempt < ATTEMPTS:
                    pause = min(self._backoff_seconds * 2**attempt, MAX_BACKOFF_SECONDS)
                    # Jitter keeps requests that failed together from coming back together.
                    self._stopped.wait(max(failure.after, pause * random.uniform(0.5, 1.0)))
                elif not failure.replied:
                    raise RlhfkitError(
                        f"judge {self.endpoint.url} failed {ATTEMPTS} times in a row: {failure}",
                        hint="is it up, and fast enough? see --concurrency and --scorer-timeout",
                    ) from None
        return None


def _agreement(a_first: str, b_first: str) -> Verdict:
    if INVALID in (a_first, b_first):
        return Verdict(None, PREFERENCE.get(a_first), _mirrored(b_first))
    one, other = PREFERENCE[a_first], 1.0 - PREFERENCE[b_first]
    return Verdict(one if one == other else 0.5, one, other)


def _mirrored(verdict: str) -> float | None:
    return None if verdict == INVALID else 1.0 - PREFERENCE[verdict]


def _seconds(retry_after: str | None) -> float:
    """Retry-After, which is a number of seconds or a date, as seconds from now."""
    if retry_after is None:
        return 0.0
    try:
        seconds = float(retry_after)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(retry_after).timestamp() - time.time()
        except ValueError:
            return 0.0
    return min(max(0.0, seconds), MAX_RETRY_AFTER_SECONDS)  # in this order NaN becomes 0


def _status_hint(status: int) -> str:
    if status in (401, 403):
        return f"the key is read from the environment variable {API_KEY_VARIABLE}"
    return "check the URL and --judge-model"
