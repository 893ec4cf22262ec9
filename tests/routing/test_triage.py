"""From scores and bought labels to routes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pivottrace_trl import Route, TriageConfig
from pivottrace_trl.routing import Evidence, assign_routes, choose_probes, rank_pool, resolve_budget
from pivottrace_trl.routing.calibration import calibrate


def evidence_from(pass_rate, is_labelled=None, num_verified=1, agreement=None) -> Evidence:
    pass_rate = np.asarray(pass_rate, float)
    known = np.isfinite(pass_rate)
    return Evidence(
        is_labelled=known if is_labelled is None else np.asarray(is_labelled),
        pass_rate=pass_rate,
        num_verified=np.where(known, num_verified, 0),
        agreement=np.full(len(pass_rate), np.nan) if agreement is None else np.asarray(agreement, float),
    )


@pytest.mark.parametrize(
    ("budget", "pool", "labels"), [(0.293, 200, 58), (1.0, 7, 7), (1, 7, 1), (7, 7, 7), (0.1, 10, 1), (0.29, 100, 29)]
)
def test_budget_is_a_share_or_a_number(budget, pool, labels):
    assert resolve_budget(budget, pool) == resolve_budget(str(budget), pool) == labels


def test_budget_in_writing():
    written = ["30%", "30 %", "29.3%", "1e-1", "+3", "100%", "1.0", "1"]
    assert [resolve_budget(budget, 200) for budget in written] == [60, 60, 58, 20, 3, 200, 200, 1]


@pytest.mark.parametrize(
    "budget", [0, 0.0, -1, -0.5, 1.3, 513, float("nan"), True, None, "0", "150%", "-1%", "%", "a third", ""]
)
def test_bad_budget_names_the_value_and_the_fix(budget):
    with pytest.raises(ValueError, match="annotation_budget.*share.*512"):
        resolve_budget(budget, 512)


def test_budget_below_one_label():
    with pytest.raises(ValueError, match="less than one label.*annotation_budget=1"):
        resolve_budget(0.05, 10)


def test_ranking_is_stable_and_refuses_nan():
    assert rank_pool(np.array([2.0, 1.0, 2.0, 0.0])).tolist() == [3, 1, 0, 2]
    with pytest.raises(ValueError, match="1 of 3 scores are not finite.*prompt 1"):
        rank_pool(np.array([1.0, np.nan, 2.0]))
    with pytest.raises(ValueError, match="non-empty"):
        rank_pool(np.array([]))


def test_probes_are_spread_over_the_ranking():
    scores = np.random.default_rng(0).permutation(100).astype(float)
    probes = choose_probes(scores, 10)
    assert scores[probes].tolist() == [5, 15, 25, 35, 45, 55, 65, 75, 85, 95]
    assert len(set(choose_probes(scores, 100))) == 100
    with pytest.raises(ValueError, match="101 prompts does not fit a pool of 100"):
        choose_probes(scores, 101)


def test_the_curve_is_the_isotonic_fit_of_a_sliding_window():
    rng = np.random.default_rng(1)
    ranking = rng.permutation(60)
    pass_rate = np.where(rng.random(60) < 0.4, rng.random(60), np.nan)
    pass_rate[ranking] -= np.linspace(0, 0.5, 60)
    places = np.flatnonzero(np.isfinite(pass_rate[ranking]))
    rates = pass_rate[ranking][places]
    windows = [slice(i, i + 5) for i in range(len(places) - 4)]
    assert len(places) // 4 == 5
    means = [rates[w].mean() for w in windows]
    # Pool adjacent violators by their definition: the largest of the smallest means over stretches that hold a place.
    n = len(means)
    monotone = [
        min(max(np.mean(means[i : j + 1]) for j in range(k, n)) for i in range(k + 1)) for k in range(n)
    ]  # fmt: skip
    centres = [(places[w][0] + places[w][-1]) / 2 for w in windows]
    result = calibrate(ranking, pass_rate)
    assert not result.is_flat
    assert np.allclose(result.curve, np.interp(np.arange(60), centres, np.clip(monotone, 0, 1)))
    assert (np.diff(result.curve) <= 1e-12).all()


@given(st.lists(st.sampled_from([np.nan, 0.0, 0.25, 1.0]), min_size=1, max_size=50), st.randoms(use_true_random=False))
def test_the_curve_falls_and_lies_within_its_range(rates, random):
    ranking = list(range(len(rates)))
    random.shuffle(ranking)
    result = calibrate(np.array(ranking), np.array(rates))
    if np.isnan(rates).all():
        assert np.isnan(result.curve).all()
    else:
        for curve in (result.curve, result.low, result.high):
            assert (curve >= 0).all() and (curve <= 1).all() and (np.diff(curve) <= 1e-12).all()
        assert (result.low <= result.high + 1e-12).all()
        assert np.isnan(result.error) or 0 <= result.error <= 1


def simulated(num_prompts=2000, num_probes=200, seed=0, slope=1.0):
    """A ranking with known success along it, and probes of it."""
    rng = np.random.default_rng(seed)
    ranking = rng.permutation(num_prompts)
    truth = 0.5 + slope * (0.45 - 0.9 * np.arange(num_prompts) / num_prompts)
    pass_rate = np.full(num_prompts, np.nan)
    places = ((np.arange(num_probes) + 0.5) * num_prompts / num_probes).astype(int)
    pass_rate[ranking[places]] = rng.random(num_probes) < truth[places]
    return ranking, truth, pass_rate


def test_curve_band_and_error_against_the_truth():
    covered, errors = [], []
    for seed in range(10):
        ranking, truth, pass_rate = simulated(seed=seed)
        result = calibrate(ranking, pass_rate)
        inside = slice(200, 1800)  # the window averages over the ends
        assert abs(result.curve - truth)[inside].mean() < 0.08
        covered.append(((result.low <= truth) & (truth <= result.high))[inside].mean())
        errors.append(result.error)
        assert 0.65 < result.separation < 0.95 and not result.is_flat
        assert (result.low <= result.high).all()
    assert np.mean(covered) > 0.75  # the band is that of the fit: it does not know of the fit's own bias
    assert np.mean(errors) < 0.1


def test_a_flat_curve_is_one_level_and_the_ranking_random():
    ranking, _, pass_rate = simulated(slope=-1.0)
    result = calibrate(ranking, pass_rate)
    assert result.is_flat and result.separation < 0.3
    assert np.allclose(result.curve, np.nanmean(pass_rate))
    scores = np.empty(len(ranking))
    scores[ranking] = np.arange(len(ranking))
    pass_rate[np.flatnonzero(np.isfinite(pass_rate))[:40]] = 0.0  # below the level at which votes are trusted
    bought = assign_routes(scores, evidence_from(pass_rate), budget_left=400).to_buy
    # Neither the most uncertain first nor the least: drawn from everywhere.
    assert abs(scores[bought].mean() / len(scores) - 0.5) < 0.05 and scores[bought].std() / len(scores) > 0.25


def test_all_right_or_all_wrong_is_not_the_scores_fault():
    for rate in (0.0, 1.0):
        result = calibrate(np.arange(10), np.full(10, rate))
        assert not result.is_flat and np.isnan(result.separation) and np.allclose(result.curve, rate)
    nothing = calibrate(np.arange(10), np.full(10, np.nan))
    assert np.isnan(nothing.curve).all() and not nothing.is_flat
    assert np.isfinite(calibrate(np.arange(1), np.ones(1)).curve).all()


def test_three_zones():
    scores = np.arange(100.0)
    pass_rate = np.full(100, np.nan)
    pass_rate[2:100:5] = [1.0] * 8 + [1, 0, 1, 0, 1] + [0.0] * 7
    result = assign_routes(scores, evidence_from(pass_rate), budget_left=15)
    routes = result.routes
    assert (routes[:30] == Route.DISCARD).all()
    assert (routes[95:] == Route.ANNOTATE).all()
    assert len(result.to_buy) == 15
    # The most uncertain first, and never one that is labelled already.
    assert result.to_buy[0] == 99 and (np.diff(scores[result.to_buy]) < 0).all()
    assert not np.isfinite(pass_rate[result.to_buy]).any()
    assert (routes == Route.WEAK).any()
    assert routes[47] == Route.ANNOTATE  # a probe that was wrong keeps its label
    assert result.discard_below < result.annotate_above
    assert sum(result.counts().values()) == 100


def test_without_evidence_nothing_is_discarded_or_bought():
    result = assign_routes(np.arange(20.0), Evidence.empty(20), budget_left=10)
    assert (result.routes == Route.WEAK).all() and len(result.to_buy) == 0


def test_what_is_known_of_a_prompt_goes_before_its_place():
    scores = np.arange(10.0)
    pass_rate = np.array([0.0, 1, 1, 1, 1, 1, 1, 1, 1, 1])
    kept = assign_routes(scores, evidence_from(pass_rate), 0, TriageConfig(tau_high=0.8))
    assert kept.routes[0] == Route.ANNOTATE  # wrong although the easiest by score
    # A group that was right as a whole is mastered wherever it stands; one right answer is not enough.
    flat = np.array([0.0] * 9 + [1.0])
    assert assign_routes(scores, evidence_from(flat, num_verified=8), 0).routes[9] == Route.DISCARD
    assert assign_routes(scores, evidence_from(flat, num_verified=1), 0).routes[9] == Route.ANNOTATE


def test_a_poor_vote_asks_for_a_label():
    scores = np.arange(10.0)
    agreement = np.full(10, np.nan)
    agreement[3] = 0.25
    evidence = evidence_from(np.full(10, np.nan), np.zeros(10, bool), agreement=agreement)
    assert assign_routes(scores, evidence, 1).to_buy.tolist() == [3]
    assert assign_routes(scores, evidence, 0).routes[3] == Route.WEAK


@pytest.mark.parametrize(("tau_high", "enough"), [(0.85, 19), (0.7, 9)])
def test_few_probes_that_are_all_right_do_not_show_that_a_pool_is_mastered(tau_high, enough):
    for num, share in ((1, 0.0), (enough - 1, 0.0), (enough, 1.0)):
        pass_rate = np.full(1000, np.nan)
        pass_rate[np.linspace(0, 999, num).astype(int)] = 1.0
        result = assign_routes(np.arange(1000.0), evidence_from(pass_rate), 10, TriageConfig(tau_high=tau_high))
        assert result.routes.tolist().count(Route.DISCARD) == share * 1000, num
        assert len(result.to_buy) == 0


@st.composite
def pools(draw, distinct=False):
    """Scores, evidence and a budget; pools of one prompt, ties and unknown evidence included."""
    num = draw(st.integers(1, 40))
    finite = st.floats(-1e6, 1e6, allow_nan=False)
    scores = draw(st.lists(finite if distinct else finite | st.sampled_from([0.0, 1.0]), min_size=num, max_size=num,
                           unique=distinct))  # fmt: skip

    def column(values):
        return np.array(draw(st.lists(values, min_size=num, max_size=num)), float)

    pass_rate = column(st.sampled_from([np.nan, np.nan, 0.0, 0.5, 1.0]))
    agreement = column(st.sampled_from([np.nan, 0.25, 0.75, 1.0]))
    num_verified = draw(st.sampled_from([1, 8]))
    evidence = evidence_from(pass_rate, num_verified=num_verified, agreement=agreement)
    return np.array(scores), evidence, draw(st.integers(0, num))


@given(pools())
def test_the_budget_is_never_exceeded(pool):
    scores, evidence, budget = pool
    result = assign_routes(scores, evidence, budget)
    assert len(result.to_buy) <= budget and len(set(result.to_buy)) == len(result.to_buy)
    assert not evidence.is_labelled[result.to_buy].any()
    is_annotated = result.routes == Route.ANNOTATE
    assert (
        is_annotated == (np.isin(np.arange(len(scores)), result.to_buy) | (is_annotated & evidence.is_labelled))
    ).all()
    assert sum(result.counts().values()) == len(scores)


@given(pools())
def test_a_larger_budget_buys_the_same_and_more(pool):
    scores, evidence, budget = pool
    smaller, larger = assign_routes(scores, evidence, budget), assign_routes(scores, evidence, budget + 1)
    assert larger.to_buy[: len(smaller.to_buy)].tolist() == smaller.to_buy.tolist()
    changed = smaller.routes != larger.routes
    assert (larger.routes[changed] == Route.ANNOTATE).all() and changed.sum() <= 1


@given(pools(distinct=True), st.randoms(use_true_random=False))
def test_the_order_of_the_pool_does_not_matter(pool, random):
    scores, evidence, budget = pool
    mixed = list(range(len(scores)))
    random.shuffle(mixed)
    shuffled = Evidence(*(getattr(evidence, name)[mixed] for name in evidence.__dataclass_fields__))
    assert (
        assign_routes(scores[mixed], shuffled, budget).routes == assign_routes(scores, evidence, budget).routes[mixed]
    ).all()


@given(pools(distinct=True))
def test_only_the_order_of_the_scores_counts(pool):
    scores, evidence, budget = pool
    ranks = np.argsort(np.argsort(scores)).astype(float)
    assert (assign_routes(ranks, evidence, budget).routes == assign_routes(scores, evidence, budget).routes).all()


@given(pools(), st.sampled_from([np.nan, np.inf, -np.inf]), st.data())
def test_scores_that_are_not_finite_are_refused(pool, value, data):
    scores, evidence, budget = pool
    scores[data.draw(st.integers(0, len(scores) - 1))] = value
    with pytest.raises(ValueError, match="not finite"):
        assign_routes(scores, evidence, budget)


@given(pools(), st.data())
def test_probes_are_distinct_prompts(pool, data):
    scores, _, _ = pool
    num_probes = data.draw(st.integers(1, len(scores)))
    probes = choose_probes(scores, num_probes)
    assert len(set(probes)) == num_probes and (np.diff(scores[probes]) >= 0).all()


def test_thresholds_out_of_order_are_refused():
    with pytest.raises(ValueError, match="tau_low.*0.3.*tau_high.*0.5"):
        TriageConfig(tau_high=0.5, tau_low=0.3)


@given(st.permutations(range(40)), st.sampled_from([0.0, 0.25, 0.421, 0.9]), st.integers(0, 20))
def test_shares_cut_the_ranking_whatever_the_verified_prompts_say(order, discard_ratio, budget):
    scores = np.array(order, float)
    # Verified prompts that contradict the ranking: with thresholds it would be thrown away.
    pass_rate = np.where(scores % 13 == 0, scores / 40, np.nan)
    result = assign_routes(scores, evidence_from(pass_rate), budget, TriageConfig(discard_ratio=discard_ratio))
    unlabelled = np.isnan(pass_rate)
    is_low = scores < int(40 * discard_ratio)
    assert (result.routes[is_low & unlabelled] == Route.DISCARD).all()
    assert not (result.routes[~is_low] == Route.DISCARD).any()
    most_uncertain = [row for row in np.argsort(-scores) if unlabelled[row] and not is_low[row]]
    assert result.to_buy.tolist() == most_uncertain[:budget]


@pytest.mark.parametrize("share", [-0.1, 1.0, 42.1, float("nan")])
def test_a_share_out_of_range_is_refused(share):
    with pytest.raises(ValueError, match=f"`discard_ratio` is {share}, but must be a share"):
        TriageConfig(discard_ratio=share)


def test_probes_that_are_known_are_not_chosen_again():
    scores = np.random.default_rng(0).random(100)
    first = choose_probes(scores, 10)
    is_known = np.isin(np.arange(100), first)
    assert (choose_probes(scores, 10, is_known) == first).all()
    # By another ranking, each stretch that holds one of them keeps the one nearest to its middle.
    other = np.random.default_rng(1).random(100)
    ranking = np.argsort(other)
    places = {int(row): place for place, row in enumerate(ranking)}
    expected = []
    for number in range(10):
        stretch = ranking[10 * number : 10 * number + 10]
        known = sorted((row for row in stretch if is_known[row]), key=lambda row: abs(places[row] - 10 * number - 4.5))
        expected.append(known[0] if known else stretch[5])
    assert choose_probes(other, 10, is_known).tolist() == expected
    assert 0 < np.isin(expected, first).sum() < 10
