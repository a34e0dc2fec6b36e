"""What the claim of the RM ensembles runs: the same members for every arm, and curves that measure what they say."""

import pytest
import torch

from telos.claims.rm_ensembles import CLAIMS, SIZES, members, select
from telos.judge.claim import Trial

CLAIM = CLAIMS["laptop"]


def quick(objective, **options):
    return select(Trial(1000, "quick"), objective, **{"flipped": 0.25, **options})


def test_members_are_fitted_once_and_differ():
    found = members(1000, 0.25, 2)
    assert members(1000, 0.25, 2) is found and len(found) == 5
    weights = [network.layers[0].weight for network in found]
    assert all(not torch.equal(a, b) for i, a in enumerate(weights) for b in weights[:i])


def test_selection_by_gold_is_above_all_others_and_curves_begin_alike():
    by_gold = quick("gold")
    assert by_gold["drop"] == 0 and by_gold["gold"] == by_gold["proxy"]
    assert [point["n"] for point in by_gold["points"]] == list(SIZES)
    for objective in ("single", "mean", "wco", "uwo"):
        found = quick(objective, penalty=0.5)
        assert found["points"][0]["gold"] == pytest.approx(by_gold["points"][0]["gold"], abs=1e-6)
        assert all(a["gold"] < b["gold"] for a, b in zip(found["points"][1:], by_gold["points"][1:]))
        assert found["peak"] - found["drop"] == pytest.approx(found["gold"])


def test_arms_of_a_pair_differ_in_the_objective_alone():
    for name, arm in CLAIM.arms.items():
        assert arm.options["flipped"] == (0.0 if name.endswith("_clean") else 0.25)
        assert arm.options.get("penalty", 0.0) == (0.5 if name.startswith("uwo") else 0.0)
