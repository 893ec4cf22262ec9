"""Accuracy on mathematics as a metric of the `evaluate` library."""

import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from queue import SimpleQueue
from typing import Any

import evaluate
from datasets import Features, Sequence, Value

from ..answers import AnswerReader
from ..progress import progress_bar


class MathAccuracy(evaluate.Metric):
    """
    Share of right final answers, averaged over the samples of each problem (avg@k) and then over the problems.
    math-verify compares the answers in processes that are killed when they take too long; such an answer counts as
    wrong.

    Example:
    ```python
    >>> metric = MathAccuracy()
    >>> metric.compute(predictions=[[r"\\boxed{4}", "it is 5"], ["#### 1/2", "0.5"]], references=["4", "0.5"])
    {'accuracy': 0.75, 'accuracy_per_problem': [0.5, 1.0], 'num_samples': 2}
    ```
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Share of right final answers (avg@k), compared by math-verify.",
            citation="",
            inputs_description=(
                "predictions: for each problem its sampled responses, a list of strings of the same length for all.\n"
                "references: for each problem its gold answer; in a text with `####` (GSM8K) the part after it.\n"
                "num_workers (int, optional): processes that verify, one per core by default.\n"
                "timeout (float, optional, defaults to 5.0): seconds after which an answer counts as wrong.\n"
                "progress (bool, optional, defaults to False): whether to show a progress bar.\n"
                "Returns accuracy, accuracy_per_problem and num_samples. Raises ValueError if the problems have "
                "different numbers of samples, or one has none."
            ),
            features=Features({"predictions": Sequence(Value("string")), "references": Value("string")}),
        )

    def _compute(
        self,
        predictions: list[list[str]],
        references: list[str],
        num_workers: int | None = None,
        timeout: float = 5.0,
        progress: bool = False,
    ) -> dict[str, Any]:
        counts = {len(samples) for samples in predictions}
        if len(counts) != 1 or 0 in counts:
            raise ValueError(
                f"The problems have {sorted(counts)} samples each, but avg@k needs the same number, at least 1, for "
                "every problem. Sample the missing ones, or evaluate the groups separately."
            )
        (num_samples,) = counts
        pairs = [(text, gold) for samples, gold in zip(predictions, references, strict=True) for text in samples]
        num_workers = min(num_workers or os.cpu_count() or 1, len(pairs))
        readers: SimpleQueue[AnswerReader] = SimpleQueue()
        with ExitStack() as stack, progress_bar("Verifying", len(pairs), progress) as advance:
            for _ in range(num_workers):
                readers.put(stack.enter_context(AnswerReader(timeout)))

            def verify(pair: tuple[str, str]) -> bool:
                reader = readers.get()
                try:
                    return reader.is_correct(*pair)
                finally:
                    readers.put(reader)
                    advance(1)

            executor = stack.enter_context(ThreadPoolExecutor(num_workers))
            is_right = list(executor.map(verify, pairs))
        shares = [
            sum(is_right[start : start + num_samples]) / num_samples for start in range(0, len(pairs), num_samples)
        ]
        return {
            "accuracy": sum(shares) / len(shares),
            "accuracy_per_problem": shares,
            "num_samples": num_samples,
        }
