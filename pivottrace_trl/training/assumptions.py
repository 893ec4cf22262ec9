"""
What the callback takes for granted of TRL's trainer, each as a check on a trainer of TRL alone. A version of TRL that
breaks one is told under the name of the assumption, and not by something odd in a run.
"""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from .policy import TrainerPolicy


# `make(reward, columns, **settings)`: a `GRPOTrainer` on 32 prompts, with more columns and settings of `GRPOConfig`.
MakeTrainer = Callable[..., Any]
GROUP, BATCH, LONGEST = 4, 8, 12
# What the trainers of the checks have in common. Small enough for seconds, and with several groups and batches.
SETTINGS = {
    "per_device_train_batch_size": BATCH,
    "num_generations": GROUP,
    "max_completion_length": LONGEST,
    "num_train_epochs": 1,
    "logging_strategy": "no",
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "seed": 7,
}
_WITHHELD = "All reward functions returned None"


def find_broken(make: MakeTrainer) -> dict[str, str]:
    """
    Check every assumption.

    Args:
        make (`Callable`):
            `make(reward, columns, **settings)` returns a fresh `GRPOTrainer` on 32 prompts with `SETTINGS`, the given
            reward function, further columns of its dataset (`dict[str, list]`) and further settings of `GRPOConfig`.

    Returns:
        `dict[str, str]`: for each assumption, what is wrong with it; empty where it holds.
    """
    return {assumption.__name__.replace("_", " "): check(assumption, make) for assumption in ASSUMPTIONS}


def check(assumption: Callable[[MakeTrainer], bool], make: MakeTrainer) -> str:
    """What is wrong with an assumption, empty if it holds. Whatever TRL raises meanwhile breaks it, too."""
    try:
        return "" if assumption(make) else "not so"
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def rewards_come_before_the_loss_of_their_batch(make: MakeTrainer) -> bool:
    """The traces of a batch are scored with the agreement of its votes."""
    events = []

    def reward(completions, **kwargs):
        events.append("rewards")
        return any_reward(completions)

    trainer = make(reward, max_steps=4, steps_per_generation=2)
    _spy(trainer, "compute_loss", before=lambda *args, **kwargs: events.append("loss"))
    trainer.train()
    return events == ["rewards", "loss", "loss"] * 2


def generation_and_rewards_get_whole_groups_in_the_order_of_the_sampler(make: MakeTrainer) -> bool:
    """The first completion of a group is at every `num_generations`-th place, in every list that TRL hands around."""
    seen: list[Any] = []
    inputs: list[Any] = []
    batches: list[Any] = []

    def reward(completions, completion_ids, place, **kwargs):
        seen.append((place, completion_ids))
        return any_reward(completions)

    trainer = make(reward, {"place": list(range(32))}, max_steps=4, steps_per_generation=2)
    _spy(trainer, "_generate_and_score_completions", before=inputs.append, after=batches.append)
    trainer.train()
    order = list(trainer._get_train_sampler())
    # Sixteen rows are generated for at once, and yielded once for each of the two steps.
    holds = [[row["place"] for row in rows] for rows in inputs] == [order[:16], order[32:48]]
    for rows, (places, completion_ids), batch in zip(inputs, seen, batches, strict=True):
        holds &= [row["place"] for row in rows] == places
        holds &= all(len(set(places[start : start + GROUP])) == 1 for start in range(0, len(places), GROUP))
        lengths = batch["completion_mask"].sum(dim=1).tolist()
        rewarded = [row[:length].tolist() for row, length in zip(batch["completion_ids"], lengths, strict=True)]
        holds &= rewarded == [list(ids) for ids in completion_ids]
    return holds and len(seen) == 2


def every_tensor_of_a_batch_is_shuffled_and_split_together(make: MakeTrainer) -> bool:
    """One more tensor, put into the batch, stays beside its completions."""
    trainer = make(max_steps=8, steps_per_generation=4, num_iterations=2)
    original: list[torch.Tensor] = []
    places: list[list[int]] = []
    fits: list[bool] = []

    def number(batch):
        batch["place"] = torch.arange(len(batch["completion_ids"])) + sum(map(len, original))
        original.append(batch["completion_ids"].clone())

    def note(model, inputs, *args, **kwargs):
        ids = torch.cat([torch.nn.functional.pad(known, (0, LONGEST - known.shape[1])) for known in original])
        found = inputs["completion_ids"]
        fits.append(torch.equal(found.cpu(), ids[inputs["place"]][:, : found.shape[1]].cpu()))
        places.append(inputs["place"].tolist())

    _spy(trainer, "_generate_and_score_completions", after=number)
    _spy(trainer, "compute_loss", before=note)
    trainer.train()
    once = [place for some in places for place in some]
    each_twice = len(original) == 1 and sorted(once) == sorted(2 * list(range(4 * BATCH)))
    return all(fits) and each_twice and places[0] != sorted(places[0])


def a_batch_that_is_used_again_is_the_same_dictionary(make: MakeTrainer) -> bool:
    """With `num_iterations > 1` a mark that was left in the batch is found the next time."""
    found: list[bool] = []
    trainer = make(max_steps=4, num_iterations=2)

    def mark(model, inputs, *args, **kwargs):
        found.append("mark" in inputs)
        inputs["mark"] = torch.zeros(1)

    _spy(trainer, "compute_loss", before=mark)
    trainer.train()
    return found == [False, True, False, True]


def the_policy_is_run_once_a_loss_on_the_rows_of_the_batch(make: MakeTrainer) -> bool:
    """By position: model, tokens, mask, length of the completions; log-probabilities and entropies come back."""
    calls: list[Any] = []
    outputs: list[Any] = []
    batches: list[Any] = []
    trainer = make(max_steps=2)
    _spy(trainer, "compute_loss", before=lambda model, inputs, *args, **kwargs: batches.append(dict(inputs)))
    _spy(
        trainer,
        "_get_per_token_logps_and_entropies",
        before=lambda *args, **kwargs: calls.append(args) if torch.is_grad_enabled() else None,
        after=lambda result: outputs.append(result) if torch.is_grad_enabled() else None,
    )
    trainer.train()
    holds = len(calls) == len(batches) == len(outputs) == 2
    unwrap = trainer.accelerator.unwrap_model
    for (model, input_ids, attention_mask, logits_to_keep, *_), batch, result in zip(calls, batches, outputs):
        holds &= unwrap(model) is unwrap(trainer.model)
        holds &= torch.equal(input_ids, torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1))
        holds &= torch.equal(attention_mask[:, -logits_to_keep:], batch["completion_mask"])
        holds &= result[0].shape == result[1].shape == batch["completion_ids"].shape
    return holds


def prompts_are_tokenized_to_a_tuple_whose_first_is_what_is_generated_from(make: MakeTrainer) -> bool:
    """The first look at the pool reads prompts as training does."""
    inputs: list[Any] = []
    generated: list[Any] = []
    trainer = make(max_steps=1)
    _spy(trainer, "_generate_and_score_completions", before=inputs.extend)
    _spy(trainer, "_generate_single_turn", before=lambda prompt_ids, *rest: generated.extend(prompt_ids))
    trainer.train()
    tokenized = trainer._tokenize_prompts([row["prompt"] for row in inputs])
    return isinstance(tokenized, tuple) and [list(ids) for ids in tokenized[0]] == [list(ids) for ids in generated]


def a_response_ends_with_the_end_token_or_at_the_limit(make: MakeTrainer) -> bool:
    """What the first look answers is whole, and without padding."""
    trainer = make()
    policy, end = TrainerPolicy(trainer), trainer._tokenizer.eos_token_id
    responses = policy.generate(policy.tokenize(trainer.train_dataset[:8]["prompt"]), number=0)
    return len(responses) == 8 and all(
        (len(ids) == LONGEST or ids[-1] == end) and end not in ids[:-1] for ids in responses
    )


def an_epoch_begins_with_its_callback_then_its_number_then_its_order(make: MakeTrainer) -> bool:
    """Routes are taken over in `on_epoch_begin`, and the order is drawn afterwards. There is one sampler a run."""
    trainer = make(num_train_epochs=2, max_steps=-1)
    events = _Events(trainer)
    trainer.add_callback(events)
    trainer.train()
    first, second = ["epoch 0", "set_epoch 0", "iter"], ["epoch 1.0", "set_epoch 1", "iter"]
    return events.seen == ["sampler", "train", *first, *second]


def a_checkpoint_is_saved_where_the_output_folder_and_the_step_say(make: MakeTrainer) -> bool:
    """`_save_checkpoint` is called with model and trial, and nothing of the folder is there before."""
    folders: list[tuple[Path, bool]] = []
    trainer = make(max_steps=2, save_strategy="steps", save_steps=2)

    def note(model, trial):
        folder = Path(trainer._get_output_dir(trial=trial)) / f"checkpoint-{trainer.state.global_step}"
        folders.append((folder, folder.exists()))

    _spy(trainer, "_save_checkpoint", before=note)
    trainer.train()
    ((folder, was_there),) = folders
    is_named = folder == Path(trainer.args.output_dir) / "checkpoint-2"
    return is_named and not was_there and (folder / "trainer_state.json").is_file()


def the_warning_about_withheld_rewards_has_its_logger_and_its_words(make: MakeTrainer) -> bool:
    """A filter on this logger takes the warning away where rewards are withheld on purpose."""
    messages: list[str] = []

    class Keep(logging.Filter):
        def filter(self, record):
            messages.append(str(record.msg))
            return False

    log, keep = logging.getLogger("trl.trainer.grpo_trainer"), Keep()
    others, log.filters = log.filters, [keep]
    try:
        make(lambda completions, **kwargs: [None] * len(completions), max_steps=1).train()
    finally:
        log.filters = others
    return any(_WITHHELD in message for message in messages)


ASSUMPTIONS = (
    rewards_come_before_the_loss_of_their_batch,
    generation_and_rewards_get_whole_groups_in_the_order_of_the_sampler,
    every_tensor_of_a_batch_is_shuffled_and_split_together,
    a_batch_that_is_used_again_is_the_same_dictionary,
    the_policy_is_run_once_a_loss_on_the_rows_of_the_batch,
    prompts_are_tokenized_to_a_tuple_whose_first_is_what_is_generated_from,
    a_response_ends_with_the_end_token_or_at_the_limit,
    an_epoch_begins_with_its_callback_then_its_number_then_its_order,
    a_checkpoint_is_saved_where_the_output_folder_and_the_step_say,
    the_warning_about_withheld_rewards_has_its_logger_and_its_words,
)


def any_reward(completions: list[Any], **kwargs: Any) -> list[float]:
    """A reward that needs no label, and differs within most groups."""
    return [float(len(str(completion)) % 2) for completion in completions]


def _spy(
    trainer: Any,
    name: str,
    before: Callable[..., Any] | None = None,
    after: Callable[[Any], Any] | None = None,
) -> None:
    """Put functions around a method: `before` is shown its arguments, `after` its result, which it may change."""
    method = getattr(trainer, name)

    def spy(*args: Any, **kwargs: Any) -> Any:
        if before is not None:
            before(*args, **kwargs)
        result = method(*args, **kwargs)
        if after is not None:
            after(result)
        return result

    setattr(trainer, name, spy)


class _Events(TrainerCallback):
    """Notes in which order the trainer does things at the beginning of an epoch."""

    def __init__(self, trainer: Any):
        self.seen: list[str] = []
        make_sampler = trainer._get_train_sampler
        trainer._get_train_sampler = lambda dataset=None: self._wrap(make_sampler(dataset))

    def _wrap(self, sampler: Any) -> Any:
        self.seen.append("sampler")
        events = self.seen

        class Noting(type(sampler)):  # type: ignore[misc]
            def set_epoch(self, epoch):
                # The trainer and accelerate both call it.
                if events[-1] != f"set_epoch {epoch}":
                    events.append(f"set_epoch {epoch}")

            def __iter__(self):
                events.append("iter")
                return super().__iter__()

        sampler.__class__ = Noting
        return sampler

    def on_train_begin(self, args, state, control, **kwargs):
        self.seen.append("train")

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.seen.append(f"epoch {state.epoch}")
