"""Identity and validation of a pool."""

import json

import psutil
import pytest
from datasets import Dataset, IterableDataset

from pivottrace_trl import drop_duplicates, pool_ids, prompt_id
from pivottrace_trl.pool import collect_stream, load_pool, pool_fingerprint

from .conftest import make_pool


def test_ids_survive_reordering_and_outer_white_space():
    pool = make_pool(10)
    ids = pool_ids(pool)
    assert len(set(ids)) == 10
    assert pool_ids(pool.select(range(9, -1, -1))) == ids[::-1]
    assert pool_fingerprint(ids) == pool_fingerprint(ids[::-1])
    assert prompt_id("  What is 2+2?\n") == prompt_id("What is 2+2?")
    assert prompt_id("What is 2+2?") != prompt_id("What is 2+3?")
    user = {"role": "user", "content": "What is 2+2?"}
    assert prompt_id([user]) == prompt_id("What is 2+2?") == prompt_id([{"role": "system", "content": "?"}, user])


def test_errors_name_the_fix():
    pool = make_pool(4)
    with pytest.raises(ValueError, match="no column 'prompt'.*question.*`prompt_column=`"):
        pool_ids(pool.rename_column("prompt", "question"))
    with pytest.raises(ValueError, match="empty: 0 rows"):
        pool_ids(pool.select([]))
    with pytest.raises(TypeError, match="IterableDataset.*streaming"):
        pool_ids(pool.to_iterable_dataset())
    with pytest.raises(ValueError, match="Row 1 .* empty prompt"):
        pool_ids(Dataset.from_dict({"prompt": ["a", "", "c"]}))


def test_duplicates_are_named_and_can_be_dropped():
    pool = Dataset.from_dict({"prompt": ["a", "b", "a ", "c", "b"], "solution": list("12345")})
    with pytest.raises(ValueError, match="Rows 0 and 2 .*drop_duplicates"):
        pool_ids(pool)
    kept = drop_duplicates(pool)
    assert kept["solution"] == ["1", "2", "4"]
    assert len(pool_ids(kept)) == 3


def test_a_stream_is_read_once_and_in_bounded_memory():
    reads = []

    def rows():
        reads.append(0)
        for number in range(100_000):
            reads[-1] += 1
            yield {"prompt": f"{number}+1=? {'filler ' * 200}", "solution": str(number + 1)}

    process = psutil.Process()
    before = process.memory_info().rss
    pool = collect_stream(IterableDataset.from_generator(rows))
    grown = (process.memory_info().rss - before) / 2**20
    assert len(pool) == 100_000 and pool[99_999]["solution"] == "100000" and reads == [100_000]
    assert grown < 60, grown  # MB, of 145 of text


def test_no_more_of_a_file_is_read_than_is_taken(tmp_path):
    # Parsers read files of JSON Lines 10 MB at a time.
    filler = "x" * 2000
    rows = [json.dumps({"prompt": f"{number}+1=?", "level": number, "note": filler}) for number in range(20_000)]
    path = tmp_path / "pool.jsonl"
    path.write_text("\n".join([*rows, "this is no JSON"]))
    pool = load_pool(str(path), limit=5, streaming=True)
    assert pool["level"][:] == list(range(5)) and pool_ids(pool) == [prompt_id(f"{i}+1=?") for i in range(5)]
    with pytest.raises(ValueError, match="pool.jsonl"):
        load_pool(str(path), limit=5)
    with pytest.raises(ValueError, match="pool.jsonl"):
        load_pool(str(path), streaming=True)
    path.write_text("")
    with pytest.raises(ValueError, match="pool.jsonl"):
        load_pool(str(path), streaming=True)
