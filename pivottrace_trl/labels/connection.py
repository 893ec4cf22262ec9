"""Requests to a model behind an endpoint: rate limit, retries, time limit, and the cost of every attempt."""

import asyncio
import logging
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ..answers import AnswerFormat
from .replies import Kind, Reply, Spending, most_tokens, read_body, read_status


logger = logging.getLogger(__name__)

_LONGEST_PAUSE = 8.0
_MOMENT = 0.02
_SECONDS_TO_CLOSE = 30.0
# Loggers that may quote what a server sends: the client's, and those of its libraries.
_LOGGERS = ("openai", "httpx", "httpcore")


@dataclass(frozen=True)
class Sample:
    """
    Outcome of asking a question, and the cost of all attempts. No label is a valid outcome, unless the question was
    not asked to the end, or `failure` says why the endpoint failed for good.
    """

    label: str | None
    price: float
    is_answer: bool = True
    failure: str | None = None


@dataclass(frozen=True)
class Session:
    """State of one call: the client, its event loop, the limit on parallel questions, and whether the call is over."""

    client: Any
    loop: asyncio.AbstractEventLoop
    gate: asyncio.Semaphore
    is_over: threading.Event


class Connection:
    """
    The connection to one model. Each session has its own event loop, in which questions are asked in parallel.

    Args:
        model (`str`): name of the model.
        client_options (`dict`): arguments for the client of `openai`.
        request_options (`dict`): arguments of every request besides the messages.
    """

    def __init__(
        self,
        model: str,
        client_options: dict[str, Any],
        request_options: dict[str, Any],
        answer_format: AnswerFormat,
        concurrency: int,
        requests_per_minute: float | None,
        spending: Spending,
        max_retries: int,
        timeout: float,
    ):
        try:
            import openai
        except ImportError as error:
            raise ImportError('EndpointAnnotator needs openai: pip install "pivottrace-trl[endpoint]"') from error
        self._openai = openai
        # The client's own retries would be neither counted nor charged.
        self._make_client = lambda: openai.AsyncOpenAI(**client_options, max_retries=0, timeout=timeout)
        client = self._make_client()
        self._key = client.api_key
        if client.base_url.userinfo or client.base_url.query:
            raise ValueError(
                "`base_url` holds a user name, a password or a query, which the client would write to its log. Pass "
                "the key as `api_key`."
            )
        self._model, self._request_options = model, request_options
        self._answer_format = answer_format
        self._concurrency = concurrency
        self._pause = 60.0 / requests_per_minute if requests_per_minute else 0.0
        self._spending = spending
        self._max_retries = max_retries
        self._timeout = timeout
        self._next_start = 0.0

    @contextmanager
    def session(self) -> Iterator[Session]:
        """Open a session. Requests that are under way when it ends are cancelled, and charged."""
        with _hiding(self._key), _running_loop() as loop:
            session = Session(self._make_client(), loop, asyncio.Semaphore(self._concurrency), threading.Event())
            try:
                yield session
            finally:
                asyncio.run_coroutine_threadsafe(_close(session.client), loop).result(_SECONDS_TO_CLOSE)

    async def sample(self, session: Session, messages: list[dict[str, str]]) -> Sample:
        """Ask a question once, with as many attempts as it takes."""
        spent, num_unreadable = 0.0, 0
        for attempt in range(self._max_retries + 1):
            await self._pace()
            if session.is_over.is_set():
                return Sample(None, spent, is_answer=False)
            size = most_tokens(messages), self._request_options["max_completion_tokens"]
            while not self._spending.reserve(*size):
                if self._spending.is_pending:  # requests under way may cost less than was reserved for them
                    await asyncio.sleep(_MOMENT)
                    continue
                if not session.is_over.is_set():
                    session.is_over.set()
                    logger.warning(
                        "The cost limit of %g leaves no money for another request (%g are spent); the remaining "
                        "questions stay in the queue. Raise `max_cost` to go on.",
                        self._spending.limit,
                        self._spending.cost,
                    )
                return Sample(None, spent, is_answer=False)
            reply, charge = await self._attempt(session.client, messages, size)
            spent += charge
            num_unreadable += reply.kind is Kind.UNREADABLE
            if reply.kind is Kind.ANSWER:
                return Sample(reply.label, spent)
            is_last = attempt == self._max_retries
            if reply.kind is Kind.DECLINED or num_unreadable == 2 or (num_unreadable and is_last):
                logger.warning(
                    "%s gave no answer to a prompt, which counts as declined: %s.", self._model, reply.reason
                )
                return Sample(None, spent)
            if reply.kind is Kind.LASTING or is_last:
                break
            growing = min(0.5 * 2**attempt, _LONGEST_PAUSE) * random.uniform(0.5, 1.0)
            await asyncio.sleep(growing if reply.pause is None else reply.pause)
        failure = (
            f"The endpoint of {self._model} failed {attempt + 1} times in a row, at last with {reply.reason}. Check "
            "`model`, `base_url`, the key and the state of the service."
        )
        return Sample(None, spent, is_answer=False, failure=failure)

    async def _attempt(
        self, client: Any, messages: list[dict[str, str]], size: tuple[int, int]
    ) -> tuple[Reply, float]:
        """Send one request. It is charged whatever happens to it, even if it is cancelled."""
        usage: Any = None
        charge = 0.0
        try:
            try:
                response = await asyncio.wait_for(
                    client.chat.completions.with_raw_response.create(
                        model=self._model, messages=messages, **self._request_options
                    ),
                    self._timeout,
                )
                text = response.text
            except self._openai.APIStatusError as error:
                reply = read_status(error.status_code, error.response.headers.get("retry-after"))
            except (self._openai.OpenAIError, asyncio.TimeoutError, OSError, ValueError) as error:
                # The error's text may quote the request.
                reply = Reply(
                    Kind.PASSING, f"{type(error).__name__} (no reply within {self._timeout:g} s, or half of one)"
                )
            else:
                # Reading an answer blocks until another process replies.
                reply = await asyncio.to_thread(read_body, text, self._answer_format, self._key)
            usage = reply.usage
        finally:
            charge = self._spending.settle(*size, usage)
        return reply, charge

    async def _pace(self) -> None:
        start = max(self._next_start, time.monotonic())
        self._next_start = start + self._pause
        await asyncio.sleep(max(start - time.monotonic(), 0.0))


class _HideKey(logging.Filter):
    """Removes a key from what the client logs, and drops tracebacks, as they quote the server."""

    def __init__(self, key: str):
        super().__init__()
        self._key = key

    def filter(self, record: logging.LogRecord) -> bool:
        if self._key:
            record.msg, record.args = record.getMessage().replace(self._key, "***"), ()
            record.exc_info = record.exc_text = None
        return True


@contextmanager
def _hiding(key: str) -> Iterator[None]:
    hide = _HideKey(key)
    loggers = [logging.getLogger(name) for name in [*logging.root.manager.loggerDict] if name.startswith(_LOGGERS)]
    for log in loggers:
        log.addFilter(hide)
    try:
        yield
    finally:
        for log in loggers:
            log.removeFilter(hide)


@contextmanager
def _running_loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield loop
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def _close(client: Any) -> None:
    """Cancel the requests under way, which charges them, and close the connections."""
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await client.close()
