"""Imports answers from files."""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache
from pathlib import Path

from ...answers import AnswerFormat
from ...answers.base import Reading
from ...answers.format import format_of_ledger
from ...progress import progress_bar
from ..ledger import AnnotationLedger
from ..queries import Answer, Outcome
from .label_studio import from_label_studio
from .reading import Item, read_items
from .rejected import RejectedFile


# Rows of one transaction, and seconds in which they are read. An interruption costs no more than these, and the same
# file can be imported again; fewer of them write the same pages of the file once more.
_MOST_ROWS = 20_000
_MOST_SECONDS = 1.0
# Answers repeat, and reading a formula takes a thousand times as long as looking it up.
_NUM_READINGS = 50_000


@dataclass(frozen=True)
class ImportReport:
    """
    Results of importing a file.

    Attributes:
        recorded (`int`): number of new answers.
        duplicates (`int`): number of answers that were already known.
        unanswered (`int`): number of rows without an answer.
        rejected (`int`): number of rejected rows, whose reasons are in `rejected_path`.
        reasons (`dict[str, int]`): number of rejected rows by kind of reason.
        rejected_path (`Path` or `None`): file of the rejected rows; `None` if there are none.
    """

    recorded: int
    duplicates: int
    unanswered: int
    rejected: int
    reasons: dict[str, int]
    rejected_path: Path | None


def import_answers(
    ledger: AnnotationLedger,
    path: Path,
    author: str,
    price: float = 0.0,
    replace: bool = False,
    progress: bool = True,
    answer_format: AnswerFormat | str | None = None,
    is_own: bool = False,
) -> ImportReport:
    """
    Import answers from a file in one of [`export_queue`]'s formats, a Label Studio export in JSON or JSON-MIN, or any
    table with columns `prompt_id` and `answer` (and `author`, `price`). Answers may be for any prompt of the pool,
    asked for or not. They are bought under the budget, unless they are the user's own.

    Importing a file again changes nothing. Each row is handled on its own: rejected rows are written with the reason
    to `<file>.rejected-<digest>.jsonl` beside the file, and the others are recorded.

    Args:
        ledger ([`AnnotationLedger`]):
            The run's ledger.
        path (`Path`):
            The file.
        author (`str`):
            Author of rows without one in the file.
        price (`float`, *optional*, defaults to `0.0`):
            Price of rows without one in the file, in your currency.
        replace (`bool`, *optional*, defaults to `False`):
            Whether an answer replaces a different one, instead of being rejected.
        progress (`bool`, *optional*, defaults to `True`):
            Whether to show a progress bar.
        answer_format ([`AnswerFormat`] or `str`, *optional*):
            Answer format of the run. Defaults to the one that the ledger names; your own format must be passed.
        is_own (`bool`, *optional*, defaults to `False`):
            Whether these are the user's own labels. They cost nothing, whatever prices the file holds, and nothing of
            the budget.

    Returns:
        [`ImportReport`]

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file cannot be read, no row has the columns `prompt_id` and `answer`, or `answer_format` is
            not that of the run.
    """
    path = Path(path)
    counts: Counter[str] = Counter()
    answer_format = format_of_ledger(ledger.answer_format, answer_format)
    columns: set[str] = set()
    has_columns = False

    read = lru_cache(_NUM_READINGS)(answer_format.read)

    items = read_items(path, ledger.has_prompt)
    rows = (row for item in items for row in from_label_studio(item))
    with RejectedFile(path) as rejected, progress_bar("Importing answers", None, progress) as advance:
        is_over = False
        while not is_over:
            answers: list[tuple[Item, Answer]] = []
            refused: list[tuple[Item, str]] = []
            num_rows, end = 0, time.monotonic() + _MOST_SECONDS
            while num_rows < _MOST_ROWS and time.monotonic() < end:
                if (item := next(rows, None)) is None:
                    is_over = True
                    break
                num_rows += 1
                if item.error is None:
                    columns.update(item.row)
                is_whole = "prompt_id" in item.row and "answer" in item.row
                has_columns |= is_whole
                try:
                    answer = _to_answer(item, read, author, price)
                except ValueError as error:
                    counts["unreadable answer" if is_whole and item.error is None else "malformed row"] += 1
                    refused.append((item, str(error)))
                    continue
                if answer is None:
                    counts["unanswered"] += 1
                else:
                    answers.append((item, answer))
            outcomes = ledger.record([answer for _, answer in answers], answer_format, replace, is_own)
            for (item, answer), outcome in zip(answers, outcomes, strict=True):
                counts[outcome.value] += 1
                if outcome not in (Outcome.RECORDED, Outcome.DUPLICATE):
                    refused.append((item, _reason(ledger, answer, outcome)))
            rejected.add(refused)
            advance(num_rows)
        if columns and not has_columns:
            raise ValueError(
                f"{path} has no columns `prompt_id` and `answer`, only {sorted(columns)[:20]}. Nothing was imported."
            )
        rejected.finish()
    taken = (Outcome.RECORDED.value, Outcome.DUPLICATE.value, "unanswered")
    return ImportReport(
        recorded=counts[Outcome.RECORDED.value],
        duplicates=counts[Outcome.DUPLICATE.value],
        unanswered=counts["unanswered"],
        rejected=rejected.num_rows,
        reasons={kind: count for kind, count in counts.items() if kind not in taken},
        rejected_path=rejected.path,
    )


def _to_answer(item: Item, read: Callable[[str], Reading], author: str, price: float) -> Answer | None:
    if item.error is not None:
        raise ValueError(item.error)
    row = item.row
    identity, text = row.get("prompt_id"), row.get("answer")
    if not identity or not isinstance(identity, str):
        raise ValueError(f"`prompt_id` is {identity!r}, but must be one of an exported queue")
    if text is None or text == "" or text != text:  # NaN means an empty field in tables
        return None
    if isinstance(text, bool) or not isinstance(text, (str, int, float, Decimal)):
        raise ValueError(f"the answer is {text!r:.80}, but must be a text or a number")
    # Many programs store a column of whole numbers with gaps as floats.
    text = str(int(text)) if isinstance(text, float) and text.is_integer() and abs(text) < 2**53 else str(text)
    if not text.strip():
        raise ValueError("the answer is empty")
    row_price = row.get("price")
    try:
        paid = price if row_price in (None, "") or row_price != row_price else float(row_price)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        paid = float("nan")
    if not 0.0 <= paid < float("inf"):
        raise ValueError(f"`price` is {row_price!r:.80}, but must be a number of at least 0")
    return Answer(identity, read(text).label, str(row.get("author") or author), paid)


def _reason(ledger: AnnotationLedger, answer: Answer, outcome: Outcome) -> str:
    if outcome is Outcome.CONFLICT:
        standing = ledger.label(answer.prompt_id) or {}
        return (
            f"conflict: {ledger.author(answer.prompt_id)} answered {standing.get(ledger.label_column)!r} before; "
            "import with --replace to change it"
        )
    if outcome is Outcome.OVER_BUDGET:
        return f"over budget: all {ledger.budget} labels are bought"
    return "unknown prompt: it is not in the pool of this run"
