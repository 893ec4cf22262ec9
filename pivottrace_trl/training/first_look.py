"""The policy's first responses to a pool, by which it is scored before training."""

import hashlib
import json
from functools import cached_property
from pathlib import Path
from typing import Any

from ..answers import AnswerFormat
from ..answers.vote import vote_on
from ..files import replace_atomically
from ..processes import PartsFolder, Processes, SharedWork
from ..scoring.scorer import PoolScorer
from ..tracing.rollouts import Rollout
from ..tracing.trace import ResponseTrace
from .attachment import TrainerAttachment
from .parallelism import fingerprint_weights, whole_model


_RUN = "began.json"


class FirstLook:
    """
    One response to each prompt, with its trace. What is finished is kept in a folder: an interrupted look goes on
    there, and a run that is resumed reads what it needs of it.

    Args:
        path (`Path`):
            Folder for what is finished.
        attachment ([`TrainerAttachment`]):
            The trainer, with its pool and its generation engine.
        scorer ([`PoolScorer`]):
            Traces the responses.
        answer_format ([`AnswerFormat`]):
            Finds and compares final answers.
    """

    def __init__(
        self,
        path: Path,
        attachment: TrainerAttachment,
        scorer: PoolScorer,
        answer_format: AnswerFormat,
    ):
        self._path = path
        self._attachment = attachment
        self._scorer = scorer
        self._answer_format = answer_format
        # A score that reads agreement needs a group of responses to each prompt; the first of them is traced.
        self._size = attachment.trainer.num_generations if "agreement" in scorer.needs else 1
        self._work = SharedWork()

    def take(self, processes: Processes) -> None:
        """
        Answer and trace what has not been answered and traced; all processes call it.

        Args:
            processes ([`Processes`]): who shares the work; only rank 0 has the traces afterwards.
        """
        with whole_model(self._attachment.trainer, processes) as model:
            made_from: dict[str, Any] = {
                "prompts": hashlib.sha256(json.dumps(self._prompts).encode()).hexdigest(),
                "weights": fingerprint_weights(model),
                "generation": self._attachment.describe_generation(),
                "num_responses": self._size,
                "signals": sorted(self._scorer.needs),
            }
            self._work = SharedWork(processes, processes.on_main(lambda: PartsFolder(self._path, made_from)))
            _ = self.traces

    def reopen(self, identity: str) -> bool:
        """
        Read what an earlier process of the same run finished, when it is needed.

        Args:
            identity (`str`): [`~FirstLook.identity`] of the run.

        Returns:
            `bool`: whether it is there.
        """
        folder = PartsFolder(self._path)
        self._work = SharedWork(folder=folder, is_finished=True)
        return folder.identity == identity

    @property
    def identity(self) -> str:
        """16 hexadecimal digits of what the look was made from: prompts, weights, settings."""
        return PartsFolder(self._path).identity or ""

    @cached_property
    def _prompts(self) -> list[list[int]]:
        return self._attachment.tokenize()

    @cached_property
    def _responses(self) -> list[Rollout]:
        """All responses, those to one prompt following each other."""
        return self._attachment.generate([ids for ids in self._prompts for _ in range(self._size)], self._work)

    @cached_property
    def _texts(self) -> list[str]:
        return self._attachment.decode(self._responses)

    @property
    def rollouts(self) -> list[Rollout]:
        """One response per prompt."""
        return self._responses[:: self._size]

    @property
    def texts(self) -> list[str]:
        """Their texts."""
        return self._texts[:: self._size]

    @cached_property
    def _answers(self) -> list[str | None]:
        return [self._answer_format.extract(text) for text in self._texts]

    @property
    def answers(self) -> list[str | None]:
        """The final answers found in them."""
        return self._answers[:: self._size]

    @cached_property
    def traces(self) -> list[ResponseTrace]:
        """Their traces; empty ones on other ranks than 0."""
        is_shown = self._work.processes.is_main and not self._attachment.trainer.args.disable_tqdm
        return self._scorer.trace(self._attachment.model, self.rollouts, is_shown, self._work)

    @property
    def num_tokens(self) -> int:
        """Tokens of prompts and responses, of all responses."""
        return sum(len(rollout.prompt_ids) + len(rollout.completion_ids) for rollout in self._responses)

    def vote(self) -> tuple[list[str | None], list[float] | None]:
        """
        Find the answers.

        Returns:
            Tuple of the final answer to each prompt (the majority's, if there are several responses) and the agreement
            of the responses to each, `None` if there is one.
        """
        answers = self._answers
        if self._size == 1:
            return answers, None
        groups = [answers[start : start + self._size] for start in range(0, len(answers), self._size)]
        votes = [vote_on(group, self._answer_format) for group in groups]
        return [vote.answer for vote in votes], [vote.agreement for vote in votes]

    def begin_run(self, last_event: int) -> int:
        """
        Note that a run begins with this look, unless one did that was interrupted before its first checkpoint: that
        one goes on.

        Args:
            last_event (`int`): the latest event of the ledger.

        Returns:
            `int`: the latest event of the ledger when the run began.
        """
        path = self._path / _RUN
        run = json.loads(path.read_text()) if path.is_file() else {"is_over": True}
        if run["is_over"]:
            run = {"start": last_event, "is_over": False}
            replace_atomically(path, lambda temporary: temporary.write_text(json.dumps(run)))
        return run["start"]

    def end_run(self) -> None:
        """Note that the run came to its end, so that another one is not taken for its continuation."""
        text = json.dumps({"is_over": True})
        replace_atomically(self._path / _RUN, lambda temporary: temporary.write_text(text))
