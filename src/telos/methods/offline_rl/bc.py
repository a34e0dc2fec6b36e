"""BC: behaviour cloning, the policy that does what the data did.

Pomerleau: Efficient Training of Artificial Neural Networks for Autonomous Navigation, Neural Computation 1991.

    deterministic:  mean (pi(s) - a)^2        gaussian, and discrete actions:  - mean log pi(a | s)     (1)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from telos.core.method import Learner, Method, Metrics, Spec, split
from telos.core.products import Product
from telos.core.rng import Rng
from telos.core.sources import Uniform
from telos.data.records import Discrete, Transitions
from telos.nets.normaliser import Normaliser
from telos.nets.policies import CategoricalPolicy, DeterministicPolicy, GaussianPolicy, box

if TYPE_CHECKING:
    from jaxtyping import Float

BASELINE = {
    "method": "BC",
    "title": "Efficient Training of Artificial Neural Networks for Autonomous Navigation",
    "reference": "Pomerleau, Neural Computation 1991",
    "year": 1991,
    "purpose": ["demonstration"],
    "product": "Policy",
    "data": "offline transitions",
    "summary": "Behaviour cloning: supervised learning of the recorded actions; rewards are not read.",
    "equations": [
        r"\mathcal L_\pi=\mathbb E\left[(\pi(s)-a)^2\right]",
        r"\mathcal L_\pi=-\mathbb E\left[\log\pi(a\mid s)\right]\quad\text{(Gaussian policies, discrete actions)}",
    ],
    "deviations": ["Two hidden layers and Adam, as the offline RL methods compared with it."],
}


@dataclass(frozen=True)
class BC(Method):
    """Behaviour cloning, for continuous and discrete actions."""

    data = Transitions

    kind: Literal["deterministic", "gaussian"] = "deterministic"
    """For continuous actions: squared error of a deterministic policy, or likelihood of a Gaussian one."""
    normalise: bool = True
    """Standardise observations with the data's mean and std + 0.001."""
    hidden: tuple[int, ...] = (256, 256)
    """Widths of the hidden layers. As TD3+BC."""
    learning_rate: float = 3e-4
    """Of Adam. As TD3+BC."""
    batch_size: int = 256
    """Transitions an update. As TD3+BC."""

    def prepare(self, spec: Spec) -> Spec:
        if not isinstance(getattr(spec.data, "action_space", None), Discrete):
            box(spec.data, "BC")
        return spec.replace(data=spec.data.to(spec.device))

    def source(self, spec: Spec) -> Uniform:
        return Uniform(spec.data, self.batch_size)

    def learner(self, spec: Spec, rng: Rng) -> BCLearner:
        return BCLearner(self, spec.data, rng)


def squared_error(
    policy: DeterministicPolicy, states: Float[Tensor, "B O"], actions: Float[Tensor, "B A"]
) -> tuple[Float[Tensor, ""], int]:
    """Squared differences in half widths of the action range: mean over dimensions, sum over rows, their number."""
    return ((policy(states) - actions) / policy.scale.half_width).square().mean(-1).sum(), len(states)


def negative_log_likelihood(
    policy: GaussianPolicy | CategoricalPolicy, states: Float[Tensor, "B O"], actions: Tensor
) -> tuple[Float[Tensor, ""], int]:
    """-log pi(a | s) summed over rows, and their number; actions (B, A), or (B,) for discrete ones."""
    return -policy.log_likelihood(states, actions).sum(), len(states)


class BCLearner(Learner):
    """A policy and its optimiser."""

    def __init__(self, method: BC, data: Transitions, rng: Rng):
        size, space, weights = data.observations.shape[1], data.action_space, rng.at("policy").torch()
        if isinstance(space, Discrete):
            policy = CategoricalPolicy(size, space.size, method.hidden, rng=weights)
        elif method.kind == "gaussian":
            policy = GaussianPolicy(size, space.low, space.high, method.hidden, rng=weights)
        else:
            policy = DeterministicPolicy(size, space.low, space.high, method.hidden, rng=weights)
        if method.normalise:
            policy.normaliser = Normaliser.fitted(data.observations)
        self.policy = policy.to(data.observations.device)
        self.optimiser = torch.optim.Adam(self.policy.parameters(), method.learning_rate, fused=True)

    def update(self, batch: Transitions, rng: Rng, micro: int = 1) -> Metrics:
        parts = [(part,) for part in split(batch, micro)]
        return self.descend(self.optimiser, self.loss, parts, len(batch), grad_norm=True)

    def loss(self, part: Transitions) -> tuple[Tensor, dict[str, Tensor]]:
        """Summed over rows."""
        states = self.policy.normaliser(part.observations)
        if isinstance(self.policy, DeterministicPolicy):
            total, _ = squared_error(self.policy, states, part.actions)
        else:
            total, _ = negative_log_likelihood(self.policy, states, part.actions)
        return total, {"loss": total}

    def product(self) -> Product:
        return self.policy
