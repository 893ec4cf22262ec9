"""A prompt's id is that of its question: what may change around it, and what may not."""

import csv
import datetime
import re

import pandas as pd
import pytest
from datasets import Dataset

from pivottrace_trl import build_prompt, drop_duplicates, pool_ids, prompt_id
from pivottrace_trl.pool import Questions, load_pool


QUESTIONS = [
    "What is 2+2?",
    "Tom has 3 apples.\nHow many are left?",
    "    def f(x):\n        return x\n\n    # What does f(1) return?",
    "Wie heißt die Lösung von x² = 4, x > 0?",
    '=1+1, or "2"; what, now?',
]
WORDINGS = [
    "Reason step by step and put the final answer in \\boxed{}.",
    "Think.",
    "Antworte auf Deutsch, größer als 0: <b>nur</b> die Zahl (kein Text)!",
    "Follow these rules:\n  - be brief\n  - put the answer in \\boxed{}",
    "What is asked?\n\nAnswer with a number.",
]
SYSTEM = "You are a careful mathematician."


def ids_of(prompts: list, **options) -> list[str]:
    return pool_ids(Dataset.from_dict({"prompt": prompts}), **options)


BARE = [prompt_id(question) for question in QUESTIONS]


@pytest.mark.parametrize("instruction", WORDINGS)
def test_ids_are_the_same_under_every_wording_at_the_beginning_and_at_the_end(instruction):
    assert len(set(BARE)) == len(QUESTIONS)
    forms = [f"{{question}}{gap}{{instruction}}" for gap in ("\n", "\n\n", " ", "\r\n\r\n  ")]
    forms += [f"{{instruction}}{gap}{{question}}" for gap in ("\n", "\n\n", "\r\n \r\n")]
    forms += ["{instruction}\n\n{question}\n\n{instruction}", "\n{question}\n{instruction}\n{instruction}  \n"]
    for form in forms:
        texts = [form.format(question=question, instruction=instruction) for question in QUESTIONS]
        assert ids_of(texts, instruction=instruction) == BARE, form
        user = [[{"role": "user", "content": text}] for text in texts]
        parts = [[{"role": "user", "content": [{"type": "text", "text": text}]}] for text in texts]
        assert ids_of(user, instruction=instruction) == ids_of(parts, instruction=instruction) == BARE
        for role in ("system", "developer"):
            above = [[{"role": role, "content": SYSTEM}, *turns] for turns in user]
            assert ids_of(above, instruction=instruction) == BARE


def test_only_what_is_declared_is_taken_off():
    told = f"{QUESTIONS[0]}\n{WORDINGS[0]}"
    assert prompt_id(told) != BARE[0]
    with pytest.raises(ValueError, match="`instruction` stands .* none of the 1 prompts.*Think"):
        ids_of([told], instruction="Think.")
    # In the middle, or as a part of a word, it is the question's own.
    assert prompt_id("Do not box.") == ids_of(["Do not box.", "a box"], instruction="box")[0]
    assert ids_of(["sandbox", "A box"], instruction="box")[0] == prompt_id("sandbox")
    assert ids_of(["Think. Twice?", "One Think. two", "Why? Think."], instruction="Think.") == [
        prompt_id(text) for text in ("Twice?", "One Think. two", "Why?")
    ]


def test_an_instruction_with_what_nobody_sees_is_found_in_time_that_grows_with_the_text():
    told = ["q Think\u200b it\u00a0over.", "\ufeffThink it over.\nq", "q Think\n it   over."]
    assert [*map(Questions(instruction="Think it over.").text, [{"prompt": text} for text in told])] == ["q"] * 3
    assert ids_of(["q Re\u0301ponds."], instruction="R\u00e9ponds.") == [prompt_id("q")]
    gap, many = " " * 100_000, "Think it over. " * 20_000
    for text, question in ((f"{many}b", "b"), (f"b {many}", "b"), (f"b {many}c", f"b {many}c"), (f"{gap}b{gap}", "b")):
        assert Questions(instruction="Think it over.").id(0, {"prompt": text}) == prompt_id(question)
    for text in ("\n" * 100_000 + "b", f"Think{gap}it", f"Think it over.{gap}b"):
        Questions(instruction="Think it over.").id(0, {"prompt": text})


def test_a_prompt_that_is_nothing_but_the_instruction_is_refused():
    with pytest.raises(ValueError, match="Row 1 .* without a question .*instruction"):
        ids_of(["Why?\nThink.", " Think.\n"], instruction="Think.")
    with pytest.raises(ValueError, match="Row 0 .* without a question"):
        ids_of([[{"role": "user", "content": " "}]])
    with pytest.raises(ValueError, match="`instruction` is ' ', which is empty"):
        ids_of(["Why?"], instruction=" ")


def test_what_nobody_sees_makes_no_other_question_and_the_rest_does():
    same = [
        "x\u00e9 y",
        "xe\u0301 y",
        "\ufeffx\u00e9 y",
        "x\u00e9\u200b y",
        "x\u00e9\u00a0y",
        " x\u00e9 y \r\n",
        "\tx\u00e9 y",
    ]
    assert len({prompt_id(text) for text in same}) == 1
    different = ["x² = 4", "x2 = 4", "x  = 4", "x = 4", "x = ４", "X = 4", "a\u200db", "ab", "x =\n4"]
    assert len({prompt_id(text) for text in different}) == len(different)


def test_prompts_that_differ_in_indentation_only_are_different():
    inside = "for i in x:\n    a()\n    b()"
    after = "for i in x:\n    a()\nb()"
    assert len({prompt_id(inside), prompt_id(after), prompt_id(inside.replace("    ", "  "))}) == 3
    # Of a block as a whole it says nothing.
    assert prompt_id("\n".join(f"    {line}" for line in inside.splitlines())) == prompt_id(inside)
    assert prompt_id(f"\n\n{inside}   \n\n") == prompt_id(inside) == prompt_id(inside.replace("\n", "  \r\n"))


def test_conversations_count_as_a_whole_and_fields_without_a_value_do_not():
    turns = [
        {"role": "user", "content": "What is 2+2?"},
        {"role": "assistant", "content": "4"},
        {"role": "user", "content": "And half of it?"},
    ]
    filled = [{**turn, "name": None, "tool_calls": None} for turn in turns]
    assert prompt_id(turns) == prompt_id([{"role": "system", "content": SYSTEM}, *filled])
    assert prompt_id(turns) != prompt_id(turns[-1:]) != prompt_id([turns[0], {**turns[1], "content": "5"}, turns[2]])
    wordy = [turn if turn["role"] != "user" else {**turn, "content": f"{turn['content']} Think."} for turn in turns]
    assert ids_of([wordy], instruction="Think.") == [prompt_id(turns)] != ids_of([wordy])
    # What an assistant or a tool says is no instruction of ours.
    tool = [turns[0], {"role": "tool", "content": "Think."}, turns[2]]
    assert ids_of([tool, wordy], instruction="Think.")[0] == prompt_id(tool)
    image = [{"role": "user", "content": [{"type": "image", "url": "a.png"}, {"type": "text", "text": "What is it?"}]}]
    other = [{"role": "user", "content": [{"type": "image", "url": "b.png"}, {"type": "text", "text": "What is it?"}]}]
    assert len({prompt_id(image), prompt_id(other), prompt_id("What is it?")}) == 3
    for where in (0, 2):
        content = [*image[0]["content"]]
        content.insert(where, {"type": "text", "text": "Think."})
        said = [{"role": "user", "content": content}]
        assert Questions(instruction="Think.").id(0, {"prompt": said}) == prompt_id(image)
    with pytest.raises(ValueError, match="Row 0 .* more than texts .*id_column"):
        Questions().id(0, {"prompt": [{"role": "user", "content": [{"type": "image", "image": object()}]}]})


def test_ids_by_a_column_are_those_of_its_values():
    rows = {"prompt": [f"{q}\nThink." for q in QUESTIONS], "question": QUESTIONS, "key": list(range(5))}
    pool = Dataset.from_dict(rows)
    by_key = pool_ids(pool, id_column="key", question_column="question")
    assert by_key == pool_ids(pool, id_column="key", instruction="Think.") != BARE
    assert pool_ids(pool, question_column="question") == pool_ids(pool, instruction="Think.") == BARE
    order = [3, 0, 4, 2, 1]
    assert pool_ids(pool.select(order), id_column="key") == [by_key[row] for row in order]
    # The same ids wherever they are kept: as texts, as floats (a table with gaps), under other prompts.
    for keys in (["0", "1", " 2", "3 ", "4\r\n"], [0.0, 1.0, 2.0, 3.0, 4.0]):
        assert pool_ids(Dataset.from_dict({"prompt": list("abcde"), "key": keys}), id_column="key") == by_key


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["a", "b", "a"], "Rows 0 and 2 .* same value 'a' in `id_column` 'key'.*leave `id_column` out"),
        ([7, 8, 8], "Rows 1 and 2 .* same value 8"),
        (["1", "01", " 1"], "Rows 0 and 2 .* same value"),
        (["a", "", "c"], "Row 1 .* value '' in `id_column` 'key'.*not empty.*filter"),
        (["a", None, "c"], "Row 1 .* value None .*NoneType"),
        ([1.0, float("nan"), 3.0], "Row 1 .* value nan .*float.*whole number"),
        ([1, 2.5, 3], "Row 1 .* value 2.5"),
        ([True, False, True], "Row 0 .* value True .*bool"),
        ([["a"], ["b"], ["c"]], "Row 0 .* `list`"),
        ([datetime.date(2024, 1, day) for day in (1, 2, 3)], "Row 0 .* date"),
    ],
)
def test_a_column_that_makes_no_ids_is_refused_with_row_and_fix(keys, message):
    with pytest.raises(ValueError, match=message):
        pool_ids(Dataset.from_dict({"prompt": list("xyz"), "key": keys}), id_column="key")


def test_columns_that_are_missing_or_hold_no_question_are_named():
    pool = Dataset.from_dict({"prompt": ["a", "b"], "question": ["a", None]})
    with pytest.raises(ValueError, match="`id_column` is 'uid', but the pool has only .*'question'"):
        pool_ids(pool, id_column="uid")
    with pytest.raises(ValueError, match="`question_column` is 'text', but the pool"):
        pool_ids(pool, question_column="text")
    with pytest.raises(ValueError, match="Row 1 .* question None in `question_column` 'question'"):
        pool_ids(pool, question_column="question")


def test_questions_that_hide_behind_other_words_are_the_same():
    wordy = [f"{QUESTIONS[0]}\nThink.", [{"role": "user", "content": f"Think. {QUESTIONS[0]}"}]]
    pool = Dataset.from_dict({"prompt": [[{"role": "user", "content": wordy[0]}], wordy[1]]})
    with pytest.raises(ValueError, match=r"Rows 0 and 1 .* same prompt: 'What is 2\+2\?'.*drop_duplicates"):
        pool_ids(pool, instruction="Think.")
    kept = drop_duplicates(pool, instruction="Think.")
    assert len(kept) == 1 and pool_ids(kept, instruction="Think.") == BARE[:1]
    assert len(drop_duplicates(pool)) == 2


def test_people_see_the_question_without_boilerplate():
    row = {"prompt": build_prompt(QUESTIONS[2], WORDINGS[3], SYSTEM), "question": "What?"}
    assert Questions(instruction=WORDINGS[3]).text(row) == QUESTIONS[2]
    assert Questions(question_column="question", instruction=WORDINGS[3]).text(row) == "What?"
    assert Questions().text({"prompt": "  a  b\n"}) == "  a  b\n"
    assert Questions(instruction="Think.").text({"prompt": "Think.\r\n\r\nWhy?\r\n"}) == "Why?"
    parts = [{"type": "image", "url": "a.png"}, {"type": "text", "text": "What is it?"}]
    assert Questions().text({"prompt": [{"role": "user", "content": parts}]}) == "[image]\nWhat is it?"


def test_a_prompt_is_built_once_and_holds_the_question_as_it_is():
    user = {"role": "user", "content": f"{QUESTIONS[1]}\n{WORDINGS[0]}"}
    built = build_prompt(QUESTIONS[1], WORDINGS[0], SYSTEM)
    assert built == [{"role": "system", "content": SYSTEM}, user]
    assert build_prompt(built, WORDINGS[0], SYSTEM) == built == build_prompt([user], None, SYSTEM)
    assert build_prompt("a") == [{"role": "user", "content": "a"}] == build_prompt(build_prompt("a"))
    parts = [{"role": "user", "content": [{"type": "text", "text": "a"}]}]
    assert pool_ids(Dataset.from_list([{"prompt": build_prompt(parts, "Think.")}]), instruction="Think.") == ids_of(
        ["a"]
    )
    assert build_prompt(build_prompt(parts, "Think."), "Think.") == build_prompt(parts, "Think.")
    assert parts[0]["content"] == [{"type": "text", "text": "a"}]
    with pytest.raises(ValueError, match="has the system prompt 'You are.* already, and not 'Be brief"):
        build_prompt(built, None, "Be brief.")
    with pytest.raises(ValueError, match="no user turn"):
        build_prompt([{"role": "system", "content": "a"}], "Think.")


def spoil(path, rows: list[dict], bom: bool, line_end: str, blanks: str) -> None:
    """Write a table as a spreadsheet does: its own line ends inside of cells too, a byte order mark, blanks."""
    with path.open("w", encoding="utf-8-sig" if bom else "utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator=line_end, quoting=csv.QUOTE_ALL)
        writer.writeheader()
        writer.writerows(
            {key: str(value).replace("\n", line_end) + blanks for key, value in row.items()} for row in rows
        )


@pytest.mark.parametrize("bom", [True, False])
@pytest.mark.parametrize("line_end", ["\r\n", "\n"])
@pytest.mark.parametrize("blanks", ["", "  ", "\u00a0"])
def test_ids_survive_a_spreadsheet(tmp_path, bom, line_end, blanks):
    rows = [{"prompt": f"{question}\n{WORDINGS[0]}", "key": f"q-{row}"} for row, question in enumerate(QUESTIONS)]
    before = Dataset.from_list(rows)
    spoil(tmp_path / "pool.csv", rows, bom, line_end, blanks)
    after = load_pool(str(tmp_path / "pool.csv"))
    assert pool_ids(after, instruction=WORDINGS[0]) == pool_ids(before, instruction=WORDINGS[0]) == BARE
    assert pool_ids(after, id_column="key") == pool_ids(before, id_column="key")


def test_no_id_looks_like_a_number_or_a_date(tmp_path):
    ids = [prompt_id(str(number)) for number in range(5000)]
    assert all(re.fullmatch("[a-p]{16}", identity) for identity in ids) and len(set(ids)) == 5000
    by_key = pool_ids(Dataset.from_dict({"prompt": list("ab"), "key": ["2024-01-02", "12e4"]}), id_column="key")
    assert all(re.fullmatch("[a-p]{16}", identity) for identity in by_key)
    path = tmp_path / "ids.csv"
    pd.DataFrame({"prompt_id": ids}).to_csv(path, index=False)
    read = pd.read_csv(path)["prompt_id"]
    assert pd.to_numeric(read, errors="coerce").isna().all()
    assert pd.to_datetime(read, errors="coerce", format="mixed").isna().all()
    assert read.tolist() == ids


def test_single_lines_keep_the_ids_that_they_always_had():
    # The ids of ledgers that exist.
    assert prompt_id("What is 2+2?") == "fcmlglfoekadikpb"
    turns = [("user", "a b"), ("assistant", "c"), ("user", "d")]
    assert prompt_id([{"role": role, "content": text} for role, text in turns]) == "mapoknipknngfobf"


def test_a_dataset_without_the_columns_of_a_question_cannot_be_kept_apart_from():
    pool = Dataset.from_dict({"prompt": ["What is 2+2?"], "question": ["2+2"]})
    other = Dataset.from_dict({"problem": ["What is 2+2?"]})
    with pytest.raises(ValueError, match=r"`seen_in` has none of the columns \['prompt', 'question'\].*\['problem'\]"):
        drop_duplicates(pool, seen_in=other, question_column="question")
    assert len(drop_duplicates(pool, seen_in=other.rename_column("problem", "prompt"))) == 0
