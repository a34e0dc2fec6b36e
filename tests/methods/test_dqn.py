from pathlib import Path

import pytest
import torch
from value_toys import DISCOUNT, LENGTH, TABLE, chain, learner, optimal, parameters, states, train

from telos.core.errors import TelosError
from telos.core.products import load_product
from telos.core.rng import Rng
from telos.data.records import Box, Transitions
from telos.methods.offline_rl.dqn import DQN


@pytest.mark.parametrize("double", [True, False])
def test_a_tables_fixed_point_is_the_optimal_value(double: bool):
    data = chain()
    mine = train(learner(DQN(double=double, **TABLE), data), data, 800)
    assert torch.allclose(mine.policy(states()), optimal(), atol=0.03)
    assert mine.policy.act(states()).action.tolist() == [1] * LENGTH


def test_a_network_learns_the_chain_through_fit():
    options = {**TABLE, "hidden": (32, 32), "learning_rate": 3e-3}
    policy = DQN(**options).fit(chain(), steps=700, seed=1000, device="cpu")
    assert torch.allclose(policy(states()), optimal(), atol=0.05)


def test_the_trained_network_chooses_and_its_copy_values():
    data = chain()
    mine = learner(DQN(discount=0.5, hidden=(8,)), data)
    mine.target.layers[-1].bias.data = torch.tensor([7.0, 3.0])
    mine.policy.net.layers[-1].bias.data = torch.tensor([-50.0, 50.0])
    copy = mine.target(data.next_observations)
    expected = data.rewards + 0.5 * torch.where(data.terminated, 0.0, copy[:, 1])
    assert torch.allclose(mine.targets(data), expected) and (copy[:, 0] > copy[:, 1]).all()
    plain = learner(DQN(discount=0.5, hidden=(8,), double=False), data)
    plain.target.load_state_dict(mine.target.state_dict())
    expected = data.rewards + 0.5 * torch.where(data.terminated, 0.0, copy[:, 0])
    assert torch.allclose(plain.targets(data), expected)


def test_the_loss_is_huber():
    # Values of 0 and targets of r = 0.5 and 4: 0.5^2 / 2, and delta (4 - delta / 2).
    data = chain()[-2:]
    data = Transitions.validated(
        **{**data.columns(), "rewards": torch.tensor([0.5, 4.0]), "terminated": torch.ones(2)},
        action_space=data.action_space,
    )
    for delta, expected in [(1.0, 0.125 + 3.5), (2.0, 0.125 + 6.0), (9.0, 0.125 + 8.0)]:
        mine = learner(DQN(hidden=(), huber=delta), data)
        for parameter in mine.policy.net.parameters():
            parameter.data.zero_()
        assert abs(mine.loss(data).item() - expected) < 1e-6


def test_the_target_is_copied_every_so_many_updates_and_held_between():
    data = chain()
    mine = learner(DQN(target_every=3, hidden=(8,)), data)
    first = parameters(mine.target)
    for step in range(1, 7):
        mine.update(data, Rng(step))
        if step == 2:
            assert torch.equal(parameters(mine.target), first)
        if step % 3 == 0:
            assert torch.equal(parameters(mine.target), parameters(mine.policy.net))
        else:
            assert not torch.equal(parameters(mine.target), parameters(mine.policy.net))


def test_rewards_are_scaled_and_shifted():
    data = chain()
    mine = train(learner(DQN(reward_scale=2.0, reward_shift=-0.1, **TABLE), data), data, 1000)
    # A step costs 0.1: V = 1.9 at the last cell, V = -0.1 + 0.8 V of the next one before.
    values = [1.9]
    for _ in range(LENGTH - 1):
        values.insert(0, -0.1 + DISCOUNT * values[0])
    assert torch.allclose(mine.policy(states())[:, 1], torch.tensor(values), atol=0.05)


def test_parts_of_a_batch_agree_with_the_whole():
    data = chain(4, 4)
    whole, parts = learner(DQN(hidden=(8,)), data), learner(DQN(hidden=(8,)), data)
    for step in range(3):
        whole.update(data, Rng(step), 1)
        parts.update(data, Rng(step), 8)
    assert torch.allclose(parameters(whole.policy), parameters(parts.policy), atol=1e-6)


def test_continuous_actions_are_refused():
    data = Transitions.validated(
        **{**chain().columns(), "actions": torch.zeros(10, 1)}, action_space=Box((-1.0,), (1.0,))
    )
    with pytest.raises(TelosError, match="DQN needs discrete actions"):
        DQN().fit(data, steps=1)


def test_a_killed_run_resumes_bit_for_bit_and_loads(tmp_path: Path):
    method, data = DQN(hidden=(8,), batch_size=32, target_every=4), chain()
    whole = method.fit(data, steps=20, seed=3, device="cpu")

    def kill(step: int, product: object) -> dict[str, float]:
        raise KeyboardInterrupt

    run = {"steps": 20, "seed": 3, "device": "cpu", "out": tmp_path / "run", "checkpoint_every": 9}
    with pytest.raises(KeyboardInterrupt):
        method.fit(data, **run, evaluate=kill, evaluate_every=15)
    assert torch.equal(parameters(whole), parameters(method.fit(data, **run, resume=True)))
    assert torch.equal(parameters(whole), parameters(load_product(tmp_path / "run")))
