"""The demo's pool: chains of additions and subtractions, worked out step by step."""

import re
from collections.abc import Iterator

import numpy as np
from datasets import Dataset


MIN_TERMS, MAX_TERMS = 2, 8
# Shares of chains with 2, 3, ..., 8 terms in a pool. The embedded model masters about a quarter of such a pool (8 of 8
# answers right), and about a twentieth is out of its reach (0 of 8).
POOL_WEIGHTS = np.array([0.36, 0.22, 0.14, 0.10, 0.08, 0.06, 0.04])
_PROBLEM = re.compile(r"(\d+)((?:[+-]\d+)+)=\?")


def sample_problem(rng: np.random.Generator, num_terms: int) -> str:
    """
    Draw a problem such as `"17+5-8=?"`.

    Args:
        rng (`np.random.Generator`):
            Source of randomness.
        num_terms (`int`):
            Number of operands, the level of the problem.

    Returns:
        `str`: a problem whose operands have one or two digits and whose partial sums are between 0 and 199.
    """
    total = int(rng.integers(1, 100))
    problem = str(total)
    for _ in range(num_terms - 1):
        operand = int(rng.integers(1, 10)) if rng.random() < 0.4 else int(rng.integers(10, 100))
        can_add, can_subtract = total + operand <= 199, operand <= total
        adds = can_add if can_add != can_subtract else rng.random() < 0.5
        total += operand if adds else -operand
        problem += f"{'+' if adds else '-'}{operand}"
    return problem + "=?"


def work_out(problem: str, rng: np.random.Generator | None = None, carelessness: float = 0.0) -> tuple[str, str]:
    r"""
    Solve a problem step by step.

    Args:
        problem (`str`):
            Problem such as `"17+5-8=?"`.
        rng (`np.random.Generator`, *optional*):
            Source of mistakes. Without it there are none.
        carelessness (`float`, *optional*, defaults to `0.0`):
            Probability of forgetting the carry (or the borrow) in a step that has one. Later steps continue from the
            wrong sum.

    Returns:
        `tuple[str, str]`: chain of thought such as `"17+5=22;22-8=14;\boxed{14}"`, and the answer.

    Raises:
        ValueError: if the problem is not a chain of additions and subtractions.
    """
    match = _PROBLEM.fullmatch(problem)
    if match is None:
        raise ValueError(f"{problem!r} is not a problem such as '17+5-8=?'.")
    total, steps = int(match[1]), ""
    for term in re.findall(r"[+-]\d+", match[2]):
        result = total + int(term)
        if rng is not None and _has_carry(total, int(term)) and rng.random() < carelessness:
            result += -10 if int(term) > 0 else 10
        steps += f"{total}{term}={result};"
        total = result
    return rf"{steps}\boxed{{{total}}}", str(total)


def _has_carry(total: int, term: int) -> bool:
    """Whether the ones carry over (addition) or borrow (subtraction)."""
    if term > 0:
        return total % 10 + term % 10 > 9
    return total % 10 < -term % 10


def num_terms(problem: str) -> int:
    """Level of a problem, which is its number of operands."""
    return len(re.findall(r"\d+", problem))


def has_carry(problem: str) -> bool:
    """Whether any step of a problem carries or borrows, where the embedded model makes mistakes."""
    # A solver who forgets every carry is wrong exactly if there is one.
    return work_out(problem, np.random.default_rng(0), carelessness=1.0) != work_out(problem)


def _distinct_problems(rng: np.random.Generator, excluded: set[str], easy_ratio: float) -> Iterator[str]:
    seen = set(excluded)
    levels = np.arange(MIN_TERMS, MAX_TERMS + 1)
    while True:
        # Without easy problems, no random number is drawn for the choice, so that the pools of all seeds stay the
        # same.
        is_easy = easy_ratio > 0 and rng.random() < easy_ratio
        problem = sample_problem(rng, MIN_TERMS if is_easy else int(rng.choice(levels, p=POOL_WEIGHTS)))
        while is_easy and (has_carry(problem) or problem in seen):
            problem = sample_problem(rng, MIN_TERMS)
        if problem not in seen:
            seen.add(problem)
            yield problem


def make_pool(num_prompts: int, seed: int, exclude: Dataset | None = None, easy_ratio: float = 0.0) -> Dataset:
    """
    Generate distinct problems, short chains more often than long ones.

    Args:
        num_prompts (`int`):
            Size of the pool.
        seed (`int`):
            Random seed.
        exclude ([`~datasets.Dataset`], *optional*):
            Pool whose problems are excluded, to make held-out problems.
        easy_ratio (`float`, *optional*, defaults to `0.0`):
            Share of the pool that is replaced by two-term problems without a carry, which the embedded model masters,
            in `[0, 1]`.

    Returns:
        [`~datasets.Dataset`]: columns `prompt` (conversation) and `solution` (string).
    """
    excluded = set() if exclude is None else {prompt[0]["content"] for prompt in exclude["prompt"]}
    problems = _distinct_problems(np.random.default_rng(seed), excluded, easy_ratio)
    chosen = [next(problems) for _ in range(num_prompts)]
    return Dataset.from_dict(
        {
            "prompt": [[{"role": "user", "content": problem}] for problem in chosen],
            "solution": [work_out(problem)[1] for problem in chosen],
        }
    )
