"""SAC: twin critics and a stochastic policy that also maximises its entropy, from its own steps or from recorded ones.

Haarnoja, Zhou, Abbeel, Levine: Soft Actor-Critic: Off-Policy Maximum Entropy Deep Reinforcement Learning with a
Stochastic Actor, ICML 2018, arXiv 1801.01290. The temperature: Haarnoja et al.: Soft Actor-Critic Algorithms and
Applications, 2018, arXiv 1812.05905.

With a' drawn from pi(. | s') and b from pi(. | s), each update takes a step on the critics, and then on the others,

    Q_i:  mean (r + discount * (min_i Q_i'(s', a') - eta log pi(a' | s')) - Q_i(s, a))^2, both summed  (1)
    pi:   mean (eta log pi(b | s) - min_i Q_i(s, b))                                                   (2)
    eta:  - log eta * mean (log pi(b | s) + target_entropy)                                            (3)

The second term of (1) is left out where the task itself ended, and there only: a time limit does not end it. Densities
are those of actions scaled to [-1, 1]. Given an environment, experience is the policy's own; given transitions, it is
theirs, and nothing keeps the policy near them. Environments begin anew where a checkpoint is due, so `checkpoint_every`
is part of an online run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from telos.core.errors import TelosError
from telos.core.interaction import Interaction
from telos.core.method import Learner, Method, Metrics, Source, Spec, split
from telos.core.products import Product
from telos.core.rng import Rng
from telos.core.sources import Uniform
from telos.data.records import Transitions
from telos.nets.critics import EnsembleQ, frozen_copy, polyak_
from telos.nets.policies import box
from telos.nets.squashed import SquashedGaussianPolicy
from telos.ops.values import ensemble_mse, td_target

if TYPE_CHECKING:
    from jaxtyping import Float

BASELINE = {
    "method": "SAC",
    "title": "Soft Actor-Critic: Off-Policy Maximum Entropy Deep Reinforcement Learning with a Stochastic Actor",
    "reference": "Haarnoja, Zhou, Abbeel and Levine, ICML 2018, arXiv 1801.01290; temperature: arXiv 1812.05905",
    "year": 2018,
    "purpose": ["reward"],
    "product": "Policy",
    "data": "environment",
    "summary": "Twin critics and a stochastic policy that maximises reward and entropy learn from the policy's own "
    "steps, with a temperature that holds the entropy at a target.",
    "equations": [
        r"a'\sim\pi(\cdot\mid s'),\quad b\sim\pi(\cdot\mid s)",
        r"y=r+\gamma\,\mathbb 1[s'\text{ not terminal}]\left(\min_{i=1,2}Q'_i(s',a')-\eta\log\pi(a'\mid s')\right)",
        r"\mathcal L_Q=\sum_{i=1}^{2}\mathbb E\left[(Q_i(s,a)-y)^2\right]",
        r"\mathcal L_\pi=\mathbb E\left[\eta\log\pi(b\mid s)-\min_{i=1,2}Q_i(s,b)\right]",
        r"\mathcal L_\eta=-\log\eta\,\mathbb E\left[\log\pi(b\mid s)+\bar H\right]",
        r"Q'_i\leftarrow\tau Q_i+(1-\tau)Q'_i",
    ],
    "deviations": ["Two critics and no separate value of states, as the later paper."],
}


@dataclass(frozen=True)
class SAC(Method):
    """RL for continuous actions from a replay memory of the policy's own steps; or of recorded ones, if data are given.

    Given: env (a registered name, or a function that makes an environment), unless there are data.
    """

    accepts: ClassVar[tuple[type, ...]] = (Transitions,)
    takes: ClassVar[tuple[str, ...]] = ("env",)

    target_entropy: float | None = None
    """Of the policy, in actions scaled to [-1, 1]; None: minus the number of their dimensions. Paper: that."""
    temperature: float = 1.0
    """eta at the start, > 0. Repository: 1."""
    train_temperature: bool = True
    """Whether (3) moves it; else it stays. Paper: on."""
    discount: float = 0.99
    """Discount of the next step's value, 0 to 1. Paper: 0.99."""
    tau: float = 0.005
    """Step of the target critics towards the trained ones, 0 to 1. Paper: 0.005."""
    reward_scale: float = 1.0
    """Rewards are multiplied by this. Paper: 1, with a trained temperature."""
    reward_shift: float = 0.0
    """Then this is added. Paper: 0."""
    hidden: tuple[int, ...] = (256, 256)
    """Widths of the hidden layers of policy and critics. Paper: 256, 256."""
    learning_rate: float = 3e-4
    """Of Adam, for policy, critics and temperature. Paper: 3e-4."""
    batch_size: int = 256
    """Transitions an update. Paper: 256."""
    environments: int = 1
    """Copies of the environment that are stepped together. Paper: 1."""
    steps_per_update: int = 1
    """Steps of every copy before each update. Paper: 1."""
    warmup: int = 1_000
    """Transitions with uniform actions before the first update. Repository: 1,000."""
    capacity: int = 1_000_000
    """Transitions that are kept. Paper: 1e6."""

    def prepare(self, spec: Spec) -> Spec:
        if self.temperature <= 0:
            raise TelosError("SAC: option temperature is out of range", expected="above 0", got=str(self.temperature))
        if isinstance(spec.data, Transitions):
            box(spec.data, "SAC")
            return spec.replace(data=Uniform(spec.data.to(spec.device), self.batch_size))
        env: Any = spec.need("env", "the environment to learn in, or recorded transitions as data")
        own = Interaction(
            env, spec.rng.at("environment"), batch_size=self.batch_size, capacity=self.capacity, warmup=self.warmup,
            environments=self.environments, steps=self.steps_per_update, device=spec.device,
        )  # fmt: skip
        box(own.memory, "SAC")
        return spec.replace(data=own)

    def source(self, spec: Spec) -> Source:
        return spec.data

    def learner(self, spec: Spec, rng: Rng) -> SACLearner:
        memory = spec.data.memory if isinstance(spec.data, Interaction) else spec.data.data
        bounds, weights = box(memory, "SAC"), rng.at("policy").torch()
        policy = SquashedGaussianPolicy(memory.observations.shape[1], bounds.low, bounds.high, self.hidden, rng=weights)
        return SACLearner(self, policy.to(memory.observations.device), rng)


class SACLearner(Learner):
    """Twin critics with target copies, a squashed Gaussian policy and its temperature."""

    constant = ("target_entropy",)

    def __init__(self, method: SAC, policy: SquashedGaussianPolicy, rng: Rng):
        self.method, self.policy = method, policy
        mean, size = policy.normaliser.mean, len(policy.low)
        self.target_entropy = -float(size) if method.target_entropy is None else method.target_entropy
        self.critic = EnsembleQ(2, len(mean), size, method.hidden, rng.at("critic").torch()).to(mean.device)
        self.target_critic = frozen_copy(self.critic)
        self.log_temperature = torch.tensor(method.temperature, device=mean.device).log().requires_grad_()
        trained = [self.log_temperature] if method.train_temperature else []
        self.policy_optimiser = torch.optim.Adam([*policy.parameters(), *trained], method.learning_rate, fused=True)
        self.critic_optimiser = torch.optim.Adam(self.critic.parameters(), method.learning_rate, fused=True)

    def update(self, batch: Transitions, rng: Rng, micro: int = 1) -> Metrics:
        device = batch.actions.device
        noise = torch.randn((2, *batch.actions.shape), generator=rng.at("actions").torch(device), device=device)
        parts = split(batch, micro)
        following, own = (drawn.tensor_split(len(parts)) for drawn in noise)
        metrics = self.descend(self.critic_optimiser, self.critic_loss, list(zip(parts, following)), len(batch))
        metrics |= self.improve_policy(parts, own, len(batch))
        polyak_(self.target_critic, self.critic, self.method.tau)
        return metrics

    def critic_loss(self, part: Transitions, noise: Float[Tensor, "B A"]) -> tuple[Tensor, dict[str, Tensor]]:
        """(1) summed over rows and critics."""
        total, _ = ensemble_mse(self.critic(part.observations, part.actions), self.targets(part, noise))
        return total, {"critic_loss": total}

    @torch.no_grad()
    def targets(self, part: Transitions, noise: Float[Tensor, "B A"]) -> Float[Tensor, " B"]:
        """r + discount * the soft value of s' for each row."""
        m, states = self.method, part.next_observations
        actions, log_probs = self.policy.draw(states, noise[None])
        soft_values = self.target_critic(states, actions[0]).amin(0) - self.log_temperature.exp() * log_probs[0]
        return td_target(m.reward_scale * part.rewards + m.reward_shift, part.terminated, soft_values, m.discount)

    def improve_policy(self, parts: list[Transitions], noises: Sequence[Tensor], rows: int) -> Metrics:
        """One step on (2) and (3)."""
        trained = [*self.policy.parameters(), self.log_temperature]
        return self.descend(self.policy_optimiser, self.policy_loss, list(zip(parts, noises)), rows, trained)

    def policy_loss(self, part: Transitions, noise: Float[Tensor, "B A"]) -> tuple[Tensor, dict[str, Tensor]]:
        """(2) and (3) summed over rows."""
        states = part.observations
        actions, log_probs = self.policy.draw(states, noise[None])
        values = self.critic(states, actions[0]).amin(0)
        loss = (self.log_temperature.detach().exp() * log_probs[0] - values).sum()
        temperature_loss = -(self.log_temperature * (log_probs[0].detach() + self.target_entropy)).sum()
        sums = {"policy_loss": loss, "temperature_loss": temperature_loss, "entropy": -log_probs.sum()}
        return loss + temperature_loss, sums

    def product(self) -> Product:
        return self.policy
