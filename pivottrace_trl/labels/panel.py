"""Several annotators who vote on the same question."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from ..answers import AnswerFormat
from ..answers.format import resolve_format
from ..answers.vote import check_agreement, decide
from .cascade import NamedOracle, consult
from .oracles import as_named
from .queries import Answer, Opinion, Oracle, Query, read_label


class AnnotatorPanel:
    """
    Several annotators who vote on each question, each with one vote. They are asked one after another, in the order of
    the list, until the vote is settled. What each says is recorded as an [`Opinion`] with its price. Pass the panel as
    `annotator=` to [`PivotDensityCallback`].

    If no answer reaches `min_agreement` of the votes, the panel has no answer. That counts as declined and costs
    nothing of the label budget. With `annotator=[panel, "queue"]`, people are asked instead. If a member fails for
    good, or has spent its `max_cost`, the others go on; questions that they cannot settle without it stay in the
    queue.

    Args:
        annotators (`Sequence[EndpointAnnotator | Callable[[list[dict]], list] | Oracle]`):
            The members, cheapest first. Each must have a different `author`.
        min_agreement (`float`, *optional*, defaults to `0.6`):
            Share of all members, above 0.5 and at most 1, that must agree on an answer. A member without an answer
            votes against all answers.
        answer_format ([`AnswerFormat`] or `str`, *optional*, defaults to `"math"`):
            Decides which answers are the same. Use that of the [`PivotDensityCallback`].

    Attributes:
        author (`str`): name under which its answers are recorded: the members' names, joined by ` + `.

    Raises:
        ValueError: if there are fewer than two members, two members have the same name, or two answers could reach
            the share.

    Example:
    ```python
    >>> panel = AnnotatorPanel([EndpointAnnotator("small"), EndpointAnnotator("big")], min_agreement=1.0)
    >>> callback = PivotDensityCallback(trainer, annotator=[panel, "queue"])
    ```
    """

    def __init__(
        self,
        annotators: Sequence[Oracle | Callable[[list[dict[str, Any]]], Iterable[Any]]],
        min_agreement: float = 0.6,
        answer_format: AnswerFormat | str = "math",
    ):
        check_agreement(min_agreement)
        members: list[NamedOracle] = [as_named(annotator) for annotator in annotators]
        names = [member.author for member in members]
        if len(set(names)) != len(names) or len(names) < 2:
            raise ValueError(
                f"`annotators` are {names}, but must be at least two with different names. For several samples of one "
                "model, use `EndpointAnnotator(num_samples=)`."
            )
        self.author = " + ".join(names)
        self.batch_size = max(member.batch_size for member in members)
        self._members = members
        self._min_agreement, self._answer_format = min_agreement, resolve_format(answer_format)

    def ask(self, queries: Sequence[Query]) -> Iterator[Answer | Opinion]:
        """
        Let the members vote.

        Args:
            queries (`Sequence[Query]`):
                The queries. A member whose opinion is already among the `opinions` of a query is not asked again.

        Yields:
            [`Answer`] or [`Opinion`]: what each member said, with its price; and the panel's answer as soon as it is
            settled, which costs nothing more.

        Raises:
            Exception: the error of the first member that failed. Everything else is yielded before.
        """
        failure: Exception | None = None
        votes = {query.prompt_id: self._known_votes(query) for query in queries}
        left = []
        for query in queries:
            answer = self._settle(query.prompt_id, votes)
            if answer is None:
                left.append(query)
            else:
                yield answer
        for member in self._members:
            settled = set()
            asked = [query for query in left if member.author not in votes[query.prompt_id]]
            try:
                for said in consult(member, asked):
                    if isinstance(said, Opinion):
                        yield said
                        continue
                    label = read_label(said, self._answer_format)
                    if not isinstance(label, str | None):
                        raise ValueError(
                            f"{member.author} answered {label!r:.80}, but a vote must be a text or a number"
                        )
                    votes[said.prompt_id][member.author] = label
                    yield Opinion(said.prompt_id, label, member.author, said.price)
                    if (answer := self._settle(said.prompt_id, votes)) is not None:
                        settled.add(said.prompt_id)
                        yield answer
            except Exception as error:
                failure = failure or error
            left = [query for query in left if query.prompt_id not in settled]
        if failure is not None:
            raise failure

    def _known_votes(self, query: Query) -> dict[str, str | None]:
        names = {member.author for member in self._members}
        return {o.author: o.label for o in query.opinions if o.author in names and not o.has_failed}

    def _settle(self, prompt_id: str, votes: dict[str, dict[str, str | None]]) -> Answer | None:
        labels = list(votes[prompt_id].values())
        vote = decide(labels, len(self._members), self._min_agreement, self._answer_format)
        return None if vote is None else Answer(prompt_id, vote.answer, self.author)
