"""What RA-DPO's claim measures: how a curve of requested against achieved scores is judged."""

import numpy as np
import pytest

from telos.claims.ra_dpo import CLAIMS, TOP, curve, on_strings, scored
from telos.core.registry import use
from telos.judge.claim import Trial
from telos.judge.verdict import judge_parts
from telos.worlds import tiny_sent

CLAIM = CLAIMS["laptop"]


def test_a_curve_by_hand():
    exact = curve({g: float(g) for g in (1, 3, 5, 7, 9)})
    assert exact["slope"] == pytest.approx(1.0) and exact["distance"] == 0 and exact["increasing"] == 1
    flat = curve(dict.fromkeys((1, 3, 5, 7, 9), 5.0))
    assert flat["slope"] == pytest.approx(0.0, abs=1e-12) and flat["distance"] == 2.4 and flat["increasing"] == 0
    dented = curve({1: 1.0, 3: 3.0, 5: 5.0, 7: 4.9, 9: 9.0})
    assert dented["increasing"] == 0 and 0.8 < dented["slope"] < 1


def test_before_training_every_request_gets_the_mean_of_uniform_strings():
    trial = Trial(1000)
    trial.steps = lambda n: 0  # type: ignore[method-assign]
    measured = on_strings(trial, use("ra_dpo", beta=0.1))
    # Scores are ones, at least 1: the empty string counts 1.
    assert [p["achieved"] for p in measured["points"]] == pytest.approx([5 + 1 / 1024] * TOP, abs=1e-4)


def test_grades_are_gold_shifted_and_cut():
    data, pairs = scored(1000, 16)
    golds = tiny_sent.gold([str(p) for p in data.prompts], [str(a) for a, _ in data.completions])
    assert np.array_equal(np.clip(golds + 5, 0, 10), [first for first, _ in data.scores])
    assert [a for a, _ in data.completions] == list(pairs.chosen)


def test_parts_decide_as_the_claim_says():
    def table(slope, gold):
        return {
            "ra": {"slope": slope, "gold": gold, "increasing": [1.0] * 5},
            "no_swap": {"slope": [0.5, 0.49, 0.51, 0.5, 0.5]},
            "dpo": {"gold": [7.5, 7.6, 7.4, 7.5, 7.5]},
        }

    assert (
        judge_parts(CLAIM.parts, table([0.99, 1.0, 0.98, 1.0, 0.99], [10.0, 9.9, 10.0, 9.8, 9.9])).status == "confirmed"
    )
    assert judge_parts(CLAIM.parts, table([0.5, 0.51, 0.49, 0.5, 0.52], [7.5, 7.6, 7.5, 7.4, 7.6])).status == "refuted"
