"""BCQ: Q-learning that chooses only among actions which a model of the recorded behaviour would take, too.

Fujimoto, Meger, Precup: Off-Policy Deep Reinforcement Learning without Exploration, ICML 2019, arXiv 1812.02900.
Discrete actions: Fujimoto et al.: Benchmarking Batch Deep Reinforcement Learning Algorithms, 2019, arXiv 1910.01708.

Discrete actions: with G the recorded behaviour as a network sees it, actions are eligible if

    G(a | s) / max_b G(b | s) > threshold                                                             (1)

With H the Huber loss, each update takes one step on the sum of

    Q:  mean H(r + discount * Q'(s', a') - Q(s, a)),    a' = argmax Q(s', .) among the eligible       (2)
    G:  mean -log G(a | s) + logit_penalty * mean over b of (G's logit of b)^2                        (3)

and Q' becomes Q every `target_every` updates. Threshold 0 is Double DQN, towards 1 it is greedy cloning.

Continuous actions: a variational auto-encoder of actions proposes a_j, a perturbation xi moves each by at most `reach`,
and the proposal of greatest Q_1 is taken. With min' = soft_minimum * min + (1 - soft_minimum) * max over both critics,

    Q_i:  mean (r + discount * max_j min'_i Q_i'(s', a_j + xi'(s', a_j)) - Q_i(s, a))^2               (4)
    xi:   - mean Q_1(s, a_1 + xi(s, a_1))                                                             (5)
    VAE:  mean (decoded - a)^2 + KL / 2;      targets follow by `tau`                                 (6)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor
from torch.nn.functional import huber_loss

from telos.core.errors import TelosError
from telos.core.method import Learner, Method, Metrics, Spec, split, summed
from telos.core.products import Product
from telos.core.rng import Rng
from telos.core.sources import Uniform
from telos.data.records import Box, Discrete, Transitions
from telos.nets.candidates import BOUND, ActionEncoder, CandidatePolicy
from telos.nets.critics import frozen_copy, polyak_
from telos.nets.normaliser import Normaliser
from telos.nets.policies import box
from telos.nets.q_policies import QPolicy
from telos.ops.q_learning import chosen_values, cloning_loss, normal_kl, of_actions, soft_minimum
from telos.ops.values import ensemble_mse, td_target

if TYPE_CHECKING:
    from jaxtyping import Float

BASELINE = {
    "method": "BCQ",
    "title": "Off-Policy Deep Reinforcement Learning without Exploration",
    "reference": "Fujimoto, Meger and Precup, ICML 2019, arXiv 1812.02900; discrete actions: arXiv 1910.01708",
    "year": 2018,
    "purpose": ["reward"],
    "product": "Policy",
    "data": "offline transitions",
    "summary": "Q-learning that chooses, in its targets and at test, only among actions which the recorded behaviour "
    "would take at such a state. For continuous and discrete actions.",
    "equations": [
        r"A(s)=\left\{b:\frac{G(b\mid s)}{\max_{c}G(c\mid s)}>\tau\right\}\text{ (discrete)}",
        r"A(s)=\left\{a_j+\xi(s,a_j):a_j\sim G(\cdot\mid s),\,j\leq n\right\}\text{ (continuous)}",
        r"\pi(s)=\operatorname{argmax}_{b\in A(s)}Q(s,b)",
        r"y=r+\gamma\,\mathbb 1[s'\text{ not terminal}]\,\max_{b\in A(s')}Q'(s',b)",
        r"\mathcal L_Q=\mathbb E\left[(Q(s,a)-y)^2\right]",
    ],
    "deviations": [
        "Losses read the parameters from before an update; at test the proposals' codes are fixed.",
        "Discrete actions: separate networks for values and behaviour, SELU (Schweighofer et al., arXiv 2111.04714).",
    ],
}


@dataclass(frozen=True)
class BCQ(Method):
    """Offline Q-learning within the recorded behaviour, for continuous and discrete actions."""

    data = Transitions

    threshold: float = 0.3
    """Discrete actions: eligible with more than this share of the largest probability, 0 to below 1. Paper: 0.3."""
    logit_penalty: float = 1e-2
    """Discrete actions: weight of the behaviour's mean squared logits, >= 0. Paper: 1e-2."""
    target_every: int = 100
    """Discrete actions: updates between copies for the targets, >= 1. As Schweighofer et al.; paper: 8,000."""
    huber: float = 1.0
    """Discrete actions: where Q's loss turns from a parabola to a line, > 0. Paper: 1."""
    activation: Literal["relu", "selu", "tanh"] = "selu"
    """Discrete actions: between layers (continuous: relu). As Schweighofer et al.; paper: relu."""
    reach: float = 0.05
    """Continuous actions: largest perturbation, in half widths of the range. Paper: 0.05."""
    soft_minimum: float = 0.75
    """Continuous actions: weight of the smaller critic in the targets, 0 to 1. Paper: 0.75."""
    proposals: int = 10
    """Continuous actions: proposals a row in the targets, >= 1. Paper: 10."""
    candidates: int = 100
    """Continuous actions: proposals at test, >= 1. Repository: 100; paper: 10."""
    vae_hidden: tuple[int, ...] = (750, 750)
    """Continuous actions: widths of the hidden layers of encoder and decoder. Paper: 750, 750."""
    tau: float = 0.005
    """Continuous actions: step of the target networks towards the trained ones, 0 to 1. Paper: 0.005."""
    discount: float = 0.99
    """Discount of the next step's value, 0 to 1. Paper: 0.99."""
    reward_scale: float = 1.0
    """Rewards are multiplied by this. Paper: 1."""
    reward_shift: float = 0.0
    """Then this is added. Paper: 0."""
    normalise: bool = False
    """Standardise observations with the data's mean and std + 0.001. Paper: off."""
    hidden: tuple[int, ...] = (256, 256, 256)
    """Widths of the other networks' hidden layers. As Schweighofer et al.; paper: 400, 300 (continuous)."""
    learning_rate: float = 3e-4
    """Of Adam. As TD3; paper: 1e-3 (continuous), 6.25e-5 (Atari); Schweighofer et al.: 1e-4."""
    batch_size: int = 128
    """Transitions an update. As Schweighofer et al.; paper: 100 (continuous), 32 (Atari)."""

    def prepare(self, spec: Spec) -> Spec:
        if not isinstance(getattr(spec.data, "action_space", None), Discrete):
            box(spec.data, "BCQ")
        if not 0 <= self.threshold < 1 or min(self.proposals, self.candidates) < 1:
            expected = "threshold 0 to below 1, proposals and candidates >= 1"
            raise TelosError("BCQ: an option is out of range", expected=expected, got=str(self.options()))
        return spec.replace(data=spec.data.to(spec.device))

    def source(self, spec: Spec) -> Uniform:
        return Uniform(spec.data, self.batch_size)

    def learner(self, spec: Spec, rng: Rng) -> Learner:
        return LEARNERS[type(spec.data.action_space)](self, spec.data, rng)

    def targets(self, part: Transitions, next_values: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
        """r + discount * Q'(s', a') for each row."""
        rewards = self.reward_scale * part.rewards + self.reward_shift
        return td_target(rewards, part.terminated, next_values, self.discount)


class DiscreteBCQLearner(Learner):
    """(2) and (3): action values with the copy that targets are computed from, and a model of the behaviour."""

    def __init__(self, method: BCQ, data: Transitions, rng: Rng):
        self.method, self.updates = method, 0
        sizes, weights = (data.observations.shape[1], data.action_space.size), rng.at("values").torch()
        policy = QPolicy(*sizes, method.hidden, method.activation, threshold=method.threshold, rng=weights)
        if method.normalise:
            policy.normaliser = Normaliser.fitted(data.observations)
        self.policy = policy.to(data.observations.device)
        self.target = frozen_copy(self.policy.net)
        self.optimiser = torch.optim.Adam(self.policy.parameters(), method.learning_rate, fused=True)

    def update(self, batch: Transitions, rng: Rng, micro: int = 1) -> Metrics:
        parts = [(part,) for part in split(batch, micro)]
        metrics = self.descend(self.optimiser, lambda part: summed(self.losses(part)), parts, len(batch))
        self.updates += 1
        if self.updates % self.method.target_every == 0:
            self.target.load_state_dict(self.policy.net.state_dict())
        return metrics

    def losses(self, part: Transitions) -> dict[str, Float[Tensor, ""]]:
        """(2) and (3), each summed over rows."""
        m, states, behaviour = self.method, self.policy.normaliser(part.observations), self.policy.behaviour
        assert behaviour is not None
        values = of_actions(self.policy(states), part.actions)
        return {
            "critic_loss": huber_loss(values, self.targets(part), reduction="sum", delta=m.huber),
            "behaviour_loss": cloning_loss(behaviour(states), part.actions, m.logit_penalty)[0],
        }

    @torch.no_grad()
    def targets(self, part: Transitions) -> Float[Tensor, " B"]:
        """r + discount * Q'(s', a') for each row."""
        states = self.policy.normaliser(part.next_observations)
        next_values = chosen_values(self.target(states), self.policy(states), self.policy.allowed(states))
        return self.method.targets(part, next_values)

    def product(self) -> Product:
        return self.policy


class ContinuousBCQLearner(Learner):
    """(4), (5) and (6): twin critics, a perturbation and an auto-encoder; critics and perturbation have targets."""

    def __init__(self, method: BCQ, data: Transitions, rng: Rng):
        self.method, bounds, weights = method, box(data, "BCQ"), rng.at("weights").torch()
        size, codes = data.observations.shape[1], 2 * bounds.size
        sizes = (bounds.low, bounds.high, method.hidden, method.vae_hidden, codes, method.candidates, method.reach)
        policy = CandidatePolicy(size, *sizes, rng=weights)
        if method.normalise:
            policy.normaliser = Normaliser.fitted(data.observations)
        self.policy = policy.to(data.observations.device)
        self.encoder = ActionEncoder(size + bounds.size, codes, method.vae_hidden, weights).to(data.actions.device)
        self.target = frozen_copy(self.policy)
        trained = [*self.policy.parameters(), *self.encoder.parameters()]
        self.optimiser = torch.optim.Adam(trained, method.learning_rate, fused=True)

    def update(self, batch: Transitions, rng: Rng, micro: int = 1) -> Metrics:
        metrics, parts, device = dict[str, Tensor | float](), split(batch, micro), batch.actions.device
        shape = (len(batch), self.method.proposals + 2, self.policy.codes.shape[1])
        codes = torch.randn(shape, generator=rng.at("codes").torch(device), device=device).tensor_split(len(parts))
        self.optimiser.zero_grad()
        for part, z in zip(parts, codes):
            critic_loss = self.critic_loss(part, z[:, 2:])
            perturbation_loss, vae_loss = self.perturbation_loss(part, z[:, 0]), self.vae_loss(part, z[:, 1])
            ((critic_loss + vae_loss) / len(batch)).backward()
            (perturbation_loss / len(batch)).backward(inputs=list(self.policy.perturbation.parameters()))
            sums = {"critic_loss": critic_loss, "perturbation_loss": perturbation_loss, "vae_loss": vae_loss}
            for name, loss in sums.items():
                metrics[name] = loss.detach() / len(batch) + metrics.get(name, 0.0)
        self.optimiser.step()
        polyak_(self.target.critic, self.policy.critic, self.method.tau)
        polyak_(self.target.perturbation, self.policy.perturbation, self.method.tau)
        return metrics

    def critic_loss(self, part: Transitions, noise: Float[Tensor, "B n Z"]) -> Float[Tensor, ""]:
        """(4) summed over rows and critics; the target's decoder is the trained one."""
        policy, states = self.policy, self.policy.normaliser(part.next_observations)
        with torch.no_grad():
            repeated = states[:, None].expand(*noise.shape[:2], -1)
            proposed = policy.decode(repeated, noise.clamp(-BOUND, BOUND))
            actions = policy.perturb(repeated, proposed, self.target.perturbation)
            values = soft_minimum(self.target.values(states, actions), self.method.soft_minimum).amax(-1)
            targets = self.method.targets(part, values)
        return ensemble_mse(policy.critic(policy.normaliser(part.observations), part.actions), targets)[0]

    def perturbation_loss(self, part: Transitions, noise: Float[Tensor, "B Z"]) -> Float[Tensor, ""]:
        """(5) summed over rows."""
        states = self.policy.normaliser(part.observations)
        with torch.no_grad():
            proposed = self.policy.decode(states, noise.clamp(-BOUND, BOUND))
        return -self.policy.critic.first(states, self.policy.perturb(states, proposed)).sum()

    def vae_loss(self, part: Transitions, noise: Float[Tensor, "B Z"]) -> Float[Tensor, ""]:
        """(6) in units of half widths, summed over rows."""
        states, actions = self.policy.normaliser(part.observations), self.policy.scale.unit(part.actions)
        mean, log_std = self.encoder(states, actions)
        errors = (self.policy.decode(states, mean + log_std.exp() * noise) - actions).square().mean(-1)
        return (errors + 0.5 * normal_kl(mean, log_std)).sum()

    def product(self) -> Product:
        return self.policy


LEARNERS = {Discrete: DiscreteBCQLearner, Box: ContinuousBCQLearner}
