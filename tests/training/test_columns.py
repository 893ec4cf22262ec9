"""Which columns reward functions may see, what prompts may not tell, and evaluation beside a pool."""

import logging

import numpy as np
import pytest
from datasets import Dataset
from trl import GRPOTrainer, RLOOTrainer
from trl.rewards import accuracy_reward

from pivottrace_trl import PivotDensityCallback, TriageConfig, drop_duplicates
from pivottrace_trl.labels.vault import gives_away
from pivottrace_trl.training.rewards import ROW_COLUMN

from ..conftest import FIRST_DIGIT, attach, digit_reward, make_pool


def refused(trainer, match, error=ValueError, **options) -> str:
    before = dict(vars(trainer))
    with pytest.raises(error, match=match) as raised:
        PivotDensityCallback(trainer, **{"answer_format": FIRST_DIGIT, **options})
    assert vars(trainer) == before
    return str(raised.value)


def second_reward(completions, numeric, **kwargs):
    return [float(number is not None) for number in numeric]


def optional_reward(completions, level=None, **kwargs):
    return [0.0] * len(completions)


def two_labels():
    return make_pool().map(lambda row: {"numeric": int(row["solution"]), "level": "easy"})


class TestColumns:
    def test_what_is_read_and_locked_is_named_once(self, make_trainer, caplog):
        trainer = make_trainer(two_labels(), [digit_reward, second_reward, optional_reward])
        logging.getLogger("transformers").addHandler(caplog.handler)
        attach(trainer, label_column="solution")
        logging.getLogger("transformers").removeHandler(caplog.handler)
        (message,) = [record.getMessage() for record in caplog.records if "locked up" in record.getMessage()]
        assert "`numeric` (second_reward), `level` (optional_reward)" in message
        assert "`free_columns=['numeric', 'level']`" in message
        assert set(trainer.train_dataset.column_names) == {"prompt", ROW_COLUMN}

    def test_what_would_never_be_shown_is_refused(self, make_trainer):
        trainer = make_trainer(two_labels(), [digit_reward, second_reward, optional_reward])
        for annotator in ("queue", lambda rows: ["7"] * len(rows)):
            message = refused(
                trainer,
                r"require columns that are never shown: `numeric` \(second_reward\).*`free_columns=\['numeric'\]`",
                label_column="solution",
                annotator=annotator,
            )
            assert "level" not in message  # it has a default

    def test_an_annotators_answer_opens_nothing_of_the_dataset(self, make_trainer):
        seen, annotated = [], []

        def reward(completions, solution, numeric=None, **kwargs):
            seen.extend(numeric)
            return digit_reward(completions, solution)

        def annotator(rows):
            annotated.extend(rows)
            return ["7"] * len(rows)

        trainer = make_trainer(two_labels().remove_columns("solution"), reward, max_steps=2)
        callback = attach(trainer, label_column="solution", annotator=annotator, free_columns=["level"])
        trainer.train()
        assert callback.summary()["annotated"] > 0
        # Also where probes are verified.
        assert seen and set(seen) == {None}
        assert all(set(row) == {"prompt", "level"} for row in annotated)

    def test_the_verifier_has_its_second_column_where_probes_are_verified(self, make_trainer):
        seen, formatted = [], []

        def reward(completions, solution, numeric, **kwargs):
            seen.extend(zip(solution, numeric, strict=True))
            return digit_reward(completions, solution)

        def format_reward(completions, solution, **kwargs):
            formatted.extend(solution)
            return [1.0] * len(completions)

        # No vote of one digit is such a label.
        pool = two_labels().map(lambda row: {"solution": f"{row['numeric'] + 100}", "numeric": row["numeric"] + 100})
        trainer = make_trainer(pool, [reward, format_reward], num_train_epochs=1)
        config = TriageConfig(probe_size=4, min_agreement=0.0)
        callback = attach(trainer, annotation_budget=6, label_column="solution", config=config)
        trainer.train()
        assert len(seen) >= callback.summary()["probes"] > 0
        assert all(int(label) == number for label, number in seen)
        # Nothing rewards a vote that nobody can verify.
        bought = {label["solution"] for i in callback.router.prompt_ids if (label := callback.ledger.label(i))}
        assert formatted and set(formatted) <= bought
        assert any(entry.get("pivottrace/withheld_ratio") for entry in trainer.state.log_history)

    def test_a_free_column_is_no_label(self, make_trainer):
        trainer = make_trainer(two_labels(), [digit_reward, optional_reward])
        refused(trainer, r"several columns, \['solution', 'level'\].*`free_columns=`")
        attach(trainer, free_columns=["level"])
        assert set(trainer.train_dataset.column_names) == {"prompt", "level", ROW_COLUMN}

    @pytest.mark.parametrize(
        ("free", "match"),
        [
            ("level", "`free_columns` is 'level', but must be a list of columns"),
            (["nothing"], r"`free_columns` is \['nothing'\], but must be a list of columns"),
            (["solution"], "`free_columns` names the label column `solution`"),
        ],
    )
    def test_free_columns_that_are_none(self, free, match, make_trainer):
        refused(make_trainer(two_labels()), match, free_columns=free, label_column="solution")

    def test_transforms_are_refused_and_the_cure_works(self, make_trainer):
        def transform(batch):
            return {**batch, "computed": [label + "!" for label in batch["solution"]]}

        pool, seen = make_pool(), set()

        def reward(completions, solution, **kwargs):
            seen.update(kwargs)
            return digit_reward(completions, solution)

        trainer = make_trainer(pool.with_transform(transform), reward)
        message = refused(trainer, "The pool has a transform")
        cured = eval(message.split("`")[-2], {"dataset": pool.with_transform(transform), "transform": transform})
        assert "computed" in cured.column_names
        trainer = make_trainer(cured, reward)
        attach(trainer)
        assert set(trainer.train_dataset.column_names) == {"prompt", ROW_COLUMN}

    @pytest.mark.parametrize(
        "label", [{"ground_truth": "5", "style": "rule"}, b"5", np.datetime64("2026-01-01T00:00:00")]
    )
    def test_labels_that_no_vote_can_have(self, label, make_trainer):
        pool = Dataset.from_list([{"prompt": f"{i}?", "solution": label} for i in range(8)])
        refused(make_trainer(pool), "The label column `solution` holds values of the type .*dataset.map")

    def test_labels_that_are_lists(self, make_trainer):
        shown, pool = [], make_pool().map(lambda row: {"solution": [row["solution"], "six"]})

        def reward(completions, solution, **kwargs):
            shown.extend(solution)
            return [float(labels[0][-1] in c[0]["content"]) for c, labels in zip(completions, solution, strict=True)]

        trainer = make_trainer(pool, reward, max_steps=3)
        callback = attach(trainer, annotation_budget=4, config=TriageConfig(min_agreement=0.0))
        trainer.train()
        bought = [label["solution"] for i in callback.router.prompt_ids if (label := callback.ledger.label(i))]
        assert all(len(label) == 2 for label in bought) and any(label in bought for label in shown)
        votes = [label for label in shown if label not in bought]
        assert votes and all(len(vote) == 1 and vote[0].isdigit() for vote in votes)

    def test_a_replaced_dataset_is_noticed(self, make_trainer):
        trainer = make_trainer()
        callback = attach(trainer)
        callback._attachment.trainer.train_dataset = make_pool()
        with pytest.raises(RuntimeError, match="`train_dataset` was replaced"):
            trainer.train()


def user(text):
    return [{"role": "user", "content": text}]


def assistant(text, question="3+4=?"):
    return [*user(question), {"role": "assistant", "content": text}]


LONG = "a sum of squares that is never zero"
GIVEN_AWAY = [
    (assistant("The sum is 7, so"), "7"),
    (assistant("7"), 7),
    ("3+4=?\nAnswer: 7", "7"),
    ("3+4=? (solution: $7$)", "7"),
    ("3+4=? #### 7", "7"),
    (user("3+4=? \\boxed{7}."), "7"),
    ([{"role": "system", "content": "The answer is 7."}, *user("3+4=?")], "7"),
    (user([{"type": "text", "text": "3+4=? <answer>7</answer>"}]), "7"),
    (user("3+4=? The answers are x = 7"), ["8", "7"]),
    (user(f"Why is it {LONG}? Because."), LONG),
    (user("The answer is \\frac{1}{2}."), "$\\frac{1}{2}$"),
    (user("The answer: Paris"), "Paris"),
]
KEPT = [
    (user("What is 7 - 0?"), "7"),
    (user("Which is larger, 9.11 or 9.9?"), "9.9"),
    (user("Is it Paris, Rome or Berlin?"), "Berlin"),
    (user("Find x so that 3x + 1 is 7."), "7"),
    (user("Write the answer in base 7"), "7"),
    (user("What is the answer to 10 + 7"), "7"),
    (assistant("The numbers 17, 7.5 and 0.7 come first."), "7"),
    ([*assistant("4+3 is 7.", "4+3=?"), *user("3+4=?")], "7"),
    (user("3+4=?\nAnswer:"), "7"),
    (user("3+4=? Answer: 17"), "7"),
    (user("3+4=? Answer: 7"), None),
    (user("3+4=? Answer: "), ""),
    (user(")" * 200_000 + "x"), "7"),
    (user("Answer" + " :" * 100_000 + " 8"), "7"),
    (user("</b>" * 50_000), "7"),
]


class TestPrompts:
    @pytest.mark.parametrize(("prompt", "label"), GIVEN_AWAY)
    def test_prompts_that_tell_their_label(self, prompt, label):
        assert gives_away(prompt, label)

    @pytest.mark.parametrize(("prompt", "label"), KEPT)
    def test_prompts_that_do_not(self, prompt, label):
        assert not gives_away(prompt, label)

    def test_they_are_refused_with_their_rows_and_nothing_else_is_told(self, make_trainer):
        rows = [{"prompt": user(f"{i}+90=?"), "solution": f"{i + 90}"} for i in range(16)]
        rows[3]["prompt"] = assistant("So it is 93, because", "3+90=?")
        rows[8]["prompt"] = user("8+90=? Answer: 98")
        message = refused(make_trainer(Dataset.from_list(rows)), "2 of 16 prompts hold their own label .* rows 3, 8")
        assert "93" not in message and "98" not in message

    def test_choices_in_full_may_stand_in_a_prompt_on_the_users_word(self, make_trainer):
        def choices(i: int) -> list[str]:
            return [f"because the sky of planet {i} scatters {colour} light" for colour in ("red", "blue")]

        rows = [{"prompt": user(f"Why? {choices(i)}"), "solution": choices(i)[i % 2]} for i in range(8)]
        refused(make_trainer(Dataset.from_list(rows)), r'free_columns=\["prompt"\]')
        attach(make_trainer(Dataset.from_list(rows)), free_columns=["prompt"])

    def test_what_all_rows_share_tells_nothing(self, make_trainer):
        """An example, and the beginning of every response."""
        example = [{"role": "system", "content": "Example: 4+4=? Answer: 8"}]
        rows = [{"prompt": [*example, *assistant("Step 1:", f"{i}+1=?")], "solution": f"{i + 1}"} for i in range(16)]
        attach(make_trainer(Dataset.from_list(rows)))

    def test_fields_that_no_template_reads_are_refused(self, make_trainer):
        rows = [{"prompt": [{**user(f"{i}+1=?")[0], "answer": f"{i + 1}"}], "solution": f"{i + 1}"} for i in range(8)]
        refused(make_trainer(Dataset.from_list(rows)), r"Row 0 of the pool has a message with the fields \['answer'\]")
        parts = [{"type": "text", "text": "?", "gold": "1"}]
        rows[1] = {"prompt": user(parts), "solution": "1"}
        refused(make_trainer(Dataset.from_list(rows[1:2])), r"fields \['gold'\]", annotation_budget=1)


@pytest.mark.parametrize("format", ["torch", "numpy", "arrow"])
def test_the_format_of_the_dataset_does_not_matter(format, make_trainer):
    shown = []

    def reward(completions, solution, level, **kwargs):
        shown.extend([*solution, *level])
        return digit_reward(completions, solution)

    pool = two_labels().map(lambda row: {"level": 3}).with_format(format)
    trainer = make_trainer(pool, reward, max_steps=2)
    callback = attach(trainer, label_column="solution", free_columns=["level"])
    trainer.train()
    assert {type(value) for value in shown} == {int, str} and callback.summary()["annotated"] > 0
    callback.detach()
    assert trainer.train_dataset is pool


class TestFormOfPrompts:
    @pytest.fixture
    def plain_pool(self):
        pool = make_pool()
        return Dataset.from_dict({"prompt": [p[0]["content"] for p in pool["prompt"]], "solution": pool["solution"]})

    @pytest.mark.parametrize("reward", [accuracy_reward, digit_reward])
    def test_texts_under_a_conversational_reward(self, reward, plain_pool, make_trainer):
        trainer = make_trainer(plain_pool, reward)
        message = refused(trainer, f"plain texts.*`{reward.__name__}` reads conversations")
        cured = eval(message.split("`")[-2], {"dataset": plain_pool})
        attach(make_trainer(cured, reward))

    def test_texts_under_a_reward_that_reads_them_or_fails_in_its_own_way(self, plain_pool, make_trainer):
        def reads_texts(completions, solution, **kwargs):
            return [float(completion.strip() == label) for completion, label in zip(completions, solution)]

        def fails(completions, **kwargs):
            raise ConnectionError

        attach(make_trainer(plain_pool, [reads_texts, fails]))

    def test_nothing_is_called_for_conversations(self, make_trainer):
        def fails(completions, solution, **kwargs):
            raise AssertionError

        attach(make_trainer(reward_funcs=fails))


class TestEvaluation:
    @pytest.mark.parametrize("kind", [GRPOTrainer, RLOOTrainer], ids=["grpo", "rloo"])
    def test_evaluating_on_the_pool_leaves_nothing(self, kind, make_trainer):
        labels, pool = set(), make_pool(12)

        def reward(completions, solution, **kwargs):
            labels.update(solution)
            return digit_reward(completions, solution)

        trainer = make_trainer(pool, reward, kind=kind, max_steps=4, per_device_eval_batch_size=8)
        callback = attach(trainer, annotation_budget=4)
        trainer.train()
        router, monitor = callback.router, callback.label_router.monitor

        def everything():
            callback._fresh.merge()
            evidence = {name: value.tolist() for name, value in vars(router.evidence).items()}
            return [
                evidence,
                router.scores.tolist(),
                dict(router.suggestions),
                monitor.state_dict(),
                callback.summary(),
            ]

        before = repr(everything())
        labels.clear()
        metrics = trainer.evaluate(trainer.train_dataset)
        assert repr(everything()) == before
        bought = {label["solution"] for i in router.prompt_ids if (label := callback.ledger.label(i))}
        assert labels == bought < set(pool["solution"]) and "eval_reward" in metrics

    @pytest.mark.parametrize("is_several", [False, True])
    def test_shared_prompts_are_refused(self, is_several, make_trainer):
        system = [{"role": "system", "content": "Think."}]
        questions = [*make_pool(36)["prompt"]]
        held_out = Dataset.from_list(
            [{"prompt": [*system, *questions[row]], "solution": "0"} for row in (33, 5, 34, 7, 35)]
        )
        name = r"eval_dataset\['held out'\]" if is_several else "eval_dataset"
        trainer = make_trainer(inputs={"eval_dataset": {"held out": held_out} if is_several else held_out})
        match = f"`{name}` shares 2 prompts with the pool: its rows 1, 3 are rows 5, 7 of the pool"
        message = refused(trainer, match)
        namespace = {"eval_dataset": held_out, "dataset": make_pool()}
        exec(message.split("`")[-2], namespace)
        assert namespace["eval_dataset"]["prompt"] == [held_out[row]["prompt"] for row in (0, 2, 4)]
        attach(make_trainer(inputs={"eval_dataset": namespace["eval_dataset"]}))

    def test_shared_prompts_that_come_later_are_refused(self, make_trainer):
        seen = []

        def reward(completions, solution, **kwargs):
            seen.extend(solution)
            return digit_reward(completions, solution)

        pool = make_pool()
        trainer = make_trainer(pool, reward)
        attach(trainer)
        with pytest.raises(ValueError, match="The evaluation batch shares . prompts with the pool"):
            trainer.evaluate(pool)
        assert seen == []

    def test_duplicates_and_what_was_seen_are_dropped(self):
        pool = make_pool(4)
        longer = Dataset.from_list([*make_pool(6), make_pool(6)[5]])
        assert drop_duplicates(longer, seen_in=pool)["prompt"] == make_pool(6)["prompt"][4:]


class TestDetach:
    def test_not_while_training_runs(self, make_trainer):
        callback, said = None, []

        def reward(completions, solution, **kwargs):
            if kwargs["trainer_state"].global_step == 1:
                try:
                    callback.detach()
                except RuntimeError as error:
                    said.append(str(error))
            return digit_reward(completions, solution)

        trainer = make_trainer(reward_funcs=reward, max_steps=3)
        before = dict(vars(trainer))
        callback = attach(trainer)
        trainer.train()
        assert said and "`detach()` was called while training runs" in said[0] and trainer.state.global_step == 3
        callback.detach()
        assert all(vars(trainer)[name] is before[name] for name in ("train_dataset", "reward_funcs"))
        assert not [name for name in ("train", "_calculate_rewards", "_save_checkpoint") if name in vars(trainer)]

    def test_after_training_that_was_interrupted(self, make_trainer):
        def reward(completions, solution, trainer_state, **kwargs):
            if trainer_state.global_step == 1:
                raise KeyboardInterrupt
            return digit_reward(completions, solution)

        trainer = make_trainer(reward_funcs=reward)
        callback = attach(trainer)
        with pytest.raises(KeyboardInterrupt):
            trainer.train()
        callback.detach()
        assert trainer.train_dataset.column_names == ["prompt", "solution"] and trainer.reward_funcs == [reward]
