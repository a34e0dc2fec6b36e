"""GCIQL: implicit Q-learning on hindsight goals, a step costing 1 until the goal is where one is.

Kostrikov, Nair, Levine: Offline Reinforcement Learning with Implicit Q-Learning, ICLR 2022, arXiv 2110.06169; with
goals as in Park, Frans, Eysenbach, Levine: OGBench, ICLR 2025, arXiv 2410.20092.

Goals of the values are the state itself, later states of its episode (geometric), or any states of the data; goals of
the policy are later states of the episode (uniform). With Q' the smaller of two target critics, each update takes one
step on the sum of

    V:   mean |eta - 1(u < 0)| u^2,         u = Q'(s, a, g) - V(s, g),   eta = expectile              (1)
    Q_i: mean (y - Q_i(s, a, g))^2,         y = -1 + discount V(s', g),  0 where s is g               (2)

(or y = discount V(s', g), 1 where s is g), and for the policy, at its own goals,

    awr:       - mean min(exp(beta u), clip) log pi(a | s, g)                                         (3)
    ddpg_bc:   - mean min_i Q_i(s, pi(s, g), g) / mean |min_i Q_i|  -  bc_weight mean log pi(a | s, g)    (4)

reward="log_ratio" makes it the kind of method that learns with a discriminator: a classifier c(s, a, g) tells steps
that enter their goal from others, by its cross entropy, and y = c(s, a, g) + discount V(s', g) with c the log-odds.
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
from telos.core.sources import Beside, Both, UniformGoals
from telos.data.goals import GoalSteps
from telos.data.records import Discrete, Transitions
from telos.nets.critics import frozen_copy, polyak_
from telos.nets.goal_policies import ReachingPolicy, goal_space
from telos.nets.policies import DeterministicPolicy, GaussianPolicy
from telos.nets.state_values import StateValue, TwinQ
from telos.ops.values import advantage_weights, ensemble_mse, expectile_loss

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

BASELINE = {
    "method": "GCIQL",
    "title": "Goal-conditioned Implicit Q-Learning",
    "reference": "Kostrikov, Nair and Levine, ICLR 2022, arXiv 2110.06169; goals as in Park et al., OGBench, ICLR 2025",
    "year": 2021,
    "purpose": ["goal"],
    "product": "Policy",
    "data": "offline trajectories with goals",
    "summary": "Values of goals in hindsight by expectile regression, a step costing 1 until the goal; the policy "
    "imitates recorded actions by their advantage, or climbs the value near them.",
    "equations": [
        r"\mathcal L_V=\mathbb E\left[|\eta-\mathbb 1[u<0]|\,u^2\right],\quad u=\min_{i=1,2}Q'_i(s,a,g)-V(s,g)",
        r"y=\mathbb 1[s\ne g]\left(-1+\gamma V(s',g)\right)",
        r"\mathcal L_Q=\sum_{i=1}^{2}\mathbb E\left[(Q_i(s,a,g)-y)^2\right]",
        r"\mathcal L_\pi=-\mathbb E\left[\min\left(e^{\beta u},w_{\max}\right)\log\pi(a\mid s,g)\right]",
    ],
    "deviations": [
        "All losses read the parameters from before the update; one optimiser step serves them.",
        "s is g where their columns are equal (or nearer than tolerance), not where their row numbers are.",
        "reward='log_ratio' is ours, after GoFAR (Ma et al., NeurIPS 2022, arXiv 2206.03023): its discriminator on the "
        "backbone of IQL, learnt along with the values; (s, a, g) where it compares states.",
    ],
}


@dataclass(frozen=True)
class GCIQL(Method):
    """Offline RL for goals on recorded actions only; continuous and discrete actions."""

    data = Transitions

    reward: Literal["minus_one", "zero_one", "log_ratio"] = "minus_one"
    """-1 a step until the goal; 1 at the goal and 0 before; or the log-odds of a learnt classifier.
    OGBench: minus_one."""
    extraction: Literal["awr", "ddpg_bc"] = "awr"
    """How the policy is learnt: (3), or (4) for continuous actions. IQL: awr; OGBench: ddpg_bc."""
    expectile: float = 0.9
    """Which expectile of Q(s, ., g) the value is, 0.5 (mean) to below 1 (maximum). OGBench: 0.9."""
    beta: float = 3.0
    """Inverse temperature of the advantage weights, >= 0 (0: imitation). IQL: 3; AntMaze 10."""
    advantage_clip: float = 100.0
    """Upper bound of the weights. IQL: 100."""
    bc_weight: float = 0.3
    """Weight of imitation in (4), >= 0. OGBench: 0.3, tuned by task."""
    current_goals: float = 0.2
    """Share of the values' goals that are the state itself. OGBench: 0.2."""
    future_goals: float = 0.5
    """Share of them from the rest of the episode; the others are any states. OGBench: 0.5."""
    tolerance: float = 0.0
    """How near to the goal counts as being there, Euclidean, >= 0. telos: 0."""
    discount: float = 0.99
    """Of the next step's value, and of how far ahead goals lie; 0 to below 1. OGBench: 0.99."""
    tau: float = 0.005
    """Step of the target critics towards the trained ones, 0 to 1. IQL: 0.005."""
    observation_columns: tuple[int, ...] | None = None
    """Columns of the observation that are the state; None for all."""
    goal_columns: tuple[int, ...] | None = None
    """Columns of the observation that are the goal; None for all."""
    normalise: bool = False
    """Standardise states and goals with the data's mean and std + 0.001. IQL: off."""
    layer_norm: bool = True
    """Layer normalisation in V. OGBench: on, in V and in Q."""
    hidden: tuple[int, ...] = (256, 256)
    """Widths of the hidden layers. IQL: 256, 256; OGBench: 3 of 512."""
    learning_rate: float = 3e-4
    """Of Adam, for all networks. IQL: 3e-4."""
    batch_size: int = 256
    """Steps an update. IQL: 256; OGBench: 1024."""

    def prepare(self, spec: Spec) -> Spec:
        names = ("observation_columns", "goal_columns")
        space = goal_space(spec.data, "GCIQL", {name: getattr(self, name) for name in names})
        ranges = {
            "expectile": 0 < self.expectile < 1, "discount": 0 <= self.discount < 1, "beta": self.beta >= 0,
            "bc_weight": self.bc_weight >= 0, "tolerance": self.tolerance >= 0,
            "current_goals": self.current_goals >= 0,
            "future_goals": 0 <= self.future_goals <= 1 - self.current_goals + 1e-9,
        }  # fmt: skip
        for name, fine in ranges.items():
            if not fine:
                raise TelosError(f"GCIQL: option {name} is out of range", got=str(getattr(self, name)))
        if self.extraction == "ddpg_bc" and isinstance(space, Discrete):
            raise TelosError("GCIQL: extraction='ddpg_bc' needs continuous actions", fix="use extraction='awr'")
        return spec.replace(data=spec.data.to(spec.device))

    def source(self, spec: Spec) -> Beside:
        """Steps for the values, and beside them steps for the policy (and, with a classifier, steps at goals)."""
        others = max(0.0, 1 - self.current_goals - self.future_goals)
        shares = {"here": self.current_goals, "geometric": self.future_goals, "random": others}

        def steps(goals: dict[str, float]) -> UniformGoals:
            return UniformGoals(spec.data, self.batch_size, goals, self.discount, self.goal_columns)

        policy = steps({"future": 1.0})
        if self.reward == "log_ratio":
            return Beside(steps(shares), Beside(policy, steps({"entered": 1.0})))
        return Beside(steps(shares), policy)

    def learner(self, spec: Spec, rng: Rng) -> GCIQLLearner:
        return GCIQLLearner(self, spec.data, rng)


def goal_targets(
    reward: str, arrived: Bool[Tensor, " B"], log_odds: Float[Tensor, " B"], next_values: Float[Tensor, " B"],
    discount: float,
) -> Float[Tensor, " B"]:  # fmt: skip
    """y of (2), or of the other rewards."""
    later = discount * next_values
    if reward == "log_ratio":
        return log_odds + later
    step, goal = (-1.0, 0.0) if reward == "minus_one" else (0.0, 1.0)
    return torch.where(arrived, goal, step + later)


class GCIQLLearner(Learner):
    """Twin critics with target copies, a value and a policy, a classifier where wanted, under one optimiser."""

    def __init__(self, method: GCIQL, data: Transitions, rng: Rng):
        self.method = method
        device, columns = data.observations.device, (method.observation_columns, method.goal_columns)
        self.policy = ReachingPolicy.of(
            data, columns, "gaussian", method.hidden, method.normalise, rng.at("policy").torch()
        )
        size, space = self.policy.input_size, data.action_space
        self.critic = TwinQ(size, space, method.hidden, rng.at("critic").torch()).to(device)
        self.target_critic = frozen_copy(self.critic)
        self.value = StateValue((size, *method.hidden, 1), method.layer_norm, 0.0, rng.at("value").torch()).to(device)
        modules = [self.policy, self.critic, self.value]
        if method.reward == "log_ratio":
            self.classifier = TwinQ(size, space, method.hidden, rng.at("classifier").torch()).to(device)
            modules.append(self.classifier)
        parameters = [p for module in modules for p in module.parameters()]
        self.optimiser = torch.optim.Adam(parameters, method.learning_rate, fused=True)

    def update(self, batch: Both, rng: Rng, micro: int = 1) -> Metrics:
        # (4) divides by the size of values over the whole batch, so that its parts agree.
        size = self.value_size(batch) if self.method.extraction == "ddpg_bc" else torch.ones(())
        parts = [(part, size) for part in split(batch, micro)]
        metrics = self.descend(self.optimiser, lambda part, size: summed(self.losses(part, size)), parts, len(batch))
        polyak_(self.target_critic, self.critic, self.method.tau)
        return metrics

    def losses(self, part: Both, size: Float[Tensor, ""]) -> dict[str, Float[Tensor, ""]]:
        """(1), (2), and (3) or (4), each summed over rows; size is the denominator of (4)."""
        m, steps, own = self.method, part.first, part.second
        assert isinstance(steps, GoalSteps)
        losses: dict[str, Tensor] = {}
        states, nexts = (self.policy.states(o, steps.goals) for o in (steps.observations, steps.next_observations))
        odds = torch.zeros(())
        if isinstance(own, Both):
            own, entering = own.first, own.second
            assert isinstance(entering, GoalSteps)
            yes = self.classifier(self.policy.states(entering.observations, entering.goals), entering.actions)
            no = self.classifier(states, steps.actions)
            losses["classifier_loss"] = F.softplus(-yes).sum() + F.softplus(no).sum()
            odds = no.detach().mean(0)
        assert isinstance(own, GoalSteps)
        with torch.no_grad():
            arrived = (self.policy.achieved(steps.observations) - steps.goals).norm(dim=-1) <= m.tolerance
            wanted = goal_targets(m.reward, arrived, odds, self.value(nexts), m.discount)
            recorded = self.target_critic(states, steps.actions).amin(0)
        losses["value_loss"] = expectile_loss(recorded - self.value(states), m.expectile)[0]
        losses["critic_loss"] = ensemble_mse(self.critic(states, steps.actions), wanted)[0]
        return losses | {"policy_loss": self.policy_loss(own, size)}

    def policy_loss(self, own: GoalSteps, size: Float[Tensor, ""]) -> Float[Tensor, ""]:
        """(3) or (4), summed over rows."""
        m, actor = self.method, self.policy.actor
        states = self.policy.states(own.observations, own.goals)
        assert not isinstance(actor, DeterministicPolicy)
        log_probs = actor.log_likelihood(states, own.actions)
        if m.extraction == "awr":
            with torch.no_grad():
                advantages = self.target_critic(states, own.actions).amin(0) - self.value(states)
            return -(advantage_weights(advantages, m.beta, m.advantage_clip) * log_probs).sum()
        return -self.followed(states).sum() / size - m.bc_weight * log_probs.sum()

    def followed(self, states: Float[Tensor, "B SG"]) -> Float[Tensor, " B"]:
        """The smaller target critic at the policy's means, with gradients to the policy alone."""
        actor = self.policy.actor
        assert isinstance(actor, GaussianPolicy)
        return self.target_critic(states, actor.scale(actor(states)[0])).amin(0)

    @torch.no_grad()
    def value_size(self, batch: Both) -> Float[Tensor, ""]:
        """mean |min_i Q_i| of (4)."""
        own = batch.second.first if isinstance(batch.second, Both) else batch.second
        assert isinstance(own, GoalSteps)
        return self.followed(self.policy.states(own.observations, own.goals)).abs().mean() + 1e-6

    def product(self) -> Product:
        return self.policy
