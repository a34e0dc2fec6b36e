import pytest
import torch
from value_toys import learner, parameters, record, states, train

from telos.core.errors import TelosError
from telos.core.method import Spec
from telos.core.rng import Rng
from telos.data.records import Box, Transitions
from telos.methods.offline_rl.bve import BVE, MCE, Behaved

GAMMA = 0.5
TABLE = {"hidden": (), "learning_rate": 0.02, "batch_size": 64, "discount": GAMMA}


def walk(cut: bool = False) -> Transitions:
    """Cells 0, 1, 2. An episode goes 0 -1-> 1 -0-> 2 -1-> end with rewards 1, 2, 4; another 0 -0-> 0 -1-> end earns 0
    and 8. With `cut` a time limit ends the second one instead of the task."""
    cells, moves = torch.tensor([0, 1, 2, 0, 0]), torch.tensor([1, 0, 1, 0, 1])
    nexts, rewards = torch.tensor([1, 2, 2, 0, 2]), torch.tensor([1, 2, 4, 0, 8])
    ended = torch.tensor([False, False, True, False, not cut])
    data = record(cells, moves, rewards, nexts, ended, (3, 2))
    ends = torch.tensor([False, False, True, False, True])
    return Transitions.validated(**{**data.columns(), "truncated": ends & ~ended}, action_space=data.action_space)


def prepared(method: BVE | MCE, data: Transitions) -> Behaved:
    """What batches are drawn from."""
    return method.prepare(Spec(data, {}, 10, torch.device("cpu"), Rng(0))).data


def test_the_target_of_bve_is_the_value_of_the_next_recorded_action():
    mine = learner(BVE(**TABLE), walk())
    data = prepared(mine.method, walk())
    mine.policy.net.layers[0].weight.data = torch.tensor([[1.0, 3.0, 5.0], [2.0, 4.0, 6.0]])  # Q(s, 0) and Q(s, 1)
    mine.policy.net.layers[0].bias.data.zero_()
    # 1 + Q(1, 0) / 2, 2 + Q(2, 1) / 2, 4, 0 + Q(0, 1) / 2, 8: never the other episode's action, never the maximum.
    assert mine.method.targets(mine.policy, data).tolist() == [2.5, 5.0, 4.0, 1.0, 8.0]


def test_bve_leaves_out_the_step_that_a_time_limit_cut_and_mce_ends_the_return_there():
    kept = prepared(BVE(**TABLE), walk(cut=True))
    assert kept.steps.rewards.tolist() == [1, 2, 4, 0] and kept.next_actions.tolist() == [0, 1, 0, 1]
    assert len(prepared(BVE(**TABLE), walk())) == 5
    returns = prepared(MCE(**TABLE), walk(cut=True)).returns
    assert returns.tolist() == [1 + 1 + 1, 2 + 2, 4, 4, 8]
    alone = walk(cut=True)[-1:]
    with pytest.raises(TelosError, match="no step is followed"):
        BVE().fit(alone, steps=1)


def test_a_tables_fixed_point_is_the_behaviours_value():
    data = walk()
    # From the end: Q(2, 1) = 4, Q(1, 0) = 2 + 2, and of (0, 1) the mean of 1 + 4 / 2 and 8; Q(0, 0) = Q(0, 1) / 2.
    values = {(2, 1): 4.0, (1, 0): 4.0, (0, 1): 5.5, (0, 0): 2.75}
    mine = train(learner(BVE(huber=100.0, **TABLE), data), prepared(BVE(**TABLE), data), 1500)
    found = mine.policy(states(3))
    for (cell, move), value in values.items():
        assert abs(found[cell, move].item() - value) < 0.25, (cell, move)


def test_mce_is_least_squares_on_the_returns_to_go():
    data = walk()
    mine = train(learner(MCE(huber=1000.0, **TABLE), data), prepared(MCE(**TABLE), data), 1500)
    # A table's least squares are the means: of (0, 1) that of 3 and 8; one sample each of the others.
    pairs = torch.nn.functional.one_hot(2 * data.observations.argmax(-1) + data.actions, 6).float()
    returns = torch.tensor([3.0, 4.0, 4.0, 4.0, 8.0])
    solution = torch.linalg.lstsq(pairs.double(), returns[:, None].double(), driver="gelsd").solution.view(3, 2)
    found = mine.policy(states(3))
    for cell, move in ((0, 0), (0, 1), (1, 0), (2, 1)):
        assert abs(found[cell, move].item() - solution[cell, move].item()) < 0.25, (cell, move)
    assert abs(solution[0, 1].item() - 5.5) < 1e-9 and solution[0, 0].item() == pytest.approx(4)


def test_the_policy_improves_on_the_behaviour_by_one_step():
    data = walk()
    policy = MCE(**{**TABLE, "hidden": (16,)}).fit(data, steps=300, seed=1000, device="cpu")
    # Pushing on from cell 0 earned 5.5 on average, waiting 4.
    assert policy.act(states(3)[0]).action.item() == 1


@pytest.mark.parametrize("cls", [BVE, MCE])
def test_rewards_are_scaled_and_shifted_and_parts_agree(cls: type):
    data = walk()
    method = cls(hidden=(8,), reward_scale=2.0, reward_shift=-1.0, discount=GAMMA)
    steps = prepared(method, data)
    assert steps.steps.rewards.tolist() == [1, 3, 7, -1, 15]
    assert steps.returns.tolist() == [1 + 1.5 + 1.75, 3 + 3.5, 7, -1 + 7.5, 15]
    whole, parts = learner(method, data), learner(method, data)
    for step in range(3):
        whole.update(steps, Rng(step), 1)
        parts.update(steps, Rng(step), 3)
    assert torch.allclose(parameters(whole.policy), parameters(parts.policy), atol=1e-6)


@pytest.mark.parametrize(("cls", "name"), [(BVE, "BVE"), (MCE, "MCE")])
def test_continuous_actions_are_refused(cls: type, name: str):
    data = walk()
    wide = Transitions.validated(**{**data.columns(), "actions": torch.zeros(5, 1)}, action_space=Box((-1.0,), (1.0,)))
    with pytest.raises(TelosError, match=f"{name} needs discrete actions"):
        cls().fit(wide, steps=1)
