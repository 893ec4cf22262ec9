"""Two thousand steps: nothing grows."""

import threading
from pathlib import Path

import psutil
import pytest
from transformers import TrainerCallback

from pivottrace_trl import PivotDensityCallback, TriageConfig

from .conftest import attach, make_model, make_pool


NUM_STEPS = 2000
# Memory is compared from here on, after more than twelve routings: allocators, caches and plots have found their size.
SETTLED = 700


class Watch(TrainerCallback):
    """Takes stock every hundred steps."""

    def __init__(self, callback: PivotDensityCallback, folder: Path):
        self.callback, self.folder = callback, folder
        self.stock: dict[int, dict[str, float]] = {}

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if state.global_step % 100:
            return
        process = psutil.Process()
        hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in model.modules()]
        callback = self.callback
        self.stock[state.global_step] = {
            "memory": process.memory_info().rss / 2**20,
            "hooks": sum(hooks),
            "threads": threading.active_count(),
            "files": process.num_fds() if hasattr(process, "num_fds") else 0,
            "children": len(process.children()),
            "batches": len(callback.label_router.monitor._batches),
            "suggestions": len(callback.router.suggestions),
            "bytes": sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file()),
            "log entries": len(state.log_history),
        }


@pytest.mark.slow
def test_two_thousand_steps(make_trainer):
    trainer = make_trainer(
        make_pool(128),
        model=make_model("llama"),
        max_steps=NUM_STEPS,
        num_train_epochs=1,
        per_device_train_batch_size=4,
        num_generations=2,
        max_completion_length=4,
        logging_steps=10,
        learning_rate=1e-5,
    )
    config = TriageConfig(probe_size=16, discard_ratio=0.2)
    callback = attach(trainer, 0.3, config=config)
    watch = Watch(callback, callback.output_dir)
    trainer.add_callback(watch)
    trainer.train()
    assert trainer.state.global_step == NUM_STEPS and callback.summary()["num_routings"] >= 30
    first, last = watch.stock[SETTLED], watch.stock[NUM_STEPS]
    for name in ("hooks", "threads", "files", "children"):
        assert last[name] == first[name], (name, watch.stock)
    # Logs grow by one entry every ten steps, about 3 kB each; nothing else of ours does.
    num_entries = last["log entries"] - first["log entries"]
    assert num_entries <= (NUM_STEPS - SETTLED) / 10 + callback.summary()["num_routings"]
    assert last["memory"] < first["memory"] + 30, watch.stock
    assert last["batches"] <= 600 and last["suggestions"] <= 128
    # A table of routes for each epoch, less than 32 kB for this pool.
    assert last["bytes"] < first["bytes"] + 32_768 * callback.summary()["num_routings"], watch.stock
