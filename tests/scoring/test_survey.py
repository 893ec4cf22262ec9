"""Surveys: what is kept, what is read again, and what is not mixed."""

import numpy as np
import pytest
import torch

from pivottrace_trl.scoring.policy import ModelPolicy
from pivottrace_trl.scoring.survey import Survey
from pivottrace_trl.tracing.rollouts import even_batches

from ..conftest import FIRST_DIGIT, make_model


PROMPTS = [f"{i}+{i}=?" + "0" * (i % 3) for i in range(7)]


@pytest.fixture
def survey(tokenizer, tmp_path):
    def make(model=None, num_responses=1, seed=0):
        policy = ModelPolicy(model or make_model("llama"), tokenizer, 12, 1.0, batch_size=3, seed=seed)
        return Survey(tmp_path / "survey", policy, PROMPTS, FIRST_DIGIT, {"newest"}, num_responses)

    return make


def test_what_is_kept_is_read_again(survey, generated, tmp_path):
    first = survey().run(progress=False)
    assert len(first.rollouts) == len(first.texts) == len(first.traces) == 7 and first.agreement is None
    assert first.answers == first.votes == [FIRST_DIGIT.extract(text) for text in first.texts]
    assert first.num_tokens == sum(len(r.prompt_ids) + len(r.completion_ids) for r in first.rollouts)
    generated.clear()
    for again in (survey().run(progress=False), survey().load(first.identity)):
        assert (again.rollouts, again.answers, again.heads) == (first.rollouts, first.answers, first.heads)
        for one, other in zip(first.traces, again.traces, strict=True):
            assert len(one) == len(other) and np.array_equal(one.entropy, other.entropy)
    assert not generated
    assert survey().load("0" * 16) is None
    (tmp_path / "survey" / "responses-000000.parquet").unlink()
    with pytest.raises(ValueError, match="lacks responses-000000.parquet"):
        survey().load(first.identity)


def test_nothing_is_taken_from_another_survey(survey, generated):
    identities = {survey().run(progress=False).identity}
    model = make_model("llama")
    with torch.no_grad():
        next(model.parameters()).add_(0.01)
    for options in ({"model": model}, {"num_responses": 2}, {"seed": 1}):
        generated.clear()
        identities.add(survey(**options).run(progress=False).identity)
        assert len(generated) == (5 if "num_responses" in options else 3)
    assert len(identities) == 4


def test_several_responses_to_each_prompt(survey):
    found = survey(num_responses=2).run(progress=False)
    assert len(found.rollouts) == len(found.votes) == 7 and set(found.agreement) <= {0.0, 0.5, 1.0}
    assert [trace.agreement for trace in found.traces] == found.agreement
    assert found.num_tokens > sum(len(r.prompt_ids) + len(r.completion_ids) for r in found.rollouts)


def test_batches_are_even_and_full():
    prompts = [[0] * length for length in (1, 5, 2, 5, 3, 4, 1)]
    batches = even_batches(prompts, 3)
    assert batches == [[1, 3, 5], [4, 2, 0], [6, 6, 6]]
    assert even_batches(prompts, 4) == [[1, 3, 5, 4], [2, 0, 6, 6]]
    assert even_batches([], 4) == []


def test_a_generator_that_returns_too_few_is_told_of(survey, monkeypatch):
    monkeypatch.setattr(ModelPolicy, "generate", lambda policy, prompt_ids, number: [[5]])
    with pytest.raises(RuntimeError, match="returned 1 responses for 3 prompts"):
        survey().run(progress=False)
