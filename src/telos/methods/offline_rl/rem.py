"""REM: Q-learning of many heads at once, each update by another random mixture of them.

Agarwal, Schuurmans, Norouzi: An Optimistic Perspective on Offline Reinforcement Learning, ICML 2020, arXiv 1907.04543.

Each update draws weights w_k >= 0 that add up to 1, by normalising uniform numbers, and takes one step on DQN's loss of
the mixture Q_w = sum over k of w_k Q_k, with the same mixture of the heads' slow copies,

    mean H(r + discount * Q_w'(s', a') - Q_w(s, a)),    a' = argmax Q_w(s', .)  (double)  or  argmax Q_w'(s', .)   (1)

with H the Huber loss, and Q' becomes Q every `target_every` updates. The policy takes the argmax of the heads' mean.
One head is DQN, and so are heads that are all equal.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor
from torch.nn.functional import huber_loss

from telos.core.errors import TelosError
from telos.core.method import Learner, Method, Metrics, Spec, split
from telos.core.products import Product
from telos.core.rng import Rng
from telos.core.sources import Uniform
from telos.data.records import Transitions
from telos.nets.critics import frozen_copy
from telos.nets.normaliser import Normaliser
from telos.nets.q_policies import QPolicy, discrete
from telos.ops.q_learning import chosen_values, convex_weights, mixture, of_actions
from telos.ops.values import td_target

if TYPE_CHECKING:
    from jaxtyping import Float

BASELINE = {
    "method": "REM",
    "title": "An Optimistic Perspective on Offline Reinforcement Learning",
    "reference": "Agarwal, Schuurmans and Norouzi, ICML 2020, arXiv 1907.04543",
    "year": 2019,
    "purpose": ["reward"],
    "product": "Policy",
    "data": "offline transitions",
    "summary": "Q-learning for discrete actions with many heads, which must satisfy the Bellman equation in every "
    "random mixture; their mean acts.",
    "equations": [
        r"w_k=\frac{u_k}{\sum_{l=1}^{K}u_l},\quad u_k\sim U(0,1),\quad Q_w(s,a)=\sum_{k=1}^{K}w_kQ_k(s,a)",
        r"a'=\operatorname{argmax}_{b}Q_w(s',b)",
        r"y=r+\gamma\,\mathbb 1[s'\text{ not terminal}]\,Q'_w(s',a')",
        r"\mathcal L_Q=\mathbb E\left[H_{\delta}(Q_w(s,a)-y)\right]",
        r"Q'\leftarrow Q\text{ every }N\text{ updates}",
    ],
    "deviations": [
        "The trained network chooses the next action (as Double DQN), as in Schweighofer et al., arXiv 2111.04714; "
        "there each network draws a mixture of its own, here all share one, as in the paper.",
        "Vectors are observed, not images: hidden layers with SELU and short target periods, as Schweighofer et al.",
    ],
}


@dataclass(frozen=True)
class REM(Method):
    """Random ensemble mixtures of action values, from recorded transitions with discrete actions."""

    data = Transitions

    heads: int = 200
    """K, values of each action, >= 1. Paper: 200."""
    double: bool = True
    """Whether the trained network chooses the next action and its copy only values it. Paper: off."""
    discount: float = 0.99
    """Discount of the next step's value, 0 to 1. Paper: 0.99."""
    target_every: int = 100
    """Updates between copies of the network for the targets, >= 1. As Schweighofer et al.; paper: 2,000."""
    huber: float = 1.0
    """Where the loss turns from a parabola to a line, > 0. Paper: 1."""
    reward_scale: float = 1.0
    """Rewards are multiplied by this. Paper: 1, after clipping to [-1, 1]."""
    reward_shift: float = 0.0
    """Then this is added. Paper: 0."""
    normalise: bool = False
    """Standardise observations with the data's mean and std + 0.001. Paper: off."""
    hidden: tuple[int, ...] = (256, 256, 256)
    """Widths of the hidden layers, which the heads share. As Schweighofer et al."""
    activation: Literal["relu", "selu", "tanh"] = "selu"
    """Between layers. As Schweighofer et al.; paper: relu."""
    learning_rate: float = 1e-4
    """Of Adam. As Schweighofer et al.; paper: 5e-5."""
    batch_size: int = 128
    """Transitions an update. As Schweighofer et al.; paper: 32."""

    def prepare(self, spec: Spec) -> Spec:
        discrete(spec.data, "REM")
        if self.heads < 1:
            raise TelosError("REM: option heads is out of range", expected="1 or more", got=str(self.heads))
        return spec.replace(data=spec.data.to(spec.device))

    def source(self, spec: Spec) -> Uniform:
        return Uniform(spec.data, self.batch_size)

    def learner(self, spec: Spec, rng: Rng) -> REMLearner:
        return REMLearner(self, spec.data, rng)


class REMLearner(Learner):
    """A network with heads, and the copy that its targets are computed from."""

    def __init__(self, method: REM, data: Transitions, rng: Rng):
        self.method, self.updates = method, 0
        size, actions, weights = data.observations.shape[1], data.action_space.size, rng.at("values").torch()
        policy = QPolicy(size, actions, method.hidden, method.activation, heads=method.heads, rng=weights)
        if method.normalise:
            policy.normaliser = Normaliser.fitted(data.observations)
        self.policy = policy.to(data.observations.device)
        self.target = frozen_copy(self.policy.net)
        self.optimiser = torch.optim.Adam(self.policy.parameters(), method.learning_rate, fused=True)

    def update(self, batch: Transitions, rng: Rng, micro: int = 1) -> Metrics:
        device = batch.rewards.device
        uniform = torch.rand(self.method.heads, generator=rng.at("mixture").torch(device), device=device)
        weights = convex_weights(uniform)
        parts = [(part, weights) for part in split(batch, micro)]
        metrics = self.descend(self.optimiser, self.loss, parts, len(batch))
        self.updates += 1
        if self.updates % self.method.target_every == 0:
            self.target.load_state_dict(self.policy.net.state_dict())
        return metrics

    def mixed(self, net: torch.nn.Module, states: Float[Tensor, "B O"], weights: Tensor) -> Float[Tensor, "B K"]:
        """The mixture of a network's heads with weights (heads,)."""
        return mixture(self.policy.head_values(net(states)), weights)

    def loss(self, part: Transitions, weights: Float[Tensor, " heads"]) -> tuple[Tensor, dict[str, Tensor]]:
        """(1) summed over rows."""
        values = self.mixed(self.policy.net, self.policy.normaliser(part.observations), weights)
        recorded = of_actions(values, part.actions)
        loss = huber_loss(recorded, self.targets(part, weights), reduction="sum", delta=self.method.huber)
        return loss, {"loss": loss}

    @torch.no_grad()
    def targets(self, part: Transitions, weights: Float[Tensor, " heads"]) -> Float[Tensor, " B"]:
        """r + discount * Q_w'(s', a') for each row."""
        m, states = self.method, self.policy.normaliser(part.next_observations)
        values = self.mixed(self.target, states, weights)
        next_values = chosen_values(values, self.mixed(self.policy.net, states, weights) if m.double else values)
        return td_target(m.reward_scale * part.rewards + m.reward_shift, part.terminated, next_values, m.discount)

    def product(self) -> Product:
        return self.policy
