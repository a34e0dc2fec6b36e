"""What CoPG's claim measures: the regret of the initial policy, and the row of the best beta."""

import math

import pytest
import torch

from telos.claims.copg import CLAIMS, LOSSES, REFERENCE, REWARDS, best, on_arms, regret, scored
from telos.judge.claim import Trial
from telos.methods.preferences.copg import copg_loss, differences
from telos.worlds import tiny_sent


def test_the_regret_of_the_initial_policy_is_the_papers():
    assert regret(torch.zeros(3)) == pytest.approx(0.2919, abs=1e-4)
    assert regret(REWARDS / 0.5) == pytest.approx(0.0, abs=1e-7)


def test_arms_see_the_same_pairs_and_differ_in_their_loss():
    points = [on_arms(Trial(1000, budget="quick"), loss)["points"] for loss in LOSSES]
    assert all(p[0] == points[0][0] for p in points)
    assert len({p[-1]["regret"] for p in points}) == len(LOSSES)


def test_ipo_sees_labels_and_copg_rewards():
    policy = torch.tensor([0.2, -0.4, 0.1]).log_softmax(-1)
    ratios = (policy - REFERENCE)[torch.tensor([[0, 2]])]
    rewards, labels = torch.tensor([[2.5, 1.0]]), torch.tensor([[0.0, 1.0]])
    h = float(ratios[0, 0] - ratios[0, 1])
    assert float(LOSSES["copg"](ratios, rewards, labels, policy)) == pytest.approx((1.5 - 0.5 * h) ** 2, rel=1e-5)
    assert float(LOSSES["ipo"](ratios, rewards, labels, policy)) == pytest.approx((-0.5 - 0.5 * h) ** 2, rel=1e-5)
    assert math.isclose(float(copg_loss(ratios, differences(rewards), 0.5)), (1.5 - 0.5 * h) ** 2, rel_tol=1e-5)


def test_the_best_beta_is_taken_for_each_method():
    measures = {"copg_0.1": {"gold": 1.0}, "copg_1.0": {"gold": 4.0}, "ipo_0.3": {"gold": 2.0}}
    assert best(measures) == {"copg_best": {"gold": 4.0}, "ipo_best": {"gold": 2.0}}
    settings = [arm.group for arm in CLAIMS["standard"].arms.values()]
    assert {name: settings.count(name) for name in settings} == {"copg": 3, "dpo": 3, "ipo": 3}


def test_pairs_carry_gold_the_higher_first():
    data = scored(1000, 16)
    assert len(data) > 20 and all(first > second for first, second in data.scores)
    golds = tiny_sent.gold([str(p) for p in data.prompts], [str(a) for a, _ in data.completions])
    assert golds.tolist() == [first for first, _ in data.scores]
