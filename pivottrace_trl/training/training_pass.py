"""Traces rollouts inside the forward pass that the trainer makes for its loss anyway."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.functional import pad

from ..tracing.response_tracer import ResponseCapture, ResponseTracer
from ..tracing.token_statistics import TokenStatistics, token_statistics
from ..tracing.trace import ResponseTrace
from .rewards import ROW_COLUMN


# Row number of completions that are not to be traced.
NOT_TRACED = -1
# Largest difference of log-probabilities from the trainer's, in nats. Half precision rounds logits to some hundredths.
_TOLERANCE = 0.5


class TracedTrainingPass:
    """
    Traces the first completion of every group when the policy's loss is computed on it for the first time. The
    trainer's own pass also gives the entropy, at its sampling temperature. A trace therefore needs no forward pass of
    its own, only the reduction of a few attention heads for one completion per group. With dropout in the policy, the
    trace is that of the network with dropout, which the loss also sees.

    The tracer is made with the first training batch. `on_traces` is called with rows of the pool and one trace for
    each.
    """

    def __init__(
        self,
        trainer: Any,
        make_tracer: Callable[[nn.Module], ResponseTracer],
        on_traces: Callable[[list[int], list[ResponseTrace]], None],
    ):
        self._trainer = trainer
        self._make_tracer = make_tracer
        self._on_traces = on_traces
        self._tracer: ResponseTracer | None = None
        # Row numbers of the batch for which the loss is being computed.
        self._rows: torch.Tensor | None = None

    def attach(self) -> None:
        """Wrap three of the trainer's methods."""
        trainer = self._trainer
        generate_and_score = trainer._generate_and_score_completions
        compute_loss, run_policy = trainer.compute_loss, trainer._get_per_token_logps_and_entropies

        def generate_and_note_rows(inputs: list[dict[str, Any]], *args: Any, **kwargs: Any) -> dict[str, Any]:
            is_training = trainer.model.training
            batch = generate_and_score(inputs, *args, **kwargs)
            if is_training:
                rows = torch.tensor([example[ROW_COLUMN] for example in inputs])
                # A group may begin on one process and end on the next.
                places = trainer.accelerator.process_index * len(rows) + torch.arange(len(rows))
                is_first = places % trainer.num_generations == 0
                # TRL shuffles and splits all tensors of a batch in the same way, including this one.
                batch[ROW_COLUMN] = rows.where(is_first, torch.tensor(NOT_TRACED))
            return batch

        def compute_loss_and_trace(model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
            self._rows = inputs.get(ROW_COLUMN)
            try:
                loss = compute_loss(model, inputs, *args, **kwargs)
            finally:
                self._rows = None
            if ROW_COLUMN in inputs:
                # With `num_iterations > 1` the batch comes again, when the policy is no longer the one that sampled
                # it.
                inputs[ROW_COLUMN].fill_(NOT_TRACED)
            return loss

        def run_policy_and_trace(model, input_ids, attention_mask, logits_to_keep, *args, **kwargs):
            def run():
                return run_policy(model, input_ids, attention_mask, logits_to_keep, *args, **kwargs)

            if self._rows is None or (self._rows == NOT_TRACED).all():
                return run()
            if self._tracer is None:
                self._tracer = self._make_tracer(trainer.accelerator.unwrap_model(model))
            traced = (self._rows != NOT_TRACED).nonzero().flatten().to(attention_mask.device)
            # Position t - 1 produces token t, so the mask of the tokens is that of the positions before them. The
            # token that the last position produces is not in the batch.
            response_mask = pad(attention_mask[traced, -logits_to_keep:], (0, 1))
            with self._tracer.capture(attention_mask, response_mask, rows=traced) as capture:
                outputs = run()
            log_prob, entropy = (pad(output[traced].detach(), (0, 1)) for output in outputs[:2])
            self_certainty = None
            if "self_certainty" in self._tracer.signals:
                produced = pad(input_ids[traced, -logits_to_keep:], (0, 1))
                with trainer.accelerator.autocast():
                    self_certainty = _self_certainty(
                        trainer.accelerator.unwrap_model(model), capture, produced, trainer.temperature, log_prob
                    )
            traces = capture.traces(TokenStatistics(entropy, log_prob, self_certainty))
            self._on_traces(self._rows[self._rows != NOT_TRACED].tolist(), traces)
            return outputs

        # Instance attributes shadow the methods of the class; removing them brings the methods back.
        trainer._generate_and_score_completions = generate_and_note_rows
        trainer.compute_loss = compute_loss_and_trace
        trainer._get_per_token_logps_and_entropies = run_policy_and_trace

    def detach(self) -> None:
        """Undo [`attach`]."""
        trainer = self._trainer
        del trainer._generate_and_score_completions, trainer.compute_loss, trainer._get_per_token_logps_and_entropies


@torch.no_grad()
def _self_certainty(
    model: Any, capture: ResponseCapture, token_ids: torch.Tensor, temperature: float, log_prob: torch.Tensor
) -> torch.Tensor | None:
    """
    The self-certainty of the traced rows. The trainer computes only log-probabilities and entropies, so the model's
    head is applied again.
    """
    hidden_states = capture.hidden_states
    assert hidden_states is not None and hidden_states.last is not None
    logits = model.get_output_embeddings()(hidden_states.last)
    softcap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    statistics = token_statistics(logits, token_ids.to(logits.device), temperature)
    is_response = capture.response_mask.bool()
    error = (statistics.log_prob - log_prob.to(logits.device))[is_response].abs().max().item()
    if error > _TOLERANCE:
        raise NotImplementedError(
            f"The head of {type(model).__name__} alone gives log-probabilities that are off by {error:.2g} nats: it "
            "scales its logits in a way that is not supported. Use a score that does not need `self_certainty`."
        )
    return statistics.self_certainty
