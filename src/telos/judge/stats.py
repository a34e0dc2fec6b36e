"""Statistics over seeds: the intervals that decide a verdict, and those drawn beside them.

The seed is the unit: whatever a seed averages (episodes, prompts) is averaged before it gets here. All intervals are
two-sided with equal tails; `level` is their coverage. Random functions take a `numpy.random.Generator` and no other
source of chance.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special, stats

from telos.core.errors import TelosError

Floats = NDArray[np.float64]

LEVEL = 0.95
RESAMPLES = 2000


@dataclass(frozen=True)
class Interval:
    """An estimate with its interval `[low, high]` of coverage `level` (0 < level < 1)."""

    estimate: float
    low: float
    high: float
    level: float = LEVEL

    def to_json(self) -> dict[str, float]:
        return {"estimate": self.estimate, "low": self.low, "high": self.high, "level": self.level}


def paired_t(differences: ArrayLike, level: float = LEVEL) -> Interval:
    """Student's t interval of the mean of paired differences [n], n >= 2.

    The same formula serves one arm's own values. Differences that are all equal give the degenerate interval at that
    value. Raises TelosError when fewer than two values are given or one is not finite.
    """
    values = _finite(differences, "differences", least=2)
    n = len(values)
    if np.ptp(values) == 0:
        constant = float(values[0])
        return Interval(constant, constant, constant, level)
    mean = float(values.mean())
    half_width = float(stats.t.ppf((1 + level) / 2, n - 1) * values.std(ddof=1) / math.sqrt(n))
    return Interval(mean, mean - half_width, mean + half_width, level)


def binary_mean(values: ArrayLike, level: float = LEVEL) -> Interval:
    """Clopper-Pearson interval of the mean of 0/1 values [n], n >= 1: exact, coverage at least `level`."""
    outcomes = _binary(values, "values")
    n, ones = len(outcomes), int(outcomes.sum())
    low, high = _clopper_pearson(ones, n, (1 - level) / 2)
    return Interval(ones / n, low, high, level)


def paired_binary(a: ArrayLike, b: ArrayLike, level: float = LEVEL) -> Interval:
    """Exact interval of the mean of a - b for paired 0/1 arrays a [n] and b [n], n >= 1.

    With n10 pairs (1, 0) and n01 pairs (0, 1), the Clopper-Pearson limits of both rates, at half the error each,
    already bound the difference. Here that bound only ranks the outcomes, and each end is the Buehler (1957) bound for
    the ranking: the lower end is the largest delta under which an outcome ranked as high as the observed one or higher
    has probability at most (1 - level) / 2, whatever the rate of discordant pairs. Each tail thus errs with probability
    at most (1 - level) / 2 for every n and every truth, and the interval is at least as tight as the bound it started
    from (to about 1e-3).

    At level 0.95, 6 of 6 against 0 of 6 is above zero and 5 of 5 against 0 of 5 is not. Made for tens of seeds: the
    cost grows faster than n^3. Raises TelosError for values other than 0 and 1, or unequal lengths.
    """
    first, second = _binary(a, "a"), _binary(b, "b")
    if len(first) != len(second):
        raise TelosError(
            "a and b are not paired",
            expected=f"{len(first)} values in b, as in a",
            got=f"{len(second)}",
            fix="give both arms the same seeds in the same order",
        )
    n = len(first)
    n10 = int(np.sum(first > second))
    n01 = int(np.sum(first < second))
    tail = (1 - level) / 2
    low = _buehler_lower(n10, n01, n, tail)
    high = -_buehler_lower(n01, n10, n, tail)
    return Interval((n10 - n01) / n, low, high, level)


@lru_cache(maxsize=4096)
def _buehler_lower(n10: int, n01: int, n: int, tail: float) -> float:
    """Lower end of `paired_binary`: an outcome with n10, n01 of n pairs discordant, error probability `tail`."""
    all_n10, all_n01 = (counts.ravel() for counts in np.mgrid[0 : n + 1, 0 : n + 1])
    possible = all_n10 + all_n01 <= n
    all_n10, all_n01 = all_n10[possible], all_n01[possible]
    lows, highs = np.array([_clopper_pearson(ones, n, tail / 2) for ones in range(n + 1)]).T
    # Rounded, so that outcomes whose rank differs only by floating point stay tied.
    rank = np.round(lows[all_n10] - highs[all_n01], 10)
    as_high = rank >= np.round(lows[n10] - highs[n01], 10)
    counts = np.stack([all_n10, all_n01, n - all_n10 - all_n01])[:, as_high].astype(np.float64)
    log_ways = special.gammaln(n + 1) - special.gammaln(counts + 1).sum(axis=0)

    # With f(psi) the probability of that set at a rate psi of discordant pairs, |f''| <= 2 n (n - 1): f'' is n (n - 1)
    # times a second difference with weights of total size 4 and sum 0. A maximum inside is flat, so on a grid of step
    # 1 / (25 n) with both ends the highest value found is less than n (n - 1) / (2 * 25 n)^2 < 4e-4 below the true one.
    grid_error = 4e-4

    def highest_probability(delta: float) -> float:
        psi = np.linspace(abs(delta), 1, 25 * n + 1)
        probabilities = np.stack([(psi + delta) / 2, (psi - delta) / 2, 1 - psi], axis=1)
        log_probs = np.log(np.maximum(probabilities, 1e-300)) @ counts + log_ways
        return float(np.exp(log_probs).sum(axis=1).max())

    # The rank rises with n10 and falls with n01, so the true maximum rises with delta and one delta that satisfies the
    # bound vouches for all below it. `low` always satisfies it: rounding only widens.
    low, high = -1.0, 1.0
    for _ in range(18):
        middle = (low + high) / 2
        if highest_probability(middle) + grid_error <= tail:
            low = middle
        else:
            high = middle
    return low


def _clopper_pearson(ones: int, n: int, tail: float) -> tuple[float, float]:
    """Limits of a rate after `ones` of n, each wrong with probability at most `tail`."""
    low = float(special.betaincinv(ones, n - ones + 1, tail)) if ones > 0 else 0.0
    high = float(special.betaincinv(ones + 1, n - ones, 1 - tail)) if ones < n else 1.0
    return low, high


def iqm(scores: ArrayLike) -> float:
    """Interquartile mean over all entries of scores [n_seeds] or [n_seeds, n_tasks]: the mean of the middle half.

    Like Agarwal et al. (2021), a quarter of the entries (rounded down) is dropped at either end.
    """
    return float(stats.trim_mean(_seeds_by_tasks(scores, "scores").ravel(), 0.25))


def bootstrap_mean(
    scores: ArrayLike, rng: np.random.Generator, resamples: int = RESAMPLES, level: float = LEVEL
) -> Interval:
    """Mean of scores [n_seeds] or [n_seeds, n_tasks], with its percentile interval; seeds resampled within tasks."""
    return _bootstrap(scores, lambda flat: flat.mean(axis=-1), rng, resamples, level)


def bootstrap_iqm(
    scores: ArrayLike, rng: np.random.Generator, resamples: int = RESAMPLES, level: float = LEVEL
) -> Interval:
    """`iqm` of scores [n_seeds] or [n_seeds, n_tasks], with its percentile interval; seeds resampled within tasks."""
    return _bootstrap(scores, lambda flat: stats.trim_mean(flat, 0.25, axis=-1), rng, resamples, level)


def probability_of_improvement(
    a: ArrayLike, b: ArrayLike, rng: np.random.Generator, resamples: int = RESAMPLES, level: float = LEVEL
) -> Interval:
    """P(a > b) + P(a = b) / 2 for a random run of a and one of b, averaged over tasks (Agarwal et al. 2021).

    a [n_a] or [n_a, n_tasks], b [n_b] or [n_b, n_tasks]. On one task it is Mann-Whitney's U / (n_a n_b). The percentile
    bootstrap interval resamples the runs of a and of b separately within each task.
    """
    runs_a, runs_b = _seeds_by_tasks(a, "a"), _seeds_by_tasks(b, "b")
    (n_a, n_tasks), (n_b, tasks_b) = runs_a.shape, runs_b.shape
    if n_tasks != tasks_b:
        raise TelosError(
            "a and b have different numbers of tasks",
            expected=f"{n_tasks} columns in b, as in a",
            got=f"{tasks_b}",
            fix="give both arms the same tasks in the same order",
        )
    above = runs_a.T[:, :, None] - runs_b.T[:, None, :]
    wins = (np.sign(above) + 1) / 2
    weights_a = rng.multinomial(n_a, np.full(n_a, 1 / n_a), size=(resamples, n_tasks)) / n_a
    weights_b = rng.multinomial(n_b, np.full(n_b, 1 / n_b), size=(resamples, n_tasks)) / n_b
    resampled = np.einsum("rti,tij,rtj->r", weights_a, wins, weights_b, optimize=True) / n_tasks
    return _percentile(float(wins.mean()), resampled, level)


def expected_false(verdicts: int, level: float = LEVEL) -> float:
    """How many of `verdicts` would be 'confirmed' by chance at margin 0, if no arm differed from its rival.

    Each is confirmed with probability (1 - level) / 2, so this is the most to expect: real differences, margins above
    zero and verdicts of several parts all lower it.
    """
    if verdicts < 0:
        raise TelosError("the number of verdicts is negative", expected="0 or more", got=f"{verdicts}")
    return verdicts * (1 - level) / 2


def _bootstrap(
    scores: ArrayLike,
    statistic: Callable[[Floats], Floats],
    rng: np.random.Generator,
    resamples: int,
    level: float,
) -> Interval:
    """Stratified percentile bootstrap of a statistic that maps [..., n_seeds * n_tasks] to [...]."""
    runs = _seeds_by_tasks(scores, "scores")
    n_seeds, n_tasks = runs.shape
    drawn = rng.integers(n_seeds, size=(resamples, n_seeds, n_tasks))
    resampled = runs[drawn, np.arange(n_tasks)].reshape(resamples, -1)
    return _percentile(float(statistic(runs.reshape(-1))), statistic(resampled), level)


def _percentile(estimate: float, resampled: Floats, level: float) -> Interval:
    low, high = np.quantile(resampled, [(1 - level) / 2, (1 + level) / 2])
    return Interval(estimate, float(low), float(high), level)


def _seeds_by_tasks(scores: ArrayLike, name: str) -> Floats:
    """Scores as [n_seeds, n_tasks]; one dimension is one task."""
    array = np.asarray(scores, dtype=np.float64)
    columns = array[:, None] if array.ndim == 1 else array
    if columns.ndim != 2 or columns.size == 0 or not np.isfinite(columns).all():
        raise TelosError(
            f"{name} cannot be averaged",
            expected="finite numbers of shape [n_seeds] or [n_seeds, n_tasks], at least one",
            got=f"shape {list(array.shape)}, {int((~np.isfinite(array)).sum())} of them not finite",
            fix="leave out no seed, and measure each with a finite number",
        )
    return columns


def _finite(values: ArrayLike, name: str, least: int) -> Floats:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or len(array) < least or not np.isfinite(array).all():
        raise TelosError(
            f"{name} give no interval",
            expected=f"one dimension with at least {least} finite number{'s' if least > 1 else ''}",
            got=f"shape {list(array.shape)}, {int((~np.isfinite(array)).sum())} of them not finite",
            fix=f"run at least {least} seed{'s' if least > 1 else ''} and measure each with a finite number",
        )
    return array


def _binary(values: ArrayLike, name: str) -> Floats:
    array = _finite(values, name, least=1)
    others = array[(array != 0) & (array != 1)]
    if len(others):
        raise TelosError(
            f"{name} are not binary", expected="only 0 and 1", got=f"{others[0]:g}", fix="use paired_t for other values"
        )
    return array
