"""A response to every prompt of a pool, with its trace; an interrupted survey goes on where it stopped."""

import hashlib
import json
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from ..answers import AnswerFormat
from ..answers.vote import vote_on
from ..processes import BatchFolder, Processes, SharedWork
from ..tracing.rollouts import Rollout, even_batches, generate_rollouts
from ..tracing.trace import ResponseTrace


# Prompts that are tokenized at a time, which bounds the memory of the messages.
_NUM_TOKENIZED = 10_000


class Policy(Protocol):
    """Who answers prompts: the model that a trainer trains, or a bare one."""

    @property
    def batch_size(self) -> int:
        """Prompts of one call of `generate`, at most."""
        ...

    def tokenize(self, prompts: Sequence[Any]) -> list[list[int]]:
        """Token ids of prompts."""
        ...

    def generate(self, prompt_ids: list[list[int]], number: int) -> list[list[int]]:
        """One response to each prompt of a batch, whose number seeds what is drawn."""
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
        """What decides the responses to given prompts, as plain values."""
        ...


@dataclass(frozen=True)
class Responses:
    """
    What a survey found, one entry a prompt. Of several processes, only rank 0 gets texts, answers and traces; they are
    empty on the others.

    Attributes:
        rollouts (`list[Rollout]`): the first response to each prompt.
        texts (`list[str]`): their texts.
        answers (`list[str | None]`): the final answers found in them.
        votes (`list[str | None]`): the majority's answer where there are several responses, else the same.
        agreement (`list[float]`): share of the responses that give the majority's answer; `None` if there is one each.
        traces (`list[ResponseTrace]`): of the first responses.
        heads (`dict[int, list[int]]`): query heads that were traced, per layer index.
        num_tokens (`int`): tokens of prompts and responses, of all responses.
        seconds (`dict[str, float]`): time that `generation` and `tracing` took.
        identity (`str`): 16 hexadecimal digits of what the survey was made from: prompts, weights, settings.
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


class Survey:
    """
    Answers every prompt and traces the answers. Finished batches are kept in a folder, and what they were made from
    beside them: where that is the same, they are not made again.

    Args:
        path (`Path`): folder for what is finished.
        policy ([`Policy`]): answers.
        prompts (`Sequence`): the prompts.
        answer_format ([`AnswerFormat`]): finds and compares final answers.
        signals (`Collection[str]`, *optional*): optional signals of the traces; by default nothing is traced.
        num_responses (`int`, *optional*, defaults to 1): responses to each prompt; the first is traced.
        batches (`Sequence[Sequence[int]]`, *optional*): places of the responses that are generated together. Defaults
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
        """Answer and trace what is not finished; all processes call it."""
        processes = processes or Processes()
        prompt_ids = self._tokenize()
        description = {
            "prompts": hashlib.sha256(json.dumps([prompt_ids, self._batches]).encode()).hexdigest(),
            "policy": self._policy.describe(),
            "num_responses": self._num_responses,
            "signals": None if self._signals is None else sorted(self._signals),
        }
        folder = processes.on_main(lambda: BatchFolder(self._path, description))
        return self._collect(prompt_ids, SharedWork(processes, folder), folder.identity or "", progress)

    def load(self, identity: str) -> Responses | None:
        """
        Read what an earlier process finished; `None` if the survey of that identity is not there.

        Raises:
            ValueError: if a part of it is missing.
        """
        folder = BatchFolder(self._path)
        if folder.identity != identity:
            return None
        return self._collect(self._tokenize(), SharedWork(folder=folder, is_finished=True), identity, progress=False)

    def _tokenize(self) -> list[list[int]]:
        starts = range(0, len(self._prompts), _NUM_TOKENIZED)
        chunks = (self._policy.tokenize(self._prompts[start : start + _NUM_TOKENIZED]) for start in starts)
        return [ids for chunk in chunks for ids in chunk]

    def _collect(self, prompt_ids: list[list[int]], work: SharedWork, identity: str, progress: bool) -> Responses:
        progress, size = progress and work.processes.is_main, self._num_responses
        start = time.perf_counter()
        repeated = [ids for ids in prompt_ids for _ in range(size)]
        batches = self._batches or even_batches(repeated, self._policy.batch_size)
        rollouts = generate_rollouts(self._policy.generate, repeated, batches, progress, work)
        generated = time.perf_counter()
        traces: list[ResponseTrace] = []
        heads: dict[int, list[int]] = {}
        if self._signals is not None:
            traces, heads = self._policy.trace(rollouts[::size], self._signals, work, progress)
        seconds = {"generation": generated - start, "tracing": time.perf_counter() - generated}
        texts = self._policy.decode(rollouts) if work.processes.is_main else []
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
            identity=identity,
        )


def add_agreement(traces: Sequence[ResponseTrace], agreement: Sequence[float]) -> list[ResponseTrace]:
    """Traces with the agreement of several responses to each prompt."""
    return [replace(trace, agreement=share) for trace, share in zip(traces, agreement, strict=True)]
