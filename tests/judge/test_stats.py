"""Intervals against scipy, rliable, closed forms, simulation, and enumeration of every outcome."""

import subprocess
import sys

import numpy as np
import pytest
from scipy import special, stats

from telos.core.errors import TelosError
from telos.judge.stats import (
    Interval,
    binary_mean,
    bootstrap_iqm,
    bootstrap_mean,
    expected_false,
    iqm,
    paired_binary,
    paired_t,
    probability_of_improvement,
)


def ends(interval):
    return interval.low, interval.high


def binary_arms(n10, n01, n):
    """Two paired 0/1 arms with the given discordant pairs; the rest are pairs (1, 1) and (0, 0) in turn."""
    rest = np.arange(n - n10 - n01) % 2
    a = np.concatenate([np.ones(n10), np.zeros(n01), rest])
    b = np.concatenate([np.zeros(n10), np.ones(n01), rest])
    return a, b


# Student's t


@pytest.mark.parametrize("n", [2, 5, 10, 33])
@pytest.mark.parametrize("level", [0.8, 0.95])
def test_paired_t_is_scipys(n, level):
    rng = np.random.default_rng(n)
    a, b = rng.normal(1.0, 3.0, n), rng.normal(size=n)
    interval = paired_t(a - b, level)
    expected = stats.ttest_rel(a, b).confidence_interval(level)
    assert ends(interval) == pytest.approx((expected.low, expected.high), rel=1e-10)
    assert interval.estimate == pytest.approx(np.mean(a) - np.mean(b))
    assert interval.level == level


def test_paired_t_by_hand():
    # Mean 2, standard error 1 / sqrt(3), t quantile 4.302653 with 2 degrees of freedom.
    assert ends(paired_t([1.0, 2.0, 3.0])) == pytest.approx((2 - 4.302653 / 3**0.5, 2 + 4.302653 / 3**0.5), abs=1e-6)


def test_paired_t_without_variance_is_the_value_itself():
    assert paired_t([0.1] * 10) == Interval(0.1, 0.1, 0.1)


@pytest.mark.parametrize("values", [[1.0], [], [1.0, np.nan], [1.0, np.inf], [[1.0, 2.0], [3.0, 4.0]]])
def test_paired_t_refuses(values):
    with pytest.raises(TelosError, match="differences"):
        paired_t(values)


@pytest.mark.parametrize("n", [5, 10])
def test_paired_t_coverage_and_false_confirmations(n):
    differences = np.random.default_rng(n).normal(size=(20_000, n))
    # A slice goes through the function itself; all rows go through its vectorised form, compared on that slice.
    half = stats.t.ppf(0.975, n - 1) * differences.std(axis=1, ddof=1) / np.sqrt(n)
    lows, highs = differences.mean(axis=1) - half, differences.mean(axis=1) + half
    some = np.array([ends(paired_t(row)) for row in differences[:2000]])
    assert np.allclose(some, np.stack([lows, highs], axis=1)[:2000])
    assert 0.93 < np.mean((some[:, 0] <= 0) & (some[:, 1] >= 0)) < 0.97
    assert 0.945 < np.mean((lows <= 0) & (highs >= 0)) < 0.955
    assert np.mean(some[:, 0] > 0) < 0.035
    assert 0.02 < np.mean(lows > 0) < 0.03


# Exact intervals of 0/1 values


def test_binary_mean_is_clopper_pearson():
    for n in (1, 5, 10):
        for ones in range(n + 1):
            interval = binary_mean(np.arange(n) < ones)
            expected = stats.binomtest(ones, n).proportion_ci(0.95, "exact")
            assert ends(interval) == pytest.approx((expected.low, expected.high), abs=1e-9)
            assert interval.estimate == pytest.approx(ones / n)


@pytest.mark.parametrize(("n", "confirms"), [(4, False), (5, False), (6, True), (10, True)])
def test_paired_binary_all_against_none(n, confirms):
    assert (paired_binary(np.ones(n), np.zeros(n)).low > 0) is confirms
    assert (paired_binary(np.zeros(n), np.ones(n)).high < 0) is confirms


@pytest.mark.parametrize("n", [1, 5, 10, 20])
def test_paired_binary_all_against_none_closed_form(n):
    # Nothing ranks above n10 = n, whose probability given delta is highest without ties: ((1 + delta) / 2)^n = 0.025.
    interval = paired_binary(np.ones(n), np.zeros(n))
    assert interval.low == pytest.approx(2 * 0.025 ** (1 / n) - 1, abs=2e-2)
    assert interval.low <= 2 * 0.025 ** (1 / n) - 1
    assert interval.high == 1


@pytest.mark.parametrize("n", [5, 10, 20])
def test_paired_binary_covers_exactly(n):
    """Every outcome of the trinomial, at truths off the grid that the function searches: each tail is within 2.5 %."""
    outcomes = [(n10, n01) for n10 in range(n + 1) for n01 in range(n + 1 - n10)]
    lows, highs = np.array([ends(paired_binary(*binary_arms(*outcome, n))) for outcome in outcomes]).T
    n10, n01 = np.array(outcomes).T
    assert np.all((lows <= (n10 - n01) / n) & ((n10 - n01) / n <= highs))

    rng = np.random.default_rng(0)
    edges = np.linspace(0, 1, 301)
    truths = np.concatenate(
        [
            np.stack([edges, 1 - edges, 0 * edges], axis=1),
            np.stack([edges, 0 * edges, 1 - edges], axis=1),
            np.stack([edges / 2, edges / 2, 1 - edges], axis=1),
            rng.dirichlet(np.ones(3), size=3000),
            rng.dirichlet([0.2, 0.2, 2.0], size=1500),
        ]
    )
    log_ways = special.gammaln(n + 1) - special.gammaln(n10 + 1) - special.gammaln(n01 + 1)
    log_ways -= special.gammaln(n - n10 - n01 + 1)
    p10, p01, same = truths.T[:, :, None]
    probs = np.exp(log_ways + special.xlogy(n10, p10) + special.xlogy(n01, p01) + special.xlogy(n - n10 - n01, same))
    assert np.allclose(probs.sum(axis=1), 1)
    delta = p10 - p01
    above, below = (probs * (lows > delta)).sum(axis=1), (probs * (highs < delta)).sum(axis=1)
    assert above.max() <= 0.025
    assert below.max() <= 0.025
    assert 1 - (above + below).max() >= 0.95
    # Not idle either: somewhere the error comes near to what is allowed.
    assert above.max() > 0.02


def test_paired_binary_is_antisymmetric_and_ignores_order():
    rng = np.random.default_rng(3)
    for _ in range(20):
        a, b = rng.integers(2, size=(2, 8))
        order = rng.permutation(8)
        forward, backward = paired_binary(a, b), paired_binary(b, a)
        assert ends(forward) == (-backward.high, -backward.low)
        assert paired_binary(a[order], b[order]) == forward


@pytest.mark.parametrize("n", [5, 10])
def test_paired_binary_is_tighter_than_two_clopper_pearson_intervals_and_rises_with_the_evidence(n):
    limits = [stats.binomtest(ones, n).proportion_ci(0.975, "exact") for ones in range(n + 1)]
    for n10 in range(n + 1):
        for n01 in range(n + 1 - n10):
            interval = paired_binary(*binary_arms(n10, n01, n))
            assert interval.low >= limits[n10].low - limits[n01].high - 1e-3
            assert interval.high <= limits[n10].high - limits[n01].low + 1e-3
            if n10 + n01 < n:
                more = paired_binary(*binary_arms(n10 + 1, n01, n))
                assert more.low >= interval.low
                assert more.high >= interval.high


def test_paired_binary_refuses():
    with pytest.raises(TelosError, match="not paired"):
        paired_binary([0, 1], [0, 1, 1])
    with pytest.raises(TelosError, match="b are not binary"):
        paired_binary([0, 1], [0, 0.5])
    with pytest.raises(TelosError, match="a give no interval"):
        paired_binary([], [])


# What is drawn beside the verdict, against rliable


@pytest.mark.parametrize("shape", [(3, 1), (5, 4), (10, 7)])
def test_point_estimates_are_rliables(shape):
    metrics = pytest.importorskip("rliable.metrics")
    rng = np.random.default_rng(shape[0])
    # Rounding makes ties.
    a, b = rng.normal(0.3, 1, shape).round(1), rng.normal(0, 1, (shape[0] + 2, shape[1])).round(1)
    assert iqm(a) == pytest.approx(metrics.aggregate_iqm(a))
    assert bootstrap_iqm(a, rng).estimate == pytest.approx(metrics.aggregate_iqm(a))
    assert bootstrap_mean(a, rng).estimate == pytest.approx(metrics.aggregate_mean(a))
    expected = float(metrics.probability_of_improvement(a, b))
    assert probability_of_improvement(a, b, rng).estimate == pytest.approx(expected)


def test_bootstrap_intervals_are_rliables_up_to_chance():
    metrics = pytest.importorskip("rliable.metrics")
    try:
        from rliable import library
    except (ImportError, TypeError) as error:
        pytest.skip(f"rliable's bootstrap does not import here: {error}")
    rng = np.random.default_rng(0)
    a, b = rng.normal(0.5, 1, (10, 3)), rng.normal(0, 1, (10, 3))

    def theirs(scores, metric):
        _, intervals = library.get_interval_estimates(
            {"x": scores}, lambda *arms: np.array([metric(*arms)]), reps=2000, random_state=np.random.RandomState(1)
        )
        return intervals["x"].ravel()

    assert ends(bootstrap_mean(a, rng)) == pytest.approx(theirs(a, metrics.aggregate_mean), abs=0.03)
    assert ends(bootstrap_iqm(a, rng)) == pytest.approx(theirs(a, metrics.aggregate_iqm), abs=0.05)
    improvement = theirs((a, b), metrics.probability_of_improvement)
    assert ends(probability_of_improvement(a, b, rng)) == pytest.approx(improvement, abs=0.03)


def test_bootstrap_intervals_are_scipys_up_to_chance():
    rng = np.random.default_rng(0)
    a, b = rng.normal(0.5, 1, 12), rng.normal(0, 1, 8)

    def theirs(arms, statistic):
        result = stats.bootstrap(
            arms, statistic, n_resamples=3000, method="percentile", vectorized=False, rng=np.random.default_rng(1)
        )
        return result.confidence_interval.low, result.confidence_interval.high

    assert ends(bootstrap_mean(a, rng, 3000)) == pytest.approx(theirs((a,), np.mean), abs=0.03)
    assert ends(bootstrap_iqm(a, rng, 3000)) == pytest.approx(theirs((a,), iqm), abs=0.05)
    improvement = theirs((a, b), lambda x, y: np.mean(x[:, None] > y))
    assert ends(probability_of_improvement(a, b, rng, 3000)) == pytest.approx(improvement, abs=0.02)


def test_probability_of_improvement_is_mann_whitneys_and_antisymmetric():
    rng = np.random.default_rng(1)
    a, b = rng.integers(5, size=9), rng.integers(4, size=7)
    forward = probability_of_improvement(a, b, rng).estimate
    assert forward == pytest.approx(stats.mannwhitneyu(a, b).statistic / 63)
    assert probability_of_improvement(b, a, rng).estimate == pytest.approx(1 - forward)
    assert probability_of_improvement([2, 3], [0, 1], rng) == Interval(1, 1, 1)
    assert probability_of_improvement([1, 1], [1, 1], rng) == Interval(0.5, 0.5, 0.5)


def test_iqm_drops_a_quarter_at_either_end():
    assert iqm([1e9, 2, 4, -1e9]) == 3
    assert iqm([[1e9, 2], [4, -1e9]]) == 3
    assert iqm([1, 2, 6]) == 3


def test_bootstrap_keeps_tasks_apart():
    # Each task is constant over seeds, so resampling within tasks changes nothing; across tasks it would.
    assert bootstrap_mean(np.tile([0.0, 100.0], (6, 1)), np.random.default_rng(0)) == Interval(50, 50, 50)


def test_bootstrap_is_a_function_of_its_generator():
    scores = np.random.default_rng(5).normal(size=(6, 2))
    for draw in (bootstrap_mean, bootstrap_iqm, lambda x, rng: probability_of_improvement(x, -x, rng)):
        assert draw(scores, np.random.default_rng(7)) == draw(scores, np.random.default_rng(7))
        assert draw(scores, np.random.default_rng(7)) != draw(scores, np.random.default_rng(8))


@pytest.mark.parametrize("scores", [[], [1.0, np.nan], np.zeros((2, 2, 2)), 3.0])
def test_summaries_refuse(scores):
    with pytest.raises(TelosError, match="scores"):
        iqm(scores)


def test_probability_of_improvement_refuses_other_tasks():
    with pytest.raises(TelosError, match="tasks"):
        probability_of_improvement(np.zeros((3, 2)), np.zeros((3, 1)), np.random.default_rng(0))


def test_expected_false():
    assert expected_false(68) == pytest.approx(1.7)
    assert expected_false(0) == 0
    with pytest.raises(TelosError):
        expected_false(-1)


def test_judging_loads_no_torch():
    code = "import sys, telos.judge.stats, telos.judge.verdict; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
