import pytest
import torch
from value_toys import TABLE, bandit, chain, learner, optimal, parameters, record, states, train

from telos.core.errors import TelosError
from telos.core.rng import Rng
from telos.data.records import Box, Transitions
from telos.methods.offline_rl.qr_dqn import QRDQN

SMALL = {**TABLE, "quantiles": 8}


@pytest.mark.parametrize("double", [True, False])
def test_all_quantiles_of_a_certain_return_are_its_value(double: bool):
    data = chain()
    mine = train(learner(QRDQN(double=double, **SMALL), data), data, 800)
    heads = mine.policy.head_values(mine.policy.net(states()))
    assert torch.allclose(heads, optimal()[:, None].expand(-1, 8, -1), atol=0.05)
    assert mine.policy.act(states()).action.tolist() == [1] * len(states())


def test_quantiles_of_a_reward_drawn_from_a_list_are_that_lists():
    # One step, action 0, rewards 0 to 9 equally often. At the levels 1/10, 3/10, ..., a quantile is any number between
    # two of the rewards: 0 and 1, 2 and 3, ...
    zeros = torch.zeros(10, dtype=torch.int64)
    data = record(zeros, zeros, torch.arange(10), zeros, zeros == 0, (1, 2))
    mine = train(learner(QRDQN(**{**SMALL, "quantiles": 5}, huber=1e-3), data), data, 1500)
    found = mine.policy.head_values(mine.policy.net(states(1)))[0, :, 0]
    assert ((found > 2 * torch.arange(5) - 0.3) & (found < 2 * torch.arange(5) + 1.3)).all(), found
    assert abs(mine.policy(states(1))[0, 0].item() - 4.5) < 0.5


def test_the_mean_of_the_quantiles_decides():
    # Action 0 earns 1 for certain; action 1 earns 0 four times out of five and 6 once: 1.2 on average.
    data = bandit((5, 5), (1.0, 0.0))
    rewards = torch.where(torch.arange(10) == 9, 6.0, data.rewards)
    data = Transitions.validated(**{**data.columns(), "rewards": rewards}, action_space=data.action_space)
    method = QRDQN(**{**SMALL, "quantiles": 20, "learning_rate": 0.02})
    mine = train(learner(method, data), data, 1500)
    values = mine.policy(states(1))[0]
    assert abs(values[0].item() - 1) < 0.05 and abs(values[1].item() - 1.2) < 0.25
    # The median of action 1 is 0.
    assert mine.policy.head_values(mine.policy.net(states(1)))[0, 9, 1].item() < 0.2


def test_the_trained_network_chooses_and_its_copy_values():
    data = chain()
    mine = learner(QRDQN(discount=0.5, hidden=(), quantiles=2), data)
    # The copy's quantiles (1, 3) of action 0 and (10, 20) of action 1; the network's means -1 and -2.
    mine.target.layers[0].weight.data.zero_()
    mine.target.layers[0].bias.data = torch.tensor([1.0, 10.0, 3.0, 20.0])
    mine.policy.net.layers[0].weight.data.zero_()
    mine.policy.net.layers[0].bias.data = torch.tensor([-3.0, -1.0, 1.0, -3.0])
    got = mine.targets(data)
    kept = ~data.terminated
    assert torch.allclose(got[kept], torch.tensor([0.5, 1.5]).expand(int(kept.sum()), 2))
    assert torch.equal(got[data.terminated], torch.ones(1, 2))  # the reward alone
    plain = learner(QRDQN(discount=0.5, hidden=(), quantiles=2, double=False), data)
    plain.target.load_state_dict(mine.target.state_dict())
    assert torch.allclose(plain.targets(data)[kept], torch.tensor([5.0, 10.0]).expand(int(kept.sum()), 2))


def test_rewards_are_scaled_and_shifted_and_targets_copied():
    data = chain()
    mine = learner(QRDQN(reward_scale=2.0, reward_shift=-0.1, hidden=(8,), quantiles=3, target_every=2), data)
    assert torch.allclose(mine.targets(data)[data.terminated], torch.full((1, 3), 1.9))
    first = parameters(mine.target)
    mine.update(data, Rng(0))
    assert torch.equal(parameters(mine.target), first)
    mine.update(data, Rng(1))
    assert torch.equal(parameters(mine.target), parameters(mine.policy.net))


def test_what_it_cannot_learn_from_is_refused():
    data = Transitions.validated(
        **{**chain().columns(), "actions": torch.zeros(10, 1)}, action_space=Box((-1.0,), (1.0,))
    )
    with pytest.raises(TelosError, match="QR-DQN needs discrete actions"):
        QRDQN().fit(data, steps=1)
    with pytest.raises(TelosError, match="quantiles is out of range"):
        QRDQN(quantiles=0).fit(chain(), steps=1)
