"""Turns the `annotator` argument into an oracle: a function, an oracle, people, or several in turn."""

import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from ..answers import AnswerFormat
from .cascade import Cascade, NamedOracle
from .queries import Answer, Oracle, Query, is_empty


class CallableAnnotator:
    """
    An oracle that calls a function. The name of the function is the author of its answers.

    Args:
        annotator (`Callable[[list[dict]], list]`):
            Takes rows of the pool (prompt and free columns) and returns one answer per row, `None` for no answer. An
            answer is a text, a number, or an [`Answer`] with author and price.
    """

    batch_size = 16

    def __init__(self, annotator: Callable[[list[dict[str, Any]]], Iterable[Any]]):
        self._annotator = annotator
        self.author = annotator.__name__ if inspect.isroutine(annotator) else type(annotator).__name__

    def ask(self, queries: Sequence[Query]) -> list[Answer]:
        """
        Return the answers of the function.

        Args:
            queries (`Sequence[Query]`):
                The queries, with the `row` of each prompt.

        Returns:
            `list[Answer]`: one per query, in the same order.

        Raises:
            ValueError: if the function does not return one answer per query.
        """
        said = self._annotator([query.row for query in queries])
        if isinstance(said, (str, bytes, dict, Iterator)):
            raise ValueError(
                f"The annotator returned {said!r:.80}, but must return a list with one answer per row. To have each "
                "answer recorded as it comes, pass an `Oracle`, an object whose `ask` is a generator."
            )
        answers = list(said)
        if len(answers) != len(queries):
            raise ValueError(
                f"The annotator returned {len(answers)} answers for {len(queries)} rows, so they cannot be matched; "
                "none of this batch was recorded. Return one answer per row, and `None` for no answer."
            )
        return [self._answer(query.prompt_id, answer) for query, answer in zip(queries, answers, strict=True)]

    def _answer(self, prompt_id: str, answer: Any) -> Answer:
        if isinstance(answer, Answer):
            if answer.prompt_id != prompt_id:
                raise ValueError(f"The annotator answered {answer.prompt_id!r} instead of {prompt_id!r}.")
            return answer
        if isinstance(answer, tuple):
            raise ValueError(
                f"The annotator returned {answer!r:.80} for a row, but an answer must be a text, a number or `None`. "
                "For an answer with a price, return an `Answer`."
            )
        return Answer(prompt_id, None if is_empty(answer) else answer, self.author)


Annotator = Oracle | Callable[[list[dict[str, Any]]], Iterable[Any]]


def as_oracle(annotator: Any) -> Oracle:
    """The oracle for an oracle or a function; raises `ValueError` for anything else."""
    if isinstance(annotator, Oracle):
        return annotator
    if not callable(annotator):
        raise ValueError(
            f'`annotator` is {annotator!r:.80}, but must be `"queue"`, a function from a list of rows to a list of '
            'answers, an `Oracle`, or a list of these with `"queue"` last. Leave it out if the dataset has the labels.'
        )
    return CallableAnnotator(annotator)


def as_named(annotator: Any) -> NamedOracle:
    """An oracle that is one of several; raises `ValueError` if it has no name."""
    oracle = as_oracle(annotator)
    if not isinstance(oracle, NamedOracle):
        raise ValueError(
            f"`annotator` holds {oracle!r:.80}, which has no attribute `author`. The ledger needs it to tell several "
            "annotators apart. Give it one."
        )
    return oracle


def resolve_annotator(
    annotator: Annotator | str | Sequence[Annotator | str] | None,
    answer_format: AnswerFormat,
) -> tuple[Oracle | None, bool]:
    """
    The oracle that answers at once, or `None`; and whether people answer the remaining questions.

    Raises:
        ValueError: if `annotator` is neither an oracle, a function, `"queue"`, nor a list of these.
    """
    if annotator is None or annotator == "queue":
        return None, annotator is not None
    if not isinstance(annotator, (list, tuple)):
        return as_oracle(annotator), False
    has_people = "queue" in annotator[-1:]
    members = [as_named(member) for member in annotator[: len(annotator) - has_people]]
    if not members and not has_people:
        raise ValueError(
            '`annotator` is an empty list, but must hold an annotator, such as `[EndpointAnnotator(...), "queue"]`.'
        )
    return (Cascade(members, answer_format, is_last=not has_people) if members else None), has_people
