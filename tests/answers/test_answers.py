"""Extraction, equivalence, votes."""

import contextlib
import os
import shutil
import threading
import time

import psutil
import pytest
from trl.rewards import accuracy_reward

from pivottrace_trl import is_correct, majority_vote
from pivottrace_trl.answers import AnswerReader, MathFormat
from pivottrace_trl.answers.plain import find_boxed


MATH = MathFormat()


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
    assert MATH.extract(text) == answer


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (r"first \boxed{1}, then \boxed{ \frac{1}{2} }.", r"\frac{1}{2}"),
        (r"\boxed{\left\{ 1 \right.} apples", r"\left\{ 1 \right."),  # escaped braces are characters
        (r"\boxed{1} \boxed{2", None),
        (r"\boxed{ }", ""),
        ("1", None),
    ],
)
def test_the_last_box(text, content):
    assert find_boxed(text) == content


@pytest.mark.parametrize(
    ("response", "label", "expected"),
    [
        (r"\boxed{0.5}", r"\frac{1}{2}", True),
        ("The answer is 1000", "a lot of work\n#### 1,000", True),
        (r"\( 48 + 24 = 72 \) clips", "#### 72", True),
        ("I get 10", "#### 11", False),
        ("nothing", "#### 11", False),
        (r"\boxed{(1,2)}", "(1,2)", True),
        # Several values: all of them, in any order, and not the last alone.
        (r"\boxed{-2, 1}", "1, -2", True),
        (r"\boxed{-2}", "1, -2", False),
        (r"\boxed{7,3,5}", "3, 5, 7", True),
        (r"\boxed{357}", "3,5,7", False),
        # Thousands and amounts of money, as MATH-500 writes them.
        (r"\boxed{32348}", r"\$32,\!348", True),
        (r"\boxed{\$18.90}", r"\$18.90", True),
        (r"\boxed{11111111100}", r"11,\! 111,\! 111,\! 100", True),
        (r"\boxed{4.5 \times 10^{33}}", "4.5e33", True),
    ],
)
def test_correctness(response, label, expected):
    assert is_correct(response, label) is expected


def test_equivalence_is_symmetric():
    answers = ["1/2", "0.5", r"\frac{1}{2}", "3", "3.0", "(1,2)", "(1, 2)", "[1,2]", "x+1", "1+x", "7"]
    for first in answers:
        for second in answers:
            assert MATH.are_equivalent(first, second) == MATH.are_equivalent(second, first)
    assert MATH.are_equivalent("1/2", r"\frac{1}{2}") and MATH.are_equivalent("(1,2)", "(1, 2)")
    assert not MATH.are_equivalent("(1,2)", "[1,2]") and not MATH.are_equivalent("3", "7")


def test_bare_tuples_are_set_in_math_mode():
    assert MATH.to_label("(1,2)") == "$(1,2)$"
    assert MATH.to_label("[0,1)") == "$[0,1)$"
    assert MATH.to_label("1000") == "1000"


TYPED = [
    ("42", "42", "42"),
    (" 1,234 ", "1,234", "1234"),
    (r"\frac{1}{2}", r"$\frac{1}{2}$", "0.5"),
    ("½", "1/2", "0.5"),
    ("1 2/3", "5/3", r"\frac{5}{3}"),
    ("-1 1/2", "-3/2", "-1.5"),
    ("−3", "-3", "-3"),
    ("+7", "7", "7"),
    ("2π", r"$2\pi$", r"2\pi"),
    (r"2\pi", r"$2\pi$", r"2\pi"),
    (r"\sqrt{2}", r"$\sqrt{2}$", r"\sqrt{2}"),
    ("(1, 2)", "$(1, 2)$", "(1,2)"),
    ("[0, 1)", "$[0, 1)$", "[0,1)"),
    ("x^2+1", "$x^2+1$", "1+x^2"),
    ("1.5e3", r"$1.5 \times 10^{3}$", "1500"),
    (r"\boxed{7}", "7", "7"),
    ("$5$", "5", "5"),
    ("3 + 4 = 7 #### 7", "7", "7"),
    ("50%", "50%", "50\\%"),
]


@pytest.mark.parametrize(("typed", "label", "boxed"), TYPED)
def test_what_people_type_becomes_a_label_that_trl_understands(typed, label, boxed):
    reading = MATH.read(typed)
    assert reading.label.split() == label.split() and reading.preview
    wrong, right = ([{"role": "assistant", "content": rf"\boxed{{{answer}}}"}] for answer in ("17", boxed))
    assert accuracy_reward([right, wrong], [reading.label] * 2) == [1.0, 0.0]
    assert MATH.read(reading.label).label.split() == label.split()


@pytest.mark.parametrize("typed", ["", "  ", "$$", r"\boxed{}", "()", r"\frac{1}{", "٣", "\x00", "9" * 2000])
def test_what_cannot_be_read_is_refused(typed):
    with pytest.raises(ValueError, match="the answer is empty|reads (nothing|only .*) in|characters, more than"):
        MATH.read(typed)


def test_endless_mathematics_is_cut_off():
    with AnswerReader(timeout=1.0) as reader:
        assert reader.read("3").label == "3"
        first = reader._process
        with pytest.raises(ValueError, match="cannot be read within 1 seconds"):
            reader.read("{" * 500)
        assert reader.read("4").label == "4" and reader._process is not first
    assert reader._process is None


def test_a_process_of_its_own_reads_and_compares():
    with AnswerReader(timeout=60.0) as reader:
        assert reader.are_equivalent("1/2", "0.5") and not reader.are_equivalent("1/2", "0.51")
        with pytest.raises(ValueError, match="the answer is empty"):
            reader.read("")
        # A process that died is replaced.
        reader._process.kill()
        with contextlib.suppress(ValueError):
            reader.read("5")
        assert reader.read("6").label == "6"


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
    assert MATH.extract("1 " * 200_000 + r"\boxed{7}") == "7"
    assert MATH.extract(r"\boxed{" + "9" * 5000 + "}") is None


BOMBS = {
    "power of powers": r"\boxed{9^{9^{9^{9}}}}",
    "factorial of factorials": r"\boxed{(((9!)!)!)}",
    "factorial": r"\boxed{1000000!}",
    "a billion digits": r"\boxed{[1,10^{1000000000}]}",
    "binomial": r"\boxed{\binom{1000000}{500000}}",
    "sum": r"\boxed{\sum_{k=1}^{10000000} k^{k}}",
    "polynomial": r"\boxed{(a+b+c+d)^{100}}",
    "nested fractions": r"\boxed{" + r"\frac{1}{" * 10_000 + "1" + "}" * 10_000 + "}",
    "nested brackets": r"\boxed{" + "(" * 400 + "1" + ")" * 400 + "}",
    "open braces": "{" * 100_000,
    "open boxes": r"\boxed{" * 20_000,
    "digits": "9" * 100_000,
    "numbers": "1 " * 50_000,
    "odd digits": "\u0661\u0662\u0663 \u0664" * 20_000,
    "half a character": r"\boxed{\ud800}" + "\ud800",
    "formulas": "$1$ " * 25_000,
    "dots": "1." * 50_000,
    "backslashes": "\\" * 100_000,
}


# Those that run into the limits take their time.
FAST = {"factorial", "open braces", "open boxes", "digits", "half a character", "nested fractions", "dots"}


@pytest.mark.parametrize("bomb", [pytest.param(n, marks=[] if n in FAST else pytest.mark.slow) for n in BOMBS])
def test_votes_on_hostile_completions_end(bomb):
    """In the training loop a vote must end, and an answer that nobody can read must not cost the others theirs."""
    start = time.monotonic()
    vote = majority_vote([BOMBS[bomb], r"\boxed{7}", "It is 7.", r"\boxed{7.0}"])
    assert set(vote.members) >= {1, 2, 3} and vote.answer == "7"
    # Each of four answers may take 2 seconds, and comparisons 10 in all; on a busy machine the clock runs on.
    assert time.monotonic() - start < 60


def test_the_process_that_reads_answers_cannot_fill_the_memory():
    with AnswerReader(timeout=5.0) as reader:
        reader.extract("3")
        process = psutil.Process(reader._process.pid)
        assert not reader.are_equivalent("$10^{10^{9}}$", "$10^{10^{9}} + 1$")
        if psutil.LINUX:
            assert process.rlimit(psutil.RLIMIT_AS)[0] <= 2 * 2**30


def test_a_process_that_cannot_start_is_no_unreadable_answer(monkeypatch):
    monkeypatch.setattr("sys.executable", shutil.which("false"))
    with AnswerReader() as reader, pytest.raises(RuntimeError, match="did not start"):
        reader.extract("7")


def test_an_interrupted_call_leaves_no_answer_for_the_next(monkeypatch):
    with AnswerReader(timeout=60.0) as reader:
        assert reader.extract("6") == "6"

        def interrupt(timeout):
            raise KeyboardInterrupt

        monkeypatch.setattr(reader._lines, "get", interrupt)
        with pytest.raises(KeyboardInterrupt):
            reader.extract("7")
        assert reader.extract("8") == "8"


def test_a_forked_process_reads_answers_itself():
    assert MATH.extract("6") == "6"
    child = os.fork()
    if child == 0:
        os._exit(MATH.extract("7") != "7")
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert MATH.extract("8") == "8"
