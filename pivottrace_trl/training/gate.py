"""Checks before money is spent: does the reward read the answers that a vote reads, and is the policy ever right?"""

from typing import Any

import numpy as np
from rich.console import Console
from scipy.stats import binomtest
from transformers.utils import logging

from ..routing.calibration import Calibration
from ..scoring.survey import Responses
from .attachment import TrainerAttachment
from .batch_labels import LabelRouter
from .rewards import check_number


logger = logging.get_logger(__name__)

# Largest number of responses on which the reward function is tried, as it may be slow or cost money.
_NUM_ASKED = 64
# Shares of unrewarded responses from which on there is a warning, and from which on nothing is bought.
_SHARE_TO_TELL, _SHARE_TO_STOP = 0.03, 0.9
# Nothing is bought if no response is right, and chance would explain this in at most one of twenty cases for a policy
# that is right once in ten times (once in four for responses that are cut off).
_CHANCE, _RARELY_RIGHT, _RARELY_RIGHT_CUT_OFF = 0.05, 0.1, 0.25


def say(text: str) -> None:
    """Print one line unchanged."""
    Console().print(text, markup=False, highlight=False, soft_wrap=True)


class SpendingGate:
    """
    Decides before labels are bought whether they are worth the money.

    Args:
        attachment ([`TrainerAttachment`]):
            The attached trainer.
        verifier (`int`):
            Index of the reward function that decides whether a response is right.
        label_router ([`LabelRouter`]):
            Converts answers to labels, and knows which rewards count as right. Its router holds the evidence.

    Attributes:
        responses ([`Responses`] or `None`): the first responses to the pool; `None` before there are any.
        verdict (`dict[str, float]`): statistics of the first responses: `probes` (number with a known label), `right`
            (number of these that are right), `cut_off` and `unanswered` (shares of all first responses, in `[0, 1]`).
            Empty before there are any.
        is_scale_unclear (`bool`): whether a reward is not 0, 1 or -1, and the user did not set `success_threshold`.
    """

    def __init__(self, attachment: TrainerAttachment, verifier: int, label_router: LabelRouter):
        self._attachment = attachment
        self._verifier = verifier
        self._label_router = label_router
        self._router = label_router.router
        self.responses: Responses | None = None
        self.verdict: dict[str, float] = {}
        self.is_scale_unclear = False
        self._is_cut_off = np.zeros(0, bool)  # of each first response
        self._is_scale_told = False

    def look_at(self, responses: Responses) -> None:
        """Set the first responses of a run that begins or, after [`load_state_dict`], is resumed."""
        self.responses = responses
        trainer = self._attachment.trainer
        limit, end = trainer.args.max_completion_length, trainer._tokenizer.eos_token_id
        # Computed once, as `objection` is called for every batch if labels are bought during training.
        self._is_cut_off = np.array(
            [len(r.completion_ids) >= limit and r.completion_ids[-1] != end for r in responses.rollouts], bool
        )
        self.verdict = {
            "probes": self.verdict.get("probes", 0),
            "right": self.verdict.get("right", 0),
            "cut_off": float(self._is_cut_off.mean()),
            "unanswered": float(np.mean([answer is None for answer in responses.answers])),
        }

    def check_answers(self) -> None:
        """
        Call the reward function on responses with their own answers as labels, as a vote would make them. This needs
        no bought label. A function that is never shown votes is not called.

        Raises:
            RuntimeError: if the function fails on them.
            ValueError: if it rewards hardly any of them.
        """
        assert self.responses is not None
        if not self._label_router.has_pseudo_labels:
            return
        texts, nothing = self.responses.texts, dict.fromkeys(self._label_router.locked_columns)
        # A response that was cut off has no final answer.
        labels = {
            row: nothing | label
            for row, answer in enumerate(self.responses.answers)
            if answer is not None and not self._is_cut_off[row]
            if (label := self._label_router.label_of(answer)) is not None
        }
        rows = list(labels)
        if len(rows) > _NUM_ASKED:
            rows = [rows[place * len(rows) // _NUM_ASKED] for place in range(_NUM_ASKED)]
        if not rows:
            return
        try:
            rewards = self._reward(rows, [labels[row] for row in rows])
        except Exception as error:
            raise RuntimeError(
                f"{self._name} fails when the label is the answer of the response itself ({type(error).__name__}: "
                f"{error}), as it is for prompts without a bought label. Nothing was bought. Let it return 0 for what "
                "it cannot read, or pass an `answer_format` that finds answers only where they can be labels."
            ) from error
        check_number(self._function, rewards, len(rows))
        unpaid = [place for place, reward in enumerate(rewards) if not self._label_router.is_success(reward)]
        share = len(unpaid) / len(rows)
        if share <= _SHARE_TO_TELL:
            return
        row, reward, column = rows[unpaid[0]], rewards[unpaid[0]], self._label_router.label_column
        message = (
            f"{self._name} does not pay {len(unpaid)} of {len(rows)} responses ({share:.0%}) for their own answer: "
            f"it gives {reward} to {texts[row][-120:]!r} with the label {labels[row][column]!r}, which is what a "
            "vote reads there. Such responses are never rewarded. Ask in the prompt for the form that the reward reads"
            " (`\\boxed{}`, say), pass an `answer_format` that reads what the reward reads, or a `success_threshold` "
            "if its rewards are not 0 and 1."
        )
        is_chance = binomtest(len(unpaid), len(rows), 0.5, alternative="greater").pvalue > _CHANCE
        if share >= _SHARE_TO_STOP and not is_chance:
            raise ValueError(f"{message} Nothing was bought.")
        logger.warning(message)

    def verify(self, rows: list[int]) -> list[bool]:
        """Whether the first response to each row is right, by its label."""
        # A bought label that does not fit the type of its column is not used, and verifies nothing.
        labels = {row: label for row, label in zip(rows, self._label_router.unlocked(rows), strict=True) if label}
        rewards = self._reward(list(labels), list(labels.values())) if labels else []
        check_number(self._function, rewards, len(labels))
        if self._label_router.success_threshold is None and not self._is_scale_told:
            self._check_scale([float(reward) for reward in rewards if reward is not None])
        right = {row for row, reward in zip(labels, rewards, strict=True) if self._label_router.is_success(reward)}
        return [row in right for row in rows]

    def _check_scale(self, rewards: list[float]) -> None:
        values = sorted(set(rewards))
        if set(values) <= {0.0, 1.0}:
            return
        num_right = sum(self._label_router.is_success(reward) for reward in rewards)
        logger.warning(
            f"{self._name} returns other rewards than 0 and 1 ({', '.join(f'{value:.4g}' for value in values[:6])}"
            f"{', ...' if len(values) > 6 else ''}), and {num_right} of {len(rewards)} responses with a bought label "
            "count as right because they get at least 0.5. If that is not what the rewards mean, pass "
            "`success_threshold=`, a number, or a function from a reward to whether it is right."
        )
        self._is_scale_told = True
        self.is_scale_unclear = not set(values) <= {-1.0, 0.0, 1.0}

    def objection(self) -> str | None:
        """The reason why no label should be bought now, given what was verified so far; `None` if there is none."""
        verified = self._router.evidence.num_verified > 0
        num, num_right = self._count(verified)
        share = self.verdict["cut_off"]
        if self.is_scale_unclear and num_right in (0, num):
            return (
                "all rewards lie on one side of 0.5 and are not 0 and 1, so that nothing tells which responses are "
                "right. Pass `success_threshold=`"
            )
        if _are_all_wrong(num_right, num, _RARELY_RIGHT):
            return (
                f"none of {num} responses with a bought label is right. Look at a few responses (does the prompt have "
                "the chat template of the model?), at what the reward function gives to one that is right, and at "
                f"`max_completion_length` ({share:.0%} of the first responses were cut off)"
            )
        if share > 0.5 and self.responses is not None:
            num, num_right = self._count(verified & self._is_cut_off)
            if _are_all_wrong(num_right, num, _RARELY_RIGHT_CUT_OFF):
                return (
                    f"{share:.0%} of the first responses were cut off, and none of {num} such responses with a bought "
                    "label is right. Raise `max_completion_length`, or find out why they do not end"
                )
        return None

    def judge(self, calibration: Calibration) -> None:
        """
        Record the results on the probes, and print them if more probes are known than before.

        Args:
            calibration ([`Calibration`]): calibration of the latest routing.

        Raises:
            RuntimeError: if nothing in the run can be rewarded.
        """
        outcomes = self._router.first_outcomes[self._router.probes]
        outcomes = outcomes[outcomes >= 0].tolist()
        if len(outcomes) <= self.verdict["probes"]:
            return
        self.verdict |= {"probes": len(outcomes), "right": sum(outcomes)}
        interval = binomtest(sum(outcomes), len(outcomes)).proportion_ci(method="wilson")
        ranks = "separates" if calibration.separation > 0.5 and not calibration.is_flat else "does not separate"
        auroc = (
            "all alike, so that nothing can be said of the score"
            if np.isnan(calibration.separation)
            else (f"the score {ranks} right from wrong (AUROC {calibration.separation:.2f})")
        )
        say(
            f"PivotTrace: {sum(outcomes)} of {len(outcomes)} probes right ({np.mean(outcomes):.0%}, 95% interval "
            f"{interval.low:.0%} to {interval.high:.0%}), {auroc}; of all first responses "
            f"{self.verdict['cut_off']:.0%} cut off, {self.verdict['unanswered']:.0%} without an answer"
        )
        # Another reward, such as one for the format, can still train the policy on prompts with bought labels.
        is_alone = len(self._attachment.reward_funcs) == 1
        is_hopeless = _are_all_wrong(sum(outcomes), len(outcomes), _RARELY_RIGHT)
        if is_alone and is_hopeless and self.verdict["unanswered"] == 1.0:
            raise RuntimeError(
                f"Nothing in this run can be rewarded: none of {len(outcomes)} probes is right, and no response holds "
                f"an answer that could be voted on. {self._router.ledger.num_left} labels were not bought. Look at a "
                "few responses, the chat template, `max_completion_length` and the reward function. Where answers "
                "cannot be voted on at all, `TriageConfig(discard_ratio=0.0)` buys without probes."
            )

    def state_dict(self) -> dict[str, Any]:
        """State for a checkpoint, as plain values."""
        return {"verdict": self.verdict, "is_scale_unclear": self.is_scale_unclear}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.verdict, self.is_scale_unclear = dict(state["verdict"]), state["is_scale_unclear"]

    def _count(self, rows: np.ndarray) -> tuple[int, int]:
        """Number of verified rollouts of the given rows, and how many of them were right."""
        evidence = self._router.evidence
        num = evidence.num_verified[rows]
        return int(num.sum()), round(float((num * evidence.pass_rate[rows]).sum()))

    def _reward(self, rows: list[int], labels: list[Any]) -> list[float | None]:
        assert self.responses is not None
        texts, rollouts = self.responses.texts, self.responses.rollouts
        some = [texts[row] for row in rows], [rollouts[row] for row in rows]
        return self._attachment.reward(self._verifier, rows, *some, labels)

    @property
    def _function(self) -> Any:
        return self._attachment.reward_funcs[self._verifier]

    @property
    def _name(self) -> str:
        return f"The reward function `{getattr(self._function, '__name__', type(self._function).__name__)}`"


def _are_all_wrong(num_right: int, num: int, rate: float) -> bool:
    """Whether none of `num` responses is right, although that is unlikely for a policy that is right at this rate."""
    return num_right == 0 and (1 - rate) ** num <= _CHANCE
