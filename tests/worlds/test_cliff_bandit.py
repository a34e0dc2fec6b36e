import torch
from torch import Tensor

from telos.core.products import Act
from telos.core.rng import Rng
from telos.data.records import Box
from telos.worlds import cliff_bandit


class Constant:
    def __init__(self, action: float):
        self.action = action

    def act(self, obs: Tensor) -> Act:
        return Act(torch.full((len(obs), 1), self.action))


def test_the_reward_rises_to_the_edge_and_falls_behind_it():
    earned = cliff_bandit.reward(torch.tensor([-1.0, 0.5, 0.75, 0.7500001, 1.0]))
    assert earned.tolist() == [1.0, 2.5, 2.75, -3.0, -3.0]


def test_records_are_poor_nine_times_of_ten_and_never_behind_the_edge():
    data = cliff_bandit.dataset(20000, Rng(1000))
    actions = data.actions[:, 0]
    good = actions > 0
    assert abs(good.float().mean().item() - 0.1) < 0.01 and actions.max().item() <= 0.7 < cliff_bandit.EDGE
    assert abs(actions[good].mean().item() - 0.5) < 0.01 and abs(actions[~good].mean().item() + 0.5) < 0.01
    assert abs(actions[~good].std().item() - 0.15) < 0.01
    noise = data.rewards - cliff_bandit.reward(actions)
    assert abs(noise.mean().item()) < 0.005 and abs(noise.std().item() - 0.1) < 0.005
    assert data.terminated.all() and not data.truncated.any() and data.action_space == Box((-1.0,), (1.0,))
    assert torch.equal(actions, cliff_bandit.dataset(20000, Rng(1000)).actions[:, 0])


def test_what_a_policy_is_measured_by():
    assert cliff_bandit.measure(Constant(0.5)) == {"reward": 2.5, "fallen": 0.0, "action": 0.5}  # type: ignore[arg-type]
    assert cliff_bandit.measure(Constant(1.0)) == {"reward": -3.0, "fallen": 1.0, "action": 1.0}  # type: ignore[arg-type]
