"""Answer formats: how answers are found, read, compared, and turned into labels."""

import re

import pytest
from datasets import ClassLabel, Value

from pivottrace_trl import PivotDensityCallback, Query, TextFormat, majority_vote
from pivottrace_trl.answers import ChoiceFormat, MathFormat, NumberFormat
from pivottrace_trl.answers.format import resolve_format
from pivottrace_trl.answers.mathematics import read_answer
from pivottrace_trl.offline import is_right

from ..conftest import FIRST_DIGIT, FormatBy, make_pool


FORMATS = {"math": MathFormat, "number": NumberFormat, "choice": ChoiceFormat, "text": TextFormat}


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_is_rebuilt_from_its_name(name):
    answer_format = resolve_format(name)
    assert type(answer_format) is FORMATS[name]
    again = resolve_format(answer_format.name)
    assert type(again) is type(answer_format) and again.name == answer_format.name
    assert resolve_format(answer_format) is answer_format


def test_a_format_of_ones_own_is_found_by_its_name():
    assert resolve_format(FIRST_DIGIT.name) is FIRST_DIGIT
    words = resolve_format("choice:yes,no")
    assert words.extract("So the answer is No.") == "no" and resolve_format(words.name).read("YES").label == "yes"


class NoReader:
    def read(self, text):
        raise AssertionError(f"{text!r} went to another process")


@pytest.mark.parametrize(
    "typed",
    ["0", "-0", " 7\n", "72", "-15", "1,234", "12,345,678.5", "0.000001", "-3.50", "999999999999999", "3/4", "-6/4"]
    + ["0/5", "4 + 3 = 7\n#### 7", "####-1,000"],
)
def test_a_plain_number_needs_no_other_process(typed):
    assert MathFormat(NoReader()).read(typed) == read_answer(typed)


@pytest.mark.parametrize(
    "typed",
    ["+7", "007", "1,23", "1,234/5", "1/0", "-0/0", "2.5/3", "50%", "1e3", "٣", "7.", "1.0000001", "5 7", "7 ####"],
)
def test_what_might_be_read_otherwise_goes_to_the_other_process(typed):
    with pytest.raises(AssertionError, match="went to another process"):
        MathFormat(NoReader()).read(typed)


@pytest.mark.parametrize("name", ["", "maths", "my_format", "no.such:THING", "json:dumps", "tests.conftest:NOTHING"])
def test_a_format_that_is_not_found_says_what_to_do(name):
    with pytest.raises(ValueError, match=re.escape(f"There is no answer format {name!r}") + ".*package.module:attrib"):
        resolve_format(name)


def test_what_is_no_format_is_refused():
    with pytest.raises(TypeError, match="Subclass `TextFormat`"):
        resolve_format(lambda text: text)

    class Nameless(TextFormat):
        def extract(self, completion):
            return None

    with pytest.raises(ValueError, match="is that of another format"):
        resolve_format(Nameless())


@pytest.mark.parametrize(
    ("name", "completion", "answer"),
    [
        ("number", r"so \boxed{1,234.5}", "1,234.5"),
        ("number", "She has 3 apples. #### 1,000", "1,000"),
        ("number", "The answer is **-5**.", "-5"),
        ("number", "3 + 4 = 7.", "7"),
        ("number", "It is 3/4", "3/4"),
        ("number", r"\boxed{\text{none}}", None),
        ("number", r"\boxed{12:30}", None),
        ("number", "The answer is 12:30.", None),
        ("number", "We meet at 12:30.", None),
        ("number", "x=7 apples", "7"),
        ("number", r"\boxed{\$1,\!000}", "1,000"),
        ("number", "none", None),
        *(("number", text, None) for text in [r"\boxed{1 1/2}", r"\boxed{100, 200}", "Answer: 1 1/2", "#### 1 234"]),
        *(("number", f"The answer is {text}", None) for text in ["5 or 6.", "2 sqrt(3)", "5 million", "1.2 × 10^3"]),
        *(("number", f"The answer is {text}", None) for text in ["5, 6", "5 - 3", "7 percent", r"2 \sqrt{3}"]),
        ("number", "The answer is 18 eggs, and 3 were sold.", "18"),
        ("number", r"The answer is 18 \text{ eggs}.", "18"),
        ("number", "**Answer:** 18", "18"),
        ("number", "The answers are 3 and 4.", None),
        ("choice", r"\boxed{\text{(B)}}", "B"),
        ("choice", r"\boxed{\textbf{(B)}\ 42}", "B"),
        *(
            ("choice", f"The answer is {text}", "B")
            for text in ["B.", "(B) 42", "b)", "B - Paris", "B because", "**B**"]
        ),
        *(
            ("choice", f"The answer is {text}", None)
            for text in ["a number", "B and C", "B, C", "b/c", "e^2", "d = 5"]
        ),
        ("choice", r"\boxed{A \text{ and } C}", None),
        ("text", "I cannot answer this question.", None),
        ("text", "The answers vary.", None),
        ("text", "**Answer:** Paris", "Paris"),
        ("choice", "The answer is (c).", "C"),
        ("choice", "Because of this:\n**D**", "D"),
        ("choice", "A man walks.", None),
        ("choice", r"\boxed{F}", None),
        ("text", r"\boxed{\text{Evelyn}}", "Evelyn"),
        ("text", "The answer is: blue whale.\nReally.", "blue whale"),
        ("text", "prose only", None),
    ],
)
def test_answers_are_found(name, completion, answer):
    assert resolve_format(name).extract(completion) == answer


@pytest.mark.parametrize(
    ("name", "text", "label"),
    [
        ("number", " 1,234.50 ", "1234.50"), ("number", "+7", "7"), ("number", "−3", "-3"), ("number", "½", "1/2"),
        ("choice", "(b)", "B"), ("choice", "B.", "B"), ("text", "  two  words ", "two words"),
    ],
)  # fmt: skip
def test_typed_answers_are_read(name, text, label):
    reading = resolve_format(name).read(text)
    assert reading.label == label and reading.preview


@pytest.mark.parametrize(
    ("name", "text"),
    [
        *(("number", text) for text in ["", "five", "2-Jan", "1/0", "3 apples", "NaN", "inf", "1e5", "1,23", "50%"]),
        *(("number", text) for text in ["1½", "5²", "52₈", "2³", "٣"]),
        *(("choice", text) for text in ["", "F", "yes", "A or B", "N/A"]),
        *(("text", text) for text in ["", " \n", "\ud800", "x" * 2000]),
    ],
)
def test_what_is_no_answer_is_refused(name, text):
    with pytest.raises(ValueError):
        resolve_format(name).read(text)


def test_texts_are_not_compared_as_mathematics():
    for first, second in [("listen", "silent"), ("no", "on"), ("v1.10", "v1.1"), ("1/2", "0.5")]:
        vote = majority_vote([rf"\boxed{{{first}}}", rf"\boxed{{{second}}}"], "text")
        assert (vote.answer, vote.agreement) == (first, 0.5)


@pytest.mark.parametrize(
    ("name", "answer", "feature", "label"),
    [
        ("math", r"\frac{1}{2}", None, r"$\frac{1}{2}$"),
        ("math", "5", Value("string"), "5"),
        ("math", "1,000", Value("int64"), 1000),
        ("math", "5.0", Value("int32"), 5),
        ("math", "1/4", Value("float32"), 0.25),
        ("number", "1,000", Value("string"), "1000"),
        ("number", "1,000", Value("int64"), 1000),
        ("choice", "b", ClassLabel(names=["A", "B"]), 1),
        ("choice", "(b)", Value("string"), "B"),
        ("text", "v1.10", Value("large_string"), "v1.10"),
        ("text", "7", Value("uint8"), 7),
    ],
)
def test_labels_have_the_type_of_their_column(name, answer, feature, label):
    made = resolve_format(name).to_label(answer, feature)
    assert made == label and type(made) is type(label)


@pytest.mark.parametrize(
    ("name", "answer", "feature"),
    [
        ("math", "1/2", Value("int64")),
        ("math", "x+1", Value("float64")),
        ("text", "300", Value("uint8")),
        ("text", "-1", Value("uint8")),
        ("text", "yes", Value("bool")),
        ("text", "a", {"answer": Value("string")}),
        ("choice", "E", ClassLabel(names=["A", "B"])),
    ],
)
def test_labels_that_do_not_fit_are_refused(name, answer, feature):
    with pytest.raises(ValueError):
        resolve_format(name).to_label(answer, feature)


def test_people_answer_only_by_a_format_that_the_command_line_finds(make_trainer):
    trainer = make_trainer()
    for name in ("dates", "__main__:DATES"):
        dates = FormatBy(lambda text: None)
        dates.name = name
        with pytest.raises(ValueError, match="cannot import it by that name"):
            PivotDensityCallback(trainer, 4, annotator="queue", answer_format=dates)
    callback = PivotDensityCallback(trainer, 4, annotator="queue", answer_format=FIRST_DIGIT)
    assert callback.ledger.answer_format == FIRST_DIGIT.name


def test_an_annotator_of_the_callback_is_read_by_the_format(make_trainer):
    trainer = make_trainer(make_pool().remove_columns("solution"))
    callback = PivotDensityCallback(trainer, 4, annotator=lambda rows: ["five", "5"], answer_format="number")
    first, second = callback.router.prompt_ids[:2]
    callback.ledger.request([Query(first, score=1.0), Query(second, score=0.0)])
    assert callback.ledger.buy(callback.router.oracle) == 1
    assert callback.ledger.label(first) is None and callback.ledger.label(second) == {"solution": "5"}


@pytest.mark.parametrize(
    ("answer", "label", "right"),
    [
        ("-2, 1", "-2,1", True),
        ("-2, 3", "-2,1", False),
        ("1/2", "0.5", True),
        ("Rome", "Rome", True),
        (None, "5", False),
    ],
)
def test_the_triage_compares_with_labels_of_a_dataset_as_they_stand(answer, label, right):
    """Also with those that nobody would be let type."""
    assert is_right(answer, label, MathFormat()) is right
