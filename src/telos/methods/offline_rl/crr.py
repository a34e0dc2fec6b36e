"""CRR: the policy imitates those recorded actions that its critic finds better than the policy's own.

Wang et al.: Critic Regularized Regression, NeurIPS 2020, arXiv 2006.15134.

With b_1..b_m drawn from pi(. | s), a' from the target policy pi'(. | s'), and Q the smaller of two critics, each update
takes one step on the sum of

    Q_i:  mean (r + discount * Q'(s', a') - Q_i(s, a))^2, summed over both                            (1)
    pi:   - mean f(A) log pi(a | s),    A = Q(s, a) - mean or max over j of Q(s, b_j)                 (2)

with f(A) = 1[A > 0] (binary) or min(exp(A / temperature), clip) (exp). Targets become the trained networks every
`target_every` updates. The policy is categorical for discrete actions, else Gaussian.
"""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from telos.core.errors import TelosError
from telos.core.method import Learner, Method, Metrics, Spec, split
from telos.core.products import Product
from telos.core.rng import Rng
from telos.core.sources import Uniform
from telos.data.records import Box, Discrete, Transitions
from telos.nets.critics import frozen_copy
from telos.nets.normaliser import Normaliser
from telos.nets.policies import CategoricalPolicy, GaussianPolicy, box
from telos.nets.state_values import TwinQ
from telos.ops.q_learning import advantage_filter, categorical_actions
from telos.ops.values import ensemble_mse, td_target

if TYPE_CHECKING:
    from jaxtyping import Float

BASELINE = {
    "method": "CRR",
    "title": "Critic Regularized Regression",
    "reference": "Wang et al., NeurIPS 2020, arXiv 2006.15134",
    "year": 2020,
    "purpose": ["reward"],
    "product": "Policy",
    "data": "offline transitions",
    "summary": "Imitates recorded actions filtered by a critic: those count that are better than what the policy would "
    "do. For continuous and discrete actions.",
    "equations": [
        r"y=r+\gamma\,\mathbb 1[s'\text{ not terminal}]\,\min_{i=1,2}Q'_i(s',a'),\quad a'\sim\pi'(\cdot\mid s')",
        r"\mathcal L_Q=\sum_{i=1}^{2}\mathbb E\left[(Q_i(s,a)-y)^2\right]",
        r"A=Q(s,a)-\frac1m\sum_{j=1}^{m}Q(s,b_j)\quad\text{or}\quad A=Q(s,a)-\max_{j}Q(s,b_j),"
        r"\quad b_j\sim\pi(\cdot\mid s)",
        r"f(A)=\mathbb 1[A>0]\quad\text{or}\quad f(A)=\min\left(e^{A/\beta},f_{\max}\right)",
        r"\mathcal L_\pi=-\mathbb E\left[f(A)\log\pi(a\mid s)\right]",
        r"Q'\leftarrow Q,\quad\pi'\leftarrow\pi\text{ every }N\text{ updates}",
    ],
    "deviations": [
        "Two critics of plain values, of which the smaller counts, in place of a distributional one.",
        "One Gaussian in place of a mixture, and no recurrent networks.",
        "The policy's mean or most probable action at test, without the critic's choice among samples.",
    ],
}


@dataclass(frozen=True)
class CRR(Method):
    """Offline RL by filtered imitation, for continuous and discrete actions."""

    data = Transitions

    filter: Literal["exp", "binary"] = "binary"
    """Weights of recorded actions: exp(A / temperature), or 1 where A > 0. Paper: both."""
    baseline: Literal["mean", "max"] = "mean"
    """What an action's value is compared with: the mean or the maximum over sampled actions. Paper: both."""
    samples: int = 4
    """Actions sampled for it, >= 1. Paper: 4."""
    temperature: float = 1.0
    """Of the exponential weights, > 0. Paper: 1."""
    clip: float = 20.0
    """Upper bound of the exponential weights. Paper: 20."""
    discount: float = 0.99
    """Discount of the next step's value, 0 to 1. Paper: 0.99."""
    target_every: int = 100
    """Updates between copies of the networks for the targets, >= 1. Paper: 100."""
    reward_scale: float = 1.0
    """Rewards are multiplied by this. Paper: 1."""
    reward_shift: float = 0.0
    """Then this is added. Paper: 0."""
    normalise: bool = False
    """Standardise observations with the data's mean and std + 0.001. Paper: off."""
    hidden: tuple[int, ...] = (256, 256)
    """Widths of the hidden layers of policy and critics. As TD3."""
    learning_rate: float = 1e-4
    """Of Adam, for policy and critics. Paper: 1e-4."""
    batch_size: int = 256
    """Transitions an update. As TD3."""

    def prepare(self, spec: Spec) -> Spec:
        if not isinstance(getattr(spec.data, "action_space", None), Discrete):
            box(spec.data, "CRR")
        if self.samples < 1 or self.temperature <= 0:
            raise TelosError(
                "CRR: an option is out of range", expected="samples >= 1, temperature > 0",
                got=f"{self.samples}, {self.temperature}",
            )  # fmt: skip
        return spec.replace(data=spec.data.to(spec.device))

    def source(self, spec: Spec) -> Uniform:
        return Uniform(spec.data, self.batch_size)

    def learner(self, spec: Spec, rng: Rng) -> CRRLearner:
        return LEARNERS[type(spec.data.action_space)](self, spec.data, rng)


class CRRLearner(Learner):
    """Twin critics and a policy, with copies of both for the targets; what draws actions is left to the two kinds."""

    policy: CategoricalPolicy | GaussianPolicy

    def __init__(self, method: CRR, data: Transitions, rng: Rng):
        self.method, self.updates = method, 0
        size, device = data.observations.shape[1], data.observations.device
        policy = self.make_policy(size, data.action_space, rng.at("policy").torch())
        if method.normalise:
            policy.normaliser = Normaliser.fitted(data.observations)
        self.policy = policy.to(device)
        self.critic = TwinQ(size, data.action_space, method.hidden, rng.at("critic").torch()).to(device)
        self.target_policy, self.target_critic = frozen_copy(self.policy), frozen_copy(self.critic)
        trained = [*self.policy.parameters(), *self.critic.parameters()]
        self.optimiser = torch.optim.Adam(trained, method.learning_rate, fused=True)

    @abc.abstractmethod
    def make_policy(self, size: int, space: Box | Discrete, rng: torch.Generator) -> CategoricalPolicy | GaussianPolicy:
        """A new policy for observations of that size."""

    @abc.abstractmethod
    def noise(self, rows: int, rng: torch.Generator) -> Tensor:
        """What `draw` turns into samples + 1 actions a row."""

    @abc.abstractmethod
    def draw(self, policy: Any, states: Float[Tensor, "B O"], noise: Tensor) -> Tensor:
        """n actions (B, n) or (B, n, A) of a policy of this kind, from noise for n."""

    def update(self, batch: Transitions, rng: Rng, micro: int = 1) -> Metrics:
        noise = self.noise(len(batch), rng.at("actions").torch(batch.rewards.device))
        parts = split(batch, micro)
        drawn = list(zip(parts, noise.tensor_split(len(parts))))
        metrics = self.descend(self.optimiser, self.loss, drawn, len(batch))
        self.updates += 1
        if self.updates % self.method.target_every == 0:
            self.target_policy.load_state_dict(self.policy.state_dict())
            self.target_critic.load_state_dict(self.critic.state_dict())
        return metrics

    def loss(self, part: Transitions, noise: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """(1) and (2) together."""
        losses = self.losses(part, noise)
        return losses["critic_loss"] + losses["policy_loss"], losses

    def losses(self, part: Transitions, noise: Tensor) -> dict[str, Float[Tensor, ""]]:
        """(1) and (2), each summed over rows, and the weights' sum."""
        m, states = self.method, self.policy.normaliser(part.observations)
        with torch.no_grad():
            targets = self.targets(part, noise[:, :1])
            weights = advantage_filter(self.advantages(part, noise[:, 1:]), m.filter, m.temperature, m.clip)
        return {
            "critic_loss": ensemble_mse(self.critic(states, part.actions), targets)[0],
            "policy_loss": -(weights * self.policy.log_likelihood(states, part.actions)).sum(),
            "weight": weights.sum(),
        }

    @torch.no_grad()
    def targets(self, part: Transitions, noise: Tensor) -> Float[Tensor, " B"]:
        """r + discount * min_i Q_i'(s', a') for each row."""
        m, states = self.method, self.policy.normaliser(part.next_observations)
        actions = self.draw(self.target_policy, states, noise)[:, 0]
        next_values = self.target_critic(states, actions).amin(0)
        return td_target(m.reward_scale * part.rewards + m.reward_shift, part.terminated, next_values, m.discount)

    @torch.no_grad()
    def advantages(self, part: Transitions, noise: Tensor) -> Float[Tensor, " B"]:
        """A of (2) for each row."""
        states = self.policy.normaliser(part.observations)
        actions = torch.cat([part.actions[:, None], self.draw(self.policy, states, noise)], 1)
        values = self.critic.several(states, actions).amin(0)
        sampled = values[:, 1:]
        baseline = sampled.mean(-1) if self.method.baseline == "mean" else sampled.amax(-1)
        return values[:, 0] - baseline

    def product(self) -> Product:
        return self.policy


class DiscreteCRRLearner(CRRLearner):
    """Draws by the inverse transform of uniform numbers."""

    def make_policy(self, size: int, space: Box | Discrete, rng: torch.Generator) -> CategoricalPolicy:
        return CategoricalPolicy(size, space.size, self.method.hidden, rng=rng)

    def noise(self, rows: int, rng: torch.Generator) -> Tensor:
        return torch.rand((rows, self.method.samples + 1), generator=rng, device=rng.device)

    def draw(self, policy: Any, states: Float[Tensor, "B O"], noise: Float[Tensor, "B n"]) -> Tensor:
        return categorical_actions(policy(states), noise)


class GaussianCRRLearner(CRRLearner):
    """Draws from the Gaussian, clipped to the Box."""

    def make_policy(self, size: int, space: Box | Discrete, rng: torch.Generator) -> GaussianPolicy:
        assert isinstance(space, Box)
        return GaussianPolicy(size, space.low, space.high, self.method.hidden, state_dependent_std=True, rng=rng)

    def noise(self, rows: int, rng: torch.Generator) -> Tensor:
        assert isinstance(self.policy, GaussianPolicy)
        shape = (rows, self.method.samples + 1, len(self.policy.low))
        return torch.randn(shape, generator=rng, device=rng.device)

    def draw(self, policy: Any, states: Float[Tensor, "B O"], noise: Float[Tensor, "B n A"]) -> Tensor:
        mean, log_std = policy(states)
        return policy.scale.clamp(policy.scale(mean[:, None] + log_std.exp()[:, None] * noise))


LEARNERS = {Discrete: DiscreteCRRLearner, Box: GaussianCRRLearner}
