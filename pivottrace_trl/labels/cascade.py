"""Several annotators in turn, each for the questions that those before it did not answer."""

from collections.abc import Generator, Iterator, Sequence
from typing import Protocol, runtime_checkable

from ..answers import AnswerFormat
from .queries import Answer, Opinion, Oracle, Query, read_label


@runtime_checkable
class NamedOracle(Oracle, Protocol):
    """An oracle with a name, by which the ledger tells apart what several oracles said."""

    author: str


class Cascade:
    """
    Asks several oracles in turn. If a member has no answer, that is recorded as an opinion and it is not asked again.
    Only if the last member has none, the question counts as declined.
    """

    def __init__(self, members: Sequence[NamedOracle], answer_format: AnswerFormat, is_last: bool = True):
        self.batch_size = max(member.batch_size for member in members)
        self._members, self._answer_format, self._is_last = members, answer_format, is_last

    def ask(self, queries: Sequence[Query]) -> Iterator[Answer | Opinion]:
        """Ask each member the questions that those before it did not answer."""
        left = list(queries)
        for place, member in enumerate(self._members, start=1):
            if self._is_last and place == len(self._members):
                yield from consult(member, left)
                return
            answered = set()
            for said in consult(member, [query for query in left if not has_passed(query, member.author)]):
                if isinstance(said, Answer) and read_label(said, self._answer_format) is None:
                    said = Opinion(said.prompt_id, None, member.author, said.price)
                if isinstance(said, Answer):
                    answered.add(said.prompt_id)
                yield said
            left = [query for query in left if query.prompt_id not in answered]


def has_passed(query: Query, author: str) -> bool:
    """Whether an annotator was already asked, and had no answer."""
    return any(said.author == author and said.label is None and not said.has_failed for said in query.opinions)


def consult(oracle: Oracle, queries: Sequence[Query]) -> Iterator[Answer | Opinion]:
    """
    Ask an oracle in batches of its `batch_size`.

    Raises:
        ValueError: if it answers a prompt that it was not asked about.
    """
    for start in range(0, len(queries), oracle.batch_size):
        batch = queries[start : start + oracle.batch_size]
        missing = {query.prompt_id for query in batch}
        answers = oracle.ask(batch)
        try:
            for said in answers:
                if said.prompt_id not in missing:
                    raise ValueError(f"it answered {said.prompt_id!r}, which it was not asked")
                if isinstance(said, Answer):
                    missing.remove(said.prompt_id)
                yield said
        finally:
            if isinstance(answers, Generator):
                answers.close()
