"""Models that are distributed over processes: checks what is supported, and finds the whole weights."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..processes import Processes
from ..scoring.policy import fingerprint_weights


def check_parallelism(trainer: Any) -> None:
    """
    Raise `NotImplementedError` for kinds of parallelism in which attention cannot be read: ZeRO-3, FSDP 1, and tensor,
    context or sequence parallelism.
    """
    state = trainer.accelerator.state
    deepspeed, fsdp = getattr(state, "deepspeed_plugin", None), getattr(state, "fsdp_plugin", None)
    spread = getattr(trainer.accelerator, "parallelism_config", None)
    if deepspeed is not None and deepspeed.zero_stage == 3:
        raise NotImplementedError(
            "DeepSpeed ZeRO-3 is not supported: it takes the weights apart before the pool is scored. Use "
            "`zero_stage: 2`, or FSDP 2 (examples/accelerate has configurations for both)."
        )
    if fsdp is not None and fsdp.fsdp_version == 1:
        raise NotImplementedError(
            "FSDP 1 is not supported: it flattens the weights of the model. Set `fsdp_version: 2` "
            "(examples/accelerate/fsdp2.yaml)."
        )
    if getattr(trainer, "is_distributed_loading_by_transformers", False) or (
        spread is not None and (spread.tp_enabled or spread.cp_enabled or spread.sp_enabled)
    ):
        raise NotImplementedError(
            "Tensor, context and sequence parallelism are not supported: no process sees whole attention rows. Spread "
            "the data (DDP) or the weights (FSDP 2, ZeRO-2) instead."
        )


@contextmanager
def whole_model(trainer: Any, processes: Processes) -> Iterator[Any]:
    """
    The policy before it is wrapped for training, on the device that computes. With FSDP, it is on the CPU until then.

    Raises:
        RuntimeError: if the processes hold different weights.
    """
    model = trainer.accelerator.unwrap_model(trainer.model)
    if len(set(weights := processes.gather(fingerprint_weights(model)))) > 1:
        raise RuntimeError(
            f"The processes hold different weights ({', '.join(weights)}), so each would score another policy. With "
            "FSDP, set `fsdp_cpu_ram_efficient_loading: false`; otherwise load the same checkpoint everywhere."
        )
    if getattr(trainer.accelerator.state, "fsdp_plugin", None) is None:
        yield model
        return
    was_on = next(model.parameters()).device
    model.to(trainer.accelerator.device)
    try:
        yield model
    finally:
        model.to(was_on)
