"""Lets models answer the queue of a run, without a training script."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from ..answers import AnswerFormat
from .cascade import Cascade, NamedOracle, consult, has_passed
from .ledger import AnnotationLedger
from .queries import Answer, Opinion, Query


def questions_for(ledger: AnnotationLedger, author: str) -> list[Query]:
    """The queue, without questions that this annotator already had no answer to."""
    ledger.refresh()
    queue = (replace(query, opinions=ledger.opinions(query.prompt_id)) for query in ledger.queue())
    return [query for query in queue if not has_passed(query, author)]


def ask_queue(
    ledger: AnnotationLedger,
    annotator: NamedOracle,
    answer_format: AnswerFormat,
    advance: Callable[[int], None] = lambda count: None,
) -> int:
    """
    Let an annotator answer the queue, as far as the budget goes. Questions that it cannot answer stay in the queue,
    for people. `advance` is called after each question. Returns the number of labels recorded.
    """
    return ledger.buy(Cascade([_Watched(annotator, advance)], answer_format, is_last=False))


class _Watched:
    """An annotator that reports its progress."""

    def __init__(self, annotator: NamedOracle, advance: Callable[[int], None]):
        self.author, self.batch_size = annotator.author, annotator.batch_size
        self._annotator, self._advance = annotator, advance

    def ask(self, queries: Sequence[Query]) -> Iterator[Answer | Opinion]:
        for said in consult(self._annotator, queries):
            yield said
            self._advance(isinstance(said, Answer))
