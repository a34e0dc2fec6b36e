import torch
from torch import Tensor

from telos.core.method import Spec
from telos.core.rng import Rng
from telos.data.records import Box, Transitions
from telos.methods.offline_rl.td3 import TD3, TD3Learner


def one_step(rows: int = 400, terminated: bool = True) -> Transitions:
    """Reward -(a - 0.3)^2 for actions drawn uniformly from [-1, 1], one state."""
    actions = 2 * torch.rand(rows, 1, generator=Rng(1000).torch()) - 1
    return Transitions.validated(
        observations=torch.zeros(rows, 1),
        actions=actions,
        rewards=-(actions - 0.3).square(),
        next_observations=torch.zeros(rows, 1),
        terminated=torch.full((rows,), terminated),
        truncated=torch.full((rows,), not terminated),
        action_space=Box((-1.0,), (1.0,)),
    )


def learner(method: TD3, data: Transitions) -> TD3Learner:
    return method.learner(method.prepare(Spec(data, {}, 100, torch.device("cpu"), Rng(0))), Rng(0))


def parameters(policy: torch.nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in policy.parameters()])


def test_it_finds_the_best_action_where_data_cover_all_of_them():
    method = TD3(hidden=(32, 32), learning_rate=3e-3, batch_size=64)
    assert abs(method.fit(one_step(), steps=600, seed=1000, device="cpu").act([0.0]).action.item() - 0.3) < 0.1


def test_a_truncated_step_is_worth_what_follows_and_a_terminated_one_only_itself():
    # Reward 1 for ever at discount 0.5 is worth 2; ended, it is worth 1.
    for terminated, worth in ((True, 1.0), (False, 2.0)):
        data = one_step(terminated=terminated)
        data = Transitions.validated(**(data.columns() | {"rewards": torch.ones(400)}), action_space=data.action_space)
        mine = learner(TD3(hidden=(16,), learning_rate=1e-2, batch_size=64, discount=0.5, tau=0.2), data)
        for step in range(250):
            mine.update(data[torch.randint(400, (64,), generator=Rng(step).torch())], Rng(0).at(step))
        values = mine.critic(mine.policy.normaliser(data.observations), data.actions)
        assert torch.allclose(values, torch.tensor(worth), atol=0.1), (terminated, values.mean())


def test_the_policys_loss_is_minus_the_first_critics_mean():
    data = one_step()
    mine = learner(TD3(hidden=(8,)), data)
    states = mine.policy.normaliser(data.observations)
    expected = -mine.critic(states, mine.policy(states))[0].mean()
    assert abs(float(mine.improve_policy([data], 400)["actor_loss"]) - expected.item()) < 1e-6


def test_parts_of_a_batch_agree_with_the_whole():
    data = one_step()
    whole, parts = learner(TD3(hidden=(8,)), data), learner(TD3(hidden=(8,)), data)
    for step in range(2):
        whole.update(data[:32], Rng(step), 1)
        parts.update(data[:32], Rng(step), 5)
    assert torch.allclose(parameters(whole.policy), parameters(parts.policy), atol=1e-5)
    assert torch.allclose(parameters(whole.critic), parameters(parts.critic), atol=1e-5)
