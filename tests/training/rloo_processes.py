"""What tests/test_trainers.py starts: `torchrun --nproc_per_node 2 tests/rloo_processes.py FOLDER`."""

import asyncio
import json
import sys
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForSequenceClassification, PreTrainedTokenizerFast
from trl import RLOOConfig, RLOOTrainer

from pivottrace_trl import TriageConfig
from pivottrace_trl.training.rewards import ROW_COLUMN


sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.conftest import LORA, attach, digit_reward, make_model, make_pool  # noqa: E402


async def judge(completions, solution, **kwargs):
    await asyncio.sleep(0.01)
    return digit_reward(completions, solution)


def make_reward_model():
    torch.manual_seed(0)
    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForSequenceClassification(LlamaConfig(vocab_size=128, num_labels=1, pad_token_id=0, **size))
    model.config._name_or_path = "judge"
    return model


def main():
    folder = Path(sys.argv[1])
    torch.set_num_threads(1)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder / "tokenizer")
    trainer = RLOOTrainer(
        model=make_model("llama"),
        reward_funcs=[make_reward_model(), judge],
        reward_processing_classes=[tokenizer, None],
        # Three groups of four in a generation batch of twelve: the second straddles both processes.
        args=RLOOConfig(
            output_dir=str(folder / "run"), per_device_train_batch_size=6, num_generations=4, max_completion_length=12,
            num_train_epochs=2, learning_rate=1e-3, logging_steps=1, save_strategy="no", report_to="none",
            use_cpu=True, bf16=False, gradient_checkpointing=False, disable_tqdm=True, seed=7,
        ),
        train_dataset=make_pool(12),
        processing_class=tokenizer,
        peft_config=LORA,
    )  # fmt: skip
    config = TriageConfig(probe_size=4, min_agreement=0.7)
    callback = attach(trainer, 0.5, config=config)
    batches, calculate_rewards = [], trainer._calculate_rewards

    def note_rewards(inputs, *args):
        rewards = calculate_rewards(inputs, *args)
        batches.append({"rows": [e[ROW_COLUMN] for e in inputs], "is_withheld": rewards.isnan().tolist()})
        return rewards

    trainer._calculate_rewards = note_rewards
    trainer.train()
    seen = {
        "batches": batches,
        "routes": callback.router.routes.tolist(),
        "annotated": callback.summary()["annotated"],
    }
    (folder / f"rank-{torch.distributed.get_rank()}.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    main()
