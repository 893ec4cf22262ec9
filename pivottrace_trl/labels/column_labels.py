"""Labels that are taken from the dataset's own column: the user's own labels, and corrections of known ones."""

import json
import logging
from collections.abc import Iterator, Sequence
from functools import partial

from ..answers import AnswerFormat
from ..answers.format import format_of_ledger
from .journal import to_json
from .queries import Answer, Query
from .recording import LedgerRecorder
from .vault import LabelVault


logger = logging.getLogger(__name__)

# Rows of a dataset per transaction. Other processes may write between two transactions.
_CHUNK_SIZE = 10_000


class ColumnLedger(LedgerRecorder):
    """Takes labels from the column of a dataset without a purchase; [`AnnotationLedger`] buys the others."""

    _own_format: AnswerFormat | str | None

    def take_corrections(self, vault: LabelVault) -> list[str]:
        """
        Record labels of the dataset that were corrected since they were bought or recorded as the user's own. The old
        ones stay in the record, and nothing is paid again.

        Args:
            vault ([`LabelVault`]):
                The labels of the dataset as they are now.

        Returns:
            `list[str]`: ids of the prompts whose label changed.
        """
        known = [i for i, author in self._state.authors.items() if author == vault.author and i in vault]
        changed: list[str] = []
        for answers in _filled(vault, known):
            for is_own in (False, True):
                news = [a for a in answers if (a.prompt_id in self._state.own) == is_own and self._is_news(a)]
                self.record(news, replace=True, is_own=is_own)
                changed += [answer.prompt_id for answer in news]
        self._tell_of_changes(changed)
        return changed

    def take_own(self, vault: LabelVault) -> list[str]:
        """
        Record the labels of a dataset as the user's own, free of charge, ten thousand rows at a time. They replace
        labels that were bought before, unless somebody has contradicted the same label of the dataset since. A row
        without a label changes nothing.

        Args:
            vault ([`LabelVault`]):
                The labels of the dataset as they are now.

        Returns:
            `list[str]`: ids of the prompts that had another label.
        """
        changed: list[str] = []
        for answers in _filled(vault, vault.prompt_ids):
            changed += self._write(partial(self._take_own, answers))
        self._tell_of_changes(changed)
        return changed

    def _take_own(self, answers: Sequence[Answer]) -> list[str]:
        news = [answer for answer in answers if self._is_news(answer)]
        changed = [answer.prompt_id for answer in news if answer.prompt_id in self._state.labels]
        for answer in news:
            self._record(answer, None, replace=True, is_own=True)
        return changed

    def _is_news(self, answer: Answer) -> bool:
        """
        Whether the dataset's label differs from the current one, and from the dataset's label at the time when the
        current one was given.
        """
        column, identity = self.label_column, answer.prompt_id
        standing, new = self.label(identity), answer.label.get(column)
        if standing is None:
            return True
        old = standing.get(column)
        if to_json(old) == to_json(new):
            return False
        if self.author(identity) == answer.author:
            return True
        answer_format = format_of_ledger(self.answer_format, self._own_format)
        if str(old) == str(new) or answer_format.are_equivalent(str(old), str(new)):
            return False
        said = "SELECT value FROM events WHERE kind = 'own' AND prompt_id = ? AND author = ? ORDER BY event_id DESC"
        before = self._file.find(said, (identity, answer.author))
        return before is None or to_json(json.loads(before[0]).get(column)) != to_json(new)

    def _tell_of_changes(self, changed: Sequence[str]) -> None:
        if changed:
            some = ", ".join(changed[:5]) + (", ..." if len(changed) > 5 else "")
            logger.warning(
                f"The dataset has other labels now than those that were known, for {len(changed)} prompts ({some}). "
                f"The new ones are used, at no cost; the old ones stay in {self.path}. If you did not correct "
                "the dataset, stop the run and restore the right one."
            )


def _filled(vault: LabelVault, prompt_ids: Sequence[str]) -> Iterator[list[Answer]]:
    """The labels of a dataset in parts, without the rows that have none."""
    for start in range(0, len(prompt_ids), _CHUNK_SIZE):
        answers = vault.ask([Query(identity) for identity in prompt_ids[start : start + _CHUNK_SIZE]])
        yield [answer for answer in answers if answer.label is not None]
