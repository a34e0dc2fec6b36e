"""What DeAL's claim derives and counts."""

import pytest

from telos.claims import deal
from telos.core.registry import use
from telos.judge.claim import Trial
from telos.worlds import keywords


def sweep(polite, short):
    return {f"trade_{w:g}": {"polite": p, "short": s} for w, p, s in zip(deal.SWEEP, polite, short, strict=True)}


def test_the_least_rise_of_the_sweep():
    steady = deal.trade_off(sweep([0, 0.2, 0.3, 0.6, 1.0], [1.0, 0.9, 0.4, 0.35, 0.0]))
    assert steady["trade_off"]["least_rise"] == pytest.approx(0.05)
    falls = deal.trade_off(sweep([0, 0.2, 0.1, 0.6, 1.0], [1.0, 0.9, 0.4, 0.35, 0.0]))
    assert falls["trade_off"]["least_rise"] == pytest.approx(-0.1)
    grows = deal.trade_off(sweep([0, 0.2, 0.3, 0.6, 1.0], [0.8, 0.9, 0.4, 0.35, 0.0]))
    assert grows["trade_off"]["least_rise"] == pytest.approx(-0.1)


def test_tokens_are_counted_alike_for_samples_and_searches():
    trial = Trial(1000, "quick")
    one = deal.cover(trial, use("best_of_n", n=1))
    five = deal.cover(trial, use("best_of_n", n=5))
    greedy = deal.cover(trial, use("beam", width=1))
    assert five["tokens"] == pytest.approx(5 * one["tokens"], rel=0.05)
    # Sentences have 9 to 18 tokens, the end counted.
    assert 9 <= greedy["tokens"] <= keywords.TOKENS and 9 <= one["tokens"] <= keywords.TOKENS
    assert five["soft"] > one["soft"] and greedy["nll"] < one["nll"]


def test_best_of_n_gets_as_many_tokens_as_the_search():
    trial = Trial(1000, "quick")
    arms = deal.CLAIMS["laptop"].arms
    ours, best = (arms[name].run(trial, **arms[name].options) for name in ("deal_l6_10", "best_of_n"))
    assert 0.98 * ours["tokens"] < best["tokens"] < 1.1 * ours["tokens"] and best["n"] > 15
