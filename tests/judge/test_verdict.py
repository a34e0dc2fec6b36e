"""Each path to each verdict, its symmetries, and every refusal."""

import json

import numpy as np
import pytest
from scipy import stats

from telos.core.errors import TelosError
from telos.judge.stats import binary_mean, paired_binary, paired_t
from telos.judge.verdict import Better, Holds, Threshold, Within, judge_part, judge_parts


def table(seed=0, n=10, shift=1.0, spread=0.1):
    """Arms a and b with the return of a higher by about `shift`; values share a part by seed."""
    rng = np.random.default_rng(seed)
    shared = rng.normal(size=n)
    noise = rng.normal(0, spread, n)
    return {"a": {"return": shared + shift + noise}, "b": {"return": shared}}


BETTER = Better("a", "b", "return")


@pytest.mark.parametrize(
    ("shift", "margin", "status"),
    [
        (1.0, 0.0, "confirmed"),
        (1.0, 0.5, "confirmed"),
        (1.0, 1.5, "refuted"),
        (-1.0, 0.0, "refuted"),
        (-1.0, -2.0, "confirmed"),
        (0.0, 0.0, "not shown"),
        (1.0, 1.0, "not shown"),
    ],
)
def test_better(shift, margin, status):
    arms = table(shift=shift)
    result = judge_part(Better("a", "b", "return", margin), arms)
    assert result.status == status
    expected = stats.ttest_rel(arms["a"]["return"], arms["b"]["return"]).confidence_interval(0.95)
    assert (result.interval.low, result.interval.high) == pytest.approx((expected.low, expected.high))
    assert result.values == pytest.approx(arms["a"]["return"] - arms["b"]["return"])
    assert result.seeds == 10
    u = stats.mannwhitneyu(arms["a"]["return"], arms["b"]["return"]).statistic
    assert result.probability_of_improvement.estimate == pytest.approx(u / 100)


def test_better_at_exactly_the_margin_is_not_shown():
    arms = {"a": {"return": [0.5] * 5}, "b": {"return": [0.0] * 5}}
    assert judge_part(Better("a", "b", "return", 0.5), arms).status == "not shown"
    assert judge_part(Better("a", "b", "return", 0.49), arms).status == "confirmed"
    assert judge_part(Better("a", "b", "return", 0.51), arms).status == "refuted"


@pytest.mark.parametrize("seed", range(5))
def test_swapping_arms_is_flipping_the_sense(seed):
    arms = table(seed, shift=0.1, spread=0.2)
    swapped = judge_part(Better("b", "a", "return"), arms)
    flipped = judge_part(Better("a", "b", "return", lower_is_better=True), arms)
    forward = judge_part(BETTER, arms)
    assert (swapped.interval, swapped.values, swapped.status) == (flipped.interval, flipped.values, flipped.status)
    assert swapped.probability_of_improvement == flipped.probability_of_improvement
    assert (swapped.interval.low, swapped.interval.high) == (-forward.interval.high, -forward.interval.low)
    opposite = {"confirmed": "refuted", "not shown": "not shown", "refuted": "confirmed"}
    assert swapped.status == opposite[forward.status]
    assert swapped.probability_of_improvement.estimate == pytest.approx(1 - forward.probability_of_improvement.estimate)


def test_status_falls_as_the_margin_rises():
    rank = {"confirmed": 2, "not shown": 1, "refuted": 0}
    for seed in range(5):
        arms = table(seed, shift=0.5, spread=0.5)
        ranks = [rank[judge_part(Better("a", "b", "return", m), arms).status] for m in np.linspace(-2, 2, 41)]
        assert ranks == sorted(ranks, reverse=True)
        assert set(ranks) == {0, 1, 2}


def test_scale_and_shift_leave_the_verdict():
    for seed in range(5):
        arms = table(seed, shift=0.3, spread=0.3)
        moved = {arm: {"return": 8.0 * metrics["return"] - 3.0} for arm, metrics in arms.items()}
        one, other = (
            judge_part(Better("a", "b", "return", 0.25), arms),
            judge_part(Better("a", "b", "return", 2.0), moved),
        )
        assert one.status == other.status
        assert other.interval.low == pytest.approx(8 * one.interval.low)


def test_pairing_matters():
    arms = table(shift=0.3)
    assert judge_part(BETTER, arms).status == "confirmed"
    unpaired = {"a": arms["a"], "b": {"return": arms["b"]["return"][::-1]}}
    assert judge_part(BETTER, unpaired).status == "not shown"


@pytest.mark.parametrize("n", [5, 10])
def test_false_confirmations_under_the_null(n):
    rng = np.random.default_rng(n)
    arms = [{"a": {"return": a}, "b": {"return": b}} for a, b in rng.normal(size=(500, 2, n))]
    statuses = [judge_part(BETTER, pair).status for pair in arms]
    for status in ("confirmed", "refuted"):
        assert 0.01 < statuses.count(status) / 500 < 0.045


@pytest.mark.parametrize(
    ("shift", "tolerance", "status"),
    [
        (0.0, 0.5, "confirmed"),
        (1.0, 0.5, "refuted"),
        (-1.0, 0.5, "refuted"),
        (0.5, 0.5, "not shown"),
        (-0.5, 0.5, "not shown"),
        (0.0, 1e-4, "not shown"),
        (1.0, 2.0, "confirmed"),
    ],
)
def test_within(shift, tolerance, status):
    result = judge_part(Within("a", "b", "return", tolerance), table(shift=shift))
    assert result.status == status
    assert judge_part(Within("b", "a", "return", tolerance), table(shift=shift)).status == status
    assert result.probability_of_improvement is None


def test_identical_arms_are_within_zero():
    arms = {"a": {"return": [0.25, 0.5, 2.0]}, "b": {"return": [0.25, 0.5, 2.0]}}
    assert judge_part(Within("a", "b", "return", 0.0), arms).status == "confirmed"


@pytest.mark.parametrize(
    ("values", "status"),
    [([1] * 5, "confirmed"), ([True] * 5, "confirmed"), ([1, 1, 0, 1, 1], "refuted"), ([1, 1, 0.999, 1, 1], "refuted")],
)
def test_holds(values, status):
    result = judge_part(Holds("monotone", "a"), {"a": {"monotone": values}})
    assert result.status == status
    assert result.interval is None
    assert result.values == tuple(float(value) for value in values)


@pytest.mark.parametrize(
    ("bounds", "status"),
    [
        ({"at_least": 1.0}, "confirmed"),
        ({"at_least": 2.0}, "not shown"),
        ({"at_least": 3.0}, "refuted"),
        ({"at_most": 3.0}, "confirmed"),
        ({"at_most": 2.0}, "not shown"),
        ({"at_most": 1.0}, "refuted"),
        ({"at_least": 1.0, "at_most": 3.0}, "confirmed"),
        ({"at_least": 2.0, "at_most": 3.0}, "not shown"),
        ({"at_least": 3.0, "at_most": 4.0}, "refuted"),
        ({"at_least": 0.0, "at_most": 1.0}, "refuted"),
    ],
)
def test_threshold(bounds, status):
    values = np.array([1.9, 2.0, 2.1, 1.8, 2.2])
    result = judge_part(Threshold("a", "score", **bounds), {"a": {"score": values}})
    assert result.status == status
    assert result.interval == paired_t(values)


def test_binary_values_get_the_exact_interval():
    ones, zeros, mixed = np.ones(5), np.zeros(5), np.array([1, 1, 0, 1, 1.0])
    arms = {"ones": {"won": ones}, "zeros": {"won": zeros}, "mixed": {"won": mixed}, "rate": {"won": ones / 2}}
    result = judge_part(Better("ones", "zeros", "won"), arms)
    assert result.status == "not shown"
    assert result.interval == paired_binary(ones, zeros)
    assert judge_part(Within("mixed", "ones", "won", 0.1), arms).interval == paired_binary(mixed, ones)
    flipped = judge_part(Better("mixed", "ones", "won", lower_is_better=True), arms)
    assert flipped.interval == paired_binary(ones, mixed)
    # Five successes of five do not show a rate of 0.9; the t interval without variance would.
    result = judge_part(Threshold("ones", "won", at_least=0.9), arms)
    assert (result.status, result.interval) == ("not shown", binary_mean(ones))
    # One arm that is not binary is enough for the t interval.
    assert judge_part(Better("rate", "zeros", "won"), arms).interval == paired_t(ones / 2)
    assert judge_part(Better("mixed", "rate", "won"), arms).interval == paired_t(mixed - ones / 2)


def test_ten_of_ten_against_none_is_confirmed():
    arms = {"a": {"won": np.ones(10)}, "b": {"won": np.zeros(10)}}
    assert judge_parts([Better("a", "b", "won")], arms).status == "confirmed"
    assert judge_parts([Better("b", "a", "won")], arms).status == "refuted"


# All parts together

CONFIRMED, NOT_SHOWN, REFUTED = (Better("a", "b", "return", margin) for margin in (0.5, 1.0, 1.5))


@pytest.mark.parametrize(
    ("parts", "status"),
    [
        ([CONFIRMED], "confirmed"),
        ([CONFIRMED, CONFIRMED], "confirmed"),
        ([CONFIRMED, NOT_SHOWN], "not shown"),
        ([NOT_SHOWN], "not shown"),
        ([CONFIRMED, NOT_SHOWN, REFUTED], "refuted"),
        ([REFUTED, CONFIRMED], "refuted"),
    ],
)
def test_judge_parts(parts, status):
    verdict = judge_parts(parts, table())
    assert verdict.status == status
    assert [result.part for result in verdict.parts] == parts
    assert verdict.seeds == 10


def test_fewer_than_five_seeds_only_indicate():
    for part, status in ((CONFIRMED, "confirmed"), (REFUTED, "refuted")):
        verdict = judge_parts([part], table(n=4, spread=0.01))
        assert verdict.status == "indicative"
        assert verdict.parts[0].status == status
        assert judge_parts([part], table(n=5, spread=0.01)).status == status


def test_json_has_everything():
    arms = table()
    arms["a"]["holds"] = np.ones(10)
    parts = [CONFIRMED, Within("a", "b", "return", 2), Holds("holds", "a"), Threshold("a", "return", at_most=9.0)]
    stored = json.loads(json.dumps(judge_parts(parts, arms).to_json(), allow_nan=False))
    assert (stored["status"], stored["seeds"]) == ("confirmed", 10)
    better, within, holds, threshold = stored["parts"]
    assert better["part"] == {
        "kind": "Better", "a": "a", "b": "b", "metric": "return", "margin": 0.5, "lower_is_better": False
    }  # fmt: skip
    assert better["values"] == pytest.approx(arms["a"]["return"] - arms["b"]["return"])
    assert better["interval"].keys() == {"estimate", "low", "high", "level"}
    assert better["interval"]["low"] == paired_t(better["values"]).low
    assert 0 < better["probability_of_improvement"]["estimate"] <= 1
    assert within["probability_of_improvement"] is None
    assert (holds["interval"], holds["values"], holds["seeds"]) == (None, [1.0] * 10, 10)
    assert threshold["part"]["at_least"] is None


def test_the_same_table_gives_the_same_verdict():
    assert judge_parts([CONFIRMED], table()) == judge_parts([CONFIRMED], table())


# Refusals


@pytest.mark.parametrize(
    ("arms", "words"),
    [
        ({"a": {"return": [1, 2.0]}}, ["arm 'b'", "'return'", "'a'"]),
        ({}, ["arm 'a'", "there are none"]),
        ({"a": {"return": [1, 2.0]}, "b": {"loss": [1, 2.0]}}, ["arm 'b'", "'return'", "'loss'"]),
        ({"a": {"return": [1, 2.0, np.nan]}, "b": {"return": [1, 2, 3.0]}}, ["arm 'a'", "'return'", "seed 2"]),
        ({"a": {"return": [1, 2, 3.0]}, "b": {"return": [None, 2, 3.0]}}, ["arm 'b'", "'return'", "seed 0"]),
        ({"a": {"return": [1, np.inf, 3]}, "b": {"return": [1, 2, 3.0]}}, ["arm 'a'", "'return'", "seed 1"]),
        ({"a": {"return": [1, 2, 3.0]}, "b": {"return": [1, 2.5]}}, ["arm 'b'", "'return'", "seed 2", "arm 'a'"]),
        ({"a": {"return": [1, 2.5]}, "b": {"return": [1, 2, 3.0]}}, ["arm 'a'", "'return'", "seed 2", "arm 'b'"]),
        ({"a": {"return": [[1, 2.0]]}, "b": {"return": [1, 2.0]}}, ["arm 'a'", "'return'", "[1, 2]"]),
        ({"a": {"return": []}, "b": {"return": []}}, ["arm 'a'", "'return'", "at least one seed"]),
        ({"a": {"return": ["x"]}, "b": {"return": [1.0]}}, ["arm 'a'", "'return'", "not numbers"]),
    ],
)
def test_refused_tables(arms, words):
    for part in (BETTER, Within("a", "b", "return", 1.0)):
        with pytest.raises(TelosError) as error:
            judge_part(part, arms)
        assert all(word in str(error.value) for word in words), str(error.value)


def test_holds_and_threshold_refuse_missing_values():
    arms = {"a": {"check": [1, None, 1]}}
    for part in (Holds("check", "a"), Threshold("a", "check", at_least=0)):
        with pytest.raises(TelosError, match="arm 'a', metric 'check', seed 1"):
            judge_part(part, arms)


def test_parts_on_different_seeds_are_refused():
    arms = {"a": {"x": np.arange(5), "y": np.arange(6)}}
    with pytest.raises(TelosError, match="lacks seed 5"):
        judge_parts([Threshold("a", "y", at_least=0), Threshold("a", "x", at_least=0)], arms)


def test_no_parts_are_refused():
    with pytest.raises(TelosError, match="without parts"):
        judge_parts([], table())


def test_one_seed_gives_no_interval():
    with pytest.raises(TelosError, match="at least 2"):
        judge_part(BETTER, {"a": {"return": [0.5]}, "b": {"return": [0.2]}})


@pytest.mark.parametrize(
    "make",
    [
        lambda: Better("a", "b", "x", margin=np.nan),
        lambda: Within("a", "b", "x", tolerance=-0.1),
        lambda: Within("a", "b", "x", tolerance=np.inf),
        lambda: Threshold("a", "x"),
        lambda: Threshold("a", "x", at_least=np.nan),
        lambda: Threshold("a", "x", at_least=2.0, at_most=1.0),
    ],
)
def test_parts_that_state_nothing_are_refused(make):
    with pytest.raises(TelosError):
        make()
