"""Who knows the labels: a function of the user's."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from .queries import Answer


class CallableAnnotator:
    """
    Asks a user's function for labels.

    Args:
        annotator (`Callable[[list[dict]], Sequence]`):
            Takes rows of the pool (prompt and free columns) and returns as many answers, `None` where it has none. An
            answer may be an [`Answer`] with author and price.
        rows (`Callable[[Sequence[str]], list[dict]]`):
            Returns the rows with the given prompt ids.
        label_column (`str`):
            Column under which the reward functions expect the answer.
    """

    def __init__(
        self,
        annotator: Callable[[list[dict[str, Any]]], Sequence[Any] | Iterator[tuple[int, Any, float]]],
        rows: Callable[[Sequence[str]], list[dict[str, Any]]],
        label_column: str,
    ):
        self._annotator = annotator
        self._rows = rows
        self._label_column = label_column
        self._author = str(
            getattr(annotator, "name", None) or getattr(annotator, "__name__", type(annotator).__name__)
        )

    def ask(self, prompt_ids: Sequence[str]) -> Iterable[Answer]:
        """Return the annotator's answers; raises `ValueError` if there are more or fewer than questions."""
        said = self._annotator(self._rows(prompt_ids))
        if isinstance(said, Iterator):
            return (self._answer(prompt_ids[position], answer, price) for position, answer, price in said)
        answers = list(said)
        if len(answers) != len(prompt_ids):
            raise ValueError(
                f"The annotator returned {len(answers)} answers for {len(prompt_ids)} rows, so that they cannot be "
                "told apart; none of this batch was recorded. Return one answer per row, `None` where there is none."
            )
        return [self._answer(identity, answer) for identity, answer in zip(prompt_ids, answers, strict=True)]

    def _answer(self, prompt_id: str, answer: Any, price: float = 0.0) -> Answer:
        label = None if answer in (None, "") else {self._label_column: answer}
        return Answer(prompt_id, label, self._author, price)
