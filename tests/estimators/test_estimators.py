"""Scores against closed forms, against lm-polygraph, and against each other."""

import importlib
import importlib.util
import json
import re
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch

from pivottrace_trl import ESTIMATORS, Estimator, ResponseTrace, Rollout, trace_rollouts
from pivottrace_trl.estimators import (
    RAUQ,
    CalibratedEstimator,
    CoE,
    Consistency,
    ForkingTokens,
    MeanEntropy,
    PivotCount,
    PivotDensity,
    PivotEntropy,
    ProbeCalibrated,
    RandomScore,
    ResponseLength,
    SelfCertainty,
    TotalEntropy,
    get_estimator,
)
from pivottrace_trl.tracing import OPTIONAL_SIGNALS
from pivottrace_trl.tracing.pivots import find_pivots, pivot_threshold

from ..conftest import make_model


SIGNAL = np.array([0.1, 0.1, 0.6, 0.5, 0.5, 0.0], np.float32)


def trace(signal, entropy=None, **fields) -> ResponseTrace:
    signal = np.asarray(signal, np.float32)
    entropy = np.ones_like(signal) if entropy is None else np.asarray(entropy, np.float32)
    return ResponseTrace(signal, np.zeros_like(signal), entropy, -entropy, **fields)


def random_traces(lengths, seed=0) -> list[ResponseTrace]:
    """Traces with every optional field."""
    rng = np.random.default_rng(seed)

    def one(length: int) -> ResponseTrace:
        states = rng.normal(size=(7, 16)).cumsum(axis=0)
        return trace(
            rng.random(length),
            rng.random(length) * 2,
            self_certainty=rng.random(length).astype(np.float32),
            newest=rng.random((3, length)).astype(np.float32),
            layer_gram=states @ states.T,
            agreement=float(rng.random()),
        )

    return [one(length) for length in lengths]


def test_closed_forms():
    traces = [trace(SIGNAL, [1, 2, 4, 8, 16, 32]), trace([0.2, 0.2, 0.2]), trace([])]
    density = PivotDensity(threshold=0.2)
    assert np.allclose(density(traces), [2 / 6, 0, np.nan], equal_nan=True)
    assert PivotDensity(threshold=0.6)(traces[:1]) == [0.0]
    assert np.isnan(density([trace([0.1, np.nan])])).all()
    assert np.allclose(PivotEntropy(threshold=0.2)(traces), [2 + 16, 0, np.nan], equal_nan=True)
    assert np.allclose(PivotCount(threshold=0.2)(traces), [2, 0, np.nan], equal_nan=True)
    assert np.allclose(ResponseLength()(traces), [6, 3, np.nan], equal_nan=True)
    assert np.allclose(MeanEntropy()(traces), [63 / 6, 1, np.nan], equal_nan=True)
    assert np.allclose(TotalEntropy()(traces), [63, 3, np.nan], equal_nan=True)
    assert np.allclose(ForkingTokens(min_entropy=1.0)(traces), [5, 0, np.nan], equal_nan=True)
    sure = np.array([3.0, 5.0], np.float32)
    assert SelfCertainty()([trace([0, 0], self_certainty=sure)]) == [-4.0]
    assert Consistency()([trace([0, 0], agreement=0.75)]) == [0.25]


def test_rauq_by_hand():
    newest = np.array([[0.0, 0.5, 1.0], [0.0, 0.1, 0.1]], np.float32)
    probability = np.array([0.5, 1.0, 0.25])
    one = ResponseTrace(*[np.zeros(3, np.float32)] * 3, np.log(probability), newest=newest)
    # c = 0.5; 0.2 + 0.8 * a * c; and so on.
    upper = [0.5, 0.2 + 0.8 * 0.5 * 0.5]
    upper.append(0.05 + 0.8 * 1.0 * upper[1])
    lower = [0.5, 0.2 + 0.8 * 0.1 * 0.5]
    lower.append(0.05 + 0.8 * 0.1 * lower[1])
    assert RAUQ()([one])[0] == pytest.approx(max(-np.log(c).mean() for c in (upper, lower)))


def test_coe_by_its_definition():
    states = np.random.default_rng(0).normal(size=(5, 8)).cumsum(axis=0)

    def angle(a, b):
        return np.arccos(a @ b / np.linalg.norm(a) / np.linalg.norm(b))

    lengths = [np.linalg.norm(b - a) for a, b in zip(states, states[1:])]
    angles = [angle(a, b) for a, b in zip(states, states[1:])]
    whole = np.linalg.norm(states[-1] - states[0])
    coe_r = np.mean(lengths) / whole - np.mean(angles) / angle(states[-1], states[0])
    assert CoE()([trace([0, 0], layer_gram=states @ states.T)])[0] == pytest.approx(-coe_r)


@pytest.fixture(scope="module")
def polygraph():
    """
    Estimators of lm-polygraph by module name. Only these files of it are loaded: importing the whole package asks for
    two dozen others that have nothing to do with them.
    """
    spec = importlib.util.find_spec("lm_polygraph")
    if spec is None:
        pytest.skip("lm-polygraph is not there: pip install --no-deps lm-polygraph")
    (root,) = spec.submodule_search_locations
    names = ("lm_polygraph", "lm_polygraph.estimators", "lm_polygraph.utils")
    for name in names:
        package = types.ModuleType(name)
        package.__path__ = [root + name.removeprefix("lm_polygraph").replace(".", "/")]
        sys.modules[name] = package
    yield lambda name: importlib.import_module(f"lm_polygraph.estimators.{name}")
    for name in [name for name in sys.modules if name.partition(".")[0] == "lm_polygraph"]:
        del sys.modules[name]


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gpt2"])
def test_against_lm_polygraph(polygraph, architecture):
    """The same statistics, from `output_attentions=True` of an eager copy, go into their estimators."""
    prompt, completion = [5, 9, 14, 20, 8], [30, 41, 12, 77, 52, 19, 33, 60, 1]
    eager = make_model(architecture, attn_implementation="eager")
    ids = torch.tensor([prompt + completion])
    with torch.no_grad():
        outputs = eager(ids, output_attentions=True, use_cache=False)
    produced = slice(len(prompt) - 1, len(prompt) + len(completion) - 1)
    log_probs = outputs.logits[0, produced].log_softmax(-1).numpy()
    maps = torch.stack(outputs.attentions)[:, 0].numpy()
    num_layers, num_heads, size = maps.shape[0], maps.shape[1], len(completion)
    attention = np.zeros((num_layers * num_heads, size, size))
    for j in range(1, size):
        # Their row j: what the step that produced token j paid to the tokens before it.
        keys = slice(len(prompt), len(prompt) + j)
        attention[:, j, :j] = maps[:, :, len(prompt) - 1 + j, keys].reshape(num_layers * num_heads, j)
    likelihoods = log_probs[np.arange(size), completion]
    stats = {
        "greedy_log_probs": [log_probs],
        "greedy_log_likelihoods": [likelihoods],
        "attention_all": [attention],
        "entropy": [-(np.exp(log_probs) * log_probs).sum(-1)],
    }
    signals = OPTIONAL_SIGNALS - {"agreement"}
    model = make_model(architecture, attn_implementation="sdpa")
    (own,), _ = trace_rollouts(model, [Rollout(prompt, completion)], 0, signals=signals, progress=False)

    def theirs(module, name, *args, **kwargs):
        return getattr(polygraph(module), name)(*args, **kwargs)(stats)[0]

    assert MeanEntropy()([own])[0] == pytest.approx(theirs("token_entropy", "MeanTokenEntropy"), abs=1e-5)
    assert SelfCertainty()([own])[0] == pytest.approx(theirs("self_certainty", "SelfCertainty"), abs=1e-5)
    assert -own.log_prob.mean() == pytest.approx(theirs("perplexity", "Perplexity"), abs=1e-5)
    rauq = theirs("rauq", "RAUQ", alpha=0.2, n_layers=num_layers, n_heads=num_heads)
    assert 1 + RAUQ()([own])[0] == pytest.approx(rauq, abs=1e-4)  # theirs adds one
    assert 1 + RAUQ(alpha=0.5)([own])[0] == pytest.approx(
        theirs("rauq", "RAUQ", alpha=0.5, n_layers=num_layers, n_heads=num_heads), abs=1e-4
    )


def test_random_scores_differ_between_responses_and_seeds_and_nothing_else():
    traces = [trace(np.random.default_rng(i).random(5)) for i in range(200)]
    scores = RandomScore()(traces)
    assert np.array_equal(RandomScore()(traces[::-1]), scores[::-1])
    assert len(set(scores)) == 200 and scores.min() < 0.05 and scores.max() > 0.95
    assert abs(np.corrcoef(scores, RandomScore(seed=1)(traces))[0, 1]) < 0.2
    assert np.isnan(RandomScore()([trace([])])).all()


def test_estimators_by_name():
    assert isinstance(get_estimator(), TotalEntropy) and isinstance(get_estimator("forking_tokens"), ForkingTokens)
    own = PivotCount(quantile=0.9)
    assert get_estimator(own) is own
    with pytest.raises(ValueError, match="'pivots', but must be one of coe, consistency, entropy, forking_tokens"):
        get_estimator("pivots")
    for wrong in (PivotCount, 3):
        with pytest.raises(TypeError, match="must be a name or have `needs`"):
            get_estimator(wrong)


def test_the_table_in_the_documents_holds_every_estimator():
    page = (Path(__file__).parents[2] / "docs" / "estimators.md").read_text()
    table = re.findall(r"^\| `(\w+)` \| `(\w+)` \|", page, re.MULTILINE)
    assert sorted(table) == [(name, kind.__name__) for name, kind in ESTIMATORS.items()]


@pytest.mark.parametrize("kind", [PivotCount, PivotDensity, PivotEntropy])
def test_fit_sets_the_threshold_once_for_the_pool(kind):
    rng = np.random.default_rng(0)
    traces = [trace(rng.random(20)) for _ in range(10)]
    fresh = kind(quantile=0.9)
    with pytest.raises(RuntimeError, match="no threshold yet"):
        fresh(traces)
    fitted = fresh.fit(traces)
    assert fresh.threshold is None and fitted.threshold == pivot_threshold([t.long_range_mass for t in traces], 0.9)
    share = np.concatenate([find_pivots(t.long_range_mass, fitted.threshold)[:-1] for t in traces]).mean()
    assert share == pytest.approx(0.1, abs=0.01)


@pytest.mark.parametrize("estimator", [get_estimator(name) for name in ESTIMATORS], ids=list(ESTIMATORS))
def test_every_estimator_keeps_to_the_interface(estimator):
    assert isinstance(estimator, Estimator) and estimator.needs <= OPTIONAL_SIGNALS
    traces = random_traces((12, 3, 40, 7))
    fitted = estimator.fit(traces)
    # Training scores a few responses at a time.
    alone = np.concatenate([fitted([one]) for one in traces])
    assert np.array_equal(fitted(traces), alone) and np.isfinite(alone).all()
    assert np.isnan(fitted([trace([])])).all()
    # Checkpoints keep what was learnt.
    restored = type(estimator)(**json.loads(json.dumps(vars(fitted))))
    assert np.array_equal(restored(traces), alone)


@pytest.mark.parametrize("name", sorted(OPTIONAL_SIGNALS))
def test_a_signal_that_was_not_traced_is_named(name):
    readers = [estimator() for estimator in ESTIMATORS.values() if name in estimator.needs]
    assert readers
    for reader in readers:
        with pytest.raises(ValueError, match=f"`{name}` was not traced"):
            reader([trace([0.1, 0.2])])


def simulated_pool(num=400, seed=0):
    """Responses whose entropy says how likely they are wrong, while their length says nothing."""
    rng = np.random.default_rng(seed)
    hardness = rng.random(num)
    traces = [trace(rng.random(n), rng.exponential(0.1 + h, n)) for n, h in zip(rng.integers(20, 60, num), hardness)]
    return traces, rng.random(num) > hardness


def auroc(scores, is_wrong) -> float:
    pairs = scores[is_wrong][:, None] - scores[~is_wrong][None, :]
    return float(((pairs > 0) + 0.5 * (pairs == 0)).mean())


def test_probes_teach_the_score():
    gains = []
    for seed in range(5):
        traces, was_right = simulated_pool(seed=seed)
        before = ProbeCalibrated().fit(traces)
        probes = range(0, 400, 10)
        after = before.calibrate([traces[i] for i in probes], was_right[list(probes)])
        rest = np.setdiff1d(np.arange(400), probes)
        held_out = [traces[i] for i in rest]
        gains.append(auroc(after(held_out), ~was_right[rest]) - auroc(before(held_out), ~was_right[rest]))
        assert (np.array(after.weights) >= 0).all() and isinstance(after, CalibratedEstimator)
    assert np.mean(gains) > 0.01


def test_a_probe_is_scored_without_its_own_label():
    traces, was_right = simulated_pool(48)
    fitted = ProbeCalibrated().fit(traces)
    flipped = was_right.copy()
    flipped[5] = not flipped[5]
    one, other = fitted.calibrate(traces, was_right), fitted.calibrate(traces, flipped)
    assert one.score_probe(5, traces[5]) == other.score_probe(5, traces[5])
    assert one([traces[5]]) != other([traces[5]])
    assert one.score_probe(4, traces[4]) != other.score_probe(4, traces[4])
    with pytest.raises(RuntimeError, match="is not fitted yet"):
        ProbeCalibrated()(traces)
