"""A stronger model behind an OpenAI-compatible endpoint as annotator. Needs `pip install pivottrace-trl[endpoint]`."""

import asyncio
import math
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import Future
from queue import SimpleQueue

from ..answers import AnswerFormat
from ..answers.format import resolve_format
from ..answers.vote import check_agreement, decide
from .connection import Connection, Session
from .queries import Answer, Opinion, Query
from .replies import Spending, most_tokens


_INSTRUCTION = "Solve the problem step by step. End with the final answer in \\boxed{}."


class EndpointAnnotator:
    r"""
    Asks a model behind an OpenAI-compatible endpoint (a provider's, or vLLM's own server). Pass it as `annotator=` to
    [`PivotDensityCallback`]. Each answer is recorded as it arrives, with its price, and an interrupted run goes on
    where it stopped: at most the `concurrency` requests under way are lost.

    The label is the content of the last `\boxed{}` of a finished reply. A reply that was cut off, refused or filtered,
    and a request that the endpoint rejects, count as no answer. A finished reply without an answer is requested once
    more before it counts as no answer. Other failures are repeated with growing pauses.

    Each attempt, even a failed, late or abandoned one, is charged the most that it can cost, unless a reply with a
    credible `usage` proves that it cost less. Errors and logs never quote the server, as its text may hold the key.

    Args:
        model (`str`):
            Name of the model at the endpoint. It is the author of the answers; a vote of three samples is by
            `"name x 3"`.
        base_url (`str`, *optional*):
            Address of the endpoint. Defaults to that of the `openai` client.
        api_key (`str`, *optional*):
            Key. Defaults to the environment variable `OPENAI_API_KEY`.
        prompt_column (`str`, *optional*, defaults to `"prompt"`):
            Column of the rows that holds the problem.
        instruction (`str`, *optional*):
            System prompt. It must ask for the answer in `\boxed{}`.
        answer_format ([`AnswerFormat`] or `str`, *optional*, defaults to `"math"`):
            Reads the answer. Use that of the [`PivotDensityCallback`].
        num_samples (`int`, *optional*, defaults to `1`):
            Largest number of replies that vote on a question. Asking stops as soon as the vote is settled. Each reply
            is recorded as an [`Opinion`] with its price.
        min_agreement (`float`, *optional*, defaults to `0.6`):
            Share of the samples, above 0.5 and at most 1, that must agree on an answer; otherwise there is none. A
            reply without an answer is a vote against all answers.
        temperature (`float`, *optional*):
            Temperature of the replies. Defaults to 1 with several samples, and to the endpoint's own with one.
        max_completion_tokens (`int`, *optional*, defaults to `4096`):
            Limit on the length of a reply, in tokens.
        concurrency (`int`, *optional*, defaults to `8`):
            Number of requests in parallel.
        requests_per_minute (`float`, *optional*):
            Rate limit, retries included. No limit by default.
        price_per_million_tokens (`tuple[float, float]`, *optional*, defaults to `(0.0, 0.0)`):
            Prices of a million prompt tokens and a million reply tokens, in your currency.
        max_cost (`float`, *optional*):
            Most that this object may spend, in your currency. An attempt is made only if the most that it can cost is
            left; the remaining questions stay in the queue. No limit by default.
        max_retries (`int`, *optional*, defaults to `5`):
            How often a failed request is repeated.
        timeout (`float`, *optional*, defaults to `120.0`):
            Seconds that an attempt may take, from its start to the last byte of the reply.

    Attributes:
        author (`str`): name under which its answers are recorded.
        cost (`float`): what was charged so far, in your currency.

    Raises:
        ValueError: if a limit or price is impossible, or `base_url` holds a password or a query.
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
        num_samples: int = 1,
        min_agreement: float = 0.6,
        temperature: float | None = None,
        max_completion_tokens: int = 4096,
        concurrency: int = 8,
        requests_per_minute: float | None = None,
        price_per_million_tokens: tuple[float, float] = (0.0, 0.0),
        max_cost: float | None = None,
        max_retries: int = 5,
        timeout: float = 120.0,
    ):
        limits = {
            "num_samples": num_samples,
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
        check_agreement(min_agreement)
        if num_samples > 1 and temperature is None:
            temperature = 1.0  # the default of most endpoints, and the only value that some models accept
        if num_samples > 1 and not temperature:
            raise ValueError(
                f"`temperature` is {temperature!r}, but with `num_samples={num_samples}` it must be positive: the "
                "samples would all be the same."
            )
        self.model = model
        self.author = model if num_samples == 1 else f"{model} x {num_samples}"
        # Each answer is recorded as it comes. The larger the batch, the less time is lost waiting for its last ones.
        self.batch_size = 4 * concurrency
        self._prompt_column, self._instruction = prompt_column, instruction
        self._answer_format = resolve_format(answer_format)
        self._num_samples, self._min_agreement = num_samples, min_agreement
        self._max_completion_tokens = max_completion_tokens
        self._spending = Spending(price_per_million_tokens, max_cost)
        request_options = {"max_completion_tokens": max_completion_tokens}
        self._connection = Connection(
            model,
            {"base_url": base_url, "api_key": api_key},
            request_options if temperature is None else request_options | {"temperature": temperature},
            self._answer_format,
            concurrency,
            requests_per_minute,
            self._spending,
            max_retries,
            timeout,
        )

    @property
    def cost(self) -> float:
        """What was charged so far, in your currency."""
        return self._spending.cost

    def most_cost(self, queries: Sequence[Query]) -> float:
        """
        The most that answers to some queries can cost, if no request has to be repeated.

        Args:
            queries (`Sequence[Query]`):
                The queries, with the prompt column in the `row` of each.

        Returns:
            `float`: in the currency of the prices; `max_cost` if that is less.
        """
        sizes = [most_tokens(self._messages(query.row[self._prompt_column])) for query in queries]
        price = self._spending.price(sum(sizes), len(sizes) * self._max_completion_tokens)
        return (
            self._num_samples * price
            if self._spending.limit is None
            else min(self._num_samples * price, self._spending.limit)
        )

    def ask(self, queries: Sequence[Query]) -> Iterator[Answer | Opinion]:
        """
        Answer queries, in the order in which the replies arrive.

        Args:
            queries (`Sequence[Query]`):
                The queries; the `row` of each holds the prompt column. Samples that are already among the `opinions`
                of a query are not asked for again.

        Yields:
            [`Answer`] or [`Opinion`]: with its cost; the label is `None` if there is no answer. With several samples,
            each sample is an opinion, and the answer itself costs nothing more. Queries beyond the cost limit are not
            answered.

        Raises:
            RuntimeError: if the endpoint fails for good. Everything that was answered is yielded before.
        """
        failure: RuntimeError | None = None
        said: SimpleQueue[tuple[Answer | Opinion, asyncio.Event] | Future[None]] = SimpleQueue()

        async def say(item: Answer | Opinion) -> None:
            # The next request waits until this is recorded, so that at most the requests under way can be lost.
            is_taken = asyncio.Event()
            said.put((item, is_taken))
            await is_taken.wait()

        with self._connection.session() as session:
            for query in queries:
                task = self._settle(session, query, say)
                asyncio.run_coroutine_threadsafe(task, session.loop).add_done_callback(said.put)
            num_left = len(queries)
            while num_left:
                came = said.get()
                if not isinstance(came, Future):
                    item, is_taken = came
                    yield item
                    session.loop.call_soon_threadsafe(is_taken.set)
                    continue
                num_left -= 1
                try:
                    came.result()
                except RuntimeError as error:
                    failure = failure or error
                    session.is_over.set()
        if failure is not None:
            raise failure

    async def _settle(
        self, session: Session, query: Query, say: Callable[[Answer | Opinion], Awaitable[None]]
    ) -> None:
        """Ask for samples until the vote is settled. Stops without one if money runs out or the endpoint fails."""
        messages = self._messages(query.row[self._prompt_column])
        known = [said.label for said in query.opinions if said.author == self.model and not said.has_failed]
        votes, price = known[: self._num_samples], 0.0
        settled = (self._num_samples, self._min_agreement, self._answer_format)
        async with session.gate:
            # Comparing answers blocks until another process replies.
            while (vote := await asyncio.to_thread(decide, votes, *settled)) is None:
                sample = await self._connection.sample(session, messages)
                if not sample.is_answer:
                    if sample.price:
                        await say(Opinion(query.prompt_id, None, self.model, sample.price, has_failed=True))
                    if sample.failure is not None:
                        raise RuntimeError(sample.failure)
                    return
                votes.append(sample.label)
                if self._num_samples == 1:
                    price = sample.price
                else:
                    await say(Opinion(query.prompt_id, sample.label, self.model, sample.price))
            await say(Answer(query.prompt_id, vote.answer, self.author, price))

    def _messages(self, prompt: str | list[dict[str, str]]) -> list[dict[str, str]]:
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
        if messages[0]["role"] == "system":
            return [messages[0] | {"content": f"{messages[0]['content']}\n\n{self._instruction}"}, *messages[1:]]
        return [{"role": "system", "content": self._instruction}, *messages]
