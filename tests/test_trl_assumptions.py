"""
What the callback takes for granted of TRL, on a trainer of TRL alone: a new version that breaks one of these fails
here under the name of the assumption, and not somewhere in a run.
"""

import pytest

from pivottrace_trl.cli import main
from pivottrace_trl.training import assumptions, versions
from pivottrace_trl.training.assumptions import ASSUMPTIONS, SETTINGS, any_reward, check
from pivottrace_trl.training.policy import TrainerPolicy

from .conftest import make_pool


@pytest.fixture
def make(make_trainer):
    """A trainer on a random model, as the checks want it."""

    def make(reward=any_reward, columns=None, **settings):
        pool = make_pool(32)
        for name, values in (columns or {}).items():
            pool = pool.add_column(name, values)
        return make_trainer(pool, reward, **{**SETTINGS, **settings})

    return make


@pytest.mark.parametrize("assumption", ASSUMPTIONS, ids=lambda assumption: assumption.__name__)
def test_it_holds(assumption, make):
    assert check(assumption, make) == ""


def test_the_tokenizer_is_the_one_that_was_given(make_trainer, tokenizer):
    trainer = make_trainer()
    assert trainer._tokenizer is trainer.processing_class is tokenizer


def test_prompts_are_tokenized_with_the_chat_template(make_trainer, tokenizer):
    prompts = make_pool(8)["prompt"]
    templated = [tokenizer.apply_chat_template(p, add_generation_prompt=True, return_dict=False) for p in prompts]
    assert TrainerPolicy(make_trainer()).tokenize(prompts) == [list(ids) for ids in templated]


def changed(trainer, name, change):
    """A method whose result is changed, as another version of TRL would."""
    method = getattr(trainer, name)
    setattr(trainer, name, lambda *args, **kwargs: change(method(*args, **kwargs)))
    return trainer


def copied(batch):
    return dict(batch)


def reversed_places(batch):
    batch["place"] = batch["place"].flip(0)
    return batch


BREAKS = {
    "every_tensor_of_a_batch_is_shuffled_and_split_together": ("_prepare_inputs", reversed_places),
    "a_batch_that_is_used_again_is_the_same_dictionary": ("_prepare_inputs", copied),
    "a_response_ends_with_the_end_token_or_at_the_limit": (
        "_generate_single_turn", lambda result: ([[*ids, 0] for ids in result[0]], *result[1:]),
    ),
    "prompts_are_tokenized_to_a_tuple_whose_first_is_what_is_generated_from": ("_tokenize_prompts", list),
    "the_policy_is_run_once_a_loss_on_the_rows_of_the_batch": (
        "_get_per_token_logps_and_entropies", lambda result: (result[0][:, 1:], *result[1:]),
    ),
    "a_checkpoint_is_saved_where_the_output_folder_and_the_step_say": (
        "_get_output_dir", lambda folder: folder + "-elsewhere",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BREAKS)
def test_a_trl_that_breaks_it_is_noticed(name, make):
    method, change = BREAKS[name]
    assert check(getattr(assumptions, name), lambda *args, **kw: changed(make(*args, **kw), method, change)) != ""


def doctor(capsys, monkeypatch, found=None):
    """The command with one cheap assumption: exit status and output."""
    monkeypatch.setattr(assumptions, "ASSUMPTIONS", ASSUMPTIONS[6:7])
    if found is not None:
        monkeypatch.setattr(versions, "installed", lambda package: found)
    try:
        status = main(["doctor"])
    except SystemExit as stop:
        status = stop.code
    return status, capsys.readouterr().out


def test_the_doctor_says_what_holds(capsys, monkeypatch):
    status, text = doctor(capsys, monkeypatch)
    assert status == 0 and "Verdict: the callback fits this TRL." in text and "newer" not in text
    for word in ("trl 1.", "transformers", "device", "precision", "attention", "vllm", "holds  a response ends with"):
        assert word in text


def test_the_doctor_accepts_a_newer_trl_that_does_what_we_need(capsys, monkeypatch):
    status, text = doctor(capsys, monkeypatch, "9.0")
    assert status == 0 and "newer than what we tested" in text


def test_the_doctor_fails_where_a_name_is_missing(capsys, monkeypatch):
    monkeypatch.setattr("pivottrace_trl.training.private_names.ATTRIBUTES", ("_tokenizer", "_of_another_trl"))
    status, text = doctor(capsys, monkeypatch)
    assert status == 1 and "FAILS  every private name" in text and "there is no `_of_another_trl`" in text


def test_the_doctor_fails_where_an_assumption_does(capsys, monkeypatch):
    monkeypatch.setattr(assumptions, "check", lambda assumption, make: "not so")
    status, text = doctor(capsys, monkeypatch)
    assert status == 1 and "FAILS  a response ends" in text and "does not fit" in text
