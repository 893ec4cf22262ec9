"""
What tests/test_trackers.py starts: `python tests/tracked_runs.py FOLDER`. Trains a tiny model with the two lines, once
with each tracker; they write to the folder and ask nobody.
"""

import json
import os
import sys
from pathlib import Path


FOLDER = Path(sys.argv[1])
os.environ |= {"TRACKIO_DIR": str(FOLDER / "trackio"), "WANDB_MODE": "offline", "WANDB_DIR": str(FOLDER)}

import torch  # noqa: E402
import trackio  # noqa: E402
import wandb  # noqa: E402
from transformers import PreTrainedTokenizerFast, TrainerCallback  # noqa: E402
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer  # noqa: E402


sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.conftest import LORA, attach, digit_reward, make_model, make_pool  # noqa: E402


def train(tracker: str, kind: type, make_config: type) -> None:
    def reward(completions, solution, **kwargs):
        # Users log from their own functions too, and those are asked about the probes.
        {"trackio": trackio, "wandb": wandb}[tracker].log({"mean_length": 1.0})
        return digit_reward(completions, solution)

    args = make_config(
        output_dir=str(FOLDER / f"run-{tracker}"), per_device_train_batch_size=8, num_generations=4,
        max_completion_length=8, max_steps=2, logging_steps=1, save_strategy="no", report_to=tracker, run_name=tracker,
        log_completions=True, use_cpu=True, bf16=False, gradient_checkpointing=False, disable_tqdm=True, seed=7,
    )  # fmt: skip
    trainer = kind(
        model=make_model("llama"),
        reward_funcs=reward,
        args=args,
        train_dataset=make_pool(16),
        processing_class=PreTrainedTokenizerFast.from_pretrained(FOLDER / "tokenizer"),
        peft_config=LORA,
    )
    callback = attach(trainer)

    class Collapse(TrainerCallback):
        """The monitor fires at step 1; what it then says is said once, though it stays paused."""

        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 1:
                callback.label_router.monitor.on_pause("Collapse: the policy pleases its own votes")

    trainer.add_callback(Collapse())
    trainer.train()
    assert trainer.state.global_step == 2


if __name__ == "__main__":
    torch.set_num_threads(1)
    train("trackio", GRPOTrainer, GRPOConfig)
    train("wandb", RLOOTrainer, RLOOConfig)
    (FOLDER / "wandb.json").write_text(json.dumps(sorted(wandb.run.summary.keys())))
