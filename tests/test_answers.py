"""Extraction, equivalence, votes."""

import threading

import pytest

from pivottrace_trl import extract_answer, is_correct, majority_vote
from pivottrace_trl.answers import are_equivalent, as_label


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"2 + 2 is \boxed{4}.", "4"),
        (r"so it is \boxed{\frac{1}{3}}", r"\frac{1}{3}"),
        ("The answer is 72.", "72"),
        ("Total = $1,000 dollars", "1000"),
        ("She earns 12*0.8=10. #### 10", "10"),
        (r"we get \boxed{(1,2)}", "(1,2)"),
        ("no idea", None),
        ("", None),
        (r"\boxed{}", None),
    ],
)
def test_extraction(text, answer):
    assert extract_answer(text) == answer


@pytest.mark.parametrize(
    ("response", "label", "expected"),
    [
        (r"\boxed{0.5}", r"\frac{1}{2}", True),
        ("The answer is 1000", "a lot of work\n#### 1,000", True),
        (r"\( 48 + 24 = 72 \) clips", "#### 72", True),
        ("I get 10", "#### 11", False),
        ("nothing", "#### 11", False),
        (r"\boxed{(1,2)}", "(1,2)", True),
    ],
)
def test_correctness(response, label, expected):
    assert is_correct(response, label) is expected


def test_equivalence_is_symmetric():
    answers = ["1/2", "0.5", r"\frac{1}{2}", "3", "3.0", "(1,2)", "(1, 2)", "[1,2]", "x+1", "1+x", "7"]
    for first in answers:
        for second in answers:
            assert are_equivalent(first, second) == are_equivalent(second, first)
    assert are_equivalent("1/2", r"\frac{1}{2}") and are_equivalent("(1,2)", "(1, 2)")
    assert not are_equivalent("(1,2)", "[1,2]") and not are_equivalent("3", "7")


def test_bare_tuples_are_set_in_math_mode():
    assert as_label("(1,2)") == "$(1,2)$"
    assert as_label("[0,1)") == "$[0,1)$"
    assert as_label("1000") == "1000"


def test_vote():
    vote = majority_vote([r"\boxed{0.5}", r"\boxed{3}", r"\boxed{\frac{1}{2}}", "dunno"])
    assert (vote.answer, vote.agreement, vote.members) == ("0.5", 0.5, (0, 2))
    assert majority_vote([r"\boxed{3}", r"\boxed{4}"]).members == (0,)
    nothing = majority_vote(["a", "b"])
    assert (nothing.answer, nothing.agreement, nothing.members) == (None, 0.0, ())


def test_votes_work_off_the_main_thread():
    found = []
    thread = threading.Thread(target=lambda: found.append(majority_vote([r"\boxed{1/2}", r"\boxed{0.5}"]).agreement))
    thread.start()
    thread.join()
    assert found == [1.0]


def test_runaway_responses_are_bounded():
    assert extract_answer("1 " * 200_000 + r"\boxed{7}") == "7"
    assert extract_answer(r"\boxed{" + "9" * 5000 + "}") is None
