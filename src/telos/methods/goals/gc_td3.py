"""GC-TD3: temporal differences for goals in hindsight, the kind of method that cloning with goals is compared with.

Andrychowicz et al.: Hindsight Experience Replay, NeurIPS 2017, arXiv 1707.01495, with TD3 (Fujimoto, van Hoof, Meger,
ICML 2018, arXiv 1802.09477) in the place of DDPG, and for discrete actions Double DQN (van Hasselt, Guez, Silver, AAAI
2016, arXiv 1509.06461).

Goals are later states of the step's episode, or any states of the data. A step costs 1 until it reaches the goal:

    y = 0 where s' reaches g,  else -1 + discount min_i Q_i'(s', a', g)                               (1)

(or 1, else discount min_i Q_i'), kept between the least and the largest return that there can be. For continuous
actions, with a' = pi'(s', g) and clipped noise, critics take a step each update, and the policy every `policy_every`:

    Q_i:  mean (y - Q_i(s, a, g))^2                                                                   (2)
    pi:   - mean Q_1(s, pi(s, g), g) / mean |Q_1|  +  bc_weight mean ||pi(s, g) - a||^2               (3)

For discrete ones a' = argmax Q(s', ., g), valued by Q', and the policy takes argmax Q(s, ., g):

    Q:    mean (y - Q(s, a, g))^2  +  bc_weight mean (logsumexp Q(s, ., g) - Q(s, a, g))              (4)

The last terms keep it near the data (Fujimoto, Gu 2021, arXiv 2106.06860; Kumar et al. 2020, arXiv 2006.04779): without
them, actions that were never recorded are valued by guesses.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from telos.core.errors import TelosError
from telos.core.method import Learner, Method, Metrics, Spec, split, summed
from telos.core.products import Product
from telos.core.rng import Rng
from telos.core.sources import UniformGoals
from telos.data.goals import GoalSteps
from telos.data.records import Discrete, Transitions
from telos.nets.critics import EnsembleQ, frozen_copy, polyak_
from telos.nets.goal_policies import ReachingPolicy, goal_space
from telos.nets.policies import CategoricalPolicy, DeterministicPolicy
from telos.ops.values import ensemble_mse, smoothed_actions

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

BASELINE = {
    "method": "GC-TD3",
    "title": "Hindsight Experience Replay",
    "reference": "Andrychowicz et al., NeurIPS 2017, arXiv 1707.01495; TD3: arXiv 1802.09477; Double DQN: arXiv "
    "1509.06461",
    "year": 2017,
    "purpose": ["goal"],
    "product": "Policy",
    "data": "offline trajectories with goals",
    "summary": "Q-learning of goals in hindsight, a step costing 1 until the goal: an actor-critic for continuous "
    "actions, a Q-network for discrete ones.",
    "equations": [
        r"y=-\mathbb 1[s'\ne g]\left(1-\gamma\min_{i=1,2}Q'_i(s',a',g)\right)",
        r"\mathcal L_Q=\sum_{i=1}^{2}\mathbb E\left[(Q_i(s,a,g)-y)^2\right]",
        r"\mathcal L_\pi=-\frac{\mathbb E\left[Q_1(s,\pi(s,g),g)\right]}{\mathbb E\left[|Q_1(s,\pi(s,g),g)|\right]}"
        r"+\alpha\,\mathbb E\left[\lVert\pi(s,g)-a\rVert^2\right]",
        r"\mathcal L_Q=\mathbb E\left[(Q(s,a,g)-y)^2+\alpha\left(\log\sum_{a'}e^{Q(s,a',g)}-Q(s,a,g)\right)\right]"
        r"\quad\text{(discrete actions)}",
    ],
    "deviations": [
        "Experience comes from a data set, so a term keeps the policy near it (bc_weight=0 leaves it out).",
        "The other goals are any states of the data, where the paper has those that were asked for.",
        "s' reaches g where their columns are equal (or nearer than tolerance), not where their row numbers are.",
        "Only goals end a way: where a task ended by itself, values go on from the state that it ended in.",
    ],
}


@dataclass(frozen=True)
class GCTD3(Method):
    """Q-learning for goals, with all that comes with it off the data; continuous and discrete actions."""

    data = Transitions

    reward: Literal["minus_one", "zero_one"] = "minus_one"
    """-1 a step until one reaches the goal, or 1 for the step that does and 0 before. Paper: minus_one."""
    future_goals: float = 0.5
    """Share of goals from the rest of the episode, 0 to 1; the others are any states, without which episodes are not
    joined. Paper: 0.8 (4 to 1); telos: 0.5."""
    bc_weight: float = 0.1
    """Weight of the term that keeps it near the data, >= 0. TD3+BC: 0.4 (1 / 2.5); telos: 0.1."""
    tolerance: float = 0.0
    """How near to the goal counts as being there, Euclidean, >= 0. Paper: the task's own."""
    discount: float = 0.98
    """Of the next step's value, 0 to below 1. Paper: 0.98."""
    tau: float = 0.005
    """Step of the target networks towards the trained ones, 0 to 1. TD3: 0.005; paper: 0.05, once an epoch."""
    policy_noise: float = 0.2
    """Std of the noise on target actions, in half widths of the action range, >= 0. TD3: 0.2."""
    noise_clip: float = 0.5
    """Bound of that noise, same units. TD3: 0.5."""
    policy_every: int = 2
    """Critic updates to one update of the policy, >= 1. TD3: 2."""
    observation_columns: tuple[int, ...] | None = None
    """Columns of the observation that are the state; None for all."""
    goal_columns: tuple[int, ...] | None = None
    """Columns of the observation that are the goal; None for all."""
    normalise: bool = False
    """Standardise states and goals with the data's mean and std + 0.001. Paper: on."""
    hidden: tuple[int, ...] = (256, 256)
    """Widths of the hidden layers. TD3's code: 256, 256; paper: 3 of 64."""
    learning_rate: float = 3e-4
    """Of Adam. TD3's code: 3e-4; paper: 1e-3."""
    batch_size: int = 256
    """Steps an update. TD3's code: 256; paper: 128."""

    def prepare(self, spec: Spec) -> Spec:
        goal_space(spec.data, "GC-TD3", {n: getattr(self, n) for n in ("observation_columns", "goal_columns")})
        ranges = {
            "future_goals": 0 <= self.future_goals <= 1, "bc_weight": self.bc_weight >= 0,
            "tolerance": self.tolerance >= 0, "discount": 0 <= self.discount < 1,
            "policy_every": self.policy_every >= 1,
        }  # fmt: skip
        for name, fine in ranges.items():
            if not fine:
                raise TelosError(f"GC-TD3: option {name} is out of range", got=str(getattr(self, name)))
        return spec.replace(data=spec.data.to(spec.device))

    def source(self, spec: Spec) -> UniformGoals:
        goals = {"future": self.future_goals, "random": 1 - self.future_goals}
        return UniformGoals(spec.data, self.batch_size, goals, self.discount, self.goal_columns)

    def learner(self, spec: Spec, rng: Rng) -> GoalQLearner | GoalTD3Learner:
        kind = GoalQLearner if isinstance(spec.data.action_space, Discrete) else GoalTD3Learner
        return kind(self, spec.data, rng)


def goal_targets(
    reward: str, reached: Bool[Tensor, " B"], next_values: Float[Tensor, " B"], discount: float
) -> Float[Tensor, " B"]:
    """(1), from the values of s' on the way to g."""
    step, goal, least, most = (-1.0, 0.0, -1 / (1 - discount), 0.0) if reward == "minus_one" else (0.0, 1.0, 0.0, 1.0)
    return torch.where(reached, goal, step + discount * next_values).clamp(least, most)


def reaches(policy: ReachingPolicy, steps: GoalSteps, tolerance: float) -> Bool[Tensor, " B"]:
    """Whether steps lead to within `tolerance` of their goals."""
    return (policy.achieved(steps.next_observations) - steps.goals).norm(dim=-1) <= tolerance


class GoalQLearner(Learner):
    """Discrete actions: a network of values, which is the policy's own, and the copy that targets are computed from."""

    def __init__(self, method: GCTD3, data: Transitions, rng: Rng):
        self.method, columns = method, (method.observation_columns, method.goal_columns)
        weights = rng.at("policy").torch()
        self.policy = ReachingPolicy.of(data, columns, "categorical", method.hidden, method.normalise, weights)
        assert isinstance(self.policy.actor, CategoricalPolicy)
        self.target = frozen_copy(self.policy.actor.net)
        self.optimiser = torch.optim.Adam(self.policy.parameters(), method.learning_rate, fused=True)

    def update(self, batch: GoalSteps, rng: Rng, micro: int = 1) -> Metrics:
        parts = [(part,) for part in split(batch, micro)]
        metrics = self.descend(self.optimiser, lambda part: summed(self.losses(part)), parts, len(batch))
        polyak_(self.target, self.policy.actor.net, self.method.tau)
        return metrics

    def losses(self, part: GoalSteps) -> dict[str, Float[Tensor, ""]]:
        """(4), its two terms summed over rows."""
        m, net = self.method, self.policy.actor.net
        with torch.no_grad():
            nexts = self.policy.states(part.next_observations, part.goals)
            later = self.target(nexts).gather(-1, net(nexts).argmax(-1, keepdim=True)).squeeze(-1)
            wanted = goal_targets(m.reward, reaches(self.policy, part, m.tolerance), later, m.discount)
        values = net(self.policy.states(part.observations, part.goals))
        return {
            "critic_loss": (values.gather(-1, part.actions[:, None]).squeeze(-1) - wanted).square().sum(),
            # logsumexp Q(s, .) - Q(s, a) is the cross entropy of softmax Q.
            "gap": m.bc_weight * F.cross_entropy(values, part.actions, reduction="sum"),
        }

    def product(self) -> Product:
        return self.policy


class GoalTD3Learner(Learner):
    """Continuous actions: twin critics and a deterministic actor, with target copies of both."""

    def __init__(self, method: GCTD3, data: Transitions, rng: Rng):
        self.method, self.updates = method, 0
        columns, weights = (method.observation_columns, method.goal_columns), rng.at("policy").torch()
        self.policy = ReachingPolicy.of(data, columns, "deterministic", method.hidden, method.normalise, weights)
        sizes = self.policy.input_size, data.action_space.size
        self.critic = EnsembleQ(2, *sizes, method.hidden, rng.at("critic").torch()).to(data.observations.device)
        self.target_policy, self.target_critic = frozen_copy(self.policy), frozen_copy(self.critic)
        self.policy_optimiser = torch.optim.Adam(self.policy.parameters(), method.learning_rate, fused=True)
        self.critic_optimiser = torch.optim.Adam(self.critic.parameters(), method.learning_rate, fused=True)

    @staticmethod
    def actor(policy: ReachingPolicy) -> DeterministicPolicy:
        """Of a policy over continuous actions."""
        assert isinstance(policy.actor, DeterministicPolicy)
        return policy.actor

    def update(self, batch: GoalSteps, rng: Rng, micro: int = 1) -> Metrics:
        device = batch.actions.device
        noise = torch.randn(batch.actions.shape, generator=rng.at("noise").torch(device), device=device)
        parts = split(batch, micro)
        drawn = list(zip(parts, noise.tensor_split(len(parts))))
        metrics = self.descend(self.critic_optimiser, self.critic_loss, drawn, len(batch))
        self.updates += 1
        if self.updates % self.method.policy_every == 0:
            metrics |= self.improve_policy(parts, len(batch))
            polyak_(self.target_critic, self.critic, self.method.tau)
            polyak_(self.target_policy, self.policy, self.method.tau)
        return metrics

    def critic_loss(self, part: GoalSteps, noise: Float[Tensor, "B A"]) -> tuple[Tensor, dict[str, Tensor]]:
        """(2) summed over rows and critics; noise is standard normal."""
        values = self.critic(self.policy.states(part.observations, part.goals), part.actions)
        total, _ = ensemble_mse(values, self.targets(part, noise))
        return total, {"critic_loss": total}

    @torch.no_grad()
    def targets(self, part: GoalSteps, noise: Float[Tensor, "B A"]) -> Float[Tensor, " B"]:
        """(1) for each row."""
        m, actor = self.method, self.actor(self.target_policy)
        states = self.policy.states(part.next_observations, part.goals)
        bounds = (m.policy_noise, m.noise_clip, actor.scale.low, actor.scale.high)
        later = self.target_critic(states, smoothed_actions(actor(states), noise, *bounds)).amin(0)
        return goal_targets(m.reward, reaches(self.policy, part, m.tolerance), later, m.discount)

    def improve_policy(self, parts: list[GoalSteps], rows: int) -> Metrics:
        """One step on (3), whose denominator is of the whole batch, so that its parts agree."""
        actor = self.actor(self.policy)
        with torch.no_grad():
            states = torch.cat([self.policy.states(part.observations, part.goals) for part in parts])
            size = self.critic.first(states, actor(states)).abs().mean().clamp(min=1e-6)
        each, trained = [(part, size) for part in parts], list(actor.parameters())
        return self.descend(self.policy_optimiser, self.policy_loss, each, rows, trained)

    def policy_loss(self, part: GoalSteps, size: Float[Tensor, ""]) -> tuple[Tensor, dict[str, Tensor]]:
        """(3) summed over rows; size is its denominator."""
        m, actor, states = self.method, self.actor(self.policy), self.policy.states(part.observations, part.goals)
        chosen = actor(states)
        away = (actor.scale.unit(chosen) - actor.scale.unit(part.actions)).square().mean(-1)
        total = (m.bc_weight * away - self.critic.first(states, chosen) / size).sum()
        return total, {"policy_loss": total}

    def product(self) -> Product:
        return self.policy
