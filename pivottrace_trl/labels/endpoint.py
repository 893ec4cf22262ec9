"""A stronger model behind an OpenAI-compatible endpoint as annotator. Needs `pip install pivottrace-trl[endpoint]`."""

import asyncio
import logging
import math
import random
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import as_completed
from contextlib import contextmanager
from typing import Any

from ..answers import AnswerFormat
from ..answers.format import resolve_format
from .queries import Answer, Query
from .replies import Kind, Reply, Spending, most_tokens, read_body, read_status


logger = logging.getLogger(__name__)

_INSTRUCTION = "Solve the problem step by step. End with the final answer in \\boxed{}."
_LONGEST_PAUSE = 8.0
_MOMENT = 0.02
_SECONDS_TO_CLOSE = 30.0
# Who may log what a server sends: the client, and what it is built on.
_LOGGERS = ("openai", "httpx", "httpcore")


class EndpointAnnotator:
    r"""
    Asks a model behind an OpenAI-compatible endpoint (a provider's, or vLLM's own server). Pass it as `annotator=` to
    [`PivotDensityCallback`]; each answer is recorded as it arrives, with its price, and a run that is interrupted goes
    on where it stopped. At most `concurrency` requests that are under way are then lost.

    A label is what stands in the last `\boxed{}` of a reply that came to its end. A reply that was cut off, refused or
    filtered, and a request that the endpoint rejects, count as no answer; a reply without an answer does when it was
    asked for twice. Other failures are repeated with growing pauses.

    Each attempt is charged with the most that it can cost, failed, late and abandoned ones too, unless a reply with a
    credible `usage` proves that it cost less. Nothing that the server sends is quoted in errors or logs, as that may
    hold the key.

    Args:
        model (`str`):
            Name of the model at the endpoint; it is the author of the answers.
        base_url (`str`, *optional*):
            Address of the endpoint. Defaults to that of the `openai` client.
        api_key (`str`, *optional*):
            Key. Defaults to the environment variable `OPENAI_API_KEY`.
        prompt_column (`str`, *optional*, defaults to `"prompt"`):
            Column of the rows that holds the problem.
        instruction (`str`, *optional*):
            What is added to the system prompt. It must ask for the answer in `\boxed{}`.
        answer_format ([`AnswerFormat`] or `str`, *optional*, defaults to `"math"`):
            Reads the answer. Use that of the [`PivotDensityCallback`].
        max_completion_tokens (`int`, *optional*, defaults to `4096`):
            Longest reply.
        concurrency (`int`, *optional*, defaults to `8`):
            Requests at a time.
        requests_per_minute (`float`, *optional*):
            Limit on the rate, repetitions included. No limit by default.
        price_per_million_tokens (`tuple[float, float]`, *optional*, defaults to `(0.0, 0.0)`):
            Price of a million tokens of prompt and of reply, in your currency.
        max_cost (`float`, *optional*):
            Most that may be spent by this object. An attempt is made only if the most that it can cost is left; the
            rows that are left stay in the queue. No limit by default.
        max_retries (`int`, *optional*, defaults to `5`):
            How often a request is repeated.
        timeout (`float`, *optional*, defaults to `120.0`):
            Seconds an attempt may take, from its beginning to the last byte of its reply.

    Attributes:
        cost (`float`): what was charged so far.

    Raises:
        ValueError: for a limit or price that is impossible, or a `base_url` that holds a password or a query.
        ImportError: if `openai` is not installed.
    """

    def __init__(
        self,
        model: str,
        base_url: str | None = None,
        api_key: str | None = None,
        *,
        prompt_column: str = "prompt",
        instruction: str = _INSTRUCTION,
        answer_format: AnswerFormat | str = "math",
        max_completion_tokens: int = 4096,
        concurrency: int = 8,
        requests_per_minute: float | None = None,
        price_per_million_tokens: tuple[float, float] = (0.0, 0.0),
        max_cost: float | None = None,
        max_retries: int = 5,
        timeout: float = 120.0,
    ):
        limits = {
            "max_completion_tokens": max_completion_tokens,
            "concurrency": concurrency,
            "requests_per_minute": requests_per_minute,
            "max_cost": max_cost,
            "timeout": timeout,
        }
        if wrong := {name: value for name, value in limits.items() if value is not None and not value > 0}:
            raise ValueError(f"`{next(iter(wrong))}` is {next(iter(wrong.values()))!r}, but must be positive.")
        if not all(0.0 <= price < math.inf for price in price_per_million_tokens):
            raise ValueError(f"`price_per_million_tokens` is {price_per_million_tokens}, but a price is at least 0.")
        if max_cost is not None and not any(price_per_million_tokens):
            raise ValueError(
                f"`max_cost` is {max_cost}, but without `price_per_million_tokens` nothing is known to cost anything. "
                "Pass the prices as well."
            )
        try:
            import openai
        except ImportError as error:
            raise ImportError('EndpointAnnotator needs openai: pip install "pivottrace-trl[endpoint]"') from error
        self.model = model
        # Each is recorded as it comes; the more, the less it matters that the last ones of a batch are waited for.
        self.batch_size = 4 * concurrency
        self._openai = openai
        # Retries of its own would be neither counted nor charged.
        options: dict[str, Any] = {"base_url": base_url, "api_key": api_key, "max_retries": 0, "timeout": timeout}
        self._make_client = lambda: openai.AsyncOpenAI(**options)
        client = self._make_client()
        self._key = client.api_key
        if client.base_url.userinfo or client.base_url.query:
            raise ValueError(
                "`base_url` holds a user name, a password or a query, which the client writes to its log. Pass the "
                "key as `api_key`."
            )
        self._prompt_column = prompt_column
        self._instruction = instruction
        self._answer_format = resolve_format(answer_format)
        self._max_completion_tokens = max_completion_tokens
        self._concurrency = concurrency
        self._pause = 60.0 / requests_per_minute if requests_per_minute else 0.0
        self._spending = Spending(price_per_million_tokens, max_cost)
        self._max_retries = max_retries
        self._timeout = timeout
        self._next_start = 0.0

    @property
    def cost(self) -> float:
        """What was charged so far."""
        return self._spending.cost

    def ask(self, queries: Sequence[Query]) -> Iterator[Answer]:
        """
        Answer queries, in the order in which the replies arrive.

        Args:
            queries (`Sequence[Query]`):
                What is asked for; the `row` of each holds the prompt column.

        Yields:
            [`Answer`]: with what it cost; the label is `None` if there is none. Queries that the cost limit leaves no
            money for are not answered.

        Raises:
            RuntimeError: if the endpoint fails for good; what was answered is yielded before.
        """
        failure: RuntimeError | None = None
        is_over = threading.Event()
        with _hiding(self._key), _running_loop() as loop:
            client, gate = self._make_client(), asyncio.Semaphore(self._concurrency)
            futures = [
                asyncio.run_coroutine_threadsafe(self._answer(client, gate, is_over, query), loop) for query in queries
            ]
            try:
                for future in as_completed(futures):
                    try:
                        answer = future.result()
                    except RuntimeError as error:
                        failure = failure or error
                        is_over.set()
                        continue
                    if answer is not None:
                        yield answer
            finally:
                asyncio.run_coroutine_threadsafe(_close(client), loop).result(_SECONDS_TO_CLOSE)
        if failure is not None:
            raise failure

    def _messages(self, prompt: str | list[dict[str, str]]) -> list[dict[str, str]]:
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
        if messages[0]["role"] == "system":
            return [messages[0] | {"content": f"{messages[0]['content']}\n\n{self._instruction}"}, *messages[1:]]
        return [{"role": "system", "content": self._instruction}, *messages]

    async def _answer(
        self, client: Any, gate: asyncio.Semaphore, is_over: threading.Event, query: Query
    ) -> Answer | None:
        """The answer to a query; `None` if it was not asked for, or not to its end."""
        messages = self._messages(query.row[self._prompt_column])
        spent, num_unreadable = 0.0, 0
        async with gate:
            for attempt in range(self._max_retries + 1):
                await self._pace()
                if is_over.is_set():
                    return None
                size = most_tokens(messages), self._max_completion_tokens
                while not self._spending.reserve(*size):
                    if self._spending.is_pending:  # others may turn out to cost less than the most they can
                        await asyncio.sleep(_MOMENT)
                        continue
                    if not is_over.is_set():
                        is_over.set()
                        logger.warning(
                            "The cost limit of %g leaves no money for another request (%g are spent); the rest stays "
                            "in the queue. Raise `max_cost` to go on.",
                            self._spending.limit,
                            self.cost,
                        )
                    return None
                reply, charge = await self._attempt(client, messages, size)
                spent += charge
                num_unreadable += reply.kind is Kind.UNREADABLE
                if reply.kind is Kind.ANSWER:
                    return Answer(query.prompt_id, reply.label, self.model, spent)
                is_last = attempt == self._max_retries
                if reply.kind is Kind.DECLINED or num_unreadable == 2 or (num_unreadable and is_last):
                    logger.warning(
                        "%s gave no answer to a prompt, which counts as declined: %s.", self.model, reply.reason
                    )
                    return Answer(query.prompt_id, None, self.model, spent)
                if reply.kind is Kind.LASTING or is_last:
                    break
                growing = min(0.5 * 2**attempt, _LONGEST_PAUSE) * random.uniform(0.5, 1.0)
                await asyncio.sleep(growing if reply.pause is None else reply.pause)
        raise RuntimeError(
            f"The endpoint of {self.model} failed {attempt + 1} times in a row, at last with {reply.reason}. Check "
            "`model`, `base_url`, the key and the state of the service."
        )

    async def _attempt(
        self, client: Any, messages: list[dict[str, str]], size: tuple[int, int]
    ) -> tuple[Reply, float]:
        """One request, charged whatever becomes of it: also if it is cancelled."""
        usage: Any = None
        charge = 0.0
        try:
            try:
                response = await asyncio.wait_for(
                    client.chat.completions.with_raw_response.create(
                        model=self.model, messages=messages, max_completion_tokens=self._max_completion_tokens
                    ),
                    self._timeout,
                )
                text = response.text
            except self._openai.APIStatusError as error:
                reply = read_status(error.status_code, error.response.headers.get("retry-after"))
            except (self._openai.OpenAIError, asyncio.TimeoutError, OSError, ValueError) as error:
                # Its text may quote what was sent.
                reply = Reply(
                    Kind.PASSING, f"{type(error).__name__} (no reply within {self._timeout:g} s, or half of one)"
                )
            else:
                # Reading waits for another process.
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
    """Takes a key out of what the client logs; its tracebacks, which quote the server, go as well."""

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
    """End what is under way, which charges it, and close the connections."""
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await client.close()
