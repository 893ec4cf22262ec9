"""What attempts at an endpoint cost at most, and a limit that holds."""

import threading
from typing import Any


# Tokens that a chat template may put around a message.
_TOKENS_AROUND = 64


class Spending:
    """
    Counts money. Before an attempt its worst case is reserved; afterwards that is charged, unless the reply proves
    that it cost less.

    Args:
        prices (`tuple[float, float]`):
            Price of a million tokens of prompt and of reply.
        limit (`float`, *optional*):
            Most that may be spent.

    Attributes:
        cost (`float`): what was charged so far.
    """

    def __init__(self, prices: tuple[float, float], limit: float | None):
        self._prompt_price, self._reply_price = (price / 1e6 for price in prices)
        self._limit = limit
        self._reserved = 0.0
        self._num_pending = 0
        self._lock = threading.Lock()
        self.cost = 0.0

    def reserve(self, num_prompt_tokens: int, num_reply_tokens: int) -> bool:
        """Set aside the worst case of an attempt; `False` if the limit leaves no money for it."""
        most = self._price(num_prompt_tokens, num_reply_tokens)
        with self._lock:
            if self._limit is not None and self.cost + self._reserved + most > self._limit:
                return False
            self._reserved += most
            self._num_pending += 1
            return True

    @property
    def is_pending(self) -> bool:
        """Whether attempts are under way, whose price is not known yet."""
        return self._num_pending > 0

    def settle(self, num_prompt_tokens: int, num_reply_tokens: int, usage: Any) -> float:
        """
        Charge an attempt.

        Args:
            num_prompt_tokens, num_reply_tokens (`int`): what was reserved.
            usage (`Any`): what the reply says of its usage. It is believed if it is a whole number of tokens of each
                kind, at least one and at most what was reserved.

        Returns:
            `float`: what was charged.
        """
        used = usage if isinstance(usage, dict) else {}
        most = charge = self._price(num_prompt_tokens, num_reply_tokens)
        num_prompt: Any = used.get("prompt_tokens")
        num_reply: Any = used.get("completion_tokens")
        if _is_count(num_prompt, num_prompt_tokens) and _is_count(num_reply, num_reply_tokens):
            charge = self._price(num_prompt, num_reply)
        with self._lock:
            self._num_pending -= 1
            # Rounding must not add up: with nothing under way, nothing is reserved.
            self._reserved = self._reserved - most if self._num_pending else 0.0
            self.cost += charge
        return charge

    def _price(self, num_prompt_tokens: int, num_reply_tokens: int) -> float:
        return num_prompt_tokens * self._prompt_price + num_reply_tokens * self._reply_price


def _is_count(value: Any, most: int) -> bool:
    return type(value) is int and 1 <= value <= most  # neither a bool nor a fraction


def most_tokens(messages: list[dict[str, str]]) -> int:
    """Most tokens that messages can have: a token is at least a byte long."""
    return sum(len(message["content"].encode()) + _TOKENS_AROUND for message in messages)
