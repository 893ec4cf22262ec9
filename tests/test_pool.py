"""Identity and validation of a pool."""

import pytest
from datasets import Dataset

from pivottrace_trl import drop_duplicates, pool_ids, prompt_id
from pivottrace_trl.pool import pool_fingerprint

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
    with pytest.raises(ValueError, match="no `prompt` column.*question.*rename_column"):
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
