"""The policy's attempts with their pivots, for the people who answer."""

from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

import numpy as np
import pyarrow as pa
from transformers import PreTrainedTokenizerBase

from ..files import write_parquet
from ..tracing.pivots import find_pivots
from ..tracing.rollouts import Rollout
from ..tracing.trace import ResponseTrace


# Tokens from one place where the text is compared to the next; over how many a character may be split; how many are
# decoded for one place, at most.
_STRIDE, _SPLIT, _LONGEST = 32, 4, 256
_BROKEN = "\ufffd"


class _Reader:
    """Decodes from the last place on where the text of the tokens agreed with the text of the whole response."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, ids: list[int]):
        self._decode, self._ids = cast(Callable[[list[int]], str], tokenizer.decode), ids
        self.text = self._decode(ids)
        # The text of all tokens before `_start` has `_length` characters. Decoding begins at `_before`, some tokens
        # earlier: what is made of a token may depend on the few before it, and the first often loses its space.
        self._before, self._start, self._length = 0, 0, 0
        self._known = ""

    def go_to(self, end: int, length: int) -> None:
        """Go on from a place that agrees, see [`~_Reader.next_agreement`]."""
        self._before = self._start if end - self._start < _STRIDE + _SPLIT else end - _STRIDE
        self._start, self._length = end, length
        self._known = self._decode(self._ids[self._before : end])

    def next_agreement(self) -> tuple[int, int]:
        """The next such place, at least a stride on, and the number of characters before it."""
        stride, found = _STRIDE, None
        while found is None:
            stride, low = stride * 2, self._start + stride
            found = self._agreement_at(low)
        # Where bytes that are no text made the step a long one: back to where the text begins again.
        low = max(self._start + _STRIDE, self._start + stride // 4)
        while found[0] - low > _STRIDE + _SPLIT:
            middle = (low + found[0]) // 2
            low, found = (low, earlier) if (earlier := self._agreement_at(middle)) else (middle, found)
        return found

    def _agreement_at(self, start: int) -> tuple[int, int] | None:
        """A place from `start` on, as far as a character may be split, and the number of characters before it."""
        for place in range(start, min(start + _SPLIT, len(self._ids))):
            added = self._read(place)
            if added is not None and not added.endswith(_BROKEN) and self.text.startswith(added, self._length):
                return place, self._length + len(added)
        return (len(self._ids), len(self.text)) if start + _SPLIT > len(self._ids) else None

    def length_before(self, place: int, end: int, end_length: int) -> int:
        """Number of characters before a place that lies before `end`, the next agreement."""
        nearest = range(place, min(place + _SPLIT, end)) if place - self._before <= _LONGEST else ()
        for later in nearest:
            added = self._read(later)
            # A character of which a part is still to come counts: its first token stands for it.
            if added is not None and self.text.startswith(added.removesuffix(_BROKEN), self._length):
                return self._length + len(added)
        # Before the end, or among bytes that are no text: each is shown as a character.
        return end_length if end - place < _SPLIT else min(self._length + place - self._start, end_length)

    def _read(self, end: int) -> str | None:
        text = self._decode(self._ids[self._before : end])
        return text[len(self._known) :] if text.startswith(self._known) else None


def text_places(
    tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], places: Sequence[int]
) -> tuple[str, list[int]]:
    """
    Decode a response, and find how many characters of its text stand before some of its tokens (places from 0 to
    `len(ids)`). Tokens decoded one by one would lose their spaces and the characters that are split over several;
    decoding all that comes before each takes quadratic time. So only the tokens shortly before a place are decoded.
    """
    reader = _Reader(tokenizer, list(ids))
    lengths = {len(ids): len(reader.text)}
    wanted = deque(sorted(set(places) - lengths.keys()))
    while wanted:
        end, end_length = reader.next_agreement()
        while wanted and wanted[0] < end:
            place = wanted.popleft()
            lengths[place] = reader.length_before(place, end, end_length)
        reader.go_to(end, end_length)
    return reader.text, [lengths[place] for place in places]


def write_attempts(
    path: Path,
    prompt_ids: Sequence[str],
    rollouts: Sequence[Rollout],
    traces: Sequence[ResponseTrace],
    threshold: float,
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    """Write the text of each response, one a prompt, and where its pivots stand in it, as Parquet."""
    texts, starts, ends = [], [], []
    for rollout, trace in zip(rollouts, traces, strict=True):
        pivots = np.flatnonzero(find_pivots(trace.long_range_mass, threshold)).tolist() if len(trace) else []
        text, places = text_places(tokenizer, rollout.completion_ids, pivots + [place + 1 for place in pivots])
        texts.append(text)
        starts.append(places[: len(pivots)])
        ends.append(places[len(pivots) :])
    spans = pa.list_(pa.int32())
    columns = {
        "prompt_id": list(prompt_ids),
        "text": texts,
        "pivot_start": pa.array(starts, spans),
        "pivot_end": pa.array(ends, spans),
    }
    write_parquet(path, columns)
