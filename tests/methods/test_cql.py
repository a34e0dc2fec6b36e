import math

import pytest
import torch
from value_toys import DISCOUNT, LENGTH, TABLE, bandit, chain, learner, optimal, parameters, states, train

from telos.core.errors import TelosError
from telos.core.rng import Rng
from telos.data.records import Box, Transitions
from telos.methods.offline_rl.cql import CQL
from telos.methods.offline_rl.dqn import DQN
from telos.nets.q_policies import QPolicy
from telos.nets.squashed import SquashedGaussianPolicy
from telos.worlds import cliff_bandit

SMALL = {"hidden": (16,), "samples": 4, "batch_size": 32}


def pushes(rows: int = 60) -> Transitions:
    rng = Rng(1000).torch()
    return Transitions.validated(
        observations=torch.randn(rows, 3, generator=rng),
        actions=torch.tensor([2.0, 0.25]) * (2 * torch.rand(rows, 2, generator=rng) - 1),
        rewards=torch.randn(rows, generator=rng),
        next_observations=torch.randn(rows, 3, generator=rng),
        terminated=torch.rand(rows, generator=rng) < 0.3,
        truncated=torch.rand(rows, generator=rng) < 0.3,
        action_space=Box((-2.0, -0.25), (2.0, 0.25)),
    )


# Discrete actions.


@pytest.mark.parametrize("hidden", [(), (16, 16)])
def test_without_the_regulariser_it_is_double_dqn_bit_for_bit(hidden: tuple[int, ...]):
    options, data = {**TABLE, "hidden": hidden}, chain()
    cql = train(learner(CQL(alpha=0.0, **options), data), data, 60)
    dqn = train(learner(DQN(**options), data), data, 60)
    assert torch.equal(parameters(cql.policy), parameters(dqn.policy))


@pytest.mark.parametrize("alpha", [0.1, 1.0])
def test_a_bandits_values_are_where_the_gradients_cancel(alpha: float):
    # For each action: share * (Q - r) + alpha * (softmax(Q) - share) = 0, the third one being recorded once in 50.
    data, rewards = bandit((20, 29, 1), (1.0, 0.0, 0.5)), torch.tensor([1.0, 0.0, 0.5])
    mine = learner(CQL(alpha=alpha, **{**TABLE, "huber": 100.0, "batch_size": 50}), data)
    for step in range(500):
        mine.update(data, Rng(step))
    q = mine.policy(states(1))[0].detach()
    share = torch.tensor([0.4, 0.58, 0.02])
    assert torch.allclose(share * (q - rewards) + alpha * (q.softmax(-1) - share), torch.zeros(3), atol=2e-3)
    assert q[2] < 0.5


def test_unrecorded_actions_sink():
    data = bandit((50, 50), (1.0, 0.0))
    wide = Transitions.validated(**data.columns(), action_space=type(data.action_space)(3))
    gap = {}
    for alpha in (0.0, 0.5):
        mine = train(learner(CQL(alpha=alpha, **TABLE), wide), wide, 300)
        gap[alpha] = (mine.policy(states(1))[0, 2] - mine.policy(states(1))[0, :2].min()).item()
    assert gap[0.5] < -1.5 < gap[0.0]


def test_a_small_weight_leaves_the_chain_solved():
    data = chain(right=1, left=3)
    mine = train(learner(CQL(alpha=0.02, **TABLE), data), data, 800)
    assert mine.policy.act(states()).action.tolist() == [1] * LENGTH
    assert torch.allclose(mine.policy(states()), optimal(), atol=0.2)
    assert isinstance(mine.policy, QPolicy)


# Continuous actions.


def test_critic_losses_are_the_equations():
    data = pushes()
    mine = learner(CQL(discount=DISCOUNT, reward_scale=2.0, **SMALL), data)
    rng = Rng(1).torch()
    normal, uniform = torch.randn(9, 60, 2, generator=rng), torch.rand(4, 60, 2, generator=rng)
    half = torch.tensor([2.0, 0.25])

    def drawn(observations: torch.Tensor, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mean, log_std = mine.policy(observations)
        u = mean + log_std.exp() * z
        density = torch.distributions.Normal(mean, log_std.exp()).log_prob(u) - (1 - torch.tanh(u) ** 2).log()
        return half * torch.tanh(u), density.sum(-1)

    following, _ = drawn(data.next_observations, normal[0])
    values = mine.target_critic(data.next_observations, following).amin(0)
    targets = 2 * data.rewards + DISCOUNT * torch.where(data.terminated, 0.0, values)
    q = mine.critic(data.observations, data.actions)
    terms = [mine.critic(data.observations, half * (2 * u - 1)) + 2 * math.log(2) for u in uniform]
    for observations, rows in [(data.observations, normal[1:5]), (data.next_observations, normal[5:])]:
        for z in rows:
            actions, density = drawn(observations, z)
            terms.append(mine.critic(data.observations, actions) - density)
    gap = torch.stack(terms).logsumexp(0) - math.log(12) - q
    losses = mine.critic_losses(data, normal, uniform)
    assert torch.isclose(losses["critic_loss"], (q - targets).square().sum(), rtol=1e-4)
    assert torch.isclose(losses["gap"], gap.sum(), rtol=1e-3)


def test_policy_losses_are_the_equations_and_reach_only_what_they_should():
    data = pushes()
    mine = learner(CQL(**SMALL), data)
    with torch.no_grad():
        mine.log_temperature.fill_(math.log(0.3))
    normal = torch.randn(1, 60, 2, generator=Rng(2).torch())
    actions, log_probs = mine.policy.draw(data.observations, normal)
    values = mine.critic(data.observations, actions[0]).amin(0)
    losses = mine.policy_losses(data, normal)
    assert torch.isclose(losses["policy_loss"], (0.3 * log_probs[0] - values).sum(), rtol=1e-4)
    assert torch.isclose(losses["temperature_loss"], -math.log(0.3) * (log_probs[0] - 2).sum(), rtol=1e-4)
    losses["temperature_loss"].backward()
    assert mine.log_temperature.grad is not None and all(p.grad is None for p in mine.policy.parameters())
    # Entropy below its target of -2, that is log-density above 2, raises the temperature.
    assert (mine.log_temperature.grad < 0) == (log_probs.mean() > 2)
    # An update moves critics along their own loss only: without learning rate for the policy, it stands still.
    before = parameters(mine.policy)
    mine.policy_optimiser.param_groups[0]["lr"] = 0.0
    mine.update(data, Rng(3))
    assert torch.equal(parameters(mine.policy), before)


def test_the_critics_step_knows_nothing_of_the_policys_loss():
    data = pushes()
    mine = learner(CQL(**SMALL), data)
    other = learner(CQL(**SMALL), data)
    with torch.no_grad():
        other.log_temperature.fill_(5.0)
    mine.update(data, Rng(4))
    other.update(data, Rng(4))
    assert torch.equal(parameters(mine.critic), parameters(other.critic))
    assert not torch.equal(parameters(mine.policy), parameters(other.policy))


def test_the_regulariser_keeps_it_from_the_cliff():
    # Values that follow the slope of the records rise beyond them; CQL's do not.
    data = cliff_bandit.dataset(2000)
    options = {"hidden": (32, 32), "learning_rate": 3e-3, "policy_learning_rate": 3e-3, "batch_size": 64, "samples": 4}
    got = {}
    for alpha in (0.0, 0.3):
        policy = CQL(alpha=alpha, **options).fit(data, steps=400, seed=1000, device="cpu")
        assert isinstance(policy, SquashedGaussianPolicy)
        got[alpha] = cliff_bandit.measure(policy)
    assert got[0.0]["fallen"] > 0.9
    # Records earn 1.6 on average.
    assert got[0.3]["fallen"] == 0 and got[0.3]["reward"] > 1.8


@pytest.mark.parametrize("data", [chain(4, 4), pushes()], ids=["discrete", "continuous"])
def test_parts_of_a_batch_agree_with_the_whole(data: Transitions):
    whole, parts = learner(CQL(**SMALL), data), learner(CQL(**SMALL), data)
    for step in range(3):
        whole.update(data[:32], Rng(step), 1)
        parts.update(data[:32], Rng(step), 8)
    assert torch.allclose(parameters(whole.policy), parameters(parts.policy), atol=1e-5)


@pytest.mark.parametrize("wrong", [{"alpha": -1.0}, {"samples": 0}])
def test_wrong_options_are_refused(wrong: dict[str, float]):
    with pytest.raises(TelosError, match="alpha"):
        CQL(**wrong).fit(chain(), steps=1)
