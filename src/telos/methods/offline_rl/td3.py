"""TD3: twin critics, smoothed target actions and a delayed deterministic policy, here on a fixed data set.

Fujimoto, van Hoof, Meger: Addressing Function Approximation Error in Actor-Critic Methods, ICML 2018,
arXiv 1802.09477.

The actor minimises, every `policy_every` updates,

    - mean Q_1(s, pi(s))                                                                            (1)

Critics, every update,

    r + discount * min_i Q_i'(s', clip(pi'(s') + clip(noise)))   for both heads, squared error      (2)

Differs from the paper: experience comes from a data set and not from the policy, which is what offline methods are
compared with; nothing keeps the policy near the data. Observations are normalised, as the methods compared do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from telos.core.method import Learner, Method, Metrics, Spec, split
from telos.core.products import Product
from telos.core.rng import Rng
from telos.core.sources import Uniform
from telos.data.records import Transitions
from telos.nets.critics import EnsembleQ, frozen_copy, polyak_
from telos.nets.normaliser import Normaliser
from telos.nets.policies import DeterministicPolicy, box
from telos.ops.values import ensemble_mse, smoothed_actions, td_target

if TYPE_CHECKING:
    from jaxtyping import Float

BASELINE = {
    "method": "TD3",
    "title": "Addressing Function Approximation Error in Actor-Critic Methods",
    "reference": "Fujimoto, van Hoof and Meger, ICML 2018, arXiv 1802.09477",
    "year": 2018,
    "purpose": ["reward"],
    "product": "Policy",
    "data": "offline transitions",
    "summary": "Twin critics, smoothed target actions, a delayed deterministic policy; nothing keeps it near the data.",
    "equations": [
        r"a'=\operatorname{clip}\left(\pi'(s')+\operatorname{clip}(\epsilon,-c,c),a_{\min},a_{\max}\right),\quad"
        r"\epsilon\sim\mathcal N(0,\sigma^2)",
        r"y=r+\gamma\,\mathbb 1[s'\text{ not terminal}]\,\min_{i=1,2}Q'_i(s',a')",
        r"\mathcal L_Q=\sum_{i=1}^{2}\mathbb E\left[(Q_i(s,a)-y)^2\right]",
        r"\mathcal L_\pi=-\mathbb E\left[Q_1(s,\pi(s))\right]",
        r"Q'_i\leftarrow\tau Q_i+(1-\tau)Q'_i,\quad\pi'\leftarrow\tau\pi+(1-\tau)\pi'",
    ],
    "deviations": [
        "Experience comes from a data set, not from the policy.",
        "Observations are normalised.",
        "Two hidden layers of 256 and Adam 3e-4, as the authors' later code.",
    ],
}


@dataclass(frozen=True)
class TD3(Method):
    """Offline RL for continuous actions: TD3 with nothing that keeps it near the data."""

    data = Transitions

    discount: float = 0.99
    """Discount of the next step's value, 0 to 1. Paper: 0.99."""
    tau: float = 0.005
    """Step of the target networks towards the trained ones, 0 to 1. Paper: 0.005."""
    policy_noise: float = 0.2
    """Std of the noise on target actions, in half widths of the action range. Paper: 0.2."""
    noise_clip: float = 0.5
    """Bound of that noise, same units. Paper: 0.5."""
    policy_every: int = 2
    """Critic updates to one update of the policy and the targets, >= 1. Paper: 2."""
    reward_scale: float = 1.0
    """Rewards are multiplied by this. Paper: 1."""
    reward_shift: float = 0.0
    """Then this is added. Paper: 0."""
    normalise: bool = True
    """Standardise observations with the data's mean and std + 0.001. Paper: off."""
    hidden: tuple[int, ...] = (256, 256)
    """Widths of the hidden layers of policy and critics. Paper: 400, 300; the authors' code: 256, 256."""
    learning_rate: float = 3e-4
    """Of Adam, for policy and critics. Paper: 1e-3; the authors' code: 3e-4."""
    batch_size: int = 256
    """Transitions an update. Paper: 100; the authors' code: 256."""

    def prepare(self, spec: Spec) -> Spec:
        box(spec.data, "TD3")
        return spec.replace(data=spec.data.to(spec.device))

    def source(self, spec: Spec) -> Uniform:
        return Uniform(spec.data, self.batch_size)

    def learner(self, spec: Spec, rng: Rng) -> TD3Learner:
        return TD3Learner(self, spec.data, rng)


class TD3Learner(Learner):
    """Twin critics and a deterministic actor, with target copies of both."""

    def __init__(self, method: TD3, data: Transitions, rng: Rng):
        self.method = method
        bounds = box(data, "TD3")
        sizes = data.observations.shape[1], bounds.size
        device = data.observations.device
        policy = DeterministicPolicy(sizes[0], bounds.low, bounds.high, method.hidden, rng=rng.at("policy").torch())
        if method.normalise:
            policy.normaliser = Normaliser.fitted(data.observations)
        self.policy = policy.to(device)
        self.critic = EnsembleQ(2, *sizes, method.hidden, rng.at("critic").torch()).to(device)
        self.target_policy, self.target_critic = frozen_copy(self.policy), frozen_copy(self.critic)
        self.policy_optimiser = torch.optim.Adam(self.policy.parameters(), method.learning_rate, fused=True)
        self.critic_optimiser = torch.optim.Adam(self.critic.parameters(), method.learning_rate, fused=True)
        self.updates = 0

    def update(self, batch: Transitions, rng: Rng, micro: int = 1) -> Metrics:
        noise = torch.randn(
            batch.actions.shape, generator=rng.at("noise").torch(batch.actions.device), device=batch.actions.device
        )
        parts = split(batch, micro)
        drawn = list(zip(parts, noise.tensor_split(len(parts))))
        metrics = self.descend(self.critic_optimiser, self.critic_loss, drawn, len(batch))
        self.updates += 1
        if self.updates % self.method.policy_every == 0:
            metrics |= self.improve_policy(parts, len(batch))
            polyak_(self.target_critic, self.critic, self.method.tau)
            polyak_(self.target_policy, self.policy, self.method.tau)
        return metrics

    def critic_loss(self, part: Transitions, noise: Float[Tensor, "B A"]) -> tuple[Tensor, dict[str, Tensor]]:
        """(2) summed over rows and critics."""
        targets = self.targets(part, noise)
        total, _ = ensemble_mse(self.critic(self.policy.normaliser(part.observations), part.actions), targets)
        return total, {"critic_loss": total}

    @torch.no_grad()
    def targets(self, part: Transitions, noise: Float[Tensor, "B A"]) -> Float[Tensor, " B"]:
        """(2) for each row."""
        m, scale = self.method, self.policy.scale
        states = self.policy.normaliser(part.next_observations)
        actions = smoothed_actions(
            self.target_policy(states), noise, m.policy_noise, m.noise_clip, scale.low, scale.high
        )
        rewards = m.reward_scale * part.rewards + m.reward_shift
        return td_target(rewards, part.terminated, self.target_critic(states, actions).amin(0), m.discount)

    def improve_policy(self, parts: list[Transitions], rows: int) -> Metrics:
        """One step on (1)."""
        each, trained = [(part,) for part in parts], list(self.policy.parameters())
        return self.descend(self.policy_optimiser, self.policy_loss, each, rows, trained)

    def policy_loss(self, part: Transitions) -> tuple[Tensor, dict[str, Tensor]]:
        """(1) summed over rows."""
        states = self.policy.normaliser(part.observations)
        total = -self.critic.first(states, self.policy(states)).sum()
        return total, {"actor_loss": total}

    def product(self) -> Product:
        return self.policy
