"""Accuracy as a metric of the `evaluate` library."""

import pytest

from pivottrace_trl import MathAccuracy


def test_avg_at_k():
    predictions = [[r"\boxed{4}", "it is 5"], ["#### 1/2", r"\boxed{0.5}"], [r"\boxed{(1,2)}", "no idea"]]
    result = MathAccuracy().compute(predictions=predictions, references=["4", "worked out #### 0.5", "(1, 2)"])
    assert result == {"accuracy": pytest.approx(2 / 3), "accuracy_per_problem": [0.5, 1.0, 0.5], "num_samples": 2}


def test_batches_add_up():
    metric = MathAccuracy()
    metric.add_batch(predictions=[["1"], ["2"]], references=["1", "3"])
    metric.add(prediction=["7"], reference="7")
    assert metric.compute(num_workers=2)["accuracy_per_problem"] == [1.0, 0.0, 1.0]


def test_answers_that_never_end_are_wrong():
    hanging = r"\boxed{" + "{" * 500 + "}" * 500 + "}"
    result = MathAccuracy().compute(predictions=[[hanging], ["3"]], references=["{" * 400, "3"], timeout=1.0)
    assert result["accuracy_per_problem"] == [0.0, 1.0]


@pytest.mark.parametrize("predictions", [[["1"], ["1", "2"]], [[], []]])
def test_uneven_samples(predictions):
    with pytest.raises(ValueError, match="samples each, but avg@k needs the same number"):
        MathAccuracy().compute(predictions=predictions, references=["1", "2"])
