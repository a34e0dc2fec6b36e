"""TSCAC's claim: what it derives over several arms, and how critics are scored."""

import pytest
import torch

from telos.claims.tscac import compared, correlation, told
from telos.core.rng import Rng
from telos.worlds import sessions


def measures(watch: float, like: float, share: float) -> dict[str, float]:
    return {"watch": watch, "like": like, "share": share, "interactions": like + share}


TABLE = {
    "bc": measures(1.0, 0.05, 0.02),
    **{f"main_{heat}": measures(2.0, 0.04, 0.02) for heat in ("hot", "cold")},
    **{f"joint1_{heat}": measures(1.5, 0.06, 0.03) for heat in ("hot", "cold")},
    **{f"joint5_{heat}": measures(1.0, 0.09, 0.06) for heat in ("hot", "cold")},
    "tscac_hot": measures(1.75, 0.06, 0.03),
    "tscac_cold": measures(2.5, 0.06, 0.03),
}


def test_shares_of_gain_and_the_frontier_of_joint_critics():
    found = compared(TABLE)
    hot, cold = found["tscac_hot"], found["tscac_cold"]
    assert [hot[f"{name}_over_main"] for name in sessions.RESPONSES] == pytest.approx([-0.125, 0.5, 0.5])
    assert [hot[f"{name}_over_bc"] for name in sessions.RESPONSES] == pytest.approx([0.75, 0.2, 0.5])
    # Half way between 0.09 at 1.5 and 0.06 at 2.0; beyond the line's end, its end.
    assert hot["interactions_over_joint"] == pytest.approx(0.09 / 0.075 - 1)
    assert cold["interactions_over_joint"] == pytest.approx(0.09 / 0.06 - 1)


def test_critics_that_know_the_returns_are_told_apart_from_one_that_does_not():
    played = sessions.play(sessions.logging_policy, 200, Rng(1))
    returns = played.returns(0.95)[played.alive]

    class Known:
        def values(self, seen: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"main": 3 * returns[:, 0] + 1, "like": returns[:, 1], "share": returns[:, 2]}

    class Joint:
        def values(self, seen: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"main": returns[:, 0]}

    assert list(told(Known(), played).values()) == pytest.approx([1, 1])
    joint = told(Joint(), played)
    assert joint["told_watch"] == pytest.approx(1) and joint["told_interactions"] < 0.99


def test_a_value_that_does_not_vary_tells_nothing():
    assert correlation(torch.ones(5), torch.arange(5.0)) == 0
    assert correlation(torch.arange(5.0), -torch.arange(5.0)) == pytest.approx(-1)
