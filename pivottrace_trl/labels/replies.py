"""Interprets the replies of an endpoint, and keeps the cost of all attempts within a limit."""

import json
import threading
from dataclasses import dataclass
from enum import Enum, auto
from http import HTTPStatus
from typing import Any

from ..answers import AnswerFormat
from ..answers.plain import find_boxed


# `finish_reason` of replies that ended without a complete answer. With any other reason but "stop", the reply has not
# finished.
_ENDINGS = {
    "length": "it was cut off: raise `max_completion_tokens`",
    "content_filter": "the endpoint's filter removed it",
    "tool_calls": "it calls a tool",
    "function_call": "it calls a function",
}
# Status codes of requests that will not be accepted, however often they are sent.
_REFUSED = (HTTPStatus.BAD_REQUEST, HTTPStatus.REQUEST_ENTITY_TOO_LARGE, HTTPStatus.UNPROCESSABLE_ENTITY)
_PASSING = (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.CONFLICT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS)
# Largest number of tokens that a chat template puts around a message.
_TOKENS_AROUND = 64


class Kind(Enum):
    """What to do with a reply."""

    ANSWER = auto()
    """It holds a label."""
    UNREADABLE = auto()
    """It is finished, but holds no answer in the agreed form: ask once more."""
    DECLINED = auto()
    """The model, or the endpoint, will not answer this prompt."""
    PASSING = auto()
    """The endpoint failed for a temporary reason: ask again after a pause."""
    LASTING = auto()
    """The endpoint failed for a permanent reason: stop."""


@dataclass(frozen=True)
class Reply:
    """
    A reply: what to do with it, why it holds no label (without quoting the server, as its text may hold the key), the
    label, the usage that it reports, and the seconds that the server asks to wait.
    """

    kind: Kind
    reason: str = ""
    label: str | None = None
    usage: Any = None
    pause: float | None = None


def read_status(status: int, retry_after: str | None) -> Reply:
    """Interpret a failure by its HTTP status and its header `Retry-After`."""
    known = {int(known): known.phrase for known in HTTPStatus}
    reason = f"HTTP {status} {known.get(status, '')}".strip()
    try:
        pause = float(retry_after or "nan")
    except ValueError:
        pause = float("nan")
    kind = Kind.DECLINED if status in _REFUSED else Kind.LASTING
    if status in _PASSING or status >= 500:
        kind = Kind.PASSING
    return Reply(kind, reason, pause=pause if 0.0 <= pause <= 60.0 else None)


def read_body(text: str, answer_format: AnswerFormat, key: str) -> Reply:
    r"""
    Interpret a successful reply. The label is the content of the last `\boxed{}` of a finished reply, unless it holds
    the key.
    """
    try:
        body = json.loads(text)
    except (ValueError, RecursionError):
        body = None
    body = body if isinstance(body, dict) else {}
    usage, choices = body.get("usage"), body.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
    message, ending = choice.get("message"), choice.get("finish_reason")
    content = message.get("content") if isinstance(message, dict) else None
    if isinstance(ending, str) and ending in _ENDINGS:
        return Reply(Kind.DECLINED, _ENDINGS[ending], usage=usage)
    if isinstance(message, dict) and message.get("refusal"):
        return Reply(Kind.DECLINED, "the model refuses", usage=usage)
    if ending != "stop" or not isinstance(content, str):
        return Reply(Kind.PASSING, "HTTP 200 without a finished reply", usage=usage)
    boxed = find_boxed(content)
    if not boxed or (key and key in boxed):
        return Reply(Kind.UNREADABLE, "it has no answer in \\boxed{}", usage=usage)
    try:
        return Reply(Kind.ANSWER, label=answer_format.read(boxed).label, usage=usage)
    except ValueError:
        reason = f"the content of \\boxed{{}} is not an answer in the format {answer_format.name!r}"
        return Reply(Kind.UNREADABLE, reason, usage=usage)


class Spending:
    """
    Counts money. Before an attempt, the most that it can cost is reserved. Afterwards that is added to `cost`, unless
    the reply proves that it cost less. `prices` are for a million prompt tokens and a million reply tokens.
    """

    def __init__(self, prices: tuple[float, float], limit: float | None):
        self._prompt_price, self._reply_price = (price / 1e6 for price in prices)
        self.limit = limit
        self._reserved = 0.0
        self._num_pending = 0
        self._lock = threading.Lock()
        self.cost = 0.0

    def reserve(self, num_prompt_tokens: int, num_reply_tokens: int) -> bool:
        """Reserve the most that an attempt can cost; `False` if the limit does not leave enough money."""
        most = self.price(num_prompt_tokens, num_reply_tokens)
        with self._lock:
            if self.limit is not None and self.cost + self._reserved + most > self.limit:
                return False
            self._reserved += most
            self._num_pending += 1
            return True

    @property
    def is_pending(self) -> bool:
        """Whether attempts are under way, so that their price is not known yet."""
        return self._num_pending > 0

    def settle(self, num_prompt_tokens: int, num_reply_tokens: int, usage: Any) -> float:
        """
        Charge an attempt that was reserved, and return the charge. The usage that a reply reports is believed if both
        its numbers of tokens are integers between 1 and what was reserved.
        """
        used = usage if isinstance(usage, dict) else {}
        most = charge = self.price(num_prompt_tokens, num_reply_tokens)
        num_prompt: Any = used.get("prompt_tokens")
        num_reply: Any = used.get("completion_tokens")
        if _is_count(num_prompt, num_prompt_tokens) and _is_count(num_reply, num_reply_tokens):
            charge = self.price(num_prompt, num_reply)
        with self._lock:
            self._num_pending -= 1
            # Rounding errors must not add up: with no attempt under way, nothing is reserved.
            self._reserved = self._reserved - most if self._num_pending else 0.0
            self.cost += charge
        return charge

    def price(self, num_prompt_tokens: int, num_reply_tokens: int) -> float:
        """Price of some prompt tokens and reply tokens."""
        return num_prompt_tokens * self._prompt_price + num_reply_tokens * self._reply_price


def _is_count(value: Any, most: int) -> bool:
    return type(value) is int and 1 <= value <= most  # not a bool or a float


def most_tokens(messages: list[dict[str, str]]) -> int:
    """Upper bound on the number of tokens of messages: a token is at least one byte long."""
    return sum(len(message["content"].encode()) + _TOKENS_AROUND for message in messages)
