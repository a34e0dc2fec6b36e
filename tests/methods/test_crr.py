import math

import pytest
import torch
from value_toys import DISCOUNT, LENGTH, TABLE, bandit, chain, learner, optimal, parameters, states, train

from telos.core.errors import TelosError
from telos.core.rng import Rng
from telos.data.records import Box, Transitions
from telos.methods.offline_rl.crr import CRR
from telos.worlds import cliff_bandit


def line(rows: int = 400) -> Transitions:
    """One state, one step: action 0.5 pays 1, action -0.5 pays 0, equally often."""
    good = torch.arange(rows) % 2 == 0
    return Transitions.validated(
        observations=torch.zeros(rows, 1),
        actions=torch.where(good, 0.5, -0.5)[:, None],
        rewards=good.float(),
        next_observations=torch.zeros(rows, 1),
        terminated=torch.ones(rows),
        truncated=torch.zeros(rows),
        action_space=Box((-1.0,), (1.0,)),
    )


@pytest.mark.parametrize("temperature", [0.5, 1.0])
def test_exponential_weights_tilt_the_behaviour_by_the_difference_of_values(temperature: float):
    # pi is proportional to the behaviour times exp(Q / T), whatever the baseline.
    data = bandit((30, 70), (1.0, 0.0))
    mine = train(learner(CRR(filter="exp", temperature=temperature, clip=1e6, **TABLE), data), data, 700)
    odds = mine.policy.probabilities([1.0])
    assert abs((odds[0] / odds[1]).log().item() - (math.log(3 / 7) + 1 / temperature)) < 0.15


def test_the_filter_keeps_what_beats_the_policys_mean():
    data = bandit((10, 60, 30), (1.0, 0.0, 0.2))
    mine = train(learner(CRR(**TABLE), data), data, 500)
    assert torch.allclose(
        mine.critic(states(1).expand(3, 1), torch.arange(3))[0], torch.tensor([1.0, 0, 0.2]), atol=0.05
    )
    assert mine.policy.probabilities([1.0])[0] > 0.9


# Three numbers a row draw the actions 0, 0, 0 and 0, 1, 1; the recorded actions are 0 and 1, their values 1 and 2.5.
@pytest.mark.parametrize(("baseline", "expected"), [("mean", [0.0, 0.5]), ("max", [0.0, 0.0])])
def test_advantages_by_hand(baseline: str, expected: list[float]):
    data = bandit((1, 1), (0.0, 0.0))
    mine = learner(CRR(baseline=baseline, samples=3, hidden=()), data)
    for weight, bias in zip(mine.critic.net.weights, mine.critic.net.biases):
        weight.data.zero_()
        bias.data = torch.tensor([[[1.0, 9.0]], [[2.0, 2.5]]])
    for parameter in mine.policy.parameters():
        parameter.data.zero_()
    uniform = torch.tensor([[0.1, 0.2, 0.3], [0.4, 0.6, 0.7]])
    assert torch.allclose(mine.advantages(data, uniform), torch.tensor(expected))


def test_the_policys_loss_is_weighted_and_reaches_the_policy_only():
    data = chain(4, 4)
    mine = learner(CRR(hidden=(8,), filter="exp", temperature=0.1, clip=1.5), data)
    noise = mine.noise(len(data), Rng(1).torch())
    weights = (mine.advantages(data, noise[:, 1:]) / 0.1).exp().clamp(max=1.5)
    log_probs = mine.policy.log_likelihood(data.observations, data.actions)
    losses = mine.losses(data, noise)
    assert torch.isclose(losses["policy_loss"], -(weights * log_probs).sum()) and weights.max() == 1.5 > weights.min()
    losses["policy_loss"].backward()
    assert all(p.grad is None for p in mine.critic.parameters())
    assert all(p.grad is not None for p in mine.policy.parameters())


def test_targets_ask_the_target_policy_and_take_the_smaller_critic():
    data = chain()
    mine = learner(CRR(discount=DISCOUNT, hidden=()), data)
    mine.target_policy.net.layers[-1].bias.data = torch.tensor([-50.0, 50.0])
    for weight, bias in zip(mine.target_critic.net.weights, mine.target_critic.net.biases):
        weight.data.zero_()
        bias.data = torch.tensor([[[9.0, 3.0]], [[9.0, 2.0]]])
    got = mine.targets(data, mine.noise(len(data), Rng(2).torch())[:, :1])
    assert torch.allclose(got, data.rewards + DISCOUNT * torch.where(data.terminated, 0.0, 2.0))


def test_it_learns_the_chain_from_mostly_wrong_moves():
    data = chain(right=1, left=2)
    mine = train(learner(CRR(**TABLE), data), data, 1200)
    assert mine.policy.act(states()).action.tolist() == [1] * LENGTH
    values = mine.critic(states(), torch.ones(LENGTH, dtype=torch.int64))[0]
    assert torch.allclose(values, optimal()[:, 1], atol=0.1)


def test_a_gaussian_takes_the_better_of_two_actions():
    options = {"hidden": (32,), "learning_rate": 3e-3, "batch_size": 64, "target_every": 10}
    policy = CRR(**options).fit(line(), steps=500, seed=1000, device="cpu")
    assert abs(policy.act([0.0]).action.item() - 0.5) < 0.1
    cloned = CRR(filter="exp", temperature=1e6, **options).fit(line(), steps=300, seed=1000, device="cpu")
    assert abs(cloned.act([0.0]).action.item()) < 0.1


def test_it_does_not_fall_off_the_cliff():
    # Nine of ten recorded actions are about -0.5; a clone would take -0.4.
    method = CRR(filter="exp", temperature=0.2, hidden=(32, 32), learning_rate=1e-3, batch_size=128)
    got = cliff_bandit.measure(method.fit(cliff_bandit.dataset(2000), steps=800, seed=1000, device="cpu"))
    assert got["fallen"] == 0 and got["action"] > 0.2


def test_copies_are_made_every_so_many_updates():
    data = chain()
    mine = learner(CRR(target_every=2, hidden=(8,)), data)
    mine.update(data, Rng(0))
    assert not torch.equal(parameters(mine.target_critic), parameters(mine.critic))
    mine.update(data, Rng(1))
    assert torch.equal(parameters(mine.target_critic), parameters(mine.critic))
    assert torch.equal(parameters(mine.target_policy), parameters(mine.policy))


@pytest.mark.parametrize("data", [chain(4, 4), line(40)], ids=["discrete", "continuous"])
def test_parts_of_a_batch_agree_with_the_whole(data: Transitions):
    whole, parts = learner(CRR(hidden=(8,)), data), learner(CRR(hidden=(8,)), data)
    for step in range(3):
        whole.update(data, Rng(step), 1)
        parts.update(data, Rng(step), 8)
    for name in ("policy", "critic"):
        assert torch.allclose(parameters(getattr(whole, name)), parameters(getattr(parts, name)), atol=1e-6)


@pytest.mark.parametrize("wrong", [{"samples": 0}, {"temperature": 0.0}])
def test_wrong_options_are_refused(wrong: dict[str, float]):
    with pytest.raises(TelosError, match="samples"):
        CRR(**wrong).fit(chain(), steps=1)
