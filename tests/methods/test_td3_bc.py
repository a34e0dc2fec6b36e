from pathlib import Path

import pytest
import torch
from torch import Tensor

from telos.core.errors import TelosError
from telos.core.method import Spec
from telos.core.rng import Rng
from telos.data.records import Box, Transitions
from telos.methods.offline_rl.td3_bc import TD3BC, TD3BCLearner, actor_loss

SMALL = {"hidden": (16,), "batch_size": 32}


def transitions(rows: int = 200) -> Transitions:
    rng = Rng(1000).torch()
    return Transitions.validated(
        observations=torch.randn(rows, 3, generator=rng),
        actions=2 * torch.rand(rows, 2, generator=rng) - 1,
        rewards=torch.randn(rows, generator=rng),
        next_observations=torch.randn(rows, 3, generator=rng),
        terminated=torch.rand(rows, generator=rng) < 0.1,
        truncated=torch.rand(rows, generator=rng) < 0.1,
        action_space=Box((-1.0,) * 2, (1.0,) * 2),
    )


def learner(method: TD3BC, data: Transitions) -> TD3BCLearner:
    return method.learner(method.prepare(Spec(data, {}, 100, torch.device("cpu"), Rng(0))), Rng(0))


def parameters(policy: torch.nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in policy.parameters()])


def test_actor_loss_by_hand():
    # lambda = 2.5 / mean |q| = 2.5 / 2; half the squared differences, as the mean over two dimensions.
    q = torch.tensor([-1.0, 3.0])
    loss, penalty, count = actor_loss(
        q,
        torch.tensor([[0.0, 0.0], [1.0, 0.5]]),
        torch.tensor([[0.0, 1.0], [1.0, -0.5]]),
        torch.tensor(1.25),
        torch.ones(2),
    )
    assert (penalty.item(), loss.item(), count) == (1.0, -1.25 * 2 + 1.0, 2)


def test_the_learners_loss_is_the_equations():
    data = transitions()
    mine = learner(TD3BC(alpha=2.5, **SMALL), data)
    batch = data[:32]
    states = (batch.observations - data.observations.mean(0)) / (data.observations.std(0, correction=0) + 1e-3)
    actions = mine.policy(states)
    q = mine.critic(states, actions)[0]
    expected = -2.5 * q.mean() / q.abs().mean() + (actions - batch.actions).square().mean()
    metrics = mine.improve_policy([batch], 32)
    assert abs(float(metrics["actor_loss"]) - expected.item()) < 1e-5


@pytest.mark.parametrize("scale", [0.01, 100.0])
def test_lambda_makes_the_policys_step_indifferent_to_the_scale_of_values(scale: float):
    data = transitions()
    plain, scaled = learner(TD3BC(**SMALL), data), learner(TD3BC(**SMALL), data)
    for last in (scaled.critic.net.weights[-1], scaled.critic.net.biases[-1]):
        last.data.mul_(scale)
    plain.improve_policy([data[:32]], 32)
    scaled.improve_policy([data[:32]], 32)
    assert torch.allclose(parameters(plain.policy), parameters(scaled.policy), atol=1e-5)


def test_parts_of_a_batch_agree_with_the_whole():
    data = transitions()
    whole, parts = learner(TD3BC(**SMALL), data), learner(TD3BC(**SMALL), data)
    for step in range(2):
        whole.update(data[:32], Rng(step), 1)
        parts.update(data[:32], Rng(step), 8)
    assert torch.allclose(parameters(whole.policy), parameters(parts.policy), atol=1e-5)
    assert torch.allclose(parameters(whole.critic), parameters(parts.critic), atol=1e-5)


def test_terminated_and_truncated_are_not_confused():
    data = transitions(rows=2)
    flags = {"terminated": torch.tensor([True, False]), "truncated": torch.tensor([False, True])}
    data = Transitions.validated(**(data.columns() | flags), action_space=data.action_space)
    mine = learner(TD3BC(policy_noise=0.0, discount=0.5, **SMALL), data)
    states = mine.policy.normaliser(data.next_observations)
    values = mine.target_critic(states, mine.target_policy(states)).amin(0)
    got = mine.targets(data, torch.zeros(2, 2))
    assert got[0] == data.rewards[0] and torch.isclose(got[1], data.rewards[1] + 0.5 * values[1])


def test_a_small_alpha_clones_and_a_large_one_follows_the_value():
    # One step of reward -(a - 0.6)^2, recorded actions all at -0.2 apart from a few that show the value.
    rng = Rng(1001).torch()
    actions = torch.where(torch.rand(400, 1, generator=rng) < 0.5, -0.2, 2 * torch.rand(400, 1, generator=rng) - 1)
    data = Transitions.validated(
        observations=torch.zeros(400, 1),
        actions=actions,
        rewards=-(actions - 0.6).square(),
        next_observations=torch.zeros(400, 1),
        terminated=torch.ones(400),
        truncated=torch.zeros(400),
        action_space=Box((-1.0,), (1.0,)),
    )
    options = {"hidden": (32, 32), "learning_rate": 3e-3, "batch_size": 64}
    clone = TD3BC(alpha=1e-4, **options).fit(data, steps=350, seed=1000, device="cpu").act([0.0]).action.item()
    greedy = TD3BC(alpha=100.0, **options).fit(data, steps=350, seed=1000, device="cpu").act([0.0]).action.item()
    assert abs(clone - actions.mean().item()) < 0.07 and abs(greedy - 0.6) < 0.12


def test_wrong_alpha_is_refused():
    with pytest.raises(TelosError, match="alpha"):
        TD3BC(alpha=0.0).fit(transitions(), steps=1)


def test_a_killed_run_resumes_bit_for_bit(tmp_path: Path):
    data, method = transitions(), TD3BC(**SMALL)
    whole = method.fit(data, steps=20, seed=3, device="cpu")

    def kill(step: int, product: object) -> dict[str, float]:
        raise KeyboardInterrupt

    run = {"steps": 20, "seed": 3, "device": "cpu", "out": tmp_path / "run", "checkpoint_every": 9}
    with pytest.raises(KeyboardInterrupt):
        method.fit(data, **run, evaluate=kill, evaluate_every=15)
    assert torch.equal(parameters(whole), parameters(method.fit(data, **run, resume=True)))
