"""What tests/test_processes.py starts: `torchrun --nproc_per_node 2 tests/many_processes.py FOLDER`."""

import json
import os
import sqlite3
import sys
from pathlib import Path

import pyarrow.parquet as pq
import torch
from torch.distributed import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from transformers import PreTrainedTokenizerFast
from trl import GRPOConfig, GRPOTrainer

from pivottrace_trl import Rollout, TriageConfig, trace_rollouts
from pivottrace_trl.training.rewards import ROW_COLUMN


sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.conftest import LORA, attach, first_digit, make_model, make_pool  # noqa: E402


# Three groups of four in a generation batch of twelve: with six completions a process, the second straddles both.
GROUP, BATCH, NUM_PROMPTS = 4, 6, 30
TABLE = ["step", "prompt", "completion", "route", "vote", "agreement", "label_source"]


class Interrupted(Exception):
    pass


class BriefReward:
    """Notes the label that each completion of a training batch is judged by."""

    __name__ = "brief_reward"

    def __init__(self):
        self.judged = []

    def __call__(self, prompts, completions, solution, **kwargs):
        texts = [prompt[-1]["content"] for prompt in prompts]
        self.judged += zip(texts, solution, strict=True)
        texts = [completion[0]["content"] for completion in completions]
        # Short answers are right, so that the score separates and prompts are discarded as well.
        return [
            float(len(text) < 6 or (int(first_digit(text) or 0) + int(label[-1])) % 4 == 0)
            for text, label in zip(texts, solution, strict=True)
        ]


def fake_engine(trainer):
    """
    Stands in for sampling: the same completions whatever the number of processes, as a function of the prompt, of the
    place in its group, and of the step.
    """
    sizes: list[int] = []

    def generate(prompt_ids, *rest):
        sizes.append(len(prompt_ids))
        in_training = trainer.model.training
        first = trainer.accelerator.process_index * len(prompt_ids)
        completions = []
        for place, ids in enumerate(prompt_ids):
            sample = ((first + place) % GROUP, trainer.state.global_step + 1) if in_training else (0, 0)
            generator = torch.Generator().manual_seed(hash((tuple(ids), sample)) % 2**31)
            length = int(torch.randint(3, 9, (), generator=generator))
            completions.append([*torch.randint(4, 84, (length,), generator=generator).tolist(), 1])
        return completions, None

    trainer._generate_single_turn = generate
    return sizes


def run(
    output_dir: Path, tokenizer_path, stop_at=None, resume=False, annotator=None, buy="before", epochs=3, **options
):
    """
    Train a tiny model.

    Returns:
        `dict[str, Any]`: what this process saw.
    """
    num_processes = int(os.environ.get("WORLD_SIZE", 1))
    args = {
        "output_dir": str(output_dir), "per_device_train_batch_size": BATCH, "num_generations": GROUP,
        "gradient_accumulation_steps": 2 // num_processes, "max_completion_length": 12, "num_train_epochs": epochs,
        "learning_rate": 1e-3, "logging_steps": 1, "save_strategy": "steps", "save_steps": 4, "report_to": "none",
        "use_cpu": True, "bf16": False, "gradient_checkpointing": False, "disable_tqdm": True, "seed": 7,
        "log_completions": True, "num_completions_to_print": 0,
    }  # fmt: skip
    reward = BriefReward()
    trainer = GRPOTrainer(
        model=make_model("llama"),
        reward_funcs=reward,
        args=GRPOConfig(**{**args, **options}),
        train_dataset=make_pool(NUM_PROMPTS)
        if annotator is None
        else make_pool(NUM_PROMPTS).remove_columns("solution"),
        processing_class=PreTrainedTokenizerFast.from_pretrained(tokenizer_path),
        peft_config=LORA,
    )
    opened: list[str] = []
    connect = sqlite3.connect
    sqlite3.connect = lambda path, *args, **kwargs: opened.append(str(path)) or connect(path, *args, **kwargs)
    try:
        # Labels are bought from epoch to epoch, where votes are poor.
        config = TriageConfig(probe_size=6, tau_high=0.8, tau_low=0.8, min_agreement=0.3)
        callback = attach(trainer, annotator=annotator, buy=buy, config=config)
        sizes, batches = fake_engine(trainer), []
        score, step = trainer._generate_and_score_completions, trainer.training_step

        def note_rows(inputs):
            batches.append([example[ROW_COLUMN] for example in inputs])
            return score(inputs)

        def step_or_stop(*args, **kwargs):
            if trainer.state.global_step == stop_at:
                raise Interrupted
            return step(*args, **kwargs)

        trainer._generate_and_score_completions, trainer.training_step = note_rows, step_or_stop
        try:
            trainer.train(resume_from_checkpoint=resume)
        except Interrupted:
            pass
    finally:
        sqlite3.connect = connect
    model = trainer.accelerator.unwrap_model(trainer.model)
    tables = sorted((output_dir / "completions").glob("*.parquet"))
    return {
        "table": [row for path in tables for row in pq.read_table(path, columns=TABLE).to_pylist()],
        "routes": callback.router.routes.tolist(),
        "scores": callback.router.scores.tolist(),
        "annotated": callback.summary()["annotated"],
        "labelled": callback.router.evidence.is_labelled.tolist(),
        "batches": batches,
        "judged": reward.judged,
        "generated": sizes,
        "opened": opened,
        "weights": float(sum(p.detach().double().abs().sum() for p in model.parameters() if p.requires_grad)),
        "metrics": [e["pivottrace/vote_agreement"] for e in trainer.state.log_history
                    if "pivottrace/vote_agreement" in e],
    }  # fmt: skip


def trace_sharded() -> dict[str, list[float]]:
    """Trace with the weights of every layer spread over both processes (FSDP 2), and with all of them here."""
    rollouts = [Rollout([5, 6, 7, 8], list(range(10, 10 + length))) for length in (12, 30, 21)]
    seen = {}
    for name in ("whole", "sharded"):
        model = make_model("llama")
        if name == "sharded":
            mesh = init_device_mesh("cpu", (2,))
            for layer in model.model.layers:
                fully_shard(layer, mesh=mesh)
            fully_shard(model, mesh=mesh)
            assert all(isinstance(parameter, DTensor) for parameter in model.parameters())
        traces, heads = trace_rollouts(model, rollouts, 0, signals={"newest", "layer_gram"}, progress=False)
        seen[name] = [float(number) for trace in traces for number in (*trace.long_range_mass, *trace.entropy)]
        seen[name] += [float(n) for trace in traces for n in (*trace.newest.ravel(), *trace.layer_gram.ravel())]
        seen[f"{name} heads"] = str(heads)
    return seen


def main():
    folder = Path(sys.argv[1])
    torch.set_num_threads(1)
    tokenizer_path = folder / "tokenizer"
    seen = {"whole": run(folder / "whole", tokenizer_path)}
    run(folder / "parts", tokenizer_path, stop_at=9)
    try:
        seen["resumed"] = run(folder / "parts", tokenizer_path, resume=True)
    except RuntimeError as error:
        # transformers 5.6 itself, with torch 2.13: it asks for the optimizer on a device "cpu:0".
        if "restore data location" not in str(error):
            raise

    seen["after"] = run(folder / "after", tokenizer_path, buy="after", epochs=2)

    def failing(rows):
        raise ConnectionError("line is dead")

    try:
        run(folder / "failing", tokenizer_path, annotator=failing)
    except RuntimeError as error:
        seen["failure"] = str(error)
    rank = torch.distributed.get_rank()
    seen["traces"] = trace_sharded()
    (folder / f"rank-{rank}.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    main()
