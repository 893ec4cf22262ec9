"""The two lines, end to end on a tiny random model."""

import pyarrow.parquet as pq

from pivottrace_trl import PivotDensityCallback

from .conftest import first_digit


def attach(trainer, **options):
    options = {"annotation_budget": 0.5, "extract_answer": first_digit, **options}
    callback = PivotDensityCallback(trainer, **options)
    trainer.add_callback(callback)
    return callback


def test_two_lines_route_a_run(make_trainer, tmp_path):
    trainer = make_trainer(num_train_epochs=3)
    callback = attach(trainer)
    trainer.train()
    summary = callback.summary()
    assert summary["pool_size"] == 32
    assert summary["annotation_budget"] == 16
    assert 0 < summary["annotated"] <= 16
    assert sum(summary["routes"].values()) == 32
    assert summary["epochs"] == 3
    folder = tmp_path / "run" / "pivottrace"
    for epoch in range(3):
        table = pq.read_table(folder / f"routes-epoch-{epoch:03d}.parquet")
        assert table.num_rows == 32
    for name in ("ledger.sqlite", "trace.png", "route_flow.png", "summary.json"):
        assert (folder / name).stat().st_size > 0
    logged = set().union(*trainer.state.log_history)
    assert {"pivottrace/num_weak", "pivottrace/labels_bought", "pivottrace/budget_left"} <= logged
    assert {"pivottrace/vote_agreement", "pivottrace/pseudo_label_accuracy"} <= logged
