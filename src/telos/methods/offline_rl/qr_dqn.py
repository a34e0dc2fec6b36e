"""QR-DQN: Q-learning of the returns' distributions, as quantiles at fixed levels; the policy reads their means.

Dabney, Rowland, Bellemare, Munos: Distributional Reinforcement Learning with Quantile Regression, AAAI 2018,
arXiv 1710.10044.

With N quantiles q_1..q_N of each action at the levels t_i = (i - 1/2) / N, and Q(s, a) their mean, each update takes
one step on the mean over rows of

    sum over i, mean over j of |t_i - 1(u < 0)| H(u),    u = r + discount * q_j'(s', a') - q_i(s, a)          (1)
    a' = argmax Q(s', .)  (double)  or  argmax Q'(s', .)

with H the Huber loss, and q' becomes q every `target_every` updates. The policy takes argmax Q(s, .).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from telos.core.errors import TelosError
from telos.core.method import Learner, Method, Metrics, Spec, split
from telos.core.products import Product
from telos.core.rng import Rng
from telos.core.sources import Uniform
from telos.data.records import Transitions
from telos.nets.critics import frozen_copy
from telos.nets.normaliser import Normaliser
from telos.nets.q_policies import QPolicy, discrete
from telos.ops.q_learning import of_action_heads, quantile_huber, quantile_levels

if TYPE_CHECKING:
    from jaxtyping import Float

BASELINE = {
    "method": "QR-DQN",
    "title": "Distributional Reinforcement Learning with Quantile Regression",
    "reference": "Dabney, Rowland, Bellemare and Munos, AAAI 2018, arXiv 1710.10044",
    "year": 2017,
    "purpose": ["reward"],
    "product": "Policy",
    "data": "offline transitions",
    "summary": "Q-learning for discrete actions that learns quantiles of the return by quantile regression and acts by "
    "their mean, here from recorded transitions.",
    "equations": [
        r"\tau_i=\frac{2i-1}{2N},\quad Q(s,a)=\frac1N\sum_{i=1}^{N}q_i(s,a)",
        r"a'=\operatorname{argmax}_{b}Q(s',b)",
        r"u_{ij}=r+\gamma\,\mathbb 1[s'\text{ not terminal}]\,q'_j(s',a')-q_i(s,a)",
        r"\mathcal L_q=\mathbb E\left[\sum_{i=1}^{N}\frac1N\sum_{j=1}^{N}"
        r"\left|\tau_i-\mathbb 1[u_{ij}<0]\right|H_{\delta}(u_{ij})\right]",
        r"q'\leftarrow q\text{ every }N\text{ updates}",
    ],
    "deviations": [
        "Experience comes from a data set, not from the policy.",
        "The trained network chooses the next action (as Double DQN), as in Schweighofer et al., arXiv 2111.04714; "
        "their levels are i / N, here they are the paper's.",
        "Vectors are observed, not images: hidden layers with SELU and short target periods, as Schweighofer et al.",
    ],
}


@dataclass(frozen=True)
class QRDQN(Method):
    """Quantile regression of returns from recorded transitions with discrete actions."""

    data = Transitions

    quantiles: int = 50
    """N, of each action, >= 1. As Schweighofer et al.; paper: 200."""
    double: bool = True
    """Whether the trained network chooses the next action and its copy only values it. Paper: off."""
    discount: float = 0.99
    """Discount of the next step's quantiles, 0 to 1. Paper: 0.99."""
    target_every: int = 100
    """Updates between copies of the network for the targets, >= 1. As Schweighofer et al.; paper: 10,000."""
    huber: float = 1.0
    """Where H turns from a parabola to a line, > 0; towards 0 it is plain quantile regression. Paper: 1 and 0."""
    reward_scale: float = 1.0
    """Rewards are multiplied by this. Paper: 1, after clipping to [-1, 1]."""
    reward_shift: float = 0.0
    """Then this is added. Paper: 0."""
    normalise: bool = False
    """Standardise observations with the data's mean and std + 0.001. Paper: off."""
    hidden: tuple[int, ...] = (256, 256, 256)
    """Widths of the hidden layers. As Schweighofer et al."""
    activation: Literal["relu", "selu", "tanh"] = "selu"
    """Between layers. As Schweighofer et al.; paper: relu."""
    learning_rate: float = 1e-4
    """Of Adam. As Schweighofer et al.; paper: 5e-5."""
    batch_size: int = 128
    """Transitions an update. As Schweighofer et al.; paper: 32."""

    def prepare(self, spec: Spec) -> Spec:
        discrete(spec.data, "QR-DQN")
        if self.quantiles < 1:
            raise TelosError("QR-DQN: option quantiles is out of range", expected="1 or more", got=str(self.quantiles))
        return spec.replace(data=spec.data.to(spec.device))

    def source(self, spec: Spec) -> Uniform:
        return Uniform(spec.data, self.batch_size)

    def learner(self, spec: Spec, rng: Rng) -> QRDQNLearner:
        return QRDQNLearner(self, spec.data, rng)


class QRDQNLearner(Learner):
    """A network of quantiles, and the copy that its targets are computed from."""

    constant = ("levels",)

    def __init__(self, method: QRDQN, data: Transitions, rng: Rng):
        self.method, self.updates = method, 0
        size, actions, weights = data.observations.shape[1], data.action_space.size, rng.at("values").torch()
        policy = QPolicy(size, actions, method.hidden, method.activation, heads=method.quantiles, rng=weights)
        if method.normalise:
            policy.normaliser = Normaliser.fitted(data.observations)
        self.policy = policy.to(data.observations.device)
        self.target = frozen_copy(self.policy.net)
        self.levels = quantile_levels(method.quantiles, data.observations.device)
        self.optimiser = torch.optim.Adam(self.policy.parameters(), method.learning_rate, fused=True)

    def update(self, batch: Transitions, rng: Rng, micro: int = 1) -> Metrics:
        parts = [(part,) for part in split(batch, micro)]
        metrics = self.descend(self.optimiser, self.loss, parts, len(batch))
        self.updates += 1
        if self.updates % self.method.target_every == 0:
            self.target.load_state_dict(self.policy.net.state_dict())
        return metrics

    def loss(self, part: Transitions) -> tuple[Tensor, dict[str, Tensor]]:
        """(1) summed over rows."""
        quantiles = self.policy.head_values(self.policy.net(self.policy.normaliser(part.observations)))
        recorded = of_action_heads(quantiles, part.actions)
        loss, _ = quantile_huber(recorded, self.targets(part), self.levels, self.method.huber)
        return loss, {"loss": loss}

    @torch.no_grad()
    def targets(self, part: Transitions) -> Float[Tensor, "B N"]:
        """r + discount * q_j'(s', a') for each row."""
        m, states = self.method, self.policy.normaliser(part.next_observations)
        quantiles = self.policy.head_values(self.target(states))
        values = self.policy(states) if m.double else quantiles.mean(1)
        following = of_action_heads(quantiles, values.argmax(-1))
        rewards = m.reward_scale * part.rewards + m.reward_shift
        return rewards[:, None] + m.discount * torch.where(part.terminated[:, None], 0.0, following)

    def product(self) -> Product:
        return self.policy
