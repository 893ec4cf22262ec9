"""Records answers with their cost, and undoes them. This is the only place where a prompt gets its label."""

import json
from collections.abc import Sequence
from typing import Any

from ..answers import AnswerFormat
from .journal import LedgerJournal, now, to_json
from .pool_file import POOL_FILE, find_question, read_pool_ids
from .queries import Answer, Opinion, Outcome, Query, as_written, is_empty


# Seconds for which a question is reserved for the person who claimed it.
_CLAIM_SECONDS = 3600.0


class LedgerRecorder(LedgerJournal):
    """Records answers, own labels, opinions and claims under the budget; [`AnnotationLedger`] asks for them."""

    _pool: frozenset[str] | None = None

    def has_prompt(self, prompt_id: str) -> bool:
        """Whether a prompt may be answered: it is in the pool, or was asked for when the pool was another one."""
        if prompt_id in self._state.requests:
            return True
        if self._pool is None:
            self._pool = read_pool_ids(self.path.with_name(POOL_FILE))
        return prompt_id in self._pool

    def record(
        self,
        answers: Sequence[Answer | Opinion],
        answer_format: AnswerFormat | None = None,
        replace: bool = False,
        is_own: bool = False,
    ) -> list[Outcome]:
        """
        Record answers in one transaction: all of them or, if the process dies, none. They may be for any prompt of the
        pool, asked for or not.

        Args:
            answers (`Sequence[Answer | Opinion]`):
                The answers and opinions.
            answer_format ([`AnswerFormat`], *optional*):
                Decides which labels mean the same. By default, labels are the same if they are equal.
            replace (`bool`, *optional*, defaults to `False`):
                Whether an answer replaces another one, instead of being in conflict with it. The prompt is not paid
                for again.
            is_own (`bool`, *optional*, defaults to `False`):
                Whether these are the user's own labels. They cost nothing, and nothing of the budget.

        Returns:
            `list[Outcome]`: what happened to each, in the same order.

        Raises:
            ValueError: if a label is empty or cannot be stored, or a price is negative.
        """
        return self._write(lambda: [self._record(answer, answer_format, replace, is_own) for answer in answers])

    def _record(
        self, answer: Answer | Opinion, answer_format: AnswerFormat | None, replace: bool, is_own: bool
    ) -> Outcome:
        state, identity, label = self._state, answer.prompt_id, answer.label
        if not self.has_prompt(identity):
            return Outcome.UNKNOWN
        if isinstance(answer, Opinion):
            # The money is spent even if no further label can be bought. In that case the opinion's text is not stored,
            # see below.
            is_kept = self.num_left > 0 or identity in state.paid
            label = as_written(label) if is_kept else None
            value = {"label": label, "has_failed": answer.has_failed or not is_kept}
            self._append("opinion", identity, value=value, author=answer.author, price=answer.price)
            return Outcome.OPINION
        if label is not None and not isinstance(label, dict):
            label = {self.label_column: as_written(label)}
        standing = state.labels.get(identity)
        if label is None:
            is_asked = identity in state.requests and not is_own
            if is_asked and standing is None and identity not in state.closed:
                self._append("decline", identity, author=answer.author, price=answer.price)
            return Outcome.DECLINED
        if is_empty(label.get(self.label_column, label)):
            raise ValueError(
                f"The label {label!r:.100} of prompt {identity!r} by {answer.author!r:.100} is empty. If the "
                "annotator has no answer, pass `label=None`."
            )
        if standing is not None:
            label = json.loads(to_json(label))
            texts = [str(columns.get(self.label_column)) for columns in (standing, label)]
            is_alike = answer_format is not None and (texts[0] == texts[1] or answer_format.are_equivalent(*texts))
            if standing == label or is_alike:
                return Outcome.DUPLICATE
            if not replace:
                self._keep_unused(answer, {"label": label, "reason": Outcome.CONFLICT.value})
                return Outcome.CONFLICT
        if identity not in state.requests:
            self._file.add_prompt(identity, None)
        must_be_paid = not is_own and identity not in state.paid
        if must_be_paid and self.num_left == 0:
            # The author is stored, but not the answer, as it would be a label that nobody paid for.
            self._keep_unused(answer, {"reason": Outcome.OVER_BUDGET.value})
            return Outcome.OVER_BUDGET
        if standing is not None:
            kind = "own" if identity in state.own else "answer"
            latest = "SELECT max(event_id) FROM events WHERE kind = ? AND prompt_id = ?"
            (event,) = self._file.find(latest, (kind, identity)) or (None,)
            self._append("undo", identity, author=answer.author, undoes=(event, kind))
        if must_be_paid:
            self._file.add_purchase(identity)
        price = 0.0 if is_own else answer.price
        self._append("own" if is_own else "answer", identity, value=label, author=answer.author, price=price)
        return Outcome.RECORDED

    def _keep_unused(self, answer: Answer, value: dict[str, Any]) -> None:
        # The price is recorded, but not charged.
        value["price"] = answer.price
        query = "SELECT 1 FROM events WHERE kind = 'unused' AND prompt_id = ? AND author = ? AND value = ?"
        if self._file.find(query, (answer.prompt_id, answer.author, to_json(value))) is None:
            self._append("unused", answer.prompt_id, value=value, author=answer.author)

    def opinions(self, prompt_id: str) -> tuple[Opinion, ...]:
        """
        The opinions on a prompt.

        Args:
            prompt_id (`str`):
                Id of the prompt.

        Returns:
            `tuple[Opinion, ...]`: oldest first.
        """
        if prompt_id not in self._state.discussed:
            return ()
        query = "SELECT value, author, price FROM events WHERE kind = 'opinion' AND prompt_id = ? ORDER BY event_id"
        with self._lock:
            rows = self._file.connection.execute(query, (prompt_id,)).fetchall()
        return tuple(
            Opinion(prompt_id, **json.loads(value), author=author, price=price) for value, author, price in rows
        )

    def claim(self, prompt_id: str, author: str) -> bool:
        """
        Reserve an open question for the person who is answering it. It stays in the queue, whatever is asked for
        meanwhile, until they answer it, skip it or mark it broken, and for an hour at most.

        Args:
            prompt_id (`str`):
                Id of the prompt.
            author (`str`):
                Name of the person.

        Returns:
            `bool`: `True` if the question is now theirs; `False` if it is not open, or somebody else has it.
        """
        return self._write(lambda: self._claim(prompt_id, author))

    def _claim(self, prompt_id: str, author: str) -> bool:
        if prompt_id not in self._state.open_ids or self.claimant(prompt_id) not in (None, author):
            return False
        self._append("claim", prompt_id, author=author)
        return True

    def claimant(self, prompt_id: str) -> str | None:
        """The person who is answering a question now; `None` if nobody is."""
        author, since = self._state.claims.get(prompt_id, (None, 0.0))
        return author if author is not None and now().timestamp() - since < _CLAIM_SECONDS else None

    def skip(self, prompt_id: str, author: str) -> None:
        """Move a prompt to the end of the queue."""
        self._write(lambda: self._append_if_open("skip", prompt_id, author))

    def mark_broken(self, prompt_id: str, author: str) -> None:
        """Remove a prompt that cannot be answered from the queue for good. It costs nothing."""
        self._write(lambda: self._append_if_open("broken", prompt_id, author))

    def _append_if_open(self, kind: str, prompt_id: str, author: str) -> None:
        if prompt_id in self._state.open_ids:
            self._append(kind, prompt_id, author=author)

    def undo(self, author: str) -> Query | None:
        """
        Take back the latest answer, skip or "broken" of a person. An answer that was paid for stays paid, so answering
        the prompt again costs nothing.

        Args:
            author (`str`):
                Name of the person.

        Returns:
            [`Query`] or `None`: the query that is open again; `None` if there is nothing left to undo.
        """
        return self._write(lambda: self._undo(author))

    def _undo(self, author: str) -> Query | None:
        row = self._file.find(
            "SELECT event_id, kind, prompt_id FROM events WHERE author = ? AND kind IN ('answer', 'skip', 'broken') "
            "AND event_id NOT IN (SELECT undoes FROM events WHERE undoes IS NOT NULL) ORDER BY event_id DESC LIMIT 1",
            (author,),
        )
        if row is None:
            return None
        event, kind, identity = row
        if self._file.prompts([identity]) == [None]:
            # It was answered without being asked for. From now on it is in the queue, with its text in the ledger.
            self._file.add_prompt(identity, find_question(self.path.with_name(POOL_FILE), identity))
        self._append("undo", identity, author=author, undoes=(event, kind))
        return self._queries([identity])[0]

    def _queries(self, ids: Sequence[str]) -> list[Query]:
        return [
            Query(identity, prompt, **self._state.requests[identity], row={"prompt": prompt})
            for identity, prompt in zip(ids, self._file.prompts(ids), strict=True)
        ]
