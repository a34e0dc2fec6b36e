"""What Nash-MD's claim measures: the row of the other weights, RLHF's optimum, and that training is on the game."""

import pytest
import torch

from telos.claims.nash_md import BETAS, CLAIMS, TAU, measured, nash_arms, others, play, recursion, with_reward
from telos.core.registry import use
from telos.core.rng import Rng
from telos.judge.claim import Trial
from telos.ops import games
from telos.worlds.games import style_game


def test_the_other_weights_are_the_worst_and_the_best_below_1():
    found = {
        f"beta_{beta:g}": {"exploitability": value, "against_reference": 1 - value}
        for beta, value in zip(BETAS, (0.1, 0.3, 0.2, 0.15, 0.9), strict=True)
    }
    assert others(found)["others"] == pytest.approx({"exploitability": 0.3, "against_reference": 0.9})
    assert set(found) <= set(nash_arms())


def test_measures_of_the_reference_and_of_the_equilibrium():
    game = style_game(Rng(1000).at("game"))
    reference, aim = (measured(game, policy, TAU) for policy in (game.log_reference, game.equilibrium(TAU)))
    assert reference["against_reference"] == pytest.approx(0.5) and aim["against_reference"] > 0.5
    assert aim["tv"] == pytest.approx(0.0) and aim["excess"] == pytest.approx(0.0)


def test_the_reward_is_that_of_the_whole_population():
    """At the optimum, the fitted chances and the game's agree on how often the reference's pairs each arm wins."""
    game = style_game(Rng(1000).at("game"))
    found = with_reward(Trial(1000))
    assert found["excess"] == pytest.approx(0.189, abs=2e-3) and found["tv"] > 0.4
    assert found["against_reference"] > measured(game, game.equilibrium(TAU), TAU)["against_reference"]


def test_a_short_run_comes_closer_to_the_equilibrium_and_arms_share_their_game():
    class Short(Trial):
        def steps(self, n: int) -> int:
            return 300

    trial = Short(1000)
    game = style_game(trial.rng.at("game"))
    start = float(games.total_variation(game.log_reference, game.equilibrium(TAU)))
    near = play(trial, use("nash_md", beta=0.125, tau=TAU))
    far = play(trial, use("nash_md", beta=1.0, tau=TAU))
    assert near["tv"] < 0.1 < far["tv"] < start
    assert near["exploitability"] - near["excess"] == pytest.approx(far["exploitability"] - far["excess"])


def test_the_recursions_keep_the_bound():
    found = recursion(Trial(1000))
    assert found["bound"] == found["aside"] == 1.0
    assert found["kl_beside"] == pytest.approx(5.35e-4, rel=0.01) and 0 < found["kl_exact"] < 1e-6
    assert all(torch.tensor(list(p.values())).isfinite().all() for p in found["points"])
    assert len(CLAIMS["laptop"].parts) == 7
