"""TD3+BC: TD3 with a squared distance to the recorded action, a minimalist approach to offline RL.

Fujimoto, Gu: A Minimalist Approach to Offline Reinforcement Learning, NeurIPS 2021, arXiv 2106.06860.

The actor minimises, every `policy_every` updates, with lambda = alpha / mean |Q_1(s, pi(s))| held constant,

    - lambda mean Q_1(s, pi(s)) + mean (pi(s) - a)^2                                                (1)

with a the action recorded at s. Critics: TD3's, every update,

    r + discount * min_i Q_i'(s', clip(pi'(s') + clip(noise)))   for both heads, squared error      (2)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from telos.core.errors import TelosError
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
    "method": "TD3+BC",
    "title": "A Minimalist Approach to Offline Reinforcement Learning",
    "reference": "Fujimoto and Gu, NeurIPS 2021, arXiv 2106.06860",
    "year": 2021,
    "purpose": ["reward"],
    "product": "Policy",
    "data": "offline transitions",
    "summary": "TD3 with a penalty on the squared distance to the action recorded at each state.",
    "equations": [
        r"a'=\operatorname{clip}\left(\pi'(s')+\operatorname{clip}(\epsilon,-c,c),a_{\min},a_{\max}\right),\quad"
        r"\epsilon\sim\mathcal N(0,\sigma^2)",
        r"y=r+\gamma\,\mathbb 1[s'\text{ not terminal}]\,\min_{i=1,2}Q'_i(s',a')",
        r"\mathcal L_Q=\sum_{i=1}^{2}\mathbb E\left[(Q_i(s,a)-y)^2\right]",
        r"\mathcal L_\pi=-\lambda\,\mathbb E\left[Q_1(s,\pi(s))\right]+\mathbb E\left[(\pi(s)-a)^2\right],\quad"
        r"\lambda=\frac{\alpha}{\mathbb E\left[|Q_1(s,\pi(s))|\right]}",
        r"Q'_i\leftarrow\tau Q_i+(1-\tau)Q'_i,\quad\pi'\leftarrow\tau\pi+(1-\tau)\pi'",
    ],
    "deviations": [],
}


@dataclass(frozen=True)
class TD3BC(Method):
    """Offline RL for continuous actions: TD3 with a penalty on the distance to the recorded action."""

    data = Transitions

    alpha: float = 2.5
    """Weight of the value against the penalty, > 0. Paper: 2.5."""
    rescale_actions: bool = False
    """Measure action distances with every dimension scaled to [-1, 1]; without it in raw units, as the code."""
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
    """Standardise observations with the data's mean and std + 0.001. Paper: on."""
    hidden: tuple[int, ...] = (256, 256)
    """Widths of the hidden layers of policy and critics. Paper: 256, 256."""
    learning_rate: float = 3e-4
    """Of Adam, for policy and critics. Paper: 3e-4."""
    batch_size: int = 256
    """Transitions an update. Paper: 256."""

    def prepare(self, spec: Spec) -> Spec:
        box(spec.data, "TD3+BC")
        if self.alpha <= 0:
            raise TelosError("TD3+BC: option alpha must be positive", got=str(self.alpha))
        return spec.replace(data=spec.data.to(spec.device))

    def source(self, spec: Spec) -> Uniform:
        return Uniform(spec.data, self.batch_size)

    def learner(self, spec: Spec, rng: Rng) -> TD3BCLearner:
        return TD3BCLearner(self, spec.data, rng)


def actor_loss(
    q: Float[Tensor, " B"],
    actions: Float[Tensor, "B A"],
    recorded: Float[Tensor, "B A"],
    q_weight: Float[Tensor, ""],
    unit: Float[Tensor, " A"],
) -> tuple[Float[Tensor, ""], Float[Tensor, ""], int]:
    """(1) as sums over rows, and their number: the loss, and the penalty in it. `q_weight` is lambda."""
    penalty = ((actions - recorded) / unit).square().mean(-1).sum()
    return -q_weight * q.sum() + penalty, penalty, len(q)


class TD3BCLearner(Learner):
    """Twin critics and a deterministic actor, with target copies of both."""

    constant = ("unit",)

    def __init__(self, method: TD3BC, data: Transitions, rng: Rng):
        self.method = method
        bounds = box(data, "TD3+BC")
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
        half = self.policy.scale.half_width
        self.unit = half.clone() if method.rescale_actions else torch.ones_like(half)

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
        """One step on (1). Lambda is a statistic of the whole batch: in parts, a first pass finds it."""
        mean_abs_q = None
        if len(parts) > 1:
            with torch.no_grad():
                mean_abs_q = torch.stack([self.value(part)[0].abs().sum() for part in parts]).sum() / rows
        trained = list(self.policy.parameters())
        each = [(part, mean_abs_q) for part in parts]
        return self.descend(self.policy_optimiser, self.policy_loss, each, rows, trained)

    def policy_loss(self, part: Transitions, mean_abs_q: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
        """(1) summed over rows; without `mean_abs_q` that of this part."""
        q, actions = self.value(part)
        magnitude = q.detach().abs().mean() if mean_abs_q is None else mean_abs_q
        loss, penalty, _ = actor_loss(q, actions, part.actions, self.method.alpha / magnitude, self.unit)
        return loss, {"actor_loss": loss, "penalty": penalty, "q": q.sum()}

    def value(self, part: Transitions) -> tuple[Tensor, Tensor]:
        """Q_1(s, pi(s)) and pi(s)."""
        states = self.policy.normaliser(part.observations)
        actions = self.policy(states)
        return self.critic.first(states, actions), actions

    def product(self) -> Product:
        return self.policy
