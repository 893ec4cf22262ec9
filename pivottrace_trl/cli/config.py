"""The arguments of the callback as a dataclass, which `trl.TrlParser` reads from YAML and flags."""

import inspect
import json
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from trl import GRPOTrainer, RLOOTrainer

from ..callback import PivotDensityCallback
from ..labels.endpoint import EndpointAnnotator
from ..routing.triage import TriageConfig


# The answer format is that of the run, and a key in a file would be published with it one day.
_NOT_IN_YAML = {"answer_format", "api_key"}


@dataclass
class PivotTraceConfig:
    r"""
    What [`PivotDensityCallback`] is told, as far as YAML can say it. [`~trl.TrlParser`] reads it from a file and from
    flags, beside the configurations of TRL; `pivottrace train` does so. Functions and objects (an annotator, an
    estimator, an answer format or a threshold of your own) are for the callback itself.

    Args:
        annotation_budget (`float`, `int` or `str`, *optional*, defaults to `0.293`):
            What may be bought in all, probes included: a share of the pool, `0.293` or `29.3%`, or a number of
            labels, `300`.
        label_column (`str`, *optional*):
            Column that holds the labels. Defaults to the one column that the reward functions name in their signature.
        free_columns (`list[str]`, *optional*):
            Columns that tell nothing of the label and stay in the training data.
        annotator (`str`, *optional*):
            `"queue"` leaves questions for people. By default the label column, or the `endpoint`, is asked.
        endpoint (`dict` or `str`, *optional*):
            Arguments of an [`EndpointAnnotator`] (`model`, `base_url`, `num_samples`, `price_per_million_tokens`,
            `max_cost` and others), or the same as a JSON object in a text. With `annotator="queue"`, people are asked
            for what the model has no answer to. Its key is in the environment variable `OPENAI_API_KEY`.
        buy (`str`, *optional*, defaults to `"before"`):
            Whether labels are bought `"before"` training sees a prompt, or `"after"` it saw a group of rollouts.
        wait_for_annotations (`float`, *optional*):
            Where people are asked, share of the queue in `(0, 1]` that must be answered before training goes on.
        estimator (`str`, *optional*):
            Name of the uncertainty score in [`ESTIMATORS`]. Defaults to that of the callback.
        probe_size (`int`, *optional*):
            Number of labels spent on the probe set, see [`TriageConfig`].
        tau_high (`float`, *optional*, defaults to `0.85`):
            Probability of success from which prompts count as mastered.
        tau_low (`float`, *optional*, defaults to `0.5`):
            Probability of failure above which a majority vote is not trusted.
        min_agreement (`float`, *optional*, defaults to `0.75`):
            Share of a group that must give the majority answer before it is used as a pseudo-label.
        discard_ratio (`float`, *optional*):
            Share of the pool to discard from the bottom of the ranking, instead of by `tau_high`.
        reroutes (`bool`, *optional*, defaults to `True`):
            Whether the routes are computed again at the start of each epoch.
        answer_format (`str`, *optional*, defaults to `"math"`):
            What an answer is: `"math"`, `"number"`, `"choice"`, `"choice:yes,no"`, `"text"`, or a format of yours as
            `"package.module:attribute"`.
        success_threshold (`float`, *optional*):
            Reward of the function that reads the label from which a response counts as right. Defaults to 0.5.
        id_column (`str`, *optional*):
            Column of texts or whole numbers that tell the prompts apart.
        question_column (`str`, *optional*):
            Column that holds the bare questions.
        instruction (`str`, *optional*):
            What stands at the beginning or the end of every prompt beside its question.

    Raises:
        ValueError: for an `endpoint` that is no mapping, or that [`EndpointAnnotator`] does not know. The other values
            are checked when the callback is made.

    Example:
    ```python
    >>> from pivottrace_trl import PivotTraceConfig
    >>> from trl import GRPOConfig, TrlParser

    >>> args, pivottrace = TrlParser((GRPOConfig, PivotTraceConfig)).parse_args_and_config()
    >>> trainer = GRPOTrainer(model=..., reward_funcs=accuracy_reward, args=args, train_dataset=dataset)
    >>> trainer.add_callback(pivottrace.make_callback(trainer))
    >>> trainer.train()
    ```
    """

    # Read by the parser: these options stand together in `--help`.
    _argument_group_name = "PivotTrace"

    # `str` stands second and `None` last because of the parser, which takes this for the type of the flag: texts stay
    # texts, so that `1` is one label and `1.0` the whole pool. `None` is refused.
    annotation_budget: float | str | int | None = field(
        default=0.293,
        metadata={
            "help": "What may be bought in all: a share of the pool (0.293, 29.3%%) or a number of labels (300)"
        },
    )
    label_column: str | None = field(
        default=None,
        metadata={"help": "Column with the labels. By default the one column that the reward functions name."},
    )
    free_columns: list[str] = field(
        default_factory=list,
        metadata={"help": "Columns that tell nothing of the label; all others but `prompt` are locked up with it."},
    )
    annotator: Literal["queue"] | None = field(
        default=None, metadata={"help": "`queue` leaves questions for people. By default the label column is asked."}
    )
    endpoint: dict | str | None = field(
        default=None,
        metadata={
            "help": "A model that is asked for labels: arguments of `EndpointAnnotator`, as a mapping in YAML or as "
            'JSON, such as {"model": "gpt-5", "max_cost": 20}. Its key is in OPENAI_API_KEY.'
        },
    )
    buy: Literal["before", "after"] = field(
        default="before",
        metadata={"help": "Buy labels before training sees a prompt, or after it saw a group of rollouts."},
    )
    wait_for_annotations: float | None = field(
        default=None,
        metadata={"help": "Share of the queue that people must have answered before training goes on."},
    )
    estimator: str | None = field(
        default=None,
        metadata={"help": "Name of the uncertainty score, total_entropy if none is given; an unknown name lists all."},
    )
    probe_size: int | None = field(
        default=None, metadata={"help": "Labels spent on calibration; 32, or half the budget, if it is not given."}
    )
    tau_high: float = field(
        default=0.85, metadata={"help": "Probability of success from which prompts count as mastered."}
    )
    tau_low: float = field(
        default=0.5, metadata={"help": "Probability of failure above which a majority vote is not trusted."}
    )
    min_agreement: float = field(
        default=0.75, metadata={"help": "Share of a group that must agree before its vote is used as a label."}
    )
    discard_ratio: float | None = field(
        default=None, metadata={"help": "Share of the pool to discard, instead of by `tau_high`."}
    )
    reroutes: bool = field(
        default=True, metadata={"help": "Whether the routes are computed again at the start of each epoch."}
    )
    answer_format: str = field(
        default="math",
        metadata={
            "help": "How answers are found, read and compared: math, number, choice, choice:yes,no, text, or a format "
            "of yours as package.module:attribute."
        },
    )
    success_threshold: float | None = field(
        default=None, metadata={"help": "Reward from which a response counts as right; 0.5 if it is not given."}
    )
    id_column: str | None = field(
        default=None, metadata={"help": "Column of texts or whole numbers that tell the prompts apart."}
    )
    question_column: str | None = field(
        default=None, metadata={"help": "Column with the bare questions, where prompts hold more than these."}
    )
    instruction: str | None = field(
        default=None,
        metadata={"help": "What stands at the beginning or the end of every prompt beside its question."},
    )

    def __post_init__(self) -> None:
        known = [name for name in inspect.signature(EndpointAnnotator).parameters if name not in _NOT_IN_YAML]
        given = self.endpoint
        if isinstance(given, str):
            try:
                self.endpoint = json.loads(given)
            except json.JSONDecodeError:
                pass  # no mapping either
        if self.endpoint is None:
            return
        if not isinstance(self.endpoint, dict) or "model" not in self.endpoint or not self.endpoint.keys() <= {*known}:
            raise ValueError(
                f"`endpoint` is {given!r:.200}, but must be a mapping with a `model`, and may have {known}. Its key "
                "is read from the environment variable OPENAI_API_KEY, and answers by the `answer_format` of the run."
            )

    def make_callback(self, trainer: GRPOTrainer | RLOOTrainer) -> PivotDensityCallback:
        """
        The callback for a trainer, which is still to be added: `trainer.add_callback(config.make_callback(trainer))`.

        Args:
            trainer ([`~trl.GRPOTrainer`] or [`~trl.RLOOTrainer`]):
                The trainer, before `train()`.

        Returns:
            [`PivotDensityCallback`]

        Raises:
            ValueError: and all else that making a [`PivotDensityCallback`] raises.
        """
        options: dict[str, Any] = {part.name: getattr(self, part.name) for part in fields(self)}
        triage = TriageConfig(**{part.name: options.pop(part.name) for part in fields(TriageConfig)})
        if (endpoint := options.pop("endpoint")) is not None:
            model = EndpointAnnotator(answer_format=self.answer_format, **endpoint)
            options["annotator"] = model if self.annotator is None else [model, self.annotator]
        return PivotDensityCallback(trainer, config=triage, **options)
