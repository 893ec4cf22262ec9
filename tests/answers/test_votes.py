"""What votes, and what is kept as a label, is read wholly: the verifier pays those who voted, and nobody else."""

import itertools
import json
import random
import re
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from trl.rewards import accuracy_reward

from pivottrace_trl import TextFormat, majority_vote
from pivottrace_trl.answers import AnswerReader, ChoiceFormat, MathFormat, NumberFormat
from pivottrace_trl.answers.notation import bare
from pivottrace_trl.answers.vote import vote_on


FORMS = json.loads((Path(__file__).with_name("answer_forms.json")).read_text())
# Numbers all look alike: a few of the 1,474 stand for the others.
ODD = [form for form in FORMS["math500"] + FORMS["by_hand"] if not re.fullmatch(r"-?\d+", form)]
PLAIN = [form for source in ("math500", "gsm8k", "mawps") for form in FORMS[source] if form not in ODD]
CORPUS = list(dict.fromkeys(ODD + random.Random(0).sample(PLAIN, 60)))
MATH = MathFormat()
WRAPPERS = [r"So it is \boxed{%s}.", r"$\boxed{%s}$", r"\[ \boxed{%s} \]", r"I got \(x = 3\), thus **\boxed{%s}**"]


def rewards(completions: list[str], label: str) -> list[float | None]:
    return accuracy_reward([[{"content": text}] for text in completions], [label] * len(completions))


def test_the_corpus_holds_real_answers():
    assert len({form for source in ("math500", "gsm8k", "mawps") for form in FORMS[source]}) > 300
    assert len(CORPUS) > 300


GROUPS = [
    # answers, the vote, its share
    (["1/x", "1/x", "1/x", "1"], "1/x", 0.75),
    (["12:30", "12:45", "12:00"], None, 0.0),
    (["1/x", "1/y", "1/z"], "1/x", 1 / 3),
    (["y = 2x+1", "y = 3x+1", "y = 4x+1", "y = 5x+1"], "y = 2x+1", 0.25),
    (["2x+1", "1+2x", "3"], "2x+1", 2 / 3),
    (["3x", "3x", "3"], "3x", 2 / 3),
    (["3+2i", "2i+3", "3"], "3+2i", 2 / 3),
    (["-1 < x < 5", "-1 < x < 5", "5"], "-1 < x < 5", 2 / 3),
    (["5!", "5!", "5"], "5!", 2 / 3),
    (["no", "on", "no"], None, 0.0),
    (["listen", "silent"], None, 0.0),
    (["2-Jan", "2-Jan", "2"], "2", 1 / 3),
    (["5", "5.0", "6"], "5", 2 / 3),
    # TRL strips units: these are paid for 5, whoever gives the label, but nobody can tell what they voted for.
    (["5", "5", "5m", "7"], "5", 0.5),
    ([r"18\text{ eggs}", "18", "18", "7"], "18", 0.5),
    ([r"18\text{ eggs}", r"18\text{ eggs}", r"18\text{ hens}"], None, 0.0),
    ([r"18\text{ eggs}", r"18\text{ eggs}", "7"], "7", 1 / 3),
    (["2c", "2s", "2c"], None, 0.0),
    # 50% is paid as 50 and as 0.5, which are not the same.
    (["50\\%", "50", "0.5"], None, 0.0),
    (["52_8", "52_9", "52_8"], None, 0.0),
    # TRL does not read this in a completion.
    ([r"\frac12", r"\frac12", "3"], "3", 1 / 3),
]


@pytest.mark.parametrize(("answers", "majority", "share"), GROUPS)
def test_votes_of_the_verifier(answers, majority, share):
    completions = [rf"so \boxed{{{answer}}}" for answer in answers]
    vote = majority_vote(completions)
    assert (vote.answer, vote.agreement) == (majority, share)
    if majority is not None:
        paid = rewards(completions, MATH.to_label(majority))
        assert paid == [float(index in vote.members) for index in range(len(answers))]


@settings(max_examples=50)
@given(data=st.data())
def test_the_verifier_pays_those_who_voted_and_nobody_else(data):
    few = data.draw(st.lists(st.sampled_from(CORPUS), min_size=1, max_size=4, unique=True))
    answers = data.draw(st.lists(st.sampled_from(few), min_size=4, max_size=6))
    wrapper = data.draw(st.sampled_from(WRAPPERS))
    completions = [wrapper % answer for answer in answers]
    vote = majority_vote(completions)
    assume(vote.answer is not None)
    assert rewards(completions, MATH.to_label(vote.answer)) == [float(i in vote.members) for i in range(len(answers))]


@pytest.mark.parametrize("number", range(8))
def test_labels_that_are_read_are_paid(number):
    """Boxed as the label is kept, and as it was typed, unless it was typed as LaTeX does not write it."""
    for answer in CORPUS[number::8]:
        try:
            label = MATH.read(answer).label
        except ValueError:
            continue
        assert rewards([rf"\boxed{{{bare(label)}}}"], label) == [1.0], answer
        assert MATH.read(label).label == label
        if bare(label) == answer:
            assert rewards([rf"\boxed{{{answer}}}"], MATH.to_label(answer)) == [1.0]


def variants(answer: str):
    """The answer with one number or letter changed."""
    skipped = r"\\(?:begin|end)\{\w+\}|\\mathbb\{?.|\\text\{.*?\}|(?<=[\d\s])(?:and|or)(?=\s)|\\[A-Za-z]+"
    for found in re.finditer(rf"{skipped}|\d+|[A-Za-z]", answer):
        part = found[0]
        if part.isdigit():
            yield answer[: found.start()] + str(int(part) + 3) + answer[found.end() :]
        elif len(part) == 1:
            yield answer[: found.start()] + ("k" if part in "wW" else "w") + answer[found.end() :]


@pytest.mark.parametrize("number", range(6))
def test_every_number_and_letter_of_a_label_counts(number):
    """Another number or letter anywhere is another answer, so that nothing of a label is left out."""
    read = [answer for answer in random.Random(number).sample(ODD, 20) if MATH.are_equivalent(answer, answer)]
    assert read
    for answer in read:
        # What stands below 0 does not matter, and neither do more than six decimals.
        if answer != r"\frac{0}{1}" and not re.search(r"\.\d{7}", answer):
            for other in variants(answer):
                assert rewards([rf"\boxed{{{other}}}"], MATH.to_label(answer)) != [1.0], other


@pytest.mark.parametrize(
    ("typed", "label"),
    [
        ("2√2", r"$2\sqrt{2}$"), ("2*√(x+1)", r"$2*\sqrt{x+1}$"), ("2pi", r"$2\pi$"), ("ln 2", r"$\ln 2$"),
        ("1½", "3/2"), ("x²", "$x^{2}$"), ("5³", "$5^{3}$"), (r"\frac43", r"$\frac{4}{3}$"), ("90°", r"$90^\circ$"),
        ("5.", "5"), ("x₁", "$x_{1}$"), ("x ≤ 3", r"$x \le  3$"), (r"\$18.90", "18.90"),
    ],
)  # fmt: skip
def test_what_people_type_is_read_wholly(typed, label):
    reading = MATH.read(typed)
    assert reading.label == label
    assert rewards([rf"\boxed{{{bare(label)}}}", r"\boxed{2}"], label) == [1.0, 0.0]


@pytest.mark.parametrize(
    "typed",
    [
        r"0.\overline{3}", "2-Jan", "I don't know", "N/A", "unknown", "yes", "no", "five", "NaN", "None", "12:30",
        "5 cm", "5m", "2c", "5 apples", r"5\text{ cm}", "52_8", "1 2", "5 000", r"1\,000", "f'(x)", r"x \approx 5",
        "a=b=5", "1/0", "5 = 5", r"\text{Evelyn}", r"\text{(C)}", "ABC", "on", "about 5", "5 or so", r"5\quad 6",
        r"\phantom{3}5", "2;x?", "2024-01-02", "1/2/2024", "1.2.2024", "1.000.000", "1.234,56", "192.168.0.1", "52₈",
        "101₂", "x5", "3x10^5", "0x10", "+-5", "2(3)", "(2)(3)", r"2\left(3\right)", r"2(\frac{1}{2})", "v1.10",
    ],
)  # fmt: skip
def test_what_is_not_read_wholly_is_no_label(typed):
    with pytest.raises(ValueError, match="reads (only|nothing)"):
        MATH.read(typed)


@pytest.mark.parametrize("typed", ["0,5", "$1,5$", r"\boxed{12,25}", "-3,75", "1234,5"])
def test_a_decimal_comma_is_asked_about(typed):
    with pytest.raises(ValueError, match="may be one number or two: write"):
        MATH.read(typed)


def test_what_is_no_decimal_comma_is_read():
    labels = [MATH.read(typed).label for typed in ("1,234", "0, 5", "(0,5)", "1,2,3")]
    assert labels == ["1,234", "$0, 5$", "$(0,5)$", "$1,2,3$"]


def test_a_refusal_shows_the_reading():
    with pytest.raises(ValueError, match=r"reads only 52 in '52_8', as an index at a number is not read"):
        MATH.read("52_8")


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        ("**5**", "5"),
        ("The answer is **5**.", "5"),
        ("It is **1/2** of it.", "1/2"),
        ("2**3", "2**3"),
        (r"\boxed{2c}", "2c"),
        (r"\boxed{5 \text{ cm}}", r"5 \text{ cm}"),
        (r"$x = \boxed{5}$", "5"),
        (r"\boxed{1} and \boxed{2}", "1,2"),
        (r"$\boxed{50}$%", r"50\%"),
        (r"The final answer is $\frac{1}{2}$.", r"\frac{1}{2}"),
    ],
)
def test_answers_are_extracted_as_they_are_written(completion, answer):
    assert MATH.extract(completion) == answer


NUMBERS = st.from_regex(r"-?[0-9]{1,9}(\.[0-9]{1,6})?", fullmatch=True)


@settings(max_examples=60)
@given(first=NUMBERS, second=NUMBERS, digits=st.integers(0, 6))
def test_numbers_are_compared_as_math_verify_does(first, second, digits):
    """`MathFormat` compares short numbers itself, which is faster."""
    near = f"{float(first):.{digits}f}"
    for one, other in [(first, second), (first, near), (near, first)]:
        assert MATH.are_equivalent(one, other) == READER.are_equivalent(one, other), (one, other)


READER = AnswerReader()


@pytest.fixture(autouse=True, scope="module")
def _close_the_reader():
    yield
    READER.close()


@settings(max_examples=60)
@given(data=st.data())
@pytest.mark.parametrize("answer_format", [TextFormat(), NumberFormat()], ids=lambda given: given.name)
def test_texts_and_numbers_are_paid_by_an_exact_match(answer_format, data):
    few = data.draw(st.lists(st.sampled_from(CORPUS + PLAIN), min_size=1, max_size=4, unique=True))
    answers = data.draw(st.lists(st.sampled_from(few), min_size=4, max_size=8))
    completions = [rf"so \boxed{{{answer}}}" for answer in answers]
    vote = majority_vote(completions, answer_format)
    assume(vote.answer is not None)
    label = answer_format.to_label(vote.answer)
    found = [answer_format.extract(completion) for completion in completions]

    def value(text: str):
        return Fraction(text.replace(",", "")) if answer_format.name == "number" else text

    right = [answer is not None and value(answer) == value(label) for answer in found]
    assert right == [index in vote.members for index in range(len(answers))]


SAID = {"the answer is A.": "A", "The answer is (b)": "B", r"\boxed{c}": "C", r"so \boxed{\text{D}}": "D", "(E)": "E",
        "**Answer: B** since 2 < 3": "B", "the answer is a bit odd": None, "A and B": None, "The answer is AB": None,
        "The answer is C because a < b": "C", r"$\boxed{(A)}$": "A"}  # fmt: skip


@pytest.mark.parametrize(("completion", "choice"), SAID.items())
def test_choices_are_found(completion, choice):
    assert ChoiceFormat().extract(completion) == choice


@given(completions=st.lists(st.sampled_from(list(SAID)), min_size=4, max_size=8))
def test_choices_are_paid_by_an_exact_match(completions):
    vote = majority_vote(completions, "choice")
    assume(vote.answer is not None)
    right = [SAID[completion] == ChoiceFormat().to_label(vote.answer) for completion in completions]
    assert right == [index in vote.members for index in range(len(completions))]


SIZES = [
    (["5", "5.0", "6", "5", "7", "7", None, "6.0"], "5", (3, 2, 2)),
    (["1/x", "1/y", "1/z", "1/z"], "1/z", (2, 1, 1)),
    (["4", "4", "4"], "4", (3,)),
    ([None, None], None, ()),
    # Nobody can tell what was voted for, but that there are several answers.
    (["50\\%", "50", "0.5", "7"], None, (3, 1)),
]


@pytest.mark.parametrize("answers, vote, sizes", SIZES)
def test_the_sizes_of_all_clusters_of_a_vote_are_known(answers, vote, sizes):
    outcome = vote_on(answers, MATH)
    assert (outcome.answer, outcome.sizes) == (vote, sizes)


def test_a_vote_that_runs_out_of_time_is_none(monkeypatch):
    times = itertools.count()
    # The clock jumps ahead when the labels are read and nothing is compared yet.
    monkeypatch.setattr("pivottrace_trl.answers.vote.time.monotonic", lambda: 0.0 if next(times) < 3 else 99.0)
    assert vote_on(["1", "1", "2"], MATH).answer is None
