import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from telos.core.errors import TelosError
from telos.core.method import Spec
from telos.core.rng import Rng
from telos.data.records import Box, Transitions
from telos.methods.offline_rl.iql import IQL, IQLLearner, policy_loss


def coin(rows: int = 400) -> Transitions:
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


def learner(method: IQL, data: Transitions, steps: int = 100) -> IQLLearner:
    return method.learner(method.prepare(Spec(data, {}, steps, torch.device("cpu"), Rng(0))), Rng(0))


def parameters(policy: torch.nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in policy.parameters()])


def train(method: IQL, data: Transitions, steps: int) -> IQLLearner:
    mine = learner(method, data, steps)
    for step in range(steps):
        mine.update(data[torch.randint(len(data), (64,), generator=Rng(step).torch())], Rng(0).at(step))
    return mine


@pytest.mark.parametrize("expectile", [0.7, 0.9])
def test_on_a_coin_value_and_policy_are_the_closed_forms(expectile: float):
    # Q is 0 or 1, so V is the expectile of a fair coin, tau itself; the weights exp(3 (1 - tau)) and exp(-3 tau)
    # have the ratio e^3, so the policy's mean is 0.5 tanh(3 / 2).
    method = IQL(expectile=expectile, hidden=(16,), learning_rate=5e-3, batch_size=64, tau=0.05)
    data = coin()
    mine = train(method, data, 400)
    q = mine.critic(data.observations[:2], data.actions[:2])
    assert torch.allclose(q, torch.tensor([1.0, 0.0]), atol=0.05)
    assert abs(mine.value(data.observations[:1]).item() - expectile) < 0.05
    assert abs(mine.policy.act([0.0]).action.item() - 0.5 * math.tanh(1.5)) < 0.04


def test_beta_zero_clones():
    mine = train(IQL(beta=0.0, hidden=(16,), learning_rate=5e-3, batch_size=64), coin(), 300)
    assert abs(mine.policy.act([0.0]).action.item()) < 0.06


def test_losses_are_the_equations_with_terminated_rows_only_cut():
    rng = Rng(1000).torch()
    data = Transitions.validated(
        observations=torch.randn(4, 2, generator=rng),
        actions=2 * torch.rand(4, 1, generator=rng) - 1,
        rewards=torch.randn(4, generator=rng),
        next_observations=torch.randn(4, 2, generator=rng),
        terminated=[True, False, True, False],
        truncated=[False, False, True, True],
        action_space=Box((-1.0,), (1.0,)),
    )
    mine = learner(IQL(discount=0.9, hidden=(8,)), data)
    next_values = mine.value(data.next_observations)[:, 0]
    assert next_values.abs().min() > 1e-3
    targets = data.rewards + 0.9 * torch.tensor([0.0, 1.0, 0.0, 1.0]) * next_values
    q = mine.critic(data.observations, data.actions)
    advantages = q.amin(0) - mine.value(data.observations)[:, 0]
    weights = torch.exp(3 * advantages).clamp(max=100)
    log_probs = mine.policy.log_likelihood(data.observations, data.actions)
    losses = mine.losses(data)
    assert torch.isclose(losses["critic_loss"], (q - targets).square().sum(), rtol=1e-5)
    expected = (torch.where(advantages < 0, 0.3, 0.7) * advantages.square()).sum()
    assert torch.isclose(losses["value_loss"], expected, rtol=1e-5)
    assert torch.isclose(losses["policy_loss"], -(weights * log_probs).sum(), rtol=1e-5)


def test_the_policys_loss_reaches_the_policy_only():
    mine = learner(IQL(hidden=(8,)), coin())
    mine.losses(coin()[:16])["policy_loss"].backward()
    assert all(p.grad is None for p in [*mine.value.parameters(), *mine.critic.parameters()])
    assert all(p.grad is not None for p in mine.policy.parameters())


def test_weights_are_clipped():
    loss, count = policy_loss(torch.tensor([-1.0, -2.0]), torch.tensor([10.0, 0.0]), 3.0, 100.0)
    assert (loss.item(), count) == (102.0, 2)


def test_targets_follow_by_polyak_every_update():
    mine = learner(IQL(tau=0.1, hidden=(8,)), coin())
    old = parameters(mine.target_critic)
    mine.update(coin()[:32], Rng(0))
    assert torch.allclose(parameters(mine.target_critic), 0.9 * old + 0.1 * parameters(mine.critic), atol=1e-7)


def test_the_policys_rate_follows_a_cosine_and_the_values_do_not():
    mine = learner(IQL(hidden=(8,), learning_rate=1e-2), coin(), steps=4)
    rates = []
    for step in range(4):
        mine.update(coin()[:32], Rng(step))
        rates.append(mine.optimiser.param_groups[1]["lr"])
    assert rates == pytest.approx([1e-2, 1e-2 * (1 + math.sqrt(0.5)) / 2, 5e-3, 1e-2 * (1 - math.sqrt(0.5)) / 2])
    assert mine.optimiser.param_groups[0]["lr"] == 1e-2
    constant = learner(IQL(hidden=(8,), learning_rate=1e-2, schedule="constant"), coin(), steps=4)
    constant.update(coin()[:32], Rng(0))
    constant.update(coin()[:32], Rng(1))
    assert constant.optimiser.param_groups[1]["lr"] == 1e-2


def test_parts_of_a_batch_agree_with_the_whole():
    whole, parts = learner(IQL(hidden=(8,)), coin()), learner(IQL(hidden=(8,)), coin())
    for step in range(3):
        whole.update(coin()[:32], Rng(step), 1)
        parts.update(coin()[:32], Rng(step), 8)
    for name in ("policy", "value", "critic"):
        assert torch.allclose(parameters(getattr(whole, name)), parameters(getattr(parts, name)), atol=1e-5)


def test_wrong_expectiles_are_refused():
    with pytest.raises(TelosError, match="expectile"):
        IQL(expectile=1.0).fit(coin(), steps=1)


def test_a_killed_run_resumes_bit_for_bit(tmp_path: Path):
    method, data = IQL(hidden=(8,), batch_size=32), coin()
    whole = method.fit(data, steps=20, seed=3, device="cpu")

    def kill(step: int, product: object) -> dict[str, float]:
        raise KeyboardInterrupt

    run = {"steps": 20, "seed": 3, "device": "cpu", "out": tmp_path / "run", "checkpoint_every": 9}
    with pytest.raises(KeyboardInterrupt):
        method.fit(data, **run, evaluate=kill, evaluate_every=15)
    assert torch.equal(parameters(whole), parameters(method.fit(data, **run, resume=True)))
