"""
What the callback takes for granted of TRL, on a trainer of TRL alone: a new version that breaks one of these fails
here under the name of the assumption, and not somewhere in a run.
"""

import logging
from pathlib import Path

import pytest
import torch
from transformers import TrainerCallback

from pivottrace_trl.training.policy import TrainerPolicy

from .conftest import digit_reward, make_pool


GROUP = 4


def spy_on(trainer, name: str, before=None, after=None):
    """Put functions around a method: `before` is shown its arguments, `after` its result, which it may change."""
    method = getattr(trainer, name)

    def spy(*args, **kwargs):
        if before is not None:
            before(*args, **kwargs)
        result = method(*args, **kwargs)
        if after is not None:
            after(result)
        return result

    setattr(trainer, name, spy)


def test_rewards_come_before_the_loss_of_their_batch(make_trainer):
    """The traces of a batch are scored with the agreement of its votes."""
    events = []

    def reward(completions, solution, **kwargs):
        events.append("rewards")
        return digit_reward(completions, solution)

    trainer = make_trainer(reward_funcs=reward, max_steps=4, steps_per_generation=2)
    spy_on(trainer, "compute_loss", before=lambda *args, **kwargs: events.append("loss"))
    trainer.train()
    assert events == ["rewards", "loss", "loss"] * 2


def test_generation_and_rewards_get_whole_groups_in_the_order_of_the_sampler(make_trainer):
    """The first completion of a group is at every `num_generations`-th place, in every list that TRL hands around."""
    seen = []

    def reward(prompts, completions, completion_ids, place, **kwargs):
        seen.append((place, completion_ids))
        return [0.0] * len(completions)

    pool = make_pool().add_column("place", list(range(32)))
    trainer = make_trainer(pool, reward_funcs=reward, max_steps=4, steps_per_generation=2)
    inputs, batches = [], []
    spy_on(trainer, "_generate_and_score_completions", before=inputs.append, after=batches.append)
    trainer.train()
    order = list(trainer._get_train_sampler())
    # Sixteen rows are generated for at once, and yielded once for each of the two steps.
    assert [[row["place"] for row in rows] for rows in inputs] == [order[:16], order[32:48]]
    assert len(seen) == len(batches) == 2
    for rows, (places, completion_ids), batch in zip(inputs, seen, batches, strict=True):
        assert [row["place"] for row in rows] == places
        assert all(len(set(places[start : start + GROUP])) == 1 for start in range(0, len(places), GROUP))
        lengths = batch["completion_mask"].sum(dim=1).tolist()
        rewarded = [row[:length].tolist() for row, length in zip(batch["completion_ids"], lengths, strict=True)]
        assert rewarded == [list(ids) for ids in completion_ids]


@pytest.mark.parametrize("steps_per_generation", [1, 4])
def test_every_tensor_of_a_batch_is_shuffled_and_split_together(steps_per_generation, make_trainer):
    """One more tensor, put into the batch, stays beside its completions; and the very dictionary comes back."""
    trainer = make_trainer(max_steps=8, steps_per_generation=steps_per_generation, num_iterations=2)
    original, shuffled = [], []

    def number(batch):
        batch["place"] = torch.arange(len(batch["completion_ids"])) + sum(len(known) for known in original)
        original.append(batch["completion_ids"].clone())

    def note(model, inputs, *args, **kwargs):
        assert inputs["place"].shape == (8,)
        ids = torch.cat([torch.nn.functional.pad(known, (0, 12 - known.shape[1])) for known in original])
        width = inputs["completion_ids"].shape[1]
        assert torch.equal(inputs["completion_ids"], ids[inputs["place"], :width])
        shuffled.append(inputs["place"].tolist())
        inputs.setdefault("times", []).append(len(shuffled))

    spy_on(trainer, "_generate_and_score_completions", after=number)
    spy_on(trainer, "compute_loss", before=note)
    trainer.train()
    once = [place for places in shuffled for place in places]
    assert len(original) == 8 // 2 // steps_per_generation
    assert sorted(set(once)) == list(range(8 * 4)) and all(once.count(place) == 2 for place in once)
    assert shuffled[0] != sorted(shuffled[0])


def test_a_batch_that_is_used_again_is_the_same_dictionary(make_trainer):
    """With `num_iterations > 1` a mark that was left in the batch is found the next time."""
    trainer = make_trainer(max_steps=4, num_iterations=2)
    found = []

    def mark(model, inputs, *args, **kwargs):
        found.append("mark" in inputs)
        inputs["mark"] = torch.zeros(1)

    spy_on(trainer, "compute_loss", before=mark)
    trainer.train()
    assert found == [False, True, False, True]


def test_the_policy_is_run_once_a_loss_on_the_rows_of_the_batch(make_trainer):
    """By position: model, tokens, mask, length of the completions; log-probabilities and entropies come back."""
    trainer = make_trainer(max_steps=2)
    calls, outputs, batches = [], [], []
    spy_on(trainer, "compute_loss", before=lambda model, inputs, *args, **kwargs: batches.append(dict(inputs)))
    spy_on(
        trainer,
        "_get_per_token_logps_and_entropies",
        before=lambda *args, **kwargs: calls.append(args) if torch.is_grad_enabled() else None,
        after=lambda result: outputs.append(result) if torch.is_grad_enabled() else None,
    )
    trainer.train()
    assert len(calls) == len(batches) == 2
    for (model, input_ids, attention_mask, logits_to_keep, *_), batch, result in zip(calls, batches, outputs):
        assert trainer.accelerator.unwrap_model(model) is trainer.accelerator.unwrap_model(trainer.model)
        assert torch.equal(input_ids, torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1))
        assert torch.equal(attention_mask[:, -logits_to_keep:], batch["completion_mask"])
        assert result[0].shape == result[1].shape == batch["completion_ids"].shape


def test_prompts_are_tokenized_to_a_tuple_whose_first_is_the_ids_that_are_generated_from(make_trainer, tokenizer):
    trainer = make_trainer(max_steps=1)
    inputs, generated = [], []
    spy_on(trainer, "_generate_and_score_completions", before=lambda rows: inputs.extend(rows))
    spy_on(trainer, "_generate_single_turn", before=lambda prompt_ids, *rest: generated.extend(prompt_ids))
    trainer.train()
    prompts = [row["prompt"] for row in inputs]
    tokenized = trainer._tokenize_prompts(prompts)
    assert isinstance(tokenized, tuple)
    assert [list(ids) for ids in tokenized[0]] == [list(ids) for ids in generated]
    templated = [tokenizer.apply_chat_template(p, add_generation_prompt=True, return_dict=False) for p in prompts]
    assert [list(ids) for ids in tokenized[0]] == templated


def test_the_tokenizer_is_the_one_that_was_given(make_trainer, tokenizer):
    trainer = make_trainer()
    assert trainer._tokenizer is trainer.processing_class is tokenizer


def test_a_response_ends_with_the_end_token_or_at_the_limit(make_trainer):
    trainer = make_trainer()
    policy = TrainerPolicy(trainer)
    completions = policy.generate(policy.tokenize(make_pool(8)["prompt"]), number=0)
    assert len(completions) == 8
    assert all(len(ids) == 12 or ids[-1] == 1 for ids in completions)
    assert all(1 not in ids[:-1] for ids in completions)


class Events(TrainerCallback):
    """Notes in which order the trainer does things at the beginning of an epoch."""

    def __init__(self, trainer):
        self.events = []
        make_sampler = trainer._get_train_sampler
        trainer._get_train_sampler = lambda dataset=None: self.wrap(make_sampler(dataset))

    def wrap(self, sampler):
        self.events.append("sampler")
        events = self.events

        class Noting(type(sampler)):
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
        self.events.append("train")

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.events.append(f"epoch {state.epoch}")


def test_an_epoch_begins_with_its_callback_then_its_number_then_its_order(make_trainer):
    """Routes are taken over in `on_epoch_begin`, and the order is drawn afterwards. There is one sampler a run."""
    trainer = make_trainer(make_pool(8), num_train_epochs=2)
    callback = Events(trainer)
    trainer.add_callback(callback)
    trainer.train()
    first, second = ["epoch 0", "set_epoch 0", "iter"], ["epoch 1.0", "set_epoch 1", "iter"]
    assert callback.events == ["sampler", "train", *first, *second]


def test_a_checkpoint_is_saved_where_the_output_folder_and_the_step_say(make_trainer):
    """`_save_checkpoint` is called with model and trial, and nothing of the folder is there before."""
    trainer = make_trainer(max_steps=2, save_strategy="steps", save_steps=2)
    folders = []

    def note(model, trial):
        folder = Path(trainer._get_output_dir(trial=trial)) / f"checkpoint-{trainer.state.global_step}"
        folders.append((folder, folder.exists()))

    spy_on(trainer, "_save_checkpoint", before=note)
    trainer.train()
    ((folder, was_there),) = folders
    assert not was_there and (folder / "trainer_state.json").is_file()
    assert folder == Path(trainer.args.output_dir) / "checkpoint-2"


def test_the_warning_about_withheld_rewards_has_its_logger_and_its_words(make_trainer, monkeypatch):
    """A filter on this logger takes the warning away where rewards are withheld on purpose."""
    records = []

    class Keep(logging.Filter):
        def filter(self, record):
            records.append(str(record.msg))
            return False

    # Callbacks of other tests may have left their filters.
    monkeypatch.setattr(logging.getLogger("trl.trainer.grpo_trainer"), "filters", [Keep()])
    trainer = make_trainer(reward_funcs=lambda completions, **kwargs: [None] * len(completions), max_steps=1)
    trainer.train()
    assert any("All reward functions returned None" in message for message in records)
