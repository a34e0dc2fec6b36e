"""What the claim of TQ and SACo runs: five data sets a seed, the same for every arm, and how scores go with them."""

import numpy as np
import pytest
import torch

from telos.claims.dataset_perspective import CLAIMS, correlation, moves, studied
from telos.core.rng import Rng
from telos.data.schemes import SCHEMES
from telos.judge.claim import Trial
from telos.nets.policies import CategoricalPolicy
from telos.worlds.four_rooms import COUNT

CLAIM = CLAIMS["laptop"]


def test_every_arm_measures_the_same_data():
    found = {name: studied(Trial(1000, "quick"), **arm.options) for name, arm in CLAIM.arms.items()}
    data = {name: [(point["tq"], point["saco"]) for point in run["points"]] for name, run in found.items()}
    assert all(data[name] == data["bc"] for name in data) and len(data["bc"]) == len(SCHEMES)
    points = dict(zip(SCHEMES, found["bc"]["points"]))
    assert points["replay"]["saco"] == 1 and points["random"]["tq"] == pytest.approx(0, abs=1e-9)
    assert points["expert"]["tq"] == pytest.approx(1, abs=1e-6)
    for run in found.values():
        assert all(point["omega"] >= point["final"] for point in run["points"])
        assert run["r_tq"] == correlation([p["omega"] for p in run["points"]], [p["tq"] for p in run["points"]])
        assert run["least"] == min(run[f"omega_{scheme}"] for scheme in SCHEMES)


def test_correlations():
    assert correlation([1, 2, 3], [2, 4, 6]) == pytest.approx(1)
    assert correlation([1, 2, 4], [3, 1, 2]) == pytest.approx(np.corrcoef([1, 2, 4], [3, 1, 2])[0, 1])
    assert correlation([1, 1, 1], [1, 2, 3]) == 0


def test_moves_are_probabilities_or_the_best_one():
    policy = CategoricalPolicy(COUNT, 4, (8,), rng=Rng(0).torch())
    drawn, best = moves(policy, True), moves(policy, False)
    assert torch.allclose(drawn.sum(-1), torch.ones(COUNT)) and torch.equal(best.argmax(-1), drawn.argmax(-1))
    assert int(best.sum()) == COUNT


def test_all_arms_share_network_and_budget():
    options = [arm.options["method"].options() for arm in CLAIM.arms.values()]
    assert {(tuple(o["hidden"]), o["learning_rate"], o["batch_size"]) for o in options} == {((128, 128), 1e-3, 128)}
    assert {(o["discount"], o["target_every"]) for o in options[1:]} == {(0.95, 50)}
