"""A stronger model behind an OpenAI-compatible endpoint as annotator. Needs `pip install pivottrace-trl[endpoint]`."""

import logging
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

from ..answers import AnswerFormat, resolve_format


logger = logging.getLogger(__name__)

_INSTRUCTION = "Solve the problem step by step. End with the final answer in \\boxed{}."


class EndpointAnnotator:
    r"""
    Asks a model behind an OpenAI-compatible endpoint (a provider's, or vLLM's own server). Pass it as `annotator=` to
    [`PivotDensityCallback`]; each answer is recorded as it arrives, with its price, and a run that is interrupted goes
    on where it stopped. At most `concurrency` requests that are under way are then lost.

    Requests that fail for a passing reason are repeated with growing pauses by the `openai` client.

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
            System prompt. The last formula or number of the reply, or what stands in `\boxed{}`, is the answer.
        answer_format ([`AnswerFormat`] or `str`, *optional*, defaults to `"math"`):
            Finds the answer of a reply and checks it. Use that of the [`PivotDensityCallback`].
        max_completion_tokens (`int`, *optional*, defaults to `4096`):
            Longest reply.
        concurrency (`int`, *optional*, defaults to `8`):
            Requests at a time.
        requests_per_minute (`float`, *optional*):
            Limit on the rate. No limit by default.
        price_per_million_tokens (`tuple[float, float]`, *optional*, defaults to `(0.0, 0.0)`):
            Price of a million tokens of prompt and of reply, in your currency.
        max_cost (`float`, *optional*):
            Most that may be spent by this object. A request is made only if its longest possible reply can be paid
            for; the rows that are left stay in the queue. No limit by default.
        max_retries (`int`, *optional*, defaults to `5`):
            How often a request is repeated.
        timeout (`float`, *optional*, defaults to `120.0`):
            Seconds a request may take.

    Attributes:
        cost (`float`): what was spent so far.

    Raises:
        ValueError: for a limit that is not positive.
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
        try:
            import openai
        except ImportError as error:
            raise ImportError('EndpointAnnotator needs openai: pip install "pivottrace-trl[endpoint]"') from error
        self.__name__ = self.model = model
        self.cost = 0.0
        self._client = openai.OpenAI(base_url=base_url, api_key=api_key, max_retries=max_retries, timeout=timeout)
        self._refused = openai.BadRequestError
        self._prompt_column = prompt_column
        self._instruction = instruction
        self._answer_format = resolve_format(answer_format)
        self._max_completion_tokens = max_completion_tokens
        self._concurrency = concurrency
        self._pause = 60.0 / requests_per_minute if requests_per_minute else 0.0
        self._prices = tuple(price / 1e6 for price in price_per_million_tokens)
        self._max_cost = max_cost
        self._reserved = 0.0
        self._next_start = 0.0
        self._lock = threading.Lock()

    def __call__(self, rows: list[dict[str, Any]]) -> Iterator[tuple[int, str | None, float]]:
        """
        Answer rows of the pool, in the order in which the replies arrive.

        Args:
            rows (`list[dict]`): rows with the prompt column.

        Yields:
            `tuple[int, str | None, float]`: position of the row, its answer (`None` if the reply holds none) and what
            it cost. Rows that the cost limit leaves no money for are not yielded.
        """
        with ThreadPoolExecutor(self._concurrency) as executor:
            futures = {executor.submit(self._ask, row[self._prompt_column]): n for n, row in enumerate(rows)}
            try:
                for future in as_completed(futures):
                    reply = future.result()
                    if reply is not None:
                        text, price = reply
                        yield futures[future], self._final_answer(text), price
            finally:
                executor.shutdown(wait=False, cancel_futures=True)

    def _ask(self, prompt: str | list[dict[str, str]]) -> tuple[str, float] | None:
        messages: Any = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
        if not any(message["role"] == "system" for message in messages):
            messages = [{"role": "system", "content": self._instruction}, *messages]
        # A token is at least a byte long.
        num_bytes = sum(len(message["content"].encode()) for message in messages)
        most = num_bytes * self._prices[0] + self._max_completion_tokens * self._prices[1]
        with self._lock:
            if self._max_cost is not None and self.cost + self._reserved + most > self._max_cost:
                logger.warning(
                    "The cost limit of %g leaves no money for another request (%g are spent); the rest stays in the "
                    "queue. Raise `max_cost` to go on.",
                    self._max_cost,
                    self.cost,
                )
                return None
            self._reserved += most
            start = max(self._next_start, time.monotonic())
            self._next_start = start + self._pause
        price = 0.0
        try:
            time.sleep(max(start - time.monotonic(), 0.0))
            response = self._client.chat.completions.create(
                model=self.model, messages=messages, max_completion_tokens=self._max_completion_tokens
            )
            if response.usage is not None:
                price = (response.usage.prompt_tokens or 0) * self._prices[0]
                price += (response.usage.completion_tokens or 0) * self._prices[1]
            content = response.choices[0].message.content if response.choices else None
            # Clients do not check what a server sends.
            return content if isinstance(content, str) else "", price
        except self._refused as error:
            logger.warning("%s refused a prompt, which counts as no answer: %s", self.model, error)
            return "", 0.0
        finally:
            with self._lock:
                self._reserved -= most
                self.cost += price

    def _final_answer(self, reply: str) -> str | None:
        answer = self._answer_format.extract(reply)
        try:
            return None if answer is None else self._answer_format.read(answer).label
        except ValueError:
            return None
