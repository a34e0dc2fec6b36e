"""IQL: values by expectile regression on recorded actions only, then an advantage-weighted policy.

Kostrikov, Nair, Levine: Offline Reinforcement Learning with Implicit Q-Learning, ICLR 2022, arXiv 2110.06169.

With Q' the smaller of the two target critics, each update takes one step on the sum of

    V:   mean |eta - 1(u < 0)| u^2,          u = Q'(s, a) - V(s),   eta = expectile                 (1)
    Q_i: mean (r + discount V(s') - Q_i(s, a))^2, summed over both                                  (2)
    pi:  - mean min(exp(beta (Q'(s, a) - V(s))), clip) log pi(a | s)                                (3)

and the target critics follow. The policy acts with its mean.

Differs from the official code: the three losses read the parameters from before the update (there, the policy's and
the critics' losses read the V already updated), so that one optimiser step serves all of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from telos.core.errors import TelosError
from telos.core.method import Learner, Method, Metrics, Spec, split, summed
from telos.core.products import Product
from telos.core.rng import Rng
from telos.core.sources import Uniform
from telos.data.records import Transitions
from telos.nets.critics import EnsembleQ, frozen_copy, polyak_
from telos.nets.mlp import MLP
from telos.nets.normaliser import Normaliser
from telos.nets.policies import GaussianPolicy, box
from telos.ops.values import advantage_weights, ensemble_mse, expectile_loss, td_target

if TYPE_CHECKING:
    from jaxtyping import Float

BASELINE = {
    "method": "IQL",
    "title": "Offline Reinforcement Learning with Implicit Q-Learning",
    "reference": "Kostrikov, Nair and Levine, ICLR 2022, arXiv 2110.06169",
    "year": 2021,
    "purpose": ["reward"],
    "product": "Policy",
    "data": "offline transitions",
    "summary": "Expectile regression finds the value of the best recorded actions; the policy imitates those, weighted "
    "by their advantage. No action outside the data is ever evaluated.",
    "equations": [
        r"\mathcal L_V=\mathbb E\left[|\eta-\mathbb 1[u<0]|\,u^2\right],\quad u=\min_{i=1,2}Q'_i(s,a)-V(s)",
        r"y=r+\gamma\,\mathbb 1[s'\text{ not terminal}]\,V(s')",
        r"\mathcal L_Q=\sum_{i=1}^{2}\mathbb E\left[(Q_i(s,a)-y)^2\right]",
        r"\mathcal L_\pi=-\mathbb E\left[\min\left(e^{\beta u},w_{\max}\right)\log\pi(a\mid s)\right]",
        r"Q'_i\leftarrow\tau Q_i+(1-\tau)Q'_i",
    ],
    "deviations": ["The three losses read the parameters from before the update; one optimiser step serves all."],
}


@dataclass(frozen=True)
class IQL(Method):
    """Offline RL for continuous actions that never evaluates an action outside the data."""

    data = Transitions

    expectile: float = 0.7
    """Which expectile of Q(s, .) the value is, 0.5 (mean) to below 1 (maximum). Paper: 0.7; AntMaze 0.9."""
    beta: float = 3.0
    """Inverse temperature of the advantage weights, >= 0 (0: imitation). Paper: 3; AntMaze 10."""
    advantage_clip: float = 100.0
    """Upper bound of the weights. Paper: 100."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """The policy's learning rate over the run: a cosine to 0, or constant. Paper: cosine."""
    discount: float = 0.99
    """Discount of the next step's value, 0 to 1. Paper: 0.99."""
    tau: float = 0.005
    """Step of the target critics towards the trained ones, 0 to 1. Paper: 0.005."""
    reward_scale: float = 1.0
    """Rewards are multiplied by this. Paper: 1000 / (range of returns) for locomotion."""
    reward_shift: float = 0.0
    """Then this is added. Paper: -1 for AntMaze."""
    normalise: bool = False
    """Standardise observations with the data's mean and std + 0.001. Paper: off."""
    hidden: tuple[int, ...] = (256, 256)
    """Widths of the hidden layers of all networks. Paper: 256, 256."""
    learning_rate: float = 3e-4
    """Of Adam, for all networks. Paper: 3e-4."""
    batch_size: int = 256
    """Transitions an update. Paper: 256."""

    def prepare(self, spec: Spec) -> Spec:
        box(spec.data, "IQL")
        if not 0 < self.expectile < 1:
            raise TelosError(
                "IQL: option expectile is out of range", expected="above 0, below 1", got=str(self.expectile)
            )
        return spec.replace(data=spec.data.to(spec.device))

    def source(self, spec: Spec) -> Uniform:
        return Uniform(spec.data, self.batch_size)

    def learner(self, spec: Spec, rng: Rng) -> IQLLearner:
        return IQLLearner(self, spec.data, spec.steps, rng)


def policy_loss(
    log_probs: Float[Tensor, " B"], advantages: Float[Tensor, " B"], beta: float, clip: float
) -> tuple[Float[Tensor, ""], int]:
    """(3) summed over rows, and their number; no gradient reaches the advantages."""
    return -(advantage_weights(advantages.detach(), beta, clip) * log_probs).sum(), len(log_probs)


class IQLLearner(Learner):
    """Twin critics with target copies, a value and a Gaussian policy, under one optimiser."""

    constant = ("steps",)

    def __init__(self, method: IQL, data: Transitions, steps: int, rng: Rng):
        self.method, self.steps, self.updates = method, steps, 0
        bounds = box(data, "IQL")
        size, device = data.observations.shape[1], data.observations.device
        policy = GaussianPolicy(size, bounds.low, bounds.high, method.hidden, rng=rng.at("policy").torch())
        if method.normalise:
            policy.normaliser = Normaliser.fitted(data.observations)
        self.policy = policy.to(device)
        self.critic = EnsembleQ(2, size, bounds.size, method.hidden, rng.at("critic").torch()).to(device)
        self.value = MLP((size, *method.hidden, 1), rng.at("value").torch()).to(device)
        self.target_critic = frozen_copy(self.critic)
        values = [*self.critic.parameters(), *self.value.parameters()]
        self.optimiser = torch.optim.Adam(
            [{"params": values}, {"params": list(self.policy.parameters())}], method.learning_rate, fused=True
        )

    def update(self, batch: Transitions, rng: Rng, micro: int = 1) -> Metrics:
        if self.method.schedule == "cosine":
            rate = 0.5 * self.method.learning_rate * (1 + math.cos(math.pi * self.updates / max(1, self.steps)))
            self.optimiser.param_groups[1]["lr"] = rate
        parts = [(part,) for part in split(batch, micro)]
        metrics = self.descend(self.optimiser, lambda part: summed(self.losses(part)), parts, len(batch))
        polyak_(self.target_critic, self.critic, self.method.tau)
        self.updates += 1
        return metrics

    def losses(self, part: Transitions) -> dict[str, Float[Tensor, ""]]:
        """(1), (2) and (3), each summed over rows."""
        m = self.method
        states = self.policy.normaliser(part.observations)
        with torch.no_grad():
            next_values = self.value(self.policy.normaliser(part.next_observations)).squeeze(-1)
            targets = td_target(
                m.reward_scale * part.rewards + m.reward_shift, part.terminated, next_values, m.discount
            )
            recorded = self.target_critic(states, part.actions).amin(0)
        advantages = recorded - self.value(states).squeeze(-1)
        log_probs = self.policy.log_likelihood(states, part.actions)
        return {
            "value_loss": expectile_loss(advantages, m.expectile)[0],
            "critic_loss": ensemble_mse(self.critic(states, part.actions), targets)[0],
            "policy_loss": policy_loss(log_probs, advantages, m.beta, m.advantage_clip)[0],
        }

    def product(self) -> Product:
        return self.policy
