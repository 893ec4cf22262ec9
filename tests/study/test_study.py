"""The study: its figures against independent computations, its files, and going on after an interruption."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

from pivottrace_trl import ESTIMATORS
from pivottrace_trl.cli import main
from pivottrace_trl.estimators import ProbeCalibrated
from pivottrace_trl.study.measure import LabelledPool, measure, score_pool
from pivottrace_trl.study.metrics import auroc, bootstrap, purchase, risk_coverage, spearman, without_length
from pivottrace_trl.study.run import survey_pool

from ..conftest import make_model
from ..estimators.test_estimators import simulated_pool


def test_auroc_and_rank_correlation_against_libraries():
    rng = np.random.default_rng(0)
    scores, is_wrong = rng.integers(0, 10, 200).astype(float), rng.random(200) < 0.3
    assert auroc(scores, is_wrong) == pytest.approx(roc_auc_score(is_wrong, scores))
    assert np.isnan(auroc(scores, np.ones(200, bool)))
    pass_rate = rng.random(200)
    assert spearman(scores, pass_rate) == pytest.approx(spearmanr(scores, -pass_rate).statistic)
    assert np.isnan(spearman(np.ones(200), pass_rate))


def test_what_is_left_without_length():
    rng = np.random.default_rng(0)
    lengths = rng.integers(10, 400, 500).astype(float)
    is_wrong = rng.random(500) < lengths / 400
    assert auroc(np.exp(lengths / 50), is_wrong) > 0.75
    assert auroc(without_length(np.exp(lengths / 50), lengths), is_wrong) == 0.5
    other = rng.random(500) + is_wrong
    assert auroc(without_length(other + lengths / 100, lengths), is_wrong) > 0.8


def test_bootstrap_interval_covers_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(60):
        interval = bootstrap(np.mean, rng.normal(1.0, 1.0, 50), num_resamples=300)
        covered += interval.low <= 1.0 <= interval.high
    assert 50 <= covered <= 60
    assert str(bootstrap(np.mean, np.ones(4))) == "1.000 (1.00-1.00)"


def test_purchases_by_hand():
    scores = np.arange(10.0)
    is_wrong = np.array([0, 1, 0, 0, 0, 1, 0, 0, 1, 1], bool)
    votes = np.array([1, 1, 1, 1, 0, 1, 1, 0, 1, 0], bool)
    bought = purchase(scores, is_wrong, votes, 0.3, discarded=0.4)
    assert bought.recall == 2 / 4  # of 7, 8 and 9, the last two are wrong
    assert bought.purity == 3 / 4  # 0 to 3 are discarded
    assert bought.vote_accuracy == 2 / 3  # 4, 5 and 6 are trained on their votes
    everything = purchase(scores, is_wrong, None, 1.0)
    assert everything.recall == 1.0 and np.isnan(everything.purity) and np.isnan(everything.vote_accuracy)
    assert np.allclose(risk_coverage(scores, is_wrong)[[0, 1, 9]], [0, 0.5, 0.4])


def labelled_pool(num=200, seed=0) -> LabelledPool:
    traces, was_right = simulated_pool(num, seed)
    lengths = np.array([len(trace) for trace in traces])
    return LabelledPool(traces, ~was_right, np.full(num, np.nan), None, lengths, np.zeros(num, int))


def test_a_probe_is_not_scored_by_its_own_label():
    """Labels drawn at random can be learnt by heart, but a score that saw them only of others is no better for it."""
    rng = np.random.default_rng(0)
    by_heart, cross_fitted = [], []
    for seed in range(30):
        pool = labelled_pool(60, seed)
        pool = LabelledPool(**{**vars(pool), "is_wrong": rng.random(60) < 0.5})
        estimator = ProbeCalibrated(strength=0.01)
        scores, probes = score_pool(estimator, pool)
        traces, is_wrong = [pool.traces[i] for i in probes], pool.is_wrong[probes]
        cross_fitted.append(auroc(scores[probes], is_wrong))
        by_heart.append(auroc(estimator.fit(pool.traces).calibrate(traces, ~is_wrong)(traces), is_wrong))
    assert np.nanmean(by_heart) > 0.6
    assert np.nanmean(cross_fitted) < 0.5


def test_scores_that_need_samples_are_left_out_without_them(monkeypatch):
    chosen = {name: ESTIMATORS[name] for name in ("consistency", "total_entropy", "random", "probe_calibrated")}
    monkeypatch.setattr("pivottrace_trl.study.measure.ESTIMATORS", chosen)
    reports = measure(labelled_pool())
    assert "consistency" not in reports and reports["total_entropy"].auroc.value > reports["random"].auroc.value
    assert list(reports)[-1] == "random"


@pytest.fixture
def model_path(tokenizer, tmp_path):
    make_model("llama").save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def pool_path(tmp_path):
    path = tmp_path / "pool.jsonl"
    # A random model's last digit is right now and then.
    lines = [json.dumps({"question": f"{i}+{i % 7}=?", "answer": str(i % 10)}) for i in range(24)]
    path.write_text("\n".join(lines))
    return path


def study(model_path, pool_path, output, *options) -> int:
    arguments = ["study", "--model", str(model_path), "--dataset", str(pool_path), "--prompt-column", "question"]
    arguments += ["--label-column", "answer", "--output", str(output), "--max-completion-length", "16"]
    return main([*arguments, "--batch-size", "8", *options])


def test_study_command(model_path, pool_path, tmp_path, capsys):
    assert study(model_path, pool_path, tmp_path / "run", "--samples", "2") == 0
    printed = capsys.readouterr().out
    assert "24 prompts" in printed
    table = pq.read_table(tmp_path / "run" / "scores.parquet").to_pandas()
    assert len(table) == 24 and set(ESTIMATORS) <= set(table.columns)
    assert table["pass_rate"].isin([0.0, 0.5, 1.0]).all() and np.isfinite(table["coe"]).all()
    summary = json.loads((tmp_path / "run" / "study.json").read_text())
    assert summary["num_prompts"] == 24 and summary["wrong"] == table["is_wrong"].mean()
    assert summary["scores"]["consistency"]["tokens_per_prompt"] == pytest.approx(table["num_sampled_tokens"].mean())
    for name in ("auroc", "risk_coverage", "reliability"):
        assert (tmp_path / "run" / f"{name}.png").stat().st_size > 5000
    # The same folder cannot be continued with something else.
    assert study(model_path, pool_path, tmp_path / "run", "--samples", "2", "--seed", "1") == 2
    assert "'seed': (0, 1)" in capsys.readouterr().err
    assert study(model_path, pool_path, tmp_path / "run", "--label-column", "gold") == 2


def test_an_interrupted_study_goes_on_where_it_stopped(tokenizer, tmp_path, generated):
    model, prompts = make_model("llama"), [f"{i}+{i}=?" for i in range(10)]

    def collect(folder, num_samples=2):
        return survey_pool(model, tokenizer, prompts, tmp_path / folder, num_samples, 12, 4, progress=False)

    def rollouts(responses):
        return [found.rollouts for found in responses]

    undisturbed = rollouts(collect("undisturbed"))
    assert list(map(len, generated)) == [4, 4, 2] * 3
    assert undisturbed[0] != undisturbed[1] != undisturbed[2]
    generated.clear()
    generated.stop_after = 4
    with pytest.raises(KeyboardInterrupt):
        collect("interrupted")
    generated.stop_after = None
    assert rollouts(collect("interrupted")) == undisturbed
    assert list(map(len, generated)) == [4, 4, 2] * 3  # none of the batches twice
    assert rollouts(collect("interrupted", num_samples=1)) == undisturbed[:2]
    assert rollouts(collect("interrupted", num_samples=3))[:3] == undisturbed
    assert len(generated) == 9 + 3
