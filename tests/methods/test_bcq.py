from pathlib import Path

import pytest
import torch
from value_toys import DISCOUNT, LENGTH, TABLE, bandit, chain, learner, optimal, parameters, states, train

from telos.core.errors import TelosError
from telos.core.products import load_product
from telos.core.rng import Rng
from telos.data.records import Box, Transitions
from telos.methods.offline_rl.bc import BC
from telos.methods.offline_rl.bcq import BCQ
from telos.methods.offline_rl.dqn import DQN
from telos.nets.candidates import CandidatePolicy

SMALL = {"hidden": (16,), "vae_hidden": (16,), "proposals": 3, "candidates": 5, "batch_size": 32}


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
def test_threshold_0_is_double_dqn_bit_for_bit(hidden: tuple[int, ...]):
    options, data = {**TABLE, "hidden": hidden}, chain()
    bcq = train(learner(BCQ(threshold=0.0, **options), data), data, 60)
    dqn = train(learner(DQN(**options), data), data, 60)
    assert torch.equal(parameters(bcq.policy.net), parameters(dqn.policy.net))
    assert torch.equal(bcq.policy.act(states()).action, dqn.policy.act(states()).action)


def test_towards_1_it_acts_as_greedy_cloning():
    # The best action is rare.
    data = bandit((10, 50, 30), (5.0, 0.0, 1.0))
    options = {"hidden": (16,), "learning_rate": 5e-3, "batch_size": 64}
    cloned = BC(**options).fit(data, steps=150, seed=1000, device="cpu").act([1.0]).action.item()
    for threshold, expected in [(0.0, 0), (0.3, 2), (0.999, 1)]:
        policy = BCQ(threshold=threshold, **options).fit(data, steps=150, seed=1000, device="cpu")
        assert policy.act([1.0]).action.item() == expected
    assert cloned == 1


def test_the_behaviour_is_the_recorded_one():
    data = bandit((10, 60, 30), (0.0, 0.0, 0.0))
    mine = train(learner(BCQ(logit_penalty=0.0, **TABLE), data), data, 400)
    assert torch.allclose(mine.policy.behaviour(states(1)).softmax(-1)[0], torch.tensor([0.1, 0.6, 0.3]), atol=0.03)


def test_the_logits_stay_centred_by_their_penalty():
    data = bandit((50, 50), (0.0, 0.0))
    free, held = (learner(BCQ(logit_penalty=c, **TABLE), data) for c in (0.0, 0.1))
    for mine in (free, held):
        mine.policy.behaviour.layers[-1].bias.data += 1.0
        train(mine, data, 200)
    assert held.policy.behaviour(states(1)).abs().max() < 0.05 < 0.5 < free.policy.behaviour(states(1)).abs().max()


def test_a_tables_fixed_point_is_the_best_eligible_policys_value():
    # Going right was recorded in one row of six: at a threshold of 0.3 it is out of reach, so nothing but the reward
    # of the recorded last move itself is ever earned.
    data = chain(right=1, left=5)
    mine = train(learner(BCQ(threshold=0.3, **TABLE), data), data, 400)
    expected = torch.zeros(LENGTH, 2)
    expected[-1, 1] = 1.0
    assert torch.allclose(mine.policy(states()), expected, atol=0.03)
    assert mine.policy.act(states()).action.tolist() == [0] * LENGTH
    # 1/5 is enough at 0.1.
    mine = train(learner(BCQ(threshold=0.1, **TABLE), data), data, 1000)
    assert torch.allclose(mine.policy(states()), optimal(), atol=0.05)


def test_targets_take_the_best_eligible_action_of_the_trained_network():
    data = chain()
    mine = learner(BCQ(discount=DISCOUNT, hidden=()), data)
    for net, bias in [(mine.policy.net, [0.0, 9.0]), (mine.target, [5.0, 7.0]), (mine.policy.behaviour, [2.0, 0.0])]:
        net.layers[-1].weight.data.zero_()
        net.layers[-1].bias.data = torch.tensor(bias)
    # The second action's ratio is e^-2 = 0.135.
    assert torch.allclose(mine.targets(data)[~data.terminated], torch.tensor(DISCOUNT * 5.0))
    mine.policy.threshold = 0.1
    assert torch.allclose(mine.targets(data)[~data.terminated], torch.tensor(DISCOUNT * 7.0))
    assert torch.equal(mine.targets(data)[data.terminated], data.rewards[data.terminated])


# Continuous actions.


def test_targets_are_the_best_perturbed_proposals_by_a_soft_minimum():
    data = pushes()
    mine = learner(BCQ(discount=DISCOUNT, soft_minimum=0.6, **SMALL), data)
    train(mine, data, 3, 32)
    noise = torch.randn(60, 3, 4, generator=Rng(1).torch())
    half, states = torch.tensor([2.0, 0.25]), data.next_observations
    values = []
    for j in range(3):
        unit = torch.tanh(mine.policy.decoder(torch.cat([states, noise[:, j].clamp(-0.5, 0.5)], -1)))
        change = 0.05 * torch.tanh(mine.target.perturbation(torch.cat([states, unit], -1)))
        q = mine.target.critic(states, half * (unit + change).clamp(-1, 1))
        values.append(0.6 * q.amin(0) + 0.4 * q.amax(0))
    targets = data.rewards + DISCOUNT * torch.where(data.terminated, 0.0, torch.stack(values).amax(0))
    q = mine.policy.critic(data.observations, data.actions)
    assert torch.isclose(mine.critic_loss(data, noise), (q - targets).square().sum(), rtol=1e-4)


def test_the_auto_encoders_loss_by_hand():
    data = pushes()
    mine = learner(BCQ(**SMALL), data)
    for net in (mine.encoder.net, mine.policy.decoder):
        for parameter in net.parameters():
            parameter.data.zero_()
    # It decodes 0; codes have mean 1 and log-std -2 in all 4 dimensions.
    mine.encoder.net.layers[-1].bias.data = torch.tensor([1.0] * 4 + [-2.0] * 4)
    errors = (data.actions / torch.tensor([2.0, 0.25])).square().mean(-1).sum()
    kl = -0.5 * (1 - 4 - 1 - torch.tensor(-4.0).exp())
    assert torch.isclose(mine.vae_loss(data, torch.zeros(60, 4)), errors + 60 * 0.5 * kl, rtol=1e-5)


def test_each_loss_moves_its_own_network():
    data = pushes()
    mine = learner(BCQ(**SMALL), data)
    noise = torch.randn(60, 3, 4, generator=Rng(2).torch())
    networks = {
        "critic": mine.policy.critic, "perturbation": mine.policy.perturbation, "decoder": mine.policy.decoder,
        "encoder": mine.encoder,
    }  # fmt: skip

    def moved(loss: torch.Tensor, **inputs: list[torch.nn.Parameter]) -> set[str]:
        for network in networks.values():
            network.zero_grad()
        loss.backward(**inputs)
        return {name for name, network in networks.items() if any(p.grad is not None for p in network.parameters())}

    assert moved(mine.critic_loss(data, noise)) == {"critic"}
    assert moved(mine.vae_loss(data, noise[:, 0])) == {"encoder", "decoder"}
    own = list(mine.policy.perturbation.parameters())
    assert moved(mine.perturbation_loss(data, noise[:, 0]), inputs=own) == {"perturbation"}


def test_actions_lie_within_reach_of_what_is_decoded_and_are_the_best_of_them(tmp_path: Path):
    data = pushes()
    policy = BCQ(reach=0.1, **SMALL).fit(data, steps=20, seed=1000, device="cpu")
    assert isinstance(policy, CandidatePolicy)
    states = data.observations
    codes = policy.codes.expand(60, -1, -1)
    assert policy.codes.shape == (5, 4) and policy.codes.abs().max() == 0.5
    unit = policy.decode(states[:, None].expand(-1, 5, -1), codes)
    candidates = policy.candidates(states, codes)
    assert (policy.scale.unit(candidates) - unit).abs().max() <= 0.1 + 1e-6
    best = policy.values(states, candidates)[0].argmax(-1)
    act = policy.act(states)
    assert torch.allclose(act.action, candidates[torch.arange(60), best])
    other = policy.act(states, explore=True, rng=Rng(3).torch()).action
    assert not torch.equal(other, act.action) and torch.allclose(policy.act(states[0]).action, act.action[0])
    loaded = load_product(policy.save(tmp_path / "policy"))
    assert torch.equal(loaded.act(states).action, act.action)


def test_it_takes_the_better_of_two_recorded_actions_and_not_what_lies_beyond():
    # One state, one step: action 0.5 pays 1, action -0.5 pays 0, with a little noise; further out would pay more.
    rng = Rng(1001).torch()
    side = torch.arange(400) % 2 * 1.0 - 0.5
    actions = side + 0.05 * torch.randn(400, generator=rng)
    data = Transitions.validated(
        observations=torch.zeros(400, 1),
        actions=actions[:, None],
        rewards=actions + 0.5,
        next_observations=torch.zeros(400, 1),
        terminated=torch.ones(400),
        truncated=torch.zeros(400),
        action_space=Box((-1.0,), (1.0,)),
    )
    options = {"hidden": (32,), "vae_hidden": (32, 32), "learning_rate": 3e-3, "batch_size": 64, "candidates": 50}
    policy = BCQ(**options).fit(data, steps=500, seed=1000, device="cpu")
    assert 0.3 < policy.act([0.0]).action.item() < 0.75


@pytest.mark.parametrize("data", [chain(4, 4), pushes()], ids=["discrete", "continuous"])
def test_parts_of_a_batch_agree_with_the_whole(data: Transitions):
    whole, parts = learner(BCQ(**SMALL), data), learner(BCQ(**SMALL), data)
    for step in range(3):
        whole.update(data[:32], Rng(step), 1)
        parts.update(data[:32], Rng(step), 8)
    assert torch.allclose(parameters(whole.policy), parameters(parts.policy), atol=1e-5)


@pytest.mark.parametrize("wrong", [{"threshold": -0.1}, {"threshold": 1.0}, {"proposals": 0}])
def test_wrong_options_are_refused(wrong: dict[str, float]):
    with pytest.raises(TelosError, match="threshold"):
        BCQ(**wrong).fit(chain(), steps=1)
