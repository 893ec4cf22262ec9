"""Models answer the queue of a run, without a training script."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from ..answers import AnswerFormat
from .cascade import Cascade, NamedOracle, consult, has_passed
from .ledger import AnnotationLedger
from .queries import Answer, Opinion, Query


def questions_for(ledger: AnnotationLedger, author: str) -> list[Query]:
    """The queue, less what an annotator had no answer to before."""
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
    Let an annotator answer the queue, as far as the budget goes; what it has no answer to stays there, for people.
    `advance` is told of each question that is done with. Returns the number of labels recorded.
    """
    return ledger.buy(Cascade([_Watched(annotator, advance)], answer_format, is_last=False))


class _Watched:
    """An annotator, and who is told how far it is."""

    def __init__(self, annotator: NamedOracle, advance: Callable[[int], None]):
        self.author, self.batch_size = annotator.author, annotator.batch_size
        self._annotator, self._advance = annotator, advance

    def ask(self, queries: Sequence[Query]) -> Iterator[Answer | Opinion]:
        for said in consult(self._annotator, queries):
            yield said
            self._advance(isinstance(said, Answer))
