"""Who knows the labels: a function of the user's."""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from decimal import Decimal
from numbers import Rational, Real
from typing import Any

from ..answers import AnswerFormat
from .queries import Answer, is_empty


logger = logging.getLogger(__name__)


class CallableAnnotator:
    """
    Asks a user's function for labels.

    Args:
        annotator (`Callable[[list[dict]], Iterable]`):
            Takes rows of the pool (prompt and free columns) and returns as many answers, `None` where it has none. An
            answer may be an [`Answer`] with author and price. A generator yields each as it comes, as an [`Answer`] or
            as `(position of the row, answer, price)`.
        rows (`Callable[[Sequence[str]], list[dict]]`):
            Returns the rows with the given prompt ids.
        label_column (`str`):
            Column under which the reward functions expect the answer.
        answer_format ([`AnswerFormat`], *optional*):
            Reads answers that are texts or numbers; one that it cannot read counts as no answer. By default they are
            taken as they are.
    """

    def __init__(
        self,
        annotator: Callable[[list[dict[str, Any]]], Iterable[Any]],
        rows: Callable[[Sequence[str]], list[dict[str, Any]]],
        label_column: str,
        answer_format: AnswerFormat | None = None,
    ):
        self._annotator = annotator
        self._format = answer_format
        self._rows = rows
        self._label_column = label_column
        self._author = str(
            getattr(annotator, "name", None) or getattr(annotator, "__name__", type(annotator).__name__)
        )

    def ask(self, prompt_ids: Sequence[str]) -> Iterable[Answer]:
        """Return the annotator's answers; raises `ValueError` if they are not one for each question."""
        said = self._annotator(self._rows(prompt_ids))
        if isinstance(said, Iterator):
            return (self._yielded(prompt_ids, item) for item in said)
        if isinstance(said, (str, bytes, dict)):
            raise ValueError(f"The annotator returned {said!r:.80}, but must return a list with one answer per row.")
        answers = list(said)
        if len(answers) != len(prompt_ids):
            raise ValueError(
                f"The annotator returned {len(answers)} answers for {len(prompt_ids)} rows, so that they cannot be "
                "told apart; none of this batch was recorded. Return one answer per row, `None` where there is none."
            )
        return [self._answer(identity, answer) for identity, answer in zip(prompt_ids, answers, strict=True)]

    def _yielded(self, prompt_ids: Sequence[str], item: Any) -> Answer:
        if isinstance(item, Answer):
            return self._read(item)
        is_placed = isinstance(item, tuple) and len(item) == 3 and isinstance(item[0], int)
        if not is_placed or not 0 <= item[0] < len(prompt_ids):
            raise ValueError(
                f"The annotator yielded {item!r:.80}, but a generator yields an `Answer`, or the position of the row "
                f"(0 to {len(prompt_ids) - 1}), the answer and its price."
            )
        position, answer, price = item
        return self._answer(prompt_ids[position], answer, price)

    def _answer(self, prompt_id: str, answer: Any, price: float = 0.0) -> Answer:
        if isinstance(answer, Answer):
            if answer.prompt_id != prompt_id:
                raise ValueError(f"The annotator answered {answer.prompt_id!r} in the place of {prompt_id!r}.")
            return self._read(answer)
        if isinstance(answer, tuple):
            raise ValueError(
                f"The annotator returned {answer!r:.80} for a row, but an answer of a list stands alone. Return an "
                "`Answer` for one with a price, or yield `(position of the row, answer, price)`."
            )
        answer = answer if self._format is None else _written(answer)
        label = None if is_empty(answer) else {self._label_column: answer}
        return self._read(Answer(prompt_id, label, self._author, price))

    def _read(self, answer: Answer) -> Answer:
        text = (answer.label or {}).get(self._label_column)
        text = text if self._format is None else _written(text)
        if self._format is None or answer.label is None or not isinstance(text, str):
            return answer
        try:
            label = {**answer.label, self._label_column: self._format.read(text).label}
        except ValueError as error:
            logger.warning("An answer of %s to prompt %s is not used: %s", answer.author, answer.prompt_id, error)
            return replace(answer, label=None)
        return replace(answer, label=label)


def _written(value: Any) -> Any:
    """A number, NumPy's too, as it is written: a verifier of texts reads no other. Anything else as it is."""
    if isinstance(value, Rational) and not isinstance(value, bool):
        return str(value)
    is_number = isinstance(value, (Real, Decimal)) and not isinstance(value, bool) and value == value
    return f"{Decimal(str(value)):f}" if is_number else value
