from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from value_toys import DISCOUNT, LENGTH, TABLE, chain, learner, optimal, parameters, states, train

from telos.cli import main
from telos.core.errors import TelosError
from telos.core.method import Spec
from telos.core.products import load_product
from telos.core.rng import Rng
from telos.data.formats import load
from telos.data.measures import episodes
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
        assert abs(mine.loss(data)[0].item() - expected) < 1e-6


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


class Corridor(gymnasium.Env[Any, Any]):
    """The chain as an environment, begun at cell 0: action 1 goes right and earns 1 at the end; 20 steps at most."""

    observation_space = gymnasium.spaces.Box(0.0, 1.0, (LENGTH,))
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, start: int = 0, ends: bool = True, limit: int = 20):
        self.start, self.ends, self.limit = start, ends, limit

    def reset(self, *, seed: int | None = None, options: Any = None):
        super().reset(seed=seed)
        self.cell, self.steps = self.start, 0
        return np.eye(LENGTH, dtype=np.float32)[self.cell], {}

    def step(self, action: Any):
        there = self.cell == LENGTH - 1 and action == 1
        self.cell, self.steps = min(max(self.cell + 2 * int(action) - 1, 0), LENGTH - 1), self.steps + 1
        over = there and self.ends
        cut = not over and self.steps == self.limit
        return np.eye(LENGTH, dtype=np.float32)[self.cell], float(there), over, cut, {}


gymnasium.register("TelosDQN/Corridor-v0", Corridor)
CORRIDOR = "TelosDQN/Corridor-v0"
ONLINE = {**TABLE, "warmup": 64, "epsilon_updates": 300, "learning_rate": 0.05}


@pytest.mark.parametrize("env", [CORRIDOR, Corridor])
def test_its_own_steps_teach_it_the_way(env: Any):
    policy = DQN(**ONLINE).fit(env=env, steps=800, seed=1000, device="cpu")
    assert policy.act(states()).action.tolist() == [1] * LENGTH
    # Going on is worth 0.8 a step less; what the greedy policy does not do was seen less often.
    assert torch.allclose(policy(states())[:, 1], optimal()[:, 1], atol=0.1)
    assert policy.epsilon == 0.01


@pytest.mark.parametrize(("ends", "value"), [(True, 1.0), (False, 1 / (1 - DISCOUNT))])
def test_a_time_limit_has_a_next_value_and_an_end_has_none(ends: bool, value: float):
    """From the last cell, one step: worth 1 if the task ends with it, 1 / (1 - 0.8) if only time does."""
    method = DQN(**{**TABLE, "learning_rate": 0.1, "target_every": 5, "warmup": 64})
    policy = method.fit(env=lambda: Corridor(LENGTH - 1, ends, 1), steps=700, seed=1000, device="cpu")
    assert abs(policy(states())[-1, 1].item() - value) < 0.05 * value


def test_the_share_of_uniform_actions_falls_and_then_stays():
    def learner_of(**options: Any) -> Any:
        spec = Spec(None, {"env": Corridor}, 100, torch.device("cpu"), Rng(0))
        method = DQN(**options)
        return method.learner(method.prepare(spec), Rng(0))

    mine = learner_of(epsilon=0.9, final_epsilon=0.1, epsilon_updates=4, hidden=(8,))
    shares = []
    for mine.updates in range(7):
        shares.append(mine.behaviour().epsilon)
    assert shares == pytest.approx([0.9, 0.7, 0.5, 0.3, 0.1, 0.1, 0.1])
    assert learner_of(epsilon_updates=0, hidden=(8,)).behaviour().epsilon == 0.01
    # A learner from recorded data never asks, and its policy explores as it always did.
    assert DQN(**TABLE).fit(chain(), steps=3, device="cpu").epsilon == 0.05


def test_a_killed_online_run_resumes_bit_for_bit_with_its_replay(tmp_path: Path):
    # 60 steps are kept to learn from, all 132 are written.
    method = DQN(hidden=(8,), batch_size=16, target_every=4, warmup=32, capacity=60, epsilon_updates=40)
    run = {"env": CORRIDOR, "steps": 100, "seed": 3, "device": "cpu", "checkpoint_every": 9}
    whole = method.fit(**run, experience=str(tmp_path / "whole.npz"))

    def kill(step: int, product: object) -> dict[str, float]:
        raise KeyboardInterrupt

    resumable = {**run, "out": tmp_path / "run", "experience": str(tmp_path / "replay.npz")}
    with pytest.raises(KeyboardInterrupt):
        method.fit(**resumable, evaluate=kill, evaluate_every=80)
    assert not (tmp_path / "replay.npz").exists()
    assert torch.equal(parameters(whole), parameters(method.fit(**resumable, resume=True)))
    assert torch.equal(parameters(whole), parameters(load_product(tmp_path / "run")))
    replay, other = load(tmp_path / "replay.npz"), load(tmp_path / "whole.npz")
    assert isinstance(replay, Transitions) and len(replay) == 132 and replay.fingerprint() == other.fingerprint()
    # Whether it is asked for changes nothing; and what was seen are the environment's episodes, in order.
    assert torch.equal(parameters(whole), parameters(method.fit(**run)))
    kept, nexts = replay.observations.argmax(-1), replay.next_observations.argmax(-1)
    assert torch.equal(nexts, (kept + 2 * replay.actions - 1).clamp(0, LENGTH - 1))
    ends = replay.terminated | replay.truncated
    assert (kept[1:] == torch.where(ends[:-1], 0, nexts[:-1])).all() and ends[-1] and kept[0] == 0
    assert torch.equal(replay.terminated, (kept == LENGTH - 1) & (replay.actions == 1))
    assert episodes(replay).lengths.max() <= 20


def test_the_command_learns_in_an_environment_and_writes_its_replay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    line = [
        "fit",
        "dqn",
        "--env",
        CORRIDOR,
        "--steps",
        "40",
        "--experience",
        "seen.npz",
        "--out",
        "run",
        "--device",
        "cpu",
    ]
    assert main([*line, "--hidden", "8", "--batch-size", "8"]) == 0
    assert len(load("seen.npz")) == 128 + 40 and len(load_product("run").hidden) == 1
    assert main(["resume", "run"]) == 0


def test_what_it_cannot_do_online_is_refused(tmp_path: Path):
    def fit(method: DQN | None = None, **given: Any) -> None:
        (method or DQN()).fit(**{"steps": 2, "env": Corridor, "device": "cpu", **given})

    with pytest.raises(TelosError, match="'env' is missing"):
        fit(env=None)
    with pytest.raises(TelosError, match="DQN needs discrete actions"):
        fit(env="Pendulum-v1")
    with pytest.raises(TelosError, match="option is out of range"):
        fit(DQN(epsilon=1.5))
    with pytest.raises(TelosError, match="option is out of range"):
        fit(DQN(capacity=20))
    with pytest.raises(TelosError, match="normalise needs recorded data"):
        fit(DQN(normalise=True))
    for file, environments in (("seen.csv", 1), ("seen.npz", 2)):
        with pytest.raises(TelosError, match="experience cannot be written"):
            fit(DQN(environments=environments), experience=str(tmp_path / file))
    with pytest.raises(TelosError, match=r"experience cannot be written(.|\n)*several seeds: True"):
        fit(seeds=2, experience=str(tmp_path / "seen.npz"))
    with pytest.raises(TelosError, match="experience is what was seen"):
        DQN().fit(chain(), steps=1, experience=str(tmp_path / "seen.npz"))
    assert not list(tmp_path.iterdir())
