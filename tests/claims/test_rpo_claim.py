"""What RPO's claim measures: exact numbers of the reference, DPO as eta = 0, and the row of the best beta."""

import math

import pytest

from telos.claims.rpo import CLAIMS, best_dpo, on_strings, unchanged
from telos.judge.claim import Trial
from telos.judge.verdict import judge_parts

CLAIM = CLAIMS["laptop"]


def test_the_reference_is_measured_exactly():
    measured = unchanged(Trial(1000))
    assert measured["gold"] == pytest.approx(4.185, abs=1e-3)
    weights = [math.comb(10, ones) * math.exp(-1.2 * abs(ones - 4)) for ones in range(11)]
    assert measured["kl"] == measured["chosen"] == 0.0
    assert measured["beyond"] == pytest.approx(sum(weights[7:]) / sum(weights), rel=1e-9)


def test_the_curve_starts_at_the_reference_and_ends_at_the_last_state():
    measured = on_strings(Trial(1000, budget="quick"), beta=0.1, eta=0.2)
    first = measured.pop("points")[0]
    assert first == {"step": 0.0, **{k: pytest.approx(v, abs=1e-9) for k, v in unchanged(Trial(1000)).items()}}
    assert measured["kl"] > 0.01


def test_the_best_beta_is_that_of_the_highest_gold():
    measures = {"dpo_0.1": {"gold": 1.0}, "dpo_2.0": {"gold": 3.0}, "rpo_0.2": {"gold": 9.0}}
    assert best_dpo(measures) == {"dpo_best": {"gold": 3.0}}


def test_parts_decide_as_the_claim_says():
    def table(rpo):
        return {
            "rpo_0.2": {"gold": rpo, "chosen": [-1.0, -1.1, -0.9, -1.0, -1.2]},
            "dpo_0.1": {"gold": [1.0, 2.0, 0.0, 1.5, 0.5], "chosen": [-40.0, -30.0, -50.0, -45.0, -35.0]},
            "reference": {"gold": [4.185] * 5},
        }

    assert judge_parts(CLAIM.parts, table([4.7, 4.8, 4.6, 4.7, 4.9])).status == "confirmed"
    assert judge_parts(CLAIM.parts, table([4.0, 4.1, 3.9, 4.0, 4.0])).status == "refuted"
