"""Worker: IQL, TD3+BC and PRDC in the style of single-file implementations, our own code from the equations.

Plain eager torch: twin critics are two modules, every network has its optimiser, targets follow parameter by
parameter, transitions are numpy arrays that are sampled on the host, and PRDC asks scipy's KD-tree. Losses and
hyper-parameters are those of telos's methods of the same names (tests/bench holds them together).
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterable

import numpy as np
import torch
from scipy.spatial import KDTree
from torch import Tensor, nn
from torch.distributions import Normal
from torch.nn import functional as F

from offline_data import BATCH, HIDDEN, UPDATES, columns

DISCOUNT, TAU, LEARNING_RATE, STEPS = 0.99, 0.005, 3e-4, 1_000_000


def mlp(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(inputs, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, outputs)
    )


class Critic(nn.Module):
    """Q(s, a)"""

    def __init__(self, observations: int, actions: int):
        super().__init__()
        self.net = mlp(observations + actions, 1)

    def forward(self, states: Tensor, actions: Tensor) -> Tensor:
        return self.net(torch.cat([states, actions], 1)).squeeze(1)


class Value(nn.Module):
    """V(s)"""

    def __init__(self, observations: int):
        super().__init__()
        self.net = mlp(observations, 1)

    def forward(self, states: Tensor) -> Tensor:
        return self.net(states).squeeze(1)


class Actor(nn.Module):
    """pi(s) in [-1, 1]"""

    def __init__(self, observations: int, actions: int):
        super().__init__()
        self.net = mlp(observations, actions)

    def forward(self, states: Tensor) -> Tensor:
        return torch.tanh(self.net(states))


class GaussianActor(Actor):
    """pi(a | s), its deviation independent of s"""

    def __init__(self, observations: int, actions: int):
        super().__init__(observations, actions)
        self.log_std = nn.Parameter(torch.zeros(actions))

    def distribution(self, states: Tensor) -> Normal:
        return Normal(self(states), self.log_std.clamp(-5.0, 2.0).exp())


class Replay:
    """Transitions as numpy arrays; states with mean 0 and deviation 1 where `normalise`."""

    def __init__(self, arrays: dict[str, np.ndarray], normalise: bool):
        self.arrays = dict(arrays)
        if normalise:
            mean, std = arrays["observations"].mean(0), arrays["observations"].std(0) + 1e-3
            for name in ("observations", "next_observations"):
                self.arrays[name] = (arrays[name] - mean) / std

    def sample(self) -> list[Tensor]:
        """States, actions, rewards, next states, terminated."""
        index = np.random.randint(0, len(self.arrays["rewards"]), BATCH)
        names = ("observations", "actions", "rewards", "next_observations", "terminated")
        return [torch.from_numpy(self.arrays[name][index]).float() for name in names]


def adam(network: nn.Module) -> torch.optim.Adam:
    return torch.optim.Adam(network.parameters(), lr=LEARNING_RATE)


def step(optimiser: torch.optim.Optimizer, loss: Tensor) -> float:
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
    return loss.item()


def follow(target: nn.Module, source: nn.Module) -> None:
    for slow, fast in zip(target.parameters(), source.parameters(), strict=True):
        slow.data.copy_(TAU * fast.data + (1 - TAU) * slow.data)


class Twin:
    """What the three have in common: two critics, their targets and optimisers."""

    normalise = False

    def __init__(self, observations: int, actions: int):
        self.critics = [Critic(observations, actions) for _ in range(2)]
        self.targets = [copy.deepcopy(critic) for critic in self.critics]
        self.critic_optimisers = [adam(critic) for critic in self.critics]

    def prepare(self, replay: Replay) -> None:
        """Work before training."""

    def slow_q(self, states: Tensor, actions: Tensor) -> Tensor:
        """The smaller of the targets."""
        return torch.min(self.targets[0](states, actions), self.targets[1](states, actions))

    def learn_critics(self, states: Tensor, actions: Tensor, y: Tensor) -> float:
        losses = [F.mse_loss(critic(states, actions), y) for critic in self.critics]
        return sum(step(*pair) for pair in zip(self.critic_optimisers, losses, strict=True))

    def train(self, batch: list[Tensor]) -> dict[str, float]:
        """One update; its losses."""
        raise NotImplementedError


class IQL(Twin):
    expectile, beta, clip = 0.7, 3.0, 100.0

    def __init__(self, observations: int, actions: int):
        super().__init__(observations, actions)
        self.value, self.actor = Value(observations), GaussianActor(observations, actions)
        self.value_optimiser, self.actor_optimiser = adam(self.value), adam(self.actor)
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.actor_optimiser, STEPS)

    def train(self, batch: list[Tensor]) -> dict[str, float]:
        states, actions, rewards, next_states, terminated = batch
        with torch.no_grad():
            next_value = self.value(next_states)
            recorded = self.slow_q(states, actions)
        advantage = recorded - self.value(states)
        weight = torch.abs(self.expectile - (advantage < 0).float())
        value_loss = step(self.value_optimiser, torch.mean(weight * advantage**2))
        y = rewards + DISCOUNT * (1 - terminated) * next_value
        critic_loss = self.learn_critics(states, actions, y)
        imitation = torch.exp(self.beta * advantage.detach()).clamp(max=self.clip)
        log_probs = self.actor.distribution(states).log_prob(actions).sum(1)
        policy_loss = step(self.actor_optimiser, -torch.mean(imitation * log_probs))
        self.schedule.step()
        for target, critic in zip(self.targets, self.critics, strict=True):
            follow(target, critic)
        return {"value_loss": value_loss, "critic_loss": critic_loss, "policy_loss": policy_loss}


class TD3BC(Twin):
    alpha, noise, noise_clip, policy_every, normalise = 2.5, 0.2, 0.5, 2, True

    def __init__(self, observations: int, actions: int):
        super().__init__(observations, actions)
        self.actor = Actor(observations, actions)
        self.slow_actor, self.actor_optimiser, self.updates = copy.deepcopy(self.actor), adam(self.actor), 0

    def anchor(self, states: Tensor, actions: Tensor, recorded: Tensor) -> Tensor:
        """Towards what the policy is pulled."""
        return recorded

    def train(self, batch: list[Tensor], noise: Tensor | None = None) -> dict[str, float]:
        """`noise`: standard normal, to compare with; drawn if it is not given."""
        states, actions, rewards, next_states, terminated = batch
        with torch.no_grad():
            noise = torch.randn_like(actions) if noise is None else noise
            smoothing = (self.noise * noise).clamp(-self.noise_clip, self.noise_clip)
            next_actions = (self.slow_actor(next_states) + smoothing).clamp(-1, 1)
            y = rewards + DISCOUNT * (1 - terminated) * self.slow_q(next_states, next_actions)
        losses = {"critic_loss": self.learn_critics(states, actions, y)}
        self.updates += 1
        if self.updates % self.policy_every == 0:
            own = self.actor(states)
            q = self.critics[0](states, own)
            anchor = self.anchor(states, own.detach(), actions)
            loss = -self.alpha / q.abs().mean().detach() * q.mean() + F.mse_loss(own, anchor)
            losses["actor_loss"] = step(self.actor_optimiser, loss)
            followers: Iterable = zip([*self.targets, self.slow_actor], [*self.critics, self.actor], strict=True)
            for target, source in followers:
                follow(target, source)
        return losses


class PRDC(TD3BC):
    beta = 2.0

    def prepare(self, replay: Replay) -> None:
        self.actions = replay.arrays["actions"]
        self.tree = KDTree(np.hstack([self.beta * replay.arrays["observations"], self.actions]))

    def anchor(self, states: Tensor, actions: Tensor, recorded: Tensor) -> Tensor:
        """The action of the nearest pair of the data."""
        key = torch.cat([self.beta * states, actions], 1).numpy()
        _, index = self.tree.query(key, k=1, workers=torch.get_num_threads())
        return torch.from_numpy(self.actions[index])


METHODS = {"iql": IQL, "td3_bc": TD3BC, "prdc": PRDC}


def main() -> None:
    from serve import Gate, serve

    torch.manual_seed(0)
    np.random.seed(0)
    table = columns()
    kind = METHODS[sys.argv[1]]
    replay = Replay(table, kind.normalise)
    learner = kind(table["observations"].shape[1], table["actions"].shape[1])
    learner.prepare(replay)

    def work() -> None:
        for _ in range(UPDATES):
            learner.train(replay.sample())

    serve(work, Gate("scipy", "torch", updates=UPDATES))


if __name__ == "__main__":
    main()
