"""CQL: Q-learning whose values of unrecorded actions are pushed below those of recorded ones.

Kumar et al.: Conservative Q-Learning for Offline Reinforcement Learning, NeurIPS 2020, arXiv 2006.04779.

Each critic's loss is its Bellman error and CQL(H)'s regulariser, a soft maximum minus the recorded action's value,

    alpha * mean (log sum over b of exp Q(s, b) - Q(s, a))                                            (1)

Discrete actions: Double DQN with H the Huber loss; Q' becomes Q every `target_every` updates,

    mean H(r + discount * Q'(s', a') - Q(s, a)),    a' = argmax Q(s', .)                              (2)

Continuous actions: SAC. The sum in (1) is an integral, estimated with importance weights from actions drawn uniformly
and from pi(. | s) and pi(. | s'). With a' and b drawn from the policy and Q' following by `tau`,

    Q_i:  mean (r + discount * min_i Q_i'(s', a') - Q_i(s, a))^2                                      (3)
    pi:   mean (eta log pi(b | s) - min_i Q_i(s, b))                                                  (4)
    eta:  - log eta * mean (log pi(b | s) - A),    A actions' dimensions: the entropy's target is -A  (5)
"""

from __future__ import annotations

import math
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
from telos.data.records import Box, Discrete, Transitions
from telos.nets.critics import EnsembleQ, frozen_copy, polyak_
from telos.nets.normaliser import Normaliser
from telos.nets.policies import box
from telos.nets.q_policies import QPolicy
from telos.nets.squashed import SquashedGaussianPolicy
from telos.ops.q_learning import chosen_values, conservative_gap, of_actions, sampled_logsumexp
from telos.ops.values import ensemble_mse, td_target

if TYPE_CHECKING:
    from jaxtyping import Float

BASELINE = {
    "method": "CQL",
    "title": "Conservative Q-Learning for Offline Reinforcement Learning",
    "reference": "Kumar, Zhou, Tucker and Levine, NeurIPS 2020, arXiv 2006.04779",
    "year": 2020,
    "purpose": ["reward"],
    "product": "Policy",
    "data": "offline transitions",
    "summary": "Q-learning that lowers a soft maximum of its values and raises those of recorded actions, so that "
    "unrecorded actions are not overrated. For continuous and discrete actions.",
    "equations": [
        r"\mathcal L_C(Q)=\mathbb E\left[\log\sum_{b}e^{Q(s,b)}-Q(s,a)\right]",
        r"a'=\operatorname{argmax}_{b}Q(s',b)\text{ (discrete)},\quad a'\sim\pi(\cdot\mid s')\text{ (continuous)}",
        r"y=r+\gamma\,\mathbb 1[s'\text{ not terminal}]\,\min_{i}Q'_i(s',a')",
        r"\mathcal L_Q=\sum_{i}\alpha\mathcal L_C(Q_i)+\mathbb E\left[(Q_i(s,a)-y)^2\right]",
        r"\mathcal L_\pi=\mathbb E\left[\eta\log\pi(b\mid s)-\min_{i=1,2}Q_i(s,b)\right],\quad "
        r"b\sim\pi(\cdot\mid s)",
    ],
    "deviations": [
        "A fixed weight of the regulariser, without the Lagrange multiplier of some of the paper's runs.",
        "The policy learns from values from the start; the code clones at first. Losses read parameters from before.",
        "Discrete actions: Double DQN, Huber loss and SELU, as Schweighofer et al., arXiv 2111.04714; paper: QR-DQN.",
    ],
}


@dataclass(frozen=True)
class CQL(Method):
    """Offline Q-learning with conservative values, for continuous and discrete actions."""

    data = Transitions

    alpha: float | None = None
    """Weight of the regulariser, >= 0. None: 5 for continuous actions (paper: 5 or 10), 1 for discrete ones (paper: 1
    or 4)."""
    samples: int = 10
    """Continuous actions: uniform ones a row, and as many from the policy at each of s and s', >= 1. Paper: 10."""
    discount: float = 0.99
    """Discount of the next step's value, 0 to 1. Paper: 0.99."""
    tau: float = 0.005
    """Continuous actions: step of the target critics towards the trained ones, 0 to 1. Paper: 0.005."""
    target_every: int = 100
    """Discrete actions: updates between copies for the targets, >= 1. As Schweighofer et al."""
    huber: float = 1.0
    """Discrete actions: where the loss turns from a parabola to a line, > 0. As Schweighofer et al."""
    reward_scale: float = 1.0
    """Rewards are multiplied by this. Paper: 1."""
    reward_shift: float = 0.0
    """Then this is added. Paper: 0."""
    normalise: bool = False
    """Standardise observations with the data's mean and std + 0.001. Paper: off."""
    hidden: tuple[int, ...] = (256, 256, 256)
    """Widths of the hidden layers of all networks. Paper: 256, 256, 256."""
    activation: Literal["relu", "selu", "tanh"] = "selu"
    """Discrete actions: between layers (continuous: relu). As Schweighofer et al."""
    learning_rate: float = 3e-4
    """Of Adam, for values. Paper: 3e-4; Schweighofer et al.: 1e-4."""
    policy_learning_rate: float = 1e-4
    """Continuous actions: of Adam, for policy and temperature. Paper: 1e-4 or 3e-5."""
    batch_size: int = 256
    """Transitions an update. Paper: 256; Schweighofer et al.: 128."""

    def prepare(self, spec: Spec) -> Spec:
        if not isinstance(getattr(spec.data, "action_space", None), Discrete):
            box(spec.data, "CQL")
        if (self.alpha or 0) < 0 or self.samples < 1:
            got = f"alpha={self.alpha}, samples={self.samples}"
            raise TelosError("CQL: an option is out of range", expected="alpha >= 0, samples >= 1", got=got)
        return spec.replace(data=spec.data.to(spec.device))

    def source(self, spec: Spec) -> Uniform:
        return Uniform(spec.data, self.batch_size)

    def learner(self, spec: Spec, rng: Rng) -> Learner:
        return LEARNERS[type(spec.data.action_space)](self, spec.data, rng)

    def targets(self, part: Transitions, next_values: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
        """r + discount * Q'(s', a') for each row."""
        rewards = self.reward_scale * part.rewards + self.reward_shift
        return td_target(rewards, part.terminated, next_values, self.discount)


class DiscreteCQLLearner(Learner):
    """(1) and (2): action values, and the copy that their targets are computed from."""

    ALPHA, constant = 1.0, ("alpha",)

    def __init__(self, method: CQL, data: Transitions, rng: Rng):
        self.method, self.updates = method, 0
        self.alpha = self.ALPHA if method.alpha is None else method.alpha
        sizes, weights = (data.observations.shape[1], data.action_space.size), rng.at("values").torch()
        policy = QPolicy(*sizes, method.hidden, method.activation, rng=weights)
        if method.normalise:
            policy.normaliser = Normaliser.fitted(data.observations)
        self.policy = policy.to(data.observations.device)
        self.target = frozen_copy(self.policy.net)
        self.optimiser = torch.optim.Adam(self.policy.parameters(), method.learning_rate, fused=True)

    def update(self, batch: Transitions, rng: Rng, micro: int = 1) -> Metrics:
        parts = [(part,) for part in split(batch, micro)]
        metrics = self.descend(self.optimiser, self.loss, parts, len(batch))
        self.updates += 1
        if self.updates % self.method.target_every == 0:
            self.target.load_state_dict(self.policy.net.state_dict())
        return metrics

    def loss(self, part: Transitions) -> tuple[Tensor, dict[str, Tensor]]:
        """(2) and (1) together."""
        losses = self.losses(part)
        return losses["critic_loss"] + self.alpha * losses["gap"], losses

    def losses(self, part: Transitions) -> dict[str, Float[Tensor, ""]]:
        """(2), and (1) without alpha, each summed over rows."""
        values = self.policy(self.policy.normaliser(part.observations))
        with torch.no_grad():
            states = self.policy.normaliser(part.next_observations)
            targets = self.method.targets(part, chosen_values(self.target(states), self.policy(states)))
        recorded = of_actions(values, part.actions)
        return {
            "critic_loss": huber_loss(recorded, targets, reduction="sum", delta=self.method.huber),
            "gap": conservative_gap(values, part.actions)[0],
        }

    def product(self) -> Product:
        return self.policy


class SquashedCQLLearner(Learner):
    """(1), (3), (4) and (5): twin critics with target copies, a policy and its temperature."""

    ALPHA, constant = 5.0, ("alpha",)

    def __init__(self, method: CQL, data: Transitions, rng: Rng):
        self.method, bounds, device = method, box(data, "CQL"), data.observations.device
        self.alpha = self.ALPHA if method.alpha is None else method.alpha
        size, weights = data.observations.shape[1], rng.at("policy").torch()
        policy = SquashedGaussianPolicy(size, bounds.low, bounds.high, method.hidden, rng=weights)
        if method.normalise:
            policy.normaliser = Normaliser.fitted(data.observations)
        self.policy = policy.to(device)
        self.critic = EnsembleQ(2, size, bounds.size, method.hidden, rng.at("critic").torch()).to(device)
        self.target_critic = frozen_copy(self.critic)
        self.log_temperature = torch.zeros((), device=device, requires_grad=True)
        actors = [*self.policy.parameters(), self.log_temperature]
        self.critic_optimiser = torch.optim.Adam(self.critic.parameters(), method.learning_rate, fused=True)
        self.policy_optimiser = torch.optim.Adam(actors, method.policy_learning_rate, fused=True)

    def update(self, batch: Transitions, rng: Rng, micro: int = 1) -> Metrics:
        rows, size = batch.actions.shape
        n, device = self.method.samples, batch.actions.device
        normal = torch.randn((2 * n + 2, rows, size), generator=rng.at("policy").torch(device), device=device)
        uniform = torch.rand((n, rows, size), generator=rng.at("uniform").torch(device), device=device)
        parts, metrics = split(batch, micro), dict[str, Tensor | float]()
        self.critic_optimiser.zero_grad()
        self.policy_optimiser.zero_grad()
        trained = [*self.policy.parameters(), self.log_temperature]
        for part, z, u in zip(parts, normal.tensor_split(len(parts), 1), uniform.tensor_split(len(parts), 1)):
            critics, actor = self.critic_losses(part, z[1:], u), self.policy_losses(part, z[:1])
            ((critics["critic_loss"] + self.alpha * critics["gap"]) / rows).backward()
            (sum(actor.values(), torch.zeros(())) / rows).backward(inputs=trained)
            for name, loss in {**critics, **actor}.items():
                metrics[name] = loss.detach() / rows + metrics.get(name, 0.0)
        self.critic_optimiser.step()
        self.policy_optimiser.step()
        polyak_(self.target_critic, self.critic, self.method.tau)
        return metrics

    def critic_losses(
        self, part: Transitions, normal: Float[Tensor, "m B A"], uniform: Float[Tensor, "n B A"]
    ) -> dict[str, Float[Tensor, ""]]:
        """(3), and (1) without alpha, each summed over rows and both critics."""
        states, nexts = (self.policy.normaliser(x) for x in (part.observations, part.next_observations))
        with torch.no_grad():
            actions, _ = self.policy.draw(nexts, normal[:1])
            targets = self.method.targets(part, self.target_critic(nexts, actions[0]).amin(0))
            own, other = normal[1:].chunk(2)
            here, there = self.policy.draw(states, own), self.policy.draw(nexts, other)
            even = torch.full_like(uniform[..., 0], -uniform.shape[-1] * math.log(2))
            actions = torch.cat([self.policy.scale(2 * uniform - 1), here[0], there[0]])
            log_densities = torch.cat([even, here[1], there[1]])
        values = self.critic(states.repeat(len(actions), 1), actions.flatten(0, 1)).unflatten(1, log_densities.shape)
        recorded = self.critic(states, part.actions)
        return {
            "critic_loss": ensemble_mse(recorded, targets)[0],
            "gap": (sampled_logsumexp(values, log_densities) - recorded).sum(),
        }

    def policy_losses(self, part: Transitions, normal: Float[Tensor, "1 B A"]) -> dict[str, Float[Tensor, ""]]:
        """(4) and (5), summed over rows."""
        states = self.policy.normaliser(part.observations)
        actions, log_probs = self.policy.draw(states, normal)
        values = self.critic(states, actions[0]).amin(0)
        return {
            "policy_loss": (self.log_temperature.detach().exp() * log_probs[0] - values).sum(),
            "temperature_loss": -(self.log_temperature * (log_probs[0].detach() - actions.shape[-1])).sum(),
        }

    def product(self) -> Product:
        return self.policy


LEARNERS = {Discrete: DiscreteCQLLearner, Box: SquashedCQLLearner}
