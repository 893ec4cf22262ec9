"""The first responses of a trainer's policy to its pool: generated, reused from a triage, or read again."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from transformers.utils import logging

from ..answers import AnswerFormat
from ..processes import Processes
from ..scoring.survey import GREEDY, SAMPLES, Responses, Survey, with_agreement
from .gate import say
from .parallelism import whole_model
from .policy import TrainerPolicy


logger = logging.get_logger(__name__)


class TrainerSurvey:
    """
    A survey with a trainer's policy, in a folder where a triage may have left its own. A score that reads the
    agreement needs a group of responses per prompt, of which the first is traced.
    """

    def __init__(
        self,
        trainer: Any,
        folder: Path,
        prompts: Sequence[Any],
        answer_format: AnswerFormat,
        signals: Collection[str],
        processes: Processes,
    ):
        self._trainer, self._folder, self._processes = trainer, folder, processes
        self._reads_agreement = "agreement" in signals
        size = trainer.num_generations if self._reads_agreement else 1
        self._survey = Survey(folder / "training", TrainerPolicy(trainer), prompts, answer_format, signals, size)

    def run(self) -> Responses:
        """Reuse the responses of a triage, or answer and trace what is not finished. All processes must call it."""
        progress = not self._trainer.args.disable_tqdm
        with whole_model(self._trainer, self._processes):
            found = self._adopt(progress)
            return self._survey.run(self._processes, progress) if found is None else found

    def load(self, identity: str, checkpoint: Path) -> Responses | None:
        """Read what the process used that saved a checkpoint, see [`Survey.load`]; it is told where that is gone."""
        responses = self._load(identity)
        if responses is None:
            logger.warning(
                f"{self._folder.parent} does not hold the first responses of the run that saved {checkpoint}, or they "
                "answer prompts in other words: labels that are bought from now on do not tell whether those were "
                "right."
            )
        return responses

    def _load(self, identity: str) -> Responses | None:
        greedy, _, samples = identity.partition("+")
        responses = self._survey.load(identity) or self._survey.load(greedy, self._folder / GREEDY)
        if responses is None or not samples:
            return responses
        sampled = self._survey.load(samples, self._folder / SAMPLES, is_traced=False)
        return None if sampled is None else with_agreement(responses, sampled)

    def _adopt(self, progress: bool) -> Responses | None:
        """The responses of a triage, if there are any that can be used. Prints which is the case."""
        triaged = self._folder / GREEDY
        if not self._processes.on_main(lambda: triaged.is_dir() and not self._survey.is_begun()):
            return None
        responses = self._survey.adopt(triaged, self._processes, progress)
        if self._reads_agreement and isinstance(responses, Responses):
            samples = self._survey.adopt(self._folder / SAMPLES, self._processes, progress, is_traced=False)
            responses = samples if isinstance(samples, str) else with_agreement(responses, samples)
        told = f"PivotTrace: the responses that a triage left in {self._folder} are"
        if isinstance(responses, Responses):
            told = f"{told} used: nothing is answered again"
        else:
            told = f"{told} not used, since {responses}: the pool is answered anew"
        if self._processes.is_main:
            say(told)
        return responses if isinstance(responses, Responses) else None
