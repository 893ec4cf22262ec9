"""The two lines: a callback that routes the data of a `GRPOTrainer` or an `RLOOTrainer`."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from datasets import Dataset
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.utils import logging
from trl import GRPOTrainer, RLOOTrainer

from .answers import AnswerFormat
from .answers.format import check_name, resolve_format
from .estimators import Estimator
from .estimators.base import check_probes
from .files import PRIVATE_FOLDER
from .labels.ledger import AnnotationLedger
from .labels.oracles import Annotator, resolve_annotator
from .labels.state import LedgerView
from .labels.waiting import People, check_share
from .pool import Questions
from .processes import Processes
from .report.attempts import write_attempts
from .report.messages import RunSetup, describe_start, name_annotator
from .report.model_card import amend_model_card
from .report.run import RunReport
from .report.trackers import Trackers
from .routing.purchases import GroupBuyer, check_buy
from .routing.router import PoolRouter
from .routing.sampler import PivotRoutedSampler
from .routing.triage import Route, TriageConfig, TriageResult, resolve_budget
from .scoring.scorer import PoolScorer, SurveyExaminer
from .scoring.survey import Responses
from .tracing.response_tracer import ResponseTracer
from .training.attachment import TrainerAttachment
from .training.batch_labels import LabelRouter, check_success_threshold
from .training.checkpoint import begin_run, end_run, load_suggestions, save_suggestions
from .training.checks import check_is_added, check_trainer
from .training.fresh_scores import FreshScores
from .training.gate import SpendingGate, say
from .training.run_state import Position, RunState, open_ledger
from .training.survey import TrainerSurvey
from .training.trainer_pool import read_pool


logger = logging.get_logger(__name__)

_SUGGESTIONS, _SURVEY, _RUN = "suggestions.parquet", "survey", "began.json"


class PivotDensityCallback(TrainerCallback):
    """
    Lets a [`~trl.GRPOTrainer`] or an [`~trl.RLOOTrainer`] choose the prompts of an unlabelled pool that deserve a
    label (PivotTrace, arXiv 2606.04503).

    The constructor removes everything but `prompt` and `free_columns` from the trainer's dataset. When training
    starts, the policy answers every prompt once, the responses are traced, a probe set is annotated, and every prompt
    gets a [`Route`]. At the start of each epoch, the routes are computed again from the rollouts of training, which
    are traced in the forward passes of the loss.

    Args:
        trainer ([`~trl.GRPOTrainer`] or [`~trl.RLOOTrainer`]):
            The trainer, before `train()` is called.
        annotation_budget (`float`, `int` or `str`, *optional*, defaults to `0.293`):
            How much may be bought in all, probes included: a number of labels as an `int`, or a share of the pool in
            `(0, 1]` as a `float` or as `"30%"`. With an `annotator`, it is a share of the rows without a label.
        label_column (`str`, *optional*):
            Column that holds the labels. Defaults to the one column that the reward functions name in their signature.
        free_columns (`Sequence[str]`, *optional*):
            Columns that tell nothing about the label, and stay in the training data. All others but `prompt` are
            locked up with the label, and returned only with a bought one. Include `prompt` if prompts may contain
            their label, as multiple-choice questions contain the text of each choice.
        annotator (`Callable[[list[dict]], list]`, [`Oracle`], `"queue"`, or a list of these, *optional*):
            Source of labels: a function that takes a list of rows (prompt and free columns) and returns one answer per
            row, `None` for no answer; or an object such as an [`EndpointAnnotator`], whose answers are recorded as
            they come. `"queue"` leaves questions in the ledger, for people to answer at the desk or through files;
            answers that arrive during training are used from the next epoch on. In a list, each annotator gets the
            questions that those before it did not answer, people last. With an annotator, labels in the label column
            are your own: they calibrate and train at no cost. By default, labels are bought from the label column.
        buy (`str`, *optional*, defaults to `"before"`):
            When labels are bought: `"before"` training on a prompt, at each routing; or `"after"` its group of
            rollouts, batch by batch, in the order of their value (see [`label_value`]), which excludes people.
        wait_for_annotations (`float`, *optional*):
            If people are asked, share of the queue in `(0, 1]` that must be answered before training goes on, for the
            probes and after each routing. By default training does not wait.
        estimator ([`Estimator`] or `str`, *optional*):
            The uncertainty score, or its name in [`ESTIMATORS`]. Defaults to [`TotalEntropy`].
        config ([`TriageConfig`], *optional*):
            Probe set and thresholds.
        answer_format ([`AnswerFormat`] or `str`, *optional*, defaults to `"math"`):
            Form of the answers: `"math"`, `"number"`, `"choice"` (the letters A to E; `"choice:yes,no"` for others),
            `"text"`, or your own object. Completions, votes, labels from people and files are read with it.
        success_threshold (`float` or `Callable[[float], bool]`, *optional*):
            Smallest reward, of the function that reads the label, with which a response counts as right; or a function
            that decides by the reward. Defaults to 0.5, with a warning if a probe's reward is neither 0 nor 1.
        id_column (`str`, *optional*):
            Column of texts or whole numbers, different in each row, from which prompt ids are made.
        question_column (`str`, *optional*):
            Column of bare questions, which people see. Without an `id_column`, prompt ids are made from it.
        instruction (`str`, *optional*):
            Text at the beginning or the end of every prompt, besides its question. People do not see it. Ids depend
            neither on it nor on system prompts.

    Attributes:
        ledger ([`AnnotationLedger`]): the labels bought so far; a view of them in processes other than the first.
        router ([`PoolRouter`]): scores, evidence and routes.
        sampler ([`PivotRoutedSampler`]): the trainer's sampler, `None` before training.
        num_scoring_tokens (`int`): number of tokens, of prompts and responses, spent on scoring the pool.

    Raises:
        TypeError: if `trainer` is neither a `GRPOTrainer` nor an `RLOOTrainer`, or its dataset cannot be indexed.
        ValueError: if the pool, label column, budget or model cannot be used.
        RuntimeError: if a callback is attached already or training has begun.
        NotImplementedError: if the set-up is not supported. After any of these, the trainer is as it was before.

    Example:
    ```python
    >>> from pivottrace_trl import PivotDensityCallback

    >>> trainer = GRPOTrainer(model=..., reward_funcs=accuracy_reward, args=args, train_dataset=dataset)
    >>> trainer.add_callback(PivotDensityCallback(trainer, annotation_budget=0.293))
    >>> trainer.train()
    ```
    """

    def __init__(
        self,
        trainer: GRPOTrainer | RLOOTrainer,
        annotation_budget: float | int | str = 0.293,
        *,
        label_column: str | None = None,
        free_columns: Sequence[str] = (),
        annotator: Annotator | Literal["queue"] | Sequence[Annotator | Literal["queue"]] | None = None,
        buy: Literal["before", "after"] = "before",
        wait_for_annotations: float | None = None,
        estimator: Estimator | str | None = None,
        config: TriageConfig | None = None,
        answer_format: AnswerFormat | str = "math",
        success_threshold: float | Callable[[float], bool] | None = None,
        id_column: str | None = None,
        question_column: str | None = None,
        instruction: str | None = None,
    ):
        check_trainer(trainer)
        check_success_threshold(success_threshold)
        self._answer_format = resolve_format(answer_format)
        oracle, has_people = resolve_annotator(annotator, self._answer_format)
        if has_people:
            check_name(self._answer_format)
        check_share(wait_for_annotations, has_people)
        check_buy(buy, has_people)
        # TRL annotates attributes more loosely than what a built trainer holds.
        self._trainer = cast(Any, trainer)
        questions = Questions("prompt", id_column, question_column, instruction)
        pool = read_pool(self._trainer, questions, label_column, free_columns, annotator is not None)
        ids, label_column = pool.ids, pool.columns.label
        num_own = 0 if annotator is None else pool.vault.num_labels
        budget = resolve_budget(annotation_budget, len(ids), num_own)
        accelerator = self._trainer.accelerator
        self._processes = Processes(accelerator.process_index, accelerator.num_processes)
        attachment = TrainerAttachment(trainer, pool, self._processes)
        config = config or TriageConfig()
        scorer = PoolScorer(estimator, self._trainer._tokenizer.pad_token_id)
        check_probes(scorer.estimator, config.resolve_probe_size(budget, len(ids), num_own), config.discard_ratio)

        self.output_dir = Path(self._trainer.args.output_dir) / PRIVATE_FOLDER
        bought_from = pool.vault if annotator is None else None
        settings = (budget, ids, label_column, self._answer_format, pool.texts)
        ledger = open_ledger(self.output_dir, self._processes, pool.vault, annotator is not None, *settings)
        if has_people and isinstance(ledger, AnnotationLedger):
            oracle = People(ledger, wait_for_annotations, not self._trainer.args.disable_tqdm, first=oracle)
        self.router = PoolRouter(ids, ledger, oracle or pool.vault, config, attachment.rows, pool.texts)
        self.scorer = scorer
        self.sampler: PivotRoutedSampler | None = None
        self.label_router = LabelRouter(
            self.router,
            label_column,
            pool.columns.locked,
            # What is bought from an annotator is the annotator's answer, and nothing of what the dataset knows.
            bought_from,
            self._trainer.num_generations,
            answer_format=self._answer_format,
            label_feature=pool.dataset.features.get(label_column),
            processes=self._processes,
            is_training=lambda: self._trainer.model.training,
            success_threshold=success_threshold,
        )
        self._gate = SpendingGate(attachment, pool.verifier, self.label_router)
        self._buyer = GroupBuyer(self.router, self._gate.objection)
        if buy == "after":
            self.router.buys_after, self.label_router.buy = True, self._buy_seen
        monitor = self.label_router.monitor
        self._state = RunState(self.router, scorer, {"monitor": monitor, "gate": self._gate, "buyer": self._buyer})
        self._examiner = SurveyExaminer(None, scorer, self._gate.verify, self._gate.objection)
        made_of = (attachment.prompts, self._answer_format, scorer.needs, self._processes)
        self._survey = TrainerSurvey(self._trainer, self.output_dir / _SURVEY, *made_of)
        self._survey_identity = ""
        self.report = RunReport(self.output_dir)
        self._trackers = Trackers(trainer, self._processes, pool.texts)
        monitor.on_pause = self._trackers.alert
        names = type(scorer.estimator).__name__, name_annotator(annotator), buy, self._answer_format.name
        setup = RunSetup(*names, self._trainer.reward_func_names[pool.verifier])
        self._attachment = attachment
        self._routed_epoch: int | None = None
        self._fresh = FreshScores(self.router, scorer, self._processes)
        self.num_scoring_tokens = 0
        self._is_attached = True
        attachment.attach(
            self.label_router,
            pool.verifier,
            self._make_sampler,
            make_tracer=lambda model: ResponseTracer(model, self.scorer.heads, self.scorer.needs),
            on_traces=lambda rows, traces: self._fresh.add(rows, traces, self._trainer.state.global_step),
            before_save=self._save_state,
            amend_card=lambda card: amend_model_card(card, self.summary(), setup, self.ledger),
        )
        if self._processes.is_main:
            say(describe_start(pool, self.router, setup, self._trainer.args, self.output_dir / _SURVEY))

    @property
    def ledger(self) -> LedgerView:
        """The labels bought so far."""
        return self.router.ledger

    def detach(self) -> None:
        """
        Restore the trainer exactly as it was: dataset, reward functions, sampler, callbacks. Labels that were bought
        stay in the ledger file. A second call does nothing.

        Raises:
            RuntimeError: while training runs.
        """
        if self._is_attached:
            self._attachment.detach()
            if self in self._trainer.callback_handler.callbacks:
                self._trainer.remove_callback(self)
            if isinstance(self.ledger, AnnotationLedger):
                self.ledger.close()
            self._is_attached = False

    def summary(self) -> dict[str, Any]:
        """
        Summarise the run so far.

        Returns:
            `dict[str, Any]`: the items of [`PoolRouter.summary`], and `first_responses`, empty before the first
            routing: number of `probes` with a known label, number of these that are `right`, and shares of all first
            responses that were `cut_off` or `unanswered` (have no answer that is found).
        """
        return {**self.router.summary(), "first_responses": dict(self._gate.verdict)}

    # Called by the trainer when it builds its data loader, before it derives the number of steps from the length.
    def _make_sampler(self, dataset: Dataset | None = None) -> PivotRoutedSampler:
        trainer = self._trainer
        check_is_added(trainer, self)
        position: Position | None = None
        self._fresh.clear()
        if self._attachment.resume_path is not None:
            position = self._resume(self._attachment.resume_path)
        elif self.sampler is None:
            self._score_pool()
        else:
            # `train()` was called again, so route from the evidence when the epoch begins.
            self.router.start, self._routed_epoch = self.ledger.last_event, None
        sampler = PivotRoutedSampler(
            trainer.train_dataset if dataset is None else dataset,
            mini_repeat_count=trainer.num_generations,
            batch_size=trainer.args.generation_batch_size // trainer.num_generations,
            repeat_count=trainer.num_iterations * trainer.args.steps_per_generation,
            shuffle=trainer.shuffle_dataset,
            seed=trainer.args.seed,
            routes=self.router.plan,
            num_prompts=None if position is None else position.num_prompts,
        )
        self.sampler = sampler
        return sampler

    def _score_pool(self) -> None:
        """Answer every prompt once, trace the responses, and route the pool. If interrupted, this can be resumed."""
        self._attachment.start_trackers()
        responses = self._survey.run()
        self.num_scoring_tokens += responses.num_tokens
        self._survey_identity = responses.identity
        self._processes.on_main(lambda: self._route_first(responses))
        self._state.share(self._processes)
        self._routed_epoch = 0

    def _route_first(self, responses: Responses) -> None:
        router, traces, tokenizer = self.router, responses.traces, self._trainer._tokenizer
        router.start = begin_run(self.output_dir / _RUN, responses.identity, self.ledger.last_event)
        router.suggestions.update({row: answer for row, answer in enumerate(responses.votes) if answer})
        pool_scores = self.scorer.fit(traces, responses.heads)
        router.update_scores(np.arange(len(traces)), pool_scores.scores, pool_scores.densities)
        self.report.plot_example(responses.rollouts, traces, self.scorer.density, tokenizer)
        if router.asks_people:
            path, threshold = self.output_dir / "attempts.parquet", self.scorer.density.threshold or 0.0
            write_attempts(path, router.prompt_ids, responses.rollouts, traces, threshold, tokenizer)
        self.report.clear()
        self._look_at(responses)
        self._gate.check_answers()
        self._report_routing(0, router.first_routing(self._examiner))

    def _look_at(self, responses: Responses) -> None:
        self._gate.look_at(responses)
        self._examiner = SurveyExaminer(responses, self.scorer, self._gate.verify, self._gate.objection)

    def _report_routing(self, epoch: int, result: TriageResult) -> None:
        self.report.write_routing(epoch, self.router, result)
        self._gate.judge(result.calibration)

    def _resume(self, checkpoint: Path) -> Position:
        """Restore the state of a checkpoint."""

        def load() -> Position:
            position = self._state.load(checkpoint, self._trainer.args.seed)
            load_suggestions(self.output_dir / _SUGGESTIONS, self.router)
            if (responses := self._survey.load(position.survey, checkpoint)) is not None:
                self._look_at(responses)
            self.report.resume(position.epoch)
            return position

        position = self._processes.on_main(load)
        self.num_scoring_tokens, self._survey_identity = position.num_scoring_tokens, position.survey
        self._state.share(self._processes)
        self._routed_epoch = position.epoch
        return position

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Route again from the evidence of the last epoch, before the sampler's next iterator is made."""
        if self.sampler is None:
            return
        # A run resumed in the middle of an epoch begins with a fraction.
        epoch = int((state.epoch or 0) + 1e-6)
        # With several processes, each has a loader that hides its sampler from the trainer.
        self.sampler.set_epoch(epoch)
        if self._routed_epoch != epoch:
            self._routed_epoch = epoch
            self._fresh.merge()
            if self.router.config.reroutes:
                self._processes.on_main(lambda: self._report_routing(epoch, self.router.route(epoch, self._examiner)))
                self._state.share(self._processes)
            self.router.keep_routes()
            self.sampler.set_routes(self.router.plan)
        self._trackers.log({**self.router.metrics(), "scoring_tokens": self.num_scoring_tokens})
        self._trackers.show(self.router, self.report.pictures)
        if (self.router.routes == Route.DISCARD).all():
            logger.warning(
                f"Every prompt of the pool is mastered, going by {self.router.evidence.is_labelled.sum()} labels: "
                f"training stops here, and {self.ledger.num_left} labels of the budget are left. Take a harder pool, "
                "or raise `tau_high`."
            )
            control.should_training_stop = True

    def _buy_seen(self, rows: list[int]) -> list[int]:
        """Buy labels for groups of a batch, within the share of the budget for this batch."""
        args, state = self._trainer.args, self._trainer.state
        num_passes = args.steps_per_generation * self._trainer.num_iterations / args.gradient_accumulation_steps
        num_batches = (state.max_steps - state.global_step) / num_passes
        return self._buyer.buy(rows, num_batches, self._routed_epoch or 0)

    def _save_state(self, checkpoint: Path) -> None:
        """Save routes, scores and evidence beside the checkpoint, so that a resumed run goes on with them."""
        if self.sampler is None or self._routed_epoch is None:
            return
        self._fresh.merge()
        position = Position(
            seed=self._trainer.args.seed,
            epoch=self._routed_epoch,
            num_prompts=self.sampler.num_prompts,
            num_scoring_tokens=self.num_scoring_tokens,
            survey=self._survey_identity,
        )

        def save() -> None:
            save_suggestions(self.output_dir / _SUGGESTIONS, self.router)
            self._state.save(checkpoint, position)

        self._processes.on_main(save)

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Log with an evaluation how many labels were bought by then, for reports that plot it against labels."""
        if self.router.buys_after and self._is_attached and state.log_history:
            state.log_history[-1]["pivottrace/labels_bought"] = self.ledger.num_bought

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Write the plots and the record of the run, and print the table."""
        self._fresh.merge()
        if not self._processes.is_main:
            return
        end_run(self.output_dir / _RUN)
        settings = {"estimator": type(self.scorer.estimator).__name__, **asdict(self.router.config)}
        self.report.finish(self.summary(), args, state, settings, self.router)
