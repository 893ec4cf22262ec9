"""Traces survive the table."""

import dataclasses

import numpy as np
import pyarrow.parquet as pq

from pivottrace_trl.tracing import OPTIONAL_SIGNALS
from pivottrace_trl.tracing.trace import load_traces, save_traces, traces_to_table

from ..estimators.test_estimators import random_traces, trace


def test_traces_survive_the_file(tmp_path):
    traces = [dataclasses.replace(one, agreement=None) for one in random_traces((12, 0, 40))]
    # An empty response is not passed through the model.
    traces.append(trace([]))
    path = tmp_path / "traces.parquet"
    save_traces(traces, path, ["a", "b", "c", "d"])
    assert pq.read_table(path)["prompt_id"].to_pylist() == ["a", "b", "c", "d"]
    for one, other in zip(traces, load_traces(path), strict=True):
        for name, value in vars(one).items():
            read = getattr(other, name)
            assert (read is None) == (value is None), name
            if value is not None:
                assert read.shape == value.shape and read.dtype == value.dtype, name
                assert np.array_equal(read, value), name


def test_a_table_has_columns_for_what_was_traced(tmp_path):
    plain = [trace([0.1, 0.2]), trace([])]
    assert not OPTIONAL_SIGNALS & set(traces_to_table(plain).column_names)
    save_traces([], tmp_path / "none.parquet")
    assert load_traces(tmp_path / "none.parquet") == []
