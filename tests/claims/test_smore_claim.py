import pytest
import torch

from telos.claims.smore import LIMIT, SHARES, above_on_each_seed, over_shares, scored, shares
from telos.judge.claim import Measures, Trial


def measured(*returns: float) -> Measures:
    return over_shares({share: {"return": value} for share, value in zip(SHARES, returns, strict=True)})


def test_above_needs_every_share():
    low, high = measured(0.1, 0.2, 0.3, 0.4), measured(0.2, 0.3, 0.4, 0.5)
    assert above_on_each_seed({"smore": high, "gcbc": low}) == {"smore": {"above": 1.0}}
    assert above_on_each_seed({"smore": measured(0.2, 0.2, 0.4, 0.5), "gcbc": low}) == {"smore": {"above": 0.0}}


def test_the_largest_share_is_what_the_parts_name():
    found = measured(0.1, 0.2, 0.3, 0.4)
    assert found["return"] == found["return_0.1"] == 0.4 and found["return_0"] == 0.1 and len(found["points"]) == 4


def test_returns_are_discounted_and_zero_without_success():
    found = scored(torch.tensor([1, 3, LIMIT, LIMIT + 1]))
    assert found["success"] == 0.75
    assert found["return"] == pytest.approx((1 + 0.95**2 + 0.95 ** (LIMIT - 1)) / 4)


def test_shares_are_distributions_and_recorded_goals_reach_what_hindsight_does_not():
    made = shares(Trial(1000, "quick"), 0.1)
    assert all(float(table.sum()) == pytest.approx(1) for table in made.values())
    seen = {name: (table.sum(1) > 0).double().mean() for name, table in made.items()}
    assert seen["rho"] > seen["hindsight"] > 0.5
    # Steps of q are steps of rho.
    assert (made["rho"][made["q"] > 0] > 0).all()
