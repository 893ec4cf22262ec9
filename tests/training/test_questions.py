"""A callback that is told what its prompts ask: ids, what people see, evaluation, columns of ids and questions."""

import logging

import pytest
from datasets import Dataset

from pivottrace_trl import build_prompt, pool_ids

from ..conftest import attach, digit_reward, make_pool
from .test_columns import refused


class TestQuestions:
    """A callback that is told what its prompts ask."""

    INSTRUCTION = "Put the answer in boxes."

    def pool(self, instruction=INSTRUCTION, num_prompts=32):
        pool = make_pool(num_prompts)
        questions = [prompt[0]["content"] for prompt in pool["prompt"]]
        prompts = [build_prompt(question, instruction, "You are a calculator.") for question in questions]
        return Dataset.from_dict(
            {"prompt": prompts, "solution": pool["solution"], "question": questions, "key": list(range(num_prompts))}
        )

    def test_ids_are_those_of_the_questions_and_people_see_them_alone(self, make_trainer):
        questions = [prompt[0]["content"] for prompt in make_pool()["prompt"]]
        for options in ({"instruction": self.INSTRUCTION}, {"question_column": "question"}):
            unlabelled = self.pool().remove_columns("solution")
            callback = attach(make_trainer(unlabelled, max_steps=1), annotator="queue", **options)
            assert callback.router.prompt_ids == pool_ids(make_pool())
            callback._trainer.train()
            asked = callback.ledger.queue()
            assert asked and {query.prompt for query in asked} <= set(questions)
            callback.detach()

    def test_evaluation_prompts_that_hide_a_question_are_refused(self, make_trainer):
        texts = [prompt[0]["content"] for prompt in make_pool(36)["prompt"]]
        forms = ["{instruction}\n\n{question}", "{question} {instruction}", "{question}"]
        rows = [form.format(question=texts[row], instruction=self.INSTRUCTION) for form in forms for row in (5, 34)]
        held_out = Dataset.from_dict({"prompt": [[{"role": "user", "content": text}] for text in rows]})
        for options in ({"instruction": self.INSTRUCTION}, {"instruction": self.INSTRUCTION, "id_column": "key"}):
            trainer = make_trainer(self.pool(), inputs={"eval_dataset": held_out})
            message = refused(trainer, "shares 3 prompts with the pool: its rows 0, 2, 4 are rows 5 of", **options)
        namespace = {"eval_dataset": held_out, "dataset": self.pool()}
        exec(message.split("`")[-2], namespace)
        # The same question twice is no evaluation either.
        assert namespace["eval_dataset"]["prompt"] == [held_out[1]["prompt"]]
        attach(make_trainer(self.pool(), inputs={"eval_dataset": namespace["eval_dataset"]}), **options)
        # A column of questions is compared where the evaluation set has it, else with its prompts.
        questions = held_out.select([1, 3, 5]).add_column("question", texts[33:36])
        attach(make_trainer(self.pool(), inputs={"eval_dataset": questions}), question_column="question")
        hidden = questions.select([0]).remove_columns("question").add_column("question", [texts[7]])
        match = "shares 1 prompts with the pool: its rows 0 are rows 7"
        trainer = make_trainer(self.pool(), inputs={"eval_dataset": hidden})
        refused(trainer, match, question_column="question")
        bare = Dataset.from_dict({"prompt": [build_prompt(texts[7], self.INSTRUCTION)]})
        trainer = make_trainer(self.pool(), inputs={"eval_dataset": bare})
        refused(trainer, match, question_column="question")

    def test_keys_and_questions_are_no_free_columns(self, make_trainer):
        seen = []

        def reward(completions, solution, key, question, **kwargs):
            seen.extend(zip(key, question, strict=True))
            return digit_reward(completions, solution)

        def blind(completions, solution, key=None, **kwargs):
            seen.extend([] if key is None else zip(key, key, strict=True))
            return digit_reward(completions, solution)

        for function, free in ((reward, []), (blind, []), (reward, ["key", "question"])):
            seen.clear()
            trainer = make_trainer(self.pool(), function, max_steps=6)
            options = {"id_column": "key", "question_column": "question", "free_columns": free}
            callback = attach(trainer, 8, label_column="solution", **options)
            trainer.train()
            labelled = [callback.ledger.label(identity) is not None for identity in callback.router.prompt_ids]
            shown = {key for key, _ in seen if key is not None}
            assert shown and (all(labelled[key] for key in shown) or free)
            assert not all(labelled[key] for key in shown) or not free
            callback.detach()

    @pytest.mark.parametrize("name", ["id_column", "question_column"])
    def test_the_label_is_neither_key_nor_question(self, name, make_trainer):
        pool = make_pool().map(lambda row: {"solution": "qz-secret-00-xj"})
        message = refused(make_trainer(pool), rf"`{name}` is the label column 'solution'", **{name: "solution"})
        assert "secret" not in message

    def test_a_question_that_tells_its_label_is_refused(self, make_trainer):
        pool = self.pool().map(lambda row: {"question": f"{row['question']} Answer: {row['solution']}"})
        refused(make_trainer(pool), "prompts hold their own label", question_column="question")

    def test_other_words_need_no_other_labels(self, make_trainer, caplog):
        words = ["Put the answer in boxes.", "Box it, and be brief.", "Answer with a number."]
        options = {"max_steps": 2, "save_strategy": "steps", "save_steps": 2}
        kept = []
        logging.getLogger("transformers").addHandler(caplog.handler)
        for number, instruction in enumerate(words):
            trainer = make_trainer(self.pool(instruction), **{**options, "max_steps": 2 + 2 * (number == 1)})
            callback = attach(trainer, 12, instruction=instruction)
            assert kept == sorted(callback.ledger.bought_ids)
            trainer.train(resume_from_checkpoint=number == 1)
            # The first responses answer the prompts as they are, or are none.
            responses = callback._gate.responses
            assert (responses is None) == (number == 1) == ("answer prompts in other words" in caplog.text)
            answers = [event["prompt_id"] for event in callback.ledger.events() if event["kind"] == "answer"]
            assert len(set(answers)) == len(answers) <= 12 and set(kept) <= set(answers)
            kept = sorted(answers)
            if responses is not None:
                asked = trainer._tokenizer.batch_decode([rollout.prompt_ids for rollout in responses.rollouts])
                assert all(instruction in text for text in asked)
            caplog.clear()
            callback.detach()
        logging.getLogger("transformers").removeHandler(caplog.handler)
