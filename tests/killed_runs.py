"""
What tests/test_restarts.py starts: `python tests/killed_runs.py FOLDER NUM_KILLS`. Trains a tiny model undisturbed,
then again and again in processes that are killed at random moments and started again, and writes what each run came
to.
"""

import hashlib
import json
import os
import random
import select
import signal
import sys
import time
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerFast
from trl import GRPOConfig, GRPOTrainer

from pivottrace_trl import TriageConfig
from pivottrace_trl.scoring import survey as survey_module
from pivottrace_trl.training.policy import TrainerPolicy
from pivottrace_trl.training.rewards import ROW_COLUMN


sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.conftest import LORA, attach, first_digit, make_model, make_pool  # noqa: E402


# Where a run may be killed: how often it comes there, and for how many seconds after that point it may live.
PHASES = {
    "answering": (1, 0.4), "tracing": (1, 0.2), "triage": (1, 0.5),
    "re-routed": (2, 0.1), "training": (25, 0.1), "saving": (4, 0.05), "re-routing": (2, 0.5),
}  # fmt: skip
EARLY, LATE = list(PHASES)[:3], list(PHASES)[3:]


def brief_reward(completions, solution, **kwargs):
    """Short answers are right, so that the score separates; the label counts as well."""
    texts = [completion[0]["content"] for completion in completions]
    return [
        float(len(text) < 6 or (int(first_digit(text) or 0) + int(label[-1])) % 4 == 0)
        for text, label in zip(texts, solution, strict=True)
    ]


def train(folder: Path, tokenizer_path: Path, announce) -> None:
    """Train to the end, from the last checkpoint if there is one, and write what came of it."""
    args = GRPOConfig(
        output_dir=str(folder), per_device_train_batch_size=16, num_generations=4, max_completion_length=10,
        num_train_epochs=3, learning_rate=1e-3, logging_steps=5, save_strategy="steps", save_steps=7,
        save_total_limit=1, report_to="none", use_cpu=True, bf16=False, gradient_checkpointing=False,
        disable_tqdm=True, seed=7,
    )  # fmt: skip
    trainer = GRPOTrainer(
        model=make_model("llama"),
        reward_funcs=brief_reward,
        args=args,
        train_dataset=make_pool(40),
        processing_class=PreTrainedTokenizerFast.from_pretrained(tokenizer_path),
        peft_config=LORA,
    )
    # Labels are bought from epoch to epoch, where votes are poor.
    config = TriageConfig(probe_size=8, tau_high=0.8, tau_low=0.8, min_agreement=0.5)
    callback = attach(trainer, 0.9, config=config)

    def announcing(owner, name, phase):
        original = getattr(owner, name)

        def announced(*args, **kwargs):
            announce(phase)
            return original(*args, **kwargs)

        setattr(owner, name, announced)

    announcing(survey_module, "generate_rollouts", "answering")
    announcing(TrainerPolicy, "trace", "tracing")
    announcing(callback, "_route_first", "triage")
    announcing(trainer, "training_step", "training")
    announcing(trainer, "_save_checkpoint", "saving")
    route, report_routing = callback.router.route, callback._report_routing

    def route_again(epoch, *args, **kwargs):
        if epoch > 0:
            announce("re-routing")
        return route(epoch, *args, **kwargs)

    def report_again(epoch, result):
        report_routing(epoch, result)
        if epoch > 0:
            announce("re-routed")

    callback.router.route, callback._report_routing = route_again, report_again
    score, orders = trainer._generate_and_score_completions, (folder / "order.jsonl").open("a")

    def note_rows(inputs):
        orders.write(json.dumps([trainer.state.global_step, [example[ROW_COLUMN] for example in inputs]]) + "\n")
        orders.flush()
        return score(inputs)

    trainer._generate_and_score_completions = note_rows
    trainer.train(resume_from_checkpoint=any(folder.glob("checkpoint-*")))
    digest = hashlib.sha256()
    for parameter in trainer.model.parameters():
        digest.update(parameter.detach().numpy().tobytes())
    outcome = {
        "routes": callback.router.routes.tolist(),
        "scores": callback.router.scores.tolist(),
        "labels": sorted(callback.ledger.bought_ids),
        "num_bought": [callback.ledger.num_paid(epoch, start=0) for epoch in range(-1, 3)],
        "weights": digest.hexdigest(),
        "num_scoring_tokens": callback.num_scoring_tokens,
    }
    (folder / "outcome.json").write_text(json.dumps(outcome))


def start(folder: Path, tokenizer_path: Path) -> tuple[int, int]:
    """Train in a process of its own, forked so that nothing is imported again: its id, and where it announces."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        with open(os.devnull, "w") as nowhere, (folder / "stderr.txt").open("a") as errors:
            os.dup2(nowhere.fileno(), 1)
            os.dup2(errors.fileno(), 2)
        try:
            train(folder, tokenizer_path, lambda phase: os.write(writing, f"{phase}\n".encode()) and None)
            os._exit(0)
        except BaseException as error:
            os.write(2, f"{type(error).__name__}: {error}\n".encode())
            os._exit(1)
    os.close(writing)
    return pid, reading


def kill_in(phase: str, chance: random.Random, pid: int, announced: int) -> str | None:
    """Kill a run some time after it enters a phase for the n-th time; `None` if it ended before."""
    times, seconds = PHASES[phase]
    number, text = chance.randint(1, times), ""
    while text.count(f"{phase}\n") < number:
        ready, _, _ = select.select([announced], [], [], 120)
        data = os.read(announced, 4096) if ready else b""
        if not data:
            break
        text += data.decode()
    else:
        time.sleep(chance.uniform(0, seconds))
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    os.close(announced)
    return phase if os.WIFSIGNALED(status) else None


def finish(pid: int, announced: int) -> int:
    """Wait for a run to end."""
    while os.read(announced, 4096):
        pass
    _, status = os.waitpid(pid, 0)
    os.close(announced)
    return os.waitstatus_to_exitcode(status)


def main() -> None:
    folder, num_kills, chance = Path(sys.argv[1]), int(sys.argv[2]), random.Random(0)
    torch.set_num_threads(1)
    tokenizer_path = folder / "tokenizer"
    killed: list[str] = []
    number = 0
    while number == 0 or len(killed) < num_kills:
        run = folder / f"run-{number:03d}"  # the first is left alone
        run.mkdir()
        # Once before the first step, twice after it.
        phases = [EARLY[number % 3], LATE[(number - 1) % 4], LATE[number % 4]]
        for phase in phases if number else []:
            if (run / "outcome.json").is_file():
                break
            if kill_in(phase, chance, *start(run, tokenizer_path)):
                killed.append(phase)
        if not (run / "outcome.json").is_file() and finish(*start(run, tokenizer_path)) != 0:
            raise RuntimeError(f"{run} failed: {(run / 'stderr.txt').read_text()[-2000:]}")
        number += 1
    (folder / "killed.json").write_text(json.dumps(killed))


if __name__ == "__main__":
    main()
