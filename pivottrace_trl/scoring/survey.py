"""
Answers every prompt of a pool and traces the responses. An interrupted survey goes on where it stopped, and another
survey may reuse its results.
"""

import hashlib
import json
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa

from ..answers import AnswerFormat
from ..answers.vote import vote_on
from ..processes import BatchFolder, Processes, SharedWork
from ..tracing.rollouts import Rollout, even_batches, generate_rollouts
from ..tracing.trace import ResponseTrace


# Number of prompts tokenized at a time, which bounds the memory for messages.
_NUM_TOKENIZED = 10_000
# Folders, within that of a triage, of a survey with one greedy response per prompt and of one with several samples.
GREEDY, SAMPLES = "greedy", "samples"
_TRACES = "traces"


class Policy(Protocol):
    """A model that answers prompts: the one that a trainer trains, or a bare one."""

    @property
    def batch_size(self) -> int:
        """Largest number of prompts per call of `generate`."""
        ...

    @property
    def temperature(self) -> float:
        """Temperature at which `trace` computes entropies."""
        ...

    @property
    def weights(self) -> str:
        """Identifies the function that the model computes, see [`fingerprint_policy`]."""
        ...

    def tokenize(self, prompts: Sequence[Any]) -> list[list[int]]:
        """Token ids of prompts."""
        ...

    def generate(self, prompt_ids: list[list[int]], number: int) -> list[list[int]]:
        """One response to each prompt of a batch. The number of the batch seeds the sampling."""
        ...

    def decode(self, rollouts: Sequence[Rollout]) -> list[str]:
        """Text of each response."""
        ...

    def trace(
        self, rollouts: Sequence[Rollout], signals: Collection[str], work: SharedWork, progress: bool
    ) -> tuple[list[ResponseTrace], dict[int, list[int]]]:
        """Traces of responses and the heads that were traced, see [`trace_rollouts`]."""
        ...

    def describe(self) -> dict[str, Any]:
        """How responses are drawn, as plain values."""
        ...


@dataclass(frozen=True)
class Responses:
    """
    Results of a survey, one entry per prompt. With several processes, only rank 0 gets texts, answers and traces; they
    are empty on the others.

    Attributes:
        rollouts (`list[Rollout]`): the first response to each prompt.
        texts (`list[str]`): their texts.
        answers (`list[str | None]`): the final answers found in them.
        votes (`list[str | None]`): majority answers if there are several responses per prompt, otherwise `answers`.
        agreement (`list[float]` or `None`): share of the responses that give the majority answer, in `[0, 1]`; `None`
            with one response per prompt.
        traces (`list[ResponseTrace]`): traces of the first responses.
        heads (`dict[int, list[int]]`): query heads that were traced, per layer index.
        num_tokens (`int`): number of tokens of prompts and responses, over all responses.
        seconds (`dict[str, float]`): seconds that `generation` and `tracing` took.
        identity (`str`): 16 hexadecimal digits that identify prompts, weights and settings.
    """

    rollouts: list[Rollout]
    texts: list[str]
    answers: list[str | None]
    votes: list[str | None]
    agreement: list[float] | None
    traces: list[ResponseTrace]
    heads: dict[int, list[int]]
    num_tokens: int
    seconds: dict[str, float]
    identity: str

    def select(self, rows: Sequence[int]) -> "Responses":
        """The responses to the prompts of the given rows, in that order."""
        whole: dict[str, Any] = {
            name: [values[row] for row in rows]
            for name in ("rollouts", "texts", "answers", "votes", "agreement", "traces")
            if (values := getattr(self, name))
        }
        return replace(self, **whole)


class Survey:
    """
    Answers every prompt and traces the responses. Finished batches are stored in a folder, together with a description
    of their inputs; if these are the same, the batches are reused. Traces are stored apart from the responses, so that
    another score, which reads other signals, needs no new responses.

    Args:
        path (`Path`): folder for finished batches.
        policy ([`Policy`]): the model that answers.
        prompts (`Sequence`): the prompts.
        answer_format ([`AnswerFormat`]): finds and compares final answers.
        signals (`Collection[str]`, *optional*): optional signals of the traces. By default nothing is traced.
        num_responses (`int`, *optional*, defaults to 1): number of responses to each prompt. The first is traced.
        batches (`Sequence[Sequence[int]]`, *optional*): indices of the responses that are generated together. Defaults
            to [`even_batches`].
    """

    def __init__(
        self,
        path: Path,
        policy: Policy,
        prompts: Sequence[Any],
        answer_format: AnswerFormat,
        signals: Collection[str] | None = None,
        num_responses: int = 1,
        batches: Sequence[Sequence[int]] | None = None,
    ):
        self._path, self._policy, self._prompts, self._answer_format = path, policy, prompts, answer_format
        self._signals, self._num_responses, self._batches = signals, num_responses, batches

    def run(self, processes: Processes | None = None, progress: bool = True) -> Responses:
        """Answer and trace everything that is not finished yet. All processes must call it."""
        processes = processes or Processes()
        kept = processes.on_main(self._begin)
        return self._collect(kept, self._signals, processes, progress)

    def is_begun(self) -> bool:
        """Whether the folder holds results of `run`, complete or not."""
        return BatchFolder(self._path).description == self._describe()

    def load(self, identity: str, path: Path | None = None, is_traced: bool = True) -> Responses | None:
        """
        Read the results that an earlier process used, from this folder or from one whose responses it reused. Returns
        `None` if there is no survey with that identity, its traces have other signals, or the tokens of its prompts
        differ.

        Raises:
            ValueError: if a part of the survey is missing.
        """
        folder, signals = BatchFolder(path or self._path), self._signals if is_traced else None
        if folder.identity != identity:
            return None
        kept = _read(folder)
        if self._num_others(kept):
            return None
        if signals is not None and _traces(kept).description != self._describe_traces(kept, signals):
            return None
        return self._ordered(kept, self._collect(kept, signals, Processes(), progress=False, is_finished=True))

    def adopt(
        self, path: Path, processes: Processes | None = None, progress: bool = True, is_traced: bool = True
    ) -> Responses | str:
        """
        Reuse the responses of another survey's folder, or return the reason why they cannot be used. All processes
        must call it. Traces are made again if they lack a signal or have another temperature.
        """
        processes = processes or Processes()
        kept = processes.on_main(lambda: self._compare(BatchFolder(path)))
        if isinstance(kept, str):
            return kept
        return self._ordered(kept, self._collect(kept, self._signals if is_traced else None, processes, progress))

    def _compare(self, folder: BatchFolder) -> "_Kept | str":
        """
        The results of another survey, or the reason why they cannot be used. The tokens of the prompts and the model's
        function must be the same. Sampling settings and the order of prompts may differ, and the other survey may have
        answered more prompts.
        """
        if folder.description is None or not folder.holds("prompts", 1):
            return "there are none"
        if folder.description["weights"] != self._policy.weights:
            return "they are by other weights"
        kept = _read(folder)
        if others := self._num_others(kept):
            return f"{others} of {len(self._prompt_ids)} prompts are not, to the token, among those that it answered"
        if not folder.holds("responses", len(kept.batches())):
            return "they are not complete"
        return kept

    def _num_others(self, kept: "_Kept") -> int:
        """Number of prompts, compared by tokens, that the other survey has not answered."""
        asked = set(map(tuple, kept.prompt_ids))
        return sum(tuple(ids) not in asked for ids in self._prompt_ids)

    @cached_property
    def _prompt_ids(self) -> list[list[int]]:
        starts = range(0, len(self._prompts), _NUM_TOKENIZED)
        chunks = (self._policy.tokenize(self._prompts[start : start + _NUM_TOKENIZED]) for start in starts)
        return [ids for chunk in chunks for ids in chunk]

    def _describe(self) -> dict[str, Any]:
        return {
            "prompts": hashlib.sha256(json.dumps([self._prompt_ids, self._batches]).encode()).hexdigest(),
            "weights": self._policy.weights,
            "num_responses": self._num_responses,
            "batch_size": self._policy.batch_size,
            "sampling": self._policy.describe(),
        }

    def _describe_traces(self, kept: "_Kept", signals: Collection[str]) -> dict[str, Any]:
        """The inputs of the traces. Existing signals are kept, so that scores can alternate."""
        made_from = {"responses": kept.identity, "temperature": self._policy.temperature}
        found = _traces(kept).description or {}
        is_alike = made_from.items() <= found.items()
        return made_from | {"signals": sorted({*signals, *(found["signals"] if is_alike else ())} - {"agreement"})}

    def _begin(self) -> "_Kept":
        folder = BatchFolder(self._path, self._describe())
        if not folder.holds("prompts", 1):
            folder.save("prompts", 0, pa.table({"prompt_ids": pa.array(self._prompt_ids, pa.list_(pa.int32()))}))
        return _Kept(
            folder.path, folder.identity or "", self._prompt_ids, self._num_responses, self._policy.batch_size
        )

    def _collect(
        self,
        kept: "_Kept",
        signals: Collection[str] | None,
        processes: Processes,
        progress: bool,
        is_finished: bool = False,
    ) -> Responses:
        progress, size = progress and processes.is_main, kept.num_responses
        start = time.perf_counter()
        work = SharedWork(processes, BatchFolder(kept.path), is_finished)
        batches = self._batches or kept.batches()
        rollouts = generate_rollouts(self._policy.generate, kept.repeated_ids(), batches, progress, work)
        generated = time.perf_counter()
        traces: list[ResponseTrace] = []
        heads: dict[int, list[int]] = {}
        if signals is not None:
            made_from = processes.on_main(lambda: self._describe_traces(kept, signals))
            folder = processes.on_main(lambda: BatchFolder(kept.path / _TRACES, made_from))
            work = SharedWork(processes, folder, is_finished)
            traces, heads = self._policy.trace(rollouts[::size], made_from["signals"], work, progress)
        seconds = {"generation": generated - start, "tracing": time.perf_counter() - generated}
        texts = self._policy.decode(rollouts) if processes.is_main else []
        answers = votes = [self._answer_format.extract(text) for text in texts]
        agreement = None
        if size > 1:
            groups = [answers[start : start + size] for start in range(0, len(answers), size)]
            outcomes = [vote_on(group, self._answer_format) for group in groups]
            votes, agreement = [vote.answer for vote in outcomes], [vote.agreement for vote in outcomes]
        if agreement and traces:
            traces = add_agreement(traces, agreement)
        return Responses(
            rollouts=rollouts[::size],
            texts=texts[::size],
            answers=answers[::size],
            votes=votes,
            agreement=agreement,
            traces=traces,
            heads=heads,
            num_tokens=sum(len(rollout.prompt_ids) + len(rollout.completion_ids) for rollout in rollouts),
            seconds=seconds,
            identity=kept.identity,
        )

    def _ordered(self, kept: "_Kept", responses: Responses) -> Responses:
        """The responses in the order of this survey's prompts."""
        if kept.prompt_ids == self._prompt_ids:
            return responses
        place = {tuple(ids): number for number, ids in enumerate(kept.prompt_ids)}
        return responses.select([place[tuple(ids)] for ids in self._prompt_ids])


@dataclass(frozen=True)
class _Kept:
    """A survey as it is stored in a folder: its prompts and its batches."""

    path: Path
    identity: str
    prompt_ids: list[list[int]]
    num_responses: int
    batch_size: int

    def repeated_ids(self) -> list[list[int]]:
        return [ids for ids in self.prompt_ids for _ in range(self.num_responses)]

    def batches(self) -> list[list[int]]:
        return even_batches(self.repeated_ids(), self.batch_size)


def _read(folder: BatchFolder) -> _Kept:
    made_from = folder.description or {}
    prompt_ids = folder.load("prompts")[0]["prompt_ids"].to_pylist()
    return _Kept(folder.path, folder.identity or "", prompt_ids, made_from["num_responses"], made_from["batch_size"])


def _traces(kept: _Kept) -> BatchFolder:
    return BatchFolder(kept.path / _TRACES)


def with_agreement(responses: Responses, samples: Responses) -> Responses:
    """Responses with the agreement of several other samples per prompt added to their traces."""
    seconds = responses.seconds["generation"] + samples.seconds["generation"]
    return replace(
        responses,
        traces=add_agreement(responses.traces, samples.agreement or ()),
        num_tokens=responses.num_tokens + samples.num_tokens,
        seconds=responses.seconds | {"generation": seconds},
        identity=f"{responses.identity}+{samples.identity}",
    )


def add_agreement(traces: Sequence[ResponseTrace], agreement: Sequence[float]) -> list[ResponseTrace]:
    """Traces with the agreement of several responses per prompt added."""
    return [replace(trace, agreement=share) for trace, share in zip(traces, agreement, strict=True)]
