"""Trace rollouts inside the forward pass that the trainer makes for its loss anyway."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ..rewards import ROW_COLUMN
from ..traces import ResponseTrace, split_traces
from ..tracing import AttentionTracer


# Row number of completions that are not to be traced.
_NOT_TRACED = -1


class TrainingPassTracer:
    """
    Traces the first completion of every group when the policy's loss is computed on it for the first time. The
    trainer's own pass gives the entropy as well, at its sampling temperature, so that a trace costs the reduction of a
    few attention heads for one completion in a group and no forward pass.

    With dropout in the policy, the trace is that of the thinned network which the loss sees.

    Args:
        trainer ([`~trl.GRPOTrainer`]):
            A trainer that passed `check_trainer`.
        make_tracer (`Callable[[nn.Module], AttentionTracer]`):
            Makes the tracer, when the first batch is trained on.
        take_traces (`Callable[[list[int], list[ResponseTrace]], None]`):
            Receives rows of the pool and as many traces.
    """

    def __init__(
        self,
        trainer: Any,
        make_tracer: Callable[[nn.Module], AttentionTracer],
        take_traces: Callable[[list[int], list[ResponseTrace]], None],
    ):
        self._trainer = trainer
        self._make_tracer = make_tracer
        self._take_traces = take_traces
        self._tracer: AttentionTracer | None = None
        # Row numbers of the batch whose loss is being computed.
        self._rows: torch.Tensor | None = None

    def attach(self) -> None:
        """Put the three steps in front of the trainer's own methods."""
        trainer = self._trainer
        generate_and_score = trainer._generate_and_score_completions
        compute_loss, run_policy = trainer.compute_loss, trainer._get_per_token_logps_and_entropies

        def generate_and_note_rows(inputs: list[dict[str, Any]]) -> dict[str, Any]:
            batch = generate_and_score(inputs)
            if inputs and ROW_COLUMN in inputs[0]:  # evaluation data has no rows
                rows = torch.tensor([example[ROW_COLUMN] for example in inputs])
                is_first = torch.arange(len(rows)) % trainer.num_generations == 0
                # TRL shuffles and splits every tensor of a batch in the same way, this one too.
                batch[ROW_COLUMN] = rows.where(is_first, torch.tensor(_NOT_TRACED))
            return batch

        def compute_loss_and_trace(model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
            self._rows = inputs.get(ROW_COLUMN)
            try:
                loss = compute_loss(model, inputs, *args, **kwargs)
            finally:
                self._rows = None
            if ROW_COLUMN in inputs:
                # With `num_iterations > 1` the batch comes again, when the policy is not the one that sampled it.
                inputs[ROW_COLUMN].fill_(_NOT_TRACED)
            return loss

        def run_policy_and_trace(model, input_ids, attention_mask, logits_to_keep, *args, **kwargs):
            def run():
                return run_policy(model, input_ids, attention_mask, logits_to_keep, *args, **kwargs)

            if self._rows is None or (self._rows == _NOT_TRACED).all():
                return run()
            if self._tracer is None:
                self._tracer = self._make_tracer(model)
            traced = (self._rows != _NOT_TRACED).nonzero().flatten().to(attention_mask.device)
            with self._tracer.capture(attention_mask, rows=traced, num_queries=logits_to_keep + 1) as capture:
                outputs = run()
            _, entropy, *_ = outputs
            traces = split_traces(
                # Position t - 1 produces token t; TRL's entropies are aligned like that already.
                capture.signal("long_range_mass")[:, :-1],
                capture.signal("waad")[:, :-1],
                entropy[traced],
                attention_mask[traced, -logits_to_keep:],
            )
            self._take_traces(self._rows[self._rows != _NOT_TRACED].tolist(), traces)
            return outputs

        # Instance attributes shadow the methods of the class; removing them brings the methods back.
        trainer._generate_and_score_completions = generate_and_note_rows
        trainer.compute_loss = compute_loss_and_trace
        trainer._get_per_token_logps_and_entropies = run_policy_and_trace

    def detach(self) -> None:
        """Undo [`attach`]."""
        trainer = self._trainer
        del trainer._generate_and_score_completions, trainer.compute_loss, trainer._get_per_token_logps_and_entropies
