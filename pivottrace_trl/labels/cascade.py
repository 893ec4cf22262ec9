"""Several annotators in turn, each for what those before it gave no answer to."""

from collections.abc import Generator, Iterator, Sequence
from typing import Protocol, runtime_checkable

from ..answers import AnswerFormat
from .queries import Answer, Opinion, Oracle, Query, read_label


@runtime_checkable
class NamedOracle(Oracle, Protocol):
    """One of several oracles: by its name the ledger knows what it said."""

    author: str


class Cascade:
    """
    Oracles in turn. That a member has no answer is an opinion, and it is not asked again; only from the last of all it
    is a decline.
    """

    def __init__(self, members: Sequence[NamedOracle], answer_format: AnswerFormat, is_last: bool = True):
        self.batch_size = max(member.batch_size for member in members)
        self._members, self._answer_format, self._is_last = members, answer_format, is_last

    def ask(self, queries: Sequence[Query]) -> Iterator[Answer | Opinion]:
        """Ask each member for what those before it gave no answer to."""
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
    """Whether an annotator was asked before, and had no answer."""
    return any(said.author == author and said.label is None and not said.has_failed for said in query.opinions)


def consult(oracle: Oracle, queries: Sequence[Query]) -> Iterator[Answer | Opinion]:
    """What an oracle says, asked in batches of its size; `ValueError` if it answers what it was not asked."""
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
