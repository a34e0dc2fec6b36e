"""DQN: Q-learning with a neural network and a slow copy of it, here on a fixed data set; Double DQN by default.

Mnih et al.: Human-level control through deep reinforcement learning, Nature 2015.
van Hasselt, Guez, Silver: Deep Reinforcement Learning with Double Q-learning, AAAI 2016, arXiv 1509.06461.

Each update takes one step on

    mean H(r + discount * Q'(s', a') - Q(s, a)),    a' = argmax Q(s', .)  (double)  or  argmax Q'(s', .)      (1)

with H the Huber loss, and Q' becomes Q every `target_every` updates. The policy takes argmax Q(s, .).

Differs from the papers: experience comes from a data set and not from the policy; nothing keeps the policy near the
data.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor
from torch.nn.functional import huber_loss

from telos.core.method import Learner, Method, Metrics, Spec, split
from telos.core.products import Product
from telos.core.rng import Rng
from telos.core.sources import Uniform
from telos.data.records import Transitions
from telos.nets.critics import frozen_copy
from telos.nets.normaliser import Normaliser
from telos.nets.q_policies import QPolicy, discrete
from telos.ops.q_learning import chosen_values, of_actions
from telos.ops.values import td_target

if TYPE_CHECKING:
    from jaxtyping import Float

BASELINE = {
    "method": "DQN",
    "title": "Human-level control through deep reinforcement learning",
    "reference": "Mnih et al., Nature 2015; Double DQN: van Hasselt, Guez and Silver, AAAI 2016, arXiv 1509.06461",
    "year": 2015,
    "purpose": ["reward"],
    "product": "Policy",
    "data": "offline transitions",
    "summary": "Q-learning for discrete actions on recorded transitions, with a slow copy for its targets; nothing "
    "keeps its policy near the data.",
    "equations": [
        r"a'=\operatorname{argmax}_{b}Q(s',b)",
        r"y=r+\gamma\,\mathbb 1[s'\text{ not terminal}]\,Q'(s',a')",
        r"\mathcal L_Q=\mathbb E\left[H_{\delta}(Q(s,a)-y)\right]",
        r"Q'\leftarrow Q\text{ every }N\text{ updates}",
    ],
    "deviations": [
        "Experience comes from a data set, not from the policy.",
        "Vectors are observed, not images: hidden layers with SELU, Adam and short target periods, as in Schweighofer "
        "et al., arXiv 2111.04714.",
    ],
}


@dataclass(frozen=True)
class DQN(Method):
    """Q-learning from recorded transitions with discrete actions."""

    data = Transitions

    double: bool = True
    """Whether the trained network chooses the next action and its copy only values it (Double DQN)."""
    discount: float = 0.99
    """Discount of the next step's value, 0 to 1. Paper: 0.99."""
    target_every: int = 100
    """Updates between copies of the network for the targets, >= 1. As Schweighofer et al.; paper: 10,000."""
    huber: float = 1.0
    """Where the loss turns from a parabola to a line, > 0. Paper: 1."""
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
    """Of Adam. As Schweighofer et al.; paper: 2.5e-4, RMSProp."""
    batch_size: int = 128
    """Transitions an update. As Schweighofer et al.; paper: 32."""

    def prepare(self, spec: Spec) -> Spec:
        discrete(spec.data, "DQN")
        return spec.replace(data=spec.data.to(spec.device))

    def source(self, spec: Spec) -> Uniform:
        return Uniform(spec.data, self.batch_size)

    def learner(self, spec: Spec, rng: Rng) -> DQNLearner:
        return DQNLearner(self, spec.data, rng)


class DQNLearner(Learner):
    """A network of action values, and the copy that its targets are computed from."""

    def __init__(self, method: DQN, data: Transitions, rng: Rng):
        self.method, self.updates = method, 0
        size, actions = data.observations.shape[1], discrete(data, "DQN").size
        policy = QPolicy(size, actions, method.hidden, method.activation, rng=rng.at("values").torch())
        if method.normalise:
            policy.normaliser = Normaliser.fitted(data.observations)
        self.policy = policy.to(data.observations.device)
        self.target = frozen_copy(self.policy.net)
        self.optimiser = torch.optim.Adam(self.policy.parameters(), method.learning_rate, fused=True)

    def update(self, batch: Transitions, rng: Rng, micro: int = 1) -> Metrics:
        loss = 0.0
        self.optimiser.zero_grad()
        for part in split(batch, micro):
            total = self.loss(part)
            (total / len(batch)).backward()
            loss = loss + total.detach() / len(batch)
        self.optimiser.step()
        self.updates += 1
        if self.updates % self.method.target_every == 0:
            self.target.load_state_dict(self.policy.net.state_dict())
        return {"loss": loss}

    def loss(self, part: Transitions) -> Float[Tensor, ""]:
        """(1) summed over rows."""
        values = of_actions(self.policy(self.policy.normaliser(part.observations)), part.actions)
        return huber_loss(values, self.targets(part), reduction="sum", delta=self.method.huber)

    @torch.no_grad()
    def targets(self, part: Transitions) -> Float[Tensor, " B"]:
        """r + discount * Q'(s', a') for each row."""
        m, states = self.method, self.policy.normaliser(part.next_observations)
        values = self.target(states)
        next_values = chosen_values(values, self.policy(states) if m.double else values)
        return td_target(m.reward_scale * part.rewards + m.reward_shift, part.terminated, next_values, m.discount)

    def product(self) -> Product:
        return self.policy
